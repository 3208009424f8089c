//! The order in which moves are made: what runs nowhere first, and never onto a host that is still full.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Move, Why,
    table::{At, Id, Table},
};

/// What a host holds while moves are made.
struct Hold {
    used: i64,
    memory: i128,
}

/// The moves of the table, ordered.
pub(super) fn order(table: &Table) -> Vec<Move> {
    let mut hold: Vec<Hold> = table
        .hosts
        .iter()
        .map(|_| Hold { used: 0, memory: 0 })
        .collect();
    for (id, at) in table.was.iter().enumerate() {
        if let Some(at) = at {
            add(table, &mut hold, id as Id, *at, 1);
        }
    }
    // By cause; within one, each source in turn, so that no host gives all it has at once.
    let mut by_cause: BTreeMap<Why, BTreeMap<Option<At>, VecDeque<Id>>> = BTreeMap::new();
    for id in table.moved() {
        let why = table.why[id as usize].unwrap_or(Why::Even);
        let sources = by_cause.entry(why).or_default();
        sources
            .entry(table.was[id as usize])
            .or_default()
            .push_back(id);
    }
    let mut waiting: VecDeque<Id> = VecDeque::new();
    for mut sources in by_cause.into_values() {
        while !sources.is_empty() {
            sources.retain(|_, ids| {
                waiting.extend(ids.pop_front());
                !ids.is_empty()
            });
        }
    }
    let mut moves = Vec::with_capacity(waiting.len());
    let mut passed = 0;
    while let Some(id) = waiting.pop_front() {
        let Some(to) = table.at[id as usize] else {
            continue;
        };
        // In a ring of full hosts one must go first.
        if passed <= waiting.len() && !room(table, &hold[to as usize], id, to) {
            waiting.push_back(id);
            passed += 1;
            continue;
        }
        passed = 0;
        if let Some(from) = table.was[id as usize] {
            add(table, &mut hold, id, from, -1);
        }
        add(table, &mut hold, id, to, 1);
        moves.push(Move {
            process: table.processes[id as usize].name.clone(),
            from: table.from(id),
            to: table.hosts[to as usize].host.name.clone(),
            why: table.why[id as usize].unwrap_or(Why::Even),
        });
    }
    moves
}

fn add(table: &Table, hold: &mut [Hold], id: Id, at: At, sign: i64) {
    let row = &mut hold[at as usize];
    row.used += sign;
    row.memory += i128::from(sign) * i128::from(table.kind(id).memory);
}

fn room(table: &Table, hold: &Hold, id: Id, to: At) -> bool {
    let capacity = &table.hosts[to as usize].host.capacity;
    let kind = table.kind(id);
    kind.fixed
        || (capacity
            .processes
            .is_none_or(|most| hold.used < i64::from(most))
            && capacity
                .memory_bytes
                .is_none_or(|most| hold.memory + i128::from(kind.memory) <= i128::from(most)))
}
