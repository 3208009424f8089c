//! The office of the coordinator: among all agents that share a store, one decides.
//!
//! ```text
//!              vacant, elected            loaded
//!  Waiting ───────────────────► (begins) ────────► Holding ──┐
//!    ▲  ▲                          ▲ ▲                       │ a commit's outcome is unknown:
//!    │  │                          │ └───────────────────────┤ read again
//!    │  │        same lease lives  │                         │ the store is silent
//!    │  │                         Away ◄─────────────────────┤
//!    │  └──────────────────────────┘ lease ended             │
//!    └───────────────────────────────────────────────────────┘ another was elected
//! ```
//!
//! - `lapse`: how long a lease surely lives; pure.
//! - `keeper`: keeps one lease alive.
//! - `task`: campaigns, begins and ends terms. `course`: what can become of them.
//! - `authority`: the store for those who outlive terms. `compact`: its history.
//! - [`Front`]: what the rest of the agent asks, whoever decides. [`Wanted`]: what is wanted, likewise.
//!
//! A *term* is one life of the coordinator: it begins by reading everything from the store and ends
//! when the office passes, when the store is silent for too long, or when nobody knows what became of
//! a commit. All that a term writes is fenced ([`tanako_store::Fenced`]), so a term that does not know
//! yet that it is over changes nothing. Terms end; processes run on.
//!
//! Whoever is elected decides for all hosts: its orders carry the epoch of the office, and hosts refuse
//! those of an older one ([`crate::hosts`]).

mod authority;
mod compact;
mod course;
mod front;
mod keeper;
mod lapse;
mod task;
mod wanted;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tanako_fleet::spec;
use tanako_proto::fleet::v1::Problem;
use tanako_store::{Store, etcd::EtcdStore};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::coordinator::Parts;

use authority::Authority;
pub use front::Front;
pub use wanted::Wanted;

/// Key of the office.
pub const KEY: &str = "coordinator";

/// How the office is sought.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of the lease. Nobody else can be elected before it has ended.
    pub ttl: Duration,
    /// Whether agents of other hosts use the store too.
    pub shared: bool,
    /// File that holds the lease of the office while it is held, for the next agent on this data
    /// directory; `None` = leases do not outlive the agent.
    pub memory: Option<PathBuf>,
}

/// The store, fenced by the present term.
type Term = Arc<dyn Store>;

/// Where this agent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known yet.
    Starting,
    /// This agent decides. `trouble`: the store has not answered lately.
    Holding {
        /// Why the next decision may fail.
        trouble: Option<String>,
    },
    /// Another agent decides.
    Waiting {
        /// Its host.
        leader: String,
    },
    /// The lease of an agent that was killed on this host has yet to end.
    Inheriting,
    /// The store does not answer: nobody decides here.
    Away {
        /// What it said.
        why: String,
    },
    /// What is stored cannot be used: nobody decides here.
    Unusable {
        /// Why.
        why: String,
    },
}

impl Standing {
    /// Why the fleet is not healthy; `None` = as far as this goes it is.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Holding { trouble: None } => None,
            Self::Starting => Some("the agent is starting".to_owned()),
            Self::Holding {
                trouble: Some(why), ..
            } => Some(format!("the store does not answer: {why}")),
            Self::Waiting { leader } => Some(format!(
                "this agent stands by; the agent of host {leader} decides"
            )),
            Self::Inheriting => Some(
                "the office is held under this host's name: if by an agent that was killed, that ends \
                 within seconds; if by another host, give each its own --host"
                    .to_owned(),
            ),
            Self::Away { why } => Some(format!("no decisions are taken, processes run on: {why}")),
            Self::Unusable { why } => Some(format!("no decisions are taken: {why}")),
        }
    }

    /// What a request gets that needs a decision.
    pub fn problem(&self) -> Problem {
        let problem = |code: &str, hint: &str| {
            Problem::new(code, "coordinator", "nothing is decided here at the moment")
                .cause(self.reason().unwrap_or_default())
                .hint(hint)
                .retryable()
        };
        match self {
            Self::Starting | Self::Inheriting | Self::Holding { .. } => {
                problem("not-coordinator", "try again")
            }
            Self::Waiting { .. } => problem("not-coordinator", "ask the agent of that host"),
            Self::Away { .. } => problem(
                "store-unavailable",
                "check the etcd servers (etcdctl endpoint health); it goes on by itself when they answer",
            ),
            Self::Unusable { .. } => problem(
                "store-unavailable",
                "look at the agent's log; it goes on by itself when the store can be used",
            ),
        }
    }
}

/// Keeps `keep` of the history of `store` while this agent decides, until cancelled.
pub fn keep_history(
    store: Arc<EtcdStore>,
    front: &Front,
    keep: Duration,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) {
    let task = compact::compact(store, front.standing(), keep);
    tracker.spawn(cancel.run_until_cancelled_owned(task));
}

/// The ends of the channels that the office publishes on; made before it starts, so that those that
/// it needs can follow its terms.
pub struct Seat {
    terms: watch::Sender<Option<Term>>,
}

impl Seat {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            terms: watch::Sender::new(None),
        }
    }

    /// `store` for those who outlive terms: each commit is fenced by the term in which it is made, and
    /// refused as [`tanako_store::StoreError::Fenced`] between terms. Whoever uses it compares what it
    /// builds on, for another agent may have decided in between.
    pub fn authorize(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Authority {
            store,
            term: self.terms.subscribe(),
        })
    }

    /// Takes the office when it is vacant and holds it until cancelled. `parts.store` is the store
    /// without a fence. Returns at once; [`Front::standing`] says how it goes.
    pub fn start(
        self,
        settings: Settings,
        parts: Parts,
        places: spec::Places,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Front {
        let (task, front) = task::Task::new(settings, parts, self.terms, places, cancel);
        tracker.spawn(task.run());
        front
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self::new()
    }
}
