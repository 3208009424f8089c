//! The task that owns the view: takes in what this host and the others say, and answers looks at it.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use tanako_proto::host::v1::FollowRequest;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Figures, Hosts, Look, Pulse,
    board::{Board, Signals},
    core::{Core, Effect, Input, Now},
    follow::{Follow, Heard},
    report::{self, Report},
};
use crate::{clock::now_ms, hosts::Dial};

/// Updates of other hosts that wait; while it is full, nothing is read from them.
const HEARD_MAX: usize = 256;
/// Hosts are followed for so long after the last look.
const LINGER: Duration = Duration::from_secs(60);
/// Changes of this host are taken in at once, but not more often than this.
const SPACING: Duration = Duration::from_millis(50);

struct Follower {
    cancel: CancellationToken,
    renew: Arc<Notify>,
}

pub(super) struct Task {
    core: Core,
    began: Instant,
    board: Arc<Board>,
    told: Option<Arc<Report>>,
    dial: Option<Arc<dyn Dial>>,
    hosts: watch::Receiver<Hosts>,
    followers: HashMap<String, Follower>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    pulse: watch::Sender<Pulse>,
    figures: watch::Sender<Figures>,
    updates: u64,
    needed_until: Instant,
    tracker: TaskTracker,
}

impl Task {
    pub(super) fn new(
        board: Arc<Board>,
        dial: Option<Arc<dyn Dial>>,
        mut hosts: watch::Receiver<Hosts>,
        (pulse, figures): (watch::Sender<Pulse>, watch::Sender<Figures>),
        tracker: TaskTracker,
    ) -> Self {
        hosts.mark_changed();
        let began = Instant::now();
        let now = Now {
            steady: Duration::ZERO,
            unix_ms: now_ms(),
        };
        Self {
            core: Core::new(board.host(), now),
            began,
            board,
            told: None,
            dial,
            hosts,
            followers: HashMap::new(),
            heard: mpsc::channel(HEARD_MAX),
            pulse,
            figures,
            updates: 0,
            needed_until: began,
            tracker,
        }
    }

    pub(super) async fn run(mut self, mut looks: mpsc::Receiver<Look>, cancel: CancellationToken) {
        let mut signals = self.board.signals();
        // When this host is looked at next; `None` = when something happens.
        let mut refresh: Option<Instant> = None;
        let mut not_before = Instant::now();
        let mut hosts = self.hosts.clone();
        loop {
            let needed = Instant::now() < self.needed_until;
            let deadline = self.began + self.core.deadline();
            tokio::select! {
                () = cancel.cancelled() => break,
                look = looks.recv() => {
                    let Some(look) = look else { break };
                    self.needed();
                    self.refresh(&mut signals, Duration::ZERO);
                    not_before = Instant::now() + SPACING;
                    refresh = None;
                    look(&self.core, self.now());
                }
                Some(heard) = self.heard.1.recv() => {
                    self.take_in(heard);
                    // Those that have come meanwhile make one change for readers.
                    for _ in 0..HEARD_MAX {
                        let Ok(heard) = self.heard.1.try_recv() else { break };
                        self.take_in(heard);
                    }
                }
                Ok(()) = hosts.changed() => {
                    let known = hosts.borrow_and_update().clone();
                    if let Some(known) = known {
                        self.step(Input::Hosts((*known).clone()));
                    }
                }
                news = signals.wait(), if needed => {
                    if news.is_err() { break }
                    refresh = refresh.or(Some(not_before));
                }
                () = until(refresh) => {
                    refresh = None;
                    self.refresh(&mut signals, SPACING);
                    not_before = Instant::now() + SPACING;
                }
                () = sleep_until(deadline) => self.step(Input::Tick),
            }
            self.publish();
        }
        for follower in self.followers.values() {
            follower.cancel.cancel();
        }
    }

    fn now(&self) -> Now {
        Now {
            steady: self.began.elapsed(),
            unix_ms: now_ms(),
        }
    }

    fn needed(&mut self) {
        self.needed_until = Instant::now() + LINGER;
        let until = self.began.elapsed() + LINGER;
        self.step(Input::Needed { until });
    }

    /// Takes in this host.
    fn refresh(&mut self, signals: &mut Signals, age_max: Duration) {
        let events = signals.events();
        let report = self.board.report(age_max);
        let known = self.told.as_deref();
        if known.is_some_and(|known| known.revision == report.revision) && events.is_empty() {
            return;
        }
        let update = report::update(known, &report, events);
        self.told = Some(report);
        self.step(Input::Heard {
            host: self.board.host().to_owned(),
            life: 1,
            update: Box::new(update),
        });
    }

    fn take_in(&mut self, heard: Heard) {
        let host = heard.host.to_string();
        let input = match heard.said {
            Ok(update) => {
                self.updates += 1;
                Input::Heard {
                    host,
                    life: heard.life,
                    update,
                }
            }
            Err(why) => Input::Lost {
                host,
                life: heard.life,
                why,
            },
        };
        self.step(input);
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        for effect in self.core.step(now, input) {
            match effect {
                Effect::Follow { host } => self.follow(host),
                Effect::Leave { host } => {
                    if let Some(follower) = self.followers.remove(&host) {
                        follower.cancel.cancel();
                    }
                }
                Effect::Renew { host } => {
                    if let Some(follower) = self.followers.get(&host) {
                        follower.renew.notify_one();
                    }
                }
            }
        }
    }

    fn follow(&mut self, host: String) {
        let Some(dial) = &self.dial else { return };
        let follower = Follower {
            cancel: CancellationToken::new(),
            renew: Arc::new(Notify::new()),
        };
        let follow = Follow {
            dial: dial.clone(),
            host: host.as_str().into(),
            request: FollowRequest::default(),
            renew: follower.renew.clone(),
            heard: self.heard.0.clone(),
        };
        let cancel = follower.cancel.clone();
        self.tracker
            .spawn(cancel.run_until_cancelled_owned(follow.run()));
        if let Some(before) = self.followers.insert(host, follower) {
            before.cancel.cancel();
        }
    }

    fn publish(&mut self) {
        let pulse = Pulse {
            change: self.core.change(),
            urgent: self.core.urgent(),
        };
        let beats = self.pulse.send_if_modified(|known| {
            let changed = *known != pulse;
            *known = pulse;
            changed
        });
        if beats {
            let now = self.now();
            let figures = Figures {
                updates: self.updates,
                ..self.core.figures(now)
            };
            self.figures.send_replace(figures);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
