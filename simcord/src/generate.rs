//! The clock of the generators, and of everything else that happens by time alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::hub::Hub;

/// Time between two looks at the clock while something is generated, and while nothing is.
const TICK: Duration = Duration::from_millis(5);
const IDLE_TICK: Duration = Duration::from_millis(50);
/// Sessions and interactions are swept this often.
const SWEEP: Duration = Duration::from_millis(200);
/// What was missed while the machine was busy is caught up by at most this much.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);
/// Events, and interactions, made before others get at the hub.
const BATCH: u32 = 64;

/// How many are due, keeping the fractions.
#[derive(Debug, Default)]
struct Due(f64);

impl Due {
    fn pass(&mut self, passed: Duration, per_second: f64) {
        if per_second <= 0.0 {
            // What was due at another rate is due no more.
            self.0 = 0.0;
        }
        self.0 += passed.min(CATCH_UP_MAX).as_secs_f64() * per_second;
    }

    fn take(&mut self, most: u32) -> u32 {
        let taken = self.0.floor().min(f64::from(most));
        self.0 -= taken;
        taken as u32
    }

    fn is_due(&self) -> bool {
        self.0 >= 1.0
    }
}

/// What is due of each kind.
#[derive(Debug, Default)]
struct Generator {
    events: Due,
    interactions: Due,
    /// Nothing is generated at present.
    idle: bool,
}

impl Generator {
    /// Lets time pass and makes one batch of what is due; says whether there is more. The rates are looked at
    /// for each batch, under the lock under which it is made: once somebody was told that they are 0, nothing
    /// follows.
    fn step(&mut self, hub: &mut Hub, now: Instant, passed: Duration) -> bool {
        let rates = hub.rates;
        self.idle = rates.events_per_second + rates.interactions_per_second <= 0.0;
        self.events.pass(passed, rates.events_per_second);
        self.interactions
            .pass(passed, rates.interactions_per_second);
        for _ in 0..self.events.take(BATCH) {
            hub.generate(now);
        }
        for _ in 0..self.interactions.take(BATCH) {
            hub.invoke_any(Instant::now());
        }
        self.events.is_due() || self.interactions.is_due()
    }
}

/// Generates events and interactions at their rates until stopped.
pub(crate) async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut generator = Generator::default();
    let mut last = Instant::now();
    let mut swept = last;
    let mut pause = TICK;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let now = Instant::now();
        let mut passed = now - last;
        last = now;
        while generator.step(&mut app.hub(), now, passed) {
            passed = Duration::ZERO;
            // The connections write meanwhile.
            tokio::task::yield_now().await;
        }
        pause = if generator.idle { IDLE_TICK } else { TICK };
        if now - swept >= SWEEP {
            swept = now;
            app.hub().sweep(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_out_exactly_and_pauses_are_not_caught_up_without_bound() {
        let mut due = Due::default();
        let mut after = |passed, per_second| {
            due.pass(passed, per_second);
            due.take(u32::MAX)
        };
        let made: u32 = (0..1000)
            .map(|_| after(Duration::from_millis(5), 33.3))
            .sum();
        assert!((165..=167).contains(&made), "{made}");
        assert_eq!(after(Duration::from_secs(1), 0.0), 0);
        assert_eq!(after(Duration::from_secs(3600), 1000.0), 500);
    }

    #[test]
    fn nothing_follows_a_rate_of_zero() {
        let mut due = Due::default();
        due.pass(Duration::from_millis(100), 1000.0);
        assert_eq!(due.take(BATCH), 64);
        assert!(due.is_due());
        due.pass(Duration::ZERO, 0.0);
        assert!(!due.is_due());
        assert_eq!(due.take(BATCH), 0);
    }
}
