//! Advice: the figures behind it, for how long it has been so, and what the fleet does about it by itself.
//!
//! What must outlast a term (which proposals stand, when the fleet last acted, how guilds have grown) is one
//! small document in the store, written when it changes: a point an hour for a day, then one a day.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tanako_fleet::{
    advise::{
        self, Acted, Advice, Balance, BotFacts, Change, DAY_MS, Facts, Growth, HostFacts,
        NodeFacts, Standing,
    },
    placement::Aim,
};
use tanako_proto::fleet::v1 as wire;
use tanako_store::{Outcome, Revision, Txn};
use tokio::time::Instant;

use super::{Caller, task::Task};
use crate::{clock::now_ms, history::Severity, hosts::Link, worker::WorkerState};

/// The document.
const KEY: &str = "advice";
/// Between two looks at the figures.
pub(super) const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Between two points of a bot's growth, in milliseconds.
const POINT_EVERY_MS: i64 = 60 * 60 * 1000;
/// Older points are thinned out to one a day.
const HOURLY_MS: i64 = DAY_MS;
/// Points that are older than this are dropped.
const POINTS_MS: i64 = 14 * DAY_MS;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    standing: Standing,
    acted: Acted,
    bots: BTreeMap<String, Vec<Point>>,
}

/// A bot at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Point {
    /// Milliseconds since 1970.
    at: i64,
    guilds: u64,
    restarts: u64,
}

/// What is kept, and when it is looked at next.
pub(super) struct Advisor {
    kept: Kept,
    revision: Revision,
    loaded: bool,
    pub(super) look_at: Instant,
}

impl Advisor {
    pub(super) fn new() -> Self {
        Self {
            kept: Kept::default(),
            revision: 0,
            loaded: false,
            look_at: Instant::now() + LOOK_EVERY,
        }
    }
}

impl Kept {
    /// Adds a point an hour.
    fn record(&mut self, facts: &Facts, restarts: &BTreeMap<String, u64>, now: i64) {
        self.bots
            .retain(|name, _| facts.bots.iter().any(|bot| bot.name == *name));
        for bot in &facts.bots {
            let Some(guilds) = bot.guilds else { continue };
            let points = self.bots.entry(bot.name.clone()).or_default();
            // A clock that was set back begins again.
            points.retain(|point| point.at <= now && now - point.at < POINTS_MS);
            if points
                .last()
                .is_some_and(|last| now - last.at < POINT_EVERY_MS)
            {
                continue;
            }
            points.push(Point {
                at: now,
                guilds,
                restarts: restarts.get(&bot.name).copied().unwrap_or(0),
            });
            let mut day = i64::MIN;
            points.retain(|point| {
                let of = point.at.div_euclid(DAY_MS);
                let keep = now - point.at < HOURLY_MS || of != day;
                day = of;
                keep
            });
        }
    }

    fn growth(&self, bot: &str, guilds: u64, now: i64) -> Option<Growth> {
        let first = self.bots.get(bot)?.first()?;
        let days = (now - first.at) as f64 / DAY_MS as f64;
        (days > 0.0).then(|| Growth {
            per_day: (guilds as f64 - first.guilds as f64) / days,
            days,
        })
    }

    /// Restarts since the point that is a day old; `None` = there is none yet.
    fn restarts(&self, bot: &str, restarts: u64, now: i64) -> Option<u64> {
        let points = self.bots.get(bot)?;
        let old = points.iter().rev().find(|point| now - point.at >= DAY_MS)?;
        // Counters begin anew where a process goes to another host.
        Some(restarts.saturating_sub(old.restarts))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values
        .filter(|value| *value > 0.0)
        .fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

impl Task {
    /// What is known of the fleet now, and how often each bot's processes were restarted.
    fn figures(&self, kept: &Kept, now: i64) -> (Facts, BTreeMap<String, u64>) {
        let picture = self.hosts.picture();
        let identify = self.parts.broker.status().borrow().clone();
        let sample = self.parts.local.sample.borrow().clone();
        let mut facts = Facts::default();
        let mut restarted = BTreeMap::new();
        let Some(spec) = self.desired.spec.as_deref() else {
            return (facts, restarted);
        };
        for (name, bot) in &spec.bots {
            let Some(active) = self.desired.active(name) else {
                continue;
            };
            let names = active.names(name);
            let workers: Vec<&WorkerState> = names
                .iter()
                .filter_map(|name| picture.workers.get(name).map(AsRef::as_ref))
                .collect();
            let shards = || workers.iter().flat_map(|worker| worker.shards.values());
            let restarts: u64 = names
                .iter()
                .filter_map(|name| picture.table.get(name))
                .map(|process| process.restarts)
                .sum();
            restarted.insert(name.clone(), restarts);
            // Of shards that are not heard nothing is known, and a sum without them would look like a loss.
            let guilds = (shards().count() == active.shards as usize)
                .then(|| shards().map(|it| u64::from(it.report.guilds)).sum());
            let known = identify.bots.iter().find(|known| known.bot == *name);
            let cpu = names.iter().filter_map(|name| sample.processes.get(name));
            facts.bots.push(BotFacts {
                name: name.clone(),
                worker: bot.worker,
                shards: active.shards,
                guilds,
                growth: guilds.and_then(|guilds| kept.growth(name, guilds, now)),
                recommended: known.map_or(0, |known| known.recommended_shards),
                identifies: known.map(|known| known.remaining.saturating_sub(known.reserve)),
                latency_ms: mean(shards().map(|it| it.report.latency_ms)),
                events_per_s: (!workers.is_empty())
                    .then(|| shards().map(|shard| shard.events_per_s).sum()),
                restarts: kept.restarts(name, restarts, now),
                cpu_percent: cpu.map(|it| f64::from(it.cpu_percent)).reduce(f64::max),
            });
        }
        let offers = self.offers(&self.desired, |_, state| state);
        for host in picture.hosts.values() {
            let offer = offers.iter().find(|offer| *offer.name == *host.name);
            let view = host.view.as_ref();
            let (cpus, cpu, memory) = match (&host.link, view) {
                (Link::Local, _) => (
                    sample.host.cpus,
                    Some(sample.host.cpu_percent),
                    (
                        sample.host.memory_used_bytes,
                        sample.host.memory_total_bytes,
                    ),
                ),
                (link, Some(view)) if link.is_up() => (
                    view.cpus,
                    Some(view.cpu_percent),
                    (view.memory_used_bytes, view.memory_total_bytes),
                ),
                _ => (0, None, (0, 0)),
            };
            let present = tanako_fleet::placement::HostState::Present;
            facts.hosts.push(HostFacts {
                name: host.name.to_string(),
                open: offer.is_some_and(|offer| offer.state == present),
                cpus,
                cpu_percent: cpu,
                used_bytes: None,
                memory_bytes: (memory.1 > 0).then_some(memory),
            });
        }
        for node in spec.database.iter().flat_map(|database| &database.nodes) {
            let name = format!("db/{}", node.name).parse().ok();
            let worker = name.and_then(|name| picture.workers.get(&name));
            let report = worker
                .and_then(|worker| worker.db.as_ref())
                .map(|db| &db.report);
            facts.nodes.push(NodeFacts {
                name: node.name.clone(),
                read_p99_ms: report.map(|report| report.read_p99_ms),
                write_p99_ms: report.map(|report| report.write_p99_ms),
            });
        }
        if picture.hosts.values().all(|host| host.link.is_up()) {
            let plan = self.level(offers, Aim::Even);
            facts.balance = Some(Balance {
                fullest: plan.evenness[0].fullest,
                moves: u32::try_from(plan.moves.len()).unwrap_or(u32::MAX),
            });
        }
        (facts, restarted)
    }

    /// What the fleet should have, as it stands.
    pub(super) async fn advice(&mut self) -> wire::Advice {
        self.recall_advice().await;
        let now = now_ms();
        let (facts, _) = self.figures(&self.advisor.kept, now);
        // A question must not move what a look a minute moves.
        let advice = advise::advise(&facts, &mut self.advisor.kept.standing.clone(), now);
        let may = self.desired.spec.as_deref().map(|spec| &spec.advise);
        to_wire(&advice, may, &self.advisor.kept.acted, now)
    }

    /// Looks at the figures, and acts where it may.
    pub(super) async fn look(&mut self) {
        self.advisor.look_at = Instant::now() + LOOK_EVERY;
        if !self.recall_advice().await {
            return;
        }
        let now = now_ms();
        let mut kept = self.advisor.kept.clone();
        let (facts, restarts) = self.figures(&kept, now);
        if facts.bots.is_empty() {
            return;
        }
        let advice = advise::advise(&facts, &mut kept.standing, now);
        kept.record(&facts, &restarts, now);
        let may = self.desired.spec.as_deref().map(|spec| spec.advise.clone());
        let busy = !self.active.is_empty();
        let change = may
            .as_ref()
            .and_then(|may| advise::due(&advice, &facts, may, &kept.acted, now, busy))
            .cloned();
        if let Some(change) = &change {
            kept.acted.note(change, now);
        }
        // Written down first: a fleet that forgets that it has acted would act again.
        if kept != self.advisor.kept && !self.keep_advice(kept).await {
            return;
        }
        if let Some(change) = change {
            self.act(&change, now).await;
        }
    }

    async fn act(&mut self, change: &Change, now: i64) {
        let request = match change {
            Change::Rebalance { .. } => wire::OperationRequest {
                kind: "rebalance".to_owned(),
                ..wire::OperationRequest::default()
            },
            Change::Reshard { bot, to, .. } => wire::OperationRequest {
                kind: "reshard".to_owned(),
                targets: vec![bot.clone()],
                reshard: Some(wire::ReshardRequest {
                    bot: bot.clone(),
                    shards: *to,
                    ..wire::ReshardRequest::default()
                }),
                ..wire::OperationRequest::default()
            },
            Change::Hosts { .. } | Change::Nodes { .. } => return,
        };
        let request = wire::OperationRequest {
            request_id: format!("advice-{now}"),
            ..request
        };
        let words = change.words();
        match self.submit(request, &Caller::agent("advice")).await {
            Ok(op) => self.parts.history.event(
                Severity::Info,
                "advice-taken",
                &op.id,
                format!("the fleet does by itself what it advised: {words}"),
            ),
            Err(problem) => self.parts.history.event(
                Severity::Warning,
                "advice-refused",
                "fleet",
                format!("{words}: {}", problem.message),
            ),
        }
    }

    /// Reads the document once a term; whether it is known.
    async fn recall_advice(&mut self) -> bool {
        if self.advisor.loaded {
            return true;
        }
        match self.parts.store.get(KEY).await {
            Ok(item) => {
                self.advisor.loaded = true;
                if let Some(item) = item {
                    self.advisor.revision = item.mod_revision;
                    // One that cannot be read is begun anew.
                    self.advisor.kept = serde_json::from_slice(&item.value).unwrap_or_default();
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, "what was advised cannot be read");
                false
            }
        }
    }

    /// Writes the document; whether that was done.
    async fn keep_advice(&mut self, kept: Kept) -> bool {
        let json = serde_json::to_vec(&kept).expect("invariant: figures are plain data");
        let txn = Txn::new()
            .if_unchanged(KEY, self.advisor.revision)
            .put(KEY, json);
        match self.parts.store.commit(txn).await {
            Ok(Outcome::Committed { revision }) => {
                self.advisor.revision = revision;
                self.advisor.kept = kept;
                true
            }
            Ok(Outcome::Conflict { .. }) => {
                self.advisor.loaded = false;
                false
            }
            Err(error) => {
                tracing::warn!(%error, "what is advised cannot be kept");
                false
            }
        }
    }
}

fn to_wire(
    advice: &Advice,
    may: Option<&tanako_fleet::spec::Advise>,
    acted: &Acted,
    now: i64,
) -> wire::Advice {
    let proposals = advice.proposals.iter().map(|proposal| {
        let change = &proposal.change;
        let (kind, object, from, to) = match change {
            Change::Reshard { bot, from, to, .. } => ("reshard", bot.clone(), *from, *to),
            Change::Rebalance { moves } => ("rebalance", String::new(), 0, *moves),
            Change::Hosts { from, to } => ("hosts", String::new(), *from, *to),
            Change::Nodes { from, to } => ("nodes", String::new(), *from, *to),
        };
        wire::Proposal {
            kind: kind.to_owned(),
            object,
            from,
            to,
            urgency: proposal.urgency.as_str().to_owned(),
            summary: change.words(),
            reasons: proposal.reasons.clone(),
            command: change.how(),
        }
    });
    wire::Advice {
        proposals: proposals.collect(),
        notes: advice.notes.clone(),
        unknown: advice.unknown.clone(),
        may_act: may
            .into_iter()
            .flat_map(|may| &may.act)
            .map(|act| act.as_str().to_owned())
            .collect(),
        acted_at: acted.last(),
        at: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;

    fn facts(guilds: u64) -> Facts {
        Facts {
            bots: vec![BotFacts {
                name: "b".to_owned(),
                guilds: Some(guilds),
                ..BotFacts::default()
            }],
            ..Facts::default()
        }
    }

    #[test]
    fn points_tell_the_growth_and_stay_few() {
        let mut kept = Kept::default();
        let begin = 20_000 * DAY_MS + 7 * HOUR;
        for minute in 0..30 * 24 * 60 {
            let now = begin + minute * 60_000;
            let guilds = 1_000 + (minute / 60) as u64;
            let restarts = BTreeMap::from([("b".to_owned(), (minute / 120) as u64)]);
            kept.record(&facts(guilds), &restarts, now);
        }
        let points = kept.bots["b"].len();
        assert!((36..=41).contains(&points), "{points}");
        let now = begin + 30 * DAY_MS;
        let growth = kept
            .growth("b", 1_000 + 30 * 24, now)
            .expect("there are points");
        assert!((growth.per_day - 24.0).abs() < 0.5, "{growth:?}");
        assert!((12.0..=14.0).contains(&growth.days), "{growth:?}");
        let restarts = kept.restarts("b", 30 * 12, now);
        assert!(
            restarts.is_some_and(|many| (12..=24).contains(&many)),
            "{restarts:?}"
        );
        let json = serde_json::to_vec(&kept).expect("plain data");
        let read: Kept = serde_json::from_slice(&json).expect("the same");
        assert_eq!(read, kept);
        // A clock that was set back, and a bot that is no more.
        kept.record(&facts(5), &BTreeMap::new(), begin - DAY_MS);
        assert_eq!(kept.bots["b"].len(), 1);
        kept.record(&Facts::default(), &BTreeMap::new(), now);
        assert!(kept.bots.is_empty());
    }
}
