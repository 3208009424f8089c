//! Which figures `/metrics` shows. Names and labels are a contract: dashboards and alerts use them.
//! Cardinality is bounded: labels are names of the spec, shard numbers, and what `worker::clean`
//! lets through.

use std::collections::BTreeSet;

use tanako_fleet::{ProcessName, health::Verdict};

use super::{
    Sources,
    exposition::{
        Kind::{Counter, Gauge, Summary},
        Page,
    },
};
use crate::{
    health::View,
    hub::Figures,
    metrics::{LatencySummary, ProcessSample, Sample},
    supervisor::{Desired, ProcessStatus, Table},
    vault::VaultStatus,
    worker::{DbState, ShardState, States, WorkerState},
};

/// The whole page.
pub(super) fn render(sources: &Sources) -> String {
    let mut page = Page::default();
    let sample = sources.sample.borrow().clone();
    let table = sources.table.borrow().clone();
    let workers = sources.workers.borrow().clone();
    agent(&mut page, sources, &sample);
    host(&mut page, &sample);
    processes(&mut page, &table, &sample);
    shards(&mut page, &workers);
    health(&mut page, &sources.shards.borrow().clone());
    vault(&mut page, (sources.vault)());
    databases(&mut page, &workers);
    extras(&mut page, &workers);
    identify(&mut page, sources);
    super::hosts::render(&mut page, &sources.registry, &sources.tenure);
    hub(&mut page, &sources.hub.borrow().clone());
    page.finish()
}

fn agent(page: &mut Page, sources: &Sources, sample: &Sample) {
    page.family("tanako_agent_info", Gauge, "The agent; always 1.")
        .add(&[("version", sources.version)], 1.0);
    let healthy = f64::from(u8::from((sources.health)().is_ok()));
    page.family(
        "tanako_agent_healthy",
        Gauge,
        "Whether all tasks of the agent live.",
    )
    .add(&[], healthy);
    let own = &sample.agent;
    page.family(
        "tanako_agent_cpu_percent",
        Gauge,
        "CPU of the agent, in percent of a core.",
    )
    .add(&[], f64::from(own.cpu_percent));
    page.family(
        "tanako_agent_cpu_seconds_total",
        Counter,
        "CPU time of the agent.",
    )
    .add(&[], own.cpu_seconds);
    page.family(
        "tanako_agent_resident_bytes",
        Gauge,
        "Resident memory of the agent.",
    )
    .add(&[], own.rss_bytes as f64);
    page.family("tanako_agent_threads", Gauge, "Threads of the agent.")
        .add(&[], f64::from(own.threads));
    page.family(
        "tanako_agent_open_fds",
        Gauge,
        "Open file descriptors of the agent.",
    )
    .add(&[], f64::from(own.fds));
    summary(
        page,
        "tanako_worker_message_seconds",
        "Time to handle a message of a worker.",
        sources.worker_message.summary(),
    );
    if let Some(operations) = &sources.operations {
        let mut family = page.family("tanako_operations", Gauge, "Operations by state.");
        for (state, count) in operations() {
            family.add(&[("state", &state)], count as f64);
        }
    }
}

fn summary(page: &mut Page, name: &'static str, help: &'static str, of: LatencySummary) {
    page.family(name, Summary, help)
        .add(&[("quantile", "0.5")], of.p50_s)
        .add(&[("quantile", "0.9")], of.p90_s)
        .add(&[("quantile", "0.99")], of.p99_s)
        .add_suffixed("_sum", &[], of.sum_s)
        .add_suffixed("_count", &[], of.count as f64);
}

fn host(page: &mut Page, sample: &Sample) {
    if sample.at == 0 {
        return; // Nothing has been measured yet.
    }
    let host = &sample.host;
    let mut gauge = |name, help, value: f64| {
        page.family(name, Gauge, help).add(&[], value);
    };
    gauge(
        "tanako_host_cpu_percent",
        "CPU of all cores together, 0 to 100.",
        host.cpu_percent,
    );
    gauge("tanako_host_cpus", "Cores.", f64::from(host.cpus));
    gauge(
        "tanako_host_load1",
        "Load average over a minute.",
        host.load1,
    );
    gauge(
        "tanako_host_memory_used_bytes",
        "Memory in use.",
        host.memory_used_bytes as f64,
    );
    gauge(
        "tanako_host_memory_total_bytes",
        "Memory in all.",
        host.memory_total_bytes as f64,
    );
    gauge(
        "tanako_host_disk_used_bytes",
        "Used on the file system of the data directory.",
        host.disk_used_bytes as f64,
    );
    gauge(
        "tanako_host_disk_total_bytes",
        "Size of the file system of the data directory.",
        host.disk_total_bytes as f64,
    );
    gauge(
        "tanako_host_network_receive_bytes_per_second",
        "Received by all interfaces but loopback.",
        host.net_rx_bytes_per_s as f64,
    );
    gauge(
        "tanako_host_network_transmit_bytes_per_second",
        "Sent by all interfaces but loopback.",
        host.net_tx_bytes_per_s as f64,
    );
    gauge(
        "tanako_host_uptime_seconds",
        "Since the host booted.",
        host.uptime_s as f64,
    );
}

fn processes(page: &mut Page, table: &Table, sample: &Sample) {
    let mut of_status = |name, kind, help, value: fn(&ProcessStatus) -> f64| {
        let mut family = page.family(name, kind, help);
        for (process, status) in table {
            family.add(&[("process", process.as_str())], value(status));
        }
    };
    of_status("tanako_process_ready", Gauge, "Whether it is ready.", |p| {
        f64::from(u8::from(p.ready))
    });
    of_status(
        "tanako_process_desired",
        Gauge,
        "Whether it is asked to run.",
        |p| f64::from(u8::from(p.desired == Desired::Running)),
    );
    of_status(
        "tanako_process_restarts_total",
        Counter,
        "Restarts that nobody asked for.",
        |p| p.restarts as f64,
    );
    of_status("tanako_process_attempt", Gauge, "Its starts.", |p| {
        p.attempt as f64
    });
    of_status(
        "tanako_process_log_bytes_total",
        Counter,
        "Output written.",
        |p| p.log_bytes as f64,
    );
    of_status(
        "tanako_process_log_lines_total",
        Counter,
        "Lines of output.",
        |p| p.log_lines as f64,
    );
    let mut states = page.family(
        "tanako_process_state",
        Gauge,
        "1 for the state that the process is in.",
    );
    for (process, status) in table {
        let kind = status.kind.to_string();
        let labels = [
            ("process", process.as_str()),
            ("kind", &kind),
            ("state", status.state.as_str()),
        ];
        states.add(&labels, 1.0);
    }
    let mut of_usage = |name, kind, help, value: fn(&ProcessSample) -> f64| {
        let mut family = page.family(name, kind, help);
        // In the order of the table, so that two scrapes are alike.
        for process in table.keys() {
            if let Some(usage) = sample.processes.get(process) {
                family.add(&[("process", process.as_str())], value(usage));
            }
        }
    };
    of_usage(
        "tanako_process_cpu_percent",
        Gauge,
        "CPU, in percent of a core.",
        |u| f64::from(u.cpu_percent),
    );
    of_usage(
        "tanako_process_cpu_seconds_total",
        Counter,
        "CPU time.",
        |u| u.cpu_seconds,
    );
    of_usage(
        "tanako_process_resident_bytes",
        Gauge,
        "Resident memory.",
        |u| u.rss_bytes as f64,
    );
    of_usage("tanako_process_threads", Gauge, "Threads.", |u| {
        f64::from(u.threads)
    });
    of_usage(
        "tanako_process_open_fds",
        Gauge,
        "Open file descriptors.",
        |u| f64::from(u.fds),
    );
}

/// All workers by name.
fn sorted(workers: &States) -> Vec<(&str, &WorkerState)> {
    let mut all: Vec<_> = workers
        .iter()
        .map(|(name, worker)| (name.as_str(), worker.as_ref()))
        .collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

fn shards(page: &mut Page, workers: &States) {
    let workers = sorted(workers);
    let mut attached = page.family(
        "tanako_worker_attached",
        Gauge,
        "Whether its stream to the agent is up.",
    );
    for (process, worker) in &workers {
        let labels = [("process", *process), ("version", worker.version.as_str())];
        attached.add(&labels, f64::from(u8::from(worker.attached)));
    }
    let mut of_shard = |name, kind, help, value: fn(&ShardState) -> f64| {
        let mut family = page.family(name, kind, help);
        each_shard(&workers, |labels, shard| {
            family.add(labels, value(shard));
        });
    };
    of_shard("tanako_shard_guilds", Gauge, "Guilds on the shard.", |s| {
        f64::from(s.report.guilds)
    });
    of_shard(
        "tanako_shard_guilds_expected",
        Gauge,
        "Guilds that Discord announced.",
        |s| f64::from(s.report.guilds_expected),
    );
    of_shard(
        "tanako_shard_members",
        Gauge,
        "Members of its guilds.",
        |s| s.report.members as f64,
    );
    of_shard(
        "tanako_shard_latency_seconds",
        Gauge,
        "Heartbeat round trip; 0 before the first.",
        |s| s.report.latency_ms / 1000.0,
    );
    of_shard(
        "tanako_shard_dispatches_total",
        Counter,
        "Dispatches received by this process.",
        |s| s.report.events as f64,
    );
    of_shard(
        "tanako_shard_resumes_total",
        Counter,
        "Sessions resumed.",
        |s| s.report.resumes as f64,
    );
    of_shard(
        "tanako_shard_identifies_total",
        Counter,
        "IDENTIFYs sent.",
        |s| s.report.identifies as f64,
    );
    of_shard(
        "tanako_shard_reconnects_total",
        Counter,
        "Reconnects.",
        |s| s.report.reconnects as f64,
    );
    of_shard(
        "tanako_shard_replayed_total",
        Counter,
        "Events replayed by resumes.",
        |s| s.report.replayed as f64,
    );
    of_shard(
        "tanako_shard_interactions_total",
        Counter,
        "Interactions received.",
        |s| s.report.interactions as f64,
    );
    of_shard(
        "tanako_shard_interactions_failed_total",
        Counter,
        "Interactions that were not answered well.",
        |s| s.report.interactions_failed as f64,
    );
    of_shard(
        "tanako_shard_lost_total",
        Counter,
        "Dispatches that never came: holes in the sequence.",
        |s| s.report.lost as f64,
    );
    of_shard(
        "tanako_shard_duplicated_total",
        Counter,
        "Effects that turned out to have happened before.",
        |s| s.report.duplicated as f64,
    );
    of_shard(
        "tanako_shard_repeated_total",
        Counter,
        "Replayed interactions that were recognised as handled.",
        |s| s.report.repeated as f64,
    );
    of_shard(
        "tanako_shard_zombies_total",
        Counter,
        "Connections given up for a missing heartbeat acknowledgement.",
        |s| s.report.zombies as f64,
    );
    of_shard(
        "tanako_shard_event_lag_seconds",
        Gauge,
        "From an event's time to its handling; 0 = not known.",
        |s| s.report.event_lag_ms / 1000.0,
    );
    of_shard(
        "tanako_shard_misplaced_guilds",
        Gauge,
        "Guilds received that belong to another shard.",
        |s| s.report.misplaced_guilds as f64,
    );
    let mut stages = page.family(
        "tanako_shard_stage",
        Gauge,
        "1 for the stage that the shard is in.",
    );
    each_shard(&workers, |labels, shard| {
        let mut labels = labels.to_vec();
        labels.push(("stage", crate::service::view::stage(shard.report.stage())));
        stages.add(&labels, 1.0);
    });
    let mut events = page.family("tanako_shard_events_total", Counter, "Dispatches by type.");
    each_shard(&workers, |labels, shard| {
        for (kind, count) in &shard.report.events_by_type {
            let mut labels = labels.to_vec();
            labels.push(("type", kind));
            events.add(&labels, *count as f64);
        }
    });
}

/// Takes the labels of a shard and what is thought of it.
type Visit<'a> = dyn FnMut(&[(&str, &str)], &Verdict) + 'a;

fn health(page: &mut Page, view: &View) {
    let each = |visit: &mut Visit<'_>| {
        for (process, shards) in &view.shards {
            for (id, verdict) in shards {
                let id = id.to_string();
                let labels = [
                    ("bot", process.group()),
                    ("shard", &id),
                    ("process", process.as_str()),
                ];
                visit(&labels, verdict);
            }
        }
    };
    let mut words = page.family(
        "tanako_shard_health",
        Gauge,
        "1 for what is thought of the shard.",
    );
    each(&mut |labels, verdict| {
        let mut labels = labels.to_vec();
        labels.push(("health", verdict.word.as_str()));
        words.add(&labels, 1.0);
    });
    let mut silent = page.family(
        "tanako_shard_silent",
        Gauge,
        "1 for each type of event that has stopped coming.",
    );
    each(&mut |labels, verdict| {
        for kind in &verdict.silent {
            let mut labels = labels.to_vec();
            labels.push(("type", kind));
            silent.add(&labels, 1.0);
        }
    });
    let mut ratio = page.family(
        "tanako_shard_resume_ratio",
        Gauge,
        "Part of this process's later connections that resumed.",
    );
    each(&mut |labels, verdict| {
        if let Some(resumed) = verdict.resume_ratio {
            ratio.add(labels, resumed);
        }
    });
    let mut actions = page.family(
        "tanako_health_actions_total",
        Counter,
        "What was done about shards that were not well.",
    );
    for (step, count) in &view.actions {
        actions.add(&[("step", step)], *count as f64);
    }
    let bots: BTreeSet<&str> = view.shards.keys().map(ProcessName::group).collect();
    let mut brakes = page.family(
        "tanako_storm_brake",
        Gauge,
        "Whether so many shards are in trouble at once that nothing is done about them.",
    );
    for bot in bots {
        let on = view.storms.iter().any(|storm| storm.bot == bot);
        brakes.add(&[("bot", bot)], f64::from(u8::from(on)));
    }
    if let Some(answers) = view.store_answers {
        page.family(
            "tanako_store_available",
            Gauge,
            "Whether the store answers.",
        )
        .add(&[], f64::from(u8::from(answers)));
    }
}

fn vault(page: &mut Page, vault: VaultStatus) {
    let mut gauge = |name, help, value: f64| {
        page.family(name, Gauge, help).add(&[], value);
    };
    gauge(
        "tanako_vault_sessions",
        "Sessions kept for their successors.",
        vault.sessions as f64,
    );
    gauge(
        "tanako_vault_writable",
        "Whether sessions can be written to the disk.",
        f64::from(u8::from(!vault.unwritable)),
    );
    gauge(
        "tanako_vault_copy_ok",
        "Whether the store takes the copy of the sessions.",
        f64::from(u8::from(!vault.copy_failing)),
    );
    gauge(
        "tanako_vault_uncopied",
        "Sessions of which something newer waits to be copied to the store.",
        vault.uncopied as f64,
    );
    gauge(
        "tanako_vault_only_here",
        "Sessions of which the store has no copy: their shards would IDENTIFY if this host were lost now.",
        vault.only_here as f64,
    );
    page.family(
        "tanako_vault_copies_total",
        Counter,
        "Transactions that copied sessions to the store.",
    )
    .add(&[], vault.copies as f64);
}

fn each_shard(
    workers: &[(&str, &WorkerState)],
    mut visit: impl FnMut(&[(&str, &str)], &ShardState),
) {
    for (process, worker) in workers {
        let bot = process.split_once('/').map_or(*process, |(bot, _)| bot);
        for (id, shard) in &worker.shards {
            let id = id.to_string();
            visit(&[("bot", bot), ("shard", &id), ("process", process)], shard);
        }
    }
}

fn databases(page: &mut Page, workers: &States) {
    let nodes: Vec<(&str, &DbState)> = sorted(workers)
        .into_iter()
        .filter_map(|(name, worker)| Some((name, worker.db.as_ref()?)))
        .collect();
    let mut of_node = |name, kind, help, value: fn(&DbState) -> f64| {
        let mut family = page.family(name, kind, help);
        for (process, node) in &nodes {
            family.add(&[("process", *process)], value(node));
        }
    };
    of_node("tanako_db_rows", Gauge, "Rows held.", |n| {
        n.report.rows as f64
    });
    of_node("tanako_db_disk_bytes", Gauge, "Size on disk.", |n| {
        n.report.bytes_on_disk as f64
    });
    of_node("tanako_db_reads_total", Counter, "Reads.", |n| {
        n.report.reads as f64
    });
    of_node("tanako_db_writes_total", Counter, "Writes.", |n| {
        n.report.writes as f64
    });
    of_node(
        "tanako_db_forwards_total",
        Counter,
        "Requests forwarded to a primary.",
        |n| n.report.forwards as f64,
    );
    of_node(
        "tanako_db_errors_total",
        Counter,
        "Requests that failed.",
        |n| n.report.errors as f64,
    );
    of_node("tanako_db_connections", Gauge, "Client connections.", |n| {
        f64::from(n.report.connections)
    });
    let mut quantiles = |name, help, p50: fn(&DbState) -> f64, p99: fn(&DbState) -> f64| {
        let mut family = page.family(name, Gauge, help);
        for (process, node) in &nodes {
            let at = |quantile| [("process", *process), ("quantile", quantile)];
            family.add(&at("0.5"), p50(node) / 1000.0);
            family.add(&at("0.99"), p99(node) / 1000.0);
        }
    };
    quantiles(
        "tanako_db_read_latency_seconds",
        "Latency of reads, by quantile.",
        |n| n.report.read_p50_ms,
        |n| n.report.read_p99_ms,
    );
    quantiles(
        "tanako_db_write_latency_seconds",
        "Latency of writes, by quantile.",
        |n| n.report.write_p50_ms,
        |n| n.report.write_p99_ms,
    );
}

fn extras(page: &mut Page, workers: &States) {
    let mut family = page.family(
        "tanako_worker_metric",
        Gauge,
        "Further figures of a worker, by the name it gave them.",
    );
    for (process, worker) in sorted(workers) {
        for (name, value) in &worker.metrics {
            family.add(&[("process", process), ("name", name)], *value);
        }
    }
}

fn identify(page: &mut Page, sources: &Sources) {
    let status = sources.identify.borrow().clone();
    let mut of_bot = |name, help, value: fn(&tanako_proto::fleet::v1::IdentifyBot) -> f64| {
        let mut family = page.family(name, Gauge, help);
        for bot in &status.bots {
            family.add(&[("bot", &bot.bot)], value(bot));
        }
    };
    of_bot("tanako_identify_budget", "IDENTIFYs a day.", |b| {
        f64::from(b.total)
    });
    of_bot(
        "tanako_identify_used",
        "IDENTIFYs used of the day's budget.",
        |b| f64::from(b.used),
    );
    of_bot(
        "tanako_identify_remaining",
        "IDENTIFYs left, the reserve included.",
        |b| f64::from(b.remaining),
    );
    of_bot(
        "tanako_identify_reserve",
        "IDENTIFYs never spent automatically.",
        |b| f64::from(b.reserve),
    );
    of_bot("tanako_identify_max_concurrency", "Buckets.", |b| {
        f64::from(b.max_concurrency)
    });
    of_bot(
        "tanako_identify_resets_at_seconds",
        "When the budget resets, since 1970.",
        |b| b.resets_at as f64 / 1000.0,
    );
    of_bot(
        "tanako_identify_waiting",
        "Shards that wait for a permit.",
        |b| f64::from(b.waiting),
    );
    of_bot(
        "tanako_identify_forecast_seconds",
        "Until every waiting shard has its permit, if each one given holds.",
        |b| f64::from(b.forecast_s),
    );
    let mut modes = page.family(
        "tanako_identify_mode",
        Gauge,
        "1 for the mode of the broker: normal, probing, exhausted.",
    );
    for bot in status.bots.iter().filter(|bot| !bot.mode.is_empty()) {
        modes.add(&[("bot", &bot.bot), ("mode", &bot.mode)], 1.0);
    }
    summary(
        page,
        "tanako_identify_wait_seconds",
        "Time that permits were waited for.",
        sources.identify_wait.summary(),
    );
}

fn hub(page: &mut Page, figures: &Figures) {
    page.family(
        "tanako_hub_hosts",
        Gauge,
        "Other hosts that this agent follows to show the whole fleet.",
    )
    .add(&[("state", "live")], figures.live as f64)
    .add(&[("state", "silent")], figures.silent as f64);
    page.family(
        "tanako_hub_processes",
        Gauge,
        "Processes in this agent's view of the fleet.",
    )
    .add(&[], figures.processes as f64);
    page.family(
        "tanako_hub_lag_seconds",
        Gauge,
        "Since the live host was heard of that was heard of the longest ago.",
    )
    .add(&[], figures.lag.as_secs_f64());
    page.family(
        "tanako_hub_updates_total",
        Counter,
        "Updates of other hosts taken in.",
    )
    .add(&[], figures.updates as f64);
    page.family(
        "tanako_hub_stale_updates_total",
        Counter,
        "Updates of other hosts that came too late or twice.",
    )
    .add(&[], figures.stale as f64);
}
