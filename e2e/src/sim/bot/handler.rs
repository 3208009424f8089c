//! What becomes of an interaction, as `bot/src/interactions/{guard,standing}.rs`: a command runs, its
//! reply is sent, late ones are deferred first. A replay is looked up, and deferred before it runs.

use tanako_bot::shard::duty::Standing;

use super::super::{
    discord::{self, Original, RestError},
    host::Pid,
    world::Sim,
};

/// A command that takes longer is deferred, in milliseconds.
const DEFER_AFTER: u64 = 2_000;
/// Tries for one look-up.
const TRIES: u32 = 3;

/// An interaction to be answered.
pub struct Target {
    /// Its id.
    pub id: u64,
    /// Who runs it.
    pub pid: Pid,
    /// When it arrived.
    pub received: u64,
    /// What Discord said of it when it came as a replay, and when.
    pub standing: Option<(Standing, u64)>,
}

/// Asks Discord what became of it, and when that was so.
pub async fn look_up(sim: &Sim, id: u64) -> (Standing, u64) {
    for attempt in 1..=TRIES {
        match discord::original(sim, id).await {
            Ok((Original::None, at)) => return (Standing::Open, at),
            Ok((Original::Loading, at)) => return (Standing::Deferred, at),
            Ok((Original::Done, at)) => return (Standing::Answered, at),
            Err(_) => sim.sleep(sim.draw(50..=100) << attempt).await,
        }
    }
    (Standing::Unknown, sim.now())
}

/// Defers; when the answer has to be filled in by us, since when that is known, and whether someone else
/// had deferred it before.
async fn defer(sim: &Sim, id: u64, fenced: bool) -> Option<(u64, bool)> {
    match discord::answer(sim, id, true, fenced).await {
        Ok(()) => Some((sim.now(), false)),
        Err(RestError::AlreadyAnswered) => match look_up(sim, id).await {
            (Standing::Deferred | Standing::Unknown, at) => Some((at, true)),
            _ => None,
        },
        Err(_) => None,
    }
}

/// Runs a command and answers. True when someone else had begun it.
pub async fn handle(sim: &Sim, target: Target) -> bool {
    let duplicated = run(sim, &target).await;
    sim.discord.borrow_mut().settled(target.id);
    duplicated
}

async fn run(sim: &Sim, target: &Target) -> bool {
    let id = target.id;
    let mut duplicated = false;
    let mut deferred = match target.standing {
        Some((Standing::Deferred, at)) => Some(at),
        _ => None,
    };
    // Old already: a replay, or held back. Who may answer it is settled before anything is done.
    let old = target.standing.is_some() || sim.now() >= target.received + DEFER_AFTER;
    if deferred.is_none() && old {
        match defer(sim, id, true).await {
            Some((at, before)) => {
                deferred = Some(at);
                duplicated = before;
            }
            None => return false,
        }
    }
    let _running = discord::runs(sim, id, target.pid, deferred.is_some());
    let long = sim.chance(50);
    let work = if long {
        sim.draw(1_000..=6_000)
    } else {
        sim.draw(2..=300)
    };
    let due = target.received + DEFER_AFTER;
    if deferred.is_none() && sim.now() + work > due {
        let end = sim.now() + work;
        sim.sleep_until(due).await;
        match defer(sim, id, false).await {
            Some((at, before)) => {
                deferred = Some(at);
                duplicated |= before;
            }
            None => return duplicated,
        }
        sim.sleep_until(end).await;
    } else {
        sim.sleep(work).await;
    }
    let _ = match deferred {
        Some(at) => discord::follow(sim, id, Some(at)).await,
        None => discord::answer(sim, id, false, false).await,
    };
    duplicated
}
