//! Finds and kills what outlived its run: descendants that left its process group (`setsid`) and so
//! escaped the kill of the group. They are known by the tag in their environment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::procfs;

/// Descendants named in one message.
const NAMED_MAX: usize = 5;

/// What a sweep found.
pub(super) struct Swept {
    /// Per run: how many there were, and the first of them in words.
    pub(super) killed: BTreeMap<u64, (usize, String)>,
    /// Runs of which nothing is left.
    pub(super) clean: BTreeSet<u64>,
}

/// Looks through all processes once. Blocks for some milliseconds.
pub(super) fn sweep(instance: u64, runs: &BTreeSet<u64>) -> Swept {
    let mut swept = Swept {
        killed: BTreeMap::new(),
        clean: BTreeSet::new(),
    };
    let Ok(pids) = procfs::pids() else {
        return swept;
    };
    for pid in pids {
        let is_over = || {
            procfs::tag(pid)
                .filter(|tag| tag.instance == instance && runs.contains(&tag.nonce))
                .map(|tag| tag.nonce)
        };
        if is_over().is_none() {
            continue;
        }
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(pidfd) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else {
            continue;
        };
        // Again, now that the pid cannot become another's.
        let Some(nonce) = is_over() else { continue };
        let command = procfs::short_command(pid);
        if rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            let (count, words) = swept.killed.entry(nonce).or_default();
            *count += 1;
            if *count <= NAMED_MAX {
                if !words.is_empty() {
                    words.push_str(", ");
                }
                // Writing to a string does not fail.
                let _ = write!(words, "{command} (pid {pid})");
            }
        }
    }
    swept.clean = runs
        .iter()
        .filter(|nonce| !swept.killed.contains_key(nonce))
        .copied()
        .collect();
    swept
}
