//! For how long something has been so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A figure must be above its upper threshold for this long before a proposal stands, in milliseconds. The
/// start of a fleet and a storm of events are over by then.
pub const RISE_MS: i64 = 10 * 60 * 1000;
/// And below the lower one for this long before it falls.
pub const FALL_MS: i64 = 30 * 60 * 1000;

/// Where a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Above the upper threshold.
    Above,
    /// Between the two, or not known: nothing changes.
    Between,
    /// Below the lower one.
    Below,
}

impl Signal {
    /// Of a figure and its two thresholds, the lower one first.
    pub fn of(figure: f64, (lower, upper): (f64, f64)) -> Self {
        if figure > upper {
            Self::Above
        } else if figure < lower {
            Self::Below
        } else {
            // Also where it is no number.
            Self::Between
        }
    }

    /// Of several figures for one proposal: one that is above is enough.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Above, _) | (_, Self::Above) => Self::Above,
            (Self::Between, _) | (_, Self::Between) => Self::Between,
            _ => Self::Below,
        }
    }
}

/// Which proposals stand. Kept beside the fleet's state, so that the next coordinator goes on with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing(BTreeMap<String, Mark>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    stands: bool,
    /// Since when the figure speaks against what is, in milliseconds since 1970; 0 = it does not.
    turned_at: i64,
}

impl Standing {
    /// Takes in where a figure is now; whether the proposal stands. `now` in milliseconds since 1970.
    pub fn judge(&mut self, key: &str, now: i64, signal: Signal) -> bool {
        if signal != Signal::Above && !self.0.contains_key(key) {
            return false;
        }
        let mark = self.0.entry(key.to_owned()).or_default();
        let against = if mark.stands {
            signal == Signal::Below
        } else {
            signal == Signal::Above
        };
        if !against {
            mark.turned_at = 0;
        } else if mark.turned_at == 0 || mark.turned_at > now {
            // A clock that was set back begins again.
            mark.turned_at = now.max(1);
        } else {
            let long = if mark.stands { FALL_MS } else { RISE_MS };
            if now - mark.turned_at >= long {
                mark.stands = !mark.stands;
                mark.turned_at = 0;
            }
        }
        let stands = mark.stands;
        if *mark == Mark::default() {
            self.0.remove(key);
        }
        stands
    }

    /// Whether a proposal stands.
    pub fn stands(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|mark| mark.stands)
    }

    /// Forgets what is no more: bots that were removed.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}
