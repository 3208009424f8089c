//! The task that seeks the office, and in it begins and ends terms.

use std::{sync::Arc, time::Duration};

use tanako_fleet::{ProcessName, spec};
use tanako_store::{
    Backoff, Fence, Fenced, Store, StoreError, Txn,
    election::{self, Leadership},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Front, HOLDER, KEY, Settings, Standing, Term,
    course::{After, End, RETRY, Trouble},
    keeper::{Keeper, Lease},
};
use crate::{
    coordinator::{Coordinator, Operations, Parts},
    desired::Desired,
    history::Severity,
};

/// Put by the agent of that host while another holds the office.
const CLAIM: &str = "claim";
/// How often one that waits looks who holds the office.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest that leaving the office may take; after that its lease ends by itself.
const RESIGN_MAX: Duration = Duration::from_secs(2);

/// What has begun.
enum Begun {
    /// A term.
    Term(Box<Running>),
    /// Nothing: the processes are on that host.
    Elsewhere(String),
}

/// A term under way.
struct Running {
    fence: watch::Receiver<Fence>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

pub(super) struct Task {
    settings: Settings,
    parts: Parts,
    store: Arc<dyn Store>,
    terms: watch::Sender<Option<Term>>,
    current: watch::Sender<Option<Coordinator>>,
    standing: watch::Sender<Standing>,
    operations: watch::Sender<Arc<Operations>>,
    desired: watch::Sender<Arc<Desired>>,
    places: spec::Places,
    cancel: CancellationToken,
}

impl Task {
    pub(super) fn new(
        settings: Settings,
        parts: Parts,
        terms: watch::Sender<Option<Term>>,
        places: spec::Places,
        cancel: CancellationToken,
    ) -> (Self, Front) {
        let (current, current_rx) = watch::channel(None);
        let (standing, standing_rx) = watch::channel(Standing::Starting);
        let (operations, operations_rx) = watch::channel(Arc::default());
        let (desired, desired_rx) = watch::channel(Arc::new(Desired::empty(places.clone())));
        let front = Front {
            current: current_rx,
            standing: standing_rx,
            operations: operations_rx,
            desired: desired_rx,
        };
        let task = Self {
            settings,
            store: parts.store.clone(),
            parts,
            terms,
            current,
            standing,
            operations,
            desired,
            places,
            cancel,
        };
        (task, front)
    }

    pub(super) async fn run(self) {
        let cancel = self.cancel.clone();
        let mut pauses = Backoff::new(RETRY.0, RETRY.1);
        self.inherit().await;
        loop {
            let elected = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                elected = self.seek() => elected,
            };
            match elected {
                Ok((leadership, asked_at)) => {
                    pauses.reset();
                    self.remember(&leadership);
                    let end = self.hold(&leadership, asked_at).await;
                    self.current.send_replace(None);
                    self.terms.send_replace(None);
                    match end {
                        End::Cancelled => {
                            self.resign(leadership).await;
                            return;
                        }
                        End::Yielded => {
                            self.tell(
                                Severity::Info,
                                "coordinator-yielded",
                                "to the agent of the processes' host",
                            );
                            self.resign(leadership).await;
                            self.wait_for_successor().await;
                        }
                        End::Lost(why) => {
                            self.tell(Severity::Warning, "coordinator-lost", &why);
                            self.resign(leadership).await;
                        }
                    }
                }
                Err(error) => {
                    self.stand(Standing::Away {
                        why: error.to_string(),
                    });
                    self.show_desired().await;
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(pauses.pause()) => {}
                    }
                }
            }
        }
    }

    /// Waits until elected; says meanwhile who holds the office.
    async fn seek(&self) -> Result<(Leadership, Instant), StoreError> {
        let campaign = async {
            // Before the lease is asked for, so that its life is never overrated.
            let asked_at = Instant::now();
            election::campaign(&self.store, KEY, &self.parts.host, self.settings.ttl)
                .await
                .map(|leadership| (leadership, asked_at))
        };
        if !self.settings.shared {
            return campaign.await;
        }
        tokio::pin!(campaign);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset_after(Duration::from_millis(200));
        let mut claim = None;
        loop {
            tokio::select! {
                biased;
                elected = &mut campaign => {
                    if let Some((lease, _)) = claim {
                        let _ = self.store.revoke(lease).await;
                    }
                    return elected;
                }
                _ = look.tick() => self.look(&mut claim).await,
            }
        }
    }

    /// Who holds the office; and asks for it when the processes are here.
    async fn look(&self, claim: &mut Option<(u64, Keeper)>) {
        let found = async {
            let leader = election::leader(&*self.store, KEY).await?;
            let holder = self.holder().await?;
            let ours = holder.as_ref() == Some(&self.parts.host);
            if let Some(host) = holder.filter(|_| !ours) {
                self.release_processes(&host).await;
            }
            let other = leader
                .as_ref()
                .is_some_and(|leader| *leader != self.parts.host);
            let lapsed = claim
                .as_ref()
                .is_none_or(|(_, keeper)| *keeper.lease().borrow() == Lease::Ended);
            if ours && other && lapsed {
                let asked_at = Instant::now();
                let lease = self.store.grant(self.settings.ttl).await?;
                let txn = Txn::new().put_leased(CLAIM, self.parts.host.clone(), lease);
                self.store.commit(txn).await?;
                let keeper = Keeper::start(self.store.clone(), lease, self.settings.ttl, asked_at);
                *claim = Some((lease, keeper));
            }
            Ok::<_, StoreError>(leader)
        };
        match found.await {
            Ok(None) => {}
            Ok(Some(leader)) if leader == self.parts.host => self.stand(Standing::Inheriting),
            Ok(Some(leader)) => self.stand(Standing::Waiting { leader }),
            Err(error) => self.stand(Standing::Away {
                why: error.to_string(),
            }),
        }
    }

    /// A full disk can still be read: then status says at least what is wanted.
    async fn show_desired(&self) {
        if !self.settings.shared
            && let Ok(desired) = Desired::load(&*self.store, self.places.clone()).await
        {
            self.desired.send_replace(Arc::new(desired));
        }
    }

    /// Ends the office that this agent held when it was killed, instead of waiting for its lease: who
    /// holds the data directory knows that its last owner is gone.
    async fn inherit(&self) {
        let Some(path) = &self.settings.memory else {
            return;
        };
        let Some(lease) = std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
        else {
            return;
        };
        if let Ok(Some(item)) = self.store.get(KEY).await
            && item.lease == Some(lease)
        {
            tracing::info!("ending the office of the agent that was killed here");
            if let Err(error) = self.store.revoke(lease).await {
                tracing::debug!(%error, "it is left to its lease");
            }
        }
    }

    fn remember(&self, leadership: &Leadership) {
        if let Some(path) = &self.settings.memory
            && let Err(error) = std::fs::write(path, leadership.lease.to_string())
        {
            tracing::warn!(%error, path = %path.display(), "the lease cannot be noted");
        }
    }

    async fn holder(&self) -> Result<Option<String>, StoreError> {
        let item = self.store.get(HOLDER).await?;
        Ok(item.map(|item| String::from_utf8_lossy(&item.value).into_owned()))
    }

    /// Begins terms for as long as the lease lives.
    async fn hold(&self, leadership: &Leadership, asked_at: Instant) -> End {
        let keeper = Keeper::start(
            self.store.clone(),
            leadership.lease,
            self.settings.ttl,
            asked_at,
        );
        let (mut lease, mut alive) = (keeper.lease(), keeper.lease());
        let mut pauses = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let begun = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return End::Cancelled,
                () = ended(&mut lease) => return End::lapsed(),
                begun = self.begin(leadership) => begun,
            };
            let trouble = match begun {
                Ok(Begun::Term(running)) => {
                    pauses.reset();
                    let after = self.during(&running, &mut lease).await;
                    // Told before the coordinator has stopped: it may wait for the store first.
                    if let After::Wait(Trouble::Away(why)) = &after {
                        self.stand(Standing::Away { why: why.clone() });
                    }
                    self.end_term(*running).await;
                    match after {
                        After::Again => continue,
                        After::Wait(trouble) => trouble,
                        After::End(end) => return end,
                    }
                }
                Ok(Begun::Elsewhere(host)) => {
                    self.stand(Standing::Elsewhere { host });
                    tokio::select! {
                        biased;
                        () = self.cancel.cancelled() => return End::Cancelled,
                        () = ended(&mut lease) => return End::lapsed(),
                        () = self.claimed() => return End::Yielded,
                    }
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Away(why) => self.stand(Standing::Away { why }),
                Trouble::Unusable(why) => {
                    tracing::error!(why, "the store cannot be used");
                    self.stand(Standing::Unusable { why });
                }
                Trouble::Lost(why) => return End::Lost(why),
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return End::Cancelled,
                () = ended(&mut lease) => return End::lapsed(),
                () = self.rest(&mut alive, pauses.pause()) => {}
            }
        }
    }

    /// Resolves after the pause, once the lease is known to live; says meanwhile why not.
    async fn rest(&self, lease: &mut watch::Receiver<Lease>, pause: Duration) {
        tokio::time::sleep(pause).await;
        loop {
            let now = lease.borrow_and_update().clone();
            match now {
                Lease::Kept => return,
                Lease::Troubled(why) | Lease::Silent(why) => self.stand(Standing::Away { why }),
                Lease::Ended => {}
            }
            if lease.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads everything and starts the coordinator. What it has started is stopped when it is dropped
    /// half-way: nothing is published before the end.
    async fn begin(&self, leadership: &Leadership) -> Result<Begun, Trouble> {
        let fenced = Fenced::new(self.store.clone(), leadership.clone());
        let fence = fenced.fence();
        let store: Arc<dyn Store> = Arc::new(fenced);
        if self.settings.shared
            && let Some(host) = self.take_processes(&*store).await?
        {
            return Ok(Begun::Elsewhere(host));
        }
        let desired = Desired::load(&*store, self.places.clone()).await?;
        let cancel = self.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let tracker = TaskTracker::new();
        let parts = Parts {
            store: store.clone(),
            ..self.parts.clone()
        };
        self.desired.send_replace(Arc::new(desired.clone()));
        // Those that follow the terms read theirs while the coordinator reads its own.
        self.terms.send_replace(Some(store));
        let started = Coordinator::start(parts, desired, cancel.clone(), &tracker).await;
        let coordinator = match started {
            Ok(coordinator) => coordinator,
            Err(error) => {
                self.terms.send_replace(None);
                return Err(error.into());
            }
        };
        let cancel = guard.disarm();
        tracker.spawn(forward(
            coordinator.watch_operations(),
            self.operations.clone(),
            cancel.clone(),
        ));
        tracker.spawn(forward(
            coordinator.watch_desired(),
            self.desired.clone(),
            cancel.clone(),
        ));
        self.current.send_replace(Some(coordinator));
        self.stand(Standing::Holding { trouble: None });
        tracing::info!(fencing = leadership.fencing, "this agent decides");
        Ok(Begun::Term(Box::new(Running {
            fence,
            cancel,
            tracker,
        })))
    }

    /// Makes this host the one that the processes are on, unless another one is.
    async fn take_processes(&self, store: &dyn Store) -> Result<Option<String>, StoreError> {
        let own = self.parts.host.as_str();
        let item = store.get(HOLDER).await?;
        let revision = item.as_ref().map_or(0, |item| item.mod_revision);
        let holder = item.map(|item| String::from_utf8_lossy(&item.value).into_owned());
        match holder {
            Some(host) if host == own => return Ok(None),
            Some(host) if self.settings.take_over.as_ref() != Some(&host) => {
                self.release_processes(&host).await;
                return Ok(Some(host));
            }
            Some(host) => self.tell(
                Severity::Warning,
                "processes-taken-over",
                &format!("from host {host}, on the operator's word (--take-over)"),
            ),
            None => {}
        }
        let txn = Txn::new()
            .if_unchanged(HOLDER, revision)
            .put(HOLDER, own.to_owned());
        match store.commit(txn).await?.committed() {
            Some(_) => Ok(None),
            None => Err(StoreError::Unavailable(
                "the host of the processes was changed by someone else".to_owned(),
            )),
        }
    }

    /// Stops what runs here although `host` was made the one that the processes are on: no shard may be
    /// held twice.
    async fn release_processes(&self, host: &str) {
        let names: Vec<ProcessName> = {
            let table = self.parts.supervisor.status();
            let table = table.borrow();
            table.keys().cloned().collect()
        };
        if names.is_empty() {
            return;
        }
        let message = format!(
            "host {host} has taken them over; {} are stopped here",
            names.len()
        );
        tracing::error!("{message}");
        self.tell(Severity::Error, "processes-released", &message);
        for name in names {
            if let Err(error) = self.parts.supervisor.forget(&name).await {
                tracing::warn!(process = %name, %error, "a process could not be released");
            }
        }
    }

    /// Until the term has to end: begin another one, end the office, or wait first.
    async fn during(&self, running: &Running, lease: &mut watch::Receiver<Lease>) -> After {
        let mut fence = running.fence.clone();
        loop {
            let now = lease.borrow_and_update().clone();
            match now {
                Lease::Kept => self.stand(Standing::Holding { trouble: None }),
                Lease::Troubled(why) => self.stand(Standing::Holding { trouble: Some(why) }),
                Lease::Silent(why) => return After::Wait(Trouble::Away(why)),
                Lease::Ended => return After::End(End::lapsed()),
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return After::End(End::Cancelled),
                changed = lease.changed() => if changed.is_err() {
                    return After::End(End::Cancelled);
                },
                changed = fence.changed() => {
                    let found = *fence.borrow_and_update();
                    match found {
                        _ if changed.is_err() => return After::Again,
                        Fence::Holds => {}
                        Fence::Uncertain => {
                            let why = "nobody knows what became of a change".to_owned();
                            return After::Wait(Trouble::Away(why));
                        }
                        Fence::Lost => {
                            let why = "another agent was elected".to_owned();
                            return After::End(End::Lost(why));
                        }
                    }
                }
            }
        }
    }

    /// Stops the coordinator. Waits until it has: two must not give orders.
    async fn end_term(&self, running: Running) {
        self.current.send_replace(None);
        self.terms.send_replace(None);
        running.cancel.cancel();
        running.tracker.close();
        running.tracker.wait().await;
    }

    /// Waits until the agent of the processes' host asks for the office.
    async fn claimed(&self) {
        let mut look = interval(LOOK_EVERY / 4);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let (Ok(claim), Ok(holder)) = (self.store.get(CLAIM).await, self.holder().await) else {
                continue;
            };
            let claim = claim.map(|item| String::from_utf8_lossy(&item.value).into_owned());
            if claim.is_some() && claim == holder {
                return;
            }
        }
    }

    /// Lets the one who asked be first.
    async fn wait_for_successor(&self) {
        let elected = async {
            let mut look = interval(Duration::from_millis(100));
            while !matches!(election::leader(&*self.store, KEY).await, Ok(Some(_))) {
                look.tick().await;
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => {}
            _ = timeout(self.settings.ttl, elected) => {}
        }
    }

    async fn resign(&self, leadership: Leadership) {
        match timeout(RESIGN_MAX, leadership.resign(&*self.store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the office is left to its lease"),
            Err(_) => tracing::debug!("the office is left to its lease"),
        }
    }

    fn stand(&self, now: Standing) {
        let mut before = None;
        self.standing.send_if_modified(|standing| {
            let changed = *standing != now;
            before = Some(std::mem::replace(standing, now.clone()));
            changed
        });
        let known = match (&before, &now) {
            // The words of a failure change with each call that fails.
            (Some(Standing::Away { .. }), Standing::Away { .. }) => true,
            (before, now) => before.as_ref() == Some(now),
        };
        if known {
            return;
        }
        match &now {
            Standing::Away { why } => {
                tracing::warn!(why, "the store does not answer");
                self.tell(Severity::Error, "store-away", why);
            }
            Standing::Elsewhere { .. } | Standing::Waiting { .. } => {
                let message = now.reason().unwrap_or_default();
                tracing::info!(message, "this agent does not decide");
                self.tell(Severity::Info, "coordinator-elsewhere", &message);
            }
            _ => {}
        }
    }

    fn tell(&self, severity: Severity, kind: &'static str, message: &str) {
        self.parts
            .history
            .event(severity, kind, "coordinator", message.to_owned());
    }
}

/// Resolves when the lease has ended.
async fn ended(lease: &mut watch::Receiver<Lease>) {
    if lease
        .wait_for(|lease| *lease == Lease::Ended)
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
}

async fn forward<T: Clone>(
    mut from: watch::Receiver<T>,
    to: watch::Sender<T>,
    cancel: CancellationToken,
) {
    loop {
        let value = from.borrow_and_update().clone();
        to.send_replace(value);
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = from.changed() => if changed.is_err() { return },
        }
    }
}
