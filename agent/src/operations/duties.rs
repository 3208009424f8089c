//! What each process of two overlapping sets does, as an operation has it at the moment. Follows from
//! the operation alone, so that an agent that starts anew gives the same duties.

use std::collections::BTreeMap;

use tanako_proto::worker::v1::{Cut, Duty};

use super::{
    cut,
    model::Operation,
    step::{Step, StepAction},
    switch,
};
use crate::worker::duties::Assignment;

const WARM: Assignment = Assignment {
    duty: Duty::Warm,
    cut: None,
};
const SHADOW: Assignment = Assignment {
    duty: Duty::Shadow,
    cut: None,
};
const ACTIVE: Assignment = Assignment {
    duty: Duty::Active,
    cut: None,
};

/// Duties by process. Whoever is not in it is active.
pub fn assignments(op: &Operation) -> BTreeMap<String, Assignment> {
    let mut all = BTreeMap::new();
    if op.state.is_ended() {
        return all;
    }
    // Later steps overrule earlier ones, those of the way back are last.
    for step in op.steps.iter().filter(|step| step.is_begun()) {
        match step.action {
            StepAction::Warm => {
                all.insert(step.object.clone(), WARM);
            }
            StepAction::Shadow => {
                all.insert(step.object.clone(), SHADOW);
            }
            StepAction::Switch => {
                let taken = step.stage >= switch::TAKING;
                all.insert(step.object.clone(), WARM);
                all.insert(step.other.clone(), if taken { ACTIVE } else { WARM });
            }
            StepAction::Cut => share(op, step, &mut all),
            _ => {}
        }
    }
    all
}

/// Duties of everybody: of the operations under way, and the cuts of those that have ended.
pub fn all<'a>(
    now: i64,
    lingering: &mut Vec<Lingering>,
    operations: impl IntoIterator<Item = &'a Operation>,
) -> BTreeMap<String, Assignment> {
    lingering.retain(|over| now < over.until);
    let over = lingering.iter().flat_map(|over| over.cuts.clone());
    let current = operations.into_iter().flat_map(assignments);
    over.chain(current).collect()
}

/// The cuts of an operation that has ended, which go on for a while: what is older than the cut may still
/// be in the rings of processes, or come again as a replay. Nobody is told that they are over: nothing
/// that old comes any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Lingering {
    /// Until when they count, in milliseconds since 1970.
    pub until: i64,
    /// By process.
    pub cuts: BTreeMap<String, Assignment>,
}

impl Lingering {
    /// What an operation leaves that ends now; `before`: as it was the moment before.
    pub fn of(now: i64, before: &Operation) -> Option<Self> {
        let mut cuts = assignments(before);
        cuts.retain(|_, assignment| assignment.cut.is_some());
        (!cuts.is_empty()).then(|| Self {
            until: now + cut::RING_MS,
            cuts,
        })
    }
}

fn share(op: &Operation, step: &Step, all: &mut BTreeMap<String, Assignment>) {
    let (old, new) = (cut::old_set(op), cut::new_set(op));
    let (givers, takers) = if step.back { (new, old) } else { (old, new) };
    let part = |before| Assignment {
        duty: Duty::Active,
        cut: Some(Cut {
            at: step.cut_at,
            before,
        }),
    };
    match step.stage {
        cut::WAIT => {}
        cut::RELEASE => all.extend(takers.into_iter().map(|name| (name, ACTIVE))),
        stage if step.cut_at > 0 => {
            all.extend(givers.into_iter().map(|name| (name, part(true))));
            if stage >= cut::TAKERS {
                all.extend(takers.into_iter().map(|name| (name, part(false))));
            }
        }
        _ => {}
    }
}
