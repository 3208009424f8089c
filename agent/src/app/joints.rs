//! Between parts that do not know each other.

use std::{collections::BTreeMap, sync::Arc};

use tanako_proto::fleet::v1 as wire;
use tanako_store::Store;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, StoreConfig},
    coordinator,
    desired::DesiredError,
    health,
    history::{History, Severity},
    hosts::assigned,
    http,
    identify::Places,
    office::Front,
    supervisor::{self, Supervisor},
    vault::Vault,
    worker::duties::Duties,
};

/// What ran here must not run on once it is another host's: it is let go before anything of it is asked.
/// When the store does not answer, it runs on until somebody decides.
pub(super) async fn release_strangers(host: &str, store: &dyn Store, supervisor: &Supervisor) {
    let (Ok(Some(_)), Ok(own)) = (
        store.get(assigned::HEAD).await,
        assigned::of_host(store, host).await,
    ) else {
        return;
    };
    let own = own.unwrap_or_default().processes;
    let table = supervisor.status().borrow().clone();
    for name in table.keys().filter(|name| !own.contains(*name)) {
        tracing::warn!(process = %name, "it belongs to another host by now and is stopped");
        if let Err(error) = supervisor.forget(name).await {
            tracing::error!(process = %name, %error, "a process could not be let go");
        }
    }
}

/// The duties of workers before the first of them says hello: while the store is away those that the last
/// agent knew.
pub(super) async fn duties(config: &Config, store: &dyn Store) -> Result<Duties, DesiredError> {
    let duties = Duties::open(&config.data_dir);
    match coordinator::duties(store).await {
        Ok(all) => {
            if let Err(error) = duties.replace(all) {
                tracing::warn!(%error, "the duties of workers cannot be written down");
            }
        }
        Err(DesiredError::Store(error)) if config.store != StoreConfig::Embedded => {
            tracing::warn!(%error, "the duties of workers are those that the last agent knew");
        }
        Err(error) => return Err(error),
    }
    Ok(duties)
}

/// Operations that run or ended lately, by state.
pub(super) fn operation_counts(coordinator: Front) -> http::Counts {
    let operations = coordinator.watch_operations();
    Arc::new(move || {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for op in operations.borrow().iter() {
            *counts.entry(op.state.clone()).or_default() += 1;
        }
        counts.into_iter().collect()
    })
}

/// The agent lives while its coordinator does: everything else it can do without it.
pub(super) fn living(coordinator: Front) -> http::HealthCheck {
    Arc::new(move || {
        if coordinator.is_running() {
            Ok(())
        } else {
            Err("the coordinator has stopped".to_owned())
        }
    })
}

/// The host of each process, while this agent decides.
pub(super) fn places(coordinator: Front) -> Places {
    Arc::new(move |process| coordinator.host_of(process))
}

pub(super) fn vault_status(vault: Vault) -> http::VaultCheck {
    Arc::new(move || vault.status())
}

/// What is done about shards goes into the audit log, if the store takes it; the events tell it
/// anyway.
pub(super) fn audit_sink(coordinator: Front) -> health::AuditSink {
    Arc::new(move |record| {
        let coordinator = coordinator.clone();
        Box::pin(async move {
            if let Err(problem) = coordinator.audit(record).await {
                tracing::warn!(problem = %problem.message, "an action on a shard was not audited");
            }
        })
    })
}

/// Brings what happens to processes into the history.
pub(super) async fn pump(
    mut events: broadcast::Receiver<supervisor::SupervisorEvent>,
    history: History,
    cancel: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = cancel.cancelled() => return,
        };
        match event {
            Ok(event) => history.append_event(wire::Event {
                at: event.at_ms,
                severity: match event.severity {
                    supervisor::Severity::Info => "info",
                    supervisor::Severity::Warning => "warning",
                    supervisor::Severity::Error => "error",
                }
                .to_owned(),
                kind: event.kind.to_owned(),
                object: event.process.to_string(),
                message: event.message,
                ..wire::Event::default()
            }),
            Err(broadcast::error::RecvError::Lagged(missed)) => history.event(
                Severity::Warning,
                "events-missed",
                "supervisor",
                format!("{missed} events came faster than they were kept"),
            ),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
