//! What the node counts, and its Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::request::ACTIONS;
use crate::schema::TABLES;

/// Upper bounds of the latency buckets, in microseconds; the last bucket has none.
const BOUNDS_US: [u64; 23] = [
    10, 20, 35, 50, 75, 100, 150, 250, 400, 650, 1_000, 1_500, 2_500, 4_000, 6_500, 10_000, 15_000,
    25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// A latency histogram without locks.
#[derive(Default)]
pub struct Latency {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    fn record(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let at = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// The counts so far.
    pub fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].load(Relaxed))
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        for (at, count) in self.counts().into_iter().enumerate() {
            sum += count;
            match BOUNDS_US.get(at) {
                Some(bound) => {
                    let seconds = *bound as f64 / 1e6;
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{seconds}\"}} {sum}");
                }
                None => {
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {sum}");
                }
            }
        }
        let _ = writeln!(
            out,
            "{name}_sum{{{labels}}} {}",
            self.sum_us.load(Relaxed) as f64 / 1e6
        );
        let _ = writeln!(out, "{name}_count{{{labels}}} {sum}");
    }
}

/// The value in milliseconds below which this share of the requests between two counts lies.
pub fn quantile_ms(before: &[u64], after: &[u64], share: f64) -> f64 {
    let between: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(*before))
        .collect();
    let total: u64 = between.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let rank = (total as f64 * share).ceil() as u64;
    let mut sum = 0;
    for (at, count) in between.into_iter().enumerate() {
        sum += count;
        if sum >= rank {
            let bound = BOUNDS_US
                .get(at)
                .copied()
                .unwrap_or(BOUNDS_US[BOUNDS_US.len() - 1]);
            return bound as f64 / 1e3;
        }
    }
    0.0
}

/// All counters of a node.
pub struct Metrics {
    started: Instant,
    succeeded: [AtomicU64; ACTIONS.len()],
    failed: [AtomicU64; ACTIONS.len()],
    /// Frames that were no request at all.
    pub invalid: AtomicU64,
    /// Requests that read, by how long they took.
    pub reads: Latency,
    /// Requests that write, by how long they took.
    pub writes: Latency,
    groups: AtomicU64,
    grouped: AtomicU64,
    largest_group: AtomicU64,
    commits: Latency,
    committed_bytes: AtomicU64,
    rows: [AtomicI64; TABLES.len()],
    /// Requests passed on to their primary.
    pub forwards: AtomicU64,
    /// Requests that could not be passed on.
    pub forwards_failed: AtomicU64,
    /// Requests from other nodes.
    pub forwarded_here: AtomicU64,
    /// Open connections.
    pub connections: AtomicI64,
    /// Connections refused because there are too many.
    pub connections_refused: AtomicU64,
    /// Connections cut off because they did not read their replies.
    pub slow_readers: AtomicU64,
    /// Upgrades without the right token.
    pub auth_failures: AtomicU64,
    /// Rows that the ring has on other nodes.
    pub misplaced_rows: AtomicU64,
}

/// Sums for a report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Requests that read.
    pub reads: u64,
    /// Requests that write.
    pub writes: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            succeeded: std::array::from_fn(|_| AtomicU64::new(0)),
            failed: std::array::from_fn(|_| AtomicU64::new(0)),
            invalid: AtomicU64::new(0),
            reads: Latency::default(),
            writes: Latency::default(),
            groups: AtomicU64::new(0),
            grouped: AtomicU64::new(0),
            largest_group: AtomicU64::new(0),
            commits: Latency::default(),
            committed_bytes: AtomicU64::new(0),
            rows: std::array::from_fn(|_| AtomicI64::new(0)),
            forwards: AtomicU64::new(0),
            forwards_failed: AtomicU64::new(0),
            forwarded_here: AtomicU64::new(0),
            connections: AtomicI64::new(0),
            connections_refused: AtomicU64::new(0),
            slow_readers: AtomicU64::new(0),
            auth_failures: AtomicU64::new(0),
            misplaced_rows: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, action: usize, ok: bool, write: bool, took: Duration) {
        let counters = if ok { &self.succeeded } else { &self.failed };
        counters[action].fetch_add(1, Relaxed);
        if write { &self.writes } else { &self.reads }.record(took);
    }

    /// Counts a group commit.
    pub fn group(&self, writes: usize) {
        self.groups.fetch_add(1, Relaxed);
        self.grouped.fetch_add(writes as u64, Relaxed);
        self.largest_group.fetch_max(writes as u64, Relaxed);
    }

    /// Counts a batch that reached the disk.
    pub fn committed(&self, bytes: usize, took: Duration) {
        self.commits.record(took);
        self.committed_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Follows the number of rows of a table.
    pub fn rows_changed(&self, table: usize, change: i64) {
        self.rows[table].fetch_add(change, Relaxed);
    }

    /// Sets the number of rows of each table, after opening or replacing the data.
    pub fn set_rows(&self, rows: &[u64]) {
        for (counter, rows) in self.rows.iter().zip(rows) {
            counter.store(rows.cast_signed(), Relaxed);
        }
    }

    /// The number of rows of all tables together.
    pub fn rows_total(&self) -> u64 {
        self.rows
            .iter()
            .map(|rows| u64::try_from(rows.load(Relaxed)).unwrap_or_default())
            .sum()
    }

    /// Sums for a report.
    pub fn totals(&self) -> Totals {
        let sum = |latency: &Latency| latency.counts().iter().sum();
        Totals {
            reads: sum(&self.reads),
            writes: sum(&self.writes),
            errors: self
                .failed
                .iter()
                .map(|count| count.load(Relaxed))
                .sum::<u64>()
                + self.invalid.load(Relaxed),
        }
    }

    /// Seconds since the node started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The Prometheus text.
    pub fn render(&self, node: &str, disk_bytes: u64, free_bytes: u64) -> String {
        let mut out = String::with_capacity(8192);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "tanako_db_requests_total";
        head(
            &mut out,
            name,
            "counter",
            "Requests answered, by action and outcome.",
        );
        for (at, action) in ACTIONS.iter().enumerate() {
            for (outcome, counters) in [("ok", &self.succeeded), ("error", &self.failed)] {
                let count = counters[at].load(Relaxed);
                let _ = writeln!(
                    out,
                    "{name}{{node=\"{node}\",action=\"{action}\",outcome=\"{outcome}\"}} {count}"
                );
            }
        }
        let name = "tanako_db_request_seconds";
        head(
            &mut out,
            name,
            "histogram",
            "Time from a request's arrival to its answer.",
        );
        self.reads
            .render(&mut out, name, &format!("node=\"{node}\",kind=\"read\""));
        self.writes
            .render(&mut out, name, &format!("node=\"{node}\",kind=\"write\""));
        let name = "tanako_db_commit_seconds";
        head(
            &mut out,
            name,
            "histogram",
            "Time to put one group of writes on disk.",
        );
        self.commits
            .render(&mut out, name, &format!("node=\"{node}\""));
        let name = "tanako_db_rows";
        head(&mut out, name, "gauge", "Rows held by this node, by table.");
        for (at, table) in TABLES.iter().enumerate() {
            let rows = self.rows[at].load(Relaxed);
            let _ = writeln!(
                out,
                "{name}{{node=\"{node}\",table=\"{}\"}} {rows}",
                table.name
            );
        }
        let load = |value: &AtomicU64| value.load(Relaxed) as f64;
        let connections = self.connections.load(Relaxed) as f64;
        for (name, kind, help, value) in [
            (
                "tanako_db_groups_total",
                "counter",
                "Group commits.",
                load(&self.groups),
            ),
            (
                "tanako_db_grouped_writes_total",
                "counter",
                "Writes carried out in group commits.",
                load(&self.grouped),
            ),
            (
                "tanako_db_group_writes_max",
                "gauge",
                "Writes in the largest group so far.",
                load(&self.largest_group),
            ),
            (
                "tanako_db_committed_bytes_total",
                "counter",
                "Bytes put on disk by group commits.",
                load(&self.committed_bytes),
            ),
            (
                "tanako_db_invalid_frames_total",
                "counter",
                "Frames that were no request.",
                load(&self.invalid),
            ),
            (
                "tanako_db_forwards_total",
                "counter",
                "Requests passed on to their primary.",
                load(&self.forwards),
            ),
            (
                "tanako_db_forwards_failed_total",
                "counter",
                "Requests that could not be passed on.",
                load(&self.forwards_failed),
            ),
            (
                "tanako_db_forwarded_here_total",
                "counter",
                "Requests passed on to this node.",
                load(&self.forwarded_here),
            ),
            (
                "tanako_db_connections",
                "gauge",
                "Open WebSocket connections.",
                connections,
            ),
            (
                "tanako_db_connections_refused_total",
                "counter",
                "Connections refused: too many.",
                load(&self.connections_refused),
            ),
            (
                "tanako_db_slow_readers_total",
                "counter",
                "Connections cut off: replies were not read.",
                load(&self.slow_readers),
            ),
            (
                "tanako_db_auth_failures_total",
                "counter",
                "Upgrades refused: wrong or no token.",
                load(&self.auth_failures),
            ),
            (
                "tanako_db_misplaced_rows",
                "gauge",
                "Rows held here that the ring has on other nodes: back up and restore.",
                load(&self.misplaced_rows),
            ),
            (
                "tanako_db_disk_bytes",
                "gauge",
                "Bytes used by the store.",
                disk_bytes as f64,
            ),
            (
                "tanako_db_free_bytes",
                "gauge",
                "Bytes free on the store's file system.",
                free_bytes as f64,
            ),
            (
                "tanako_db_uptime_seconds",
                "gauge",
                "Seconds since the node started.",
                self.started.elapsed().as_secs_f64(),
            ),
        ] {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name}{{node=\"{node}\"}} {value}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_interval() {
        let latency = Latency::default();
        for _ in 0..100 {
            latency.record(Duration::from_millis(90));
        }
        let before = latency.counts();
        for _ in 0..99 {
            latency.record(Duration::from_micros(30));
        }
        latency.record(Duration::from_millis(9));
        let after = latency.counts();
        assert!((quantile_ms(&before, &after, 0.5) - 0.035).abs() < 1e-9);
        assert!((quantile_ms(&before, &after, 1.0) - 10.0).abs() < 1e-9);
        assert!(quantile_ms(&after, &after, 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_text_has_every_action_and_table() {
        let metrics = Metrics::default();
        metrics.answered(1, true, true, Duration::from_micros(5));
        let text = metrics.render("node1", 1, 2);
        assert!(text.contains(
            "tanako_db_requests_total{node=\"node1\",action=\"insert\",outcome=\"ok\"} 1\n"
        ));
        assert!(text.contains("tanako_db_rows{node=\"node1\",table=\"guilds\"} 0\n"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
