//! What the parts of the agent are told, from its configuration.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tanako_store::Store;

use super::Stage;
use crate::{
    config::{Config, StoreConfig},
    identity::network::Bound,
    office,
    registry::{self, Registry},
    supervisor,
    tenure::{self, Tenure},
};

/// Life of the coordinator's lease in the embedded store, which nobody else can open meanwhile.
const EMBEDDED_LEASE: Duration = Duration::from_secs(3600);

/// Makes a directory that others may not look into.
pub fn private_dir(path: &Path, group: bool) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(if group { 0o750 } else { 0o700 })
        .create(path)
        .with_context(|| format!("the directory {} cannot be made", path.display()))
}

/// How the office is run for.
pub(super) fn office_settings(config: &Config) -> office::Settings {
    match &config.store {
        StoreConfig::Embedded => office::Settings {
            ttl: EMBEDDED_LEASE,
            shared: false,
            memory: None,
        },
        StoreConfig::Etcd(etcd) => office::Settings {
            ttl: etcd.lease,
            shared: true,
            memory: Some(config.data_dir.join("coordinator.lease")),
        },
    }
}

/// On one machine there is nobody to announce this host to, and no lease.
pub(super) fn registry(
    config: &Config,
    http: SocketAddr,
    network: Option<&Bound>,
    store: Arc<dyn Store>,
    keeping: &Stage,
) -> Registry {
    let mut own = registry::Own::of_machine(
        &config.host,
        &config.data_dir.to_string_lossy(),
        &format!("http://{http}"),
    );
    if let Some(network) = network {
        own.address = network.advertised.to_string();
        own.issuer = network.authority.is_some();
    }
    match &config.store {
        StoreConfig::Embedded => Registry::alone(own),
        StoreConfig::Etcd(_) => {
            Registry::start(own, store, keeping.cancel.clone(), &keeping.tracker)
        }
    }
}

/// On one machine nobody else can run what runs here.
pub(super) fn tenure(config: &Config) -> Tenure {
    match &config.store {
        StoreConfig::Embedded => Tenure::unbounded(),
        StoreConfig::Etcd(_) => Tenure::open(tenure::Settings {
            host: config.host.clone(),
            data_dir: config.data_dir.clone(),
            ttl: config.host_lease,
            share: tanako_fleet::failover::SHARE,
            fence: std::env::current_exe().ok(),
        }),
    }
}

/// Where children find this agent, and commands are looked up.
pub(super) fn supervisor_config(config: &Config) -> supervisor::Config {
    let base_env = BTreeMap::from([
        (
            "TANAKO_SOCKET".to_owned(),
            config.worker_socket().to_string_lossy().into_owned(),
        ),
        ("TANAKO_HOST".to_owned(), config.host.clone()),
    ]);
    // A bare command is looked up beside the agent first.
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(PathBuf::from));
    supervisor::Config {
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        host: config.host.clone(),
        base_env,
        search_path: beside.into_iter().collect(),
        cgroup: None,
    }
}
