//! Limits by cgroup v2, where a subtree is delegated to the agent.
//!
//! ```text
//! SUBTREE/            delegated (systemd: Delegate=yes, DelegateSubgroup=agent)
//! ├─ agent/           the agent itself: a cgroup with children may hold no process
//! └─ children/
//!    └─ tanako.0-7/   one run: process and attempt
//! ```

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use tanako_fleet::ProcessSpec;

/// Period of `cpu.max`, microseconds: the kernel's default.
const CPU_PERIOD_US: f64 = 100_000.0;
/// Controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The subtree of the children.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    children: PathBuf,
}

/// A process in its cgroup.
pub(super) struct Placed {
    pub(super) path: PathBuf,
    /// What is enforced, in words.
    pub(super) words: String,
    /// What is not, in words.
    pub(super) missing: String,
}

impl Cgroups {
    /// Finds the subtree delegated to the agent, if there is one, and gets it ready.
    pub(super) fn detect() -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = membership
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))?;
        // Only where systemd puts the agent into a leaf of its own (254 and later). An agent that made
        // the leaf itself could not be started again: a cgroup whose children have controllers takes
        // no process, and after a crash the children are still there.
        let own = mount_point()?.join(own);
        if !own.ends_with("agent") {
            return None;
        }
        Self::at(own.parent()?).ok()
    }

    /// Uses this subtree.
    pub(super) fn at(subtree: &Path) -> io::Result<Self> {
        let children = subtree.join("children");
        make(subtree)?;
        if !subtree.join("cgroup.procs").exists() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not in a cgroup v2 file system",
            ));
        }
        enable(subtree);
        make(&children)?;
        enable(&children);
        Ok(Self { children })
    }

    /// Makes a cgroup for a run, sets its limits and moves the process into it.
    pub(super) fn place(&self, spec: &ProcessSpec, attempt: u64, pid: u32) -> io::Result<Placed> {
        let path = self
            .children
            .join(format!("{}-{attempt}", spec.name.file_stem()));
        make(&path)?;
        let mut placed = Placed {
            words: String::new(),
            missing: String::new(),
            path,
        };
        let limits = &spec.limits;
        if let Some(bytes) = limits.memory_bytes {
            placed.set("memory.max", &bytes.to_string());
            // All of it goes, not a random child.
            let _ = fs::write(placed.path.join("memory.oom.group"), "1");
        }
        if let Some(cpus) = limits.cpus {
            let quota = (cpus * CPU_PERIOD_US).max(1_000.0) as u64;
            placed.set("cpu.max", &format!("{quota} {CPU_PERIOD_US}"));
        }
        if let Some(tasks) = limits.tasks {
            placed.set("pids.max", &tasks.to_string());
        }
        if let Err(error) = fs::write(placed.path.join("cgroup.procs"), pid.to_string()) {
            let _ = fs::remove_dir(&placed.path);
            return Err(error);
        }
        Ok(placed)
    }
}

impl Placed {
    fn set(&mut self, file: &str, value: &str) {
        match fs::write(self.path.join(file), value) {
            Ok(()) => {
                let separator = if self.words.is_empty() {
                    "cgroup: "
                } else {
                    ", "
                };
                let _ = write!(self.words, "{separator}{file} {value}");
            }
            Err(error) => {
                let _ = write!(self.missing, "{file} could not be set: {error}. ");
            }
        }
    }
}

/// Kills all that is in a cgroup.
pub(super) fn kill(path: &Path) {
    // Kernels before 5.14 lack it; the process group is killed besides.
    let _ = fs::write(path.join("cgroup.kill"), "1");
}

/// Removes the cgroup of a run that is over. Fails while something in it is still dying.
pub(super) fn remove(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether the kernel killed something in this cgroup for want of memory.
pub(super) fn out_of_memory(path: &Path) -> bool {
    fs::read_to_string(path.join("memory.events")).is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim() != "0")
    })
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Hands down the controllers there are; without one, its limit reports that it could not be set.
fn enable(path: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(
            path.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

/// Where cgroup v2 is mounted.
fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        if !behind.starts_with("cgroup2 ") {
            return None;
        }
        Some(PathBuf::from(before.split(' ').nth(4)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Cgroups::at(&dir.path().join("x")).is_err());
    }
}
