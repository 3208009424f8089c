//! Several real agents with certificates of one authority, on a real etcd.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tanako_pki::{Authority, Identity, Role, Subject, tls};
use tanako_proto::{
    fleet::v1::{self as wire, Problem, fleet_client::FleetClient},
    host::v1::host_client::HostClient,
};
use tanako_store::{
    Store, StoreError,
    etcd::{EtcdStore, Options},
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub use crate::agent_kit::patiently;
use crate::{
    agent_kit::{Agent, Client, PREFIX, request_id, until_within},
    etcd_kit::Etcd,
};

/// Leases run out and members are elected on the way.
pub const SOON: Duration = Duration::from_secs(90);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Processes that only run, each ready after a while.
pub fn spec(processes: u32, ready_after: &str) -> String {
    format!(
        "[fleet]\nname = \"t\"\n[bots.a]\n\
         command = [\"/bin/sh\", \"-c\", \"echo in $HERE; trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
         env = {{ HERE = \"{{data_dir}}\" }}\n\
         shards = {processes}\nworker = true\nwatchdog = \"1h\"\ntoken_file = \"TOKEN\"\n\
         ready = {{ kind = \"started\", after = \"{ready_after}\", timeout = \"60s\" }}\n\
         stop = {{ signal = \"TERM\", grace = \"5s\" }}\n"
    )
}

/// A fleet of hosts on one etcd.
pub struct Fleet {
    /// First, so that they end first: one that lives writes into its directory again.
    pub hosts: BTreeMap<&'static str, Agent>,
    pub etcd: Etcd,
    pub authority: Authority,
    pub dir: tempfile::TempDir,
}

impl Fleet {
    /// All hosts are present.
    pub async fn new(names: &[&'static str]) -> Self {
        let mut fleet = Self::prepared(names);
        fleet.begin().await;
        fleet
    }

    /// Everything is there, but no agent runs yet.
    pub fn prepared(names: &[&'static str]) -> Self {
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
            let identity = dir.join("identity");
            let args = [
                ["--host", name],
                ["--identity", &identity.to_string_lossy()],
                // Nothing is moved away while an agent is off, as long as a test may take.
                ["--host-lease-seconds", "300"],
            ];
            let data = dir.join("d");
            let endpoints = fleet.etcd.urls().join(",");
            let host = Agent::member(dir, data, &endpoints, &args.concat());
            fleet.hosts.insert(name, host);
        }
        fleet
    }

    /// Starts all agents, and waits until each holds its lease and the one that decides knows of it.
    pub async fn begin(&mut self) {
        for host in self.hosts.values_mut() {
            host.start();
        }
        let names: Vec<&str> = self.hosts.keys().copied().collect();
        self.present(&names).await;
        let (_, mut client) = self.decides().await;
        until_within(SOON, &mut client, "all hosts here", |status| {
            let held = status.hosts.iter().filter(|host| host.lease == "held");
            held.count() == names.len()
        })
        .await;
    }

    pub fn host(&mut self, name: &str) -> &mut Agent {
        self.hosts.get_mut(name).expect("a host")
    }

    pub fn store(&self) -> EtcdStore {
        let options = Options {
            endpoints: self.etcd.urls(),
            prefix: PREFIX.to_owned(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(5),
        };
        EtcdStore::open(options).expect("opens")
    }

    /// What the store says, however long it takes on a loaded machine.
    pub async fn read<T>(&self, ask: impl AsyncFn(&EtcdStore) -> Result<T, StoreError>) -> T {
        let store = self.store();
        let end = Instant::now() + SOON;
        loop {
            match ask(&store).await {
                Ok(said) => return said,
                Err(error) => assert!(Instant::now() < end, "the store does not answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until exactly these hosts hold their leases.
    pub async fn present(&self, names: &[&str]) {
        let end = Instant::now() + SOON;
        loop {
            let found = self.read(async |store| store.list("present/").await).await;
            let found = found.items;
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
    pub async fn decides(&self) -> (&'static str, Client) {
        let end = Instant::now() + SOON;
        loop {
            let leader = self
                .read(async |store| store.get("coordinator").await)
                .await;
            let leader = leader.map(|item| String::from_utf8_lossy(&item.value).into_owned());
            let host = self
                .hosts
                .iter()
                .find(|(name, _)| Some(**name) == leader.as_deref());
            if let Some((name, host)) = host
                && host.child.is_some()
            {
                let mut client = host.client().await;
                let reply = client.plan(wire::PlanRequest::default()).await;
                let problem = Problem::from_status(&reply.expect_err("nothing is asked"));
                if problem.code != "not-coordinator" {
                    return (*name, client);
                }
            }
            assert!(Instant::now() < end, "nobody decides");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn spec(&self, processes: u32, ready_after: &str) -> String {
        let token = self.dir.path().join("token");
        spec(processes, ready_after).replace("TOKEN", &token.display().to_string())
    }

    pub async fn apply(&self, toml: &str) {
        let request = wire::ApplyRequest {
            spec_toml: toml.to_owned(),
            file_name: "fleet.toml".to_owned(),
            request_id: request_id(),
            ..wire::ApplyRequest::default()
        };
        let op = patiently(async || {
            let (_, mut client) = self.decides().await;
            client.apply(request.clone()).await
        });
        let op = op.await.expect("accepted");
        self.succeeds(&op.id).await;
    }

    /// Waits until each host has so many ready processes; what each has then.
    pub async fn ready(
        &self,
        wish: impl Fn(&BTreeMap<&str, Vec<wire::Process>>) -> bool,
    ) -> Processes {
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
    pub async fn processes(&self) -> Processes {
        let mut all = BTreeMap::new();
        for (name, host) in &self.hosts {
            if host.child.is_none() {
                continue;
            }
            let mut client = host.client().await;
            let status = client.get_status(wire::StatusRequest::default()).await;
            let mut processes = status.expect("answers").into_inner().processes;
            processes.retain(|process| process.host == *name);
            all.insert(*name, processes);
        }
        all
    }

    /// Waits for the end of an operation, whoever carries it forward. One that waits for a host which is off
    /// gives up after a minute, and begins to count anew with a new term.
    pub async fn ends(&self, id: &str) -> wire::Operation {
        let end = Instant::now() + 2 * SOON;
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

    pub async fn succeeds(&self, id: &str) -> wire::Operation {
        let op = self.ends(id).await;
        assert_eq!(op.state, "succeeded", "{op:#?}");
        op
    }

    pub async fn does(&self, kind: &str, targets: &[&str]) -> wire::Operation {
        let op = self.submit(kind, targets).await.expect("accepted");
        self.succeeds(&op.id).await
    }

    /// Asks until somebody decides; a refusal that will not go away is given back.
    pub async fn submit(&self, kind: &str, targets: &[&str]) -> Result<wire::Operation, Problem> {
        let request = wire::OperationRequest {
            kind: kind.to_owned(),
            targets: targets.iter().map(|text| (*text).to_owned()).collect(),
            request_id: request_id(),
            ..wire::OperationRequest::default()
        };
        let ask = async || {
            let (_, mut client) = self.decides().await;
            client.submit(request.clone()).await
        };
        patiently(ask).await
    }

    /// As the agent of `name` would speak to the one of `to`.
    pub async fn peer(&self, name: &str, to: &str) -> HostClient<Channel> {
        HostClient::new(self.channel(&self.identity(name), to).await)
    }

    /// As a user with that role would speak to the agent of `to`.
    pub async fn user(&self, name: &str, role: Role, to: &str) -> Client {
        let subject = Subject::user(name, role);
        let identity = self.authority.identity(&subject, DAY).expect("made");
        FleetClient::new(self.channel(&identity, to).await)
    }

    pub async fn channel(&self, identity: &Identity, to: &str) -> Channel {
        let address = self.hosts[to].listens();
        let config = tls::client(identity, Some(to)).expect("configured");
        let connector = service_fn(move |_| {
            let config = config.clone();
            async move {
                let stream = tls::connect(address, config, SOON).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://agent.tanako")
            .connect_with_connector(connector)
            .await
            .expect("connects")
    }

    pub fn identity(&self, name: &str) -> Identity {
        let ip = "127.0.0.1".parse().expect("an address");
        self.authority
            .identity(&Subject::agent(name, [ip]), DAY)
            .expect("made")
    }
}

pub type Processes = BTreeMap<&'static str, Vec<wire::Process>>;

pub fn counts(all: &BTreeMap<&str, Vec<wire::Process>>) -> Vec<usize> {
    all.values()
        .map(|processes| processes.iter().filter(|process| process.ready).count())
        .collect()
}

/// How many hosts show it: one that is moved is shown by both for a moment.
pub fn rows(all: &BTreeMap<&str, Vec<wire::Process>>, name: &str) -> usize {
    let processes = all.values().flatten();
    processes.filter(|process| process.name == name).count()
}

pub fn named<'a>(all: &'a Processes, name: &str) -> (&'static str, &'a wire::Process) {
    let found: Vec<_> = all
        .iter()
        .flat_map(|(host, processes)| processes.iter().map(move |process| (*host, process)))
        .filter(|(_, process)| process.name == name)
        .collect();
    assert_eq!(found.len(), 1, "{name} in {all:#?}");
    found[0]
}
