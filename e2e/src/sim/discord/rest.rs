//! Discord's REST, as far as interactions and limits go. A request that is under way arrives even if its
//! sender has died.

use tanako_fleet::identify::ReportedLimits;
use tokio::sync::oneshot;

use super::{
    super::{executor::WORLD, world::Sim},
    DAY_MS, one_way,
};

/// An interaction must be answered within this time (discord-rules).
const ANSWER_MS: u64 = 3_000;
/// Once deferred, the reply may follow for this long.
const FOLLOW_MS: u64 = 15 * 60_000;

/// What an interaction's original response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Original {
    /// 404.
    None,
    /// Deferred only.
    Loading,
    /// There.
    Done,
}

/// A request that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestError {
    /// No answer, or 5xx.
    Down,
    /// 40060.
    AlreadyAnswered,
    /// 10062: too late.
    Unknown,
}

/// Carries a request there and the answer back; the request arrives even if the asker has died.
async fn rest<T: 'static>(
    sim: &Sim,
    act: impl FnOnce(&Sim) -> T + 'static,
) -> Result<T, RestError> {
    let (reply, answer) = oneshot::channel();
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(one_way(&sim)).await;
        if sim.weather.borrow().outage_until > sim.now() {
            sim.sleep(one_way(&sim)).await;
            return;
        }
        let done = act(&sim);
        sim.sleep(one_way(&sim)).await;
        // Whoever asked may be dead.
        let _ = reply.send(done);
    });
    answer.await.map_err(|_| RestError::Down)
}

/// POST of an interaction's first response. `fenced`: nothing has been done yet, and a refusal keeps it so.
pub async fn answer(sim: &Sim, id: u64, deferred: bool, fenced: bool) -> Result<(), RestError> {
    rest(sim, move |sim| {
        let now = sim.now();
        let mut discord = sim.discord.borrow_mut();
        let Some(known) = discord.interactions.get_mut(&id) else {
            return Err(RestError::Unknown);
        };
        if known.answered.is_some() {
            drop(discord);
            if !fenced {
                sim.violated(
                    "exactly once",
                    format!("interaction {id} is answered again"),
                );
            }
            return Err(RestError::AlreadyAnswered);
        }
        if now > known.created + ANSWER_MS {
            return Err(RestError::Unknown);
        }
        known.answered = Some(now);
        if !deferred {
            known.finished = Some(now);
        }
        Ok(())
    })
    .await?
}

/// PATCH of a deferred response.
pub async fn follow(sim: &Sim, id: u64, looked_at: Option<u64>) -> Result<(), RestError> {
    rest(sim, move |sim| {
        let now = sim.now();
        let mut discord = sim.discord.borrow_mut();
        let Some(known) = discord.interactions.get_mut(&id) else {
            return Err(RestError::Unknown);
        };
        if known.answered.is_none() || now > known.created + FOLLOW_MS {
            return Err(RestError::Unknown);
        }
        if let Some(before) = known.finished
            && looked_at.is_none_or(|looked| before <= looked)
        {
            drop(discord);
            sim.violated(
                "exactly once",
                format!("interaction {id} is finished again"),
            );
            return Ok(());
        }
        known.finished = Some(now);
        Ok(())
    })
    .await?
}

/// GET of an interaction's original response, and when it was looked at.
pub async fn original(sim: &Sim, id: u64) -> Result<(Original, u64), RestError> {
    rest(sim, move |sim| {
        let discord = sim.discord.borrow();
        let original = match discord.interactions.get(&id) {
            Some(known) if known.finished.is_some() => Original::Done,
            Some(known) if known.answered.is_some() => Original::Loading,
            _ => Original::None,
        };
        (original, sim.now())
    })
    .await
}

/// GET /gateway/bot.
pub async fn limits(sim: &Sim) -> Result<ReportedLimits, RestError> {
    rest(sim, |sim| {
        let now = sim.now();
        let discord = sim.discord.borrow();
        let used = discord.used(now);
        ReportedLimits {
            total: sim.config.total,
            remaining: sim.config.total.saturating_sub(used),
            reset_after_ms: DAY_MS - (now + discord.phase) % DAY_MS,
            max_concurrency: sim.config.max_concurrency,
            recommended: sim.config.shards,
        }
    })
    .await
}
