//! What is wrong with this host and what runs on it, and what to do about it.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit};
use tanako_fleet::Spec;
use tanako_proto::fleet::v1::{DoctorReport, Finding, Problem};

use super::rpc::Sources;
use crate::{
    clock::now_ms,
    coordinator,
    desired::Desired,
    supervisor::{Desired as Wanted, State},
};

/// Below this much free space an error, below four times as much a warning.
const DISK_FREE_MIN: u64 = 256 * 1024 * 1024;
/// The agent holds a few descriptors a process.
const FDS_PER_PROCESS: u64 = 8;
const FDS_BASE: u64 = 256;
/// Restarts that nobody asked for, from which on a process is worth a look.
const RESTARTS_MANY: u64 = 5;
/// How long the store may take to answer.
const STORE_MAX: Duration = Duration::from_secs(2);
/// A clock before this (2024-01-01) is not set.
const CLOCK_MIN_MS: i64 = 1_704_067_200_000;

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: &str, check: &str, message: impl Into<String>, hint: &str) {
        self.0.push(Finding {
            severity: severity.to_owned(),
            check: check.to_owned(),
            message: message.into(),
            hint: hint.to_owned(),
            host: String::new(),
        });
    }

    fn ok(&mut self, check: &str, message: impl Into<String>) {
        self.add("ok", check, message, "");
    }
}

/// Looks at everything once. `told`: what is wanted, as it is known here, whoever decides.
pub async fn examine(sources: &Sources, told: &Result<Arc<Desired>, Box<Problem>>) -> DoctorReport {
    let mut findings = Findings(Vec::new());
    disk(&mut findings, &sources.config.data_dir);
    store(&mut findings, sources).await;
    let here = sources.supervisor.status().borrow().len();
    descriptors(&mut findings, here as u64);
    cgroup(&mut findings, sources);
    clock(&mut findings);
    match told.as_ref().map(|desired| &desired.spec) {
        Ok(Some(spec)) => secrets(&mut findings, spec),
        Ok(None) => findings.add(
            "warning",
            "spec",
            "the fleet has no spec yet",
            "write a fleet.toml and run `tanakoctl apply fleet.toml`",
        ),
        Err(problem) => findings.add(
            "warning",
            "spec",
            format!("it is not known here: {}", problem.cause),
            &problem.hint,
        ),
    }
    processes(&mut findings, sources);
    if let Ok(desired) = told {
        ports(&mut findings, sources, desired).await;
    }
    // Only who decides knows the budget.
    if sources.wanted.decides() {
        budget(&mut findings, sources);
        if let Ok(desired) = told {
            reshards(&mut findings, desired, sources);
        }
    }
    findings.ok(
        "http",
        format!("/metrics, /health and /ready at http://{}", sources.http),
    );
    DoctorReport {
        findings: findings.0,
    }
}

fn disk(findings: &mut Findings, directory: &Path) {
    let Ok(stat) = rustix::fs::statvfs(directory) else {
        findings.add(
            "error",
            "disk",
            format!("{} cannot be examined", directory.display()),
            "check that the data directory exists and belongs to the agent's user",
        );
        return;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!(
        "{} MiB free for {}",
        free / (1024 * 1024),
        directory.display()
    );
    if free < DISK_FREE_MIN {
        let hint = "free space now: changes are refused on a full disk, processes go on";
        findings.add("error", "disk", text, hint);
    } else if free < 4 * DISK_FREE_MIN {
        findings.add(
            "warning",
            "disk",
            text,
            "free some space, or prune backups and logs",
        );
    } else {
        findings.ok("disk", text);
    }
    if stat.f_files > 0 && stat.f_favail * 50 < stat.f_files {
        let text = format!("{} of {} inodes free", stat.f_favail, stat.f_files);
        findings.add(
            "warning",
            "disk",
            text,
            "delete small files, or use another file system",
        );
    }
}

async fn store(findings: &mut Findings, sources: &Sources) {
    match tokio::time::timeout(STORE_MAX, sources.store.list("desired")).await {
        Ok(Ok(listing)) => findings.ok("store", format!("answers, revision {}", listing.revision)),
        Ok(Err(error)) => findings.add("error", "store", error.to_string(), error.hint()),
        Err(_) => findings.add(
            "error",
            "store",
            "does not answer in time",
            "look at the disk and at the agent's log",
        ),
    }
    let events = sources.history.events(1, 0, &[]).await;
    if events.is_empty() {
        findings.add(
            "warning",
            "history",
            "there is not one event",
            "history fills while the agent runs; when this stays, look at the agent's log",
        );
    } else {
        findings.ok("history", "events and samples are kept");
    }
}

fn descriptors(findings: &mut Findings, processes: u64) {
    let limit = getrlimit(Resource::Nofile).current;
    let need = FDS_BASE + processes * FDS_PER_PROCESS;
    match limit {
        Some(limit) if limit < need => findings.add(
            "warning",
            "open-files",
            format!("the agent may open {limit} files, {processes} processes need about {need}"),
            "raise LimitNOFILE in the unit, or `ulimit -n`",
        ),
        Some(limit) => findings.ok("open-files", format!("limit {limit}, about {need} needed")),
        None => findings.ok("open-files", "no limit"),
    }
}

fn cgroup(findings: &mut Findings, sources: &Sources) {
    let table = sources.supervisor.status().borrow().clone();
    let limited = table.values().filter(|process| {
        let limits = &process.spec.limits;
        limits.cpus.is_some() || limits.tasks.is_some() || limits.memory_bytes.is_some()
    });
    let unenforced: Vec<&str> = limited
        .clone()
        .filter(|process| process.state.is_live() && !process.limits.contains("cgroup"))
        .map(|process| process.name.as_str())
        .take(5)
        .collect();
    if unenforced.is_empty() {
        let count = limited.count();
        let text = if count == 0 {
            "no process has limits".to_owned()
        } else {
            format!("limits of {count} processes are enforced")
        };
        findings.ok("cgroup", text);
    } else {
        findings.add(
            "warning",
            "cgroup",
            format!(
                "CPU and task limits are not enforced for {}",
                unenforced.join(", ")
            ),
            "run the agent under systemd 254 or later with Delegate=yes and DelegateSubgroup=agent, on a host with cgroup v2",
        );
    }
}

fn clock(findings: &mut Findings) {
    if now_ms() < CLOCK_MIN_MS {
        findings.add(
            "error",
            "clock",
            "the clock is not set",
            "set it (chrony, systemd-timesyncd): the IDENTIFY ledger and TLS need it",
        );
        return;
    }
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists()
        || Path::new("/run/chrony").exists()
        || Path::new("/var/lib/chrony/drift").exists();
    if synchronised {
        findings.ok("clock", "set, and kept by a time service");
    } else {
        findings.ok("clock", "set; no time service was recognised");
    }
}

fn secrets(findings: &mut Findings, spec: &Spec) {
    let mut files: Vec<(&str, &str)> = Vec::new();
    for (name, bot) in &spec.bots {
        files.extend(
            bot.token_file
                .iter()
                .map(|file| (name.as_str(), file.as_str())),
        );
        files.extend(
            bot.run
                .secret_env
                .values()
                .map(|file| (name.as_str(), file.as_str())),
        );
    }
    if let Some(database) = &spec.database {
        files.push(("db", &database.token_file));
    }
    files.sort_unstable();
    files.dedup_by_key(|(_, file)| *file);
    let own = rustix::process::geteuid().as_raw();
    for (of, file) in files {
        match fs::metadata(file) {
            Err(error) => findings.add(
                "error",
                "secrets",
                format!("{file} (of {of}): {error}"),
                "put the token into this file, mode 0600, owned by the agent's user",
            ),
            Ok(meta) if meta.mode() & 0o077 != 0 => findings.add(
                "error",
                "secrets",
                format!(
                    "{file} (of {of}) can be read by others: mode {:04o}",
                    meta.mode() & 0o7777
                ),
                "chmod 600 it, and renew the token if others have accounts here",
            ),
            Ok(meta) if meta.uid() != own && own != 0 => findings.add(
                "error",
                "secrets",
                format!(
                    "{file} (of {of}) belongs to uid {}, the agent runs as {own}",
                    meta.uid()
                ),
                "chown it to the agent's user",
            ),
            Ok(meta) if meta.len() == 0 => findings.add(
                "error",
                "secrets",
                format!("{file} (of {of}) is empty"),
                "put the token into it",
            ),
            Ok(_) => findings.ok("secrets", format!("{file} (of {of}) is private")),
        }
    }
}

fn processes(findings: &mut Findings, sources: &Sources) {
    let table = sources.supervisor.status().borrow().clone();
    let mut well = 0usize;
    for process in table.values() {
        let name = process.name.as_str();
        let logs = format!("look at `tanakoctl logs {name}`");
        if process.state == State::Failed {
            findings.add(
                "error",
                "processes",
                format!("{name} has been given up: {}", process.detail),
                &format!("{logs}, repair the cause, then `tanakoctl start {name}`"),
            );
        } else if process.state == State::Backoff {
            let text = format!("{name} keeps ending: {}", process.last_exit);
            findings.add("warning", "processes", text, &logs);
        } else if process.desired == Wanted::Running && !process.ready {
            let text = format!("{name} is {}: {}", process.state, process.detail);
            findings.add("warning", "processes", text, &logs);
        } else if process.restarts >= RESTARTS_MANY {
            let text = format!("{name} was restarted {} times", process.restarts);
            findings.add("warning", "processes", text, &logs);
        } else {
            well += 1;
        }
    }
    findings.ok(
        "processes",
        format!("{well} of {} are as they should be", table.len()),
    );
}

/// A port that a database node wants and somebody else has.
async fn ports(findings: &mut Findings, sources: &Sources, desired: &Desired) {
    let Some(database) = desired.spec.as_ref().and_then(|spec| spec.database.clone()) else {
        return;
    };
    let table = sources.supervisor.status().borrow().clone();
    let own = sources.config.host.as_str();
    let here = |host: &Option<String>| host.as_deref().is_none_or(|host| host == own);
    for node in database.nodes.iter().filter(|node| here(&node.host)) {
        let live = format!("db/{}", node.name)
            .parse()
            .ok()
            .and_then(|name| table.get(&name).cloned())
            .is_some_and(|process| process.state.is_live());
        if live {
            continue;
        }
        if let Err(error) = tokio::net::TcpListener::bind(&node.listen).await {
            findings.add(
                "error",
                "ports",
                format!("db/{} cannot listen on {}: {error}", node.name, node.listen),
                "see who has it (`ss -ltnp`), or choose another base_port",
            );
        }
    }
}

/// Bots with `shards = "auto"` for which Discord recommends more shards than they have.
fn reshards(findings: &mut Findings, desired: &Desired, sources: &Sources) {
    let identify = sources.broker.status().borrow().clone();
    for (bot, now, to) in coordinator::proposals(desired, &identify) {
        findings.add(
            "warning",
            "shards",
            format!("{bot} has {now} shards, Discord recommends {to}"),
            &format!("see what it takes: `tanakoctl reshard {bot} --shards {to} --dry-run`"),
        );
    }
}

fn budget(findings: &mut Findings, sources: &Sources) {
    let status = sources.broker.status().borrow().clone();
    for bot in &status.bots {
        let text = format!(
            "{}: {} of {} IDENTIFYs left, {} kept in reserve",
            bot.bot, bot.remaining, bot.total, bot.reserve
        );
        if bot.remaining == 0 {
            let hint = "restarts that resume go on; wait for the reset before anything else";
            findings.add("error", "identify", text, hint);
        } else if bot.total > 0 && bot.remaining * 5 < bot.total {
            let hint = "see who spends them: `tanakoctl identify` and `tanakoctl events`";
            findings.add("warning", "identify", text, hint);
        } else {
            findings.ok("identify", text);
        }
    }
}
