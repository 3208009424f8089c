//! Levelling the load: from the fullest host to the emptiest, as long as a move makes it better.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Why,
    table::{At, Id, Level, Table},
};

/// Levels the load of open hosts. True if something moved.
///
/// Each move leaves the host that gets the process less full than the giver was, so the loads, sorted from
/// the fullest, only ever become smaller: it ends.
pub(super) fn level(table: &mut Table) -> bool {
    let mut changed = false;
    loop {
        let mut moved = false;
        let mut order: BTreeSet<(Level, At)> = table
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, row)| row.open)
            .map(|(at, _)| (table.level(at as At, 0), at as At))
            .collect();
        // From the fullest: one that has nothing to give is done with until something has changed.
        while let Some((_, from)) = order.pop_last() {
            while let Some((id, to)) = gift(table, from) {
                let old = (table.level(to, 0), to);
                table.shift(id, to, Why::Even);
                moved = true;
                if order.remove(&old) {
                    order.insert((table.level(to, 0), to));
                }
                let now = (table.level(from, 0), from);
                if order.last().is_some_and(|fullest| *fullest > now) {
                    order.insert(now);
                    break;
                }
            }
        }
        if !moved {
            return changed;
        }
        changed = true;
    }
}

/// The best move off the host, if one makes the load more even.
fn gift(table: &Table, from: At) -> Option<(Id, At)> {
    let row = &table.hosts[from as usize];
    let kinds = || {
        row.on
            .iter()
            .map(|(number, alike)| (&table.kinds[*number as usize], alike))
            .filter(|(kind, _)| !kind.fixed)
    };
    let heaviest = kinds().map(|(kind, _)| kind.weight).max()?;
    // One of each shape, of the bot with most processes here.
    let mut shapes: BTreeMap<u32, (u32, Id)> = BTreeMap::new();
    for (kind, alike) in kinds() {
        let Some(id) = alike.first() else { continue };
        let count = table.count_of(kind.bot, from);
        let best = shapes.entry(kind.shape).or_insert((count, *id));
        if count > best.0 {
            *best = (count, *id);
        }
    }
    let full = table.level(from, 0);
    let mut best: Option<(f64, Id, At)> = None;
    for (_, id) in shapes.into_values() {
        let kind = table.kind(id);
        let grade = table.grade(kind.rules, from).unwrap_or(0);
        let Some(to) = table.best(id, Some(from), grade) else {
            continue;
        };
        if table.level(to, heaviest) >= full {
            continue;
        }
        let gain = gain(table, from, to, kind.weight);
        if best.is_none_or(|(most, ..)| gain > most) {
            best = Some((gain, id, to));
        }
    }
    let (_, id, to) = best?;
    Some((apart(table, id, from, to), to))
}

/// By how much the move lowers the sum of squared loads over shares.
fn gain(table: &Table, from: At, to: At, weight: u64) -> f64 {
    let (giver, taker) = (table.level(from, 0), table.level(to, 0));
    let weight = weight as f64;
    (2.0 * giver.load as f64 - weight) * weight / giver.share as f64
        - (2.0 * taker.load as f64 + weight) * weight / taker.share as f64
}

/// Of the processes alike on the host, one whose neighbours are not on the other.
fn apart(table: &Table, id: Id, from: At, to: At) -> Id {
    const LOOK: usize = 16;
    let alike = &table.hosts[from as usize].on[&table.kind[id as usize]];
    alike
        .iter()
        .rev()
        .take(LOOK)
        .copied()
        .min_by_key(|other| table.closeness(*other, to).1)
        .unwrap_or(id)
}
