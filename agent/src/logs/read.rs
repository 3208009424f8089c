//! Reading logs: the last lines, and what comes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::FileExt,
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{self, BoxStream, StreamExt};
use tanako_fleet::ProcessName;

use super::{
    file::LogFile,
    rotate::{self, Head},
    store::Logs,
};
use crate::clock;

/// A longer line is cut off.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Most lines of one [`Logs::read_tail`].
const LINES_MAX: usize = 100_000;
/// Most bytes of one [`Logs::read_tail`], and of one rotated file that is followed from.
const BYTES_MAX: u64 = 16 << 20;
/// What is read at once.
const PIECE_BYTES: usize = 64 << 10;
/// How often a follower looks for more.
const POLL: Duration = Duration::from_millis(100);

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When the agent first saw it, in milliseconds since 1970: about a second exact for what was
    /// written lately, less for what is older, for a log remembers 128 times.
    pub at_ms: i64,
    /// The line without its newline; what is not UTF-8 is replaced.
    pub text: String,
    /// Whether the line was longer than 16 KiB and its rest was cut off.
    pub truncated: bool,
    /// Bytes of output before this line that the reader missed because they were rotated away.
    pub skipped_bytes: u64,
}

/// Where to begin to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With what is written from now on.
    Now,
    /// With the last so many lines.
    Tail(usize),
    /// With what was written since this time, in milliseconds since 1970, as exact as
    /// [`Line::at_ms`]; rather some lines too many than one too few.
    SinceMs(i64),
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such log.
    #[error("no log of {0} on this host")]
    Unknown(ProcessName),
    /// Reading failed.
    #[error("cannot read the log of {name}")]
    Io {
        /// Whose log.
        name: ProcessName,
        /// Why.
        source: io::Error,
    },
}

/// A stream of lines; see [`Logs::follow`].
pub type Follow = BoxStream<'static, Result<Line, LogError>>;

impl Logs {
    /// The last `n` lines of a process, over rotated files too, oldest first. At most 100,000
    /// lines or 16 MiB.
    pub async fn read_tail(&self, name: &ProcessName, n: usize) -> Result<Vec<Line>, LogError> {
        let file = self
            .get(name)
            .ok_or_else(|| LogError::Unknown(name.clone()))?;
        let wrapped = name.clone();
        tokio::task::spawn_blocking(move || tail(&file, n, true).map(|(lines, _)| lines))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| LogError::Io {
                name: wrapped,
                source,
            })
    }

    /// Lines of a process from `from` on: ends when dropped, when the agent leaves, or after an
    /// error. A line comes when it is complete, up to 0.1 s after it was written.
    pub fn follow(&self, name: &ProcessName, from: From) -> Follow {
        let Some(file) = self.get(name) else {
            let error = LogError::Unknown(name.clone());
            return stream::iter([Err(error)]).boxed();
        };
        let start = match from {
            // From this call on, not from when the stream is first asked.
            From::Now => match snapshot(&file) {
                Ok(now) => Start::Position(now.map_or(0, |now| now.size)),
                Err(source) => {
                    let name = name.clone();
                    return stream::iter([Err(LogError::Io { name, source })]).boxed();
                }
            },
            From::Tail(n) => Start::Tail(n),
            From::SinceMs(since_ms) => Start::SinceMs(since_ms),
        };
        follow(Reader::new(self.clone(), file, start))
    }

    /// Lines of a process from a position on.
    pub(crate) fn follow_position(&self, file: Arc<LogFile>, position: u64) -> Follow {
        follow(Reader::new(self.clone(), file, Start::Position(position)))
    }
}

fn follow(reader: Reader) -> Follow {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        loop {
            if let Some(line) = reader.queue.pop_front() {
                return Some((Ok(line), Some(reader)));
            }
            if reader.logs.is_closed() {
                return None;
            }
            let name = reader.file.name().clone();
            let filled = tokio::task::spawn_blocking(move || {
                let result = reader.fill();
                (reader, result)
            })
            .await;
            let error = match filled {
                Ok((back, Ok(()))) => {
                    reader = back;
                    if reader.queue.is_empty() && reader.caught_up {
                        reader.wait().await;
                    }
                    continue;
                }
                Ok((_, Err(error))) => error,
                Err(error) => io::Error::other(error),
            };
            return Some((
                Err(LogError::Io {
                    name,
                    source: error,
                }),
                None,
            ));
        }
    })
    .boxed()
}

/// Where a reader begins.
enum Start {
    Tail(usize),
    SinceMs(i64),
    Position(u64),
    Begun,
}

/// Follows one log.
struct Reader {
    logs: Logs,
    file: Arc<LogFile>,
    start: Start,
    /// Rotated files to be read first.
    rotated: VecDeque<(Head, std::path::PathBuf)>,
    since_ms: i64,
    position: u64,
    splitter: Splitter,
    queue: VecDeque<Line>,
    skipped: u64,
    caught_up: bool,
}

impl Reader {
    fn new(logs: Logs, file: Arc<LogFile>, start: Start) -> Self {
        Self {
            logs,
            file,
            start,
            rotated: VecDeque::new(),
            since_ms: i64::MIN,
            position: 0,
            splitter: Splitter::default(),
            queue: VecDeque::new(),
            skipped: 0,
            caught_up: false,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.start, Start::Begun) {
            Start::Begun => {}
            Start::Position(position) => self.position = position,
            Start::Tail(n) => {
                let (lines, end) = tail(&self.file, n, false)?;
                self.position = end;
                self.queue.extend(lines);
                return Ok(());
            }
            Start::SinceMs(since_ms) => {
                self.since_ms = since_ms;
                let state = self.file.lock();
                let index = state.marks.partition_point(|mark| mark.at_ms < since_ms);
                let before = index
                    .checked_sub(1)
                    .and_then(|index| state.marks.get(index));
                self.position = before.map_or(state.base, |mark| mark.end).max(state.base);
                let is_first = before.is_none_or(|mark| mark.end <= state.base);
                // In the middle of a line: it began before.
                self.splitter.inside = self.position > state.base;
                drop(state);
                if is_first {
                    for (_, path) in rotate::list(self.file.path())? {
                        if let Some(head) = rotate::read_head(&path)
                            && head.last_ms() >= since_ms
                        {
                            self.rotated.push_back((head, path));
                        }
                    }
                }
            }
        }
        if let Some((head, path)) = self.rotated.pop_front() {
            let keep = LINES_MAX;
            let lines = match rotated_tail(&path, &head, keep) {
                // Rotated away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => VecDeque::new(),
                other => other?,
            };
            let since = self.since_ms;
            self.queue
                .extend(lines.into_iter().filter(|line| line.at_ms >= since));
            return Ok(());
        }
        self.read_live()
    }

    fn read_live(&mut self) -> io::Result<()> {
        self.caught_up = true;
        let Some(now) = snapshot(&self.file)? else {
            return Ok(());
        };
        if self.position < now.base {
            self.skip_to(now.base);
        }
        if self.position >= now.size {
            return Ok(());
        }
        let mut piece = vec![0; PIECE_BYTES.min((now.size - self.position) as usize)];
        let read = now.file.read_at(&mut piece, self.position - now.shift)?;
        // What was punched out while it was read is zeros.
        let state = self.file.lock();
        let base = state.base;
        drop(state);
        if self.position < base {
            self.skip_to(base);
            self.caught_up = false;
            return Ok(());
        }
        let now_ms = clock::now_ms();
        let (file, begin, skipped) = (&self.file, self.position, &mut self.skipped);
        let queue = &mut self.queue;
        self.splitter.feed(&piece[..read], |end, text, truncated| {
            queue.push_back(Line {
                at_ms: file.lock().time_of(begin + end as u64, now_ms),
                text,
                truncated,
                skipped_bytes: std::mem::take(skipped),
            });
        });
        self.position += read as u64;
        self.caught_up = self.position >= now.size;
        Ok(())
    }

    fn skip_to(&mut self, base: u64) {
        self.skipped += base - self.position;
        self.position = base;
        self.splitter = Splitter::default();
    }

    async fn wait(&self) {
        tokio::time::sleep(POLL).await;
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Splitter {
    line: Vec<u8>,
    truncated: bool,
    /// Begun in the middle of a line: its rest is dropped.
    inside: bool,
}

impl Splitter {
    /// Calls `emit` for each line that ends in `bytes`, with the offset of its newline.
    fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(usize, String, bool)) {
        let mut begin = 0;
        for at in bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(at, _)| at)
        {
            self.push(&bytes[begin..at]);
            begin = at + 1;
            let line = std::mem::take(&mut self.line);
            let truncated = std::mem::take(&mut self.truncated);
            if !std::mem::take(&mut self.inside) {
                emit(at, text(line), truncated);
            }
        }
        self.push(&bytes[begin..]);
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
    }

    /// The line that has no end yet.
    fn rest(self) -> Option<(String, bool)> {
        (!self.line.is_empty() && !self.inside).then(|| (text(self.line), self.truncated))
    }
}

fn text(mut line: Vec<u8>) -> String {
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    match String::from_utf8(line) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

struct Snapshot {
    file: Arc<File>,
    shift: u64,
    base: u64,
    size: u64,
}

fn snapshot(log: &LogFile) -> io::Result<Option<Snapshot>> {
    let state = log.lock();
    let Some(file) = state.file.clone() else {
        return Ok(None);
    };
    let size = (state.shift + file.metadata()?.len()).max(state.base);
    Ok(Some(Snapshot {
        file,
        shift: state.shift,
        base: state.base,
        size,
    }))
}

/// The last `n` lines and the position behind them. `unfinished`: a last line without a newline
/// counts as well.
fn tail(log: &LogFile, n: usize, unfinished: bool) -> io::Result<(Vec<Line>, u64)> {
    let n = n.min(LINES_MAX);
    // What is punched out under our hands is read again, from the rotated file.
    for _ in 0..3 {
        let Some(now) = snapshot(log)? else {
            return Ok((Vec::new(), 0));
        };
        let (mut lines, end) = live_tail(log, &now, n, unfinished)?;
        if lines.len() < n {
            for (_, path) in rotate::list(log.path())?.into_iter().rev() {
                let Some(head) = rotate::read_head(&path) else {
                    continue;
                };
                let older = match rotated_tail(&path, &head, n - lines.len()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    other => other?,
                };
                for line in older.into_iter().rev() {
                    lines.push_front(line);
                }
                let bytes: u64 = lines.iter().map(|line| line.text.len() as u64).sum();
                if lines.len() >= n || bytes > BYTES_MAX {
                    break;
                }
            }
        }
        if log.lock().base == now.base {
            return Ok((lines.into(), end));
        }
    }
    // It floods: what is there now will do.
    let Some(now) = snapshot(log)? else {
        return Ok((Vec::new(), 0));
    };
    let (lines, end) = live_tail(log, &now, n, unfinished)?;
    Ok((lines.into(), end))
}

fn live_tail(
    log: &LogFile,
    now: &Snapshot,
    n: usize,
    unfinished: bool,
) -> io::Result<(VecDeque<Line>, u64)> {
    let floor = now.base.max(now.size.saturating_sub(BYTES_MAX));
    // Backwards, until there are newlines enough.
    let mut begin = now.size;
    let mut newlines = 0;
    let mut piece = vec![0; PIECE_BYTES];
    while begin > floor && newlines <= n {
        let from = begin.saturating_sub(PIECE_BYTES as u64).max(floor);
        let piece = &mut piece[..(begin - from) as usize];
        now.file.read_exact_at(piece, from - now.shift)?;
        newlines += piece.iter().filter(|byte| **byte == b'\n').count();
        begin = from;
    }
    // Forwards, keeping the last.
    let now_ms = clock::now_ms();
    let mut lines = VecDeque::new();
    let mut splitter = Splitter {
        inside: begin > now.base,
        ..Splitter::default()
    };
    let mut end = begin;
    let mut position = begin;
    while position < now.size {
        let want = PIECE_BYTES.min((now.size - position) as usize);
        let piece = &mut piece[..want];
        now.file.read_exact_at(piece, position - now.shift)?;
        splitter.feed(piece, |at, text, truncated| {
            end = position + at as u64 + 1;
            lines.push_back((end - 1, text, truncated));
            if lines.len() > n {
                lines.pop_front();
            }
        });
        position += want as u64;
    }
    if unfinished && let Some((text, truncated)) = splitter.rest() {
        lines.push_back((now.size, text, truncated));
        if lines.len() > n {
            lines.pop_front();
        }
    }
    let state = log.lock();
    let lines = lines
        .into_iter()
        .map(|(position, text, truncated)| Line {
            at_ms: state.time_of(position, now_ms),
            text,
            truncated,
            skipped_bytes: 0,
        })
        .collect();
    Ok((lines, end))
}

/// The last `n` lines of a rotated file.
fn rotated_tail(path: &std::path::Path, head: &Head, n: usize) -> io::Result<VecDeque<Line>> {
    let mut reader = BufReader::with_capacity(PIECE_BYTES, zstd::Decoder::new(File::open(path)?)?);
    let mut lines: VecDeque<Line> = VecDeque::new();
    let mut bytes = 0;
    let mut splitter = Splitter::default();
    let mut offset = 0;
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            break;
        }
        let read = piece.len();
        splitter.feed(piece, |at, text, truncated| {
            bytes += text.len() as u64;
            lines.push_back(Line {
                at_ms: head.time_of(offset + at as u64),
                text,
                truncated,
                skipped_bytes: 0,
            });
            while lines.len() > n || bytes > BYTES_MAX {
                bytes -= lines.pop_front().map_or(0, |line| line.text.len() as u64);
            }
        });
        reader.consume(read);
        offset += read as u64;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line's text and whether it was cut.
    type Piece = (String, bool);

    fn split(pieces: &[&[u8]]) -> (Vec<Piece>, Option<Piece>) {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.feed(piece, |_, text, truncated| lines.push((text, truncated)));
        }
        (lines, splitter.rest())
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let whole = b"one\r\n\ntwo\xff\nrest".as_slice();
        let expected = split(&[whole]);
        assert_eq!(
            expected.0,
            [
                ("one".to_owned(), false),
                (String::new(), false),
                ("two\u{fffd}".to_owned(), false)
            ]
        );
        assert_eq!(expected.1, Some(("rest".to_owned(), false)));
        for at in 0..whole.len() {
            let (left, right) = whole.split_at(at);
            assert_eq!(split(&[left, right]), expected, "cut at {at}");
        }
    }

    #[test]
    fn long_lines_are_bounded() {
        let long = vec![b'x'; LINE_BYTES_MAX * 3];
        let (lines, _) = split(&[&long, b"yyy\nnext\n"]);
        assert_eq!((lines[0].0.len(), lines[0].1), (LINE_BYTES_MAX, true));
        assert_eq!(lines[1], ("next".to_owned(), false));
    }
}
