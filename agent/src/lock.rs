//! One agent a data directory: a lock that the kernel takes back when its holder dies.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// A lock that seems held is asked for again this long: a child that its last holder had just started has a
/// share in it, as in every open file, until it executes its own program.
const HELD_AFTER: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The lock, held until it is dropped or the process ends, an `execve` included.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent{} holds {}", holder(*pid), path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who, if the file says so.
        pid: Option<u32>,
    },
    /// The file cannot be used.
    #[error("the lock file {} cannot be used", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl Lock {
    /// Takes the lock at `path` and writes this process's id into it. Blocks for a second where it is held.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let until = Instant::now() + HELD_AFTER;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOOK),
                Err(Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    let _ = (&mut file).take(32).read_to_string(&mut text);
                    let pid = text.trim().parse().ok();
                    return Err(LockError::Held {
                        path: path.to_owned(),
                        pid,
                    });
                }
                Err(errno) => return Err(io(errno.into())),
            }
        }
        // The pid is for people only: a full disk must not keep the agent from running.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_the_next_gets_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.lock");
        let lock = Lock::take(&path).expect("free");
        match Lock::take(&path) {
            Err(LockError::Held { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(lock);
        Lock::take(&path).expect("free again");
    }
}
