//! The clock of the generators, and of everything else that happens by time alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Time between two looks at the clock while something is generated, and while nothing is.
const TICK: Duration = Duration::from_millis(5);
const IDLE_TICK: Duration = Duration::from_millis(50);
/// Sessions and interactions are swept this often.
const SWEEP: Duration = Duration::from_millis(200);
/// What was missed while the machine was busy is caught up by at most this much.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);
/// Events made before others get at the hub.
const BATCH: u32 = 64;

/// How many are due, keeping the fractions.
#[derive(Debug, Default)]
struct Due(f64);

impl Due {
    fn after(&mut self, passed: Duration, per_second: f64) -> u32 {
        self.0 += passed.min(CATCH_UP_MAX).as_secs_f64() * per_second;
        let due = self.0.floor();
        self.0 -= due;
        due as u32
    }
}

/// Generates events and interactions at their rates until stopped.
pub(crate) async fn run(app: Arc<App>, stop: CancellationToken) {
    let (mut events, mut interactions) = (Due::default(), Due::default());
    let mut last = Instant::now();
    let mut swept = last;
    let mut pause = TICK;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let now = Instant::now();
        let passed = now - last;
        last = now;
        let rates = app.hub().rates;
        let idle = rates.events_per_second + rates.interactions_per_second <= 0.0;
        pause = if idle { IDLE_TICK } else { TICK };
        let mut left = events.after(passed, rates.events_per_second);
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            generate(&app, now, batch);
            // The connections write meanwhile.
            tokio::task::yield_now().await;
        }
        for _ in 0..interactions.after(passed, rates.interactions_per_second) {
            app.hub().invoke_any(Instant::now());
        }
        if now - swept >= SWEEP {
            swept = now;
            app.hub().sweep(now);
        }
    }
}

fn generate(app: &App, now: Instant, events: u32) {
    let mut hub = app.hub();
    for _ in 0..events {
        hub.generate(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_out_exactly_and_pauses_are_not_caught_up_without_bound() {
        let mut due = Due::default();
        let made: u32 = (0..1000)
            .map(|_| due.after(Duration::from_millis(5), 33.3))
            .sum();
        assert!((165..=167).contains(&made), "{made}");
        assert_eq!(Due::default().after(Duration::from_secs(3600), 1000.0), 500);
        assert_eq!(Due::default().after(Duration::from_secs(1), 0.0), 0);
    }
}
