//! One host: a network namespace and the processes in it.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    process::Command,
    thread,
};

use rustix::{
    process::Signal,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::owner::{NAMES, run};
use crate::{processes, wait};

/// A network namespace by name.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it; its loopback works.
    pub(super) fn make(name: String) -> Self {
        run("ip", &["netns", "add", &name], "");
        run("ip", &["-n", &name, "link", "set", "lo", "up"], "");
        Self { name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(NAMES).join(&self.name)
    }

    /// A command line whose process lives here, with a `/sys` of its own. The process that is started
    /// becomes the program: its id is the program's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `ip` for this namespace.
    pub(super) fn ip(&self, arguments: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        run("ip", &all, "");
    }

    /// Gives rules to this namespace's packet filter.
    pub(super) fn filter(&self, rules: &str) {
        let inside = ["netns", "exec", &self.name, "nft", "-f", "-"];
        run("ip", &inside, rules);
    }

    /// Does something on a thread that is in this namespace: what it connects to is what a process here
    /// would reach.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = fs::File::open(self.path()).expect("the namespace is there");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a network namespace");
                work()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The processes in it that live.
    pub fn pids(&self) -> Vec<u32> {
        let Ok(own) = fs::metadata(self.path()) else {
            return Vec::new();
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                // A zombie is in none.
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
            })
            .collect()
    }

    /// Stops every process in its tracks. None of them does anything once it returns.
    pub fn freeze(&self) {
        self.freeze_those(|_| true);
    }

    /// The same for some of them.
    pub fn freeze_those(&self, which: impl Fn(u32) -> bool) {
        let mut told = BTreeSet::new();
        wait::until("everything to stop", 60, || {
            let going: Vec<u32> = self
                .pids()
                .into_iter()
                .filter(|pid| which(*pid) && !stands_still(*pid, told.contains(pid)))
                .collect();
            for pid in &going {
                processes::signal(*pid, Signal::STOP);
                told.insert(*pid);
            }
            if going.is_empty() {
                Ok(())
            } else {
                Err(format!("{going:?} go on"))
            }
        });
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        for pid in self.pids() {
            processes::signal(pid, Signal::CONT);
        }
    }

    /// kill -9 of everything in it. All stand still before the first one dies, so that none sees the end
    /// of another.
    pub fn kill_all(&self) {
        self.freeze();
        wait::until("everything to die", 60, || {
            let left = self.pids();
            for pid in &left {
                processes::kill(*pid);
            }
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?} live"))
            }
        });
    }
}

/// Whether every thread has stopped, or is gone. One that waits inside the kernel stops before it comes
/// out once it was `told`; it may wait for a process that stands still itself, as after a vfork, and
/// then never shows as stopped.
fn stands_still(pid: u32, told: bool) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        match rest.trim_start().chars().next() {
            None | Some('T' | 't' | 'Z' | 'X') => true,
            Some('D') => told,
            Some(_) => false,
        }
    })
}
