//! What targets stand for, over all hosts.

use std::collections::HashSet;

use tanako_fleet::{
    ProcessKind, ProcessName,
    target::{self, Row, Target},
};
use tanako_proto::fleet::v1 as wire;
use tonic::Status;

use super::{
    gather::Placed,
    rpc::{SETTLE_MAX, Service, refused, stopped},
};
use crate::problem;

impl Service {
    /// The processes that targets stand for, by the host that each is on; none = all.
    pub(super) async fn resolve(&self, texts: &[String]) -> Result<Placed, Status> {
        let hub = &self.sources.hub;
        hub.settled(SETTLE_MAX).await.map_err(stopped)?;
        let shown = hub
            .look(|core, _| core.processes())
            .await
            .map_err(stopped)?;
        let mut known: Vec<Known> = shown
            .iter()
            .filter_map(|process| Known::of(process))
            .collect();
        let named: HashSet<ProcessName> = known.iter().map(|known| known.name.clone()).collect();
        let desired = self.sources.wanted.now().await;
        // What has never run is on no host; here nobody finds anything of it, as it should be.
        let unborn = desired
            .processes
            .iter()
            .filter(|spec| !named.contains(&spec.name));
        known.extend(unborn.map(|spec| Known {
            name: spec.name.clone(),
            kind: spec.kind,
            host: self.sources.config.host.clone(),
            shard_ids: spec.shard_ids.clone(),
            shard_count: spec.shard_count,
        }));
        let rows: Vec<Row<'_>> = known.iter().map(Known::row).collect();
        let targets: Result<Vec<Target>, _> = match texts {
            [] => Ok(vec![Target::All]),
            texts => texts.iter().map(|text| text.parse()).collect(),
        };
        let names = targets
            .and_then(|targets| target::resolve(&targets, &rows))
            .map_err(|error| refused(problem::from_target(&error)))?;
        let names: HashSet<ProcessName> = names.into_iter().collect();
        let mut placed = Placed::new();
        for known in known {
            if names.contains(&known.name) {
                placed.entry(known.host).or_default().push(known.name);
            }
        }
        Ok(placed)
    }

    /// The processes that another agent asks for: it has resolved them, and asks for those that it
    /// thinks are here.
    pub(super) fn named(&self, texts: &[String]) -> Placed {
        let names = texts.iter().filter_map(|text| text.parse().ok()).collect();
        Placed::from([(self.sources.config.host.clone(), names)])
    }
}

/// A process as far as targets are about it.
struct Known {
    name: ProcessName,
    kind: ProcessKind,
    host: String,
    shard_ids: Vec<u32>,
    shard_count: u32,
}

impl Known {
    fn of(process: &wire::Process) -> Option<Self> {
        Some(Self {
            name: process.name.parse().ok()?,
            kind: if process.kind == ProcessKind::Db.to_string() {
                ProcessKind::Db
            } else {
                ProcessKind::Shard
            },
            host: process.host.clone(),
            shard_ids: process.shards.iter().map(|shard| shard.id).collect(),
            shard_count: process.shards.first().map_or(0, |shard| shard.count),
        })
    }

    fn row(&self) -> Row<'_> {
        Row {
            name: &self.name,
            kind: self.kind,
            host: &self.host,
            shard_ids: &self.shard_ids,
            shard_count: self.shard_count,
        }
    }
}
