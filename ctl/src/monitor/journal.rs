//! The monitor's own log: a bounded file, because the screen belongs to the view.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tracing::Dispatch;

/// Bytes after which the log is begun anew; the one before is kept.
const BYTES_MAX: u64 = 1 << 20;
/// Names tried for a file that must not exist yet.
const NAMES_MAX: u32 = 1_000;

/// Where the monitor keeps its files: `$XDG_STATE_HOME/tanako`.
pub fn directory(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        env(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("tanako"))
}

/// A subscriber that writes to `monitor.log` in `directory`.
pub fn open(directory: &Path) -> io::Result<Dispatch> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let bounded = Bounded::open(directory.join("monitor.log"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(Mutex::new(bounded))
        .finish();
    Ok(Dispatch::new(subscriber))
}

/// A file that is moved aside when it has grown too large.
#[derive(Debug)]
struct Bounded {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Bounded {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            written,
        })
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > BYTES_MAX {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(self.path.clone())?;
        }
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `lines` to a new file for `subject` in `directory`; never over an existing one.
pub fn save(directory: &Path, subject: &str, stamp: &str, lines: &[String]) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let tame = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '-'
        }
    };
    let subject: String = subject.chars().take(80).map(tame).collect();
    for n in 1..=NAMES_MAX {
        let suffix = if n == 1 {
            String::new()
        } else {
            format!("-{n}")
        };
        let path = directory.join(format!("{subject}-{stamp}{suffix}.log"));
        let file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        let mut out = io::BufWriter::new(file);
        for line in lines {
            writeln!(out, "{line}")?;
        }
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        return Ok(path);
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "too many files of that name",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_never_overwrites_and_never_leaves_the_directory() {
        let home = tempfile::tempdir().expect("a directory");
        let first = save(home.path(), "../tanako/0", "x", &["one".into()]).expect("saved");
        let second = save(home.path(), "../tanako/0", "x", &["two".into()]).expect("saved");
        assert_ne!(first, second);
        assert_eq!(first.parent(), Some(home.path()));
        assert_eq!(std::fs::read_to_string(first).expect("readable"), "one\n");
        assert_eq!(std::fs::read_to_string(second).expect("readable"), "two\n");
    }

    #[test]
    fn the_log_is_bounded() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("monitor.log");
        let mut log = Bounded::open(path.clone()).expect("opened");
        for _ in 0..40 {
            log.write_all(&vec![b'x'; 100_000]).expect("written");
        }
        let size = |path: &Path| std::fs::metadata(path).expect("there").len();
        assert!(size(&path) <= BYTES_MAX && size(&path.with_extension("log.1")) <= BYTES_MAX);
    }

    #[test]
    fn the_state_directory_follows_xdg() {
        let dir = |pairs: &'static [(&str, &str)]| {
            directory(|name| {
                pairs
                    .iter()
                    .find(|(k, _)| *k == name)
                    .map(|(_, v)| (*v).to_owned())
            })
        };
        assert_eq!(
            dir(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]),
            Some("/s/tanako".into())
        );
        assert_eq!(
            dir(&[("XDG_STATE_HOME", "relative"), ("HOME", "/h")]),
            Some("/h/.local/state/tanako".into())
        );
        assert_eq!(dir(&[]), None);
    }
}
