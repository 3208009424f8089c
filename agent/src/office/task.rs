//! The task that seeks the office, and in it begins and ends terms.

use std::{sync::Arc, time::Duration};

use tanako_fleet::spec;
use tanako_store::{
    Backoff, Fence, Fenced, Store, StoreError,
    election::{self, Leadership},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Front, KEY, Settings, Standing, Term,
    course::{After, End, RETRY, Trouble},
    keeper::{Keeper, Lease},
};
use crate::{
    coordinator::{Coordinator, Operations, Parts},
    desired::Desired,
    history::Severity,
    tenure::failover::Losses,
};

/// How often one that waits looks who holds the office.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest that leaving the office may take; after that its lease ends by itself.
const RESIGN_MAX: Duration = Duration::from_secs(2);

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
    epoch: watch::Sender<u64>,
    operations: watch::Sender<Arc<Operations>>,
    desired: watch::Sender<Arc<Desired>>,
    losses: watch::Sender<Losses>,
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
        let (epoch, epoch_rx) = watch::channel(0);
        let (operations, operations_rx) = watch::channel(Arc::default());
        let (desired, desired_rx) = watch::channel(Arc::new(Desired::empty(places.clone())));
        let (losses, losses_rx) = watch::channel(Losses::default());
        let front = Front {
            current: current_rx,
            standing: standing_rx,
            epoch: epoch_rx,
            operations: operations_rx,
            desired: desired_rx,
            losses: losses_rx,
        };
        let task = Self {
            settings,
            store: parts.store.clone(),
            parts,
            terms,
            current,
            standing,
            epoch,
            operations,
            desired,
            losses,
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
            election::campaign(&self.store, KEY, &self.parts.local.host, self.settings.ttl)
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
        loop {
            tokio::select! {
                biased;
                elected = &mut campaign => return elected,
                _ = look.tick() => self.look().await,
            }
        }
    }

    /// Who holds the office.
    async fn look(&self) {
        match election::leader(&*self.store, KEY).await {
            Ok(None) => {}
            Ok(Some(leader)) if *leader == *self.parts.local.host => {
                self.stand(Standing::Inheriting);
            }
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
                Ok(running) => {
                    pauses.reset();
                    let after = self.during(&running, &mut lease).await;
                    // Told before the coordinator has stopped: it may wait for the store first.
                    if let After::Wait(Trouble::Away(why)) = &after {
                        self.stand(Standing::Away { why: why.clone() });
                    }
                    self.end_term(running).await;
                    match after {
                        After::Again => continue,
                        After::Wait(trouble) => trouble,
                        After::End(end) => return end,
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
    async fn begin(&self, leadership: &Leadership) -> Result<Running, Trouble> {
        let fenced = Fenced::new(self.store.clone(), leadership.clone());
        let fence = fenced.fence();
        let store: Arc<dyn Store> = Arc::new(fenced);
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
        let epoch = leadership.fencing;
        let started = Coordinator::start(parts, desired, epoch, cancel.clone(), &tracker).await;
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
        tracker.spawn(forward(
            coordinator.watch_losses(),
            self.losses.clone(),
            cancel.clone(),
        ));
        self.epoch.send_replace(leadership.fencing);
        self.current.send_replace(Some(coordinator));
        self.stand(Standing::Holding { trouble: None });
        tracing::info!(fencing = leadership.fencing, "this agent decides");
        Ok(Running {
            fence,
            cancel,
            tracker,
        })
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
            Standing::Waiting { .. } => {
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
