//! The fence: a process of its own that kills the bots of this host when the agent cannot.
//!
//! It reads what the agent writes down at each renewal (`run/tenure`). When that time is past, because the
//! agent is dead or stopped in its tracks, it kills every process that only the owner of a lease may run. It
//! has no store, no network and no state: all it can do is to be too early, and then the processes are
//! started again. There is one for each data directory, known by a lock; it outlives the agent, and ends
//! when there is neither an agent nor anything to guard.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

use super::{file, now, reap};

/// Between two looks at the file while there is time left.
const LOOK: Duration = Duration::from_millis(100);
/// Looks at whether there is anything left to guard, once the agent is gone.
const IDLE_LOOKS: u32 = 20;

/// Starts the fence of a data directory unless it runs. It is detached: no signal to the agent's group or
/// session reaches it.
pub fn ensure(program: &Path, data_dir: &Path) -> io::Result<()> {
    if !try_lock(data_dir)? {
        return Ok(());
    }
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(data_dir.join("run").join("fence.log"))?;
    let mut command = Command::new(program);
    command
        .arg("fence")
        .arg("--data-dir")
        .arg(data_dir)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0);
    let child = command.spawn()?;
    // It is waited for so that it does not stay a zombie, should it end before the agent.
    std::thread::Builder::new()
        .name("fence".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            let mut child = child;
            let _ = child.wait();
        })?;
    Ok(())
}

/// Whether nobody guards the directory now.
fn try_lock(data_dir: &Path) -> io::Result<bool> {
    let file = open_lock(data_dir)?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn open_lock(data_dir: &Path) -> io::Result<fs::File> {
    let dir = data_dir.join("run");
    fs::create_dir_all(&dir)?;
    fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("fence.lock"))
}

/// Guards until there is nothing to guard. Returns at once when another one does.
pub fn run(data_dir: &Path) -> io::Result<()> {
    let lock = open_lock(data_dir)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    let mut idle = 0;
    loop {
        let written = file::read(data_dir);
        let until = written.as_ref().map_or(0, |written| written.until);
        let at = now();
        if at >= until {
            let killed = reap::kill_once(data_dir, at)?;
            if killed > 0 {
                eprintln!("the lease of this host has ended: killed {killed} processes");
            }
        }
        let agent = written.map_or(0, |written| written.agent);
        let guarded = is_alive(agent) || reap::any(data_dir)?;
        idle = if guarded { 0 } else { idle + 1 };
        if idle >= IDLE_LOOKS {
            return Ok(());
        }
        let left = Duration::from_millis(until.saturating_sub(now()).max(10));
        std::thread::sleep(left.min(LOOK));
    }
}

fn is_alive(pid: u32) -> bool {
    // Another process of that number only makes it stay for longer.
    pid > 0 && Path::new("/proc").join(pid.to_string()).exists()
}
