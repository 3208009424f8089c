//! A watch: those that have changed are compared with what they were, and with those that have not.

use serde::{Deserialize, Serialize};
use tanako_fleet::rollout::{self, Case, Sample, Verdict};

use super::{
    core::Observed,
    model::{Failure, Operation},
    step::StepState,
};

/// Who is watched, and what has been seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Those that have changed.
    pub changed: Vec<String>,
    /// What they were before: the same names, or those of the set that they replace.
    pub before: Vec<String>,
    /// Those that have not changed.
    pub siblings: Vec<String>,
    /// Figures.
    #[serde(default)]
    pub case: Case,
    /// Since when, in milliseconds since 1970; 0 = not yet.
    #[serde(default)]
    pub since: i64,
    /// Since when one of them is not ready, in milliseconds since 1970; 0 = all are.
    #[serde(default)]
    pub unready_since: i64,
}

impl Eq for Watch {}

/// Looks again when a process has been not ready for long enough to be judged.
const UNREADY_LOOK_MS: i64 = 10_100;

fn sum(observed: &Observed, names: &[String]) -> Sample {
    let mut total = Sample {
        processes: names.len() as u32,
        ..Sample::default()
    };
    let (mut latencies, mut lags) = (Vec::new(), Vec::new());
    for process in names.iter().filter_map(|name| observed.get(name)) {
        let sample = &process.sample;
        total.ready += u32::from(process.ready);
        total.attempts += process.attempt;
        total.events += sample.events;
        total.interactions += sample.interactions;
        total.failed += sample.failed;
        total.lost += sample.lost;
        total.duplicated += sample.duplicated;
        latencies.push(sample.latency_ms);
        lags.push(sample.lag_ms);
    }
    total.latency_ms = mean(&latencies);
    total.lag_ms = mean(&lags);
    total
}

/// Of what is known.
fn mean(values: &[f64]) -> f64 {
    let known: Vec<f64> = values
        .iter()
        .copied()
        .filter(|value| *value > 0.0)
        .collect();
    if known.is_empty() {
        0.0
    } else {
        known.iter().sum::<f64>() / known.len() as f64
    }
}

/// Keeps what is known of their past, before anything changes.
pub(super) fn remember(op: &mut Operation, observed: &Observed) {
    if let Some(watch) = &mut op.watch {
        watch.case.past = sum(observed, &watch.before);
    }
}

pub(super) fn begin(op: &mut Operation, index: usize, now: i64, observed: &Observed) {
    let step = &mut op.steps[index];
    step.state = StepState::Running;
    step.started_at = now;
    let Some(watch) = &mut op.watch else {
        step.finish(now, StepState::Succeeded, "nobody to watch");
        return;
    };
    step.message = format!("{} s", watch.case.watch_ms / 1000);
    watch.since = now;
    watch.unready_since = 0;
    watch.case.begun = sum(observed, &watch.changed);
    watch.case.siblings_begun = sum(observed, &watch.siblings);
}

pub(super) fn watch(op: &mut Operation, index: usize, now: i64, observed: &Observed) {
    let step = &mut op.steps[index];
    let Some(watch) = &mut op.watch else {
        step.finish(now, StepState::Succeeded, "nobody to watch");
        return;
    };
    let case = &mut watch.case;
    case.now = sum(observed, &watch.changed);
    case.siblings_now = sum(observed, &watch.siblings);
    // A clock that was set back must not make the watch endless.
    watch.since = watch.since.min(now);
    case.watched_ms = now - watch.since;
    if case.now.ready >= case.now.processes {
        watch.unready_since = 0;
    } else if watch.unready_since == 0 {
        watch.unready_since = now;
    }
    case.unready_ms = if watch.unready_since == 0 {
        0
    } else {
        now - watch.unready_since
    };
    match rollout::judge(case) {
        Verdict::Wait => {}
        Verdict::Go(seen) => {
            step.finish(now, StepState::Succeeded, seen);
            op.updated_at = now;
        }
        Verdict::Back(reasons) => {
            let reasons = reasons.join("; ");
            let object = step.object.clone();
            step.finish(now, StepState::Failed, reasons.clone());
            op.failure = Some(Failure {
                code: "not-healthy".to_owned(),
                object: object.clone(),
                message: format!("{object} does worse than before: {reasons}"),
                cause: String::new(),
                hint: format!("look at `tanakoctl logs {object}` of that time"),
                retryable: false,
            });
            op.updated_at = now;
        }
    }
}

/// When time alone changes something.
pub(super) fn deadline(op: &Operation) -> Option<i64> {
    let watch = op.watch.as_ref()?;
    let end =
        (watch.case.watched_ms < watch.case.watch_ms).then_some(watch.since + watch.case.watch_ms);
    let unready = (watch.unready_since > 0).then_some(watch.unready_since + UNREADY_LOOK_MS);
    end.into_iter().chain(unready).min()
}
