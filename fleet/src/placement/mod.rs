//! Which host runs which process: a pure function of the hosts, the processes and where they are now.
//!
//! [`plan`] gives a new assignment, the moves that lead to it in an order in which they can be made, and
//! what could not be placed with the reason in words. The same input gives the same plan.
//!
//! **What a plan does**, by its [`Aim`]:
//! - [`Aim::New`] only finds hosts for what has none.
//! - [`Aim::Needed`] places what has no host, or whose host is lost, gone or draining. Nothing else moves,
//!   unless room must be made for one of those: what a failover and a drain want.
//! - [`Aim::Even`] does that too, mends what breaks a rule (labels, capacity, anti-affinity), brings
//!   processes to hosts they prefer, and levels the load.
//!
//! **What is even.** A host's load is the weight of its processes relative to its share. Two hosts are level
//! when the fuller one, without its heaviest process, would not be fuller than the other with it: no move
//! makes the pair better by more than rounding. Processes of one weight over equal hosts end with counts
//! that differ by one at most. Lighter processes are never pushed about to hide a difference that is
//! smaller than one process of the host in question.
//!
//! **Least moves.** Each step takes from the fullest host and gives to the emptiest that may take it, and
//! the step whose process fits the gap best goes first. For processes of one weight that is the least
//! number of moves that levels the load, for mixed weights next to it; `tests` compares both with every
//! possible assignment. Which process goes, and to which of equally full hosts, costs no move: that choice keeps a
//! bot's processes, and shards beside each other, on different hosts.
//!
//! [`demand`] makes the input from a spec and from what agents found.
//!
//! Hosts that are cordoned keep what they run and get nothing. A pinned process (a database node whose data
//! lies on its host) goes where it is pinned, whatever that host's capacity, and is never moved.

pub mod demand;
mod even;
mod order;
mod place;
mod table;
#[cfg(test)]
mod tests;
mod trim;
mod why;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::process::ProcessName;
use table::Table;

/// Whether a host may run processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// It may.
    Present,
    /// It keeps what it runs and gets nothing new.
    Cordoned,
    /// Everything on it is to run elsewhere.
    Draining,
    /// It is gone, and what it ran may be started elsewhere. A host that is out of reach but whose
    /// processes must not be touched yet goes in as `Cordoned`.
    Lost,
}

/// What a host can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Most processes; unset = no bound.
    pub processes: Option<u32>,
    /// Memory for processes, in bytes; unset = no bound.
    pub memory_bytes: Option<u64>,
    /// Its part of the load relative to the other hosts, as with weights; 0 counts as 1.
    pub share: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            processes: None,
            memory_bytes: None,
            share: 1,
        }
    }
}

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Whether it may run processes.
    pub state: HostState,
    /// What it can hold.
    pub capacity: Capacity,
    /// What rules name.
    pub labels: BTreeMap<String, String>,
}

/// Where the processes of a bot may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rules {
    /// Labels a host must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub required: BTreeMap<String, String>,
    /// Labels a host should have: the one with most of them that has room is taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub preferred: BTreeMap<String, String>,
    /// No two processes of the bot share this: `host`, or the key of a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<String>,
}

/// The anti-affinity that means the host itself.
pub const APART_HOSTS: &str = "host";

/// A process as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name.
    pub name: ProcessName,
    /// Its bot, or `db`.
    pub bot: String,
    /// Its place among the bot's: the first of its shards. Neighbours are kept on different hosts.
    pub order: u32,
    /// Its load: its shards, unless the operator says else; 0 counts as 1.
    pub weight: u32,
    /// Memory it needs, in bytes; 0 = unknown.
    pub memory_bytes: u64,
    /// Where it may run.
    pub rules: Arc<Rules>,
    /// The one host it belongs on.
    pub pinned: Option<String>,
}

/// Which host runs which process.
pub type Assignment = BTreeMap<ProcessName, String>;

/// How much a plan does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aim {
    /// Only what has no host yet, without moving anything else to make room.
    New,
    /// Only what has no host that may keep it.
    Needed,
    /// That, and an even load.
    Even,
}

/// Why a process moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Its host is lost, or no longer of the fleet.
    Lost,
    /// It has no host yet.
    New,
    /// Its host is being drained.
    Drain,
    /// To make room for one that fits nowhere else.
    Room,
    /// Its host breaks a rule: a label, the capacity, the anti-affinity.
    Rule,
    /// Another host has the labels it prefers.
    Preferred,
    /// To level the load.
    Even,
}

impl Why {
    /// In words, for a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Lost => "its host is lost",
            Self::New => "it has no host yet",
            Self::Drain => "its host is drained",
            Self::Room => "makes room for another",
            Self::Rule => "its host does not meet its rules",
            Self::Preferred => "to a host it prefers",
            Self::Even => "levels the load",
        }
    }
}

/// One process that changes hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The process.
    pub process: ProcessName,
    /// Where it is; `None` = nowhere yet.
    pub from: Option<String>,
    /// Where it goes.
    pub to: String,
    /// Why.
    pub why: Why,
}

/// A process for which there is no host. If it has one now, it stays there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// The process.
    pub process: ProcessName,
    /// The host it should leave; `None` = it has none.
    pub on: Option<String>,
    /// Why, for the operator.
    pub reason: String,
}

/// What [`plan`] is asked. Hosts and processes with a name that came before are ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The processes.
    pub processes: Vec<Process>,
    /// Where they are now.
    pub assignment: Assignment,
    /// How much to do.
    pub aim: Aim,
}

/// What [`plan`] answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Where every process that has a host is to be.
    pub assignment: Assignment,
    /// How to get there: in this order no host holds more than it can, as far as that is possible.
    pub moves: Vec<Move>,
    /// What stays where it must not, or nowhere.
    pub unplaced: Vec<Unplaced>,
    /// How even the load was and will be.
    pub evenness: [Evenness; 2],
}

/// How even the load is over the hosts that may get processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Evenness {
    /// The fullest host's load over the mean; 1 = all alike, 0 = no load.
    pub fullest: f64,
    /// The emptiest host's load over the mean.
    pub emptiest: f64,
}

/// Plans where processes run.
pub fn plan(input: &Input) -> Plan {
    let mut table = Table::new(input);
    let before = table.evenness();
    let mut pending = table.pending(input.aim);
    loop {
        let mut changed = place::place(&mut table, &mut pending, input.aim != Aim::New);
        if input.aim == Aim::Even {
            changed |= place::mend(&mut table);
            changed |= place::prefer(&mut table);
            changed |= even::level(&mut table);
        }
        if !changed {
            break;
        }
    }
    if input.aim == Aim::Even {
        trim::trim(&mut table, &pending);
    }
    let evenness = [before, table.evenness()];
    let unplaced = table.unplaced(&pending);
    let moves = order::order(&table);
    let mut assignment = input.assignment.clone();
    let known: BTreeSet<&ProcessName> = input.processes.iter().map(|it| &it.name).collect();
    assignment.retain(|name, _| known.contains(name));
    for step in &moves {
        assignment.insert(step.process.clone(), step.to.clone());
    }
    Plan {
        assignment,
        moves,
        unplaced,
        evenness,
    }
}
