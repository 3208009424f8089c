//! Finds the children that an earlier agent left.
//!
//! A run is known again by pid, start time and boot, as they were written down; between the intent
//! to start it and its start, and when the records are damaged, by the tag in its environment.
//! Never by its name: a process that only looks the part is none of ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
};

use rustix::process::{Pid, PidfdFlags};
use tanako_fleet::{ProcessName, ProcessSpec};

use super::{
    procfs::{self, RunTag, Stat},
    records::{Alive, Loaded, Run},
    status::{Desired, State},
};
use crate::clock;

/// A child that lives.
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    /// As it is written down, or made from its tag.
    pub(super) alive: Alive,
}

/// A process of an earlier agent.
pub(super) struct Known {
    pub(super) run: Run,
    pub(super) found: Option<Found>,
    /// Whether there is only its tag to go by: then nobody knows whether it was ready.
    pub(super) by_tag_only: bool,
}

/// What an earlier agent left.
pub(super) struct Left {
    pub(super) processes: Vec<(Arc<ProcessSpec>, Option<Known>)>,
    /// Those whose spec is lost, until they are defined again.
    pub(super) orphans: BTreeMap<ProcessName, Known>,
    /// Runs that are over and have left descendants.
    pub(super) over: BTreeMap<u64, (ProcessName, u64)>,
}

/// Names a data directory; the same one again gets the same number.
pub(super) fn instance(data_dir: &Path) -> io::Result<u64> {
    let meta = fs::metadata(data_dir)?;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&meta.dev().to_le_bytes());
    bytes[8..].copy_from_slice(&meta.ino().to_le_bytes());
    Ok(xxhash_rust::xxh3::xxh3_64(&bytes))
}

/// Looks for them.
pub(super) fn look(instance: u64, boot: &Arc<str>, loaded: Loaded) -> io::Result<Left> {
    let own = std::process::id();
    let mut tagged: BTreeMap<ProcessName, Vec<(u32, Stat, RunTag)>> = BTreeMap::new();
    for pid in procfs::pids()? {
        if pid != own
            && let Some(tag) = procfs::tag(pid)
            && tag.instance == instance
            && let Some(stat) = procfs::stat(pid)
        {
            tagged
                .entry(tag.process.clone())
                .or_default()
                .push((pid, stat, tag));
        }
    }
    let mut left = Left {
        processes: Vec::new(),
        orphans: BTreeMap::new(),
        over: BTreeMap::new(),
    };
    let Loaded {
        specs, mut runs, ..
    } = loaded;
    let names: BTreeSet<ProcessName> = specs
        .keys()
        .chain(runs.keys())
        .chain(tagged.keys())
        .cloned()
        .collect();
    for name in names {
        let tagged = tagged.remove(&name).unwrap_or_default();
        let known = know(&name, boot, runs.remove(&name), &tagged);
        let adopted = known
            .as_ref()
            .and_then(|known| Some(known.found.as_ref()?.alive.nonce));
        for (_, _, tag) in &tagged {
            if Some(tag.nonce) != adopted {
                left.over.insert(tag.nonce, (name.clone(), tag.attempt));
            }
        }
        match (specs.get(&name), known) {
            (Some(spec), known) => left.processes.push((Arc::clone(spec), known)),
            (None, Some(known)) => {
                left.orphans.insert(name, known);
            }
            (None, None) => {}
        }
    }
    Ok(left)
}

/// What is known of one process: from its record, from the tags of what runs.
fn know(
    name: &ProcessName,
    boot: &Arc<str>,
    run: Option<Run>,
    tagged: &[(u32, Stat, RunTag)],
) -> Option<Known> {
    let recorded = run.as_ref().and_then(|run| run.process.clone());
    let recorded = recorded.filter(|alive| alive.boot == *boot);
    let by_record = recorded.as_ref().and_then(|alive| {
        let pid = alive.pid?;
        open(pid, alive.start_ticks).map(|pidfd| Found {
            pid,
            pidfd,
            alive: alive.clone(),
        })
    });
    let recorded_attempt = run.as_ref().map_or(0, |run| run.attempt);
    // The run itself, not a descendant that inherited its tag: the leader of its group in the
    // agent's session, and no other process than the one written down for that tag.
    let main = tagged
        .iter()
        .filter(|(pid, stat, tag)| {
            stat.group == *pid
                && stat.session != *pid
                && recorded
                    .as_ref()
                    .is_none_or(|alive| alive.nonce != tag.nonce || alive.pid.is_none())
        })
        .max_by_key(|(_, stat, tag)| (tag.attempt, std::cmp::Reverse(stat.start_ticks)));
    let by_tag = main
        .filter(|(_, _, tag)| by_record.is_none() || tag.attempt > recorded_attempt)
        .and_then(|(pid, stat, tag)| {
            let found = Found {
                pid: *pid,
                pidfd: open(*pid, stat.start_ticks)?,
                alive: Alive {
                    boot: Arc::clone(boot),
                    pid: Some(*pid),
                    start_ticks: stat.start_ticks,
                    nonce: tag.nonce,
                    spec_hash: tag.spec_hash,
                    cgroup: recorded.as_ref().and_then(|alive| alive.cgroup.clone()),
                    log_from: recorded.as_ref().map_or(0, |alive| alive.log_from),
                    limits: String::new(),
                },
            };
            Some((found, tag.attempt))
        });
    let Some((found, attempt)) = by_tag else {
        return run.map(|run| Known {
            run,
            found: by_record,
            by_tag_only: false,
        });
    };
    let intended = recorded.is_some_and(|alive| alive.nonce == found.alive.nonce);
    let age_ms = i64::try_from(procfs::age(found.alive.start_ticks).as_millis()).unwrap_or(0);
    let started_ms = clock::now_ms() - age_ms;
    let mut run = run.unwrap_or_else(|| Run {
        name: name.clone(),
        desired: Desired::Running,
        state: State::Starting,
        attempt,
        restarts: 0,
        in_a_row: 0,
        failures_ms: Vec::new(),
        next_start_ms: None,
        detail: String::new(),
        last_exit: String::new(),
        started_ms: None,
        ready_ms: None,
        process: None,
        log: None,
    });
    run.attempt = run.attempt.max(attempt);
    run.started_ms = Some(started_ms);
    if !intended {
        run.state = match run.desired {
            Desired::Running => State::Starting,
            Desired::Stopped => State::Stopping,
        };
    }
    Some(Known {
        run,
        found: Some(found),
        by_tag_only: !intended,
    })
}

/// A handle on the process of this pid, if it is the one that started then.
fn open(pid: u32, start_ticks: u64) -> Option<OwnedFd> {
    let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?;
    // Looked at through the pid while the pidfd is held: if it still is that process, the pidfd is.
    (procfs::stat(pid)?.start_ticks == start_ticks).then_some(pidfd)
}
