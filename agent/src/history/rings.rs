//! The last minutes of every series, second by second.
//!
//! Memory is bounded by a budget for all rings together: few processes are remembered for ten
//! minutes, a thousand for two. A series that never changed (restarts, an idle process) takes no
//! memory at all.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tanako_proto::fleet::v1::Series;

use crate::{
    metrics::Sample,
    supervisor::Table,
    worker::{States, WorkerState},
};

/// Seconds between two rows for the database.
pub(super) const ROW_S: i64 = 10;
/// Seconds remembered at most and at least.
const CAPACITY_MAX: usize = 600;
const CAPACITY_MIN: usize = 120;
/// Values by which a ring grows.
const GROW: usize = 64;
/// Missed seconds that are no gap.
const DRIFT_S: usize = 2;
/// For the values of all rings.
const BUDGET_BYTES: usize = 2 << 20;

/// What a series measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Metric {
    /// CPU, of a core for a process, of all cores for a host.
    CpuPercent,
    /// Resident memory.
    RssBytes,
    /// Dispatches of all shards of a process.
    EventsPerS,
    /// Mean heartbeat round trip of a process's shards; for a database node the median read.
    LatencyMs,
    /// Reads of a database node.
    ReadsPerS,
    /// Writes of a database node.
    WritesPerS,
    /// Restarts so far.
    Restarts,
    /// Load average of a host.
    Load1,
    /// Memory in use on a host.
    MemoryUsedBytes,
}

/// Number of metrics.
pub(super) const METRICS: usize = 9;

impl Metric {
    /// All of them, by number.
    pub(super) const ALL: [Self; METRICS] = [
        Self::CpuPercent,
        Self::RssBytes,
        Self::EventsPerS,
        Self::LatencyMs,
        Self::ReadsPerS,
        Self::WritesPerS,
        Self::Restarts,
        Self::Load1,
        Self::MemoryUsedBytes,
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CpuPercent => "cpu_percent",
            Self::RssBytes => "rss_bytes",
            Self::EventsPerS => "events_per_s",
            Self::LatencyMs => "latency_ms",
            Self::ReadsPerS => "reads_per_s",
            Self::WritesPerS => "writes_per_s",
            Self::Restarts => "restarts",
            Self::Load1 => "load1",
            Self::MemoryUsedBytes => "memory_used_bytes",
        }
    }

    /// The metric of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.as_str() == name)
    }
}

/// A point of each series of a target.
pub(super) type Points = Vec<(Metric, f32)>;

/// One point of every series, for the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    /// Seconds since 1970 at its end, a multiple of [`ROW_S`].
    pub(super) end_s: i64,
    pub(super) targets: Vec<(Arc<str>, Points)>,
}

/// The values of one series, one a second. NaN = no sample.
#[derive(Debug, Default)]
struct Ring {
    len: usize,
    /// The value of all `len` seconds, while `values` is empty.
    constant: f32,
    values: VecDeque<f32>,
    /// Second of its latest value.
    end_s: i64,
}

impl Ring {
    fn push(&mut self, value: f32, capacity: usize) {
        if self.values.is_empty() {
            if self.len == 0 || value.to_bits() == self.constant.to_bits() {
                self.constant = value;
                self.len = (self.len + 1).min(capacity);
                return;
            }
            self.values.reserve_exact(self.len + GROW);
            self.values
                .extend(std::iter::repeat_n(self.constant, self.len));
        }
        while self.values.len() >= capacity {
            self.values.pop_front();
        }
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact(GROW);
        }
        self.values.push_back(value);
        self.len = self.values.len();
        if self.values.capacity() > capacity * 2 {
            self.values.shrink_to(capacity);
        }
    }

    /// The value `back` seconds before the latest.
    fn get(&self, back: usize) -> Option<f32> {
        if back >= self.len {
            return None;
        }
        if self.values.is_empty() {
            return Some(self.constant);
        }
        self.values.get(self.len - 1 - back).copied()
    }

    /// Mean of the latest `n` seconds that have a sample.
    fn mean(&self, n: usize) -> Option<f32> {
        mean((0..n).filter_map(|back| self.get(back)).map(f64::from)).map(|m| m as f32)
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values
        .filter(|v| !v.is_nan())
        .fold((0.0, 0_u32), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[derive(Debug, Default)]
struct Target {
    rings: Vec<(Metric, Ring)>,
    /// Samples since it was last seen.
    missed: usize,
}

/// The rings of all series.
#[derive(Debug, Default)]
pub(super) struct Rings {
    targets: HashMap<Arc<str>, Target>,
    /// Second of the latest point; the same for all rings.
    latest_s: i64,
}

impl Rings {
    /// Adds a point to every series; each ten seconds returns a row for the database.
    pub(super) fn push(
        &mut self,
        host: &str,
        sample: &Sample,
        workers: &States,
        table: &Table,
    ) -> Option<Row> {
        let now_s = sample.at.div_euclid(1000);
        let capacity = self.capacity();
        let gap = now_s - self.latest_s;
        if gap < 0 {
            // The wall clock went back; seconds that come twice would lie about both.
            self.targets.clear();
        } else if gap == 0 {
            return None;
        }
        let blanks = if self.latest_s == 0 {
            0
        } else {
            (gap - 1).clamp(0, capacity as i64) as usize
        };
        let before_s = std::mem::replace(&mut self.latest_s, now_s);

        for target in self.targets.values_mut() {
            target.missed += 1;
            for (_, ring) in &mut target.rings {
                // One sample a second drifts over the edge of a second now and then; only a longer
                // gap is one.
                let filler = match ring.get(0) {
                    Some(latest) if blanks <= DRIFT_S => latest,
                    _ => f32::NAN,
                };
                for _ in 0..blanks {
                    ring.push(filler, capacity);
                }
            }
        }
        let cpu = f64::from;
        self.set(
            &format!("host:{host}"),
            &[
                (Metric::CpuPercent, sample.host.cpu_percent),
                (Metric::Load1, sample.host.load1),
                (
                    Metric::MemoryUsedBytes,
                    sample.host.memory_used_bytes as f64,
                ),
            ],
            capacity,
        );
        for (name, process) in table {
            let mut points = vec![(Metric::Restarts, process.restarts as f64)];
            if let Some(usage) = sample.processes.get(name) {
                points.push((Metric::CpuPercent, cpu(usage.cpu_percent)));
                points.push((Metric::RssBytes, usage.rss_bytes as f64));
            }
            if let Some(worker) = workers.get(name).filter(|w| w.attached) {
                of_worker(worker, &mut points);
            }
            self.set(name.as_str(), &points, capacity);
        }
        self.targets.retain(|_, target| target.missed < capacity);
        for (_, ring) in self.targets.values_mut().flat_map(|t| &mut t.rings) {
            if ring.end_s != now_s {
                ring.end_s = now_s;
                ring.push(f32::NAN, capacity);
            }
        }

        (now_s.div_euclid(ROW_S) != before_s.div_euclid(ROW_S) && before_s != 0)
            .then(|| self.row(now_s))
    }

    /// Adds this second's points of a target.
    fn set(&mut self, name: &str, points: &[(Metric, f64)], capacity: usize) {
        if !self.targets.contains_key(name) {
            self.targets.insert(name.into(), Target::default());
        }
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        target.missed = 0;
        for (metric, value) in points {
            let value = *value as f32;
            let index = target.rings.iter().position(|(m, _)| m == metric);
            let index = index.unwrap_or_else(|| {
                target.rings.push((*metric, Ring::default()));
                target.rings.len() - 1
            });
            let ring = &mut target.rings[index].1;
            ring.end_s = self.latest_s;
            ring.push(value, capacity);
        }
    }

    fn capacity(&self) -> usize {
        let stored = self
            .targets
            .values()
            .flat_map(|target| &target.rings)
            .filter(|(_, ring)| !ring.values.is_empty())
            .count();
        (BUDGET_BYTES / size_of::<f32>() / stored.max(1)).clamp(CAPACITY_MIN, CAPACITY_MAX)
    }

    fn row(&self, now_s: i64) -> Row {
        let targets = self
            .targets
            .iter()
            .filter_map(|(name, target)| {
                let points: Vec<_> = target
                    .rings
                    .iter()
                    .filter_map(|(metric, ring)| Some((*metric, ring.mean(ROW_S as usize)?)))
                    .collect();
                (!points.is_empty()).then(|| (Arc::clone(name), points))
            })
            .collect();
        Row {
            end_s: now_s.div_euclid(ROW_S) * ROW_S,
            targets,
        }
    }

    /// Fills the cells that memory knows about; true when it knows about all of them.
    pub(super) fn fill(&self, target: &str, grids: &mut [Grid]) -> bool {
        let Some(target) = self.targets.get(target) else {
            return false;
        };
        let mut complete = true;
        for grid in grids {
            let Some((_, ring)) = target.rings.iter().find(|(m, _)| *m == grid.metric) else {
                complete = false;
                continue;
            };
            for back in 0..ring.len {
                if let Some(value) = ring.get(back) {
                    grid.add(self.latest_s - back as i64, f64::from(value));
                }
            }
            complete &= self.latest_s - ring.len as i64 <= grid.start_s;
        }
        complete
    }
}

fn of_worker(worker: &WorkerState, points: &mut Vec<(Metric, f64)>) {
    if !worker.shards.is_empty() {
        let events = worker.shards.values().map(|s| s.events_per_s).sum();
        points.push((Metric::EventsPerS, events));
        let latencies = worker
            .shards
            .values()
            .map(|s| s.report.latency_ms)
            .filter(|ms| *ms > 0.0);
        if let Some(latency) = mean(latencies) {
            points.push((Metric::LatencyMs, latency));
        }
    }
    if let Some(db) = &worker.db {
        points.push((Metric::ReadsPerS, db.reads_per_s));
        points.push((Metric::WritesPerS, db.writes_per_s));
        points.push((Metric::LatencyMs, db.report.read_p50_ms));
    }
}

/// A series being put together: cells of equal length, each the mean of what falls into it.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    pub(super) metric: Metric,
    pub(super) start_s: i64,
    pub(super) step_s: i64,
    cells: Vec<(f64, u32)>,
}

impl Grid {
    /// Over the last `seconds` up to `now_ms`, in at most `points` cells.
    pub(super) fn new(metric: Metric, now_ms: i64, seconds: u32, points: u32) -> Self {
        let seconds = i64::from(seconds.max(1));
        let points = i64::from(points.max(1));
        let step_s = (seconds + points - 1) / points;
        let cells = ((seconds + step_s - 1) / step_s).max(1);
        // The running second is the last; cells start at multiples of their length, so that the
        // same moment falls into the same cell each time someone asks.
        let last = now_ms.div_euclid(1000).div_euclid(step_s) * step_s;
        Self {
            metric,
            start_s: last - (cells - 1) * step_s,
            step_s,
            cells: vec![(0.0, 0); cells as usize],
        }
    }

    pub(super) fn add(&mut self, second: i64, value: f64) {
        let cell = (second - self.start_s).div_euclid(self.step_s);
        if !value.is_nan()
            && let Ok(cell) = usize::try_from(cell)
            && let Some((sum, count)) = self.cells.get_mut(cell)
        {
            *sum += value;
            *count += 1;
        }
    }

    /// Takes the cells that are empty here from `other`, which has the same shape.
    pub(super) fn fill_from(&mut self, other: &Self) {
        for (mine, theirs) in self.cells.iter_mut().zip(&other.cells) {
            if mine.1 == 0 {
                *mine = *theirs;
            }
        }
    }

    pub(super) fn end_s(&self) -> i64 {
        self.start_s + self.step_s * self.cells.len() as i64
    }

    pub(super) fn into_series(self) -> Series {
        Series {
            metric: self.metric.as_str().to_owned(),
            start: self.start_s * 1000,
            step_ms: u32::try_from(self.step_s * 1000).unwrap_or(u32::MAX),
            values: self
                .cells
                .iter()
                .map(|(sum, count)| {
                    if *count == 0 {
                        f64::NAN
                    } else {
                        sum / f64::from(*count)
                    }
                })
                .collect(),
        }
    }
}
