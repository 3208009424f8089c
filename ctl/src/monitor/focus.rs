//! Histories of the one process or host that is looked at closely. Kept only while it is open.

use tanako_proto::fleet::v1::{HistoryReply, Host, Process};

use super::{
    series::{Latencies, POINTS_MAX, Series},
    state::{Model, latency, load},
};

/// Milliseconds between live samples, the interval of the watch.
const STEP_MS: u32 = 500;

const SHARD_METRICS: &[&str] = &["cpu_percent", "rss_bytes", "events_per_s", "latency_ms"];
const DB_METRICS: &[&str] = &["cpu_percent", "rss_bytes", "reads_per_s", "writes_per_s"];
const HOST_METRICS: &[&str] = &["cpu_percent", "memory_used_bytes", "load1"];

/// Histories of one thing.
#[derive(Clone, Debug)]
pub struct Focus {
    /// A process, or `host:NAME`.
    pub target: String,
    /// Latencies of its shards, one sample each update.
    pub latencies: Latencies,
    series: Vec<(&'static str, Series)>,
    filled: bool,
}

impl Focus {
    /// Nothing known yet of `target`, as far as `model` says what it is.
    pub fn new(target: &str, model: &Model) -> Self {
        let metrics = if target.starts_with("host:") {
            HOST_METRICS
        } else if model
            .process(target)
            .is_some_and(|process| process.kind == "db")
        {
            DB_METRICS
        } else {
            SHARD_METRICS
        };
        Self {
            target: target.to_owned(),
            latencies: Latencies::default(),
            series: metrics
                .iter()
                .map(|metric| (*metric, Series::default()))
                .collect(),
            filled: false,
        }
    }

    /// What to ask the agent for.
    pub fn metrics(&self) -> Vec<String> {
        self.series
            .iter()
            .map(|(metric, _)| (*metric).to_owned())
            .collect()
    }

    /// The history of `metric`.
    pub fn series(&self, metric: &str) -> Option<&Series> {
        self.series
            .iter()
            .find(|(name, _)| *name == metric)
            .map(|(_, series)| series)
    }

    /// Takes one sample of everything.
    pub fn sample(&mut self, model: &Model) {
        if let Some(host) = self.target.strip_prefix("host:") {
            if let Some(host) = model.host(host) {
                self.push(|metric| host_value(host, metric));
            }
        } else if let Some(process) = model.process(&self.target) {
            self.push(|metric| process_value(process, metric));
            for shard in &process.shards {
                self.latencies.record(shard.latency_ms);
            }
        }
    }

    /// Puts the past in front, once.
    pub fn fill(&mut self, reply: &HistoryReply) {
        if std::mem::replace(&mut self.filled, true) {
            return;
        }
        for past in &reply.series {
            let Some((_, series)) = self
                .series
                .iter_mut()
                .find(|(name, _)| *name == past.metric)
            else {
                continue;
            };
            // A sample of a second covers two of the watch.
            let repeat = (past.step_ms / STEP_MS).clamp(1, 20) as usize;
            // The newest sample may not be complete yet.
            let known = past.values.iter().rposition(|value| value.is_finite());
            let values = &past.values[..known.map_or(0, |at| at + 1)];
            let values = &values[values.len().saturating_sub(POINTS_MAX)..];
            let stretched: Vec<f64> = values
                .iter()
                .flat_map(|value| std::iter::repeat_n(*value, repeat))
                .collect();
            series.fill(&stretched);
            if past.metric == "latency_ms" {
                for value in values {
                    self.latencies.record(*value);
                }
            }
        }
    }

    fn push(&mut self, value: impl Fn(&str) -> f64) {
        for (metric, series) in &mut self.series {
            series.push(value(metric));
        }
    }
}

fn process_value(process: &Process, metric: &str) -> f64 {
    let db = process.db.as_ref();
    match metric {
        "cpu_percent" => process.cpu_percent,
        "rss_bytes" => process.rss_bytes as f64,
        "events_per_s" => load(process),
        "latency_ms" => latency(process).unwrap_or(f64::NAN),
        "reads_per_s" => db.map_or(f64::NAN, |db| db.reads_per_s),
        "writes_per_s" => db.map_or(f64::NAN, |db| db.writes_per_s),
        _ => f64::NAN,
    }
}

fn host_value(host: &Host, metric: &str) -> f64 {
    match metric {
        "cpu_percent" => host.cpu_percent,
        "memory_used_bytes" => host.memory_used_bytes as f64,
        "load1" => host.load1,
        _ => f64::NAN,
    }
}
