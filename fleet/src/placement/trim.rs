//! Fewer moves: with mixed weights the first way to an even load may not be the shortest one. A small plan
//! is tried again with one of its moves left out; what is saved then counts in whole moves, while in a
//! large plan it is less than a hundredth of them.

use super::{
    Why, even, place,
    table::{Id, Table},
};

/// Plans with more moves than this are left as they are.
const MOVES_MAX: usize = 64;
/// So are fleets with more processes: each try looks at all of them.
const PROCESSES_MAX: usize = 2_048;

/// Looks for a shorter way to an even load, until none of its tries saves a move.
pub(super) fn trim(table: &mut Table, pending: &[Id]) {
    if table.processes.len() > PROCESSES_MAX {
        return;
    }
    loop {
        let moved = table.moved();
        if moved.len() > MOVES_MAX {
            return;
        }
        let shorter = moved
            .iter()
            .filter(|id| table.why[**id as usize] == Some(Why::Even))
            .find_map(|id| without(table, &moved, *id, pending));
        match shorter {
            Some(shorter) => *table = shorter,
            None => return,
        }
    }
}

/// The plan where `kept` stays, if there is one with fewer moves.
fn without<'a>(table: &Table<'a>, moved: &[Id], kept: Id, pending: &[Id]) -> Option<Table<'a>> {
    let mut trial = table.clone();
    let mut again: Vec<(Id, Why)> = Vec::new();
    for &id in moved {
        let forced = trial.why[id as usize].filter(|why| *why != Why::Even);
        match (forced, trial.was[id as usize]) {
            (None, Some(was)) if id == kept => {
                trial.take(id);
                trial.put(id, was);
                trial.why[id as usize] = None;
            }
            (why, _) if !trial.kind(id).fixed => {
                trial.take(id);
                again.push((id, why.unwrap_or(Why::Even)));
            }
            _ => {}
        }
    }
    again.sort_by_key(|(id, _)| (std::cmp::Reverse(trial.kind(*id).weight), *id));
    for (id, why) in again {
        let to = trial.best(id, None, 0)?;
        trial.put(id, to);
        trial.why[id as usize] = Some(why);
    }
    even::level(&mut trial);
    let shorter = trial.moved().len() < moved.len();
    let mut left = pending.to_vec();
    let settled = shorter
        && !place::place(&mut trial, &mut left, true)
        && !place::mend(&mut trial)
        && !place::prefer(&mut trial)
        && !even::level(&mut trial);
    settled.then_some(trial)
}
