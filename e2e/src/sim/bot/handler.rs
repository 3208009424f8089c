//! What becomes of an interaction, as `bot/src/interactions/{guard,standing}.rs`: a command runs, its
//! reply is sent, late ones are deferred first. A replay is looked up, and deferred before it runs.

use super::super::{
    discord::{self, Original, RestError},
    world::Sim,
};

/// A command that takes longer is deferred, in milliseconds.
const DEFER_AFTER: u64 = 2_000;
/// Tries for one look-up.
const TRIES: u32 = 3;

/// How Discord has it.
enum Standing {
    Open,
    Deferred(u64),
    Answered,
    Unknown,
}

async fn look_up(sim: &Sim, id: u64) -> Standing {
    for attempt in 1..=TRIES {
        match discord::original(sim, id).await {
            Ok((Original::None, _)) => return Standing::Open,
            Ok((Original::Loading, at)) => return Standing::Deferred(at),
            Ok((Original::Done, _)) => return Standing::Answered,
            Err(_) => sim.sleep(sim.draw(50..=100) << attempt).await,
        }
    }
    Standing::Unknown
}

/// Defers; when the answer has to be filled in by us, since when that is known.
async fn defer(sim: &Sim, id: u64, replayed: bool) -> Option<u64> {
    match discord::answer(sim, id, true, replayed).await {
        Ok(()) => Some(sim.now()),
        Err(RestError::AlreadyAnswered) => match look_up(sim, id).await {
            Standing::Deferred(at) => Some(at),
            _ => None,
        },
        Err(_) => None,
    }
}

/// Runs a command and answers. `replayed`: an earlier process may have done so.
pub async fn handle(sim: &Sim, id: u64, replayed: bool) {
    let mut deferred = None;
    if replayed {
        match look_up(sim, id).await {
            Standing::Answered => return,
            Standing::Deferred(at) => deferred = Some(at),
            Standing::Open | Standing::Unknown => match defer(sim, id, true).await {
                Some(at) => deferred = Some(at),
                None => return,
            },
        }
    }
    let long = sim.chance(50);
    let work = if long {
        sim.draw(1_000..=6_000)
    } else {
        sim.draw(2..=300)
    };
    if deferred.is_none() && work > DEFER_AFTER {
        sim.sleep(DEFER_AFTER).await;
        match defer(sim, id, false).await {
            Some(at) => deferred = Some(at),
            None => return,
        }
        sim.sleep(work - DEFER_AFTER).await;
    } else {
        sim.sleep(work).await;
    }
    let _ = match deferred {
        Some(at) => discord::follow(sim, id, Some(at)).await,
        None => discord::answer(sim, id, false, false).await,
    };
}
