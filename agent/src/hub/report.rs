//! What this host tells those who follow it: itself at one moment, and what of it is new to somebody
//! who has an earlier moment; pure.

use std::{collections::BTreeMap, sync::Arc};

use tanako_fleet::ProcessName;
use tanako_proto::{
    fleet::v1 as wire,
    host::v1::{FleetPart, HostUpdate, ProcessState, Reasons},
};

use crate::service::view::{self, Inputs};

/// This host at one moment. What has not changed since the moment before is shared with it.
#[derive(Debug, Clone)]
pub struct Report {
    /// Rises with each moment.
    pub revision: u64,
    /// In milliseconds since 1970.
    pub at: i64,
    /// The host.
    pub host: wire::Host,
    /// Its processes.
    pub processes: BTreeMap<ProcessName, Arc<wire::Process>>,
    /// What is wrong on it.
    pub reasons: Arc<Vec<String>>,
    /// The whole fleet, while this agent decides.
    pub fleet: Option<Arc<FleetPart>>,
    /// Its operations; those in `fleet` are left out.
    pub operations: Vec<Arc<wire::Operation>>,
}

/// The office of this agent, while it has it.
pub struct Office<'a> {
    /// Its number.
    pub epoch: u64,
    /// Whether any host has this process.
    pub exists: &'a dyn Fn(&ProcessName) -> bool,
}

/// This moment, after `before`.
pub fn compose(
    before: Option<&Report>,
    inputs: &Inputs<'_>,
    office: Option<&Office<'_>>,
) -> Report {
    let processes = inputs
        .table
        .iter()
        .map(|(name, process)| {
            let view = view::compose_process(inputs, process);
            let known = before.and_then(|before| before.processes.get(name));
            let view = match known {
                Some(known) if is_same(known, &view) => known.clone(),
                _ => Arc::new(view),
            };
            (name.clone(), view)
        })
        .collect();
    let reasons = view::host_reasons(inputs);
    let reasons = match before {
        Some(before) if *before.reasons == reasons => before.reasons.clone(),
        _ => Arc::new(reasons),
    };
    let fleet = office.map(|office| {
        let part = view::compose_fleet(inputs, office.epoch, office.exists);
        match before.and_then(|before| before.fleet.as_ref()) {
            Some(known) if **known == part => known.clone(),
            _ => Arc::new(part),
        }
    });
    Report {
        revision: before.map_or(1, |before| before.revision + 1),
        at: inputs.now,
        host: view::compose_host(inputs),
        processes,
        reasons,
        operations: match &fleet {
            Some(_) => inputs.operations.clone(),
            None => Vec::new(),
        },
        fleet,
    }
}

/// Whether nothing but the clock has moved. Followers count the seconds themselves.
fn is_same(old: &wire::Process, new: &wire::Process) -> bool {
    if old.uptime_s == new.uptime_s {
        return old == new;
    }
    let mut old = old.clone();
    old.uptime_s = new.uptime_s;
    old == *new
}

/// What is new to a follower that has `before`; nothing but a sign of life when nothing is.
pub fn update(before: Option<&Report>, now: &Report, events: Vec<wire::Event>) -> HostUpdate {
    let is_new = |name: &ProcessName, view: &Arc<wire::Process>| {
        before
            .and_then(|before| before.processes.get(name))
            .is_none_or(|known| !Arc::ptr_eq(known, view))
    };
    let processes = now
        .processes
        .iter()
        .filter(|(name, view)| is_new(name, view))
        .map(|(_, view)| ProcessState {
            view: Some((**view).clone()),
            ..ProcessState::default()
        })
        .collect();
    let removed = before
        .into_iter()
        .flat_map(|before| before.processes.keys())
        .filter(|name| !now.processes.contains_key(*name))
        .map(ToString::to_string)
        .collect();
    let reasons = before
        .is_none_or(|before| !Arc::ptr_eq(&before.reasons, &now.reasons))
        .then(|| Reasons {
            lines: (*now.reasons).clone(),
        });
    HostUpdate {
        revision: now.revision,
        at: now.at,
        snapshot: before.is_none(),
        host: before
            .is_none_or(|before| !is_same_host(&before.host, &now.host))
            .then(|| now.host.clone()),
        processes,
        removed,
        events,
        reasons,
        fleet: fleet(before, now),
        // Of use to those who give orders.
        instance: String::new(),
    }
}

/// What is new of the whole fleet. Under a new office everything is.
fn fleet(before: Option<&Report>, now: &Report) -> Option<FleetPart> {
    let part = now.fleet.as_ref()?;
    let known = before.filter(|before| {
        let known = before.fleet.as_ref();
        known.is_some_and(|known| known.epoch == part.epoch)
    });
    let is_known = |operation: &Arc<wire::Operation>| {
        known.is_some_and(|known| {
            known
                .operations
                .iter()
                .any(|known| Arc::ptr_eq(known, operation) || known == operation)
        })
    };
    let operations: Vec<wire::Operation> = now
        .operations
        .iter()
        .filter(|operation| !is_known(operation))
        .map(|operation| (**operation).clone())
        .collect();
    let same = known.is_some_and(|known| {
        known.operations.len() == now.operations.len()
            && known
                .fleet
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, part))
    });
    if same && operations.is_empty() {
        return None;
    }
    Some(FleetPart {
        operation_ids: now.operations.iter().map(|op| op.id.clone()).collect(),
        operations,
        ..(**part).clone()
    })
}

fn is_same_host(old: &wire::Host, new: &wire::Host) -> bool {
    let mut old = old.clone();
    old.last_seen = new.last_seen;
    old.uptime_s = new.uptime_s;
    old.agent_uptime_s = new.agent_uptime_s;
    old == *new
}
