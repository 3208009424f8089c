//! The hosts of the fleet, as the store knows them.
//!
//! Two keys a host. `hosts/<name>` is its [`HostRecord`], durable: where its agent listens, what it can
//! carry, whether it is cordoned. `present/<name>` is its [`Presence`], bound to the host's lease: there
//! means that the lease lives, and that the host may own processes. The lease is [`crate::tenure`]'s.
//!
//! - `announce`: writes this host's own part of its record; what others wrote in it stays.
//! - `follow`: reads and watches the hosts of all; `table` is what is known of them, pure.
//!
//! On one machine ([`Registry::alone`]) nothing is stored: the one host is always present.

mod announce;
mod follow;
mod record;
mod table;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tanako_store::Store;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use record::{Capacity, HostRecord, Own, Presence};
use table::Table;

/// Prefix of the keys of [`HostRecord`]s.
pub const HOSTS: &str = "hosts/";
/// Prefix of the keys of [`Presence`]s.
pub const PRESENT: &str = "present/";

/// Pauses between two tries when the store refuses.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// All hosts of the fleet, by name.
pub type Hosts = BTreeMap<String, Known>;

/// What is known of one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// What it says about itself, and what the coordinator noted.
    pub record: HostRecord,
    /// Revision of the record in the store: compare it before you change the record.
    pub revision: u64,
    /// Its lease lives.
    pub present: Option<Presence>,
    /// When this agent saw that its lease had ended, or first found it without one; ms since 1970.
    /// `None` while it is present.
    pub lost_at: Option<i64>,
}

impl Known {
    /// Whether the host may own processes, whether its lease lives or not: nobody has ended its tenure.
    pub fn is_tenured(&self) -> bool {
        self.present.is_some()
            || !self.record.tenure.instance.is_empty() && !self.record.tenure.released
    }
}

/// The key of a host's record.
pub fn host_key(host: &str) -> String {
    format!("{HOSTS}{host}")
}

/// The key that is there while a host's lease lives.
pub fn present_key(host: &str) -> String {
    format!("{PRESENT}{host}")
}

/// What is known of the hosts; clones are cheap.
#[derive(Debug, Clone)]
pub struct Registry {
    host: Arc<str>,
    hosts: watch::Receiver<Arc<Hosts>>,
    loaded: watch::Receiver<bool>,
    own: watch::Sender<Own>,
}

impl Registry {
    /// Announces this host and follows the others until cancelled. Returns at once: nothing is known
    /// before [`Self::loaded`] has resolved, which waits for the store.
    pub fn start(
        own: Own,
        store: Arc<dyn Store>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (hosts, watched) = watch::channel(Arc::new(Hosts::new()));
        let (loaded, known) = watch::channel(false);
        let host: Arc<str> = own.name.as_str().into();
        let own = watch::Sender::new(own);
        tracker.spawn(cancel.clone().run_until_cancelled_owned(follow::follow(
            store.clone(),
            hosts,
            loaded,
        )));
        tracker.spawn(cancel.run_until_cancelled_owned(announce::announce(store, own.subscribe())));
        Self {
            host,
            hosts: watched,
            loaded: known,
            own,
        }
    }

    /// The registry of one machine: this host alone, always present.
    pub fn alone(own: Own) -> Self {
        let record = own.merged(None, crate::clock::now_ms());
        let known = Known {
            record,
            revision: 0,
            present: Some(Presence::default()),
            lost_at: None,
        };
        let hosts = Hosts::from([(own.name.clone(), known)]);
        Self {
            host: own.name.as_str().into(),
            hosts: watch::channel(Arc::new(hosts)).1,
            loaded: watch::channel(true).1,
            own: watch::Sender::new(own),
        }
    }

    /// Name of this host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// All hosts, as a value that changes. While the store is away it is the latest known.
    pub fn watch(&self) -> watch::Receiver<Arc<Hosts>> {
        self.hosts.clone()
    }

    /// All hosts now.
    pub fn hosts(&self) -> Arc<Hosts> {
        self.hosts.borrow().clone()
    }

    /// Resolves when the hosts have been read from the store for the first time; never, if the agent
    /// stops before.
    pub async fn loaded(&self) {
        let mut loaded = self.loaded.clone();
        if loaded.wait_for(|loaded| *loaded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Changes what this host says about itself; it is written when the store takes it.
    pub fn update(&self, change: impl FnOnce(&mut Own)) {
        self.own.send_if_modified(|own| {
            let before = own.clone();
            change(own);
            *own != before
        });
    }
}
