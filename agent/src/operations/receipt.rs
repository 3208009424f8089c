//! What an operation cost each shard, from what the old process left and the new one reports.
//!
//! Counters of a worker begin with its process. A process that took sessions over (blue-green) or only
//! began to handle (reshard) had a life before: its receipt counts from a [`Base`].

use serde::{Deserialize, Serialize};
use tanako_fleet::vault::Last;
use tanako_proto::{
    fleet::v1 as wire,
    worker::v1::{ShardReport, ShardStage},
};

use crate::worker::WorkerState;

/// Without a dispatch for this long a shard is idle: nothing was missed in that time. In milliseconds.
const IDLE_MS: i64 = 1_000;

/// Counters of a shard before the operation touched it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What counts came after this, in milliseconds since 1970; 0 = all of the process's life.
    #[serde(default)]
    pub at: i64,
    /// See [`ShardReport`].
    pub resumes: u64,
    /// See [`ShardReport`].
    pub identifies: u64,
    /// See [`ShardReport`].
    pub replayed: u64,
    /// See [`ShardReport`].
    pub lost: u64,
    /// See [`ShardReport`].
    pub duplicated: u64,
}

impl Base {
    /// The counters of a report.
    pub fn of(report: &ShardReport, at: i64) -> Self {
        Self {
            at,
            resumes: report.resumes,
            identifies: report.identifies,
            replayed: report.replayed,
            lost: report.lost,
            duplicated: report.duplicated,
        }
    }
}

/// How a shard came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Its session went on.
    Resumed,
    /// It has a new session.
    Identified,
    /// It belonged to a set that was drained; counts for loss and double handling only.
    Drained,
    /// Its process does not say.
    #[default]
    Unknown,
}

impl How {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Identified => "identified",
            Self::Drained => "drained",
            Self::Unknown => "unknown",
        }
    }
}

/// What an operation cost one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its process.
    pub process: String,
    /// The process's attempt; what others report does not count.
    #[serde(default)]
    pub attempt: u64,
    /// The shard.
    pub shard_id: u32,
    /// Of how many.
    #[serde(default)]
    pub shard_count: u32,
    /// How it came back.
    pub how: How,
    /// When the old process took its last event, in milliseconds since 1970; 0 = there was none.
    #[serde(default)]
    pub since: i64,
    /// From `since` to the first event, RESUMED or READY of the new one.
    pub gap_ms: u64,
    /// Events replayed by the resume.
    pub replayed: u64,
    /// Events that never came.
    #[serde(default)]
    pub lost: u64,
    /// Interactions handled twice.
    #[serde(default)]
    pub duplicated: u64,
    /// Counters to begin from.
    #[serde(default)]
    pub base: Base,
}

impl Receipt {
    /// Takes in the latest report, if it is of the attempt in question.
    pub fn refresh(&mut self, worker: Option<&WorkerState>) {
        let report = worker
            .filter(|worker| worker.attempt == self.attempt)
            .and_then(|worker| worker.shards.get(&self.shard_id))
            .map(|shard| &shard.report);
        let Some(report) = report else { return };
        let base = self.base;
        self.replayed = report.replayed.saturating_sub(base.replayed);
        self.lost = report.lost.saturating_sub(base.lost);
        self.duplicated = report.duplicated.saturating_sub(base.duplicated);
        if self.how == How::Drained {
            return;
        }
        // An IDENTIFY after a failed RESUME counts as one.
        self.how = if report.identifies > base.identifies {
            How::Identified
        } else if report.resumes > base.resumes || report.stage == ShardStage::Ready as i32 {
            How::Resumed
        } else {
            How::Unknown
        };
        let back = [report.first_event_at, report.established_at]
            .into_iter()
            .filter(|at| *at > base.at.max(0))
            .min();
        if let Some(back) = back
            && self.since > 0
        {
            self.gap_ms = u64::try_from(back - self.since).unwrap_or(0);
        }
    }

    /// As `tanakoctl` gets it.
    pub fn to_wire(&self) -> wire::ShardReceipt {
        wire::ShardReceipt {
            process: self.process.clone(),
            shard_id: self.shard_id,
            how: self.how.as_str().to_owned(),
            gap_ms: self.gap_ms,
            replayed: self.replayed,
            lost: self.lost,
            duplicated: self.duplicated,
            shard_count: self.shard_count,
        }
    }
}

/// When a holder took its last event: the latest dispatch, or, where the shard was idle, the moment
/// at which the connection was given up. Of a process that was killed there is no such moment; then
/// `last_seen`, its last sign of life, stands for it. 0 = there is nothing to go by.
pub fn ended(last: Option<&Last>, last_seen: i64) -> i64 {
    let (event, stopped, deposited) = last.map_or((0, 0, 0), |last| {
        (last.last_event_at, last.stopped_at, last.deposited_at)
    });
    let end = if stopped > 0 {
        stopped
    } else {
        last_seen.max(event).max(deposited)
    };
    if event > 0 && end - event <= IDLE_MS {
        event
    } else {
        end
    }
}

/// The sums of a receipt; `None` where there is none.
pub fn totals(receipts: &[Receipt]) -> Option<wire::ReceiptTotals> {
    if receipts.is_empty() {
        return None;
    }
    let moved = || receipts.iter().filter(|one| one.how != How::Drained);
    let many = |how: How| moved().filter(|one| one.how == how).count() as u32;
    let mut gaps: Vec<u64> = moved().map(|one| one.gap_ms).collect();
    gaps.sort_unstable();
    // The nearest rank: of 64 shards the 99th percentile is the worst.
    let rank = |percent: usize| {
        let place = (gaps.len() * percent).div_ceil(100).max(1) - 1;
        gaps.get(place).copied().unwrap_or(0)
    };
    let sum = |value: fn(&Receipt) -> u64| receipts.iter().map(value).sum();
    Some(wire::ReceiptTotals {
        shards: gaps.len() as u32,
        resumed: many(How::Resumed),
        identified: many(How::Identified),
        unknown: many(How::Unknown),
        gap_p50_ms: rank(50),
        gap_p99_ms: rank(99),
        gap_max_ms: rank(100),
        replayed: sum(|one| one.replayed),
        lost: sum(|one| one.lost),
        duplicated: sum(|one| one.duplicated),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tanako_fleet::vault::Holder;
    use tanako_proto::worker::v1::{ProcessStage, WorkerKind};

    use super::*;
    use crate::worker::ShardState;

    fn last(event: i64, stopped: i64, deposited: i64) -> Last {
        Last {
            by: Holder {
                process: "a/0".parse().expect("a good name"),
                attempt: 1,
            },
            deposited_at: deposited,
            seq: 1,
            last_event_at: event,
            stopped_at: stopped,
        }
    }

    #[test]
    fn the_old_process_ends_with_its_last_event_or_where_it_was_idle_with_its_connection() {
        assert_eq!(ended(Some(&last(5_000, 5_100, 5_120)), 4_900), 5_000);
        assert_eq!(
            ended(Some(&last(1_000, 9_000, 9_020)), 8_500),
            9_000,
            "idle"
        );
        assert_eq!(
            ended(Some(&last(0, 9_000, 9_020)), 8_500),
            9_000,
            "never one"
        );
        // Killed: there is no stop.
        assert_eq!(ended(Some(&last(5_000, 0, 5_500)), 5_400), 5_000);
        assert_eq!(ended(Some(&last(1_000, 0, 1_500)), 8_500), 8_500, "idle");
        assert_eq!(ended(None, 8_500), 8_500);
        assert_eq!(ended(None, 0), 0);
    }

    fn worker(report: ShardReport) -> WorkerState {
        let shard = ShardState {
            report,
            ..ShardState::default()
        };
        WorkerState {
            attempt: 2,
            kind: WorkerKind::Shard,
            version: String::new(),
            attached: true,
            last_seen: 0,
            stage: ProcessStage::Ready,
            detail: String::new(),
            shards: BTreeMap::from([(0, shard)]),
            db: None,
            metrics: BTreeMap::new(),
        }
    }

    fn receipt() -> Receipt {
        Receipt {
            process: "a/0".to_owned(),
            attempt: 2,
            since: 10_000,
            ..Receipt::default()
        }
    }

    #[test]
    fn a_new_process_counts_from_its_start() {
        let mut one = receipt();
        let report = ShardReport {
            stage: ShardStage::Ready.into(),
            resumes: 1,
            replayed: 7,
            lost: 1,
            duplicated: 2,
            first_event_at: 10_250,
            established_at: 10_300,
            ..ShardReport::default()
        };
        one.refresh(Some(&worker(report.clone())));
        assert_eq!(
            (one.how, one.gap_ms, one.replayed, one.lost, one.duplicated),
            (How::Resumed, 250, 7, 1, 2)
        );
        // A successor's report is not this one's.
        one.attempt = 1;
        one.refresh(Some(&worker(ShardReport::default())));
        assert_eq!(one.replayed, 7);
        let mut identified = receipt();
        let report = ShardReport {
            identifies: 1,
            first_event_at: 0,
            ..report
        };
        identified.refresh(Some(&worker(report)));
        assert_eq!((identified.how, identified.gap_ms), (How::Identified, 300));
    }

    #[test]
    fn one_that_took_over_counts_from_then() {
        let mut one = receipt();
        let mut report = ShardReport {
            stage: ShardStage::Ready.into(),
            resumes: 3,
            identifies: 1,
            replayed: 40,
            lost: 1,
            first_event_at: 500,
            established_at: 600,
            ..ShardReport::default()
        };
        one.base = Base::of(&report, 9_990);
        report.resumes = 4;
        report.replayed = 45;
        report.established_at = 10_080;
        one.refresh(Some(&worker(report)));
        assert_eq!(
            (one.how, one.gap_ms, one.replayed, one.lost),
            (How::Resumed, 80, 5, 0)
        );
    }

    #[test]
    fn totals_add_up() {
        assert_eq!(totals(&[]), None);
        let mut all: Vec<Receipt> = (1..=64)
            .map(|n| Receipt {
                how: How::Resumed,
                gap_ms: n * 10,
                replayed: 1,
                ..receipt()
            })
            .collect();
        all[0].how = How::Identified;
        all.push(Receipt {
            how: How::Drained,
            lost: 3,
            gap_ms: 99_999,
            ..receipt()
        });
        let totals = totals(&all).expect("there are some");
        assert_eq!(
            (totals.shards, totals.resumed, totals.identified),
            (64, 63, 1)
        );
        assert_eq!(
            (totals.gap_p50_ms, totals.gap_p99_ms, totals.gap_max_ms),
            (320, 640, 640)
        );
        assert_eq!((totals.replayed, totals.lost), (64, 3));
    }
}
