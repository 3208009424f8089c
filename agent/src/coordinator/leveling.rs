//! Cordons, drains and rebalances: from hosts and processes as they are to what placement sees, and from its
//! plan to the steps of an operation.

use std::collections::BTreeMap;

use tanako_fleet::{
    ProcessSpec,
    placement::{self, Aim, Host, HostState, Input, demand},
    spec::Spec,
};
use tanako_proto::fleet::v1::{self as wire, Problem};

use super::{
    draft::{Draft, Refused, conflict},
    marks::Mark,
    planning::{self, Relocation},
    rollouts::note,
    task::Task,
};
use crate::{
    desired::Desired,
    hosts::Link,
    operations::{Kind, Step, StepAction},
    registry::Known,
};

impl Task {
    pub(super) fn draft_cordon(
        &self,
        kind: Kind,
        request: &wire::OperationRequest,
    ) -> Result<Draft, Refused> {
        let named = self.named_hosts(&request.targets)?;
        if kind == Kind::Uncordon {
            self.check_drains(&named)?;
        }
        let hosts = self.parts.registry.hosts();
        let marks = self.needed(named.into_iter().map(|host| Mark {
            cordoned: kind == Kind::Cordon,
            // Whoever drains it goes on.
            draining: kind == Kind::Cordon
                && hosts.get(&host).is_some_and(|known| known.record.draining),
            host,
        }));
        Ok(Draft {
            marks,
            unit: "hosts",
            ..Draft::new(kind, &request.targets, planning::Plan::default())
        })
    }

    pub(super) fn draft_drain(&self, request: &wire::OperationRequest) -> Result<Draft, Refused> {
        let named = self.named_hosts(&request.targets)?;
        self.check_drains(&named)?;
        let registry = self.parts.registry.hosts();
        for host in &named {
            if registry
                .get(host)
                .is_none_or(|known| !self.lives(host, known))
            {
                return Err(Box::new(
                    Problem::new("host-lost", host, format!("host {host} does not answer"))
                        .cause("its processes cannot be asked to hand their sessions over")
                        .hint("they are started elsewhere by themselves once its lease has ended; cordon it meanwhile")
                        .retryable(),
                ));
            }
        }
        let hosts = self.offers(&self.desired, |host, state| {
            if named.iter().any(|name| name == host) {
                HostState::Draining
            } else {
                state
            }
        });
        let placed = self.level(hosts, Aim::Needed);
        let mut draft = self.draft_levels(Kind::Drain, request, &placed)?;
        let stays = placed.unplaced.iter().filter(|one| {
            let on = one.on.as_ref();
            on.is_some_and(|on| named.contains(on))
        });
        for one in stays {
            let text = one.process.as_str();
            draft
                .plan
                .steps
                .push(Step::skipped(text, StepAction::Move, &one.reason));
            draft.plan.lines.push(planning::Line {
                action: "keep",
                object: one.process.clone(),
                why: one.reason.clone(),
            });
            let warning = format!("{} stays: {}", one.process, one.reason);
            draft.plan.warnings.push(warning);
        }
        let moves = !placed.moves.is_empty();
        draft.marks = self.needed(named.into_iter().map(|host| Mark {
            host,
            cordoned: true,
            draining: moves,
        }));
        draft.deadline_s = request.deadline_s;
        Ok(draft)
    }

    pub(super) fn draft_rebalance(
        &self,
        request: &wire::OperationRequest,
    ) -> Result<Draft, Refused> {
        let hosts = self.offers(&self.desired, |_, state| state);
        let placed = self.level(hosts, Aim::Even);
        let request = wire::OperationRequest {
            targets: vec!["all".to_owned()],
            ..request.clone()
        };
        let mut draft = self.draft_levels(Kind::Rebalance, &request, &placed)?;
        for one in &placed.unplaced {
            let warning = format!("{} has no host: {}", one.process, one.reason);
            draft.plan.warnings.push(warning);
        }
        let [before, after] = placed.evenness;
        draft.plan.checks.push(note(
            "evenness",
            format!(
                "the fullest host has {:.2} times the mean load, afterwards {:.2}",
                before.fullest, after.fullest
            ),
        ));
        Ok(draft)
    }

    /// The moves of a plan as an operation.
    fn draft_levels(
        &self,
        kind: Kind,
        request: &wire::OperationRequest,
        placed: &placement::Plan,
    ) -> Result<Draft, Refused> {
        let moves = placed.moves.iter().filter_map(|step| {
            let relocation = Relocation {
                process: step.process.clone(),
                from: step.from.clone()?,
                to: step.to.clone(),
                lost: false,
            };
            Some((relocation, step.why))
        });
        let (relocations, whys): (Vec<_>, Vec<_>) = moves.unzip();
        let mut draft = self.draft_relocation(
            kind,
            &request.targets,
            &relocations,
            request.max_unavailable,
        )?;
        for (line, why) in draft.plan.lines.iter_mut().zip(whys) {
            line.why = format!("{}: {}", line.why, why.words());
        }
        if request.timeout_s > 0 {
            for step in &mut draft.plan.steps {
                step.timeout_ms = i64::from(request.timeout_s) * 1000;
            }
        }
        Ok(draft)
    }

    /// A host is drained by one operation at a time.
    fn check_drains(&self, named: &[String]) -> Result<(), Refused> {
        for active in &self.active {
            if active.op.kind != Kind::Drain || active.op.state.is_ended() {
                continue;
            }
            let target = |host: &String| format!("host:{host}");
            if let Some(host) = named
                .iter()
                .find(|host| active.op.targets.contains(&target(host)))
            {
                return Err(Box::new(conflict(&target(host), &active.op.id)));
            }
        }
        Ok(())
    }

    /// Whether its processes can be asked for something: this host, and those that are present and
    /// heard. One that has not been heard yet is reached by the time it is needed.
    fn lives(&self, host: &str, known: &Known) -> bool {
        let picture = self.hosts.picture();
        let seen = picture.hosts.get(host);
        let silent = seen.is_some_and(|seen| !seen.link.is_up() && seen.heard_at > 0);
        seen.is_some_and(|seen| seen.link == Link::Local) || known.present.is_some() && !silent
    }

    /// The hosts as placement sees them; `as_if` says what a host counts as. Those that are out of reach
    /// keep what they have: to take it from them is not this plan's to decide.
    pub(super) fn offers(
        &self,
        next: &Desired,
        as_if: impl Fn(&str, HostState) -> HostState,
    ) -> Vec<Host> {
        let registry = self.parts.registry.hosts();
        let spec: Option<&Spec> = next.spec.as_deref();
        let mut offers: BTreeMap<String, Host> = BTreeMap::new();
        for (name, known) in registry.iter() {
            let taken = known.record.cordoned || known.record.draining;
            let state = if taken || !self.lives(name, known) {
                HostState::Cordoned
            } else {
                HostState::Present
            };
            let record = &known.record;
            let found = demand::Found {
                labels: record.labels.clone(),
                processes: record.capacity.processes,
                cpus: record.capacity.cpus,
            };
            let offer = demand::host(name, as_if(name, state), &found, spec);
            offers.insert(name.clone(), offer);
        }
        // This one, before its record has been read.
        let own = self.hosts.own();
        if !offers.contains_key(own) {
            let state = as_if(own, HostState::Present);
            let offer = demand::host(own, state, &demand::Found::default(), spec);
            offers.insert(own.to_owned(), offer);
        }
        // One that has processes and no record any more.
        let assignment = self.hosts.assignment();
        let strangers = assignment.hosts().filter(|it| !registry.contains_key(*it));
        for name in strangers.filter(|it| *it != own) {
            let state = as_if(name, HostState::Cordoned);
            let offer = demand::host(name, state, &demand::Found::default(), spec);
            offers.insert(name.to_owned(), offer);
        }
        offers.into_values().collect()
    }

    /// Plans the processes that serve; sets that an operation is building are its own.
    pub(super) fn level(&self, hosts: Vec<Host>, aim: Aim) -> placement::Plan {
        self.level_of(hosts, aim, |spec| !self.desired.is_next(&spec.name))
    }

    /// Plans these processes.
    pub(super) fn level_of(
        &self,
        hosts: Vec<Host>,
        aim: Aim,
        which: impl Fn(&ProcessSpec) -> bool,
    ) -> placement::Plan {
        let assignment = self.hosts.assignment();
        let desired = &self.desired;
        let all = desired.processes.iter().map(AsRef::as_ref);
        let planned = all.filter(|spec| which(spec));
        let processes = demand::processes(desired.spec.as_deref(), planned, |spec| {
            assignment.host_of(&spec.name).map(str::to_owned)
        });
        placement::plan(&Input {
            assignment: assignment
                .iter()
                .map(|(host, name)| (name.clone(), host.to_owned()))
                .collect(),
            hosts,
            processes,
            aim,
        })
    }
}
