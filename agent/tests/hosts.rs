//! One coordinator over several hosts: real agents with certificates of one authority, on a real etcd.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent_kit::{Client, connect, kill_all_of, until_within};
use etcd_kit::Etcd;
use hyper_util::rt::TokioIo;
use tanako_pki::{Authority, Identity, Subject, tls};
use tanako_proto::{
    fleet::v1::{self as wire, Problem},
    host::v1::{OrderRequest, host_client::HostClient, order_request::Order},
};
use tanako_store::{
    Store,
    etcd::{EtcdStore, Options},
};
use tonic::transport::Endpoint;
use tower::service_fn;

/// Leases run out and members are elected on the way.
const SOON: Duration = Duration::from_secs(90);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PREFIX: &str = "tanako/t/";

/// Processes that only run, each ready after a while.
fn spec(processes: u32, ready_after: &str) -> String {
    format!(
        "[fleet]\nname = \"t\"\n[bots.a]\n\
         command = [\"/bin/sh\", \"-c\", \"echo in $HERE; trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
         env = {{ HERE = \"{{data_dir}}\" }}\n\
         shards = {processes}\nworker = true\ntoken_file = \"TOKEN\"\n\
         ready = {{ kind = \"started\", after = \"{ready_after}\", timeout = \"60s\" }}\n\
         stop = {{ signal = \"TERM\", grace = \"5s\" }}\n"
    )
}

/// A fleet of hosts on one etcd.
struct Fleet {
    etcd: Etcd,
    authority: Authority,
    dir: tempfile::TempDir,
    hosts: BTreeMap<&'static str, Host>,
}

/// An agent on a directory of its own. Dropping it kills the agent and everything it started.
struct Host {
    dir: PathBuf,
    name: &'static str,
    endpoints: String,
    child: Option<Child>,
}

impl Fleet {
    /// All hosts are present and somebody decides.
    async fn new(names: &[&'static str]) -> Self {
        let etcd = Etcd::single();
        let dir = tempfile::Builder::new()
            .prefix("tah")
            .tempdir()
            .expect("a directory");
        let token = dir.path().join("token");
        fs::write(&token, "secret").expect("writes");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("sets");
        let authority = Authority::create("t").expect("made");
        let mut fleet = Self {
            authority,
            hosts: BTreeMap::new(),
            dir,
            etcd,
        };
        for name in names {
            let dir = fleet.dir.path().join(name);
            fs::create_dir(&dir).expect("makes");
            let ip = "127.0.0.1".parse().expect("an address");
            fleet
                .authority
                .issue_to(&dir.join("identity"), &Subject::agent(*name, [ip]), DAY)
                .expect("issued");
            let mut host = Host {
                dir,
                name,
                endpoints: fleet.etcd.urls().join(","),
                child: None,
            };
            host.start();
            fleet.hosts.insert(name, host);
        }
        fleet.present(names).await;
        fleet
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(name).expect("a host")
    }

    async fn store(&self) -> EtcdStore {
        let options = Options {
            endpoints: self.etcd.urls(),
            prefix: PREFIX.to_owned(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(5),
        };
        EtcdStore::open(options).expect("opens")
    }

    /// Waits until exactly these hosts hold their leases.
    async fn present(&self, names: &[&str]) {
        let store = self.store().await;
        let end = Instant::now() + SOON;
        loop {
            let found = store.list("present/").await.expect("lists").items;
            let mut found: Vec<&str> = found
                .iter()
                .filter_map(|item| item.key.strip_prefix("present/"))
                .collect();
            found.sort_unstable();
            if found == names {
                return;
            }
            assert!(Instant::now() < end, "{found:?}, not {names:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The host whose agent decides, with a client of it.
    async fn decides(&self) -> (&'static str, Client) {
        let store = self.store().await;
        let end = Instant::now() + SOON;
        loop {
            let leader = store.get("coordinator").await.expect("reads");
            let leader = leader.map(|item| String::from_utf8_lossy(&item.value).into_owned());
            let host = self
                .hosts
                .values()
                .find(|host| Some(host.name) == leader.as_deref());
            if let Some(host) = host
                && host.child.is_some()
            {
                let mut client = host.client().await;
                let reply = client.plan(wire::PlanRequest::default()).await;
                let problem = Problem::from_status(&reply.expect_err("nothing is asked"));
                if problem.code != "not-coordinator" {
                    return (host.name, client);
                }
            }
            assert!(Instant::now() < end, "nobody decides");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn spec(&self, processes: u32, ready_after: &str) -> String {
        let token = self.dir.path().join("token");
        spec(processes, ready_after).replace("TOKEN", &token.display().to_string())
    }

    async fn apply(&self, toml: &str) {
        let (_, mut client) = self.decides().await;
        let request = wire::ApplyRequest {
            spec_toml: toml.to_owned(),
            file_name: "fleet.toml".to_owned(),
            ..wire::ApplyRequest::default()
        };
        let op = client.apply(request).await.expect("accepted").into_inner();
        self.succeeds(&op.id).await;
    }

    /// Waits until each host has so many ready processes; what each has then.
    async fn ready(&self, wish: impl Fn(&BTreeMap<&str, Vec<wire::Process>>) -> bool) -> Processes {
        let end = Instant::now() + SOON;
        loop {
            let found = self.processes().await;
            if wish(&found) {
                return found;
            }
            assert!(Instant::now() < end, "not as wished: {found:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the agents that run say of their own processes.
    async fn processes(&self) -> Processes {
        let mut all = BTreeMap::new();
        for host in self.hosts.values().filter(|host| host.child.is_some()) {
            let mut client = host.client().await;
            let status = client.get_status(wire::StatusRequest::default()).await;
            let mut processes = status.expect("answers").into_inner().processes;
            processes.retain(|process| process.host == host.name);
            all.insert(host.name, processes);
        }
        all
    }

    /// Waits for the end of an operation, whoever carries it forward.
    async fn ends(&self, id: &str) -> wire::Operation {
        let end = Instant::now() + SOON;
        loop {
            let (_, mut client) = self.decides().await;
            let request = wire::OperationId { id: id.to_owned() };
            if let Ok(op) = client.get_operation(request).await {
                let op = op.into_inner();
                if op.ended_at > 0 {
                    return op;
                }
            }
            assert!(Instant::now() < end, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn succeeds(&self, id: &str) -> wire::Operation {
        let op = self.ends(id).await;
        assert_eq!(op.state, "succeeded", "{op:#?}");
        op
    }

    async fn does(&self, kind: &str, targets: &[&str]) -> wire::Operation {
        let op = self.submit(kind, targets).await.expect("accepted");
        self.succeeds(&op.id).await
    }

    /// Asks until somebody decides; a refusal that will not go away is given back.
    async fn submit(&self, kind: &str, targets: &[&str]) -> Result<wire::Operation, Problem> {
        let end = Instant::now() + SOON;
        loop {
            let (_, mut client) = self.decides().await;
            let request = wire::OperationRequest {
                kind: kind.to_owned(),
                targets: targets.iter().map(|text| (*text).to_owned()).collect(),
                ..wire::OperationRequest::default()
            };
            match client.submit(request).await {
                Ok(op) => return Ok(op.into_inner()),
                Err(status) => {
                    let problem = Problem::from_status(&status);
                    if !problem.retryable || Instant::now() > end {
                        return Err(problem);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// As the agent of `name` would speak to the one of `to`.
    async fn peer(&self, name: &str, to: &str) -> HostClient<tonic::transport::Channel> {
        let host = &self.hosts[to];
        let address = host.listens();
        let identity = self.identity(name);
        let config = tls::client(&identity, Some(to)).expect("configured");
        let connector = service_fn(move |_| {
            let config = config.clone();
            async move {
                let stream = tls::connect(address, config, SOON).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://agent.tanako")
            .connect_with_connector(connector)
            .await
            .expect("connects");
        HostClient::new(channel)
    }

    fn identity(&self, name: &str) -> Identity {
        let ip = "127.0.0.1".parse().expect("an address");
        self.authority
            .identity(&Subject::agent(name, [ip]), DAY)
            .expect("made")
    }
}

type Processes = BTreeMap<&'static str, Vec<wire::Process>>;

impl Host {
    fn start(&mut self) {
        let _ = fs::remove_file(self.dir.join("info.json"));
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("log"))
            .expect("opens");
        let child = Command::new(env!("CARGO_BIN_EXE_tanako-agent"))
            .arg("--data-dir")
            .arg(self.dir.join("d"))
            .args(["--http", "127.0.0.1:0", "--host", self.name])
            .args(["--listen", "127.0.0.1:0", "--identity"])
            .arg(self.dir.join("identity"))
            .arg("--info-file")
            .arg(self.dir.join("info.json"))
            .args(["--store", "etcd", "--etcd-prefix", PREFIX])
            .args(["--etcd-endpoints", &self.endpoints])
            .args(["--etcd-lease-seconds", "3"])
            // Nothing is moved away while an agent is off for a moment.
            .args(["--host-lease-seconds", "60"])
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        self.child = Some(child);
        let end = Instant::now() + SOON;
        while !self.dir.join("info.json").exists() {
            let child = self.child.as_mut().expect("started");
            let ended = child.try_wait().expect("asks");
            assert!(ended.is_none(), "the agent ended: {}", self.log());
            assert!(Instant::now() < end, "it did not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn listens(&self) -> SocketAddr {
        let text = fs::read_to_string(self.dir.join("info.json")).expect("there");
        let info: serde_json::Value = serde_json::from_str(&text).expect("reads");
        let address = info["listen"].as_str().expect("it listens");
        address.parse().expect("an address")
    }

    async fn client(&self) -> Client {
        connect(&self.dir.join("d/run/agent.sock")).await
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        kill_all_of(&self.dir);
    }
}

fn counts(all: &BTreeMap<&str, Vec<wire::Process>>) -> Vec<usize> {
    all.values()
        .map(|processes| processes.iter().filter(|process| process.ready).count())
        .collect()
}

fn named<'a>(all: &'a Processes, name: &str) -> (&'static str, &'a wire::Process) {
    let found: Vec<_> = all
        .iter()
        .flat_map(|(host, processes)| processes.iter().map(move |process| (*host, process)))
        .filter(|(_, process)| process.name == name)
        .collect();
    assert_eq!(found.len(), 1, "{name} in {all:#?}");
    found[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_spread_and_operations_reach_them_all() {
    let fleet = Fleet::new(&["a", "b", "c"]).await;
    fleet.apply(&fleet.spec(6, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2, 2]).await;

    let op = fleet.does("restart", &["all"]).await;
    assert_eq!((op.done, op.total), (6, 6));
    let after = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    for process in before.values().flatten() {
        let (host, now) = named(&after, &process.name);
        assert_eq!(host, process.host, "{} stays where it is", process.name);
        assert_eq!((now.attempt, now.restarts), (2, 0));
        assert_ne!(now.pid, process.pid);
    }

    fleet.does("stop", &["host:b", "a/0"]).await;
    let stopped = fleet.processes().await;
    assert!(
        stopped["b"]
            .iter()
            .all(|process| process.state == "stopped")
    );
    fleet.does("start", &["all"]).await;
    let again = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let (_, kept) = named(&again, "a/5");
    assert_eq!(kept.attempt, if kept.host == "b" { 3 } else { 2 });
    for host in fleet.hosts.values() {
        let here = host.dir.join("d/logs");
        let logs = fs::read_dir(here).expect("there").flatten();
        let text: String = logs
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .collect();
        let own = format!("in {}", host.dir.join("d").display());
        assert!(text.contains(&own), "each host fills in its own: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_ends_as_asked_under_another_coordinator() {
    let mut fleet = Fleet::new(&["a", "b", "c"]).await;
    fleet.apply(&fleet.spec(6, "700ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let op = fleet.submit("restart", &["all"]).await.expect("accepted");
    let (first, mut client) = fleet.decides().await;
    until_within(SOON, &mut client, "half way", |status| {
        let mut ops = status.operations.iter();
        ops.any(|known| known.id == op.id && known.done >= 2 && known.ended_at == 0)
    })
    .await;
    fleet.host(first).kill();
    let (second, _) = fleet.decides().await;
    assert_ne!(first, second);
    // What runs on the first one's host waits for its agent.
    fleet.host(first).start();
    fleet.succeeds(&op.id).await;
    let after = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    for process in before.values().flatten() {
        let (host, now) = named(&after, &process.name);
        assert_eq!(host, process.host);
        assert_eq!((now.attempt, now.restarts), (2, 0), "{} once", now.name);
    }

    // Whoever decided before gives no orders any more.
    for to in ["a", "b", "c"] {
        let request = OrderRequest {
            epoch: 1,
            from: first.to_owned(),
            sequence: 1,
            order: Some(Order::Stop("a/0".to_owned())),
        };
        let refused = fleet.peer(first, to).await.order(request).await;
        let problem = Problem::from_status(&refused.expect_err("it is refused"));
        assert_eq!(problem.code, "stale-epoch", "{problem:?}");
    }
    let same = fleet.processes().await;
    assert_eq!(counts(&same), [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_moves_to_another_host_and_back() {
    let mut fleet = Fleet::new(&["a", "b"]).await;
    fleet.apply(&fleet.spec(4, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2]).await;
    let mover = before["a"][0].clone();
    let op = fleet.does("move", &[&mover.name, "host:b"]).await;
    assert_eq!(op.steps.len(), 1, "{op:#?}");
    let after = fleet.ready(|all| counts(all) == [1, 3]).await;
    let (host, now) = named(&after, &mover.name);
    assert_eq!((host, now.attempt), ("b", mover.attempt + 1));

    // The agent that gave it away does not have it again when it comes back.
    fleet.host("a").kill();
    fleet.host("a").start();
    fleet.ready(|all| counts(all) == [1, 3]).await;

    // What is stopped moves without being started.
    fleet.does("stop", &[&mover.name]).await;
    fleet.does("move", &[&mover.name, "host:a"]).await;
    let stopped = fleet.ready(|all| counts(all) == [1, 2]).await;
    let (host, now) = named(&stopped, &mover.name);
    assert_eq!((host, now.state.as_str()), ("a", "stopped"));
    fleet.does("start", &[&mover.name]).await;
    let again = fleet.ready(|all| counts(all) == [2, 2]).await;
    assert_eq!(named(&again, &mover.name).1.attempt, mover.attempt + 2);

    for (targets, code) in [
        (&["a/0"][..], "invalid-target"),
        (&["a/0", "b"][..], "invalid-target"),
        (&["a/0", "host:z"][..], "unknown-target"),
        (&["a/77", "host:b"][..], "unknown-target"),
    ] {
        let problem = fleet.submit("move", targets).await.expect_err("is refused");
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(!problem.hint.is_empty(), "{problem:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_answer_holds_nobody_up_and_agrees_when_it_is_back() {
    let mut fleet = Fleet::new(&["a", "b"]).await;
    fleet.apply(&fleet.spec(4, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2]).await;
    let (decides, _) = fleet.decides().await;
    let other = if decides == "a" { "b" } else { "a" };
    fleet.host(other).kill();
    let own = before[decides][0].name.clone();
    let far = before[other][0].name.clone();
    fleet.does("restart", &[&own]).await;
    // An order for the other one fails in the end, and says why.
    let op = fleet.submit("restart", &[&far]).await.expect("accepted");
    let op = fleet.ends(&op.id).await;
    assert_eq!(op.state, "failed", "{op:#?}");
    assert!(op.message.contains(&format!("host {other}")), "{op:#?}");
    // A new term begins all the same.
    fleet.host(decides).kill();
    fleet.host(decides).start();
    fleet.does("restart", &[&own]).await;
    let op = fleet.submit("stop", &[&far]).await.expect("accepted");
    // It comes back in the middle of it, and does as asked.
    fleet.host(other).start();
    fleet.succeeds(&op.id).await;
    let after = fleet
        .ready(|all| {
            let rest = all
                .values()
                .flatten()
                .any(|one| one.name == far && one.state == "stopped");
            rest && counts(all).iter().sum::<usize>() == 3
        })
        .await;
    let kept = before[other][1].clone();
    assert_eq!(
        named(&after, &kept.name).1.pid,
        kept.pid,
        "its children ran on"
    );
}
