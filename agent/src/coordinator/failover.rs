//! What lost hosts had goes to others, once it is certain that nothing of it runs any more.
//!
//! [`crate::tenure::failover`] says when that is; from then on it is an operation like any other: written down,
//! shown, resumed by the next coordinator, with a receipt. Each commit that takes a process from a lost host
//! compares that the host has not come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tanako_fleet::{
    ProcessKind, ProcessName, ProcessSpec,
    placement::{Aim, HostState},
};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::Txn;

use super::{
    Caller,
    draft::{Draft, Refused},
    places::Moves,
    planning::Relocation,
    task::Task,
};
use crate::{
    clock::now_ms,
    history::Severity,
    hosts::{Link, Picture},
    operations::{Kind, Operation, Step, StepAction, StepState, moving},
    registry::present_key,
    tenure::failover::Losses,
};

/// After an operation that could not be begun, or failed.
const AGAIN_MS: i64 = 5_000;
/// A host that has not been heard for so long takes no process.
const SILENT_MS: i64 = 2_000;
/// How long it may take, once the operator has said that a host is off, until the store says so too.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

impl Task {
    /// Who is lost, as far as this term knows.
    fn losses(&self) -> Losses {
        self.watchman
            .as_ref()
            .map_or_else(Losses::default, |watchman| {
                watchman.losses().borrow().clone()
            })
    }

    /// Begins what is to be done about lost hosts, and ends what came too late.
    pub(super) async fn fail_over(&mut self) {
        let losses = self.losses();
        self.leave_to_who_came_back(&losses);
        let now = now_ms();
        if losses.released.is_empty() || now < self.fail_over_at {
            return;
        }
        let stranded: Vec<(String, Vec<ProcessName>)> = losses
            .released
            .iter()
            .map(|host| (host.clone(), self.stranded(host)))
            .filter(|(_, names)| !names.is_empty())
            .collect();
        for (host, names) in stranded {
            let relocations = self.relocations(&host, &names);
            if relocations.is_empty() {
                // Nowhere to put them, for now.
                self.fail_over_at = now + AGAIN_MS;
                continue;
            }
            let id = format!("failover-{host}-{now}");
            let caller = Caller::agent("failover");
            match self
                .relocate(Kind::Failover, id, relocations, &caller)
                .await
            {
                Ok(op) => self.parts.history.event(
                    Severity::Warning,
                    "failover-begun",
                    &host,
                    format!(
                        "{} processes are started on other hosts: {}",
                        names.len(),
                        op.id
                    ),
                ),
                Err(problem) => {
                    self.fail_over_at = now + AGAIN_MS;
                    tracing::error!(host, problem = problem.message, "a failover cannot begin");
                }
            }
        }
    }

    /// The processes of a lost host that have to go elsewhere, unless that is under way. Database nodes stay
    /// with their data: that is told.
    fn stranded(&mut self, host: &str) -> Vec<ProcessName> {
        let (bots, nodes) = self.lost_with(host);
        for node in nodes {
            if self.nodes_told.insert(node.clone()) {
                self.parts.history.event(
                    Severity::Error,
                    "database-node-lost",
                    node.as_str(),
                    format!(
                        "its data is on host {host}, which is lost: bring that host back, or restore the \
                         latest backup on another one (tanakoctl backup list, tanakoctl restore)"
                    ),
                );
            }
        }
        bots
    }

    /// What is assigned to a host: bots that are not under way elsewhere yet, and database nodes.
    fn lost_with(&self, host: &str) -> (Vec<ProcessName>, Vec<ProcessName>) {
        let under_way: BTreeSet<String> = self
            .active
            .iter()
            .filter(|active| !active.op.state.is_ended())
            .flat_map(|active| &active.op.steps)
            .filter(|step| step.action == StepAction::Move && step.lost && !step.state.is_ended())
            .map(|step| step.object.clone())
            .collect();
        let names: Vec<ProcessName> = self.stored.assignment.of(host).cloned().collect();
        let (mut bots, mut nodes) = (Vec::new(), Vec::new());
        for name in names {
            match self.desired.process(&name).map(|spec| spec.kind) {
                Some(ProcessKind::Shard) if !under_way.contains(name.as_str()) => bots.push(name),
                Some(ProcessKind::Db) => nodes.push(name),
                _ => {}
            }
        }
        (bots, nodes)
    }

    /// Where they go: evenly over the hosts that take processes.
    fn relocations(&self, host: &str, names: &[ProcessName]) -> Vec<Relocation> {
        let hosts = self.offers(&self.desired, |name, state| {
            if name == host { HostState::Lost } else { state }
        });
        let placed = self.level_of(hosts, Aim::Needed, |_| true);
        let targets: BTreeMap<&ProcessName, &str> = placed
            .moves
            .iter()
            .map(|step| (&step.process, step.to.as_str()))
            .collect();
        // Sessions change hands within a host: sets that hold the same shards stay together.
        let key = |spec: &ProcessSpec| {
            (
                spec.name.group().to_owned(),
                spec.shard_ids.clone(),
                spec.shard_count,
            )
        };
        let mut together: BTreeMap<_, &str> = BTreeMap::new();
        names
            .iter()
            .filter_map(|process| {
                let spec = self.desired.process(process)?;
                let to = *targets.get(process)?;
                let to = *together.entry(key(spec)).or_insert(to);
                Some(Relocation {
                    process: process.clone(),
                    from: host.to_owned(),
                    to: to.to_owned(),
                    lost: true,
                })
            })
            .collect()
    }

    /// The moves of the operation at `index` whose host is lost before it has taken the process, and the host
    /// that takes its place: where the fleet chooses, there is one; where the operator chose, there is none.
    pub(super) fn redirected(
        &self,
        picture: &Picture,
        index: usize,
        now: i64,
    ) -> Vec<(usize, Option<String>)> {
        let op = &self.active[index].op;
        let registry = self.parts.registry.hosts();
        let is_lost = |host: &str| {
            let silent = picture
                .hosts
                .get(host)
                .is_some_and(|seen| match &seen.link {
                    Link::Down { since, .. } => seen.heard_at > 0 && now - since >= SILENT_MS,
                    _ => false,
                });
            let known = registry.get(host);
            let absent = known.is_some_and(|known| known.revision > 0 && known.present.is_none());
            host != self.hosts.own() && (silent || absent)
        };
        moving::targets(op)
            .filter(|(_, step)| !step.to_lost && is_lost(&step.to))
            .map(|(at, step)| {
                let free = matches!(op.kind, Kind::Drain | Kind::Failover);
                let to = if free { self.another_host(step) } else { None };
                (at, to)
            })
            .collect()
    }

    /// Where else a process may go.
    fn another_host(&self, step: &Step) -> Option<String> {
        let process: ProcessName = step.object.parse().ok()?;
        let hosts = self.offers(&self.desired, |name, state| {
            if name == step.to {
                HostState::Cordoned
            } else if name != step.from {
                state
            } else if step.lost {
                HostState::Lost
            } else {
                HostState::Draining
            }
        });
        let placed = self.level_of(hosts, Aim::Needed, |_| true);
        let mut moves = placed.moves.into_iter();
        let found = moves.find(|one| one.process == process)?;
        (found.to != step.to).then_some(found.to)
    }

    /// A host that came back has what is still assigned to it: its own steps are not needed any more.
    fn leave_to_who_came_back(&mut self, losses: &Losses) {
        let assignment = self.hosts.assignment();
        let now = now_ms();
        for active in &mut self.active {
            if active.op.kind != Kind::Failover || active.op.state.is_ended() {
                continue;
            }
            let steps = active.op.steps.iter_mut();
            for step in steps.filter(|step| step.lost && !step.state.is_ended()) {
                let process = step.object.parse::<ProcessName>().ok();
                let still = process
                    .as_ref()
                    .and_then(|process| assignment.host_of(process))
                    .is_some_and(|at| at == step.from);
                if still && !losses.released.contains(&step.from) {
                    let why = format!("host {} is back and starts it", step.from);
                    step.finish(now, StepState::Skipped, why);
                    active.dirty = true;
                }
            }
        }
    }

    /// The operator says that a lost host is off: what it had is moved although nobody could prove that it
    /// has stopped, or although too many are lost. What that would be; his word counts with
    /// [`Self::give_up`].
    pub(super) fn draft_failover(
        &self,
        request: &wire::OperationRequest,
    ) -> Result<Draft, Refused> {
        let host = lost_host(&request.targets)?;
        let losses = self.losses();
        if !losses.waiting.contains(host) && !losses.released.contains(host) {
            let problem = Problem::new("not-lost", host, format!("host {host} is not lost"));
            return Err(Box::new(problem.hint(
                "see `tanakoctl status`; to empty a host that lives use `tanakoctl drain`",
            )));
        }
        let (bots, nodes) = self.lost_with(host);
        let relocations = self.relocations(host, &bots);
        let mut draft =
            self.draft_relocation(Kind::Failover, &request.targets, &relocations, u32::MAX)?;
        if relocations.len() < bots.len() {
            return Err(Box::new(
                Problem::new(
                    "no-host",
                    host,
                    format!(
                        "{} processes of {host} have no host to go to",
                        bots.len() - relocations.len()
                    ),
                )
                .hint("start the agent of a host, or uncordon one: `tanakoctl status` lists them")
                .retryable(),
            ));
        }
        draft.plan.warnings.push(format!(
            "if {host} is not off, its shards will run twice: look at it, or switch it off, first"
        ));
        for node in nodes {
            draft.plan.warnings.push(format!(
                "{node} stays lost: its data is on {host}; bring that host back, or restore a backup"
            ));
        }
        Ok(draft)
    }

    /// Takes the operator's word that a host is off, and waits until the store has it.
    pub(super) async fn give_up(&self, targets: &[String]) -> Result<(), Refused> {
        let host = lost_host(targets)?;
        let Some(watchman) = &self.watchman else {
            return Ok(());
        };
        let mut losses = watchman.losses();
        if losses.borrow_and_update().released.contains(host) {
            return Ok(());
        }
        watchman.allow(host).await;
        let released = losses.wait_for(|losses| losses.released.contains(host));
        match tokio::time::timeout(RELEASE_WITHIN, released).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Box::new(crate::problem::stopping())),
            Err(_) => Err(Box::new(
                Problem::new(
                    "not-released",
                    host,
                    format!("the store does not say yet that {host} is off"),
                )
                .cause("the host has come back, or the store does not answer")
                .hint("see `tanakoctl status`, then ask again")
                .retryable(),
            )),
        }
    }
}

/// The one host that targets name.
fn lost_host(targets: &[String]) -> Result<&str, Refused> {
    match targets {
        [target] => Ok(target.strip_prefix("host:").unwrap_or(target)),
        _ => Err(Box::new(
            Problem::new("invalid-target", "targets", "name one lost host")
                .hint("one after the other, as in `host:b`"),
        )),
    }
}

/// Adds to a transaction that the hosts from which these moves take something have not come back.
pub(super) fn only_from_lost(mut txn: Txn, op: &Operation, moves: &Moves) -> Txn {
    let hosts: BTreeSet<&str> = op
        .steps
        .iter()
        .filter(|step| step.lost && moves.iter().any(|(name, _)| name.as_str() == step.object))
        .map(|step| step.from.as_str())
        .collect();
    for host in hosts {
        txn = txn.if_absent(present_key(host));
    }
    txn
}
