//! Processes that an agent of a data directory has started, by the tag in their environment, for those who
//! are not the supervisor.

use std::{io, path::Path};

use rustix::process::{Pid, PidfdFlags, Signal};
use tanako_fleet::ProcessName;

use super::{adopt, procfs};

/// A process, and whose it is.
#[derive(Debug, Clone)]
pub struct Tagged {
    /// The process that it is, or descends from.
    pub process: ProcessName,
    /// When it was started, on CLOCK_BOOTTIME in milliseconds.
    pub started_ms: u64,
}

/// Names a data directory; the same one again gets the same number.
pub fn data_dir_instance(data_dir: &Path) -> io::Result<u64> {
    adopt::instance(data_dir)
}

fn tagged(pid: u32, instance: u64) -> Option<Tagged> {
    let tag = procfs::tag(pid).filter(|tag| tag.instance == instance)?;
    let stat = procfs::stat(pid).filter(|stat| stat.state != b'Z')?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(Tagged {
        process: tag.process,
        started_ms: stat.start_ticks.saturating_mul(1_000) / ticks,
    })
}

/// Whether there is one such process.
pub fn any_tagged(instance: u64, which: impl Fn(&Tagged) -> bool) -> io::Result<bool> {
    let mut pids = procfs::pids()?.into_iter();
    Ok(pids.any(|pid| tagged(pid, instance).is_some_and(|tagged| which(&tagged))))
}

/// Kills such processes; how many. Blocks for some milliseconds.
pub fn kill_tagged(instance: u64, which: impl Fn(&Tagged) -> bool) -> io::Result<usize> {
    let mut killed = 0;
    for pid in procfs::pids()? {
        let is_meant = || tagged(pid, instance).is_some_and(|tagged| which(&tagged));
        if pid == std::process::id() || !is_meant() {
            continue;
        }
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(pidfd) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else {
            continue;
        };
        // Again, now that the pid cannot become another's.
        if is_meant() && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}
