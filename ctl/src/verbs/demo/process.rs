//! Finding processes again and ending them, never by name and never by a bare process id.
//!
//! A process is known by its id together with its start time and the boot it belongs to, by a pair of
//! arguments that only it carries, or by a variable that only the demo's children have. It is signalled
//! through a pidfd that was opened before the last check, so that a recycled id can never be hit.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often an ending process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One process, for ever: ids are used again, start times of one boot are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks from boot to start.
    pub start_ticks: u64,
    /// Which boot.
    pub boot_id: String,
}

impl Identity {
    /// The process that has this id now.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot_id: boot_id()?,
        })
    }
}

fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat`; none when the process is gone or only waits to be reaped.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so fields count from its end.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A process that was alive and known when this was made.
#[derive(Debug)]
pub struct Live {
    /// Its id.
    pub pid: u32,
    handle: OwnedFd,
}

impl Live {
    /// Opens the process if `is_it` still holds once its handle is there.
    fn open(pid: u32, is_it: impl Fn() -> bool) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
        let live = Self { pid, handle };
        (is_it() && live.is_alive()).then_some(live)
    }

    /// The process of that identity, if it lives.
    pub fn by_identity(identity: &Identity) -> Option<Self> {
        Self::open(identity.pid, || {
            Identity::of(identity.pid).as_ref() == Some(identity)
        })
    }

    /// Every process of this user and this file system whose arguments hold `flag` followed by `value`.
    pub fn by_argument(flag: &str, value: &Path) -> Vec<Self> {
        Self::all(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|arguments| has_pair(&arguments, flag, value.as_os_str()))
        })
    }

    /// Every process of this user and this file system whose environment holds `variable=value`.
    pub fn by_environment(variable: &str, value: &Path) -> Vec<Self> {
        let mut entry = format!("{variable}=").into_bytes();
        entry.extend_from_slice(value.as_os_str().as_bytes());
        Self::all(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                environment.split(|byte| *byte == 0).any(|one| one == entry)
            })
        })
    }

    /// Every process of this user and this file system that runs a program of that name and has an
    /// argument that is `path` or below it.
    pub fn by_program(name: &str, path: &Path) -> Vec<Self> {
        Self::all(|pid| {
            let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| {
                // The kernel says so when the file was replaced or removed meanwhile.
                let file = program.file_name().unwrap_or_default().to_string_lossy();
                file.strip_suffix(" (deleted)").unwrap_or(&file) == name
            });
            runs && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| {
                let mut arguments = arguments.split(|byte| *byte == 0);
                arguments.any(|one| Path::new(OsStr::from_bytes(one)).starts_with(path))
            })
        })
    }

    fn all(is_it: impl Fn(u32) -> bool) -> Vec<Self> {
        let own = std::process::id();
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own && is_it(*pid) && shares_files(*pid))
            .filter_map(|pid| Self::open(pid, || is_it(pid)))
            .collect()
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A pidfd becomes readable when its process ends.
        matches!(poll(&mut descriptors, Some(&now)), Ok(0))
    }

    /// Sends a signal; one that comes too late is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits until it has ended; says whether it did in time.
    pub async fn ended_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }

    /// SIGTERM, and SIGKILL after `grace`; says whether it ended.
    pub async fn end(&self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        if self.ended_within(grace).await {
            return true;
        }
        self.signal(Signal::KILL);
        self.ended_within(Duration::from_secs(5)).await
    }
}

/// A process in a container may show the same paths and mean other files.
fn shares_files(pid: u32) -> bool {
    match (
        fs::read_link("/proc/self/ns/mnt"),
        fs::read_link(format!("/proc/{pid}/ns/mnt")),
    ) {
        (Ok(own), Ok(other)) => own == other,
        // Without ptrace rights it is another user's.
        _ => false,
    }
}

fn has_pair(arguments: &[u8], flag: &str, value: &OsStr) -> bool {
    let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    arguments
        .windows(2)
        .any(|pair| pair[0] == flag.as_bytes() && pair[1] == value.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper(mark: &Path) -> std::process::Child {
        // `sh -c 'read x' sh --info-file MARK` waits for its stdin and carries the pair of arguments.
        Command::new("sh")
            .args(["-c", "read x", "sh", "--info-file"])
            .arg(mark)
            .env("TANAKO_SOCKET", mark)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a process")
    }

    /// The new program's arguments and environment show only after its exec.
    fn found(find: impl Fn() -> Vec<Live>) -> Vec<Live> {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let found = find();
            if !found.is_empty() || std::time::Instant::now() > deadline {
                return found;
            }
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_process_is_found_by_what_it_carries_and_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("agent.json");
        assert!(Live::by_argument("--info-file", &mark).is_empty());
        let mut child = sleeper(&mark);
        let by_argument = found(|| Live::by_argument("--info-file", &mark));
        assert_eq!(
            by_argument.iter().map(|live| live.pid).collect::<Vec<_>>(),
            [child.id()]
        );
        let by_environment = found(|| Live::by_environment("TANAKO_SOCKET", &mark));
        assert_eq!(by_environment.len(), 1);
        let identity = Identity::of(child.id()).expect("an identity");
        let live = Live::by_identity(&identity).expect("it lives");
        assert!(live.end(Duration::from_secs(10)).await);
        assert!(
            Live::by_identity(&identity).is_none(),
            "a zombie is not alive"
        );
        child.wait().expect("reaped");
        assert!(Live::by_argument("--info-file", &mark).is_empty());
    }

    #[test]
    fn a_program_is_found_by_what_it_works_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("run");
        let mut child = Command::new("sleep")
            .args(["600"])
            .env("UNRELATED", &inside)
            .spawn()
            .expect("a process");
        assert!(Live::by_program("sleep", directory.path()).is_empty());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let mut child = sleeper(&inside);
        let all = found(|| {
            let shell = fs::read_link(format!("/proc/{}/exe", child.id())).expect("a program");
            let name = shell.file_name().unwrap_or_default().to_string_lossy();
            Live::by_program(&name, directory.path())
        });
        assert_eq!(
            all.iter().map(|live| live.pid).collect::<Vec<_>>(),
            [child.id()]
        );
        assert!(Live::by_program("another", directory.path()).is_empty());
        let deeper = inside.join("deeper");
        assert!(
            ["sh", "dash", "bash"]
                .iter()
                .all(|name| Live::by_program(name, &deeper).is_empty())
        );
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    #[test]
    fn another_process_with_the_same_id_is_another() {
        let own = Identity::of(std::process::id()).expect("an identity");
        let recycled = Identity {
            start_ticks: own.start_ticks + 1,
            ..own.clone()
        };
        let rebooted = Identity {
            boot_id: "another".into(),
            ..own.clone()
        };
        assert!(Live::by_identity(&own).is_some());
        assert!(Live::by_identity(&recycled).is_none());
        assert!(Live::by_identity(&rebooted).is_none());
    }

    #[test]
    fn only_the_exact_pair_counts() {
        let value = OsStr::new("/d/agent.json");
        assert!(has_pair(
            b"agent\0--info-file\0/d/agent.json\0",
            "--info-file",
            value
        ));
        assert!(!has_pair(b"vim\0/d/agent.json\0", "--info-file", value));
        assert!(!has_pair(
            b"agent\0--info-file\0/d/agent.json2\0",
            "--info-file",
            value
        ));
        assert!(!has_pair(b"", "--info-file", value));
    }
}
