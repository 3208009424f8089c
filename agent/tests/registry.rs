//! The hosts of the fleet on a real etcd: who is there, who is lost, and that this is still known after
//! the store was away and has dropped its history.

#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{sync::Arc, time::Duration};

use etcd_kit::{Etcd, Proxy};
use tanako_agent::registry::{self, HostRecord, Hosts, Own, Registry};
use tanako_store::{
    Store, StoreError, Txn,
    etcd::{EtcdStore, Options},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(90);

fn open(url: &str, timeout: Duration) -> Arc<EtcdStore> {
    let options = Options {
        endpoints: vec![url.to_owned()],
        prefix: "tanako/t/".to_owned(),
        tls: None,
        user: None,
        timeout,
    };
    Arc::new(EtcdStore::open(options).expect("opens"))
}

/// The registry of one host.
struct Member {
    registry: Registry,
    cancel: CancellationToken,
}

impl Member {
    fn start(host: &str, url: &str) -> Self {
        let cancel = CancellationToken::new();
        let store = open(url, Duration::from_secs(5));
        let own = Own::of_machine(host, "/d", "http://127.0.0.1:1");
        let registry = Registry::start(own, store.clone(), cancel.clone(), &TaskTracker::new());
        let held = cancel.clone();
        let key = registry::present_key(host);
        tokio::spawn(held.run_until_cancelled_owned(hold(store, key)));
        Self { registry, cancel }
    }

    async fn until(&self, what: &str, wish: impl Fn(&Hosts) -> bool) -> Arc<Hosts> {
        let mut hosts = self.registry.watch();
        let seen = tokio::time::timeout(SOON, hosts.wait_for(|hosts| wish(hosts))).await;
        match seen {
            Ok(Ok(hosts)) => hosts.clone(),
            _ => panic!("not {what}: {:#?}", self.registry.hosts()),
        }
    }
}

/// Holds a host's key under a lease.
async fn hold(store: Arc<EtcdStore>, key: String) {
    let ttl = Duration::from_secs(3);
    loop {
        let begin = async {
            let lease = store.grant(ttl).await?;
            let value = format!("{{\"instance\":\"{lease}\"}}");
            let txn = Txn::new().if_absent(&key).put_leased(&key, value, lease);
            if store.commit(txn).await?.committed().is_none() {
                // An earlier lease of this host has not ended yet.
                return store.revoke(lease).await;
            }
            while store.keep_alive(lease).await.is_ok() {
                tokio::time::sleep(ttl / 5).await;
            }
            Ok::<(), StoreError>(())
        };
        let _ = begin.await;
        tokio::time::sleep(ttl / 10).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn present(hosts: &Hosts) -> Vec<&str> {
    let there = |known: &registry::Known| known.present.is_some() && known.lost_at.is_none();
    hosts
        .iter()
        .filter(|(_, known)| there(known))
        .map(|(name, _)| name.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_come_are_lost_and_come_back() {
    let etcd = Etcd::single();
    let url = etcd.urls().remove(0);
    let a = Member::start("a", &url);
    let b = Member::start("b", &url);
    a.registry.loaded().await;
    let both = a.until("both", |hosts| present(hosts) == ["a", "b"]).await;
    assert!(both["b"].record.capacity.memory_bytes > 0);
    assert_eq!(both["b"].record.boot_id, both["a"].record.boot_id);
    let first = both["b"].present.clone().expect("present");

    // What the coordinator notes about a host stays when its agent writes.
    let store = open(&url, SOON);
    let record = HostRecord {
        cordoned: true,
        ..both["b"].record.clone()
    };
    let key = registry::host_key("b");
    let txn = Txn::new()
        .if_unchanged(&key, both["b"].revision)
        .put(&key, serde_json::to_vec(&record).expect("writes"));
    assert!(store.commit(txn).await.expect("commits").committed() > None);
    b.registry
        .update(|own| own.address = "10.0.0.2:7000".to_owned());
    let noted = a
        .until("announced", |hosts| !hosts["b"].record.address.is_empty())
        .await;
    assert!(noted["b"].record.cordoned);
    assert_eq!(noted["b"].record.joined_at, record.joined_at);

    // Its lease ends without it.
    drop(b);
    let lost = a.until("lost", |hosts| present(hosts) == ["a"]).await;
    assert!(lost["b"].lost_at.is_some() && lost["b"].record.cordoned);
    let b = Member::start("b", &url);
    let back = a.until("back", |hosts| present(hosts) == ["a", "b"]).await;
    assert_ne!(
        back["b"].present.as_ref().map(|p| &p.instance),
        Some(&first.instance)
    );
    assert!(back["b"].record.cordoned);
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_and_lost_history_are_caught_up_with() {
    let etcd = Etcd::single();
    let proxy = Proxy::to(&etcd.members[0].socket()).await;
    let a = Member::start("a", &proxy.url);
    let url = etcd.urls().remove(0);
    let b = Member::start("b", &url);
    a.until("both", |hosts| present(hosts) == ["a", "b"]).await;
    proxy.open(false);
    b.until("alone", |hosts| present(hosts) == ["b"]).await;
    // Much happens meanwhile, and is dropped.
    let c = Member::start("c", &url);
    b.until("c", |hosts| present(hosts) == ["b", "c"]).await;
    let store = open(&url, SOON);
    let key = registry::host_key("b");
    assert!(
        store
            .commit(Txn::new().delete(&key))
            .await
            .expect("commits")
            .committed()
            > None
    );
    let revision = store.list("hosts/").await.expect("lists").revision;
    store.compact(revision).await.expect("compacts");
    assert_eq!(present(&a.registry.hosts()), ["a", "b"], "the latest known");
    proxy.open(true);
    let after = a.until("all", |hosts| present(hosts) == ["a", "c"]).await;
    assert!(!after.contains_key("b"));
    drop(c);
}
