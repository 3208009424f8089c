//! One log file.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tanako_fleet::{ProcessName, process::LogPolicy};

use super::rotate;

/// Times remembered of a log; when there are more, every second one of the older half goes.
const MARKS_MAX: usize = 128;
/// Most that is counted of one log before it is the next one's turn.
const COUNT_BYTES_MAX: u64 = 8 << 20;
/// A log that is this far ahead of the counting is estimated instead.
const BEHIND_BYTES_MAX: u64 = 32 << 20;
/// The same log is complained about this often.
const TROUBLE_EVERY_MS: i64 = 60_000;
/// A log that grew by this part of its size limit since the last look is looked at more often.
const HOT_PART: u64 = 8;

/// Up to where a log had been written at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Everything before this position was there …
    pub(super) end: u64,
    /// … at this time, in milliseconds since 1970.
    pub(super) at_ms: i64,
}

/// What the next agent needs to go on counting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resume {
    pub(crate) inode: u64,
    pub(crate) offset: u64,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

/// One process's log.
#[derive(Debug)]
pub struct LogFile {
    name: ProcessName,
    path: PathBuf,
    /// Changed only under the lock of `state`, together with what was counted.
    lines: AtomicU64,
    bytes: AtomicU64,
    state: Mutex<FileState>,
}

#[derive(Debug)]
pub(super) struct FileState {
    pub(super) policy: LogPolicy,
    /// Open for reading and punching; unset before the first start.
    pub(super) file: Option<Arc<File>>,
    pub(super) inode: u64,
    /// Logical position of offset 0.
    pub(super) shift: u64,
    /// Logical position of the first byte that is kept here.
    pub(super) base: u64,
    /// Logical position up to which lines were counted.
    pub(super) counted: u64,
    pub(super) marks: VecDeque<Mark>,
    /// Number of the next rotated file.
    pub(super) sequence: u64,
    /// Whether it is known that nobody writes to it.
    pub(super) idle: bool,
    /// Whether the file system punches holes.
    pub(super) punches: bool,
    /// When the operator was last told of a trouble.
    pub(super) trouble_at_ms: Option<i64>,
}

/// What tending a log showed.
pub(super) struct Tended {
    /// Whether to look again soon.
    pub(super) hot: bool,
    /// What the operator should know.
    pub(super) trouble: Option<String>,
}

impl LogFile {
    /// Opens the log of a process in `dir`, if it is there; cleans up after an earlier agent.
    pub(super) fn open(
        dir: &Path,
        name: &ProcessName,
        policy: LogPolicy,
        resume: Option<&Resume>,
    ) -> io::Result<Self> {
        let log = Self {
            path: dir.join(format!("{}.log", name.file_stem())),
            name: name.clone(),
            lines: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            state: Mutex::new(FileState {
                policy,
                file: None,
                inode: 0,
                shift: 0,
                base: 0,
                counted: 0,
                marks: VecDeque::new(),
                sequence: 1,
                idle: false,
                punches: true,
                trouble_at_ms: None,
            }),
        };
        let mut state = log.lock();
        match log.open_existing(&mut state, resume) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => drop(state),
        }
        Ok(log)
    }

    fn open_existing(&self, state: &mut FileState, resume: Option<&Resume>) -> io::Result<()> {
        let rotated = rotate::list(&self.path)?;
        state.sequence = rotated.last().map_or(1, |(sequence, _)| sequence + 1);
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let meta = file.metadata()?;
        state.inode = meta.ino();
        state.punches = rotate::can_punch(&file);
        // What is in a rotated file already is not to be read here again: the earlier agent may
        // have died between the two.
        let newest = rotated.last().and_then(|(_, path)| rotate::read_head(path));
        if let Some(head) = &newest
            && head.inode == state.inode
            && head.end <= meta.len()
        {
            state.base = head.end;
            rotate::punch(&file, head.end);
        }
        state.counted = meta.len();
        if let Some(resume) = resume {
            self.lines.store(resume.lines, Ordering::Relaxed);
            self.bytes.store(resume.bytes, Ordering::Relaxed);
            if resume.inode == state.inode && resume.offset <= meta.len() {
                state.counted = resume.offset.max(state.base);
            }
        }
        // What is here is not older than what was rotated, though it was written before that was looked at.
        let rotated_ms = newest.and_then(|head| Some(head.marks.last()?.at_ms));
        let written_ms = meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000;
        state.marks.push_back(Mark {
            end: meta.len(),
            at_ms: rotated_ms.map_or(written_ms, |at_ms| at_ms.max(written_ms)),
        });
        state.file = Some(Arc::new(file));
        Ok(())
    }

    /// Whose log it is.
    pub fn name(&self) -> &ProcessName {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines and bytes written so far, as of the last look.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.lines.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, FileState> {
        // The state is changed only after what can fail; it is sound after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_policy(&self, policy: LogPolicy) {
        self.lock().policy = policy;
    }

    /// Opens it for a child to append to. Says at which offset its output begins.
    pub(crate) fn open_for_child(&self) -> io::Result<(File, u64)> {
        let mut state = self.lock();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path)?;
        let meta = file.metadata()?;
        if state.file.is_none() || state.inode != meta.ino() {
            // New, or someone has removed it.
            let end = state.end_of_old();
            let own = OpenOptions::new().read(true).write(true).open(&self.path)?;
            state.punches = rotate::can_punch(&own);
            state.file = Some(Arc::new(own));
            state.inode = meta.ino();
            state.shift = end;
            state.base = end;
            state.counted = end;
        }
        state.idle = false;
        Ok((file, meta.len()))
    }

    /// The logical position of an offset in the current file.
    pub(crate) fn position(&self, offset: u64) -> u64 {
        self.lock().shift + offset
    }

    /// Nobody writes to it any more: it may be replaced by a file without a hole.
    pub(crate) fn set_idle(&self) {
        self.lock().idle = true;
    }

    /// What the next agent needs to go on counting.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let state = self.lock();
        state.file.as_ref()?;
        let (lines, bytes) = self.counts();
        Some(Resume {
            inode: state.inode,
            offset: state.counted - state.shift,
            lines,
            bytes,
        })
    }

    /// Counts what is new, rotates when it is time. Called by one thread only. Once `closed`, the next agent
    /// rotates: it goes on from where this one says to have got to.
    pub(super) fn tend(&self, now_ms: i64, buffer: &mut [u8], closed: &AtomicBool) -> Tended {
        let mut tended = Tended {
            hot: false,
            trouble: None,
        };
        let mut state = self.lock();
        let Some(file) = state.file.clone() else {
            return tended;
        };
        let Ok(meta) = file.metadata() else {
            return tended;
        };
        let mut size = state.shift + meta.len();
        if size < state.counted {
            // Someone has truncated it: what is there now is new.
            state.shift = state.counted;
            state.base = state.counted;
            size = state.shift + meta.len();
        }
        // It writes faster than it can be read: what is about to be dropped is only estimated.
        let keep_bytes = state
            .policy
            .max_bytes
            .saturating_mul(u64::from(state.policy.keep) + 1);
        let behind = size - state.counted;
        if behind > BEHIND_BYTES_MAX.max(keep_bytes) {
            let skipped = behind - keep_bytes.min(COUNT_BYTES_MAX);
            let (lines, bytes) = self.counts();
            let estimate = u128::from(skipped) * u128::from(lines) / u128::from(bytes.max(1));
            self.lines.fetch_add(
                u64::try_from(estimate).unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
            self.bytes.fetch_add(skipped, Ordering::Relaxed);
            state.counted += skipped;
        }
        let (from, shift) = (state.counted, state.shift);
        let (max_bytes, kept) = (state.policy.max_bytes.max(1), size - state.base);
        let refresh = state.idle && state.base > state.shift;
        drop(state);

        if size > from {
            let until = size.min(from + COUNT_BYTES_MAX);
            let (lines, read) = count(&file, from - shift, until - shift, buffer);
            let mut state = self.lock();
            self.lines.fetch_add(lines, Ordering::Relaxed);
            self.bytes.fetch_add(read, Ordering::Relaxed);
            if state.shift == shift {
                state.counted = from + read;
                state.mark(from + read, now_ms);
            }
            tended.hot = read > max_bytes / HOT_PART || from + read < size;
        }
        if closed.load(Ordering::Relaxed) {
            return tended;
        }
        if kept > max_bytes {
            tended.trouble = rotate::rotate(self, buffer, closed);
        } else if refresh && let Err(error) = rotate::refresh(self) {
            tended.trouble = Some(format!("cannot be replaced by a fresh file: {error}"));
        }
        if tended.trouble.is_some() {
            let mut state = self.lock();
            let lately = |at: i64| now_ms - at < TROUBLE_EVERY_MS;
            if state.trouble_at_ms.is_some_and(lately) {
                tended.trouble = None;
            } else {
                state.trouble_at_ms = Some(now_ms);
            }
        }
        tended
    }
}

impl FileState {
    fn end_of_old(&self) -> u64 {
        let size = self
            .file
            .as_ref()
            .and_then(|file| Some(file.metadata().ok()?.len()))
            .unwrap_or(0);
        self.counted.max(self.shift + size)
    }

    /// Remembers that everything before `end` was there at `at_ms`.
    fn mark(&mut self, end: u64, at_ms: i64) {
        if self.marks.len() >= MARKS_MAX {
            let mut index = 0;
            self.marks.retain(|_| {
                index += 1;
                index > MARKS_MAX / 2 || index % 2 == 0
            });
        }
        self.marks.push_back(Mark { end, at_ms });
    }

    /// When the byte at a position was written, as well as it is known.
    pub(super) fn time_of(&self, position: u64, now_ms: i64) -> i64 {
        let index = self.marks.partition_point(|mark| mark.end <= position);
        self.marks.get(index).map_or(now_ms, |mark| mark.at_ms)
    }
}

/// Counts lines between two offsets. Says how many bytes it got to read.
fn count(file: &File, from: u64, until: u64, buffer: &mut [u8]) -> (u64, u64) {
    let (mut lines, mut offset) = (0, from);
    while offset < until {
        let want = buffer.len().min((until - offset) as usize);
        match file.read_at(&mut buffer[..want], offset) {
            Ok(0) => break,
            Ok(read) => {
                lines += newlines(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    (lines, offset - from)
}

/// Newlines in a piece. In short runs of small sums, so that it becomes vector code.
fn newlines(bytes: &[u8]) -> u64 {
    bytes
        .chunks(255)
        .map(|run| {
            u64::from(
                run.iter()
                    .fold(0_u8, |sum, byte| sum + u8::from(*byte == b'\n')),
            )
        })
        .sum()
}

/// Removes what an earlier agent left half done.
pub(super) fn clean(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_are_counted_in_any_length() {
        for length in [0, 1, 254, 255, 256, 1000, 70_000] {
            assert_eq!(newlines(&vec![b'\n'; length]), length as u64);
            assert_eq!(newlines(&vec![b'x'; length]), 0);
        }
    }
}
