//! What to do after a connection was lost: where to connect, with which session, after which delay.
//!
//! RESUME is free, IDENTIFY is scarce. So a session is given up only when Discord says so (opcode 9,
//! close 4007 or 4009) or when a gateway that does answer has refused it several times. A gateway that
//! does not answer at all says nothing about the session: during an outage it is kept.

use std::time::Duration;

use super::status::close_code_advice;

/// Tries on the session's own resume URL before the general one.
pub const RESUME_URL_TRIES: u32 = 3;
/// Refusals by the general gateway (after its Hello) before the session is given up.
pub const REFUSALS_MAX: u32 = 3;
/// A connection that lived this long was a good one: the next attempt is made at once.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Delays between attempts. During an outage a shard is at most the longest of them behind its end, and
/// sessions stay resumable for a minute or two only.
const DELAY_MIN: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(20);

/// Where the next connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The URL that came with the session.
    ResumeUrl,
    /// The general gateway URL.
    Generic,
}

/// The next attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Where to.
    pub route: Route,
    /// With the session (RESUME) or without (IDENTIFY, by permit).
    pub resume: bool,
    /// How long to wait first.
    pub delay: Duration,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// No connection, or no Hello on it.
    Unreachable,
    /// The gateway closed, with or without a code.
    Closed(Option<u16>),
    /// Opcode 7.
    Reconnect,
    /// Opcode 9.
    InvalidSession {
        /// Its `d`.
        resumable: bool,
    },
    /// The transport failed or heartbeats stayed unanswered.
    Transport,
    /// Hello came, but then neither READY nor RESUMED in time.
    Stalled,
    /// Given up because we were told to replace it.
    Replaced {
        /// The session is given up as well.
        identify: bool,
    },
}

/// A connection from its Hello to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub lost: Lost,
    /// Hello was received.
    pub hello: bool,
    /// READY or RESUMED was received.
    pub established: bool,
    /// Time since the Hello.
    pub lived: Duration,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Try again like this. `discard` = the session is void, forget it.
    Retry {
        /// The next attempt.
        plan: Plan,
        /// The session is void.
        discard: bool,
    },
    /// Discord forbids to reconnect after this close code.
    Fatal(u16),
}

/// Remembers what failed since the last established connection.
#[derive(Debug, Default)]
pub struct Reconnector {
    has_session: bool,
    resume_url_failures: u32,
    refusals: u32,
    failures: u32,
}

impl Reconnector {
    /// The first attempt, with a stored session or without.
    pub fn start(&mut self, has_session: bool) -> Plan {
        *self = Self {
            has_session,
            ..Self::default()
        };
        self.plan(Duration::ZERO)
    }

    /// READY or RESUMED came.
    pub fn established(&mut self) {
        self.has_session = true;
        self.resume_url_failures = 0;
        self.refusals = 0;
    }

    /// The session is void while there is no connection.
    pub fn give_up(&mut self) {
        self.has_session = false;
        self.resume_url_failures = 0;
        self.refusals = 0;
    }

    /// A connection ended. `jitter` in 0..1 spreads the delay.
    pub fn ended(&mut self, ended: Ended, jitter: f64) -> Verdict {
        if let Lost::Closed(Some(code)) = ended.lost
            && close_code_advice(code).is_some()
        {
            return Verdict::Fatal(code);
        }
        let void = match ended.lost {
            Lost::InvalidSession { resumable } => !resumable,
            Lost::Closed(Some(4007 | 4009)) => true,
            Lost::Replaced { identify } => identify,
            _ => false,
        };
        if self.has_session && !ended.established && !void {
            if self.resume_url_failures < RESUME_URL_TRIES {
                self.resume_url_failures += 1;
            } else if ended.hello {
                self.refusals += 1;
            } else {
                // Neither URL answers: an outage. Begin again with the session's own.
                self.resume_url_failures = RESUME_URL_TRIES - 1;
            }
        }
        let discard = self.has_session && (void || self.refusals >= REFUSALS_MAX);
        if discard {
            self.has_session = false;
        }
        if !self.has_session {
            self.resume_url_failures = 0;
            self.refusals = 0;
        }
        let delay = if matches!(ended.lost, Lost::InvalidSession { .. }) {
            // Discord asks for a random wait of one to five seconds.
            self.failures += 1;
            Duration::from_secs(1).max(self.backoff(0.0)) + Duration::from_secs(4).mul_f64(jitter)
        } else if ended.established && ended.lived >= GOOD_AFTER {
            self.failures = 0;
            Duration::ZERO
        } else {
            self.failures += 1;
            self.backoff(jitter)
        };
        Verdict::Retry {
            plan: self.plan(delay),
            discard,
        }
    }

    fn backoff(&self, jitter: f64) -> Duration {
        let full = DELAY_MIN
            .saturating_mul(1 << self.failures.saturating_sub(1).min(12))
            .min(DELAY_MAX);
        full.mul_f64(0.5 + jitter / 2.0)
    }

    fn plan(&self, delay: Duration) -> Plan {
        let route = if self.has_session && self.resume_url_failures < RESUME_URL_TRIES {
            Route::ResumeUrl
        } else {
            Route::Generic
        };
        Plan {
            route,
            resume: self.has_session,
            delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dead() -> Ended {
        Ended {
            lost: Lost::Unreachable,
            hello: false,
            established: false,
            lived: Duration::ZERO,
        }
    }

    fn refused() -> Ended {
        Ended {
            lost: Lost::Closed(None),
            hello: true,
            established: false,
            lived: Duration::ZERO,
        }
    }

    fn retry(verdict: Verdict) -> (Plan, bool) {
        match verdict {
            Verdict::Retry { plan, discard } => (plan, discard),
            Verdict::Fatal(code) => panic!("fatal {code}"),
        }
    }

    #[test]
    fn dead_resume_url_then_generic_then_identify() {
        let mut strategy = Reconnector::default();
        assert_eq!(strategy.start(true).route, Route::ResumeUrl);
        for _ in 0..2 {
            assert_eq!(retry(strategy.ended(dead(), 0.5)).0.route, Route::ResumeUrl);
        }
        let (plan, discard) = retry(strategy.ended(dead(), 0.5));
        assert_eq!(
            (plan.route, plan.resume, discard),
            (Route::Generic, true, false)
        );
        for _ in 0..2 {
            let (plan, discard) = retry(strategy.ended(refused(), 0.5));
            assert_eq!(
                (plan.route, plan.resume, discard),
                (Route::Generic, true, false)
            );
        }
        let (plan, discard) = retry(strategy.ended(refused(), 0.5));
        assert_eq!(
            (plan.route, plan.resume, discard),
            (Route::Generic, false, true)
        );
    }

    #[test]
    fn an_outage_keeps_the_session_for_ever() {
        let mut strategy = Reconnector::default();
        strategy.start(true);
        let mut routes = (0, 0);
        for _ in 0..500 {
            let (plan, discard) = retry(strategy.ended(dead(), 1.0));
            assert!(plan.resume && !discard && plan.delay <= DELAY_MAX);
            match plan.route {
                Route::ResumeUrl => routes.0 += 1,
                Route::Generic => routes.1 += 1,
            }
        }
        assert!(routes.0 > 100 && routes.1 > 100, "{routes:?}");
    }

    #[test]
    fn opcode_7_after_a_good_time_resumes_at_once() {
        let mut strategy = Reconnector::default();
        strategy.start(false);
        strategy.established();
        let ended = Ended {
            lost: Lost::Reconnect,
            hello: true,
            established: true,
            lived: Duration::from_secs(60),
        };
        let (plan, discard) = retry(strategy.ended(ended, 0.5));
        assert_eq!(
            plan,
            Plan {
                route: Route::ResumeUrl,
                resume: true,
                delay: Duration::ZERO
            }
        );
        assert!(!discard);
    }

    #[test]
    fn opcode_9_false_identifies_after_one_to_five_seconds() {
        let mut strategy = Reconnector::default();
        strategy.start(true);
        let ended = Ended {
            lost: Lost::InvalidSession { resumable: false },
            hello: true,
            established: false,
            lived: Duration::ZERO,
        };
        let (plan, discard) = retry(strategy.ended(ended, 1.0));
        assert!(discard && !plan.resume);
        assert!(plan.delay >= Duration::from_secs(1) && plan.delay <= Duration::from_secs(5));
    }

    #[test]
    fn fatal_codes_are_final() {
        for code in [4004, 4010, 4011, 4012, 4013, 4014] {
            let mut strategy = Reconnector::default();
            strategy.start(true);
            let ended = Ended {
                lost: Lost::Closed(Some(code)),
                ..refused()
            };
            assert_eq!(strategy.ended(ended, 0.0), Verdict::Fatal(code));
        }
    }

    fn any_ended() -> impl Strategy<Value = Ended> {
        let lost = prop_oneof![
            Just(Lost::Unreachable),
            prop_oneof![Just(None), (1000..4010u16).prop_map(Some)].prop_map(Lost::Closed),
            Just(Lost::Reconnect),
            any::<bool>().prop_map(|resumable| Lost::InvalidSession { resumable }),
            any::<bool>().prop_map(|identify| Lost::Replaced { identify }),
            Just(Lost::Transport),
            Just(Lost::Stalled),
        ];
        (lost, any::<bool>(), any::<bool>(), 0..30u64).prop_map(
            |(lost, hello, established, seconds)| Ended {
                lost,
                hello: hello || established,
                established,
                lived: Duration::from_secs(seconds),
            },
        )
    }
    proptest! {
        /// Whatever happens: no resume without a session, no tight loop, no discard without a reason.
        #[test]
        fn never_spins_and_never_wastes_a_session(start in any::<bool>(), endings in prop::collection::vec(any_ended(), 1..80)) {
            let mut strategy = Reconnector::default();
            let mut session = strategy.start(start).resume;
            let mut refusals = 0;
            for ended in endings {
                if ended.established { strategy.established(); session = true; refusals = 0; }
                match strategy.ended(ended, 0.0) {
                    Verdict::Fatal(code) => { prop_assert_eq!(code, 4004); return Ok(()); }
                    Verdict::Retry { plan, discard } => {
                        if ended.hello && !ended.established { refusals += 1; }
                        if discard {
                            let told = matches!(ended.lost, Lost::InvalidSession { resumable: false } | Lost::Closed(Some(4007 | 4009)) | Lost::Replaced { identify: true });
                            prop_assert!(session && (told || refusals >= REFUSALS_MAX));
                            session = false;
                            refusals = 0;
                        }
                        prop_assert_eq!(plan.resume, session);
                        prop_assert!(plan.resume || plan.route == Route::Generic);
                        prop_assert!(!plan.delay.is_zero() || (ended.established && ended.lived >= GOOD_AFTER));
                        prop_assert!(plan.delay <= DELAY_MAX + Duration::from_secs(5));
                    }
                }
            }
        }
    }
}
