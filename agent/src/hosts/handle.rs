//! [`Hosts`]: the processes of all hosts, as one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tanako_fleet::{
    ProcessName, ProcessSpec,
    assignment::{Assignment, Seat},
    vault::Last,
};
use tanako_proto::{host::v1::HostUpdate, worker::v1::command::Command};
use tanako_store::Backoff;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Assigned, Dial, HostPicture, Link, Local, ORDER_WITHIN, Order, OrderError, Picture,
    SEEN_WITHIN,
    picture::Kept,
    remote::Remote,
    seen::{Nonsense, Seen},
};
use crate::{
    clock::{boot_ms, now_ms},
    registry::Registry,
    supervisor::Desired as Wanted,
    worker::{CommandError, CommandRun, duties::Assignment as Duty},
};

/// What comes from several hosts is joined at most this often.
const JOIN_EVERY: Duration = Duration::from_millis(20);
/// Pauses between two tries of an order.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Processes whose orders are kept apart; those without an order under way are dropped beyond.
const LANES_MAX: usize = 10_000;

/// The processes of all hosts; clones are cheap and equal. For one term of the office.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

struct Inner {
    local: Local,
    epoch: u64,
    dial: Arc<dyn Dial>,
    registry: Registry,
    state: Mutex<State>,
    picture: watch::Sender<Arc<Picture>>,
    /// Something of another host has changed.
    changed: tokio::sync::Notify,
    sequence: AtomicU64,
    lanes: Mutex<HashMap<ProcessName, Arc<Lane>>>,
    duties: Mutex<(u64, Arc<BTreeMap<String, Duty>>)>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

struct State {
    others: BTreeMap<Arc<str>, Other>,
    assignment: Arc<Assignment>,
}

struct Other {
    remote: Arc<Remote>,
    seen: Seen,
    stop: CancellationToken,
}

/// Keeps the orders about one process in their order.
#[derive(Default)]
struct Lane {
    latest: AtomicU64,
    turn: tokio::sync::Mutex<()>,
}

/// Where those who follow a host bring what it tells.
#[derive(Clone)]
pub(super) struct Sink(Hosts);

impl Hosts {
    /// Follows all hosts of the registry, and those that the assignment names, until cancelled.
    pub fn start(
        local: Local,
        epoch: u64,
        dial: Arc<dyn Dial>,
        registry: Registry,
        assignment: Assignment,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let inner = Inner {
            local,
            epoch,
            dial,
            registry,
            state: Mutex::new(State {
                others: BTreeMap::new(),
                assignment: Arc::new(assignment),
            }),
            picture: watch::channel(Arc::default()).0,
            changed: tokio::sync::Notify::new(),
            // An agent may hold the office twice in one epoch, before and after the store was away: what
            // it orders the second time is newer.
            sequence: AtomicU64::new(u64::try_from(boot_ms()).unwrap_or(0) << 16),
            lanes: Mutex::default(),
            duties: Mutex::default(),
            cancel: cancel.clone(),
            tracker: tracker.clone(),
        };
        let hosts = Self(Arc::new(inner));
        hosts.enlist();
        hosts.join();
        tracker.spawn(cancel.run_until_cancelled_owned(hosts.clone().run()));
        hosts
    }

    async fn run(self) {
        let mut table = self.0.local.supervisor.status();
        let mut workers = self.0.local.workers.states();
        let mut registry = self.0.registry.watch();
        loop {
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = workers.changed() => if changed.is_err() { return },
                () = self.0.changed.notified() => {}
                Ok(()) = registry.changed() => self.enlist(),
            }
            table.mark_unchanged();
            workers.mark_unchanged();
            registry.mark_unchanged();
            self.join();
            if !self.lock().others.is_empty() {
                tokio::time::sleep(JOIN_EVERY).await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows who is new, and lets go of who is no more.
    fn enlist(&self) {
        let registry = self.0.registry.hosts();
        let mut state = self.lock();
        let assignment = Arc::clone(&state.assignment);
        let needed = |host: &str| {
            host != &*self.0.local.host
                && (registry
                    .get(host)
                    .is_some_and(|known| !known.record.address.is_empty())
                    || assignment.of(host).next().is_some())
        };
        state.others.retain(|host, other| {
            let keep = needed(host);
            if !keep {
                other.stop.cancel();
            }
            keep
        });
        let names = registry
            .keys()
            .map(String::as_str)
            .chain(assignment.hosts());
        for name in names.filter(|name| needed(name)) {
            if state.others.contains_key(name) {
                continue;
            }
            let name: Arc<str> = name.into();
            let stop = self.0.cancel.child_token();
            let remote = Arc::new(Remote {
                name: Arc::clone(&name),
                own: Arc::clone(&self.0.local.host),
                epoch: self.0.epoch,
                dial: Arc::clone(&self.0.dial),
                told: AtomicU64::new(0),
            });
            let follow = Arc::clone(&remote).follow(Sink(self.clone()));
            self.0
                .tracker
                .spawn(stop.clone().run_until_cancelled_owned(follow));
            let seen = Seen::new(Arc::clone(&name), now_ms());
            state.others.insert(name, Other { remote, seen, stop });
        }
    }

    fn own_picture(&self) -> HostPicture {
        let local = &self.0.local;
        HostPicture {
            name: Arc::clone(&local.host),
            link: Link::Local,
            instance: "".into(),
            revision: 0,
            heard_at: now_ms(),
            view: None,
            table: local.supervisor.status().borrow().clone(),
            workers: local.workers.states().borrow().clone(),
            kept: Arc::default(),
        }
    }

    /// Joins what is known of all hosts.
    fn join(&self) -> Arc<Picture> {
        let state = self.lock();
        let others = state
            .others
            .iter()
            .map(|(name, other)| (Arc::clone(name), Arc::new(other.seen.picture())));
        let own = (Arc::clone(&self.0.local.host), Arc::new(self.own_picture()));
        let hosts: BTreeMap<_, _> = others.chain([own]).collect();
        let version = state.assignment.version();
        let known = self.0.picture.borrow().clone();
        if known.version == version && known.shows(&hosts) {
            return known;
        }
        let mut picture = Picture::join(hosts, |name| state.assignment.host_of(name));
        picture.version = version;
        let picture = Arc::new(picture);
        // Within the lock, so that an older one never replaces a newer one.
        self.0.picture.send_replace(Arc::clone(&picture));
        picture
    }

    /// All hosts and processes, as a value that changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Picture>> {
        self.0.picture.subscribe()
    }

    /// All hosts and processes. What this host shows is of this moment.
    pub fn picture(&self) -> Arc<Picture> {
        let alone = self.lock().others.is_empty();
        if alone {
            return self.join();
        }
        self.0.picture.borrow().clone()
    }

    /// Name of this host.
    pub fn own(&self) -> &str {
        &self.0.local.host
    }

    /// Which host has which process.
    pub fn assignment(&self) -> Arc<Assignment> {
        Arc::clone(&self.lock().assignment)
    }

    /// From now on processes are where this says. Once it is in the store.
    pub fn assign(&self, assignment: Assignment) {
        self.lock().assignment = Arc::new(assignment);
        self.enlist();
        self.join();
    }

    /// Whether there is no other host.
    pub fn is_alone(&self) -> bool {
        self.lock().others.is_empty()
    }

    /// The host of a process.
    pub fn host_of(&self, process: &ProcessName) -> Option<String> {
        let state = self.lock();
        state.assignment.host_of(process).map(str::to_owned)
    }

    /// Whether a process is this host's.
    pub fn is_own(&self, process: &ProcessName) -> bool {
        self.lock().assignment.host_of(process) == Some(self.own())
    }

    /// The hosts that processes may be put on: those that are present and not taken out, and this one.
    pub fn seats(&self) -> Vec<Seat> {
        let registry = self.0.registry.hosts();
        let picture = self.picture();
        picture
            .hosts
            .values()
            .map(|host| {
                let known = registry.get(&*host.name);
                let taken =
                    known.is_some_and(|known| known.record.cordoned || known.record.draining);
                // One that has not been heard yet is reached by the time it is needed.
                let silent = !host.link.is_up() && host.heard_at > 0;
                let lives = host.link == Link::Local
                    || !silent && known.is_some_and(|known| known.present.is_some());
                Seat {
                    host: host.name.to_string(),
                    open: lives && !taken,
                }
            })
            .collect()
    }

    fn lane(&self, process: &ProcessName) -> Arc<Lane> {
        let mut lanes = self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= LANES_MAX {
            // What is forgotten is told apart by the host: it remembers numbers too.
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        Arc::clone(lanes.entry(process.clone()).or_default())
    }

    fn remote(&self, host: &str) -> Option<Arc<Remote>> {
        let state = self.lock();
        state
            .others
            .get(host)
            .map(|other| Arc::clone(&other.remote))
    }

    /// Has the host carry out an order about a process that it has, wherever that is by then. Orders
    /// about one process are carried out one after the other; a newer one ends the tries of an older.
    pub async fn order(&self, order: Order) -> Result<(), OrderError> {
        let Some(process) = order.process().cloned() else {
            return self.everywhere(order).await;
        };
        let sequence = self.draw(&process);
        self.in_lane(&process, &order, sequence, || {
            let state = self.lock();
            let host = state.assignment.host_of(&process);
            host.map(Into::into)
                .ok_or_else(|| OrderError::Homeless(process.clone()))
        })
        .await
    }

    /// Has a certain host carry out an order.
    pub async fn order_at(&self, host: &str, order: Order) -> Result<(), OrderError> {
        let host: Arc<str> = host.into();
        if let Some(process) = order.process().cloned() {
            let sequence = self.draw(&process);
            self.in_lane(&process, &order, sequence, || Ok(Arc::clone(&host)))
                .await
        } else {
            let sequence = self.next();
            self.insist(sequence, &order, || Ok(Arc::clone(&host)), || false)
                .await
        }
    }

    fn next(&self) -> u64 {
        self.0.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells a host what is its own, as of when `sequence` was drawn by [`Self::draw_for_all`].
    pub async fn assign_at(
        &self,
        host: &str,
        sequence: u64,
        assigned: Assigned,
    ) -> Result<(), OrderError> {
        let (host, order): (Arc<str>, _) = (host.into(), Order::Assigned(assigned));
        self.insist(sequence, &order, || Ok(Arc::clone(&host)), || false)
            .await
    }

    /// The number of an order about no single process that is given later: what is ordered about one
    /// meanwhile counts as newer.
    pub fn draw_for_all(&self) -> u64 {
        self.next()
    }

    /// The number of an order about a process that is given later: one that is given meanwhile counts
    /// as newer.
    pub fn draw(&self, process: &ProcessName) -> u64 {
        let sequence = self.next();
        let lane = self.lane(process);
        lane.latest.fetch_max(sequence, Ordering::AcqRel);
        sequence
    }

    /// Defines a process on the host that it is assigned to, with a number drawn before.
    pub async fn define_drawn(
        &self,
        sequence: u64,
        spec: &Arc<ProcessSpec>,
        wanted: Wanted,
    ) -> Result<(), OrderError> {
        let order = Order::Define(Arc::clone(spec), wanted, 0);
        self.in_lane(&spec.name, &order, sequence, || {
            let state = self.lock();
            let host = state.assignment.host_of(&spec.name);
            host.map(Into::into)
                .ok_or_else(|| OrderError::Homeless(spec.name.clone()))
        })
        .await
    }

    async fn in_lane(
        &self,
        process: &ProcessName,
        order: &Order,
        sequence: u64,
        host: impl Fn() -> Result<Arc<str>, OrderError>,
    ) -> Result<(), OrderError> {
        let lane = self.lane(process);
        let _turn = lane.turn.lock().await;
        let overtaken = || lane.latest.load(Ordering::Acquire) > sequence;
        if overtaken() {
            return Err(OrderError::Overtaken(process.clone()));
        }
        self.insist(sequence, order, host, overtaken).await
    }

    /// Tries until the host has taken it, says no, or the time is up.
    async fn insist(
        &self,
        sequence: u64,
        order: &Order,
        host: impl Fn() -> Result<Arc<str>, OrderError>,
        overtaken: impl Fn() -> bool,
    ) -> Result<(), OrderError> {
        let until = Instant::now() + ORDER_WITHIN;
        let mut pauses = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let host = host()?;
            if *host == *self.0.local.host {
                let local = &self.0.local;
                // Nothing holds it up on its way.
                let done = local
                    .carry_out(self.0.epoch, "", sequence, order.clone())
                    .await;
                self.join();
                return done;
            }
            let error = match self.try_remote(&host, sequence, order).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let pause = pauses.pause();
            if !error.is_retryable() || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            if let (true, Some(process)) = (overtaken(), order.process()) {
                return Err(OrderError::Overtaken(process.clone()));
            }
        }
    }

    async fn try_remote(
        &self,
        host: &Arc<str>,
        sequence: u64,
        order: &Order,
    ) -> Result<(), OrderError> {
        let remote = self.remote(host).ok_or_else(|| OrderError::Away {
            host: Arc::clone(host),
            why: "it is not a host of the fleet".to_owned(),
        })?;
        self.bring_duties(&remote).await?;
        let tenure = self.tenure_of(host);
        let revision = remote.order(&tenure, sequence, order).await?;
        self.reached(host, revision).await;
        Ok(())
    }

    /// Name of the latest tenure of a host that is known of: whoever has it may be given what is assigned to
    /// the host at this moment.
    fn tenure_of(&self, host: &str) -> String {
        let registry = self.0.registry.hosts();
        let known = registry.get(host);
        known.map_or_else(String::new, |known| known.record.tenure.instance.clone())
    }

    /// Waits until the host has told what it was at that revision. What was done is done, seen or not.
    async fn reached(&self, host: &str, revision: u64) {
        let mut picture = self.watch();
        let there = picture.wait_for(|picture| {
            let host = picture.hosts.get(host);
            host.is_none_or(|host| host.revision >= revision || !host.link.is_up())
        });
        // The channel ends with the term.
        let _ = tokio::time::timeout(SEEN_WITHIN, there).await;
    }

    /// An order that is about no process: for all hosts. Those that do not answer are left out: what
    /// they need to know they are told when they are back.
    async fn everywhere(&self, order: Order) -> Result<(), OrderError> {
        let picture = self.picture();
        let up = picture.hosts.values().filter(|host| host.link.is_up());
        let told = up.map(|host| self.order_at(&host.name, order.clone()));
        join_all(told).await.into_iter().collect()
    }

    /// What processes do with their shards, from now on: before the next order or command reaches them.
    pub fn set_duties(&self, all: BTreeMap<String, Duty>) {
        {
            let mut duties = self.0.duties.lock().unwrap_or_else(PoisonError::into_inner);
            if *duties.1 == all && duties.0 > 0 {
                return;
            }
            *duties = (duties.0 + 1, Arc::new(all.clone()));
        }
        if let Err(error) = self.0.local.workers.duties().replace(all) {
            // They hold; only an agent that starts while the store is away would not know them.
            tracing::error!(%error, "what processes do with their shards cannot be written down");
        }
        let others: Vec<Arc<Remote>> = {
            let state = self.lock();
            let others = state.others.values();
            others.map(|other| Arc::clone(&other.remote)).collect()
        };
        for remote in others {
            let hosts = self.clone();
            let tell = async move {
                if let Err(error) = hosts.bring_duties(&remote).await {
                    tracing::debug!(host = %remote.name, %error, "it is told its duties later");
                }
            };
            let cancel = self.0.cancel.clone();
            self.0.tracker.spawn(cancel.run_until_cancelled_owned(tell));
        }
    }

    /// What a process does with its shards.
    pub fn duty_of(&self, process: &str) -> Duty {
        let duties = self.0.duties.lock().unwrap_or_else(PoisonError::into_inner);
        duties.1.get(process).copied().unwrap_or_default()
    }

    /// Tells a host its duties unless it has been told.
    async fn bring_duties(&self, remote: &Remote) -> Result<(), OrderError> {
        let (version, all) = {
            let duties = self.0.duties.lock().unwrap_or_else(PoisonError::into_inner);
            duties.clone()
        };
        if remote.told.load(Ordering::Acquire) >= version {
            return Ok(());
        }
        let own: BTreeMap<String, Duty> = {
            let state = self.lock();
            let here = all.iter().filter(|(name, _)| {
                let name = name.parse::<ProcessName>().ok();
                name.and_then(|name| state.assignment.host_of(&name).map(str::to_owned))
                    .is_none_or(|host| host == *remote.name)
            });
            here.map(|(name, duty)| (name.clone(), *duty)).collect()
        };
        let tenure = self.tenure_of(&remote.name);
        remote
            .order(&tenure, self.next(), &Order::Duties(own))
            .await?;
        remote.told.fetch_max(version, Ordering::AcqRel);
        Ok(())
    }

    /// Defines a process on its host.
    pub async fn define(&self, spec: &Arc<ProcessSpec>, wanted: Wanted) -> Result<(), OrderError> {
        self.order(Order::Define(Arc::clone(spec), wanted, 0)).await
    }

    /// Hands the sessions of a process over to another one of the same host.
    pub async fn hand_over(
        &self,
        from: &ProcessName,
        to: &ProcessName,
        attempt: u64,
    ) -> Result<(), OrderError> {
        self.order(Order::Handover(from.clone(), to.clone(), attempt))
            .await
    }

    /// Carries the sessions of a process, which has stopped on one host, to another one; how many are
    /// kept there.
    pub async fn carry(
        &self,
        process: &ProcessName,
        from: &str,
        to: &str,
    ) -> Result<usize, OrderError> {
        let local = &self.0.local;
        let away = |host: &str| OrderError::Away {
            host: host.into(),
            why: "it is not a host of the fleet".to_owned(),
        };
        let kept = if from == &*local.host {
            local.hand_out(self.0.epoch, process)?
        } else {
            let remote = self.remote(from).ok_or_else(|| away(from))?;
            remote.take_sessions(process).await?
        };
        if to == &*local.host {
            local.take_in(self.0.epoch, process, kept)
        } else {
            let remote = self.remote(to).ok_or_else(|| away(to))?;
            remote.give_sessions(process, &kept).await
        }
    }

    /// Gives a worker a command, wherever it is.
    pub async fn command(
        &self,
        process: &ProcessName,
        command: Command,
        within: Duration,
    ) -> Result<CommandRun, CommandError> {
        let host: Option<Arc<str>> = self.lock().assignment.host_of(process).map(Into::into);
        let Some(host) = host else {
            return Err(CommandError::NotAttached(process.clone()));
        };
        if *host == *self.0.local.host {
            return self.0.local.command(process, command, within).await;
        }
        let Some(remote) = self.remote(&host) else {
            return Err(CommandError::NotAttached(process.clone()));
        };
        self.bring_duties(&remote)
            .await
            .map_err(|error| CommandError::Away(process.clone(), error.to_string()))?;
        remote
            .command(process, command, within, &self.0.tracker)
            .await
    }

    /// The sessions of a set of shards that is no more are dropped everywhere.
    pub fn forget_sessions(&self, bot: &str, count: u32) {
        let (hosts, bot) = (self.clone(), bot.to_owned());
        let task = async move {
            let order = Order::ForgetSessions(bot, count);
            if let Err(error) = hosts.order(order).await {
                tracing::warn!(%error, "old sessions are left to expire");
            }
        };
        let cancel = self.0.cancel.clone();
        self.0.tracker.spawn(cancel.run_until_cancelled_owned(task));
    }

    /// How many sessions there are that a process could resume.
    pub fn sessions(&self, spec: &ProcessSpec) -> usize {
        match self.kept(&spec.name) {
            Some(kept) => kept.sessions,
            None => self.0.local.vault.sessions_for(spec, None).len(),
        }
    }

    /// The latest deposit of whoever held the shard before this attempt.
    pub fn last_deposit_before(
        &self,
        shard: u32,
        count: u32,
        process: &ProcessName,
        attempt: u64,
    ) -> Option<Last> {
        if let Some(kept) = self.kept(process) {
            kept.deposits
                .iter()
                .filter(|(key, _)| *key == (shard, count))
                .map(|(_, last)| last)
                .find(|last| last.by.process != *process || last.by.attempt != attempt)
                .cloned()
        } else {
            let vault = &self.0.local.vault;
            vault.last_deposit_before(shard, count, process, attempt)
        }
    }

    /// What another host keeps of a process; `None` = it is this host's.
    fn kept(&self, process: &ProcessName) -> Option<Kept> {
        let state = self.lock();
        let host = state.assignment.host_of(process)?;
        let picture = state.others.get(host)?.seen.picture();
        Some(picture.kept.get(process).cloned().unwrap_or_default())
    }

    /// Memory that the processes of a bot use, and what is free beside them, on the hosts that have
    /// them: bytes used, processes measured, bytes free (`None` = not known).
    pub fn memory_of(&self, bot: &str) -> (u64, u32, Option<u64>) {
        let picture = self.picture();
        let (mut used, mut count, mut free) = (0, 0, None::<u64>);
        let sample = self.0.local.sample.borrow().clone();
        for host in picture.hosts.values() {
            let (total, taken) = match &host.view {
                Some(view) => (view.memory_total_bytes, view.memory_used_bytes),
                None if host.link == Link::Local => (
                    sample.host.memory_total_bytes,
                    sample.host.memory_used_bytes,
                ),
                None => (0, 0),
            };
            if total > 0 && host.link.is_up() {
                *free.get_or_insert(0) += total.saturating_sub(taken);
            }
            let rss = |name: &ProcessName| match host.link {
                Link::Local => sample.processes.get(name).map(|used| used.rss_bytes),
                _ => host
                    .kept
                    .get(name)
                    .map(|kept| kept.rss_bytes)
                    .filter(|rss| *rss > 0),
            };
            let all = host.table.keys().filter(|name| name.group() == bot);
            for bytes in all.filter_map(rss) {
                used += bytes;
                count += 1;
            }
        }
        (used, count, free)
    }
}

impl Sink {
    /// Whether it is another life of its agent than before.
    pub(super) fn take(
        &self,
        host: &str,
        first: bool,
        update: HostUpdate,
    ) -> Result<bool, Nonsense> {
        let mut state = self.0.lock();
        let Some(other) = state.others.get_mut(host) else {
            return Ok(false);
        };
        let before = other.seen.picture().instance;
        other.seen.take(first, now_ms(), update)?;
        let is_new = before != other.seen.picture().instance;
        drop(state);
        self.0.0.changed.notify_one();
        Ok(is_new)
    }

    pub(super) fn lose(&self, host: &str, why: &str) {
        if let Some(other) = self.0.lock().others.get_mut(host) {
            other.seen.lose(now_ms(), why);
        }
        self.0.0.changed.notify_one();
    }
}
