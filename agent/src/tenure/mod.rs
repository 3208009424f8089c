//! Whether this host may own processes: carries out what [`tanako_fleet::tenure`] decides.
//!
//! ```text
//!   registry ── size of the fleet ──►┌────────┐── renew, begin, reclaim ──► store, or a peer
//!   peers ◄── how do you stand? ─────│ keeper │
//!   peers ── how do you stand? ─────►└───┬────┘──► run/tenure ──► fence (a process of its own)
//!                                        │ watch: until when
//!              supervisor's starts ◄─────┼─────► worker socket ──► bots
//!                                        └─ past it: every shard process is killed
//! ```
//!
//! - `keeper`: the task that owns the tenure; `claim`: its transactions; `peers`: its questions.
//! - `reap`: kills what only the owner may run. `comeback`: what a new tenure begins with.
//! - [`file`](mod@file): what is written down; [`fence`]: the process that goes by it when the agent is gone.
//! - [`failover`]: the coordinator's side: who is lost, and whose processes may be moved.
//!
//! On one machine there is none of this ([`Tenure::unbounded`]).

mod claim;
mod comeback;
pub mod failover;
pub mod fence;
pub mod file;
mod keeper;
mod leased;
mod peers;
mod reap;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_fleet::{ProcessKind, ProcessSpec, tenure as core};
use tanako_proto::{fleet::v1::Problem, host::v1 as wire};
use tanako_store::{Store, StoreError, Txn};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::boot_ms,
    history::History,
    hosts::Dial,
    registry::{HostRecord, Registry, host_key},
    supervisor::{StartGate, Supervisor, boot_id},
    vault::Vault,
};

/// Lets bots start while this host owns them; then asks the gate behind it.
pub struct Gate {
    behind: Arc<dyn StartGate>,
    tenure: Tenure,
}

impl Gate {
    /// In front of another gate.
    pub fn new(behind: Arc<dyn StartGate>, tenure: Tenure) -> Self {
        Self { behind, tenure }
    }
}

impl StartGate for Gate {
    fn acquire(&self, spec: &ProcessSpec, attempt: u64) -> BoxFuture<'static, Result<(), String>> {
        let behind = self.behind.clone();
        let mut view = self.tenure.watch();
        let (spec, guards) = (spec.clone(), self.guards(spec));
        Box::pin(async move {
            while guards && !may(&view.borrow_and_update()) {
                // Renewed or begun: both are a change.
                if view.changed().await.is_err() {
                    return Err("the agent is stopping".to_owned());
                }
            }
            if spec.gated {
                behind.acquire(&spec, attempt).await
            } else {
                Ok(())
            }
        })
    }

    fn guards(&self, spec: &ProcessSpec) -> bool {
        self.tenure.is_bounded() && spec.kind == ProcessKind::Shard
    }

    fn may_start(&self, spec: &ProcessSpec) -> Result<(), String> {
        self.tenure.may_start(spec)
    }

    fn environment(&self, spec: &ProcessSpec, attempt: u64) -> Vec<(&'static str, String)> {
        self.behind.environment(spec, attempt)
    }
}

/// How the tenure of this host is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this host.
    pub host: String,
    /// The agent's data directory: its children are known by it.
    pub data_dir: PathBuf,
    /// Life of the lease.
    pub ttl: Duration,
    /// Part of the hosts that may be lost at once: [`tanako_fleet::failover::SHARE`].
    pub share: f64,
    /// The program that is started as the fence; `None` = no fence.
    pub fence: Option<PathBuf>,
}

impl Settings {
    fn ttl_ms(&self) -> u64 {
        millis(self.ttl)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What a tenure needs of the rest of the agent once that runs.
#[derive(Clone)]
pub struct Parts {
    /// The store, without a fence.
    pub store: Arc<dyn Store>,
    /// The hosts.
    pub registry: Registry,
    /// The way to them.
    pub dial: Arc<dyn Dial>,
    /// The processes.
    pub supervisor: Supervisor,
    /// Their sessions.
    pub vault: Vault,
    /// What happened.
    pub history: History,
}

/// Why the next agent could not be given a tenure.
#[derive(Debug, thiserror::Error)]
pub enum HandOnError {
    /// The store does not answer.
    #[error("the lease of this host could not be taken")]
    Store(#[from] StoreError),
    /// The file cannot be written.
    #[error("the lease of this host could not be written down")]
    File(#[from] io::Error),
    /// Another agent goes by the same name.
    #[error("another agent goes by the name {0} there")]
    Taken(String),
}

/// Takes a lease for the agent that comes after this one and uses `store`, and writes it down, so that it
/// takes over what runs instead of stopping it. For the one host of a fleet: it stays without the store, too.
pub async fn hand_on(
    store: &dyn Store,
    host: &str,
    data_dir: &Path,
    ttl: Duration,
) -> Result<(), HandOnError> {
    let record = HostRecord {
        name: host.to_owned(),
        ..HostRecord::default()
    };
    let key = host_key(host);
    let value = serde_json::to_vec(&record).map_err(io::Error::other)?;
    // One that is there already stays as it is.
    store
        .commit(Txn::new().if_absent(&key).put(&key, value))
        .await?;
    let instance = keeper::name();
    let wanted = claim::Wanted {
        host,
        instance: &instance,
        over: &[],
        ttl,
        stay: 0,
        again: false,
    };
    let claim::Claim::Taken { lease, sent_at, .. } = claim::take(store, &wanted).await? else {
        return Err(HandOnError::Taken(host.to_owned()));
    };
    let ttl = millis(ttl);
    let spans = core::Spans::of(ttl);
    file::write(
        data_dir,
        &file::Written {
            boot: boot_id(),
            instance,
            lease,
            ttl,
            until: sent_at + spans.ttl - spans.margin,
            stay: 0,
            agent: std::process::id(),
        },
    )?;
    Ok(())
}

/// Where this host stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Until when what runs here may act, on CLOCK_BOOTTIME in milliseconds; 0 = for ever (one machine),
    /// 1 = it may not.
    pub until: i64,
    /// Random name of the tenure; empty = there is none.
    pub instance: String,
    /// The lease has ended; it goes on because its peers are cut off from the store too.
    pub staying: bool,
    /// The lease is prolonged through a peer.
    pub relayed: bool,
    /// What has no business here any more has been stopped: processes may be started.
    pub settled: bool,
    /// Revision at which the host's key came into being for this tenure; 0 = not known.
    pub taken_at: u64,
}

/// A handle on the tenure of this host; clones are cheap and equal.
#[derive(Clone)]
pub struct Tenure {
    /// `None` on one machine.
    shared: Option<Arc<Shared>>,
    view: watch::Receiver<View>,
}

impl fmt::Debug for Tenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenure")
            .field("view", &*self.view.borrow())
            .finish_non_exhaustive()
    }
}

/// What the keeper shares with those who ask.
struct Shared {
    settings: Settings,
    core: Mutex<core::Tenure>,
    view: watch::Sender<View>,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, core::Tenure> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CLOCK_BOOTTIME as the cores have it.
fn now() -> u64 {
    u64::try_from(boot_ms()).unwrap_or(0)
}

impl Tenure {
    /// The tenure of one machine: it owns what it runs, for ever.
    pub fn unbounded() -> Self {
        let view = View {
            settled: true,
            ..View::default()
        };
        Self {
            shared: None,
            view: watch::channel(view).1,
        }
    }

    /// Takes up what the last agent of this data directory wrote down. Nothing is done before
    /// [`Self::start`].
    pub fn open(mut settings: Settings) -> Self {
        let written = file::read(&settings.data_dir);
        if let Some(known) = &written
            && known.until > now()
            && known.ttl != 0
        {
            // A tenure keeps the life of lease with which it began: the store ends the lease after that, and others
            // judge this host by it. To go by a longer one would be to believe in it for longer than it lives.
            settings.ttl = Duration::from_millis(known.ttl);
        }
        let ttl = settings.ttl_ms();
        let (core, view) = match written {
            Some(known) if known.until > now() => {
                let core = core::Tenure::adopted(ttl, now(), known.lease, known.until, known.stay);
                let view = View {
                    until: i64::try_from(known.until).unwrap_or(i64::MAX),
                    instance: known.instance,
                    settled: true,
                    ..View::default()
                };
                (core, view)
            }
            // Whatever is left over of it is stopped at the first step.
            Some(known) => (
                // One that goes on whatever its peers say would go on for ever.
                core::Tenure::adopted(ttl, now(), known.lease, 0, known.stay.max(1)),
                View {
                    until: 1,
                    instance: known.instance,
                    ..View::default()
                },
            ),
            // Nobody knows whose it is what may be running here.
            None => (
                core::Tenure::adopted(ttl, now(), 0, 0, 1),
                View {
                    until: 1,
                    ..View::default()
                },
            ),
        };
        let (view, watched) = watch::channel(view);
        let shared = Shared {
            settings,
            core: Mutex::new(core),
            view,
        };
        Self {
            shared: Some(Arc::new(shared)),
            view: watched,
        }
    }

    /// Keeps it until cancelled. After that the processes go on for as long as the lease carries them.
    pub fn start(&self, parts: Parts, cancel: CancellationToken, tracker: &TaskTracker) {
        if let Some(shared) = &self.shared {
            let keeper = keeper::Keeper::new(shared.clone(), parts, tracker.clone());
            tracker.spawn(keeper.run(cancel));
        }
    }

    /// Where this host stands, as a value that changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// `store` for what this host writes of its own: each commit holds only within the tenure in which it is
    /// made, and is [`tanako_store::StoreError::Fenced`] outside of one.
    pub fn fence(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        match &self.shared {
            None => store,
            Some(shared) => Arc::new(leased::Leased {
                store,
                tenure: self.clone(),
                host: shared.settings.host.clone(),
            }),
        }
    }

    /// Name of the tenure; empty = there is none.
    pub fn instance(&self) -> String {
        self.view.borrow().instance.clone()
    }

    /// Whether there is a bound at all.
    pub fn is_bounded(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether this process may be started here now; why not.
    pub fn may_start(&self, spec: &ProcessSpec) -> Result<(), String> {
        if spec.kind != ProcessKind::Shard {
            return Ok(());
        }
        let view = self.view.borrow();
        if may(&view) {
            return Ok(());
        }
        Err(reason(&view).unwrap_or_else(|| "this host holds no lease".to_owned()))
    }

    /// Why the fleet is not healthy, as far as this host's lease goes.
    pub fn reason(&self) -> Option<String> {
        reason(&self.view.borrow())
    }

    /// What a peer is told that asks how this host stands.
    pub fn standing(&self) -> wire::Standing {
        let Some(shared) = &self.shared else {
            return wire::Standing::default();
        };
        let instance = self.view.borrow().instance.clone();
        let core = shared.core();
        let at = now();
        let standing = core.standing(at);
        wire::Standing {
            host: shared.settings.host.clone(),
            store: core.hears_store(at),
            lease_age_ms: standing.contact_ages.last().copied().unwrap_or(u64::MAX),
            held: standing.tenured,
            cut: standing.cut,
            contact_ages_ms: standing.contact_ages,
            instance,
            ..wire::Standing::default()
        }
    }
}

/// What this host's agent answers others about tenures; clones are cheap.
#[derive(Clone)]
pub struct Answering {
    /// This host's own.
    pub tenure: Tenure,
    /// The hosts.
    pub registry: Registry,
    /// The store, without a fence.
    pub store: Arc<dyn Store>,
}

impl Answering {
    /// Prolongs the lease of a peer that cannot reach the store. Only the one that it is known to hold;
    /// that of another host it is not given.
    pub async fn relay(
        &self,
        request: &wire::RelayRequest,
    ) -> Result<wire::RelayReply, Box<Problem>> {
        let hosts = self.registry.hosts();
        let lease = u64::try_from(request.lease).unwrap_or(0);
        let holder = hosts.iter().find_map(|(host, known)| {
            let presence = known.present.as_ref()?;
            (presence.lease == lease).then_some(host)
        });
        match holder {
            // It may have been begun a moment ago; it will be known.
            None => return Ok(wire::RelayReply::default()),
            Some(holder) if *holder != request.host => {
                let host = request.host.clone();
                let text = format!("host {host} asks to prolong the lease of host {holder}");
                let problem = Problem::new("denied", host, text)
                    .cause("an agent prolongs its own lease only")
                    .hint("look at what runs on that host: its agent does not do this");
                return Err(Box::new(problem));
            }
            Some(_) => {}
        }
        Ok(match self.store.keep_alive(lease).await {
            Ok(()) => wire::RelayReply {
                kept: true,
                ended: false,
            },
            Err(error) => wire::RelayReply {
                kept: false,
                ended: matches!(error, StoreError::NoLease(_)),
            },
        })
    }
}

fn may(view: &View) -> bool {
    view.until == 0 || view.settled && boot_ms() < view.until
}

fn reason(view: &View) -> Option<String> {
    if view.until == 0 {
        None
    } else if boot_ms() >= view.until {
        Some(
            "this host holds no lease: its bots are stopped, and may be running on other hosts; it takes \
             part again when it reaches the store"
                .to_owned(),
        )
    } else if view.staying {
        Some(
            "the lease of this host has ended with the store away; its bots run on, for other hosts are \
             cut off as well"
                .to_owned(),
        )
    } else if view.relayed {
        Some("this host does not reach the store; another host prolongs its lease".to_owned())
    } else if !view.settled {
        Some("this host is being told which processes are its own".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenure_keeps_the_life_of_its_lease() {
        let dir = tempfile::tempdir().expect("a directory");
        let written = file::Written {
            boot: boot_id(),
            instance: "i".to_owned(),
            lease: 7,
            ttl: 5_000,
            until: now() + 60_000,
            stay: 0,
            agent: 1,
        };
        file::write(dir.path(), &written).expect("writes");
        let spans = |seconds| {
            let tenure = Tenure::open(Settings {
                host: "a".to_owned(),
                data_dir: dir.path().to_owned(),
                ttl: Duration::from_secs(seconds),
                share: tanako_fleet::failover::SHARE,
                fence: None,
            });
            let shared = tenure.shared.expect("it is bounded");
            let core = shared.core();
            (core.spans().ttl, core.until(now()))
        };
        for seconds in [3, 5, 15] {
            assert_eq!(spans(seconds), (5_000, written.until), "{seconds} s");
        }
        // One that is over does not bind the next one.
        let over = file::Written {
            until: 1,
            ..written.clone()
        };
        file::write(dir.path(), &over).expect("writes");
        assert_eq!(spans(15), (15_000, 0));
    }
}
