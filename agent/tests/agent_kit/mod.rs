//! A real agent on a directory of its own, for tests that drive it over its socket.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tanako_proto::fleet::v1::{self as wire, Problem, fleet_client::FleetClient};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

pub const SOON: Duration = Duration::from_secs(60);
/// Members of etcd may have to be elected first.
const OF_ETCD: Duration = Duration::from_secs(90);
/// What the keys of these fleets in etcd begin with.
pub const PREFIX: &str = "tanako/t/";
/// Life of the office's lease on etcd, in seconds. A call of etcd may take a third of that.
const OFFICE_LEASE: u32 = 10;
/// Of refusals that say to try again: those that a start may end with, and systemd would start it again.
const PASSING: [&str; 3] = [
    "the change could not be written down",
    "the fleet's state cannot be read",
    "nothing is decided here at the moment",
];

pub type Client = FleetClient<Channel>;

/// An agent on a directory of its own. Dropping it kills the agent and everything it started.
pub struct Agent {
    pub dir: PathBuf,
    pub child: Option<Child>,
    /// Where etcd is; empty = the store is its own.
    pub endpoints: String,
    /// Life of the office's lease on etcd, in seconds.
    pub office_lease: u32,
    /// The directory, where it goes with the agent.
    _own: Option<tempfile::TempDir>,
    data: PathBuf,
    /// What this one is started with besides.
    pub args: Vec<String>,
    /// How long it may take to come up.
    patience: Duration,
}

pub fn spec(bots: &str) -> String {
    format!("[fleet]\nname = \"t\"\n{bots}")
}

/// A bot that needs no IDENTIFY and writes a line now and then. It never speaks to the agent, so that the usual
/// watchdog of a worker would kill it half a minute later: on a busy machine in the middle of a test.
pub fn bot(name: &str, shards: u32, extra: &str) -> String {
    format!(
        "[bots.{name}]\ncommand = [\"/bin/sh\", \"-c\", \"echo begin $TANAKO_PROCESS; trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
         shards = {shards}\nworker = true\nwatchdog = \"1h\"\ntoken_file = \"TOKEN\"\n\
         ready = {{ kind = \"started\", after = \"100ms\", timeout = \"20s\" }}\n\
         stop = {{ signal = \"TERM\", grace = \"5s\" }}\n{extra}\n"
    )
}

impl Agent {
    pub fn new(toml: &str) -> Self {
        let mut agent = Self::prepared(toml);
        agent.start();
        agent
    }

    /// Everything is there, but it does not run yet.
    pub fn prepared(toml: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ta")
            .tempdir()
            .expect("a directory");
        let token = dir.path().join("token");
        fs::write(&token, "secret").expect("writes");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("sets");
        let toml = toml.replace("TOKEN", &token.display().to_string());
        let spec = dir.path().join("fleet.toml");
        fs::write(&spec, toml).expect("writes");
        let args = ["--host", "here", "--spec", &spec.to_string_lossy()];
        Self {
            dir: dir.path().to_owned(),
            child: None,
            endpoints: String::new(),
            office_lease: OFFICE_LEASE,
            data: dir.path().join("d"),
            _own: Some(dir),
            args: args.map(str::to_owned).to_vec(),
            patience: SOON,
        }
    }

    /// One of several hosts of a fleet on etcd. Its lease as a host lives so many seconds.
    pub fn on_etcd(endpoints: &str, host: &str, toml: &str, host_lease: u32) -> Self {
        let mut agent = Self::prepared_on_etcd(endpoints, host, toml, host_lease);
        agent.start();
        agent
    }

    /// The same, but it does not run yet.
    pub fn prepared_on_etcd(endpoints: &str, host: &str, toml: &str, host_lease: u32) -> Self {
        let mut agent = Self::prepared(toml);
        let spec = agent.path("fleet.toml");
        let args = [
            ["--host", host],
            ["--spec", &spec.to_string_lossy()],
            ["--host-lease-seconds", &host_lease.to_string()],
        ];
        agent.args = args.concat().into_iter().map(str::to_owned).collect();
        endpoints.clone_into(&mut agent.endpoints);
        agent.patience = OF_ETCD;
        agent
    }

    /// One of several hosts that speak to each other, in a directory that is there. It does not run yet.
    pub fn member(dir: PathBuf, data: PathBuf, endpoints: &str, args: &[&str]) -> Self {
        Self {
            dir,
            child: None,
            endpoints: endpoints.to_owned(),
            office_lease: OFFICE_LEASE,
            _own: None,
            data,
            args: ["--listen", "127.0.0.1:0"]
                .iter()
                .chain(args)
                .map(|arg| (*arg).to_owned())
                .collect(),
            patience: OF_ETCD,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tanako-agent"));
        command
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--http", "127.0.0.1:0", "--info-file"])
            .arg(self.path("info.json"))
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if !self.endpoints.is_empty() {
            command
                .args(["--store", "etcd", "--etcd-prefix", PREFIX])
                .args(["--etcd-endpoints", &self.endpoints])
                .args(["--etcd-lease-seconds", &self.office_lease.to_string()]);
        }
        command
    }

    pub fn start(&mut self) {
        self.spawn();
        let until = Instant::now() + self.patience;
        while !self.path("info.json").exists() {
            if !self.lives() {
                // An etcd that does not answer in time ends it.
                let log = self.log();
                let mut lines = log.lines().rev();
                let said = lines.find(|line| line.starts_with("tanako-agent: "));
                let passing = !self.endpoints.is_empty()
                    && said.is_some_and(|said| PASSING.iter().any(|part| said.contains(part)));
                assert!(passing, "the agent ended: {log}");
                self.spawn();
            }
            assert!(
                Instant::now() < until,
                "the agent did not come up: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn spawn(&mut self) {
        let _ = fs::remove_file(self.path("info.json"));
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .expect("opens");
        self.child = Some(self.command().stderr(log).spawn().expect("starts"));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("started").id()
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }

    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("started");
        signal(child.id(), "TERM");
        child.wait().expect("ends").code()
    }

    /// Whether it runs.
    pub fn lives(&mut self) -> bool {
        let child = self.child.as_mut().expect("started");
        child.try_wait().expect("asks").is_none()
    }

    pub fn socket(&self) -> PathBuf {
        self.data.join("run/agent.sock")
    }

    /// Where it listens for others.
    pub fn listens(&self) -> SocketAddr {
        let text = fs::read_to_string(self.path("info.json")).expect("there");
        let info: serde_json::Value = serde_json::from_str(&text).expect("reads");
        let address = info["listen"].as_str().expect("it listens");
        address.parse().expect("an address")
    }

    pub async fn client(&self) -> Client {
        connect(&self.socket()).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        kill_all_of(&self.dir);
    }
}

/// Kills what an agent on this directory has started: children outlive an agent by design, and a
/// test leaves nothing behind.
pub fn kill_all_of(dir: &Path) {
    let needle = dir.display().to_string().into_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(needle.len()).any(|part| part == needle) && pid != std::process::id()
        {
            signal(pid, "KILL");
        }
    }
}

/// Whether the process runs and is no zombie.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
}

pub async fn connect(socket: &Path) -> Client {
    let socket = socket.to_owned();
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
        .expect("connects");
    FleetClient::new(channel)
}

pub async fn status(client: &mut Client) -> wire::FleetStatus {
    client
        .get_status(wire::StatusRequest {})
        .await
        .expect("answers")
        .into_inner()
}

/// Of a request that may be asked again without being done twice: an answer may be lost.
pub fn request_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Asks until there is an answer that does not say to try again: on a loaded machine the store is slow.
pub async fn patiently<T>(
    mut call: impl AsyncFnMut() -> Result<Response<T>, Status>,
) -> Result<T, Problem> {
    let end = Instant::now() + OF_ETCD;
    loop {
        let problem = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => Problem::from_status(&status),
        };
        if !problem.retryable || Instant::now() > end {
            return Err(problem);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the status is as wished.
pub async fn until(
    client: &mut Client,
    what: &str,
    wish: impl Fn(&wire::FleetStatus) -> bool,
) -> wire::FleetStatus {
    until_within(SOON, client, what, wish).await
}

/// The same with a deadline of one's own.
pub async fn until_within(
    within: Duration,
    client: &mut Client,
    what: &str,
    wish: impl Fn(&wire::FleetStatus) -> bool,
) -> wire::FleetStatus {
    let end = Instant::now() + within;
    loop {
        let now = status(client).await;
        if wish(&now) {
            return now;
        }
        assert!(Instant::now() < end, "not {what} in time: {now:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn ready(status: &wire::FleetStatus, count: usize) -> bool {
    status.healthy
        && status
            .processes
            .iter()
            .filter(|process| process.ready)
            .count()
            == count
}

pub fn pids(status: &wire::FleetStatus) -> Vec<(String, u32)> {
    status
        .processes
        .iter()
        .map(|process| (process.name.clone(), process.pid))
        .collect()
}

pub fn process<'a>(status: &'a wire::FleetStatus, name: &str) -> &'a wire::Process {
    status
        .processes
        .iter()
        .find(|process| process.name == name)
        .expect("there")
}

pub fn request(kind: &str, targets: &[&str]) -> wire::OperationRequest {
    wire::OperationRequest {
        kind: kind.to_owned(),
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        ..wire::OperationRequest::default()
    }
}

pub async fn submit(
    client: &mut Client,
    request: wire::OperationRequest,
) -> Result<wire::Operation, Problem> {
    match client.submit(request).await {
        Ok(op) => Ok(op.into_inner()),
        Err(status) => Err(Problem::from_status(&status)),
    }
}

/// Follows an operation to its end.
pub async fn end(client: &mut Client, id: &str) -> wire::Operation {
    let watch = client
        .watch_operation(wire::OperationId { id: id.to_owned() })
        .await;
    let mut updates = watch.expect("watches").into_inner();
    let mut last = None;
    let run = async {
        while let Ok(Some(op)) = updates.message().await {
            last = Some(op);
        }
    };
    tokio::time::timeout(SOON, run).await.expect("ends in time");
    last.expect("at least one state")
}

pub async fn done(client: &mut Client, kind: &str, targets: &[&str]) -> wire::Operation {
    let op = submit(client, request(kind, targets))
        .await
        .expect("accepted");
    let op = end(client, &op.id).await;
    assert_eq!(op.state, "succeeded", "{op:#?}");
    op
}
