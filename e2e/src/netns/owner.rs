//! Whose namespaces, processes and files these are, and how they go when their owner has gone.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Where `ip netns` keeps its names.
pub(super) const NAMES: &str = "/run/netns";

/// What every name begins with.
const MARK: &str = "tanako";

/// Ends everything of the prefix `$1` once its standard input has ended: processes first, again and again
/// since they may have forked meanwhile, then namespaces, then files. `$2` is where the files are.
const CLEAR: &str = r#"
while read -r _; do :; done
round=0
while [ "$round" -lt 200 ]; do
  pids=$(for name in /run/netns/"$1"-*; do
    [ -e "$name" ] && ip netns pids "${name##*/}" 2>/dev/null
  done)
  [ -n "$pids" ] || break
  kill -KILL $pids 2>/dev/null
  round=$((round + 1))
  sleep 0.02
done
for name in /run/netns/"$1"-*; do
  [ ! -e "$name" ] || ip netns del "${name##*/}"
done
[ -n "$KEEP" ] || rm -rf -- "$2/$1"
"#;

/// The process that made things, and the name that all of them share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pid: u32,
    /// Clock ticks from boot to the start of the process: ids are used again, these are not.
    started: u64,
    count: u32,
}

impl Owner {
    /// This process; each call gives another name.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        Self {
            pid,
            started: started(pid).expect("this process lives"),
            count: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The one that a name of [`Self::prefix`], or one that begins with it, belongs to.
    pub fn of(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        if parts.next()? != MARK {
            return None;
        }
        Some(Self {
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
            count: parts.next()?.parse().ok()?,
        })
    }

    /// What all names begin with.
    pub fn prefix(&self) -> String {
        format!("{MARK}-{}-{}-{}", self.pid, self.started, self.count)
    }

    /// Where its files are.
    pub fn directory(&self) -> PathBuf {
        std::env::temp_dir().join(self.prefix())
    }

    /// Whether that process still lives.
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Starts what clears up once it is dropped, or this process has ended in whatever way.
    pub(super) fn reaper(&self) -> Reaper {
        Reaper {
            child: clear(&self.prefix(), Stdio::piped()),
        }
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits in a session of its own, so that Ctrl-C does not end it with the tests.
#[derive(Debug)]
pub(super) struct Reaper {
    child: Child,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn clear(prefix: &str, stdin: Stdio) -> Child {
    let keep = std::env::var_os("TANAKO_E2E_KEEP").unwrap_or_default();
    Command::new("sh")
        .args(["-c", CLEAR, "sh", prefix])
        .arg(std::env::temp_dir())
        .env("KEEP", keep)
        .process_group(0)
        .stdin(stdin)
        .stdout(Stdio::null())
        .spawn()
        .expect("sh starts")
}

/// Removes what owners that no longer live have left; gives their prefixes.
pub fn sweep() -> Vec<String> {
    let mut left: Vec<Owner> = [Path::new(NAMES), &std::env::temp_dir()]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .filter_map(|entry| Owner::of(entry.file_name().to_str()?))
        .filter(|owner| !owner.is_alive())
        .collect();
    left.sort_by_key(Owner::prefix);
    left.dedup();
    left.iter()
        .map(|owner| {
            let prefix = owner.prefix();
            let _ = clear(&prefix, Stdio::null()).wait();
            prefix
        })
        .collect()
}

/// Field 22 of `/proc/PID/stat`; none when the process is gone or only waits to be reaped.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Runs a program that must succeed; a failure says what it said.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "hosts as network namespaces need `{program}` \
                 (Debian: apt-get install iproute2 nftables): {error}"
            )
        });
    if let Some(mut stdin) = child.stdin.take() {
        // One that fails at once has said why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().expect("its end");
    assert!(
        output.status.success(),
        "{program} {}: {}\n{input}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let own = Owner::new();
        assert_eq!(Owner::of(&own.prefix()), Some(own.clone()));
        assert_eq!(
            Owner::of(&format!("{}-lan", own.prefix())),
            Some(own.clone())
        );
        assert!(own.is_alive());
        assert_ne!(own.prefix(), Owner::new().prefix());
        let before = Owner {
            started: own.started + 1,
            ..own
        };
        assert!(!before.is_alive(), "another process had this id");
        for foreign in ["", "tanako", "tanako-agent-x7", "tanako-1-2", "other-1-2-3"] {
            assert_eq!(Owner::of(foreign), None, "{foreign}");
        }
    }
}
