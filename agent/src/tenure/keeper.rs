//! The task that owns the tenure: one timer, one channel of what has happened.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tanako_fleet::{
    ProcessName,
    failover::brake_limit,
    tenure::{Effect, Input, Spans, Way},
};
use tanako_store::StoreError;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Parts, Shared,
    claim::{self, Claim, Wanted},
    comeback, fence,
    file::{self, Written},
    now, peers, reap,
};
use crate::{history::Severity, registry::Hosts, supervisor::boot_id};

/// What has happened and waits to be taken in.
const INBOX_MAX: usize = 1024;
/// The timer follows a clock that stands still while the machine sleeps, so it is looked up often.
const NAP_MAX: Duration = Duration::from_millis(250);
/// Between two looks at whether the fence runs.
const FENCE_EVERY: Duration = Duration::from_secs(1);
/// Pause after the store did not say what belongs to this host.
const RETRY: Duration = Duration::from_millis(300);

/// To the task, from what it has begun.
enum Note {
    Input(Input),
    /// A peer was asked; what it said.
    Asked {
        peer: String,
        cut: Option<u64>,
    },
    /// A tenure was begun or taken again under that name, its key at that revision.
    Named(String, u64, Input),
    /// The key that the last agent left came into being at that revision.
    Found(u64),
    /// What is another host's has been forgotten.
    Settled(Vec<ProcessName>),
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    parts: Parts,
    tracker: TaskTracker,
    spans: Spans,
    boot: String,
    notes: mpsc::Sender<Note>,
    inbox: Option<mpsc::Receiver<Note>>,
    /// Name for the next tenure, the same until it has begun: an answer may be lost.
    next_instance: String,
    /// Tenures that this host had and whose processes are gone.
    over: Vec<String>,
    /// Processes that ran when the last tenure ended.
    interrupted: BTreeSet<ProcessName>,
    asking: BTreeSet<String>,
    written: Written,
    cancel: CancellationToken,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, parts: Parts, tracker: TaskTracker) -> Self {
        let (notes, inbox) = mpsc::channel(INBOX_MAX);
        let spans = shared.core().spans();
        Self {
            shared,
            parts,
            tracker,
            spans,
            boot: boot_id(),
            notes,
            inbox: Some(inbox),
            next_instance: name(),
            over: Vec::new(),
            interrupted: BTreeSet::new(),
            asking: BTreeSet::new(),
            written: Written::default(),
            cancel: CancellationToken::new(),
        }
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) {
        self.cancel = cancel.clone();
        let Some(mut inbox) = self.inbox.take() else {
            return;
        };
        let mut hosts = self.parts.registry.watch();
        let limit = self.limit(&hosts.borrow_and_update().clone());
        self.written.instance = self.shared.view.borrow().instance.clone();
        self.step(Input::Stay(limit)).await;
        self.look_up();
        let mut guard = tokio::time::interval(FENCE_EVERY);
        loop {
            let (at, due) = (now(), self.shared.core().deadline(now()));
            let nap = due.map_or(NAP_MAX, |due| Duration::from_millis(due.saturating_sub(at)));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                note = inbox.recv() => match note {
                    Some(note) => self.note(note).await,
                    None => return,
                },
                changed = hosts.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let limit = self.limit(&hosts.borrow_and_update().clone());
                    self.step(Input::Stay(limit)).await;
                }
                _ = guard.tick() => self.guard(),
                () = sleep(nap.min(NAP_MAX)) => self.step(Input::Tick).await,
            }
        }
    }

    /// The tenure of the last agent goes on: since when its key is there.
    fn look_up(&self) {
        let view = self.shared.view.borrow().clone();
        if view.instance.is_empty() || !view.settled {
            return;
        }
        let (store, host) = (self.parts.store.clone(), self.shared.settings.host.clone());
        self.spawn(async move {
            loop {
                match claim::found(&*store, &host, &view.instance).await {
                    Ok(taken_at) => return Note::Found(taken_at),
                    Err(error) => {
                        tracing::debug!(%error, "the key of this host cannot be read yet");
                        sleep(RETRY).await;
                    }
                }
            }
        });
    }

    /// Sees to it that the fence runs, also when somebody has killed it.
    fn guard(&self) {
        if let Some(program) = &self.shared.settings.fence
            && let Err(error) = fence::ensure(program, &self.shared.settings.data_dir)
        {
            tracing::error!(%error, "the fence of this host cannot be started");
        }
    }

    /// How many peers must be cut off for this host to stay, by the size of the fleet.
    fn limit(&self, hosts: &Hosts) -> u32 {
        let tenured = hosts
            .values()
            .filter(|known| known.present.is_some() || known.is_tenured())
            .count()
            .max(1);
        u32::try_from(brake_limit(tenured, self.shared.settings.share)).unwrap_or(u32::MAX)
    }

    async fn note(&mut self, note: Note) {
        match note {
            Note::Input(input) => {
                if let Input::Renewed { way, .. } = &input {
                    let relayed = *way == Way::Relayed;
                    self.shared.view.send_if_modified(|view| {
                        std::mem::replace(&mut view.relayed, relayed) != relayed
                    });
                }
                self.step(input).await;
            }
            Note::Asked { peer, cut } => {
                self.asking.remove(&peer);
                if let Some(asked_at) = cut {
                    self.step(Input::Cut { peer, asked_at }).await;
                }
            }
            Note::Found(taken_at) => {
                self.shared
                    .view
                    .send_modify(|view| view.taken_at = taken_at);
            }
            Note::Named(instance, taken_at, input) => {
                let before = self.shared.view.borrow().instance.clone();
                let begun = instance != before;
                self.shared.view.send_modify(|view| {
                    view.instance.clone_from(&instance);
                    view.taken_at = taken_at;
                });
                self.written.instance = instance;
                if begun {
                    self.shared.view.send_modify(|view| view.settled = false);
                    self.next_instance = name();
                    self.over.push(before);
                    let kept = self.over.len().saturating_sub(8);
                    self.over.drain(..kept);
                    self.settle();
                }
                self.step(input).await;
            }
            Note::Settled(strangers) => self.settled(&strangers).await,
        }
    }

    async fn step(&mut self, input: Input) {
        let effects = self.shared.core().step(now(), input);
        for effect in &effects {
            if *effect == Effect::Stop {
                // Nothing is started from here on.
                self.shared.view.send_modify(|view| {
                    view.until = 1;
                    view.settled = false;
                    view.taken_at = 0;
                });
            }
        }
        self.publish();
        for effect in effects {
            self.perform(effect).await;
        }
    }

    /// First on disk, for those who guard the processes; then to the processes.
    fn publish(&mut self) {
        let (until, staying, lease, stay) = {
            let core = self.shared.core();
            let at = now();
            let until = core.until(at);
            (until, core.is_staying(at), core.lease(), core.stay())
        };
        let lease = lease.unwrap_or(self.written.lease);
        let written = Written {
            boot: self.boot.clone(),
            lease,
            ttl: self.shared.settings.ttl_ms(),
            until,
            stay,
            agent: std::process::id(),
            instance: self.written.instance.clone(),
        };
        if written != self.written || until == 0 {
            if let Err(error) = file::write(&self.shared.settings.data_dir, &written) {
                // The fence goes by what it has: it may kill too early, never too late.
                tracing::error!(%error, "the tenure cannot be written down; is the disk full?");
            }
            self.written = written;
        }
        let mut told = None;
        self.shared.view.send_if_modified(|view| {
            let before = view.clone();
            view.until = i64::try_from(until).unwrap_or(i64::MAX).max(1);
            view.staying = staying;
            told = (before.staying != view.staying).then_some(view.staying);
            *view != before
        });
        match told {
            Some(true) => self.tell(
                Severity::Error,
                "lease-ended-staying",
                "the store is away; this host goes on, for other hosts are cut off as well",
            ),
            Some(false) if until > 0 => self.tell(
                Severity::Info,
                "lease-back",
                "this host holds its lease again",
            ),
            _ => {}
        }
    }

    fn spawn(&self, work: impl Future<Output = Note> + Send + 'static) {
        let notes = self.notes.clone();
        let cancel = self.cancel.clone();
        self.tracker
            .spawn(cancel.run_until_cancelled_owned(async move {
                let note = work.await;
                // The task may have ended.
                let _ = notes.send(note).await;
            }));
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Begin | Effect::Reclaim => self.claim(effect == Effect::Reclaim),
            Effect::Renew { lease, way } => self.renew(lease, way),
            Effect::Ask => self.ask(),
            Effect::Store(stay) => {
                let (store, host) = (self.parts.store.clone(), self.shared.settings.host.clone());
                let instance = self.written.instance.clone();
                self.spawn(async move {
                    let stored = claim::store_stay(&*store, &host, &instance, stay).await;
                    Note::Input(match stored {
                        Ok(true) => Input::Stored(stay),
                        _ => Input::NotStored,
                    })
                });
            }
            Effect::Stop => self.stop().await,
        }
    }

    fn claim(&self, again: bool) {
        let parts = self.parts.clone();
        let settings = self.shared.settings.clone();
        let instance = if again {
            self.written.instance.clone()
        } else {
            self.next_instance.clone()
        };
        let mut over = self.over.clone();
        if !again {
            over.push(self.shared.view.borrow().instance.clone());
        }
        let stay = self.shared.core().stay();
        self.spawn(async move {
            let wanted = Wanted {
                host: &settings.host,
                instance: &instance,
                over: &over,
                ttl: settings.ttl,
                stay,
                again,
            };
            match claim::take(&*parts.store, &wanted).await {
                Ok(Claim::Taken {
                    lease,
                    sent_at,
                    stay,
                    taken_at,
                }) => {
                    let began = Input::Began {
                        lease,
                        sent_at,
                        stay,
                    };
                    Note::Named(instance, taken_at, began)
                }
                Ok(Claim::Wait) => Note::Input(Input::NotBegan),
                Ok(Claim::Released) => Note::Input(Input::Released),
                Err(error) => {
                    tracing::debug!(%error, "this host has no lease yet");
                    Note::Input(Input::NotBegan)
                }
            }
        });
    }

    fn renew(&mut self, lease: u64, way: Way) {
        let patience = Duration::from_millis(self.spans.patience);
        let relayed = way == Way::Relayed;
        if relayed {
            let (dial, host) = (self.parts.dial.clone(), self.shared.settings.host.clone());
            let peers = self.peers();
            self.spawn(async move {
                Note::Input(peers::relay(dial, &host, peers, lease, patience).await)
            });
        } else {
            let store = self.parts.store.clone();
            self.spawn(async move {
                let sent_at = now();
                Note::Input(match timeout(patience, store.keep_alive(lease)).await {
                    Ok(Ok(())) => Input::Renewed {
                        lease,
                        way,
                        sent_at,
                    },
                    Ok(Err(StoreError::NoLease(_))) => Input::Ended { lease },
                    Ok(Err(_)) | Err(_) => Input::NotRenewed { lease, way },
                })
            });
        }
    }

    fn peers(&self) -> Vec<String> {
        let own = self.parts.registry.host();
        let hosts = self.parts.registry.hosts();
        hosts
            .iter()
            .filter(|(name, known)| name.as_str() != own && known.is_tenured())
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn ask(&mut self) {
        let within = Duration::from_millis(self.spans.ask * 2);
        let stay = self.shared.core().stay();
        for peer in peers::sample(self.peers(), stay, &self.asking) {
            self.asking.insert(peer.clone());
            let (dial, own) = (self.parts.dial.clone(), self.shared.settings.host.clone());
            let asked_at = now();
            self.spawn(async move {
                let answer = peers::standing(&*dial, &own, &peer, within).await;
                let cut = answer.is_some_and(|standing| standing.cut && standing.held);
                Note::Asked {
                    peer,
                    cut: cut.then_some(asked_at),
                }
            });
        }
    }

    /// Kills everything that only the owner may run.
    async fn stop(&mut self) {
        let table = self.parts.supervisor.status().borrow().clone();
        let running: Vec<ProcessName> = table
            .iter()
            .filter(|(name, status)| reap::is_owned(name) && status.state.is_live())
            .map(|(name, _)| name.clone())
            .collect();
        let data_dir = self.shared.settings.data_dir.clone();
        let supervisor = self.parts.supervisor.clone();
        if !running.is_empty() {
            tracing::error!(
                processes = running.len(),
                "the lease of this host has ended: its bots are killed"
            );
            self.tell(
                Severity::Error,
                "lease-lost",
                &format!(
                    "the lease of this host has ended; {} processes are stopped here, for they may be \
                     started elsewhere",
                    running.len()
                ),
            );
        }
        self.interrupted.extend(running.iter().cloned());
        self.spawn(async move {
            // At once; what the supervisor thinks of it comes after.
            reap::kill_all(&data_dir).await;
            for name in running {
                // Not started again by the supervisor's own policy.
                let _ = supervisor.stop(&name).await;
            }
            reap::kill_all(&data_dir).await;
            Note::Input(Input::Stopped)
        });
    }

    /// Before anything is started: what is another host's by now is forgotten.
    fn settle(&self) {
        let (parts, host) = (self.parts.clone(), self.shared.settings.host.clone());
        self.spawn(async move {
            loop {
                match comeback::forget_strangers(&parts, &host).await {
                    Ok(strangers) => return Note::Settled(strangers),
                    Err(error) => {
                        tracing::debug!(%error, "what belongs to this host is not known yet");
                        sleep(RETRY).await;
                    }
                }
            }
        });
    }

    async fn settled(&mut self, strangers: &[ProcessName]) {
        if !strangers.is_empty() {
            let count = strangers.len();
            self.tell(
                Severity::Warning,
                "processes-moved-away",
                &format!(
                    "{count} processes that ran here are other hosts' by now; they are forgotten"
                ),
            );
        }
        self.shared.view.send_modify(|view| view.settled = true);
        for name in std::mem::take(&mut self.interrupted) {
            if !strangers.contains(&name) {
                // The coordinator says so too when it knows better.
                let _ = self.parts.supervisor.start_process(&name).await;
            }
        }
    }

    fn tell(&self, severity: Severity, kind: &'static str, message: &str) {
        let host = &self.shared.settings.host;
        self.parts
            .history
            .event(severity, kind, host, message.to_owned());
    }
}

/// A name for a tenure.
pub(super) fn name() -> String {
    format!("{:032x}", fastrand::u128(..))
}
