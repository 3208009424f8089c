//! The store of this agent.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use tanako_store::{
    Store,
    embedded::{EmbeddedStore, Options},
    etcd::EtcdStore,
};

use crate::config::{Config, StoreConfig};

/// Revisions that the embedded store keeps for watchers. One machine has no late ones.
const STORE_HISTORY: u64 = 256;

/// The store, by what has to be done with it at the end.
pub(super) enum Opened {
    Embedded(Arc<EmbeddedStore>),
    Etcd(Arc<EtcdStore>),
}

impl Opened {
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        match &config.store {
            StoreConfig::Embedded => open_embedded(&config.data_dir.join("store"))
                .await
                .map(Self::Embedded),
            StoreConfig::Etcd(etcd) => {
                let store = EtcdStore::open(etcd.options.clone()).context("etcd cannot be used")?;
                Ok(Self::Etcd(Arc::new(store)))
            }
        }
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => store.clone(),
            Self::Etcd(store) => store.clone(),
        }
    }

    pub(super) async fn close(self) {
        if let Self::Embedded(store) = self {
            // Joins the writer thread, which is quick, but blocks.
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        }
    }
}

async fn open_embedded(path: &Path) -> anyhow::Result<Arc<EmbeddedStore>> {
    let options = Options {
        history_max: STORE_HISTORY,
        ..Options::default()
    };
    let opened = {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || EmbeddedStore::open(&path, &options)).await
    };
    match opened.context("the store's thread")? {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            let hint = error.hint();
            Err(anyhow::Error::new(error).context(format!("the store cannot be opened; {hint}")))
        }
    }
}

/// Tells stores apart whose revisions have nothing to do with each other.
pub(super) fn store_name(store: &StoreConfig) -> String {
    match store {
        StoreConfig::Embedded => "embedded".to_owned(),
        StoreConfig::Etcd(etcd) => format!("etcd {}", etcd.options.prefix),
    }
}
