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
