//! Rotation of a file that a child goes on writing to.
//!
//! 1. The head, up to the end of a line, is compressed into `NAME.log.N.zst.tmp` and synced.
//! 2. It is renamed to `NAME.log.N.zst`. It says in its own first bytes what it holds of which file.
//! 3. The head is punched out of the live file. Offsets stay as they are, and the child notices
//!    nothing.
//!
//! An agent that dies before 2 has done nothing; one that dies before 3 is caught up with when the
//! file is opened again. So no line is lost and none is there twice.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::file::{LogFile, Mark};

/// Level 1: a child may write faster than anything dearer compresses.
const LEVEL: i32 = 1;
/// A skippable zstd frame: decompressors pass over it.
const HEAD_MAGIC: u32 = 0x184D_2A50;
/// More than any head has.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Files rotated in one go before the next log has its turn.
const ROTATIONS_MAX: usize = 4;

/// What a rotated file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) inode: u64,
    /// Offsets in that file.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Times of what is inside; ends count from `start`.
    pub(super) marks: Vec<Mark>,
}

impl Head {
    /// When the byte at an offset in the content was written, as well as it is known.
    pub(super) fn time_of(&self, offset: u64) -> i64 {
        let index = self.marks.partition_point(|mark| mark.end <= offset);
        self.marks
            .get(index)
            .or_else(|| self.marks.last())
            .map_or(0, |mark| mark.at_ms)
    }

    /// When its last byte was written.
    pub(super) fn last_ms(&self) -> i64 {
        self.marks.last().map_or(i64::MAX, |mark| mark.at_ms)
    }
}

/// Rotated files of a log, oldest first.
pub(super) fn list(log: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let sequence = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name)?.strip_prefix('.'))
            .and_then(|file| file.strip_suffix(".zst")?.parse().ok());
        if let Some(sequence) = sequence {
            found.push((sequence, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What a rotated file says about itself.
pub(super) fn read_head(path: &Path) -> Option<Head> {
    let mut file = File::open(path).ok()?;
    let mut word = [0; 4];
    file.read_exact(&mut word).ok()?;
    if u32::from_le_bytes(word) != HEAD_MAGIC {
        return None;
    }
    file.read_exact(&mut word).ok()?;
    let length = u32::from_le_bytes(word);
    if length > HEAD_BYTES_MAX {
        return None;
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Gives the head of a file back to the file system.
pub(super) fn punch(file: &File, end: u64) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = rustix::fs::fallocate(file, mode, 0, end) {
        tracing::warn!(%error, "no hole could be punched into a log");
    }
}

/// Whether holes can be punched into a file: tried where there is nothing to lose.
pub(super) fn can_punch(file: &File) -> bool {
    const BEYOND_EVERYTHING: u64 = 1 << 42;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    !matches!(
        rustix::fs::fallocate(file, mode, BEYOND_EVERYTHING, 4096),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS)
    )
}

/// Rotates until the live file is within its limit, or until the logs are `closed`. Returns what the operator
/// should know.
pub(super) fn rotate(log: &LogFile, buffer: &mut [u8], closed: &AtomicBool) -> Option<String> {
    let mut trouble = None;
    for _ in 0..ROTATIONS_MAX {
        if closed.load(Ordering::Relaxed) {
            break;
        }
        let state = log.lock();
        let (policy, inode, shift, base) =
            (state.policy.clone(), state.inode, state.shift, state.base);
        let (file, sequence, counted) = (state.file.clone()?, state.sequence, state.counted);
        let marks: Vec<Mark> = state.marks.iter().copied().collect();
        let punches = state.punches;
        drop(state);
        let size = shift + file.metadata().ok()?.len();
        let max_bytes = policy.max_bytes.max(1);
        // Only what was counted is rotated: what is counted is read from the live file.
        if counted.saturating_sub(base) <= max_bytes {
            break;
        }
        // More than may be kept in all: the oldest goes without being compressed first.
        let all_max = max_bytes.saturating_mul(u64::from(policy.keep) + 1);
        let spare = size.saturating_sub(base).saturating_sub(all_max);
        if spare > 0 || policy.keep == 0 {
            let until = if policy.keep == 0 {
                counted
            } else {
                (base + spare).min(counted)
            };
            let cut = line_end(&file, base - shift, until - shift, buffer) + shift;
            if cut <= base {
                break;
            }
            if punches {
                release(log, &file, cut);
            } else {
                trouble = truncate(log, &file, cut, buffer);
            }
            if spare > 0 {
                trouble = Some(format!(
                    "grows faster than it can be kept: {} bytes dropped",
                    cut - base
                ));
            }
            if policy.keep == 0 {
                remove_surplus(log, &policy, 0);
                break;
            }
            continue;
        }
        let cut = line_end(&file, base - shift, base - shift + max_bytes, buffer) + shift;
        let head = Head {
            // Where holes cannot be punched, offsets do not last and must not be believed later.
            inode: if punches { inode } else { 0 },
            start: base - shift,
            end: cut - shift,
            marks: marks_within(&marks, base, cut),
        };
        if let Err(error) = compress(log.path(), sequence, &file, &head, buffer) {
            return Some(format!(
                "cannot be rotated: {error}; is the disk of {} full?",
                log.path().display()
            ));
        }
        log.lock().sequence = sequence + 1;
        if punches {
            release(log, &file, cut);
        } else {
            trouble = truncate(log, &file, cut, buffer);
        }
        remove_surplus(log, &policy, size.saturating_sub(cut));
    }
    trouble
}

/// The times of a part, with positions counted from its start.
fn marks_within(marks: &[Mark], start: u64, end: u64) -> Vec<Mark> {
    let mut within: Vec<Mark> = marks
        .iter()
        .filter(|mark| mark.end > start && mark.end <= end)
        .map(|mark| Mark {
            end: mark.end - start,
            at_ms: mark.at_ms,
        })
        .collect();
    if let Some(next) = marks.iter().find(|mark| mark.end > end) {
        within.push(Mark {
            end: end - start,
            at_ms: next.at_ms,
        });
    }
    within
}

/// The end of the last line that ends by `until`, or `until` itself when none does. Offsets.
fn line_end(file: &File, from: u64, until: u64, buffer: &mut [u8]) -> u64 {
    let mut end = until;
    while end > from {
        let begin = end.saturating_sub(buffer.len() as u64).max(from);
        let piece = &mut buffer[..(end - begin) as usize];
        if file.read_exact_at(piece, begin).is_err() {
            return until;
        }
        if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
            return begin + at as u64 + 1;
        }
        end = begin;
    }
    until
}

fn compress(
    log: &Path,
    sequence: u64,
    file: &Arc<File>,
    head: &Head,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut path = log.as_os_str().to_owned();
    path.push(format!(".{sequence}.zst"));
    let path = PathBuf::from(path);
    let mut beside = path.clone().into_os_string();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let result = write_compressed(&beside, file, head, buffer);
    if result.is_ok() {
        return fs::rename(&beside, &path);
    }
    let _ = fs::remove_file(&beside);
    result
}

fn write_compressed(
    path: &Path,
    file: &Arc<File>,
    head: &Head,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(path)?;
    let json = serde_json::to_vec(head)?;
    target.write_all(&HEAD_MAGIC.to_le_bytes())?;
    target.write_all(&(json.len() as u32).to_le_bytes())?;
    target.write_all(&json)?;
    let mut encoder = zstd::Encoder::new(target, LEVEL)?;
    encoder.include_checksum(true)?;
    let mut offset = head.start;
    while offset < head.end {
        let want = buffer.len().min((head.end - offset) as usize);
        file.read_exact_at(&mut buffer[..want], offset)?;
        encoder.write_all(&buffer[..want])?;
        offset += want as u64;
    }
    // The source is about to be destroyed.
    encoder.finish()?.sync_data()
}

/// Lets go of everything before `cut`.
fn release(log: &LogFile, file: &File, cut: u64) {
    let mut state = log.lock();
    // First the word, then the deed: a reader looks at the base after it has read.
    let shift = state.shift;
    state.base = cut;
    state.counted = state.counted.max(cut);
    drop(state);
    // Should it fail, the bytes stay on the disk until the next time.
    punch(file, cut - shift);
}

/// Where holes cannot be punched: keeps what is behind `cut`, empties the file. A line written
/// between the last look and the emptying is lost; that is why it is only the last resort.
fn truncate(log: &LogFile, file: &File, cut: u64, buffer: &mut [u8]) -> Option<String> {
    let mut state = log.lock();
    let rest_from = cut - state.shift;
    let mut rest = Vec::new();
    loop {
        match file.read_at(buffer, rest_from + rest.len() as u64) {
            Ok(0) => break,
            Ok(read) if rest.len() < (64 << 20) => rest.extend_from_slice(&buffer[..read]),
            Ok(_) => break,
            Err(error) => return Some(format!("cannot be read: {error}")),
        }
    }
    if let Err(error) = file.set_len(0) {
        return Some(format!("cannot be emptied: {error}"));
    }
    state.shift = cut;
    state.base = cut;
    state.counted = state.counted.max(cut);
    let appended = OpenOptions::new()
        .append(true)
        .open(log.path())
        .and_then(|mut file| file.write_all(&rest));
    appended
        .err()
        .map(|error| format!("lost its latest lines: {error}"))
}

/// Removes rotated files beyond the number and the bytes that may be kept.
fn remove_surplus(log: &LogFile, policy: &tanako_fleet::process::LogPolicy, live: u64) {
    let Ok(files) = list(log.path()) else { return };
    let bytes_max = policy
        .max_bytes
        .max(1)
        .saturating_mul(u64::from(policy.keep) + 1);
    let mut bytes = live;
    let mut kept = 0;
    for (_, path) in files.iter().rev() {
        bytes += fs::metadata(path).map_or(0, |meta| meta.len());
        kept += 1;
        // The newest always stays: it says up to where the live file was rotated.
        if kept > policy.keep || (bytes > bytes_max && kept > 1) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Replaces a file with a hole that nobody writes to by one without.
pub(super) fn refresh(log: &LogFile) -> io::Result<()> {
    let mut state = log.lock();
    let Some(file) = state.file.clone() else {
        return Ok(());
    };
    // A child may have been given the file meanwhile.
    if !state.idle || state.base == state.shift {
        return Ok(());
    }
    let begin = state.base - state.shift;
    let beside = log.path().with_extension("log.tmp");
    let mut fresh = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&beside)?;
    let mut source = file.try_clone()?;
    io::Seek::seek(&mut source, io::SeekFrom::Start(begin))?;
    io::copy(&mut source, &mut fresh)?;
    fresh.sync_data()?;
    fs::rename(&beside, log.path())?;
    state.inode = fresh.metadata()?.ino();
    state.shift = state.base;
    state.file = Some(Arc::new(fresh));
    Ok(())
}
