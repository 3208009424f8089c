//! The ledger's files: one a bot, appended and synced before a permit is given out, rewritten by
//! atomic rename when they have grown or a write went wrong.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use tanako_fleet::identify::Record;

/// Files above this are not ours: a ledger of a day has at most some ten thousand records.
const FILE_BYTES_MAX: u64 = 64 << 20;
const SUFFIX: &str = "ledger";

/// What is to be written.
#[derive(Debug)]
pub(super) enum Job {
    /// Append; with `sync`, it is safe once the job is done.
    Append { records: Vec<Record>, sync: bool },
    /// Replace the whole file; it is safe once the job is done.
    Rewrite { records: Vec<Record> },
}

/// All ledger files.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    open: HashMap<String, File>,
}

impl Files {
    /// Makes the directory when it is missing.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            open: HashMap::new(),
        })
    }

    /// The records of every bot, `None` for each damaged one.
    pub(super) fn load(&self) -> io::Result<Vec<(String, Vec<Option<Record>>)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                continue;
            }
            let Some(bot) = path.file_stem().and_then(|stem| stem.to_str()) else {
                continue;
            };
            let mut bytes = Vec::new();
            File::open(&path)?
                .take(FILE_BYTES_MAX)
                .read_to_end(&mut bytes)?;
            all.push((bot.to_owned(), Record::decode_all(&bytes)));
        }
        Ok(all)
    }

    /// Does a job; returns the file's size in bytes.
    pub(super) fn run(&mut self, bot: &str, job: &Job) -> io::Result<u64> {
        match job {
            Job::Append { records, sync } => self.append(bot, records, *sync),
            Job::Rewrite { records } => self.rewrite(bot, records),
        }
    }

    fn append(&mut self, bot: &str, records: &[Record], sync: bool) -> io::Result<u64> {
        if !self.open.contains_key(bot) {
            let path = self.path(bot);
            let is_new = !path.exists();
            let file = options().append(true).create(true).open(&path)?;
            if is_new {
                sync_directory(&self.directory)?;
            }
            self.open.insert(bot.to_owned(), file);
        }
        let file = self
            .open
            .get_mut(bot)
            .expect("invariant: the file was opened above");
        file.write_all(&encode(records))?;
        if sync {
            file.sync_data()?;
        }
        Ok(file.metadata()?.len())
    }

    fn rewrite(&mut self, bot: &str, records: &[Record]) -> io::Result<u64> {
        self.open.remove(bot);
        let path = self.path(bot);
        let draft = path.with_extension("draft");
        let mut file = options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&draft)?;
        let bytes = encode(records);
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        sync_directory(&self.directory)?;
        Ok(bytes.len() as u64)
    }

    fn path(&self, bot: &str) -> PathBuf {
        self.directory.join(format!("{bot}.{SUFFIX}"))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn encode(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(Record::encode).collect()
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tanako_fleet::identify::{Entry, RECORD_BYTES, Stamp};

    use super::*;

    fn record(permit: u64) -> Record {
        Record {
            at: Stamp {
                boot_id: 1,
                boot_ms: 2,
                wall_ms: 3,
            },
            entry: Entry::Grant {
                permit,
                shard: 4,
                count: 5,
                streak: 0,
            },
        }
    }

    #[test]
    fn what_was_written_is_there_again_and_a_torn_tail_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut files = Files::open(dir.path().join("identify")).expect("opens");
        let append = |n| Job::Append {
            records: vec![record(n)],
            sync: true,
        };
        files.run("tanako", &append(1)).expect("appends");
        let size = files.run("tanako", &append(2)).expect("appends");
        assert_eq!(size, 2 * RECORD_BYTES as u64);
        let rewrite = Job::Rewrite {
            records: vec![record(2)],
        };
        files.run("tanako", &rewrite).expect("rewrites");
        files.run("tanako", &append(3)).expect("appends behind");

        let path = dir.path().join("identify/tanako.ledger");
        let mut bytes = std::fs::read(&path).expect("is there");
        bytes.extend_from_slice(&record(4).encode()[..20]);
        std::fs::write(&path, bytes).expect("writes");
        let loaded = files.load().expect("loads");
        assert_eq!(
            loaded,
            [(
                "tanako".to_owned(),
                vec![Some(record(2)), Some(record(3)), None]
            )]
        );
    }
}
