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

/// The tables in use with their sizes. A table that no list names was left by a write that a crash
/// or a full disk broke off: it holds nothing that is not also in a journal, and may be torn.
fn tables(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for keyspace in entries(&directory.join("keyspaces"))? {
        // A list that cannot be read is for the engine to refuse.
        for id in listed(&keyspace).unwrap_or_default() {
            let path = keyspace.join("tables").join(id.to_string());
            match path.metadata() {
                Ok(metadata) => found.push((path, metadata.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// The ids of the tables in the list that `current` names.
fn listed(keyspace: &Path) -> Option<Vec<u64>> {
    let current = std::fs::read(keyspace.join("current")).ok()?;
    let number = u64::from_le_bytes(current.get(..8)?.try_into().ok()?);
    parse_list(&std::fs::read(keyspace.join(format!("v{number}"))).ok()?)
}

/// A list ends with a table of contents: a count, then position, length and name of each section.
/// In the section `tables`, each level has runs, each run has tables: id, checksum, first write.
fn parse_list(list: &[u8]) -> Option<Vec<u64>> {
    const TABLE: usize = 8 + 1 + 16 + 8;
    let u32_at =
        |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at =
        |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let contents = list
        .windows(CONTENTS.len())
        .rposition(|window| window == CONTENTS)?
        + CONTENTS.len();
    let mut at = contents + 4;
    let mut section = None;
    for _ in 0..u32_at(list, contents)? {
        let (start, length) = (u64_at(list, at)?, u64_at(list, at + 8)?);
        let name = usize::from(u16::from_le_bytes(
            list.get(at + 16..at + 18)?.try_into().ok()?,
        ));
        if list.get(at + 18..at + 18 + name)? == b"tables" {
            let start = usize::try_from(start).ok()?;
            section = list.get(start..start.checked_add(usize::try_from(length).ok()?)?);
        }
        at += 18 + name;
    }
    let section = section?;
    let mut ids = Vec::new();
    let mut at = 1;
    for _ in 0..*section.first()? {
        let runs = *section.get(at)?;
        at += 1;
        for _ in 0..runs {
            let tables = u32_at(section, at)?;
            at += 4;
            for _ in 0..tables {
                ids.push(u64_at(section, at)?);
                at += TABLE;
            }
        }
    }
    (at == section.len()).then_some(ids)
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
        for keyspace in entries(&directory.path().join("keyspaces")).expect("listed") {
            let mut files: Vec<u64> = entries(&keyspace.join("tables"))
                .expect("listed")
                .iter()
                .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
                .collect();
            let mut ids = listed(&keyspace).expect("the format of lists is the one we know");
            files.sort_unstable();
            ids.sort_unstable();
            assert!(ids.iter().all(|id| files.contains(id)), "{ids:?} {files:?}");
        }
        let tables = tables(directory.path()).expect("listed");
        assert!(tables.len() >= 2, "{tables:?}");
        // What a flush that was broken off leaves is nobody's data.
        let torn = tables[0].0.with_file_name("4711");
        std::fs::write(&torn, b"LSM\x03 torn").expect("writable");
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
