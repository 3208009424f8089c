//! The whole fleet as any of its agents shows it.
//!
//! ```text
//!   this host: board ── report ──┐                        ┌── watchers, status, logs, events, …
//!                                ▼                        ▼
//!   other hosts ── follow ──► hub task (owns the core) ── look
//!                  mpsc 256                               mpsc 64
//! ```
//!
//! While somebody reads, or always in a small fleet, the hub follows every other host. What they say
//! goes into one view; readers ask for what is newer than what they have. Nothing of that needs the
//! store. What changes the fleet goes to the agent that holds the office (`forward`).
//!
//! - [`core`]: what the hosts said last, as one view; pure. `rows`: its processes. [`show`]: what readers
//!   are told of it; pure.
//! - [`report`]: what this host tells; pure. [`board`]: where it is composed. [`feed`]: for one follower.
//! - [`follow`]: one other host, for as long as it is wanted. [`known`]: which there are.
//! - [`merge`]: lines of many hosts by time; pure. [`peer`]: questions to other agents. [`forward`]: what
//!   changes the fleet, to the agent that decides. [`shards`]: questions to shards.
//! - `task`: owns the core.

pub mod board;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod feed;
pub mod follow;
pub mod forward;
pub mod known;
pub mod merge;
pub mod peer;
pub mod report;
mod rows;
pub mod shards;
pub mod show;
mod task;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tanako_proto::fleet::v1 as wire;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::hosts::Dial;

use board::Board;
use core::{Core, Known, Now};
use show::Cursor;

/// Looks that wait.
const LOOKS_MAX: usize = 64;

/// A look at the view.
type Look = Box<dyn FnOnce(&Core, Now) + Send>;

/// The hosts of the fleet as the store has them; `None` = not known yet.
pub type Hosts = Option<Arc<BTreeMap<String, Known>>>;

/// The latest changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Number of the latest change.
    pub change: u64,
    /// Number of the latest one that a reader wants to hear of at once.
    pub urgent: u64,
}

/// What is counted for `/metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Other hosts that are followed, by whether they are heard of.
    pub live: u64,
    /// Followed hosts that are silent, or have not said anything yet.
    pub silent: u64,
    /// Processes in the view.
    pub processes: u64,
    /// Updates taken in.
    pub updates: u64,
    /// Updates that came too late or twice.
    pub stale: u64,
    /// Since the host that was heard of the longest ago among the live ones.
    pub lag: Duration,
}

/// A handle on the hub; clones are cheap.
#[derive(Clone)]
pub struct Hub {
    looks: mpsc::Sender<Look>,
    pulse: watch::Receiver<Pulse>,
    figures: watch::Receiver<Figures>,
    board: Arc<Board>,
    dial: Option<Arc<dyn Dial>>,
}

/// The agent is on its way out.
#[derive(Debug, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopping;

impl Hub {
    /// Starts the task. `dial` is the way to other agents; `None` on one machine.
    pub fn start(
        board: Arc<Board>,
        dial: Option<Arc<dyn Dial>>,
        hosts: watch::Receiver<Hosts>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (looks, looks_rx) = mpsc::channel(LOOKS_MAX);
        let (pulse, pulse_rx) = watch::channel(Pulse::default());
        let (figures, figures_rx) = watch::channel(Figures::default());
        let task = task::Task::new(
            board.clone(),
            dial.clone(),
            hosts,
            (pulse, figures),
            tracker.clone(),
        );
        tracker.spawn(task.run(looks_rx, cancel));
        Self {
            looks,
            pulse: pulse_rx,
            figures: figures_rx,
            board,
            dial,
        }
    }

    /// Name of this host.
    pub fn host(&self) -> &str {
        self.board.host()
    }

    /// This host, for those who follow it.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The way to other agents; `None` on one machine.
    pub fn dial(&self) -> Option<&Arc<dyn Dial>> {
        self.dial.as_ref()
    }

    /// The latest changes, as a value that changes.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.clone()
    }

    /// What is counted.
    pub fn figures(&self) -> watch::Receiver<Figures> {
        self.figures.clone()
    }

    /// Looks at the view as it is now.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Now) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (answer, reply) = oneshot::channel();
        let look: Look = Box::new(move |core, now| {
            // Who asked may have left.
            let _ = answer.send(look(core, now));
        });
        self.looks.send(look).await.map_err(|_| Stopping)?;
        reply.await.map_err(|_| Stopping)
    }

    /// Waits until each host that can answer has done so, but no longer than `within`.
    pub async fn settled(&self, within: Duration) -> Result<(), Stopping> {
        let until = Instant::now() + within;
        let mut pulse = self.pulse();
        while !self.look(|core, _| core.is_settled()).await? {
            match timeout_at(until, pulse.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Stopping),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// What a reader with this cursor does not have yet.
    pub async fn next(
        &self,
        mut cursor: Cursor,
    ) -> Result<(Cursor, Option<wire::FleetUpdate>), Stopping> {
        self.look(move |core, now| {
            let update = core.next(&mut cursor, now);
            (cursor, update)
        })
        .await
    }
}
