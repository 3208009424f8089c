//! Finding a host: for what has none, for what breaks a rule, for what would be better off.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    HostState, Why,
    table::{At, Id, Table},
};

/// Places what it can of `pending` and leaves the rest in it. `moves` = others may be moved to make room.
/// True if something was placed.
pub(super) fn place(table: &mut Table, pending: &mut Vec<Id>, moves: bool) -> bool {
    let before = pending.len();
    // Where one of a shape found no room, the next will not: room only gets less.
    let mut hopeless: HashSet<u32> = HashSet::new();
    pending.retain(|&id| {
        let shape = table.kind(id).shape;
        if hopeless.contains(&shape) {
            return true;
        }
        let why = table.cause(id);
        let to = if table.kind(id).fixed {
            table.kind(id).pinned.filter(|at| may_be_pinned(table, *at))
        } else {
            table.best(id, None, 0)
        };
        if let Some(to) = to {
            table.shift(id, to, why);
            return false;
        }
        if moves && !table.kind(id).fixed && make_room(table, id, why) {
            return false;
        }
        hopeless.insert(shape);
        true
    });
    pending.len() < before
}

/// The operator named the host: neither a cordon nor its capacity stands against that.
fn may_be_pinned(table: &Table, at: At) -> bool {
    matches!(
        table.hosts[at as usize].host.state,
        HostState::Present | HostState::Cordoned
    )
}

/// Looks for a chain: the process takes the place of another, that one of a third, and the last finds
/// room. The shortest chain is taken.
fn make_room(table: &mut Table, id: Id, why: Why) -> bool {
    // How each host was reached: what comes to it, and the host whose process that is.
    let mut reached: HashMap<At, (Id, Option<At>)> = HashMap::new();
    let mut queue = VecDeque::new();
    for at in 0..table.hosts.len() as At {
        if table.open_to(table.kind(id), at) {
            reached.insert(at, (id, None));
            queue.push_back(at);
        }
    }
    while let Some(at) = queue.pop_front() {
        let (coming, _) = reached[&at];
        let leaving: Vec<Id> = table.hosts[at as usize]
            .on
            .iter()
            .filter(|(kind, _)| !table.kinds[**kind as usize].fixed)
            .filter_map(|(_, alike)| alike.first().copied())
            .filter(|other| table.room(table.kind(coming), at, Some(*other)))
            .filter(|other| !kept_apart(table, &reached, at, *other))
            .collect();
        for other in leaving {
            if let Some(to) = table.best(other, Some(at), 0) {
                table.shift(other, to, Why::Room);
                settle(table, &reached, at, id, why);
                return true;
            }
            for next in 0..table.hosts.len() as At {
                if !reached.contains_key(&next) && table.open_to(table.kind(other), next) {
                    reached.insert(next, (other, Some(at)));
                    queue.push_back(next);
                }
            }
        }
    }
    false
}

/// Whether anti-affinity looks at `other` and at one that the chain up to `at` moves: then what was free
/// when it was looked at might no longer be.
fn kept_apart(
    table: &Table,
    reached: &HashMap<At, (Id, Option<At>)>,
    mut at: At,
    other: Id,
) -> bool {
    let other = table.kind(other);
    if table.rules[other.rules as usize].anti_affinity.is_none() {
        return false;
    }
    loop {
        let (coming, source) = reached[&at];
        let coming = table.kind(coming);
        if (coming.bot, coming.rules) == (other.bot, other.rules) {
            return true;
        }
        match source {
            Some(source) => at = source,
            None => return false,
        }
    }
}

/// Carries a found chain out, from its end.
fn settle(
    table: &mut Table,
    reached: &HashMap<At, (Id, Option<At>)>,
    mut at: At,
    id: Id,
    why: Why,
) {
    loop {
        let (coming, source) = reached[&at];
        table.shift(coming, at, if coming == id { why } else { Why::Room });
        match source {
            Some(source) => at = source,
            None => return,
        }
    }
}

/// Moves processes off hosts that must not run them, or not so many. True if something moved.
pub(super) fn mend(table: &mut Table) -> bool {
    let mut changed = false;
    for at in 0..table.hosts.len() as At {
        if !table.hosts[at as usize].open {
            continue;
        }
        let mut kinds: Vec<u32> = table.hosts[at as usize].on.keys().copied().collect();
        // The fewest go when the largest do.
        kinds.sort_by_key(|number| std::cmp::Reverse(table.kinds[*number as usize].memory));
        for number in kinds {
            loop {
                let kind = &table.kinds[number as usize];
                let wrong = table.grade(kind.rules, at).is_none()
                    || table.apart_count(kind, at) > 1
                    || table.over(at);
                let first = table.hosts[at as usize]
                    .on
                    .get(&number)
                    .and_then(|alike| alike.first().copied());
                let Some(id) = first.filter(|_| wrong && !kind.fixed) else {
                    break;
                };
                // Its own place must not stand in its way.
                table.take(id);
                let to = table.best(id, Some(at), 0);
                table.put(id, at);
                let Some(to) = to else { break };
                table.shift(id, to, Why::Rule);
                changed = true;
            }
        }
    }
    changed
}

/// Moves processes to hosts with more of the labels they prefer. True if something moved.
pub(super) fn prefer(table: &mut Table) -> bool {
    let mut changed = false;
    let mut hopeless: HashSet<(u32, u32)> = HashSet::new();
    for id in 0..table.processes.len() as Id {
        let kind = table.kind(id);
        let most = table.rules[kind.rules as usize].preferred.len() as u32;
        let Some(at) = table.at[id as usize].filter(|at| table.hosts[*at as usize].open) else {
            continue;
        };
        let Some(grade) = table.grade(kind.rules, at) else {
            continue;
        };
        if kind.fixed || grade == most || hopeless.contains(&(kind.shape, grade)) {
            continue;
        }
        let shape = kind.shape;
        if let Some(to) = table.best(id, Some(at), grade + 1) {
            table.shift(id, to, Why::Preferred);
            changed = true;
        } else if table.rules[table.kind(id).rules as usize]
            .anti_affinity
            .is_none()
        {
            hopeless.insert((shape, grade));
        }
    }
    changed
}
