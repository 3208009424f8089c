//! Placement against a judge that knows nothing of how it works: rules, evenness, and the least moves that
//! any assignment needs.

mod least;
mod rules;

use std::{collections::BTreeMap, sync::Arc};

use super::*;

/// A host with no bounds.
pub(super) fn host(name: &str, share: u32) -> Host {
    Host {
        name: name.to_owned(),
        state: HostState::Present,
        capacity: Capacity {
            share,
            ..Capacity::default()
        },
        labels: BTreeMap::new(),
    }
}

pub(super) fn hosts(count: usize) -> Vec<Host> {
    (0..count).map(|at| host(&host_name(at), 1)).collect()
}

pub(super) fn host_name(at: usize) -> String {
    format!("h{at:03}")
}

pub(super) fn process(bot: &str, order: u32, weight: u32) -> Process {
    Process {
        name: ProcessName::new(bot, order).expect("a good name"),
        bot: bot.to_owned(),
        order,
        weight,
        memory_bytes: 0,
        rules: Arc::default(),
        pinned: None,
    }
}

/// `count` processes of one bot.
pub(super) fn processes(bot: &str, count: u32, weight: u32) -> Vec<Process> {
    (0..count).map(|at| process(bot, at, weight)).collect()
}

pub(super) fn input(hosts: Vec<Host>, processes: Vec<Process>) -> Input {
    Input {
        hosts,
        processes,
        assignment: Assignment::new(),
        aim: Aim::Even,
    }
}

/// Where the plan leads, as the input of the next.
pub(super) fn after(mut input: Input, plan: &Plan) -> Input {
    input.assignment = plan.assignment.clone();
    input
}

/// How many processes each host has.
pub(super) fn counts(input: &Input, assignment: &Assignment) -> Vec<usize> {
    input
        .hosts
        .iter()
        .map(|host| assignment.values().filter(|at| **at == host.name).count())
        .collect()
}

/// What must hold of every plan, whatever was asked.
pub(super) fn judge(input: &Input, plan: &Plan) {
    let mut now = input.assignment.clone();
    for step in &plan.moves {
        let before = now.insert(step.process.clone(), step.to.clone());
        assert_eq!(before, step.from, "a move starts where the process is");
        assert_ne!(before.as_ref(), Some(&step.to), "a move changes the host");
    }
    now.retain(|name, _| input.processes.iter().any(|it| it.name == *name));
    assert_eq!(now, plan.assignment, "the moves lead to the assignment");
    let mut moved: Vec<&ProcessName> = plan.moves.iter().map(|step| &step.process).collect();
    moved.sort();
    moved.dedup();
    assert_eq!(moved.len(), plan.moves.len(), "no process moves twice");
    let host = |name: &str| {
        let found = input.hosts.iter().find(|host| host.name == name);
        found.expect("a host of the fleet")
    };
    for step in &plan.moves {
        let process = input.processes.iter().find(|it| it.name == step.process);
        let process = process.expect("a process of the fleet");
        let to = host(&step.to);
        match &process.pinned {
            Some(pinned) => assert_eq!(pinned, &step.to),
            None => assert_eq!(to.state, HostState::Present, "{step:?}"),
        }
        let required = process.rules.required.iter();
        for (key, value) in required.filter(|_| process.pinned.is_none()) {
            assert_eq!(to.labels.get(key), Some(value), "{step:?}");
        }
    }
    for target in &input.hosts {
        if !plan.moves.iter().any(|step| step.to == target.name) {
            continue;
        }
        let on: Vec<&Process> = input
            .processes
            .iter()
            .filter(|it| plan.assignment.get(&it.name) == Some(&target.name))
            .collect();
        if on.iter().all(|it| it.pinned.is_none()) {
            let most = target.capacity.processes.unwrap_or(u32::MAX);
            assert!(on.len() <= most as usize, "too many on {}", target.name);
            let memory: u64 = on.iter().map(|it| it.memory_bytes).sum();
            assert!(memory <= target.capacity.memory_bytes.unwrap_or(u64::MAX));
        }
    }
    for process in &input.processes {
        let unplaced = plan.unplaced.iter().find(|it| it.process == process.name);
        let at = plan.assignment.get(&process.name);
        let homeless = at.is_none_or(|at| {
            let known = input.hosts.iter().find(|host| host.name == *at);
            known.is_none_or(|it| matches!(it.state, HostState::Draining | HostState::Lost))
        });
        assert_eq!(homeless, unplaced.is_some(), "{}: {at:?}", process.name);
        if let Some(unplaced) = unplaced {
            assert_eq!(unplaced.on.as_ref(), at);
            assert!(unplaced.reason.len() > 10, "{}", unplaced.reason);
        }
    }
    let again = super::plan(&after(input.clone(), plan));
    assert_eq!(again.moves, [], "planning again moves nothing");
    assert_eq!(again.assignment, plan.assignment);
    assert_eq!(again.unplaced.len(), plan.unplaced.len());
}
