//! What `/proc` says about processes, and the tag by which the agent knows its own again.

use std::{fmt, fs, io, io::Read, time::Duration};

use tanako_fleet::ProcessName;

/// The variable that carries the [`RunTag`].
pub(super) const RUN_VARIABLE: &str = "TANAKO_RUN";
/// Most that is read of one process's environment.
const ENVIRON_MAX: u64 = 2 << 20;

/// Names one run of one process. It is in the environment of the run and so of its descendants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RunTag {
    /// The agent's data directory, by a random number made with it.
    pub(super) instance: u64,
    pub(super) process: ProcessName,
    pub(super) attempt: u64,
    /// Hash of the spec it was started from.
    pub(super) spec_hash: u64,
    /// Random; no two runs share it.
    pub(super) nonce: u64,
}

impl fmt::Display for RunTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            instance,
            process,
            attempt,
            spec_hash,
            nonce,
        } = self;
        write!(
            f,
            "{instance:016x}:{process}:{attempt}:{spec_hash:016x}:{nonce:016x}"
        )
    }
}

impl RunTag {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let tag = Self {
            instance: u64::from_str_radix(parts.next()?, 16).ok()?,
            process: parts.next()?.parse().ok()?,
            attempt: parts.next()?.parse().ok()?,
            spec_hash: u64::from_str_radix(parts.next()?, 16).ok()?,
            nonce: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        parts.next().is_none().then_some(tag)
    }
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// `R`, `S`, `Z`, …
    pub(super) state: u8,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// Clock ticks from boot to its start; with the pid and the boot id it names a process for good.
    pub(super) start_ticks: u64,
}

/// What a process is now; `None` when there is none.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, parentheses too.
    let behind = text.iter().rposition(|byte| *byte == b')')? + 2;
    let text = std::str::from_utf8(text.get(behind..)?).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().take(20).collect();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// The tag in a process's environment, if it has one that may be read.
pub(super) fn tag(pid: u32) -> Option<RunTag> {
    let mut environ = Vec::new();
    fs::File::open(format!("/proc/{pid}/environ"))
        .ok()?
        .take(ENVIRON_MAX)
        .read_to_end(&mut environ)
        .ok()?;
    environ.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable
            .strip_prefix(RUN_VARIABLE.as_bytes())?
            .strip_prefix(b"=")?;
        RunTag::parse(std::str::from_utf8(value).ok()?)
    })
}

/// All processes there are.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// First words of a process's command line, for messages about processes that are not ours by spec.
pub(super) fn short_command(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// Bytes of memory that a process has resident.
pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Names this boot of the machine.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// How long a process with this start has been running.
pub(super) fn age(start_ticks: u64) -> Duration {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime: f64 = uptime
        .split_ascii_whitespace()
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    let started = start_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Duration::try_from_secs_f64(uptime - started).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_back() {
        let tag = RunTag {
            instance: 1,
            process: "tanako/0".parse().expect("a name"),
            attempt: 3,
            spec_hash: u64::MAX,
            nonce: 0xabc,
        };
        assert_eq!(RunTag::parse(&tag.to_string()), Some(tag));
        for bad in ["", "1:tanako/0:3", "x:tanako/0:3:1:1", "1:tanako/0:3:1:1:1"] {
            assert_eq!(RunTag::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_own_process_is_found() {
        let own = stat(std::process::id()).expect("it runs");
        assert!(own.start_ticks > 0 && own.state != b'Z');
        assert!(age(own.start_ticks) < Duration::from_secs(3600));
        assert!(resident_bytes(std::process::id()).expect("it runs") > 100_000);
        assert!(pids().expect("proc is there").contains(&std::process::id()));
        assert_eq!(boot_id().len(), 36);
    }
}
