//! Real agents on a real etcd: whose bots they are, when an agent dies, is stopped in its tracks, or is cut
//! off from the store.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent_kit::{Client, connect, kill_all_of, pids, ready, signal, until_within};
use etcd_kit::{Etcd, Proxy};
use tanako_agent::registry::{HostRecord, host_key};
use tanako_store::{
    Store,
    etcd::{EtcdStore, Options},
};

const SOON: Duration = Duration::from_secs(90);

/// An agent on a directory of its own. Dropping it kills the agent and everything it started.
struct Agent {
    dir: tempfile::TempDir,
    host: &'static str,
    endpoints: String,
    child: Option<Child>,
}

impl Agent {
    fn new(endpoints: &str, host: &'static str, processes: u32) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tat")
            .tempdir()
            .expect("a directory");
        let token = dir.path().join("token");
        fs::write(&token, "secret").expect("writes");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("sets");
        let toml = format!(
            "[fleet]\nname = \"t\"\n[bots.a]\n\
             command = [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
             shards = {processes}\nworker = true\ntoken_file = \"{}\"\n\
             ready = {{ kind = \"started\", after = \"100ms\", timeout = \"60s\" }}\n\
             stop = {{ signal = \"TERM\", grace = \"5s\" }}\n",
            token.display()
        );
        fs::write(dir.path().join("fleet.toml"), toml).expect("writes");
        let mut agent = Self {
            dir,
            host,
            endpoints: endpoints.to_owned(),
            child: None,
        };
        agent.start();
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) {
        let _ = fs::remove_file(self.path("info.json"));
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .expect("opens");
        let child = Command::new(env!("CARGO_BIN_EXE_tanako-agent"))
            .arg("--data-dir")
            .arg(self.path("d"))
            .args(["--http", "127.0.0.1:0", "--host", self.host, "--spec"])
            .arg(self.path("fleet.toml"))
            .arg("--info-file")
            .arg(self.path("info.json"))
            .args(["--store", "etcd", "--etcd-prefix", "tanako/t/"])
            .args(["--etcd-endpoints", &self.endpoints])
            .args(["--etcd-lease-seconds", "3", "--host-lease-seconds", "5"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        self.child = Some(child);
        let until = Instant::now() + SOON;
        while !self.path("info.json").exists() {
            let child = self.child.as_mut().expect("started");
            let ended = child.try_wait().expect("asks");
            assert!(ended.is_none(), "the agent ended: {}", self.log());
            assert!(Instant::now() < until, "it did not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("started").id()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }

    async fn client(&self) -> Client {
        connect(&self.path("d/run/agent.sock")).await
    }

    /// Whether a fence guards it.
    fn is_fenced(&self) -> bool {
        let lock = fs::File::open(self.path("d/run/fence.lock")).expect("there is one");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        kill_all_of(self.dir.path());
        // Its fence has nothing to guard any more and ends by itself.
    }
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
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
        timeout: Duration::from_secs(5),
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
    let mut agent = Agent::new(&etcd.urls()[0], "a", 3);
    let mut client = agent.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 3)).await;
    eventually("guarded", &agent, || agent.is_fenced()).await;
    agent.kill();
    let all_gone = || pids(&before).iter().all(|(_, pid)| !lives(*pid));
    eventually("killed", &agent, all_gone).await;
    let guard = fs::read_to_string(agent.path("d/run/fence.log")).unwrap_or_default();
    assert!(guard.contains("killed"), "by the fence: {guard}");
    eventually("at its end", &agent, || !agent.is_fenced()).await;
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
    let agent = Agent::new(&etcd.urls()[0], "a", 2);
    let mut client = agent.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 2)).await;
    eventually("guarded", &agent, || agent.is_fenced()).await;
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
    let cut = Agent::new(&proxy.url, "a", 2);
    let mut client = cut.client().await;
    let before = until_within(SOON, &mut client, "ready", |status| ready(status, 2)).await;
    let _other = Agent::new(&url, "b", 2);
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
