//! Looks through the engine's table files before the engine opens them.
//!
//! The engine checks a block when it reads it, so a damaged table would be found only by the
//! request that needs it, and without its name. A table is a sequence of blocks with checksums,
//! then its version, one block about itself, and the table of contents (which the engine does check
//! when it opens). All blocks of a store of moderate size are read at the start; those of a larger
//! one by a thread beside the serving.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::OpenError;

/// Table files up to this size together are checked before the store is opened.
const CHECKED_AT_OPEN_BYTES: u64 = 512 << 20;

const BLOCK: &[u8; 4] = b"LSM\x03";
const HEADER: usize = 33;
const CONTENTS: &[u8; 4] = b"TOC!";
const VERSION: u8 = 3;
/// No block is larger; a damaged length must not make us ask for gigabytes.
const BLOCK_BYTES_MAX: u32 = 64 << 20;

/// Checks the table files. Those that were too many to check now are checked in the background.
pub fn check(directory: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io {
        directory: directory.display().to_string(),
        source,
    };
    let mut left = CHECKED_AT_OPEN_BYTES;
    let mut later = Vec::new();
    for (path, bytes) in tables(directory).map_err(failed)? {
        if let Some(rest) = left.checked_sub(bytes) {
            left = rest;
            check_file(&path)?;
        } else {
            later.push(path);
        }
    }
    if later.is_empty() {
        return Ok(());
    }
    tracing::info!(
        files = later.len(),
        "checking the larger part of the store in the background"
    );
    let scrub = move || {
        for path in later {
            // One that was compacted away since it was listed is no loss.
            if let Err(OpenError::Damaged { file, why }) = check_file(&path) {
                tracing::error!(file, why, "stored data is damaged: restore a backup");
            }
        }
    };
    std::thread::Builder::new()
        .name("scrub".into())
        .spawn(scrub)
        .map(drop)
        .map_err(failed)
}

/// The files that list the tables of each key space: what is damaged when no table is.
pub fn lists(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in entries(&directory.join("keyspaces")).unwrap_or_default() {
        let mut lists: Vec<PathBuf> = entries(&entry)
            .unwrap_or_default()
            .into_iter()
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with('v'))
            })
            .collect();
        lists.sort();
        found.extend(lists);
    }
    found
}

fn tables(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for keyspace in entries(&directory.join("keyspaces"))? {
        for path in entries(&keyspace.join("tables"))? {
            let metadata = path.metadata()?;
            if metadata.is_file() {
                found.push((path, metadata.len()));
            }
        }
    }
    Ok(found)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn check_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io {
        directory: path.display().to_string(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    match find_damage(&mut BufReader::with_capacity(256 << 10, file)) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(OpenError::Damaged {
            file: path.display().to_string(),
            why,
        }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(OpenError::Damaged {
            file: path.display().to_string(),
            why: "it is cut short".to_owned(),
        }),
        Err(error) => Err(failed(error)),
    }
}

/// Reads a table from its start to its table of contents.
fn find_damage(reader: &mut impl Read) -> io::Result<Option<String>> {
    let mut at = 0u64;
    let mut data = Vec::new();
    let mut about_itself = false;
    loop {
        let mut start = [0; 4];
        reader.read_exact(&mut start)?;
        if start == *CONTENTS && about_itself {
            return Ok(None);
        }
        if start[0] == VERSION && start[1..] == BLOCK[..3] && !about_itself {
            // The version is one byte, then comes the block of the table about itself.
            let mut last = [0; 1];
            reader.read_exact(&mut last)?;
            start = [start[1], start[2], start[3], last[0]];
            about_itself = true;
            at += 1;
        }
        if start != *BLOCK {
            return Ok(Some(format!("there is no block at byte {at}")));
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&start);
        reader.read_exact(&mut header[4..])?;
        let (protected, own) = header.split_at(HEADER - 4);
        if (xxh3_128(protected) as u32).to_le_bytes() != own {
            return Ok(Some(format!(
                "the head of the block at byte {at} is altered"
            )));
        }
        let checksum = u128::from_le_bytes(std::array::from_fn(|index| header[5 + index]));
        let length = u32::from_le_bytes(std::array::from_fn(|index| header[21 + index]));
        if length > BLOCK_BYTES_MAX {
            return Ok(Some(format!("the block at byte {at} is impossibly long")));
        }
        data.resize(length as usize, 0);
        reader.read_exact(&mut data)?;
        if xxh3_128(&data) != checksum {
            return Ok(Some(format!("the block at byte {at} is altered")));
        }
        at += HEADER as u64 + u64::from(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Embedded, Engine, Sizes, Space};

    #[test]
    fn the_engines_own_tables_are_intact_and_any_damaged_block_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let engine = Embedded::open(directory.path(), Sizes::default()).expect("opens");
        for i in 0..2_000u32 {
            let value = vec![i as u8; 100];
            let batch = vec![(Space::Rows, i.to_be_bytes().to_vec(), Some(value))];
            engine.commit(batch).expect("commits");
        }
        engine.vacuum().expect("vacuums");
        drop(engine);
        let tables = tables(directory.path()).expect("listed");
        assert!(tables.len() >= 2, "{tables:?}");
        check(directory.path()).expect("intact");
        let (path, bytes) = tables
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .expect("a table");
        let content = std::fs::read(&path).expect("readable");
        let contents_at = content
            .windows(4)
            .rposition(|window| window == CONTENTS)
            .expect("contents");
        assert!(contents_at as u64 + 400 > bytes);
        for at in (0..contents_at).step_by(97) {
            let mut damaged = content.clone();
            damaged[at] ^= 0x20;
            let found = find_damage(&mut damaged.as_slice());
            assert!(!matches!(found, Ok(None)), "byte {at} of {contents_at}");
        }
        let mut damaged = content.clone();
        damaged[contents_at / 2] ^= 1;
        std::fs::write(&path, &damaged).expect("writable");
        let Err(error) = Embedded::open(directory.path(), Sizes::default()) else {
            panic!("a damaged table was opened");
        };
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        std::fs::write(&path, &content[..content.len() / 2]).expect("writable");
        let Err(error) = Embedded::open(directory.path(), Sizes::default()) else {
            panic!("a table that is cut short was opened");
        };
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
}
