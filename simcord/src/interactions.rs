//! Interactions that were sent, and what became of them.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::world::GuildIndex;

/// Follow-ups may use the interaction's token for this long.
pub(crate) const TOKEN_LIVES: Duration = Duration::from_secs(15 * 60);
/// Interactions kept; with more than that in 15 minutes the oldest are forgotten early.
const KEPT_MAX: usize = 200_000;

/// How far an interaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Pending,
    Deferred,
    Answered,
    /// A callback came, but more than 3 s after the interaction.
    Late,
}

/// One interaction.
#[derive(Debug, Clone)]
pub(crate) struct Interaction {
    pub id: u64,
    pub token: String,
    pub command: String,
    pub guild: GuildIndex,
    pub channel: String,
    /// Who invoked the command.
    pub user: u64,
    pub sent: Instant,
    pub state: State,
    pub answered_after: Option<Duration>,
    /// The callback's type.
    pub callback: Option<u64>,
    /// The message that answers it.
    pub original: Option<u64>,
    pub followups: u32,
    overdue: bool,
}

/// An interaction that is about to be sent.
#[derive(Debug, Default)]
pub(crate) struct Invoked {
    pub id: u64,
    pub token: String,
    pub command: String,
    pub guild: GuildIndex,
    pub channel: String,
    pub user: u64,
}

/// Why a callback is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallbackRefusal {
    /// Unknown, of another token, or late: 10062.
    Unknown,
    /// 40060.
    AlreadyAcknowledged,
}

/// Counters of interactions. `sent` is the sum of `answered`, `late`, `unanswered` and those that may still be answered.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Counters {
    pub sent: u64,
    pub answered: u64,
    pub answered_twice: u64,
    pub unanswered: u64,
    pub late: u64,
    pub deferred: u64,
    /// Of the deferred ones: those whose answer is still to come.
    pub deferred_open: u64,
    pub followups: u64,
    /// Not sent, since no session covered the guild.
    pub unrouted: u64,
    /// Longest time to an answer in time, in milliseconds.
    pub answer_ms_max: u64,
    answer_ms_sum: u64,
}

/// All interactions of the last 15 minutes.
#[derive(Debug)]
pub(crate) struct Interactions {
    /// An interaction must be answered within this time.
    answer_within: Duration,
    by_id: HashMap<u64, Interaction>,
    by_token: HashMap<String, u64>,
    /// In order of sending, each until it is older than 15 minutes.
    order: VecDeque<u64>,
    /// In order of sending, each until it is older than 3 s.
    young: VecDeque<u64>,
    pub counters: Counters,
}

impl Interactions {
    pub(crate) fn new(answer_within: Duration) -> Self {
        Self {
            answer_within,
            by_id: HashMap::new(),
            by_token: HashMap::new(),
            order: VecDeque::new(),
            young: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn sent(&mut self, now: Instant, invoked: Invoked) {
        let Invoked {
            id,
            token,
            command,
            guild,
            channel,
            user,
        } = invoked;
        self.counters.sent += 1;
        self.by_token.insert(token.clone(), id);
        self.order.push_back(id);
        self.young.push_back(id);
        let interaction = Interaction {
            id,
            token,
            command,
            guild,
            channel,
            user,
            sent: now,
            state: State::Pending,
            answered_after: None,
            callback: None,
            original: None,
            followups: 0,
            overdue: false,
        };
        self.by_id.insert(id, interaction);
        self.sweep(now);
    }

    /// Lets time pass: what is too old for a first answer counts as unanswered, what is older than 15 minutes is forgotten.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while let Some(interaction) = self.young.front().and_then(|id| self.by_id.get_mut(id)) {
            if now.duration_since(interaction.sent) <= self.answer_within {
                break;
            }
            if interaction.state == State::Pending {
                interaction.overdue = true;
                self.counters.unanswered += 1;
            }
            self.young.pop_front();
        }
        while let Some(oldest) = self.order.front().and_then(|id| self.by_id.get(id)) {
            let old = now.duration_since(oldest.sent) > TOKEN_LIVES;
            if !old && (self.order.len() <= KEPT_MAX || self.young.front() == Some(&oldest.id)) {
                break;
            }
            self.by_token.remove(&oldest.token);
            if let Some(id) = self.order.pop_front() {
                self.by_id.remove(&id);
            }
        }
    }

    /// Whether a callback for the interaction would be taken now. Counts those that would not.
    pub(crate) fn check_callback(
        &mut self,
        now: Instant,
        id: u64,
        token: &str,
    ) -> Result<(), CallbackRefusal> {
        self.sweep(now);
        let Some(interaction) = self
            .by_id
            .get_mut(&id)
            .filter(|interaction| interaction.token == token)
        else {
            return Err(CallbackRefusal::Unknown);
        };
        match interaction.state {
            State::Deferred | State::Answered => {
                self.counters.answered_twice += 1;
                Err(CallbackRefusal::AlreadyAcknowledged)
            }
            State::Late => Err(CallbackRefusal::Unknown),
            State::Pending if now.duration_since(interaction.sent) > self.answer_within => {
                interaction.state = State::Late;
                interaction.answered_after = Some(now.duration_since(interaction.sent));
                self.counters.late += 1;
                if interaction.overdue {
                    self.counters.unanswered -= 1;
                }
                Err(CallbackRefusal::Unknown)
            }
            State::Pending => Ok(()),
        }
    }

    /// Takes a callback that [`Self::check_callback`] let through.
    pub(crate) fn answer(&mut self, now: Instant, id: u64, kind: u64, original: Option<u64>) {
        let Some(interaction) = self.by_id.get_mut(&id) else {
            return;
        };
        let after = now.duration_since(interaction.sent);
        interaction.state = if kind == 5 {
            State::Deferred
        } else {
            State::Answered
        };
        interaction.callback = Some(kind);
        interaction.answered_after = Some(after);
        interaction.original = original;
        self.counters.answered += 1;
        self.counters.deferred += u64::from(kind == 5);
        self.counters.deferred_open += u64::from(kind == 5);
        self.counters.answer_ms_max = self.counters.answer_ms_max.max(after.as_millis() as u64);
        self.counters.answer_ms_sum += after.as_millis() as u64;
    }

    /// The answer to a deferred interaction came.
    pub(crate) fn filled_in(&mut self, now: Instant, token: &str) {
        self.counters.followups += 1;
        let Some(interaction) = self.by_token(now, token) else {
            return;
        };
        if interaction.state == State::Deferred {
            interaction.state = State::Answered;
            self.counters.deferred_open -= 1;
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Interaction> {
        self.by_id.get(&id)
    }

    /// The interaction of a follow-up token. None when it is unknown or over 15 minutes old.
    pub(crate) fn by_token(&mut self, now: Instant, token: &str) -> Option<&mut Interaction> {
        self.sweep(now);
        let id = self.by_token.get(token)?;
        self.by_id.get_mut(id)
    }

    /// Average time to an answer, in milliseconds.
    pub(crate) fn answer_ms_average(&self) -> u64 {
        self.counters
            .answer_ms_sum
            .checked_div(self.counters.answered)
            .unwrap_or(0)
    }

    /// Sets the counters to zero. What is still open, and younger than 3 s, counts as sent from then on.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.sweep(now);
        for interaction in self.by_id.values_mut() {
            interaction.overdue = false;
        }
        let pending = |id: &&u64| {
            self.by_id
                .get(id)
                .is_some_and(|interaction| interaction.state == State::Pending)
        };
        let sent = self.young.iter().filter(pending).count() as u64;
        self.counters = Counters {
            sent,
            // Not a counter: it is how many there are.
            deferred_open: self.counters.deferred_open,
            ..Counters::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER_WITHIN: Duration = Duration::from_secs(3);

    fn sent(at: Instant) -> Interactions {
        let mut interactions = Interactions::new(ANSWER_WITHIN);
        interactions.sent(
            at,
            Invoked {
                id: 1,
                token: "t".to_owned(),
                ..Invoked::default()
            },
        );
        interactions
    }

    #[test]
    fn answers_in_time_count_once() {
        let at = Instant::now();
        let mut interactions = sent(at);
        assert_eq!(
            interactions.check_callback(at + ANSWER_WITHIN, 1, "t"),
            Ok(())
        );
        interactions.answer(at + ANSWER_WITHIN, 1, 4, Some(9));
        let again = interactions.check_callback(at + ANSWER_WITHIN, 1, "t");
        assert_eq!(again, Err(CallbackRefusal::AlreadyAcknowledged));
        interactions.sweep(at + ANSWER_WITHIN * 2);
        let counters = &interactions.counters;
        assert_eq!(
            (counters.sent, counters.answered, counters.answered_twice),
            (1, 1, 1)
        );
        assert_eq!((counters.unanswered, counters.late), (0, 0));
    }

    #[test]
    fn silence_counts_after_three_seconds_and_a_late_answer_replaces_it() {
        let at = Instant::now();
        let mut interactions = sent(at);
        interactions.sweep(at + ANSWER_WITHIN);
        assert_eq!(interactions.counters.unanswered, 0);
        let late = at + ANSWER_WITHIN + Duration::from_millis(1);
        interactions.sweep(late);
        assert_eq!(interactions.counters.unanswered, 1);
        for _ in 0..2 {
            assert_eq!(
                interactions.check_callback(late, 1, "t"),
                Err(CallbackRefusal::Unknown)
            );
        }
        assert_eq!(
            (interactions.counters.unanswered, interactions.counters.late),
            (0, 1)
        );
    }

    #[test]
    fn tokens_end_after_a_quarter_of_an_hour() {
        let at = Instant::now();
        let mut interactions = sent(at);
        assert!(interactions.by_token(at + TOKEN_LIVES, "t").is_some());
        assert!(
            interactions
                .by_token(at + TOKEN_LIVES + Duration::from_millis(1), "t")
                .is_none()
        );
        assert_eq!(interactions.counters.unanswered, 1);
    }

    #[test]
    fn another_token_is_as_unknown_as_another_id() {
        let at = Instant::now();
        let mut interactions = sent(at);
        assert_eq!(
            interactions.check_callback(at, 1, "u"),
            Err(CallbackRefusal::Unknown)
        );
        assert_eq!(
            interactions.check_callback(at, 2, "t"),
            Err(CallbackRefusal::Unknown)
        );
        assert_eq!(interactions.counters.late, 0);
    }
}
