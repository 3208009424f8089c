//! Finds out whether the engine's journal once held more than the engine recovered from it.
//!
//! The engine cuts a journal at the first entry that it cannot decode. That is right for the torn
//! end of a write that nobody was told of, and a silent loss when it hits the middle. Each group
//! commit carries one revision entry, so the entries found in the raw bytes tell the two apart:
//! only the last one may be missing afterwards.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::codec::{REVISION_MAGIC, decode_u64};
use crate::model::Revision;

/// What the journals say before the engine opens them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The last commit but one: acknowledged for certain, because another one followed it.
    pub(super) acknowledged: Revision,
    /// The newest journal.
    pub(super) path: Option<PathBuf>,
}

/// Looks through the journals in `directory`.
pub(super) fn scan(directory: &Path) -> io::Result<Found> {
    let mut journals = Vec::new();
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "jnl") {
                    let number = path
                        .file_stem()
                        .and_then(|stem| stem.to_str())
                        .and_then(|stem| stem.parse::<u64>().ok());
                    journals.push((number, path));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(error) => return Err(error),
    }
    journals.sort();
    let mut highest = 0;
    let mut acknowledged = 0;
    for (_, path) in &journals {
        revisions(&mut File::open(path)?, |revision| {
            if revision > highest {
                acknowledged = highest;
                highest = revision;
            } else if revision < highest {
                acknowledged = acknowledged.max(revision);
            }
        })?;
    }
    Ok(Found {
        acknowledged,
        path: journals.pop().map(|(_, path)| path),
    })
}

fn revisions(reader: &mut impl Read, mut found: impl FnMut(Revision)) -> io::Result<()> {
    const ENTRY: usize = REVISION_MAGIC.len() + 8;
    // Journals are preallocated: past this much of nothing there is nothing more.
    const ZEROS_MAX: usize = 2 * 1024 * 1024;
    let mut buffer = vec![0u8; 64 * 1024];
    let mut kept = 0;
    let mut zeros = 0;
    loop {
        let read = reader.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(());
        }
        let filled = kept + read;
        if buffer[..filled].iter().all(|byte| *byte == 0) {
            zeros += read;
            if zeros > ZEROS_MAX {
                return Ok(());
            }
        } else {
            zeros = 0;
        }
        let mut at = 0;
        while at + ENTRY <= filled {
            // The magic starts with a rare pair; a plain search is fast enough for a few MiB.
            if buffer[at..].starts_with(&REVISION_MAGIC) {
                if let Some(revision) = decode_u64(&buffer[at + REVISION_MAGIC.len()..at + ENTRY]) {
                    found(revision);
                }
                at += ENTRY;
            } else {
                at += 1;
            }
        }
        buffer.copy_within(at..filled, 0);
        kept = filled - at;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::codec::encode_revision, *};

    #[test]
    fn entries_are_found_wherever_they_lie() {
        let mut bytes = vec![7u8; 64 * 1024 - 9];
        bytes.extend(encode_revision(1));
        bytes.extend(vec![0u8; 100_000]);
        bytes.extend(encode_revision(2));
        bytes.extend(encode_revision(5));
        let mut seen = Vec::new();
        revisions(&mut &bytes[..], |revision| seen.push(revision)).expect("reads");
        assert_eq!(seen, [1, 2, 5]);
    }

    #[test]
    fn only_the_last_commit_may_be_unacknowledged() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(
            scan(&dir.path().join("absent")).expect("reads"),
            Found::default()
        );
        let bytes: Vec<u8> = [3, 4, 9].into_iter().flat_map(encode_revision).collect();
        fs::write(dir.path().join("1.jnl"), bytes).expect("writes");
        assert_eq!(scan(dir.path()).expect("reads").acknowledged, 4);
    }
}
