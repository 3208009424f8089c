//! This host: carries orders out, whoever gave them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tanako_fleet::{ProcessName, ProcessSpec, orders::Given};
use tanako_proto::{
    fleet::v1::Problem,
    worker::v1::{TakeOver, command::Command},
};
use tokio::sync::watch;

use super::{Assigned, Gate, Order, OrderError};
use crate::{
    metrics::Sample,
    problem::with_sources,
    supervisor::{State, Supervisor, SupervisorError},
    vault::{Kept, Vault},
    worker::{CommandError, CommandRun, Workers},
};

/// How long the store may take to answer when sessions are recalled from it.
const RECALL_WITHIN: Duration = Duration::from_secs(3);

/// The parts of this host that orders are about; clones are cheap.
#[derive(Clone)]
pub struct Local {
    /// Name of this host.
    pub host: Arc<str>,
    /// Its processes.
    pub supervisor: Supervisor,
    /// Their reports, and the way to give them commands.
    pub workers: Workers,
    /// Their sessions.
    pub vault: Vault,
    /// What they and the host use.
    pub sample: watch::Receiver<Arc<Sample>>,
    /// Whose orders count.
    pub gate: Gate,
}

impl Local {
    /// Carries out an order of the coordinator with that epoch, which is meant for the tenure of that name
    /// (empty: whichever).
    pub async fn carry_out(
        &self,
        epoch: u64,
        tenure: &str,
        sequence: u64,
        order: Order,
    ) -> Result<(), OrderError> {
        self.gate.pass(&Given {
            epoch,
            tenure,
            about: order.process().map(|process| (process, sequence)),
        })?;
        match order {
            Order::Define(spec, wanted, attempt_min) => refuse(
                self.supervisor
                    .define_after(spec, wanted, attempt_min)
                    .await,
            ),
            Order::Start(name) => refuse(self.supervisor.start_process(&name).await),
            Order::Stop(name) => refuse(self.supervisor.stop(&name).await),
            Order::Restart(name, attempt) => refuse(self.supervisor.restart(&name, attempt).await),
            Order::Forget(name) => self.forget(&name).await,
            Order::Depart(name) => {
                self.forget(&name).await?;
                self.vault.depart(&name);
                Ok(())
            }
            Order::Handover(from, to, attempt) => {
                self.hand_over(&from, &to, attempt);
                Ok(())
            }
            Order::Recall(name) => self.recall(&name).await,
            Order::Assigned(assigned) => self.keep_only(sequence, &assigned).await,
            Order::ForgetSessions(bot, count) => {
                self.vault.forget(&bot, count);
                Ok(())
            }
            Order::Duties(all) => {
                let duties = self.workers.duties().clone();
                let kept = tokio::task::spawn_blocking(move || duties.replace(all)).await;
                kept.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")))
                    .map_err(|error| {
                        let problem = Problem::new(
                            "no-space",
                            "duties.json",
                            "what processes do with their shards cannot be written down",
                        );
                        let hint = "free space on the disk of the data directory of this host";
                        let problem = problem.cause(error.to_string()).hint(hint);
                        OrderError::Refused(Box::new(problem.retryable()))
                    })
            }
        }
    }

    /// Gives a worker of this host a command; one that takes over gets the sessions that are kept here.
    pub async fn command(
        &self,
        process: &ProcessName,
        command: Command,
        within: Duration,
    ) -> Result<CommandRun, CommandError> {
        let command = match command {
            Command::TakeOver(_) => {
                let spec = self.spec(process);
                let sessions =
                    spec.map_or_else(Vec::new, |spec| self.vault.sessions_for(&spec, None));
                Command::TakeOver(TakeOver { sessions })
            }
            other => other,
        };
        self.workers.command(process, command, within).await
    }

    /// The sessions of a process that does not run here any more.
    pub fn hand_out(&self, epoch: u64, process: &ProcessName) -> Result<Vec<Kept>, OrderError> {
        self.gate.pass_epoch(epoch)?;
        let table = self.supervisor.status().borrow().clone();
        let Some(known) = table.get(process) else {
            return Ok(Vec::new());
        };
        if known.state.is_live() || known.state == State::Backoff {
            let problem = Problem::new(
                "not-ready",
                process.as_str(),
                format!("{process} still runs on host {}", self.host),
            );
            let problem = problem.hint("stop it first").retryable();
            return Err(OrderError::Refused(Box::new(problem)));
        }
        Ok(self.vault.hand_out(&known.spec))
    }

    /// Keeps the sessions of a process that will start here; how many.
    pub fn take_in(
        &self,
        epoch: u64,
        process: &ProcessName,
        kept: Vec<Kept>,
    ) -> Result<usize, OrderError> {
        self.gate.pass_epoch(epoch)?;
        let spec = self
            .spec(process)
            .ok_or_else(|| refused(&SupervisorError::Unknown(process.clone())))?;
        Ok(self.vault.take_in(&spec, kept))
    }

    fn spec(&self, process: &ProcessName) -> Option<Arc<ProcessSpec>> {
        let table = self.supervisor.status();
        let table = table.borrow();
        table.get(process).map(|known| Arc::clone(&known.spec))
    }

    async fn forget(&self, name: &ProcessName) -> Result<(), OrderError> {
        match self.supervisor.forget(name).await {
            // Gone already.
            Err(SupervisorError::Unknown(_)) => Ok(()),
            other => refuse(other),
        }
    }

    fn hand_over(&self, from: &ProcessName, to: &ProcessName, attempt: u64) {
        let table = self.supervisor.status().borrow().clone();
        if let (Some(from), Some(to)) = (table.get(from), table.get(to)) {
            let attempt = attempt.max(to.attempt);
            let moved = self.vault.handover(&from.spec, &to.spec, attempt);
            tracing::info!(from = %from.name, to = %to.name, shards = moved.len(), "sessions handed over");
        }
    }

    async fn recall(&self, name: &ProcessName) -> Result<(), OrderError> {
        let Some(spec) = self.spec(name) else {
            return Err(refused(&SupervisorError::Unknown(name.clone())));
        };
        if !self.vault.refresh(&spec, RECALL_WITHIN).await {
            let problem = Problem::new(
                "store-unavailable",
                name.as_str(),
                "the sessions in the store cannot be read",
            );
            return Err(OrderError::Refused(Box::new(problem.retryable())));
        }
        // Where it last ran it may have had a higher number than anyone has seen.
        let wanted = crate::supervisor::Desired::Stopped;
        let table = self.supervisor.status().borrow().clone();
        if table.get(name).is_some_and(|known| known.desired == wanted) {
            let attempt = self.vault.attempt_of(name);
            return refuse(self.supervisor.define_after(spec, wanted, attempt).await);
        }
        Ok(())
    }

    /// What was brought here after that was said stays.
    async fn keep_only(&self, sequence: u64, assigned: &Assigned) -> Result<(), OrderError> {
        let own: HashSet<&ProcessName> = assigned.processes.iter().collect();
        let elsewhere: HashSet<&ProcessName> = assigned.elsewhere.iter().collect();
        let table = self.supervisor.status().borrow().clone();
        let strangers = table.keys().filter(|name| !own.contains(name));
        for name in strangers.filter(|name| !self.gate.is_newer(name, sequence)) {
            tracing::warn!(process = %name, version = assigned.version, "a process that does not belong to this host is stopped");
            self.forget(name).await?;
            if elsewhere.contains(name) {
                self.vault.depart(name);
            }
        }
        Ok(())
    }
}

fn refuse(result: Result<(), SupervisorError>) -> Result<(), OrderError> {
    result.map_err(|error| refused(&error))
}

fn refused(error: &SupervisorError) -> OrderError {
    let (code, object) = match error {
        SupervisorError::Unknown(name) => ("unknown-target", name.to_string()),
        SupervisorError::NotRunning(name) => ("not-ready", name.to_string()),
        SupervisorError::BadSignal(_) => ("invalid-argument", "signal".to_owned()),
        SupervisorError::Gone => ("stopping", "agent".to_owned()),
        SupervisorError::Io { path, .. } => ("internal", path.display().to_string()),
    };
    let mut problem = Problem::new(code, object, with_sources(error));
    problem.retryable = matches!(error, SupervisorError::Gone);
    OrderError::Refused(Box::new(problem))
}
