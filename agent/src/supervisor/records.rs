//! What is written down about the processes, so that the next agent takes them over.
//!
//! A journal: one line an entry, each with its own checksum; the last entry of a process counts. It
//! is appended to before a process is started (the intent) and after; never synced on that path,
//! for what it guards against is the death of the agent. After the death of the machine there is
//! nobody to take over. A damaged line costs what it said, nothing else.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tanako_fleet::{ProcessName, ProcessSpec};

use super::{
    backoff::Failures,
    core::Memory,
    status::{Desired, State},
};
use crate::logs::Resume;

/// The journal is rewritten when it has grown by this much, or fourfold.
const GROWTH_MIN: u64 = 4 << 20;

/// What is known of one process besides its spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub name: ProcessName,
    /// What was asked for.
    pub desired: Desired,
    /// Where it was in its life.
    pub state: State,
    /// Number of its latest start.
    pub attempt: u64,
    /// Starts that nobody asked for.
    pub restarts: u64,
    /// Failures in a row.
    pub in_a_row: u32,
    /// Milliseconds since 1970 of the failures that the crash-loop guard remembers.
    pub failures_ms: Vec<i64>,
    /// When it was to be started next, milliseconds since 1970.
    pub next_start_ms: Option<i64>,
    /// Why it was in that state.
    pub detail: String,
    /// How its latest run ended.
    pub last_exit: String,
    /// When its latest attempt was started, milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// When that attempt became ready first, milliseconds since 1970.
    pub ready_ms: Option<i64>,
    /// The run that lives; unset = none.
    pub process: Option<Alive>,
    /// Where counting its log had got to.
    pub(super) log: Option<Resume>,
}

/// Names a process of the operating system for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Boot id of the machine.
    pub boot: Arc<str>,
    /// Unset between the intent to start it and its start.
    pub pid: Option<u32>,
    /// When it was started, in the kernel's ticks.
    pub start_ticks: u64,
    /// Names this run, also in its environment.
    pub nonce: u64,
    /// Names the spec that it was started from.
    pub spec_hash: u64,
    /// Its own cgroup.
    pub cgroup: Option<PathBuf>,
    /// Where its output begins in its log.
    pub log_from: u64,
    /// How its limits are enforced, in words.
    pub limits: String,
}

impl Run {
    /// What is written down about a process: what its policy says, and the run that lives. `now` and
    /// `now_ms` are the same moment on both clocks.
    pub fn new(
        name: ProcessName,
        memory: Memory,
        process: Option<Alive>,
        now: Instant,
        now_ms: i64,
    ) -> Self {
        let failures = memory.failures.recent.iter();
        Self {
            name,
            desired: memory.desired,
            state: memory.state,
            attempt: memory.attempt,
            restarts: memory.restarts,
            in_a_row: memory.failures.in_a_row,
            failures_ms: failures.map(|at| to_ms(*at, now, now_ms)).collect(),
            next_start_ms: memory.next_start_at.map(|at| to_ms(at, now, now_ms)),
            detail: memory.detail,
            last_exit: memory.last_exit,
            started_ms: None,
            ready_ms: None,
            process,
            log: None,
        }
    }

    /// What the policy of the next agent has to know.
    pub fn memory(&self, now: Instant, now_ms: i64) -> Memory {
        let failures = self.failures_ms.iter();
        Memory {
            guarded: false,
            desired: self.desired,
            attempt: self.attempt,
            restarts: self.restarts,
            failures: Failures {
                in_a_row: self.in_a_row,
                recent: failures
                    .filter_map(|at| from_ms(*at, now, now_ms))
                    .collect(),
            },
            state: self.state,
            next_start_at: self.next_start_ms.and_then(|at| from_ms(at, now, now_ms)),
            detail: self.detail.clone(),
            last_exit: self.last_exit.clone(),
        }
    }
}

/// A moment of the steady clock on the wall clock.
pub(super) fn to_ms(at: Instant, now: Instant, now_ms: i64) -> i64 {
    let ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    if at >= now {
        now_ms.saturating_add(ms(at - now))
    } else {
        now_ms.saturating_sub(ms(now - at))
    }
}

/// `None` when it is before the machine's boot, or so far ahead that the clock must have been set.
fn from_ms(at_ms: i64, now: Instant, now_ms: i64) -> Option<Instant> {
    const AHEAD_MAX: Duration = Duration::from_secs(86_400);
    let delta = at_ms.saturating_sub(now_ms);
    let span = Duration::from_millis(delta.unsigned_abs());
    if delta < 0 {
        now.checked_sub(span)
    } else if span <= AHEAD_MAX {
        now.checked_add(span)
    } else {
        None
    }
}

#[derive(Serialize, Deserialize)]
enum Entry<'a> {
    Define(std::borrow::Cow<'a, ProcessSpec>),
    Run(std::borrow::Cow<'a, Run>),
    Forget(ProcessName),
}

/// What the journal held.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) specs: BTreeMap<ProcessName, Arc<ProcessSpec>>,
    pub(super) runs: BTreeMap<ProcessName, Run>,
    /// Lines that could not be read.
    pub(super) damaged: usize,
}

/// The journal, open for writing.
pub(super) struct Records {
    path: PathBuf,
    file: File,
    pending: Vec<u8>,
    written: u64,
    /// Size after the last rewriting.
    base: u64,
}

impl Records {
    /// Reads the journal and opens it for writing.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Loaded)> {
        let (bytes, ends_in_line) = match fs::read(path) {
            Ok(bytes) => {
                let complete = bytes.last().is_none_or(|byte| *byte == b'\n');
                (bytes, complete)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), true),
            Err(error) => return Err(error),
        };
        let loaded = load(&bytes);
        let file = append(path)?;
        let mut records = Self {
            path: path.to_owned(),
            file,
            pending: Vec::new(),
            written: bytes.len() as u64,
            base: 0,
        };
        if !ends_in_line {
            records.pending.push(b'\n');
        }
        Ok((records, loaded))
    }

    /// Notes a new or changed spec.
    pub(super) fn define(&mut self, spec: &ProcessSpec) {
        self.push(&Entry::Define(std::borrow::Cow::Borrowed(spec)));
    }

    /// Notes what a process does.
    pub(super) fn run(&mut self, run: &Run) {
        self.push(&Entry::Run(std::borrow::Cow::Borrowed(run)));
    }

    /// Notes that a process is no more.
    pub(super) fn forget(&mut self, name: &ProcessName) {
        self.push(&Entry::Forget(name.clone()));
    }

    fn push(&mut self, entry: &Entry<'_>) {
        let json = serde_json::to_vec(entry).expect("invariant: records are plain data");
        let sum = xxhash_rust::xxh3::xxh3_64(&json);
        // Writing to a vector does not fail.
        let _ = write!(self.pending, "{sum:016x} ");
        self.pending.extend_from_slice(&json);
        self.pending.push(b'\n');
    }

    /// Hands what was noted to the operating system.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let result = self.file.write_all(&self.pending);
        self.written += self.pending.len() as u64;
        if result.is_err() {
            // A part of a line may have been written: begin the next on a line of its own.
            self.pending.clear();
            self.pending.push(b'\n');
        } else {
            self.pending.clear();
        }
        result
    }

    /// Whether it is time for [`Records::rewrite`].
    pub(super) fn is_grown(&self) -> bool {
        self.written > self.base * 4 + GROWTH_MIN
    }

    /// Replaces the journal by what counts now.
    pub(super) fn rewrite<'a>(
        &mut self,
        processes: impl Iterator<Item = (&'a ProcessSpec, Run)>,
        sync: bool,
    ) -> io::Result<()> {
        let before = std::mem::take(&mut self.pending);
        for (spec, run) in processes {
            self.define(spec);
            self.run(&run);
        }
        let all = std::mem::replace(&mut self.pending, before);
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&all)?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&beside, &self.path)?;
        self.file = append(&self.path)?;
        self.pending.clear();
        self.written = all.len() as u64;
        self.base = self.written;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Whether an earlier agent left processes in the records of `data_dir`.
pub fn any_left(data_dir: &Path) -> bool {
    fs::read(data_dir.join("run").join("records")).is_ok_and(|bytes| !load(&bytes).specs.is_empty())
}

fn load(bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        match read_line(line) {
            Some(Entry::Define(spec)) => {
                let spec = spec.into_owned();
                loaded.specs.insert(spec.name.clone(), Arc::new(spec));
            }
            Some(Entry::Run(run)) => {
                let run = run.into_owned();
                loaded.runs.insert(run.name.clone(), run);
            }
            Some(Entry::Forget(name)) => {
                loaded.specs.remove(&name);
                loaded.runs.remove(&name);
            }
            None => loaded.damaged += 1,
        }
    }
    loaded
}

fn read_line(line: &[u8]) -> Option<Entry<'static>> {
    let (sum, json) = line.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if sum != xxhash_rust::xxh3::xxh3_64(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// Names a spec; equal specs have equal hashes.
pub(super) fn spec_hash(spec: &ProcessSpec) -> u64 {
    let json = serde_json::to_vec(spec).expect("invariant: specs are plain data");
    xxhash_rust::xxh3::xxh3_64(&json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, attempt: u64) -> Run {
        Run {
            name: name.parse().expect("a name"),
            desired: Desired::Running,
            state: State::Ready,
            attempt,
            restarts: 1,
            in_a_row: 0,
            failures_ms: vec![5],
            next_start_ms: None,
            detail: String::new(),
            last_exit: "exit code 1".to_owned(),
            started_ms: Some(1),
            ready_ms: None,
            process: Some(Alive {
                boot: "b".into(),
                pid: Some(4),
                start_ticks: 9,
                nonce: u64::MAX,
                spec_hash: 3,
                cgroup: None,
                log_from: 0,
                limits: String::new(),
            }),
            log: None,
        }
    }

    #[test]
    fn the_last_entry_counts_and_damage_costs_one_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records");
        let (mut records, loaded) = Records::open(&path).expect("it opens");
        assert_eq!((loaded.runs.len(), loaded.damaged), (0, 0));
        for (name, attempt) in [("a/0", 1), ("b/0", 1), ("a/0", 2), ("c/0", 1)] {
            records.run(&run(name, attempt));
        }
        records.forget(&"c/0".parse().expect("a name"));
        records.flush().expect("it writes");

        let (_, loaded) = Records::open(&path).expect("it opens");
        let names: Vec<_> = loaded.runs.keys().map(ProcessName::as_str).collect();
        assert_eq!(names, ["a/0", "b/0"]);
        assert_eq!(loaded.runs[&"a/0".parse().expect("a name")], run("a/0", 2));

        // One flipped byte in the third line, half a line at the end.
        let mut bytes = fs::read(&path).expect("it reads");
        let third = bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(1)
            .expect("three lines")
            .0;
        bytes[third + 30] ^= 1;
        bytes.truncate(bytes.len() - 3);
        fs::write(&path, &bytes).expect("it writes");
        let (mut records, loaded) = Records::open(&path).expect("it opens");
        assert_eq!(loaded.damaged, 2);
        assert_eq!(loaded.runs[&"a/0".parse().expect("a name")], run("a/0", 1));
        assert_eq!(loaded.runs.len(), 3, "forgetting c/0 was lost");

        // What is appended after half a line is read.
        records.run(&run("d/0", 7));
        records.flush().expect("it writes");
        let (_, loaded) = Records::open(&path).expect("it opens");
        assert_eq!(loaded.runs[&"d/0".parse().expect("a name")], run("d/0", 7));
    }
}
