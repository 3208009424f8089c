//! What is decided first: who decides, and the spec to begin with.

use std::path::Path;

use anyhow::{Context, bail};
use tanako_fleet::spec;
use tanako_proto::fleet::v1 as wire;

use super::Stage;
use crate::{
    config::{Config, StoreConfig},
    coordinator::Caller,
    office::{Front, Standing},
};

/// Waits until it is known who decides; applies the spec to begin with when it is this agent and there
/// is none yet. When the store of a fleet does not answer, that waits and the agent goes on.
pub(super) async fn first_decision(
    config: &Config,
    coordinator: &Front,
    coordinating: &Stage,
) -> anyhow::Result<()> {
    let mut standing = coordinator.standing();
    let known = standing.wait_for(|standing| *standing != Standing::Starting);
    let known = known.await.context("the coordinator")?.clone();
    if let (Standing::Unusable { why }, StoreConfig::Embedded) = (&known, &config.store) {
        bail!("{why}");
    }
    let Some(path) = &config.spec else {
        return Ok(());
    };
    if matches!(known, Standing::Holding { .. }) {
        return apply_first(path, coordinator).await;
    }
    // Looked at now, so that a mistake in it is told now.
    read_spec(path)?;
    let (path, coordinator) = (path.clone(), coordinator.clone());
    let cancel = coordinating.cancel.clone();
    coordinating
        .tracker
        .spawn(cancel.run_until_cancelled_owned(async move {
            let holding = |standing: &Standing| matches!(standing, Standing::Holding { .. });
            while standing.wait_for(holding).await.is_ok() {
                match apply_first(&path, &coordinator).await {
                    Ok(()) => return,
                    Err(error) => tracing::error!("{error:#}"),
                }
                if standing.changed().await.is_err() {
                    return;
                }
            }
        }));
    Ok(())
}

async fn apply_first(path: &Path, coordinator: &Front) -> anyhow::Result<()> {
    if coordinator.watch_desired().borrow().spec.is_some() {
        return Ok(());
    }
    let request = read_spec(path)?;
    let file = request.file_name.clone();
    match coordinator
        .apply(request, Caller::agent("agent (--spec)"))
        .await
    {
        Ok(_) => Ok(()),
        Err(problem) => bail!(
            "{file} cannot be applied: {} {}; {}",
            problem.message,
            problem.cause,
            problem.hint
        ),
    }
}

fn read_spec(path: &Path) -> anyhow::Result<wire::ApplyRequest> {
    let spec_toml = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let file_name = path.display().to_string();
    if let Err(error) = spec::parse(&spec_toml, &file_name) {
        bail!("{error}\nhint: {}", error.hint());
    }
    Ok(wire::ApplyRequest {
        spec_toml,
        file_name,
        ..wire::ApplyRequest::default()
    })
}
