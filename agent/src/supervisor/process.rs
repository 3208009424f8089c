//! One process in the table: its policy, and what of the operating system belongs to it.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tanako_fleet::ProcessName;
use tokio::task::AbortHandle;

use super::{
    cgroup,
    core::{Core, Exit},
    records::{Alive, Run, to_ms},
    signals,
    status::ProcessStatus,
};
use crate::{clock, logs::LogFile};

/// A run that lives.
pub(super) struct Live {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) start_ticks: u64,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) limits: String,
    pub(super) log_from: u64,
    /// Whether an earlier life of the agent started it.
    pub(super) adopted: bool,
}

impl Live {
    /// Sends a signal to the process itself.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).is_ok()
    }

    /// Asks it to end, as its spec says.
    pub(super) fn terminate(&self, signal: &str) {
        self.signal(signals::parse(signal).unwrap_or(Signal::TERM));
        // One that is stopped (SIGSTOP) could not react.
        self.signal(Signal::CONT);
    }

    /// Kills it with its whole group. Call it before the process has been waited for: until then
    /// nobody else can have its pid.
    pub(super) fn kill_all(&self) {
        if let Some(path) = &self.cgroup {
            cgroup::kill(path);
        }
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // Fails when the group is empty.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        self.signal(Signal::KILL);
    }

    /// How it ended; `None` while it has not.
    pub(super) fn wait(&self) -> Option<Exit> {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(
                status
                    .exit_status()
                    .map(Exit::Code)
                    .or_else(|| status.terminating_signal().map(Exit::Signal))
                    .unwrap_or(Exit::Unknown),
            ),
            // Not our own child: its parent has waited, or will.
            Err(_) => Some(Exit::Unknown),
        }
    }
}

/// A process of the table.
pub(super) struct Proc {
    pub(super) name: ProcessName,
    pub(super) core: Core,
    pub(super) log: Arc<LogFile>,
    pub(super) live: Option<Live>,
    /// Of the latest run, or of the one that is being started.
    pub(super) nonce: u64,
    pub(super) running_hash: u64,
    pub(super) spec_hash: u64,
    pub(super) started_ms: Option<i64>,
    pub(super) ready_ms: Option<i64>,
    /// What it says of itself (`STATUS=`).
    pub(super) says: String,
    /// Dropped from the table as soon as it does not live.
    pub(super) forget: bool,
    pub(super) permit: Option<AbortHandle>,
    pub(super) probe: Option<AbortHandle>,
    /// Bytes of its log at the last look, for the watchdog.
    pub(super) seen_bytes: u64,
    /// As it is in the list of deadlines.
    pub(super) deadline: Option<Instant>,
}

impl Proc {
    pub(super) fn new(name: ProcessName, core: Core, log: Arc<LogFile>, spec_hash: u64) -> Self {
        Self {
            name,
            core,
            log,
            live: None,
            nonce: 0,
            running_hash: spec_hash,
            spec_hash,
            started_ms: None,
            ready_ms: None,
            says: String::new(),
            forget: false,
            permit: None,
            probe: None,
            seen_bytes: 0,
            deadline: None,
        }
    }

    /// Ends what was going on for its latest attempt.
    pub(super) fn end_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
        self.says.clear();
    }

    /// Ends its wait at the gate.
    pub(super) fn end_permit(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.abort();
        }
    }

    pub(super) fn status(&self, now: Instant) -> ProcessStatus {
        let (core, spec) = (&self.core, self.core.spec());
        let state = core.state();
        let (log_lines, log_bytes) = self.log.counts();
        let detail = if core.detail().is_empty() {
            &self.says
        } else {
            core.detail()
        };
        ProcessStatus {
            name: self.name.clone(),
            kind: spec.kind,
            state,
            ready: state == super::State::Ready,
            desired: core.desired(),
            pid: self.live.as_ref().map(|live| live.pid),
            attempt: core.attempt(),
            restarts: core.restarts(),
            started_at_ms: self.started_ms,
            ready_at_ms: self.ready_ms,
            next_start_at_ms: core
                .next_start_at()
                .map(|at| to_ms(at, now, clock::now_ms())),
            detail: detail.to_owned(),
            last_exit: core.last_exit().to_owned(),
            shard_ids: spec.shard_ids.clone(),
            shard_count: spec.shard_count,
            adopted: self.live.as_ref().is_some_and(|live| live.adopted),
            needs_restart: core.is_live() && self.running_hash != self.spec_hash,
            log_lines,
            log_bytes,
            limits: self
                .live
                .as_ref()
                .map(|live| live.limits.clone())
                .unwrap_or_default(),
            spec: Arc::clone(spec),
        }
    }

    pub(super) fn record(&self, now: Instant, boot: &Arc<str>) -> Run {
        let process = self.core.is_live().then(|| Alive {
            boot: Arc::clone(boot),
            pid: self.live.as_ref().map(|live| live.pid),
            start_ticks: self.live.as_ref().map_or(0, |live| live.start_ticks),
            nonce: self.nonce,
            spec_hash: self.running_hash,
            cgroup: self.live.as_ref().and_then(|live| live.cgroup.clone()),
            log_from: self.live.as_ref().map_or(0, |live| live.log_from),
            limits: self
                .live
                .as_ref()
                .map(|live| live.limits.clone())
                .unwrap_or_default(),
        });
        Run {
            started_ms: self.started_ms,
            ready_ms: self.ready_ms,
            log: self.log.resume(),
            ..Run::new(
                self.name.clone(),
                self.core.memory(),
                process,
                now,
                clock::now_ms(),
            )
        }
    }
}
