//! The fleet as it is: `tanakoctl status`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use serde::Serialize;
use tanako_proto::fleet::v1::{FleetStatus, Host, IdentifyStatus, Operation, Process, Shard};

use super::{operation::OperationSummary, text, time};
use crate::{
    paint::{Paint, clean},
    table::{Cell, Table},
    ui::Report,
    units::{age, bytes, count, natural, now_ms, ranges, seconds_between},
};

/// `status -o json`.
#[derive(Debug, Serialize)]
pub struct StatusView {
    fleet: String,
    version: u64,
    healthy: bool,
    reasons: Vec<String>,
    production: bool,
    agent_version: String,
    at: Option<String>,
    hosts: Vec<HostView>,
    processes: Vec<ProcessView>,
    identify: IdentifySummary,
    operations: Vec<OperationSummary>,
}

#[derive(Debug, Serialize)]
struct HostView {
    name: String,
    state: String,
    address: String,
    agent_version: String,
    cpu_percent: f64,
    memory_used_bytes: u64,
    memory_total_bytes: u64,
    cpus: u32,
    load1: f64,
    disk_used_bytes: u64,
    disk_total_bytes: u64,
    uptime_s: u64,
    agent_uptime_s: u64,
    agent_rss_bytes: u64,
    last_seen: Option<String>,
    os: String,
    /// held, lost; null = a fleet of one machine.
    lease: Option<String>,
    #[serde(skip)]
    last_seen_ms: i64,
}

#[derive(Debug, Serialize)]
struct ProcessView {
    name: String,
    kind: String,
    host: String,
    state: String,
    ready: bool,
    pid: u32,
    attempt: u64,
    restarts: u64,
    uptime_s: u64,
    cpu_percent: f64,
    rss_bytes: u64,
    shards: Vec<ShardView>,
    bot: Option<String>,
    desired: String,
    detail: String,
    last_exit: Option<String>,
    started_at: Option<String>,
    next_start_at: Option<String>,
    threads: u32,
    fds: u32,
    db: Option<DatabaseView>,
    /// Its host is unreachable: this is what was known of it last.
    stale: bool,
}

#[derive(Debug, Serialize)]
struct ShardView {
    id: u32,
    count: u32,
    stage: String,
    guilds: u32,
    guilds_expected: u32,
    latency_ms: f64,
    events_per_s: f64,
    events: u64,
    seq: u64,
    resumed: u64,
    identified: u64,
    reconnects: u64,
    replayed: u64,
    interactions: u64,
    interactions_failed: u64,
    last_error: Option<String>,
    /// ok, connecting, lagging, silent, zombie, misplaced, down; null = not judged.
    health: Option<String>,
    health_detail: Option<String>,
    lost: u64,
    duplicated: u64,
    repeated: u64,
    event_lag_ms: f64,
    misplaced_guilds: u64,
    zombies: u64,
}

#[derive(Debug, Serialize)]
struct DatabaseView {
    url: String,
    rows: u64,
    bytes_on_disk: u64,
    reads_per_s: f64,
    writes_per_s: f64,
    errors: u64,
    connections: u32,
    read_p99_ms: f64,
    write_p99_ms: f64,
}

/// The IDENTIFY budget of the whole fleet.
#[derive(Debug, Clone, Default, Serialize)]
pub struct IdentifySummary {
    total: u32,
    used: u32,
    remaining: u32,
    reserve: u32,
    max_concurrency: u32,
    resets_at: Option<String>,
    forecast_s: u32,
    #[serde(skip)]
    resets_at_ms: i64,
}

impl From<&IdentifyStatus> for IdentifySummary {
    fn from(status: &IdentifyStatus) -> Self {
        Self {
            total: status.total,
            used: status.used,
            remaining: status.remaining,
            reserve: status.reserve,
            max_concurrency: status.max_concurrency,
            resets_at: time(status.resets_at),
            forecast_s: status.forecast_s,
            resets_at_ms: status.resets_at,
        }
    }
}

impl IdentifySummary {
    /// One line for people.
    pub fn line(&self, now: i64) -> String {
        if self.total == 0 {
            return "budget not known yet".into();
        }
        let mut line = format!(
            "{} of {} left ({} used, {} in reserve), {} at once",
            self.remaining, self.total, self.used, self.reserve, self.max_concurrency
        );
        if self.resets_at_ms > now {
            let _ = write!(
                line,
                ", resets in {}",
                age(seconds_between(now, self.resets_at_ms))
            );
        }
        if self.forecast_s > 0 {
            let _ = write!(
                line,
                ", all waiting shards done in {}",
                age(self.forecast_s.into())
            );
        }
        line
    }
}

impl From<FleetStatus> for StatusView {
    fn from(status: FleetStatus) -> Self {
        let unreachable: HashSet<String> = status
            .hosts
            .iter()
            .filter(|host| host.state == "unreachable")
            .map(|host| host.name.clone())
            .collect();
        let mut processes: Vec<ProcessView> =
            status.processes.into_iter().map(Into::into).collect();
        for process in &mut processes {
            process.stale = unreachable.contains(&process.host);
        }
        processes.sort_by_cached_key(|process| natural(&process.name));
        Self {
            fleet: status.fleet,
            version: status.version,
            healthy: status.healthy,
            reasons: status.reasons,
            production: status.production,
            agent_version: status.agent_version,
            at: time(status.at),
            hosts: status.hosts.into_iter().map(Into::into).collect(),
            processes,
            identify: status.identify.as_ref().map(Into::into).unwrap_or_default(),
            operations: status
                .operations
                .iter()
                .map(OperationSummary::from)
                .collect(),
        }
    }
}

impl From<Host> for HostView {
    fn from(host: Host) -> Self {
        Self {
            name: host.name,
            state: host.state,
            address: host.address,
            agent_version: host.agent_version,
            cpu_percent: host.cpu_percent,
            memory_used_bytes: host.memory_used_bytes,
            memory_total_bytes: host.memory_total_bytes,
            cpus: host.cpus,
            load1: host.load1,
            disk_used_bytes: host.disk_used_bytes,
            disk_total_bytes: host.disk_total_bytes,
            uptime_s: host.uptime_s,
            agent_uptime_s: host.agent_uptime_s,
            agent_rss_bytes: host.agent_rss_bytes,
            last_seen: time(host.last_seen),
            os: host.os,
            lease: text(host.lease),
            last_seen_ms: host.last_seen,
        }
    }
}

impl From<Process> for ProcessView {
    fn from(process: Process) -> Self {
        Self {
            name: process.name,
            kind: process.kind,
            host: process.host,
            state: process.state,
            ready: process.ready,
            pid: process.pid,
            attempt: process.attempt,
            restarts: process.restarts,
            uptime_s: process.uptime_s,
            cpu_percent: process.cpu_percent,
            rss_bytes: process.rss_bytes,
            shards: process.shards.into_iter().map(Into::into).collect(),
            bot: text(process.bot),
            desired: process.desired,
            detail: process.detail,
            last_exit: text(process.last_exit),
            started_at: time(process.started_at),
            next_start_at: time(process.next_start_at),
            threads: process.threads,
            fds: process.fds,
            db: process.db.map(|db| DatabaseView {
                url: db.url,
                rows: db.rows,
                bytes_on_disk: db.bytes_on_disk,
                reads_per_s: db.reads_per_s,
                writes_per_s: db.writes_per_s,
                errors: db.errors,
                connections: db.connections,
                read_p99_ms: db.read_p99_ms,
                write_p99_ms: db.write_p99_ms,
            }),
            stale: false,
        }
    }
}

impl From<Shard> for ShardView {
    fn from(shard: Shard) -> Self {
        Self {
            id: shard.id,
            count: shard.count,
            stage: shard.stage,
            guilds: shard.guilds,
            guilds_expected: shard.guilds_expected,
            latency_ms: shard.latency_ms,
            events_per_s: shard.events_per_s,
            events: shard.events,
            seq: shard.seq,
            resumed: shard.resumed,
            identified: shard.identified,
            reconnects: shard.reconnects,
            replayed: shard.replayed,
            interactions: shard.interactions,
            interactions_failed: shard.interactions_failed,
            last_error: text(shard.last_error),
            health: text(shard.health),
            health_detail: text(shard.health_detail),
            lost: shard.lost,
            duplicated: shard.duplicated,
            repeated: shard.repeated,
            event_lag_ms: shard.event_lag_ms,
            misplaced_guilds: shard.misplaced_guilds,
            zombies: shard.zombies,
        }
    }
}

/// Whether an operation still goes on.
pub fn goes_on(operation: &Operation) -> bool {
    matches!(operation.state.as_str(), "pending" | "running" | "paused")
}

impl ProcessView {
    /// Ready, as far as anybody knows: a host that is not heard speaks for none of its processes.
    fn is_ready(&self) -> bool {
        self.ready && !self.stale
    }

    fn shards_text(&self) -> String {
        if self.kind == "db" {
            return "-".into();
        }
        ranges(&self.shards.iter().map(|shard| shard.id).collect::<Vec<_>>())
    }

    fn guilds(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| u64::from(shard.guilds))
            .sum()
    }

    fn age_text(&self) -> String {
        if self.pid == 0 {
            "-".into()
        } else {
            age(self.uptime_s)
        }
    }

    /// Shards that are not well.
    fn unwell(&self) -> impl Iterator<Item = &ShardView> {
        self.shards
            .iter()
            .filter(|shard| shard.health.as_deref().is_some_and(|word| word != "ok"))
    }

    /// `ok`, or the word of the shards that are not, with their number; `-` = not judged.
    fn health_text(&self) -> String {
        let mut words: BTreeMap<&str, usize> = BTreeMap::new();
        for word in self.unwell().filter_map(|shard| shard.health.as_deref()) {
            *words.entry(word).or_default() += 1;
        }
        let judged = self.shards.iter().any(|shard| shard.health.is_some());
        match (words.is_empty(), judged) {
            (true, true) => "ok".into(),
            (true, false) => "-".into(),
            _ => words
                .iter()
                .map(|(word, count)| format!("{count} {word}"))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// Why it is as it is: what is wrong with its first shard that is not well, else what the process
    /// says.
    fn detail_text(&self) -> String {
        let of_shard = || {
            let shard = self.unwell().find(|shard| shard.health_detail.is_some())?;
            Some(format!(
                "shard {}: {}",
                shard.id,
                shard.health_detail.as_deref()?
            ))
        };
        of_shard().unwrap_or_else(|| self.detail.clone())
    }

    fn wide(&self) -> Vec<Cell> {
        let shard = |value: fn(&ShardView) -> u64| -> String {
            if self.shards.is_empty() {
                "-".into()
            } else {
                self.shards.iter().map(value).sum::<u64>().to_string()
            }
        };
        let latencies = || {
            self.shards
                .iter()
                .map(|shard| shard.latency_ms)
                .filter(|ms| *ms > 0.0)
        };
        let latency = latencies().reduce(f64::max);
        let events: f64 = match &self.db {
            Some(db) => db.reads_per_s + db.writes_per_s,
            None => self.shards.iter().map(|shard| shard.events_per_s).sum(),
        };
        vec![
            Cell::new(&self.kind),
            Cell::new(&self.desired),
            Cell::number(self.attempt),
            Cell::number(format!("{events:.1}")),
            Cell::number(latency.map_or_else(|| "-".into(), |ms| format!("{ms:.0}ms"))),
            Cell::new(self.health_text()),
            Cell::number(shard(|shard| shard.seq)),
            Cell::number(shard(|shard| shard.resumed)),
            Cell::number(shard(|shard| shard.identified)),
            Cell::number(self.threads),
            Cell::number(self.fds),
        ]
    }
}

impl Report for StatusView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        let now = now_ms();
        let mut text = String::new();
        self.header(&mut text, paint);
        text.push('\n');
        text.push_str(&self.process_table(paint, wide));
        text.push('\n');
        text.push_str(&self.host_table(paint, wide));
        let _ = write!(text, "\nIDENTIFYs: {}\n", self.identify.line(now));
        for operation in &self.operations {
            if operation.goes_on() || seconds_between(operation.ended_at_ms, now) < 600 {
                let _ = writeln!(text, "operation {}", operation.line(paint, now));
            }
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.processes
            .iter()
            .map(|process| process.name.clone())
            .collect()
    }
}

impl StatusView {
    fn header(&self, text: &mut String, paint: Paint) {
        const SHOWN: usize = 20;
        let ready = self
            .processes
            .iter()
            .filter(|process| process.is_ready())
            .count();
        let health = if self.healthy {
            paint.good("healthy")
        } else {
            paint.bad("UNHEALTHY")
        };
        let name = if self.production {
            format!(
                "{} {}",
                paint.strong(&self.fleet),
                paint.bad("[production]")
            )
        } else {
            paint.strong(&self.fleet)
        };
        let _ = writeln!(
            text,
            "{name}  {health}  {ready} of {} ready  {}  spec version {}  agent {}",
            count(self.processes.len() as u64, "process", "processes"),
            count(self.hosts.len() as u64, "host", "hosts"),
            self.version,
            self.agent_version,
        );
        for reason in self.reasons.iter().take(SHOWN) {
            let _ = writeln!(text, "  {} {}", paint.bad("!"), clean(reason, false));
        }
        if self.reasons.len() > SHOWN {
            let _ = writeln!(
                text,
                "  {} and {} more",
                paint.bad("!"),
                self.reasons.len() - SHOWN
            );
        }
    }

    fn process_table(&self, paint: Paint, wide: bool) -> String {
        if self.processes.is_empty() {
            return "no processes: describe some in fleet.toml, then tanakoctl apply fleet.toml\n"
                .into();
        }
        let mut head = vec![
            "NAME", "HOST", "STATE", "PID", "SHARDS", "GUILDS", "CPU", "RSS", "RESTARTS",
        ];
        if wide {
            head.extend([
                "KIND",
                "DESIRED",
                "ATTEMPT",
                "EV/S",
                "LATENCY",
                "HEALTH",
                "SEQ",
                "RESUMED",
                "IDENTIFIED",
                "THREADS",
                "FDS",
            ]);
        }
        head.push("AGE");
        if wide {
            head.push("DETAIL");
        }
        let mut table = Table::new(&head);
        for process in &self.processes {
            let shard = process.kind != "db";
            let mut row = vec![
                Cell::new(&process.name),
                Cell::new(&process.host),
                Cell::state(if process.stale {
                    "lost"
                } else {
                    &process.state
                }),
                Cell::number(if process.pid == 0 {
                    "-".into()
                } else {
                    process.pid.to_string()
                }),
                Cell::new(process.shards_text()),
                Cell::number(if shard {
                    process.guilds().to_string()
                } else {
                    "-".into()
                }),
                Cell::number(format!("{:.1}%", process.cpu_percent)),
                Cell::number(bytes(process.rss_bytes)),
                Cell::number(process.restarts),
            ];
            if wide {
                row.extend(process.wide());
            }
            row.push(Cell::number(process.age_text()));
            if wide {
                row.push(Cell::new(clean(&process.detail_text(), false)));
            }
            table.row(row);
        }
        table.render(paint)
    }

    fn host_table(&self, paint: Paint, wide: bool) -> String {
        let several = self.hosts.len() > 1;
        let now = now_ms();
        // Of each host its processes, and how many are ready.
        let mut sums: HashMap<&str, (usize, usize)> = HashMap::new();
        for process in &self.processes {
            let sum = sums.entry(process.host.as_str()).or_default();
            sum.0 += usize::from(process.is_ready());
            sum.1 += 1;
        }
        let mut head = vec!["HOST", "STATE"];
        if several {
            head.push("READY");
        }
        head.extend(["CPU", "LOAD", "MEMORY", "DISK"]);
        if wide {
            head.extend(["ADDRESS", "CPUS", "OS", "AGENT-RSS", "LEASE"]);
        }
        if several {
            head.push("SEEN");
        }
        head.extend(["AGENT", "AGE"]);
        let mut table = Table::new(&head);
        for host in &self.hosts {
            let mut row = vec![Cell::new(&host.name), Cell::state(&host.state)];
            if several {
                let (ready, all) = sums.get(host.name.as_str()).copied().unwrap_or_default();
                row.push(Cell::number(format!("{ready}/{all}")));
            }
            row.extend([
                Cell::number(format!("{:.0}%", host.cpu_percent)),
                Cell::number(format!("{:.2}", host.load1)),
                Cell::number(format!(
                    "{}/{}",
                    bytes(host.memory_used_bytes),
                    bytes(host.memory_total_bytes)
                )),
                Cell::number(format!(
                    "{}/{}",
                    bytes(host.disk_used_bytes),
                    bytes(host.disk_total_bytes)
                )),
            ]);
            if wide {
                row.extend([
                    Cell::new(&host.address),
                    Cell::number(host.cpus),
                    Cell::new(&host.os),
                    Cell::number(bytes(host.agent_rss_bytes)),
                    Cell::new(host.lease.as_deref().unwrap_or("-")),
                ]);
            }
            if several {
                row.push(Cell::number(match host.last_seen_ms {
                    0 => "never".to_owned(),
                    at => age(seconds_between(at, now)),
                }));
            }
            row.extend([
                Cell::new(&host.agent_version),
                Cell::number(age(host.agent_uptime_s)),
            ]);
            table.row(row);
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_a_host_that_is_not_heard_is_not_counted_as_ready() {
        let on = |name: &str, host: &str| Process {
            name: name.into(),
            host: host.into(),
            kind: "db".into(),
            state: "ready".into(),
            ready: true,
            ..Process::default()
        };
        let host = |name: &str, state: &str| Host {
            name: name.into(),
            state: state.into(),
            ..Host::default()
        };
        let status = FleetStatus {
            fleet: "t".into(),
            hosts: vec![host("a", "ready"), host("b", "unreachable")],
            processes: vec![on("db/node0", "a"), on("db/node1", "b")],
            ..FleetStatus::default()
        };
        let mut text = String::new();
        StatusView::from(status).header(&mut text, Paint::plain());
        assert!(text.contains("  1 of 2 processes ready  2 hosts"), "{text}");
    }

    #[test]
    fn what_is_wrong_with_shards_is_counted_and_explained() {
        let shard = |id, health: &str, why: &str| Shard {
            id,
            health: health.into(),
            health_detail: why.into(),
            ..Shard::default()
        };
        let view = |shards: Vec<Shard>| {
            ProcessView::from(Process {
                shards,
                ..Process::default()
            })
        };
        let well = view(vec![shard(0, "ok", ""), shard(1, "ok", "")]);
        assert_eq!(
            (well.health_text().as_str(), well.detail_text().as_str()),
            ("ok", "")
        );
        assert_eq!(view(vec![shard(0, "", "")]).health_text(), "-");
        let sick = view(vec![
            shard(0, "ok", ""),
            shard(1, "silent", "no MESSAGE_CREATE for 6m"),
            shard(2, "silent", ""),
            shard(3, "lagging", "slow"),
        ]);
        assert_eq!(sick.health_text(), "1 lagging, 2 silent");
        assert_eq!(sick.detail_text(), "shard 1: no MESSAGE_CREATE for 6m");
        let json = serde_json::to_value(&sick).expect("serialises");
        assert_eq!(json["shards"][1]["health"], "silent");
        assert_eq!(
            json["shards"][1]["health_detail"],
            "no MESSAGE_CREATE for 6m"
        );
    }
}
