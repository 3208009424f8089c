//! What the rest of the agent asks of the coordinator, whether this agent decides or not.

use std::sync::Arc;

use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1::{self as wire, Problem};
use tokio::sync::watch;

use super::Standing;
use crate::{
    audit::Record,
    coordinator::{Caller, Coordinator, Operations, planning::Relocation},
    desired::Desired,
    operations::Kind,
    problem,
    tenure::failover::Losses,
};

/// The coordinator of the present term, or why there is none; clones are cheap.
#[derive(Clone)]
pub struct Front {
    pub(super) current: watch::Receiver<Option<Coordinator>>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) epoch: watch::Receiver<u64>,
    pub(super) operations: watch::Receiver<Arc<Operations>>,
    pub(super) desired: watch::Receiver<Arc<Desired>>,
    pub(super) losses: watch::Receiver<Losses>,
}

impl Front {
    /// Starts an operation, or returns the one that the same request id has started.
    pub async fn submit(
        &self,
        request: wire::OperationRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(async |coordinator| coordinator.submit(request, caller).await)
            .await
    }

    /// Makes a new spec the desired state, as an operation.
    pub async fn apply(
        &self,
        request: wire::ApplyRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(async |coordinator| coordinator.apply(request, caller).await)
            .await
    }

    /// What a request would do and cost.
    pub async fn plan(&self, request: wire::PlanRequest) -> Result<wire::PlanReply, Problem> {
        self.ask(async |coordinator| coordinator.plan(request).await)
            .await
    }

    /// Pauses, resumes or aborts an operation.
    pub async fn control(
        &self,
        request: wire::ControlRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(async |coordinator| coordinator.control(request, caller).await)
            .await
    }

    /// Starts an operation that moves these processes; see [`Coordinator::relocate`].
    pub async fn relocate(
        &self,
        kind: Kind,
        request_id: String,
        relocations: Vec<Relocation>,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        let request = async |coordinator: Coordinator| {
            let id = request_id;
            coordinator.relocate(kind, id, relocations, caller).await
        };
        self.ask(request).await
    }

    /// What the fleet should have.
    pub async fn advise(&self) -> Result<wire::Advice, Problem> {
        self.ask(async |coordinator| coordinator.advise().await)
            .await
    }

    /// Writes a record for a change that is made elsewhere.
    pub async fn audit(&self, record: Record) -> Result<(), Problem> {
        self.ask(async |coordinator| coordinator.audit(record).await)
            .await
    }

    /// The operation of that id, however old.
    pub async fn operation(&self, id: &str) -> Result<wire::Operation, Problem> {
        self.ask(async |coordinator| coordinator.operation(id).await)
            .await
    }

    /// The latest operations, newest first.
    pub async fn operations(&self, limit: usize) -> Result<Vec<wire::Operation>, Problem> {
        self.ask(async |coordinator| coordinator.operations(limit).await)
            .await
    }

    /// The operations that run or ended lately, as a value that changes. Between terms the latest
    /// known.
    pub fn watch_operations(&self) -> watch::Receiver<Arc<Operations>> {
        self.operations.clone()
    }

    /// The desired state, as a value that changes. Between terms the latest known.
    pub fn watch_desired(&self) -> watch::Receiver<Arc<Desired>> {
        self.desired.clone()
    }

    /// Which hosts are lost as the present term knows it, as a value that changes. Between terms the latest
    /// known.
    pub fn watch_losses(&self) -> watch::Receiver<Losses> {
        self.losses.clone()
    }

    /// The host that has a process; `None` = it has none, or this agent does not decide.
    pub fn host_of(&self, process: &ProcessName) -> Option<String> {
        self.current.borrow().as_ref()?.host_of(process)
    }

    /// Where this agent stands, as a value that changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The fencing revision of the latest office that this agent held; 0 = none yet.
    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Whether its task lives, whoever decides.
    pub fn is_running(&self) -> bool {
        self.current.has_changed().is_ok()
            && self
                .current
                .borrow()
                .as_ref()
                .is_none_or(Coordinator::is_running)
    }

    async fn ask<T>(
        &self,
        request: impl AsyncFnOnce(Coordinator) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let current = self.current.borrow().clone();
        let Some(coordinator) = current else {
            return Err(self.standing.borrow().problem());
        };
        request(coordinator).await.map_err(|problem| {
            // Its term ended in the middle of the request. Why, if the agent goes on?
            let goes_on = self.current.has_changed().is_ok();
            if goes_on && problem.code == problem::STOPPING {
                self.standing.borrow().problem()
            } else {
                problem
            }
        })
    }
}
