//! Whether the fleet acts by itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Advice, BotFacts, Change, Facts};
use crate::spec::{Act, Advise};

/// A day, in milliseconds.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// When the fleet last acted by itself, in milliseconds since 1970, by proposal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acted(BTreeMap<String, i64>);

impl Acted {
    /// Notes that it does so now. Only the last day counts.
    pub fn note(&mut self, change: &Change, now: i64) {
        self.0.retain(|_, at| now - *at < DAY_MS);
        self.0.insert(change.key(), now);
    }

    /// The last time within a day; 0 = there was none.
    pub fn last(&self) -> i64 {
        self.0.values().copied().max().unwrap_or(0)
    }
}

/// The proposal that the fleet may carry out now by itself: allowed by the operator, in the hours given,
/// none within the last day, nothing else under way, within its bounds. `now` in milliseconds since 1970;
/// `busy` = an operation runs.
pub fn due<'a>(
    advice: &'a Advice,
    facts: &Facts,
    may: &Advise,
    acted: &Acted,
    now: i64,
    busy: bool,
) -> Option<&'a Change> {
    let minute = u32::try_from(now.rem_euclid(DAY_MS) / 60_000).unwrap_or(0);
    // A clock that was set back does not let it act twice.
    let rested = acted.last() == 0 || now - acted.last() >= DAY_MS;
    if busy || !rested || !may.is_quiet(minute) {
        return None;
    }
    let allowed = |change: &&Change| match change {
        Change::Rebalance { .. } => may.act.contains(&Act::Rebalance),
        Change::Reshard { bot, to, .. } => {
            let bot = facts.bots.iter().find(|known| known.name == *bot);
            may.act.contains(&Act::Reshard)
                && may.max_shards.is_some_and(|max| *to <= max)
                && bot.is_some_and(|bot| bot.worker && affords(bot, *to))
        }
        Change::Hosts { .. } | Change::Nodes { .. } => false,
    };
    let mut changes = advice.proposals.iter().map(|proposal| &proposal.change);
    changes.find(allowed)
}

/// Whether the day's IDENTIFYs suffice.
fn affords(bot: &BotFacts, to: u32) -> bool {
    bot.identifies.is_some_and(|left| left >= to)
}
