//! Rollouts: in which order processes change, and whether those that have changed do well.

use serde::{Deserialize, Serialize};

use crate::shard::bucket_of;

/// How a change is brought to the processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// One after the other, in place.
    #[default]
    Rolling,
    /// One first, watched for a time; then the others, or back.
    Canary,
    /// A second set beside the first takes over its sessions, pair by pair.
    BlueGreen,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rolling, Self::Canary, Self::BlueGreen];

    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Canary => "canary",
            Self::BlueGreen => "blue-green",
        }
    }
}

/// The order in which to restart processes: first one whose first shard is in bucket 0, then one of
/// bucket 1, and so on, then round again. Neighbours then never wait on one bucket, should they have
/// to identify. Keeps the order of `shards` within a bucket.
pub fn by_bucket(shards: &[&[u32]], max_concurrency: u32) -> Vec<usize> {
    let mut places: Vec<(u32, u32, usize)> = Vec::with_capacity(shards.len());
    let mut taken = std::collections::HashMap::new();
    for (index, shards) in shards.iter().enumerate() {
        let bucket = bucket_of(shards.first().copied().unwrap_or(0), max_concurrency);
        let round: &mut u32 = taken.entry(bucket).or_default();
        places.push((*round, bucket, index));
        *round += 1;
    }
    places.sort_unstable();
    places.into_iter().map(|(_, _, index)| index).collect()
}

/// Counters and gauges of a group of processes at one moment, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Processes in it.
    pub processes: u32,
    /// Of them ready.
    pub ready: u32,
    /// Starts of the supervisor's, whoever asked for them.
    pub attempts: u64,
    /// Dispatches.
    pub events: u64,
    /// Interactions handled, and those of them that failed.
    pub interactions: u64,
    /// See `interactions`.
    pub failed: u64,
    /// Dispatches that never came.
    pub lost: u64,
    /// Effects that happened twice.
    pub duplicated: u64,
    /// Mean heartbeat round trip in milliseconds; 0 = not known.
    pub latency_ms: f64,
    /// Mean time from Discord's clock to handling in milliseconds; 0 = not known.
    pub lag_ms: f64,
}

/// What the judge knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The changed ones when the watch began.
    pub begun: Sample,
    /// The changed ones now.
    pub now: Sample,
    /// The same processes in their former life, as far as it was reported: totals since their start.
    pub past: Sample,
    /// The unchanged ones when the watch began.
    pub siblings_begun: Sample,
    /// The unchanged ones now.
    pub siblings_now: Sample,
    /// For how long it has been watched, in milliseconds.
    pub watched_ms: i64,
    /// For how long it is to be watched.
    pub watch_ms: i64,
    /// Since when a process is not ready, in milliseconds ago; 0 = all are.
    pub unready_ms: i64,
}

/// What the judge says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is too early.
    Wait,
    /// Go on; what was seen, for people.
    Go(String),
    /// Go back, and why, one line each.
    Back(Vec<String>),
}

/// A changed process may be not ready for this long: a connection that Discord cut is resumed sooner.
const UNREADY_MS_MAX: i64 = 10_000;
/// Fewer interactions than this prove nothing by their errors.
const INTERACTIONS_MIN: u64 = 10;
/// So many percentage points more errors than before or than the siblings are too many.
const ERRORS_MORE_MAX: f64 = 0.05;
/// Times as slow as before and as the siblings, and by so much, is too slow.
const SLOWER_TIMES: f64 = 3.0;
/// See [`SLOWER_TIMES`]; in milliseconds.
const SLOWER_MS: f64 = 250.0;
/// Siblings that take so many events a second each while the changed ones take none: they are deaf.
const DEAF_EVENTS_PER_S: f64 = 2.0;
/// Shorter watches cannot tell deafness from a quiet moment.
const DEAF_MS_MIN: i64 = 5_000;

/// Whether the changed processes do as well as before, and as their siblings. Restarts, loss and double
/// handling speak at once; ratios and speed only at the end, when there is most to go by.
pub fn judge(case: &Case) -> Verdict {
    let mut reasons = at_once(case);
    let over = case.watched_ms >= case.watch_ms;
    if over {
        reasons.extend(errors(case));
        reasons.extend(speed("heartbeat latency", case, |sample| sample.latency_ms));
        reasons.extend(speed("event lag", case, |sample| sample.lag_ms));
        reasons.extend(deaf(case));
        if case.now.ready < case.now.processes && reasons.is_empty() {
            // A moment's reconnect at the very end gets its time as any other does.
            return Verdict::Wait;
        }
    }
    if !reasons.is_empty() {
        return Verdict::Back(reasons);
    }
    if !over {
        return Verdict::Wait;
    }
    let events = case.now.events.saturating_sub(case.begun.events);
    let (interactions, failed) = grown(&case.begun, &case.now);
    Verdict::Go(format!(
        "{} s watched: {events} events, {interactions} interactions, {failed} failed, none lost, none twice, no restart",
        case.watched_ms / 1000
    ))
}

fn at_once(case: &Case) -> Vec<String> {
    let mut reasons = Vec::new();
    let restarts = case.now.attempts.saturating_sub(case.begun.attempts);
    if restarts > 0 {
        reasons.push(format!("restarted {restarts} times while it was watched"));
    }
    if case.unready_ms > UNREADY_MS_MAX {
        let (ready, all) = (case.now.ready, case.now.processes);
        reasons.push(format!(
            "{} of {all} not ready for {} s",
            all - ready.min(all),
            case.unready_ms / 1000
        ));
    }
    // A restart begins the counters anew; it has spoken already.
    let lost = case.now.lost.saturating_sub(case.begun.lost);
    if lost > 0 {
        reasons.push(format!("lost {lost} events"));
    }
    let twice = case.now.duplicated.saturating_sub(case.begun.duplicated);
    if twice > 0 {
        reasons.push(format!("handled {twice} interactions twice"));
    }
    reasons
}

fn grown(from: &Sample, to: &Sample) -> (u64, u64) {
    (
        to.interactions.saturating_sub(from.interactions),
        to.failed.saturating_sub(from.failed),
    )
}

fn ratio((all, failed): (u64, u64)) -> Option<f64> {
    (all >= INTERACTIONS_MIN).then(|| failed as f64 / all as f64)
}

fn errors(case: &Case) -> Option<String> {
    let own = ratio(grown(&case.begun, &case.now))?;
    let past = ratio((case.past.interactions, case.past.failed));
    let siblings = ratio(grown(&case.siblings_begun, &case.siblings_now));
    // The kinder of the two counts: a failing database hurts old and new alike.
    let known: Vec<f64> = [past, siblings].into_iter().flatten().collect();
    let bar = known.iter().copied().fold(0.0, f64::max);
    (own > bar + ERRORS_MORE_MAX).then(|| {
        let than = match (past, siblings) {
            (_, Some(siblings)) => format!("{:.1} % at its siblings", siblings * 100.0),
            (Some(past), None) => format!("{:.1} % before", past * 100.0),
            (None, None) => "none expected".to_owned(),
        };
        format!("{:.1} % of its interactions failed, {than}", own * 100.0)
    })
}

fn speed(what: &str, case: &Case, of: impl Fn(&Sample) -> f64) -> Option<String> {
    let own = of(&case.now);
    let known: Vec<f64> = [of(&case.past), of(&case.siblings_now)]
        .into_iter()
        .filter(|value| *value > 0.0)
        .collect();
    if own <= 0.0 || known.is_empty() {
        return None;
    }
    let bar = known.iter().copied().fold(0.0, f64::max);
    (own > bar * SLOWER_TIMES && own > bar + SLOWER_MS)
        .then(|| format!("{what} is {own:.0} ms, {bar:.0} ms elsewhere"))
}

fn deaf(case: &Case) -> Option<String> {
    if case.watched_ms < DEAF_MS_MIN || case.siblings_now.processes == 0 {
        return None;
    }
    let seconds = case.watched_ms as f64 / 1000.0;
    let events = case.now.events.saturating_sub(case.begun.events);
    let siblings = case
        .siblings_now
        .events
        .saturating_sub(case.siblings_begun.events) as f64
        / f64::from(case.siblings_now.processes)
        / seconds;
    (events == 0 && siblings >= DEAF_EVENTS_PER_S)
        .then(|| format!("received no event, its siblings {siblings:.0} a second each"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn case() -> Case {
        let old = Sample {
            processes: 3,
            ready: 3,
            attempts: 3,
            events: 3_000,
            interactions: 300,
            failed: 3,
            latency_ms: 40.0,
            lag_ms: 20.0,
            ..Sample::default()
        };
        let new = Sample {
            processes: 1,
            ready: 1,
            attempts: 2,
            latency_ms: 45.0,
            lag_ms: 22.0,
            ..Sample::default()
        };
        Case {
            begun: new,
            now: Sample {
                events: 1_000,
                interactions: 100,
                failed: 1,
                ..new
            },
            past: Sample {
                processes: 1,
                ..old
            },
            siblings_begun: old,
            siblings_now: Sample {
                events: 6_000,
                interactions: 600,
                failed: 6,
                ..old
            },
            watched_ms: 60_000,
            watch_ms: 60_000,
            unready_ms: 0,
        }
    }

    fn why(case: &Case) -> String {
        match judge(case) {
            Verdict::Back(reasons) => reasons.join("; "),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn one_that_does_as_well_goes_on_and_not_before_its_time() {
        let mut case = case();
        assert!(matches!(judge(&case), Verdict::Go(_)));
        case.watched_ms = 59_999;
        assert_eq!(judge(&case), Verdict::Wait);
    }

    #[test]
    fn reasons_to_go_back() {
        let with = |change: &dyn Fn(&mut Case)| {
            let mut case = case();
            change(&mut case);
            why(&case)
        };
        let early = with(&|case| {
            case.watched_ms = 1_000;
            case.now.attempts += 1;
        });
        assert_eq!(early, "restarted 1 times while it was watched");
        assert_eq!(with(&|case| case.now.lost = 4), "lost 4 events");
        assert_eq!(
            with(&|case| case.now.duplicated = 1),
            "handled 1 interactions twice"
        );
        assert_eq!(
            with(&|case| {
                case.now.ready = 0;
                case.unready_ms = 12_000;
            }),
            "1 of 1 not ready for 12 s"
        );
        assert_eq!(
            with(&|case| case.now.failed = 20),
            "20.0 % of its interactions failed, 1.0 % at its siblings"
        );
        assert_eq!(
            with(&|case| case.now.latency_ms = 900.0),
            "heartbeat latency is 900 ms, 40 ms elsewhere"
        );
        assert_eq!(
            with(&|case| case.now.events = 0),
            "received no event, its siblings 17 a second each"
        );
    }

    #[test]
    fn what_hurts_old_and_new_alike_is_not_the_new_ones_fault() {
        let mut case = case();
        case.now.failed = 50;
        case.siblings_now.failed = 160;
        case.now.latency_ms = 900.0;
        case.siblings_now.latency_ms = 880.0;
        assert!(matches!(judge(&case), Verdict::Go(_)), "{}", why(&case));
    }

    #[test]
    fn few_interactions_prove_nothing() {
        let mut case = case();
        case.now.interactions = 9;
        case.now.failed = 9;
        assert!(matches!(judge(&case), Verdict::Go(_)));
    }

    #[test]
    fn neighbours_are_of_different_buckets() {
        let shards: Vec<Vec<u32>> = (0..8).map(|n| vec![n * 2, n * 2 + 1]).collect();
        let shards: Vec<&[u32]> = shards.iter().map(Vec::as_slice).collect();
        // First shards 0, 2, 4, … 14 at max_concurrency 4: buckets 0, 2, 0, 2, …
        assert_eq!(by_bucket(&shards, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
        let shards: Vec<Vec<u32>> = (0..8).map(|n| vec![n * 4]).collect();
        let shards: Vec<&[u32]> = shards.iter().map(Vec::as_slice).collect();
        assert_eq!(by_bucket(&shards, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        let clumped: [&[u32]; 4] = [&[0], &[4], &[1], &[5]];
        assert_eq!(by_bucket(&clumped, 4), [0, 2, 1, 3]);
    }

    proptest! {
        #[test]
        fn an_order_leaves_nothing_out(firsts in prop::collection::vec(0_u32..100, 0..40), max in 0_u32..20) {
            let shards: Vec<[u32; 1]> = firsts.iter().map(|first| [*first]).collect();
            let slices: Vec<&[u32]> = shards.iter().map(<[u32; 1]>::as_slice).collect();
            let mut order = by_bucket(&slices, max);
            order.sort_unstable();
            prop_assert_eq!(order, (0..firsts.len()).collect::<Vec<_>>());
        }

        #[test]
        fn the_judge_comes_to_an_end(
            watched in 0_i64..200_000, ready in 0_u32..3, unready in 0_i64..60_000, lost in 0_u64..2,
        ) {
            let mut case = case();
            case.watched_ms = watched;
            case.now.processes = 2;
            case.now.ready = ready.min(2);
            case.unready_ms = if case.now.ready == 2 { 0 } else { unready };
            case.now.lost = lost;
            let verdict = judge(&case);
            let undecided = watched < case.watch_ms || case.now.ready < 2 && unready <= UNREADY_MS_MAX;
            prop_assert!(undecided || verdict != Verdict::Wait);
            prop_assert!(lost == 0 || matches!(verdict, Verdict::Back(_)));
        }
    }
}
