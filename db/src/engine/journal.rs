//! Looks through the engine's journals before the engine opens them.
//!
//! A journal is a sequence of batches, each with a checksum and a trailer. The engine treats the
//! first entry it cannot read as the end and cuts the rest off, which is right for a write that
//! was torn by a crash, but would silently drop acknowledged rows when a byte in the middle is
//! damaged. Batches are synced one after the other, so at most the last one can be torn: a valid
//! batch behind an unreadable one proves damage, and the store is then left untouched.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::OpenError;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8; 4] = b"FJL\x03";

/// Checks every journal in the directory; reads only.
pub fn check(directory: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        directory: directory.display().to_string(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    let mut journals: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let id = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jnl"))
            .and_then(|id| id.parse().ok());
        journals.extend(id.map(|id| (id, path)));
    }
    journals.sort();
    let last = journals.last().map(|(id, _)| *id);
    for (id, path) in &journals {
        let content = std::fs::read(path).map_err(io)?;
        find_damage(&content, Some(*id) == last).map_err(|why| OpenError::Damaged {
            file: path.display().to_string(),
            why,
        })?;
    }
    Ok(())
}

/// `open_ended`: the journal was being written when the process ended.
fn find_damage(content: &[u8], open_ended: bool) -> Result<(), String> {
    let mut at = 0;
    let mut newest = None;
    while let Some((length, number)) = batch(&content[at..]) {
        // The number is not covered by the batch's checksum, but it only ever grows.
        if newest.is_some_and(|newest| newest >= number) {
            return Err(format!("the write at byte {at} is out of order"));
        }
        newest = Some(number);
        at += length;
    }
    let rest = &content[at..];
    if rest.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    if !open_ended {
        return Err(format!("unreadable at byte {at} although it was completed"));
    }
    // Any byte may be the damaged one, the previous batch's trailer included: look everywhere.
    let later = |start: &usize| rest[*start] == START && batch(&rest[*start..]).is_some();
    if (1..rest.len()).any(|start| later(&start)) {
        return Err(format!(
            "unreadable at byte {at}, with intact writes after it"
        ));
    }
    Ok(())
}

/// The length and the sequence number of the intact batch at the start of `bytes`, if there is one.
fn batch(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.u8()? != START {
        return None;
    }
    let items = reader.u32()?;
    let number = u64::from_le_bytes(reader.take(8)?.try_into().ok()?);
    let first = reader.at;
    for _ in 0..items {
        match reader.u8()? {
            ITEM => {
                reader.take(1)?;
                // The compression is one byte, for all codecs the engine has.
                reader.take(1)?;
                reader.take(8)?;
                let key = usize::from(u16::from_le_bytes(reader.take(2)?.try_into().ok()?));
                reader.take(4)?;
                let value = reader.u32()? as usize;
                reader.take(key)?;
                reader.take(value)?;
            }
            CLEAR => {
                reader.take(8)?;
            }
            _ => return None,
        }
    }
    let end = reader.at;
    if reader.u8()? != END {
        return None;
    }
    let checksum = u64::from_le_bytes(reader.take(8)?.try_into().ok()?);
    (reader.take(4)? == TRAILER && checksum == xxh3_64(&bytes[first..end]))
        .then_some((reader.at, number))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Embedded, Engine, Sizes, Space, View};

    /// A journal that the engine itself wrote, with `count` batches; its path and content.
    fn journal(directory: &Path, count: u32) -> (PathBuf, Vec<u8>) {
        let engine = Embedded::open(directory, Sizes::default()).expect("opens");
        for i in 0..count {
            let value = vec![i as u8 + 1; 200];
            engine
                .commit(vec![(Space::Rows, i.to_be_bytes().to_vec(), Some(value))])
                .expect("commits");
        }
        drop(engine);
        let path = std::fs::read_dir(directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.extension().is_some_and(|extension| extension == "jnl"))
            .expect("a journal");
        let mut content = std::fs::read(&path).expect("readable");
        // A journal is made long at once; a few of the zeros at its end are enough for a test.
        let end = content
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("content");
        content.truncate(end + 5_000);
        (path, content)
    }

    #[test]
    fn the_engines_own_journals_are_intact() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, content) = journal(directory.path(), 20);
        assert!(batch(&content).is_some(), "the format is the one we know");
        assert_eq!(find_damage(&content, true), Ok(()));
    }

    #[test]
    fn any_damaged_byte_before_the_last_write_refuses_to_open_and_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, content) = journal(directory.path(), 6);
        let mut starts = vec![0];
        while let Some((length, _)) = batch(&content[starts[starts.len() - 1]..]) {
            starts.push(starts[starts.len() - 1] + length);
        }
        let last = starts[starts.len() - 2];
        for at in (0..last).step_by(7) {
            let mut damaged = content.clone();
            damaged[at] ^= 0x10;
            assert!(find_damage(&damaged, true).is_err(), "byte {at} of {last}");
        }
        let mut damaged = content;
        damaged[last / 2] ^= 0x10;
        std::fs::write(&path, &damaged).expect("writable");
        let Err(error) = Embedded::open(directory.path(), Sizes::default()) else {
            panic!("a damaged journal was opened");
        };
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        assert_eq!(
            std::fs::read(&path).expect("readable"),
            damaged,
            "left untouched"
        );
    }

    #[test]
    fn a_torn_last_write_is_dropped_and_the_rest_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, mut content) = journal(directory.path(), 6);
        let end = content
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("content");
        content[end - 150..].fill(0);
        std::fs::write(&path, &content).expect("writable");
        let engine = Embedded::open(directory.path(), Sizes::default()).expect("opens");
        assert!(
            engine
                .get(Space::Rows, &4u32.to_be_bytes())
                .expect("reads")
                .is_some()
        );
        assert!(
            engine
                .get(Space::Rows, &5u32.to_be_bytes())
                .expect("reads")
                .is_none()
        );
    }
}
