//! How long to wait before the next automatic start, and when to give up.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tanako_fleet::process::RestartPolicy;

/// Doublings after which any wait is at its maximum anyway.
const DOUBLINGS_MAX: u32 = 30;
/// Failures remembered for the crash-loop guard, whatever the spec asks for.
const WINDOW_MAX: usize = 1_000;

/// What to do after a failed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start again now: it was the first failure in a row.
    AtOnce,
    /// Start again after this time.
    After(Duration),
    /// So many failures in the window: give up.
    GiveUp(usize),
}

/// The failures of one process.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    /// Failures in a row, without a run that was ready for long enough between them.
    pub in_a_row: u32,
    /// When the latest ones happened, oldest first.
    pub recent: VecDeque<Instant>,
}

impl Failures {
    /// Counts a failure and says what follows. `spawned` is false when no process came to be: then
    /// there is no point in trying again at once.
    pub(super) fn record(
        &mut self,
        now: Instant,
        policy: &RestartPolicy,
        spawned: bool,
        rng: &mut fastrand::Rng,
    ) -> Verdict {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.recent.push_back(now);
        let starts_max = (policy.crash_loop_starts as usize).min(WINDOW_MAX);
        while self.recent.front().is_some_and(|at| {
            now.saturating_duration_since(*at) > policy.crash_loop_window
                || self.recent.len() > starts_max.max(1)
        }) {
            self.recent.pop_front();
        }
        // 0 starts = no guard.
        if starts_max > 0 && self.recent.len() >= starts_max {
            return Verdict::GiveUp(self.recent.len());
        }
        match (self.in_a_row, spawned) {
            (1, true) => Verdict::AtOnce,
            (n, true) => Verdict::After(wait(policy, n - 2, rng)),
            (n, false) => Verdict::After(wait(policy, n - 1, rng)),
        }
    }

    /// Forgets everything: the operator started the process or changed its spec.
    pub fn clear(&mut self) {
        self.in_a_row = 0;
        self.recent.clear();
    }
}

/// The wait after `doublings` doublings: up to a quarter more, so that processes which failed
/// together do not come back together, but never more than `backoff_max`; at the maximum up to a
/// quarter less instead, never less than `backoff_min`.
fn wait(policy: &RestartPolicy, doublings: u32, rng: &mut fastrand::Rng) -> Duration {
    let max = policy.backoff_max.max(policy.backoff_min);
    let base = policy
        .backoff_min
        .saturating_mul(1 << doublings.min(DOUBLINGS_MAX))
        .min(max);
    let high = (base + base / 4).min(max);
    let low = if base == max {
        max.saturating_sub(max / 4).max(policy.backoff_min)
    } else {
        base
    };
    low + (high.saturating_sub(low)).mul_f64(rng.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartPolicy {
        RestartPolicy {
            when: tanako_fleet::process::RestartWhen::Always,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(20),
            reset_after: Duration::from_secs(60),
            crash_loop_starts: 0,
            crash_loop_window: Duration::from_secs(60),
        }
    }

    #[test]
    fn waits_double_within_their_bounds() {
        let (policy, mut rng) = (policy(), fastrand::Rng::with_seed(7));
        let mut failures = Failures::default();
        let now = Instant::now();
        assert_eq!(
            failures.record(now, &policy, true, &mut rng),
            Verdict::AtOnce
        );
        for (low, high) in [
            (1.0, 1.25),
            (2.0, 2.5),
            (4.0, 5.0),
            (8.0, 10.0),
            (16.0, 20.0),
        ]
        .into_iter()
        .chain([(15.0, 20.0); 40])
        {
            let Verdict::After(wait) = failures.record(now, &policy, true, &mut rng) else {
                panic!("no guard is set")
            };
            let wait = wait.as_secs_f64();
            assert!((low..=high).contains(&wait), "{low} <= {wait} <= {high}");
        }
    }

    #[test]
    fn the_guard_counts_only_its_window() {
        let (mut policy, mut rng) = (policy(), fastrand::Rng::with_seed(7));
        policy.crash_loop_starts = 3;
        let mut failures = Failures::default();
        let begin = Instant::now();
        for second in [0, 40, 80, 120, 160] {
            let at = begin + Duration::from_secs(second);
            let verdict = failures.record(at, &policy, true, &mut rng);
            assert!(!matches!(verdict, Verdict::GiveUp(_)), "at {second} s");
        }
        let at = begin + Duration::from_secs(161);
        assert_eq!(
            failures.record(at, &policy, true, &mut rng),
            Verdict::GiveUp(3)
        );
    }
}
