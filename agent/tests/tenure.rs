//! Real agents on a real etcd: whose bots they are, when an agent dies, is stopped in its tracks, or is cut
//! off from the store.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    fs,
    time::{Duration, Instant},
};

use agent_kit::{Agent, lives, pids, ready, signal, until_within};
use etcd_kit::{Etcd, Proxy};
use tanako_agent::registry::{HostRecord, host_key};
use tanako_store::{
    Store,
    etcd::{EtcdStore, Options},
};

const SOON: Duration = Duration::from_secs(90);

/// An agent whose processes only run.
fn on(endpoints: &str, host: &str, processes: u32) -> Agent {
    let toml = format!(
        "[fleet]\nname = \"t\"\n[bots.a]\n\
         command = [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
         shards = {processes}\nworker = true\nwatchdog = \"1h\"\ntoken_file = \"TOKEN\"\n\
         ready = {{ kind = \"started\", after = \"100ms\", timeout = \"60s\" }}\n\
         stop = {{ signal = \"TERM\", grace = \"5s\" }}\n"
    );
    Agent::on_etcd(endpoints, host, &toml, 5)
}

/// Whether a fence guards it. When it has nothing to guard any more it ends by itself.
fn is_fenced(agent: &Agent) -> bool {
    let lock = fs::File::open(agent.path("d/run/fence.lock")).expect("there is one");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

async fn eventually(what: &str, agent: &Agent, wish: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !wish() {
        assert!(Instant::now() < until, "not {what}: {}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn store(url: &str) -> EtcdStore {
    EtcdStore::open(Options {
        endpoints: vec![url.to_owned()],
        prefix: "tanako/t/".to_owned(),
        tls: None,
        user: None,
        timeout: SOON,
    })
    .expect("opens")
}

async fn record(store: &EtcdStore, host: &str) -> HostRecord {
    let item = store.get(&host_key(host)).await.expect("answers");
    item.map(|item| serde_json::from_slice(&item.value).expect("a record"))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_agent_leaves_a_fence_and_the_fence_leaves_nothing() {
    let etcd = Etcd::single();
    let mut agent = on(&etcd.urls()[0], "a", 3);
    let mut client = agent.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 3)).await;
    eventually("guarded", &agent, || is_fenced(&agent)).await;
    agent.kill();
    let all_gone = || pids(&before).iter().all(|(_, pid)| !lives(*pid));
    eventually("killed", &agent, all_gone).await;
    // It says so after it has done it.
    let by_the_fence = || {
        let said = fs::read_to_string(agent.path("d/run/fence.log")).unwrap_or_default();
        said.contains("killed")
    };
    eventually("said to be killed by the fence", &agent, by_the_fence).await;
    eventually("at its end", &agent, || !is_fenced(&agent)).await;
    // The next agent starts them again, under a tenure of its own.
    agent.start();
    let mut client = agent.client().await;
    let after = until_within(SOON, &mut client, "ready again", |status| ready(status, 3)).await;
    assert!(pids(&after).iter().all(|(_, pid)| lives(*pid)));
    assert_ne!(pids(&after), pids(&before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_stopped_in_its_tracks_finds_its_bots_gone() {
    let etcd = Etcd::single();
    let agent = on(&etcd.urls()[0], "a", 2);
    let mut client = agent.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 2)).await;
    eventually("guarded", &agent, || is_fenced(&agent)).await;
    signal(agent.pid(), "STOP");
    let all_gone = || pids(&before).iter().all(|(_, pid)| !lives(*pid));
    eventually("killed", &agent, all_gone).await;
    signal(agent.pid(), "CONT");
    let after = until_within(SOON, &mut client, "ready again", |status| {
        ready(status, 2) && pids(status) != pids(&before)
    })
    .await;
    assert!(pids(&after).iter().all(|(_, pid)| lives(*pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_cut_off_stops_its_bots_before_it_is_released() {
    let etcd = Etcd::single();
    let url = etcd.urls().remove(0);
    let proxy = Proxy::to(&etcd.members[0].socket()).await;
    let cut = on(&proxy.url, "a", 2);
    let mut client = cut.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 2)).await;
    let _other = on(&url, "b", 2);
    let store = store(&url);
    // Each knows of the other, and that one of them is not enough to stay.
    let until = Instant::now() + SOON;
    while record(&store, "a").await.tenure.stay != 1 || record(&store, "b").await.tenure.stay != 1 {
        assert!(
            Instant::now() < until,
            "they do not see each other: {}",
            cut.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let instance = record(&store, "a").await.tenure.instance;
    proxy.open(false);
    let released = async {
        loop {
            let terms = record(&store, "a").await.tenure;
            if terms.released {
                return terms;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let terms = tokio::time::timeout(SOON, released)
        .await
        .expect("released");
    for (name, pid) in pids(&before) {
        assert!(!lives(pid), "{name} lives although its host was released");
    }
    assert_eq!(terms.instance, instance);
    // It comes back as another tenure.
    proxy.open(true);
    let until = Instant::now() + SOON;
    loop {
        let terms = record(&store, "a").await.tenure;
        if terms.instance != instance && !terms.released {
            break;
        }
        assert!(
            Instant::now() < until,
            "it does not come back: {}",
            cut.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
