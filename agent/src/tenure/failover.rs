//! The coordinator's side: watches who is lost, looks, releases. One for each term of the office.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tanako_fleet::{
    failover::{Answer, Effect, Failover, Input, Member, Told},
    tenure::Standing,
};
use tanako_store::{Store, StoreError};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Tenure, claim, now, peers};
use crate::{
    history::{History, Severity},
    hosts::Dial,
    registry::{HOSTS, HostRecord, Hosts, PRESENT, Registry},
};

/// A look may take so long; see [`tanako_fleet::failover::LOOK_MAX_MS`].
const READ_WITHIN: Duration = Duration::from_millis(450);
const ASK_WITHIN: Duration = Duration::from_millis(450);
/// A release whose outcome is not known by then is looked at anew.
const RELEASE_WITHIN: Duration = Duration::from_secs(3);
const NAP_MAX: Duration = Duration::from_millis(250);
const INBOX_MAX: usize = 64;

/// What the coordinator's side needs.
#[derive(Clone)]
pub struct Parts {
    /// The store, fenced by the term.
    pub store: Arc<dyn Store>,
    /// The hosts.
    pub registry: Registry,
    /// The way to them.
    pub dial: Arc<dyn Dial>,
    /// This host's own tenure.
    pub tenure: Tenure,
    /// What happened.
    pub history: History,
    /// See [`tanako_fleet::failover::SHARE`].
    pub share: f64,
}

/// What is known of lost hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Gone, and their tenure ended for good: what is assigned to them may be assigned elsewhere, by
    /// commits that compare that the host's key is absent.
    pub released: BTreeSet<String>,
    /// Gone, and not released.
    pub waiting: BTreeSet<String>,
    /// What the operator is asked to decide, with what to do: a line each.
    pub asks: Vec<String>,
}

/// A handle on it; clones are cheap.
#[derive(Debug, Clone)]
pub struct Watchman {
    losses: watch::Receiver<Losses>,
    notes: mpsc::Sender<Note>,
}

#[derive(Debug)]
enum Note {
    Input(Input),
    Looked {
        began_at: u64,
        revisions: BTreeMap<String, u64>,
        members: BTreeMap<String, Member>,
        answers: BTreeMap<String, Answer>,
    },
}

impl Watchman {
    /// Begins to watch, until cancelled.
    pub fn start(parts: Parts, cancel: CancellationToken, tracker: &TaskTracker) -> Self {
        let (notes, inbox) = mpsc::channel(INBOX_MAX);
        let (losses, watched) = watch::channel(Losses::default());
        let task = Task {
            core: Failover::new(parts.share),
            parts,
            losses,
            notes: notes.clone(),
            revisions: BTreeMap::new(),
            tracker: tracker.clone(),
            cancel,
        };
        tracker.spawn(task.run(inbox));
        Self {
            losses: watched,
            notes,
        }
    }

    /// Who is lost, as a value that changes.
    pub fn losses(&self) -> watch::Receiver<Losses> {
        self.losses.clone()
    }

    /// The operator says that this host is off. Without effect unless it is lost.
    pub async fn allow(&self, host: &str) {
        let input = Input::Allow {
            host: host.to_owned(),
        };
        // The term may have ended.
        let _ = self.notes.send(Note::Input(input)).await;
    }
}

struct Task {
    parts: Parts,
    core: Failover,
    losses: watch::Sender<Losses>,
    notes: mpsc::Sender<Note>,
    /// Of the records in the latest look.
    revisions: BTreeMap<String, u64>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Note>) {
        let cancel = self.cancel.clone();
        let mut hosts = self.parts.registry.watch();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = self.parts.registry.loaded() => {}
        }
        let all = members(&hosts.borrow_and_update().clone());
        self.step(Input::Members(all));
        loop {
            let due = self.core.deadline();
            let nap = due.map(|due| Duration::from_millis(due.saturating_sub(now())).min(NAP_MAX));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                note = inbox.recv() => match note {
                    Some(Note::Input(input)) => self.step(input),
                    Some(Note::Looked { began_at, revisions, members, answers }) => {
                        self.revisions = revisions;
                        self.step(Input::Looked { began_at, members, answers });
                    }
                    None => return,
                },
                changed = hosts.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let all = members(&hosts.borrow_and_update().clone());
                    self.step(Input::Members(all));
                }
                () = sleep(nap.unwrap_or(NAP_MAX)), if nap.is_some() => self.step(Input::Tick),
            }
        }
    }

    fn step(&mut self, input: Input) {
        for effect in self.core.step(now(), input) {
            match effect {
                Effect::Look => {
                    let (parts, began_at) = (self.parts.clone(), now());
                    self.spawn(async move { look(&parts, began_at).await });
                }
                Effect::Release {
                    host,
                    instance,
                    allowed,
                } => self.release(host, instance, allowed),
                Effect::Tell(told) => self.tell(told),
            }
        }
        let losses = Losses {
            released: self.core.released().map(str::to_owned).collect(),
            waiting: self.core.lost().map(|(host, _)| host.to_owned()).collect(),
            asks: self.core.asks().iter().map(words).collect(),
        };
        self.losses.send_if_modified(|known| {
            let changed = *known != losses;
            *known = losses;
            changed
        });
    }

    fn spawn(&self, work: impl Future<Output = Note> + Send + 'static) {
        let (notes, cancel) = (self.notes.clone(), self.cancel.clone());
        self.tracker
            .spawn(cancel.run_until_cancelled_owned(async move {
                let note = work.await;
                // The task may have ended.
                let _ = notes.send(note).await;
            }));
    }

    fn release(&self, host: String, instance: String, allowed: bool) {
        let revision = self.revisions.get(&host).copied().unwrap_or(0);
        let (store, history) = (self.parts.store.clone(), self.parts.history.clone());
        self.spawn(async move {
            let commit = claim::release(&*store, &host, &instance, revision);
            let done = match timeout(RELEASE_WITHIN, commit).await {
                Ok(Ok(done)) => done,
                Ok(Err(error)) => {
                    tracing::warn!(host, %error, "a lost host is not released");
                    false
                }
                Err(_) => false,
            };
            if !done {
                return Note::Input(Input::NotReleased { host });
            }
            let how = if allowed {
                "on the operator's word"
            } else {
                "it has stopped what it ran"
            };
            history.event(
                Severity::Warning,
                "host-released",
                &host,
                format!("its processes may be started on other hosts: {how}"),
            );
            Note::Input(Input::Released { host, instance })
        });
    }

    fn tell(&self, told: Told) {
        let message = words(&told);
        let (severity, kind, object) = match &told {
            Told::Lost { host } => (Severity::Error, "host-lost", host.as_str()),
            Told::Back { host } => (Severity::Info, "host-back", host.as_str()),
            Told::Braked { .. } => (Severity::Error, "failover-braked", "failover"),
            Told::Unbraked => (Severity::Info, "failover-unbraked", "failover"),
            Told::Unproven { host, .. } => (Severity::Error, "failover-waits", host.as_str()),
        };
        self.parts.history.event(severity, kind, object, message);
    }
}

fn words(told: &Told) -> String {
    match told {
        Told::Lost { .. } => {
            "its lease has ended: it is off, frozen, or cut off from the other hosts and the store"
                .to_owned()
        }
        Told::Back { .. } => "it holds a lease again".to_owned(),
        Told::Braked { lost, limit, hosts } => format!(
            "{} of {hosts} hosts are lost ({}), more than the {limit} whose processes are moved without \
             being asked: nothing is moved. If they are really off: tanakoctl rebalance --lost HOST, one \
             after the other",
            lost.len(),
            lost.join(", ")
        ),
        Told::Unbraked => "so few hosts are lost that their processes are moved again".to_owned(),
        Told::Unproven { host, silent } => format!(
            "it cannot be proven that {host} has stopped its processes, for {} could not be asked or do not \
             dial the store: nothing is moved. If {host} is really off: tanakoctl rebalance --lost {host}",
            silent.join(", ")
        ),
    }
}

fn members(hosts: &Hosts) -> BTreeMap<String, Member> {
    hosts
        .iter()
        .map(|(name, known)| {
            let member = Member {
                present: known.present.is_some(),
                terms: known.record.tenure.clone(),
            };
            (name.clone(), member)
        })
        .collect()
}

/// Reads the hosts from the store, then asks those that are present.
async fn look(parts: &Parts, began_at: u64) -> Note {
    let read = async {
        let records = parts.store.list(HOSTS).await?;
        let present = parts.store.list(PRESENT).await?;
        Ok::<_, StoreError>((records, present))
    };
    let Ok(Ok((records, present))) = timeout(READ_WITHIN, read).await else {
        return Note::Input(Input::NotLooked);
    };
    let there: BTreeSet<&str> = present
        .items
        .iter()
        .filter_map(|item| item.key.strip_prefix(PRESENT))
        .collect();
    let (mut members, mut revisions) = (BTreeMap::new(), BTreeMap::new());
    for item in &records.items {
        let Some(name) = item.key.strip_prefix(HOSTS) else {
            continue;
        };
        let record: HostRecord = serde_json::from_slice(&item.value).unwrap_or_default();
        let member = Member {
            present: there.contains(name),
            terms: record.tenure,
        };
        revisions.insert(name.to_owned(), item.mod_revision);
        members.insert(name.to_owned(), member);
    }
    let own = parts.registry.host();
    let asks = there.iter().map(|host| async move {
        let asked_at = now();
        let answer = if *host == own {
            Some(parts.tenure.standing())
        } else {
            peers::standing(&*parts.dial, own, host, ASK_WITHIN).await
        };
        let standing = Standing {
            contact_ages: answer?.contact_ages_ms,
            ..Standing::default()
        };
        let contacts = standing.contacts(asked_at, now());
        Some(((*host).to_owned(), Answer { contacts }))
    });
    let answers = join_all(asks).await.into_iter().flatten().collect();
    Note::Looked {
        began_at,
        revisions,
        members,
        answers,
    }
}
