//! What it takes to go from what is to what is wanted, and what that costs. A plan changes nothing;
//! it names the version it was made from and is refused when that is no longer current.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use crate::process::{ProcessKind, ProcessName, ProcessSpec};

/// What happens to one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Create,
    /// It must be restarted to run as wanted.
    Update,
    /// It is stopped and forgotten.
    Remove,
    /// It runs as wanted.
    Keep,
}

impl Action {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Remove => "remove",
            Self::Keep => "keep",
        }
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happens.
    pub action: Action,
    /// To which process.
    pub process: ProcessName,
    /// Why, in a few words; empty for `Keep`.
    pub why: String,
}

/// What something costs before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Processes stopped and started again.
    pub restarted: u32,
    /// Processes started that did not run.
    pub started: u32,
    /// Processes stopped for good.
    pub stopped: u32,
    /// IDENTIFYs spent.
    pub identifies: u32,
    /// Seconds expected.
    pub seconds: u32,
    /// Processes that go to another host.
    #[serde(default)]
    pub moved: u32,
}

/// Seconds one process is expected to need to stop and become ready again when it resumes.
const RESTART_S: u32 = 3;
/// Discord's spacing of IDENTIFYs in one bucket (discord-rules).
const IDENTIFY_S: u32 = 5;

/// The changes that turn `old` into `new`, in the order of `new`, removals last.
pub fn diff<S: Borrow<ProcessSpec>>(old: &[S], new: &[S]) -> Vec<Change> {
    let (old, new) = (old.iter().map(S::borrow), new.iter().map(S::borrow));
    let before: BTreeMap<&ProcessName, &ProcessSpec> =
        old.clone().map(|spec| (&spec.name, spec)).collect();
    let names: BTreeSet<&ProcessName> = new.clone().map(|spec| &spec.name).collect();
    let mut changes: Vec<Change> = new
        .map(|spec| {
            let (action, why) = match before.get(&spec.name) {
                None => (Action::Create, "new in the spec".to_owned()),
                Some(old) => match difference(old, spec) {
                    Some(why) => (Action::Update, why),
                    None => (Action::Keep, String::new()),
                },
            };
            Change {
                action,
                process: spec.name.clone(),
                why,
            }
        })
        .collect();
    changes.extend(
        old.filter(|spec| !names.contains(&spec.name))
            .map(|spec| Change {
                action: Action::Remove,
                process: spec.name.clone(),
                why: "no longer in the spec".to_owned(),
            }),
    );
    changes
}

/// What makes a running process of `old` differ from `new`, in words; None when no restart is needed.
fn difference(old: &ProcessSpec, new: &ProcessSpec) -> Option<String> {
    if old == new {
        return None;
    }
    let mut parts = Vec::new();
    if old.command != new.command {
        parts.push("command".to_owned());
    }
    if (&old.shard_ids, old.shard_count) != (&new.shard_ids, new.shard_count) {
        parts.push(format!(
            "shards {:?} of {} become {:?} of {}",
            old.shard_ids, old.shard_count, new.shard_ids, new.shard_count
        ));
    }
    let names: BTreeSet<&String> = old.env.keys().chain(new.env.keys()).collect();
    let changed: Vec<&str> = names
        .into_iter()
        .filter(|name| old.env.get(*name) != new.env.get(*name))
        .map(String::as_str)
        // Shard variables repeat what was said of the shards.
        .filter(|name| old.shard_count == new.shard_count || !name.contains("SHARD"))
        .collect();
    if !changed.is_empty() {
        parts.push(format!("environment ({})", changed.join(", ")));
    }
    let others = [
        ("secrets", old.secret_env != new.secret_env),
        ("directory", old.directory != new.directory),
        ("readiness", old.ready != new.ready),
        ("watchdog", old.watchdog != new.watchdog),
        ("restart policy", old.restart != new.restart),
        ("stop policy", old.stop != new.stop),
        ("limits", old.limits != new.limits),
        ("logs", old.logs != new.logs),
        ("identify gate", old.gated != new.gated),
        ("identify queue", old.identify_queue != new.identify_queue),
        ("kind", old.kind != new.kind),
    ];
    parts.extend(
        others
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(what, _)| (*what).to_owned()),
    );
    Some(format!("{} changed", parts.join(", ")))
}

/// What is known of a process when its cost is reckoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// It runs now.
    pub running: bool,
    /// The vault holds a session for each of its shards, so that it will resume.
    pub resumable: bool,
}

/// What happens to a process in a plan whose cost is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Start it unless it runs.
    Start,
    /// Stop it if it runs.
    Stop,
    /// Stop and start it.
    Restart,
    /// Start it beside another that has its sessions, which it takes over.
    Warm,
    /// Start it beside others with sessions of its own.
    Shadow,
    /// Stop it on its host, if that one lives, and start it on another.
    Transfer,
}

/// What the moves cost together, with `max_concurrency` IDENTIFYs every 5 s and restarts of
/// `at_once` processes at a time.
pub fn cost<'a>(
    moves: impl IntoIterator<Item = (&'a ProcessSpec, Move, Known)>,
    max_concurrency: u32,
    at_once: u32,
) -> Cost {
    let mut cost = Cost::default();
    for (spec, action, known) in moves {
        match (action, known.running) {
            (Move::Start, true) | (Move::Stop, false) => continue,
            (Move::Stop, true) => {
                cost.stopped += 1;
                continue;
            }
            (Move::Warm, _) => {
                cost.started += 1;
                continue;
            }
            (Move::Shadow, _) => {
                cost.started += 1;
                cost.identifies += spec.shard_ids.len() as u32;
                continue;
            }
            (Move::Start | Move::Restart, false) => cost.started += 1,
            (Move::Restart, true) => cost.restarted += 1,
            (Move::Transfer, _) => cost.moved += 1,
        }
        // A foreign process identifies by itself at each start: its sessions are its own.
        let foreign = spec.gated || spec.identify_queue;
        if spec.kind == ProcessKind::Shard && (foreign || !known.resumable) {
            cost.identifies += spec.shard_ids.len() as u32;
        }
    }
    let waiting = cost.identifies.div_ceil(max_concurrency.max(1)) * IDENTIFY_S;
    let working = (cost.restarted + cost.moved).div_ceil(at_once.max(1)) * RESTART_S
        + u32::from(cost.started + cost.stopped > 0);
    cost.seconds = waiting.max(working);
    cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Places};

    fn processes(text: &str) -> Vec<ProcessSpec> {
        let text = format!("[fleet]\nname = \"t\"\n{text}");
        spec::parse(&text, "fleet.toml")
            .expect("a good spec")
            .processes(&Places {
                data_dir: "/d".to_owned(),
            })
    }

    fn bot(shards: u32, extra: &str) -> Vec<ProcessSpec> {
        processes(&format!(
            "[bots.b]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\nshards = {shards}\n{extra}"
        ))
    }

    #[test]
    fn the_same_spec_changes_nothing() {
        let same = diff(&bot(2, ""), &bot(2, ""));
        assert!(same.iter().all(|change| change.action == Action::Keep));
    }

    #[test]
    fn growing_shrinking_and_changing() {
        let grown = diff(&bot(1, ""), &bot(2, ""));
        let actions: Vec<Action> = grown.iter().map(|change| change.action).collect();
        assert_eq!(actions, [Action::Update, Action::Create]);
        assert_eq!(grown[0].why, "shards [0] of 1 become [0] of 2 changed");
        let shrunk = diff(&bot(2, ""), &bot(1, ""));
        assert_eq!(shrunk[1].action, Action::Remove);
        let changed = diff(
            &bot(1, ""),
            &bot(1, "env = { A = \"1\" }\nstop = { grace = \"9s\" }"),
        );
        assert_eq!(changed[0].why, "environment (A), stop policy changed");
    }

    #[test]
    fn costs() {
        let specs = bot(16, "shards_per_process = 4");
        let all = |action, running, resumable| {
            let known = Known { running, resumable };
            cost(specs.iter().map(|spec| (spec, action, known)), 8, 1)
        };
        let resumed = all(Move::Restart, true, true);
        assert_eq!(
            (resumed.restarted, resumed.identifies, resumed.seconds),
            (4, 0, 12)
        );
        let cold = all(Move::Start, false, false);
        assert_eq!((cold.started, cold.identifies, cold.seconds), (4, 16, 10));
        assert_eq!(all(Move::Start, true, false), Cost::default());
        assert_eq!(all(Move::Stop, true, true).stopped, 4);
        assert_eq!(all(Move::Stop, false, true), Cost::default());
        let moved = all(Move::Transfer, true, true);
        assert_eq!((moved.moved, moved.identifies, moved.seconds), (4, 0, 12));
        let moved = all(Move::Transfer, false, false);
        assert_eq!((moved.moved, moved.identifies, moved.seconds), (4, 16, 12));
    }
}
