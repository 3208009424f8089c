//! Which host has which process: where new ones go, and how hosts are made to agree with what is wanted.
//!
//! A host agrees once it has been told which processes are its own, what each of them is to do, and
//! whether it shall run. This host is told when a term begins; another one when it is heard for the first
//! time in a term, and again when its agent has been started anew. Nothing waits for one that is silent.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, future::join_all, stream};
use tanako_fleet::{
    ProcessKind, ProcessName, ProcessSpec,
    assignment::Assignment,
    placement::{self, Aim, Host, HostState, Input, Unplaced, demand},
};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::{Outcome, Revision, StoreError, Txn};

use super::{
    Caller,
    draft::{Draft, Refused},
    planning::{self, Relocation},
    task::Task,
};
use crate::{
    clock::now_ms,
    desired::Desired,
    history::Severity,
    hosts::{Assigned, HostPicture, Link, OrderError},
    operations::{Kind, Operation, Step, StepAction, StepState, core},
    supervisor::Desired as Wanted,
};

/// Orders under way to one host while it is made to agree.
const AT_ONCE: usize = 32;

/// Processes that go to another host, in the transaction that writes their operation down.
pub(super) type Moves = Vec<(ProcessName, String)>;

impl Task {
    /// The assignment once `next` is the desired state: what is new has a place, what is no more has
    /// none, and `moves` are made; `None` = nothing changes. What an operation has yet to remove keeps
    /// its place.
    pub(super) fn places_after(
        &self,
        next: &Desired,
        op: &Operation,
        moves: &[(ProcessName, String)],
    ) -> Option<Assignment> {
        let now = &self.stored.assignment;
        let moved = moves
            .iter()
            .map(|(name, host)| (name.clone(), Some(host.clone())));
        let others = self.active.iter().map(|active| &active.op);
        let busy: HashSet<&str> = others
            .filter(|other| other.number != op.number)
            .chain([op])
            .filter(|op| !op.state.is_ended())
            .flat_map(|op| &op.steps)
            .flat_map(|step| [step.object.as_str(), step.other.as_str()])
            .collect();
        let gone = now
            .iter()
            .map(|(_, name)| name)
            .filter(|name| next.process(name).is_none() && !busy.contains(name.as_str()))
            .map(|name| (name.clone(), None));
        let mut changes: Vec<(ProcessName, Option<String>)> = moved.chain(gone).collect();
        let homeless = next
            .processes
            .iter()
            .any(|spec| now.host_of(&spec.name).is_none());
        if homeless {
            let (placed, _) = self.place(next);
            changes.extend(placed.into_iter().map(|(name, host)| (name, Some(host))));
        }
        (!changes.is_empty()).then(|| now.with(changes))
    }

    /// Where processes go that have no host yet.
    fn place(&self, next: &Desired) -> (Vec<(ProcessName, String)>, Vec<Unplaced>) {
        let now = &self.stored.assignment;
        if let Some(holder) = &self.stored.holder {
            // The one host that had everything by an earlier version.
            let all = next.processes.iter();
            let placed = all.map(|spec| (spec.name.clone(), holder.clone()));
            return (placed.collect(), Vec::new());
        }
        // Sessions change hands within a host: the process that takes them over is put beside the one
        // that has them.
        let twins: HashMap<(&str, &[u32], u32), &str> = next
            .processes
            .iter()
            .filter(|spec| !spec.shard_ids.is_empty())
            .filter_map(|spec| {
                let key = (spec.name.group(), &*spec.shard_ids, spec.shard_count);
                Some((key, now.host_of(&spec.name)?))
            })
            .collect();
        let hosts = self.offers(next, |_, state| state);
        // Data is where it was made: a node without a place of its own stays with the first host.
        let open = |host: &&Host| host.state == HostState::Present;
        let first = hosts.iter().find(open).map(|host| host.name.clone());
        let specs = next.processes.iter().map(Arc::as_ref);
        let mut processes = demand::processes(next.spec.as_deref(), specs.clone(), |spec| {
            now.host_of(&spec.name).map(str::to_owned).or(first.clone())
        });
        for (process, spec) in processes.iter_mut().zip(specs) {
            let key = (spec.name.group(), &*spec.shard_ids, spec.shard_count);
            if let Some(host) = twins.get(&key) {
                process.pinned = Some((*host).to_owned());
            }
        }
        let assignment = now
            .iter()
            .map(|(host, name)| (name.clone(), host.to_owned()))
            .collect();
        let plan = placement::plan(&Input {
            hosts,
            processes,
            assignment,
            aim: Aim::New,
        });
        let placed = plan.moves.into_iter();
        (
            placed.map(|step| (step.process, step.to)).collect(),
            plan.unplaced,
        )
    }

    /// Refuses what could not be put anywhere.
    pub(super) fn check_places(
        &self,
        next: &Desired,
        places: Option<&Assignment>,
        op: &Operation,
    ) -> Result<(), Refused> {
        let places = places.unwrap_or(&self.stored.assignment);
        let homeless: Vec<&str> = next
            .processes
            .iter()
            .filter(|spec| places.host_of(&spec.name).is_none())
            .map(|spec| spec.name.as_str())
            .collect();
        let Some(first) = homeless.first() else {
            return Ok(());
        };
        Err(Box::new(
            Problem::new(
                "no-host",
                *first,
                format!(
                    "{} processes of {} have no host to be on",
                    homeless.len(),
                    op.kind.as_str()
                ),
            )
            .cause(self.reason(next, first))
            .hint("start the agent of a host, or uncordon one: `tanakoctl status` lists them")
            .retryable(),
        ))
    }

    /// Why a process finds no host.
    fn reason(&self, next: &Desired, process: &str) -> String {
        let (_, unplaced) = self.place(next);
        let found = unplaced
            .into_iter()
            .find(|one| one.process.as_str() == process);
        found.map_or_else(
            || "no host takes new processes".to_owned(),
            |one| one.reason,
        )
    }

    /// Processes that are to go to the host that is named last: `tanako/3 host:b`.
    pub(super) fn draft_move(&self, request: &wire::OperationRequest) -> Result<Draft, Refused> {
        let invalid = |object: &str, message: &str| {
            let problem = Problem::new("invalid-target", object, message);
            Box::new(problem.hint("name processes and then the host, as in `tanako/3 host:b`"))
        };
        let (to, targets) = request
            .targets
            .split_last()
            .filter(|(_, targets)| !targets.is_empty())
            .ok_or_else(|| invalid("targets", "the request names no process, or no host"))?;
        let to = to
            .strip_prefix("host:")
            .ok_or_else(|| invalid(to, "the last target is not a host"))?;
        let seats = self.hosts.seats();
        let open = seats
            .iter()
            .find(|seat| seat.host == to)
            .map(|seat| seat.open);
        match open {
            Some(true) => {}
            Some(false) => {
                return Err(Box::new(
                    Problem::new("not-ready", to, format!("host {to} takes no processes now"))
                        .cause("it is not present, cordoned, or being drained")
                        .hint("see `tanakoctl status`")
                        .retryable(),
                ));
            }
            None => {
                let known: Vec<&str> = seats.iter().map(|seat| seat.host.as_str()).collect();
                return Err(Box::new(
                    Problem::new("unknown-target", to, format!("there is no host {to:?}"))
                        .hint(format!("hosts are {}", known.join(", "))),
                ));
            }
        }
        let (names, _) = self.resolve(targets)?;
        let relocations: Vec<Relocation> = names
            .into_iter()
            .filter_map(|process| {
                Some(Relocation {
                    from: self.hosts.host_of(&process)?,
                    to: to.to_owned(),
                    lost: false,
                    process,
                })
            })
            .collect();
        let data = relocations.iter().find(|one| {
            let spec = self.desired.process(&one.process);
            one.from != one.to && spec.is_some_and(|spec| spec.kind == ProcessKind::Db)
        });
        if let Some(one) = data {
            return Err(Box::new(
                Problem::new(
                    "unsupported",
                    one.process.as_str(),
                    "a database node lives where its data is",
                )
                .hint("add a node on the other host, let it take over, then remove this one"),
            ));
        }
        self.draft_relocation(
            Kind::Move,
            &request.targets,
            &relocations,
            request.max_unavailable,
        )
    }

    /// An operation that moves these processes. Of two operations on one process only the one that
    /// brings it away from a lost host may begin: whatever else was being done to it is done there.
    pub(super) fn draft_relocation(
        &self,
        kind: Kind,
        targets: &[String],
        relocations: &[Relocation],
        max_unavailable: u32,
    ) -> Result<Draft, Refused> {
        let plan = planning::relocate(relocations, &self.desired);
        let careful: Vec<Step> = plan
            .steps
            .iter()
            .filter(|step| !step.lost)
            .cloned()
            .collect();
        self.check_conflicts(&careful, &[])?;
        Ok(Draft {
            max_unavailable: max_unavailable.max(1),
            ..Draft::new(kind, targets, plan)
        })
    }

    /// Moves processes as the fleet itself decides: away from a lost host, or to even the load.
    pub(super) async fn relocate(
        &mut self,
        kind: Kind,
        request_id: String,
        relocations: Vec<Relocation>,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        if let Some(known) = self.known(&request_id).await? {
            return Ok(known);
        }
        let targets: Vec<String> = relocations
            .iter()
            .map(|one| one.process.to_string())
            .collect();
        let at_once = if relocations.iter().all(|one| one.lost) {
            u32::MAX
        } else {
            1
        };
        let draft = self
            .draft_relocation(kind, &targets, &relocations, at_once)
            .map_err(|refused| *refused)?;
        self.accept(draft, request_id, caller).await
    }

    /// Remembers what has been committed.
    pub(super) fn placed(&mut self, places: Option<Assignment>, revision: Revision) {
        if let Some(places) = places {
            self.stored.committed(places.clone(), revision);
            self.hosts.assign(places);
        }
    }

    /// Gives a place to what has none, when a term begins.
    pub(super) async fn settle_places(&mut self) -> Result<(), StoreError> {
        let nothing = Operation::new(0, crate::operations::Kind::Apply, 0);
        let Some(places) = self.places_after(&self.desired, &nothing, &[]) else {
            return Ok(());
        };
        let txn = self.stored.commit(&places, self.epoch, Txn::new());
        match self.parts.store.commit(txn).await? {
            Outcome::Committed { revision } => self.placed(Some(places), revision),
            Outcome::Conflict { .. } => {
                return Err(StoreError::Unavailable(
                    "the assignment was changed by someone else".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// What is wanted of each process that is assigned to `host`, where that is not the work of an
    /// operation that has begun.
    fn wishes(&self, host: &HostPicture) -> Vec<(Arc<ProcessSpec>, Wanted)> {
        let operations: Vec<&Operation> = self.active.iter().map(|active| &active.op).collect();
        let assignment = self.hosts.assignment();
        let all = planning::wanted_at_first(&self.desired, &operations, &host.table);
        all.into_iter()
            .filter(|(spec, _)| assignment.host_of(&spec.name) == Some(&*host.name))
            .collect()
    }

    /// What belongs to a host: also what an operation has yet to remove from it, or brings to it.
    fn assigned(&self, host: &HostPicture) -> Assigned {
        let assignment = self.hosts.assignment();
        let open = |name: &ProcessName| {
            let mut steps = self.active.iter().flat_map(|active| &active.op.steps);
            steps.any(|step| {
                step.object == name.as_str()
                    && !step.state.is_ended()
                    && (step.action == StepAction::Remove
                        || step.state == StepState::Running && step.is_between(&host.name))
            })
        };
        let mut processes: BTreeSet<ProcessName> = assignment.of(&host.name).cloned().collect();
        processes.retain(|name| self.desired.process(name).is_some() || open(name));
        processes.extend(host.table.keys().filter(|name| open(name)).cloned());
        let strangers = host.table.keys().filter(|name| !processes.contains(*name));
        let elsewhere = strangers
            .filter(|name| assignment.host_of(name).is_some_and(|at| at != &*host.name))
            .cloned()
            .collect();
        Assigned {
            version: assignment.version(),
            processes: processes.into_iter().collect(),
            elsewhere,
        }
    }

    /// Makes this host agree, once when a term begins.
    pub(super) async fn reconcile(&mut self) {
        let picture = self.hosts.picture();
        let Some(own) = picture.hosts.get(self.hosts.own()) else {
            return;
        };
        let (as_of, wishes, assigned) = (
            self.hosts.draw_for_all(),
            self.wishes(own),
            self.assigned(own),
        );
        let hosts = &self.hosts;
        let all = wishes
            .iter()
            .map(|(spec, wanted)| async move { (&spec.name, hosts.define(spec, *wanted).await) });
        for (name, result) in join_all(all).await {
            if let Err(error) = result {
                tracing::error!(process = %name, %error, "a process could not be defined");
            }
        }
        let own = self.hosts.own();
        if let Err(error) = self.hosts.assign_at(own, as_of, assigned).await {
            tracing::error!(%error, "processes of others could not be let go");
        }
        self.configure_broker().await;
    }

    /// Makes hosts agree that are heard for the first time in this term, or whose agent was started anew.
    pub(super) fn welcome(&mut self) {
        if self.hosts.is_alone() {
            return;
        }
        let picture = self.hosts.picture();
        for (name, host) in &picture.hosts {
            let told = self.agreed.get(name);
            let same = told.is_some_and(|(instance, _)| *instance == host.instance);
            if host.link != Link::Up {
                // Orders may come to nothing meanwhile.
                if let Some((_, agrees)) = self.agreed.get_mut(name) {
                    *agrees = false;
                }
                continue;
            }
            if same && told.is_some_and(|(_, agrees)| *agrees) {
                continue;
            }
            let anew = told.is_some() && !same;
            let agreed = (Arc::clone(&host.instance), true);
            self.agreed.insert(Arc::clone(name), agreed);
            if anew {
                self.ask_again(name);
            }
            self.parts.history.event(
                Severity::Info,
                "host-heard",
                name,
                format!("{} processes are there", host.table.len()),
            );
            self.agree(host);
        }
        self.agreed
            .retain(|name, _| picture.hosts.contains_key(name));
    }

    /// The agent of a host was started anew: what it was asked for may be lost. The operations look
    /// whether it has been done.
    fn ask_again(&mut self, host: &str) {
        let assignment = self.hosts.assignment();
        let at = |name: &str| {
            let name = name.parse::<ProcessName>().ok();
            name.is_some_and(|name| assignment.host_of(&name) == Some(host))
        };
        let is_its = |step: &Step| at(&step.object) || at(&step.other) || step.is_between(host);
        for active in &mut self.active {
            core::step(&mut active.op, now_ms(), core::Input::Renewed(&is_its));
        }
    }

    fn agree(&self, host: &HostPicture) {
        let name = Arc::clone(&host.name);
        // What is brought there from here on is newer.
        let (as_of, assigned) = (self.hosts.draw_for_all(), self.assigned(host));
        // What is as it should be is not told again.
        let wishes: Vec<_> = self
            .wishes(host)
            .into_iter()
            .filter(|(spec, wanted)| {
                let known = host.table.get(&spec.name);
                known.is_none_or(|known| known.spec != *spec || known.desired != *wanted)
            })
            // What an operation orders from here on is newer.
            .map(|(spec, wanted)| (self.hosts.draw(&spec.name), spec, wanted))
            .collect();
        let hosts = self.hosts.clone();
        let task = async move {
            if let Err(error) = hosts.assign_at(&name, as_of, assigned).await {
                tracing::warn!(host = %name, %error, "a host could not be told what is its own");
                return;
            }
            let (hosts, name) = (&hosts, &name);
            stream::iter(wishes)
                .for_each_concurrent(AT_ONCE, |(drawn, spec, wanted)| async move {
                    let process = &spec.name;
                    if let Err(error) = hosts.define_drawn(drawn, &spec, wanted).await {
                        tracing::warn!(%process, host = %name, %error, "a process could not be defined");
                    }
                })
                .await;
        };
        let cancel = self.cancel.clone();
        self.tracker.spawn(cancel.run_until_cancelled_owned(task));
    }

    /// Defines processes on their hosts; those of other hosts are not waited for.
    pub(super) async fn define_all(&self, all: Vec<(Arc<ProcessSpec>, Wanted)>) {
        let (own, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(spec, _)| self.hosts.is_own(&spec.name));
        let hosts = self.hosts.clone();
        let define = move |(drawn, spec, wanted): (u64, Arc<ProcessSpec>, Wanted)| {
            let hosts = hosts.clone();
            async move {
                match hosts.define_drawn(drawn, &spec, wanted).await {
                    // What is newer counts.
                    Ok(()) | Err(OrderError::Overtaken(_)) => {}
                    Err(error) => {
                        tracing::error!(process = %spec.name, %error, "a process could not be defined");
                    }
                }
            }
        };
        // What is ordered from here on is newer.
        let draw = |(spec, wanted): (Arc<ProcessSpec>, Wanted)| {
            (self.hosts.draw(&spec.name), spec, wanted)
        };
        let (own, others): (Vec<_>, Vec<_>) = (
            own.into_iter().map(draw).collect(),
            others.into_iter().map(draw).collect(),
        );
        if !others.is_empty() {
            let task = stream::iter(others).for_each_concurrent(AT_ONCE, define.clone());
            let cancel = self.cancel.clone();
            self.tracker.spawn(cancel.run_until_cancelled_owned(task));
        }
        join_all(own.into_iter().map(define)).await;
    }
}
