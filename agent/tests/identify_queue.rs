//! The identify queue as foreign bots meet it: real HTTP, and a foreign process started by the real
//! supervisor (this test's own binary plays it).

mod spec_kit;

use std::{
    collections::BTreeMap, fmt::Write as _, net::SocketAddr, path::PathBuf, sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tanako_agent::{
    history::{self, History},
    http::{self, Addresses, Queue, Sources},
    hub::Figures,
    identify::{self, BotConfig, Broker},
    metrics::Latency,
    supervisor::{self, Desired, ProcessStatus, Supervisor, Table},
    vault::VaultStatus,
};
use tanako_fleet::{
    ProcessName, ProcessSpec,
    process::{Probe, Readiness, RestartPolicy, RestartWhen},
};
use tanako_store::embedded::EmbeddedStore;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(60);
const SHARDS: u32 = 4;

fn name(text: &str) -> ProcessName {
    text.parse().expect("a name")
}

/// What a bot with twilight's HTTP queue does: asks, and takes whatever is answered.
async fn ask(address: &str, query: &str) -> (StatusCode, Value) {
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let address = format!("{address}{query}").parse().expect("an address");
    let answer = timeout(SOON, client.get(address))
        .await
        .expect("in time")
        .expect("an answer");
    let code = answer.status();
    let body = answer.into_body().collect().await.expect("a body");
    let body = serde_json::from_slice(&body.to_bytes()).expect("JSON");
    (code, body)
}

/// The server of an address, and the path there.
fn parts(address: &str) -> (&str, &str) {
    let rest = address.strip_prefix("http://");
    rest.and_then(|rest| rest.split_once('/'))
        .expect("an address")
}

/// Asks, and leaves the answer to be read.
async fn ask_for_shard_0(address: &str) -> TcpStream {
    let (server, path) = parts(address);
    let mut stream = TcpStream::connect(server).await.expect("connects");
    let head = format!("GET /{path}?shard=0 HTTP/1.1\r\nHost: here\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Arc<EmbeddedStore>,
    broker: Broker,
    supervisor: Supervisor,
    addresses: Addresses,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let history = History::start(
            history::Config {
                directory: dir.path().join("history"),
                host: "here".to_owned(),
            },
            cancel.clone(),
            &tracker,
        );
        let store = spec_kit::store(&dir.path().join("store"));
        let config = identify::Config {
            store: store.clone(),
            identity: dir.path().display().to_string(),
        };
        let broker = Broker::start(config, history, cancel.clone(), &tracker).await;
        broker
            .configure(vec![BotConfig {
                bot: "legacy".to_owned(),
                max_concurrency: Some(2),
                reserve: Some(990),
            }])
            .await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = http::bind(any).await.expect("binds");
        let key = dir.path().join("queue.key");
        let addresses = Addresses::open(bound.address, &key).expect("a key");
        broker.set_queue(addresses.clone());
        let supervisor = Supervisor::start(
            supervisor::Config {
                data_dir: dir.path().to_owned(),
                run_dir: dir.path().to_owned(),
                host: "here".to_owned(),
                base_env: BTreeMap::new(),
                search_path: Vec::<PathBuf>::new(),
                cgroup: None,
            },
            Arc::new(broker.clone()),
            cancel.clone(),
            &tracker,
        )
        .expect("supervisor");
        let queue = Queue::new(addresses.clone(), broker.clone(), supervisor.status());
        let sources = sources(&broker, supervisor.status());
        http::serve(bound, sources, Some(queue), cancel.clone(), &tracker);
        Self {
            dir,
            store,
            broker,
            supervisor,
            addresses,
            cancel,
            tracker,
        }
    }

    /// A process of the bot that sleeps, and the address that it was given.
    async fn run(&self, process: &str, shards: Vec<u32>) -> String {
        let spec = ProcessSpec {
            command: ["sleep", "1000"].map(str::to_owned).to_vec(),
            ..foreign(process, shards)
        };
        self.supervisor
            .define(spec, Desired::Running)
            .await
            .expect("defined");
        let status = self.until(process, |status| status.ready).await;
        self.addresses.of(&status.name, status.attempt)
    }

    async fn until(
        &self,
        process: &str,
        is: impl Fn(&ProcessStatus) -> bool,
    ) -> Arc<ProcessStatus> {
        let name = name(process);
        let mut table = self.supervisor.status();
        let reached = table.wait_for(|table| table.get(&name).is_some_and(|p| is(p)));
        let table = timeout(SOON, reached)
            .await
            .expect("in time")
            .expect("kept");
        Arc::clone(&table[&name])
    }

    async fn until_waiting(&self, waiting: u32) {
        let mut status = self.broker.status();
        let reached = status.wait_for(|s| s.bots.first().is_some_and(|bot| bot.waiting == waiting));
        timeout(SOON, reached)
            .await
            .expect("in time")
            .expect("kept");
    }

    async fn stop(self) {
        let names: Vec<ProcessName> = self.supervisor.status().borrow().keys().cloned().collect();
        for name in names {
            self.supervisor.stop(&name).await.expect("stops");
            self.until(name.as_str(), |status| status.pid.is_none())
                .await;
        }
        self.supervisor.detach().await.expect("leaves");
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait()).await.expect("all end");
        self.store.close();
    }
}

fn sources(broker: &Broker, table: watch::Receiver<Arc<Table>>) -> Sources {
    Sources {
        sample: watch::channel(Arc::default()).1,
        workers: watch::channel(Arc::default()).1,
        table,
        identify: broker.status(),
        identify_wait: Arc::new(Latency::new()),
        worker_message: Arc::new(Latency::new()),
        operations: None,
        health: Arc::new(|| Ok(())),
        shards: watch::channel(Arc::default()).1,
        vault: Arc::new(VaultStatus::default),
        registry: tanako_agent::registry::Registry::alone(tanako_agent::registry::Own::default()),
        tenure: tanako_agent::tenure::Tenure::unbounded(),
        hub: watch::channel(Figures::default()).1,
        version: "0.0.1",
    }
}

fn foreign(process: &str, shards: Vec<u32>) -> ProcessSpec {
    let base = spec_kit::worker(process, shards, SHARDS, SOON);
    ProcessSpec {
        identify_queue: true,
        ready: Readiness {
            probe: Probe::Started {
                after: Duration::ZERO,
            },
            timeout: SOON,
        },
        restart: RestartPolicy {
            when: RestartWhen::Never,
            ..base.restart.clone()
        },
        ..base
    }
}

/// Does nothing in a test run. As a child it asks for each of its shards, writes down what it was
/// told, and ends.
#[tokio::test]
async fn play_the_foreign_bot() {
    let (Ok(address), Ok(said)) = (
        std::env::var("TANAKO_IDENTIFY_QUEUE"),
        std::env::var("SAID"),
    ) else {
        return;
    };
    let mut told = String::new();
    for shard in 0..2 {
        let (code, body) = ask(&address, &format!("?shard={shard}")).await;
        let _ = writeln!(told, "{} {}", code.as_u16(), body["shard"]);
    }
    std::fs::write(said, told).expect("writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_process_asks_where_its_environment_says() {
    let fixture = Fixture::new().await;
    let said = fixture.dir.path().join("said");
    let me = std::env::current_exe().expect("this binary");
    let spec = ProcessSpec {
        command: vec![
            me.display().to_string(),
            "--exact".to_owned(),
            "play_the_foreign_bot".to_owned(),
        ],
        env: BTreeMap::from([("SAID".to_owned(), said.display().to_string())]),
        ..foreign("legacy/0", vec![0, 1])
    };
    fixture
        .supervisor
        .define(spec, Desired::Running)
        .await
        .expect("defined");
    fixture
        .until("legacy/0", |status| {
            status.pid.is_none() && !status.last_exit.is_empty()
        })
        .await;
    let told = std::fs::read_to_string(&said).expect("it wrote");
    assert_eq!(told, "200 0\n200 1\n");
    let mut status = fixture.broker.status();
    let used = status.wait_for(|status| status.used == 2);
    timeout(SOON, used).await.expect("in time").expect("kept");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_wrongly_is_told_so_and_who_hangs_up_gives_up_the_place() {
    let fixture = Fixture::new().await;
    let one = fixture.run("legacy/0", vec![0, 1]).await;
    let two = fixture.run("legacy/1", vec![2]).await;

    let (code, body) = ask(&one, "?shard=2").await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "{body}");
    let (code, body) = ask(&one, "").await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "{body}");
    assert!(body["message"].to_string().contains("[0, 1]"), "{body}");
    let (code, _) = ask(&one, "?shard=x").await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    let (code, _) = ask(&one.replace("legacy/0", "legacy/1"), "?shard=2").await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    let old = fixture.addresses.of(&name("legacy/0"), 9);
    let (code, body) = ask(&old, "?shard=0").await;
    assert_eq!(code, StatusCode::GONE, "{body}");
    let gone = fixture.addresses.of(&name("legacy/7"), 1);
    assert_eq!(ask(&gone, "?shard=0").await.0, StatusCode::GONE);

    // One shard needs no name. Its bucket is then taken, and the next of it waits.
    let mut missed = 0;
    let stream = loop {
        let (code, body) = ask(&two, "").await;
        assert_eq!((code, &body["shard"]), (StatusCode::OK, &Value::from(2)));
        fixture.until_waiting(0).await;
        let mut stream = ask_for_shard_0(&one).await;
        let mut answer = [0];
        tokio::select! {
            biased;
            () = fixture.until_waiting(1) => break stream,
            // On a busy machine the bucket may be free again before it asks.
            _ = stream.read(&mut answer) => missed += 1,
        }
        assert!(missed < 4, "it never waits");
    };
    drop(stream);
    fixture.until_waiting(0).await;
    // The pages are served all the while.
    let mut pages = TcpStream::connect(parts(&one).0).await.expect("connects");
    pages
        .write_all(b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        .await
        .expect("writes");
    let mut text = String::new();
    timeout(SOON, pages.read_to_string(&mut text))
        .await
        .expect("in time")
        .expect("reads");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_given_where_there_is_no_permit() {
    let fixture = Fixture::new().await;
    let one = fixture.run("legacy/0", vec![0, 1]).await;
    // Discord says that nothing is left.
    fixture
        .broker
        .limits(
            "legacy",
            tanako_proto::worker::v1::GatewayLimits {
                recommended_shards: 4,
                total: 1000,
                remaining: 0,
                reset_after_ms: 3_600_000,
                max_concurrency: 2,
            },
        )
        .await;
    let mut stream = ask_for_shard_0(&one).await;
    let asking = tokio::spawn(async move {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    });
    let mut status = fixture.broker.status();
    let spent = status.wait_for(|s| s.bots.first().is_some_and(|b| b.mode == "exhausted"));
    timeout(SOON, spent).await.expect("in time").expect("kept");
    assert!(!asking.is_finished());
    // Neither when the agent ends: an answer of any kind would be taken for leave.
    fixture.stop().await;
    let said = timeout(SOON, asking).await.expect("in time").expect("ends");
    assert!(said.as_ref().map_or(true, String::is_empty), "{said:?}");
}
