//! A worker that is a process of its own, started by the real supervisor: this test's own binary
//! plays it. Its peer credentials, attempts and exits are therefore real.

mod spec_kit;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tanako_agent::{
    history::{self, History},
    identify::{self, BotConfig, Broker},
    supervisor::{self, Desired, ProcessStatus, State, Supervisor},
    tenure::Tenure,
    vault::Vault,
    worker::{Config, Workers, duties::Duties},
};
use tanako_fleet::{
    ProcessName, ProcessSpec,
    process::{RestartPolicy, RestartWhen},
};
use tanako_proto::worker::v1::{
    self as wire, agent_message::Message as FromAgent, worker_client::WorkerClient,
    worker_message::Message as ToAgent,
};
use tokio::{net::UnixStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Endpoint;

const SOON: Duration = Duration::from_secs(60);

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Does nothing in a test run. As a child it says Hello, resumes or asks for a permit, deposits a
/// session, reports that it is ready, and then waits to be stopped.
#[tokio::test]
async fn play_the_worker() {
    let (Some(socket), Some(process), Some(attempt)) = (
        var("TANAKO_SOCKET"),
        var("TANAKO_PROCESS"),
        var("TANAKO_ATTEMPT"),
    ) else {
        return;
    };
    let attempt: u64 = attempt.parse().expect("a number");
    let channel = Endpoint::from_static("http://worker")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .expect("connects");
    let mut client = WorkerClient::new(channel);
    let (to_agent, messages) = mpsc::channel(16);
    let send = |message| {
        let to_agent = to_agent.clone();
        async move {
            let message = wire::WorkerMessage {
                message: Some(message),
            };
            to_agent.send(message).await.expect("the stream is open");
        }
    };
    send(ToAgent::Hello(wire::Hello {
        process: process.clone(),
        attempt,
        pid: std::process::id(),
        kind: wire::WorkerKind::Shard.into(),
        version: "child".to_owned(),
    }))
    .await;
    let mut from_agent = client
        .attach(ReceiverStream::new(messages))
        .await
        .expect("attaches")
        .into_inner();
    let welcome = match from_agent.message().await.expect("a message") {
        Some(wire::AgentMessage {
            message: Some(FromAgent::Welcome(welcome)),
        }) => welcome,
        other => panic!("{other:?}"),
    };
    let resumed = welcome.sessions.first().map(|session| session.seq);
    if resumed.is_none() {
        let request = wire::IdentifyRequest {
            process,
            attempt,
            shard_id: 0,
            shard_count: 1,
            ..wire::IdentifyRequest::default()
        };
        client.acquire_identify(request).await.expect("a permit");
    }
    let seq = resumed.unwrap_or(100) + 1;
    send(ToAgent::Deposit(wire::SessionDeposit {
        shard_id: 0,
        shard_count: 1,
        session_id: "session".to_owned(),
        seq,
        token_sha256: vec![1; 32].into(),
        ack: 5,
        ..wire::SessionDeposit::default()
    }))
    .await;
    let acked = from_agent.message().await.expect("a message");
    assert!(matches!(
        acked.and_then(|m| m.message),
        Some(FromAgent::DepositAck(wire::DepositAck { ack: 5 }))
    ));
    send(ToAgent::Report(wire::ProcessReport {
        stage: wire::ProcessStage::Ready.into(),
        shards: vec![wire::ShardReport {
            shard_id: 0,
            shard_count: 1,
            stage: wire::ShardStage::Ready.into(),
            seq,
            identifies: u64::from(resumed.is_none()),
            resumes: u64::from(resumed.is_some()),
            ..wire::ShardReport::default()
        }],
        ..wire::ProcessReport::default()
    }))
    .await;
    // Ends when the agent goes, or by the supervisor's signal.
    while let Ok(Some(_)) = from_agent.message().await {}
}

fn spec(name: &ProcessName) -> ProcessSpec {
    let me = std::env::current_exe().expect("this binary");
    let base = spec_kit::worker(name.as_str(), vec![0], 1, SOON);
    ProcessSpec {
        command: vec![
            me.display().to_string(),
            "--exact".to_owned(),
            "play_the_worker".to_owned(),
            "--nocapture".to_owned(),
        ],
        restart: RestartPolicy {
            when: RestartWhen::Never,
            ..base.restart.clone()
        },
        ..base
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_worker_resumes_and_spends_no_identify() {
    let dir = tempfile::tempdir().expect("a directory");
    let cancel = CancellationToken::new();
    let tracker = TaskTracker::new();
    let socket = dir.path().join("worker.sock");
    let supervisor = Supervisor::start(
        supervisor::Config {
            data_dir: dir.path().to_owned(),
            run_dir: dir.path().to_owned(),
            host: "here".to_owned(),
            base_env: BTreeMap::from([("TANAKO_SOCKET".to_owned(), socket.display().to_string())]),
            search_path: Vec::new(),
            cgroup: None,
        },
        Arc::new(supervisor::Ungated),
        cancel.clone(),
        &tracker,
    )
    .expect("supervisor");
    let history = History::start(
        history::Config {
            directory: dir.path().join("history"),
            host: "here".to_owned(),
        },
        cancel.clone(),
        &tracker,
    );
    let place = |name: &str| dir.path().join(name);
    let config = identify::Config {
        store: spec_kit::store(&place("store")),
        identity: dir.path().display().to_string(),
    };
    let broker = Broker::start(config, history.clone(), cancel.clone(), &tracker).await;
    broker
        .configure(vec![BotConfig {
            bot: "tanako".to_owned(),
            max_concurrency: Some(1),
            reserve: None,
        }])
        .await;
    let vault = Vault::start(place("vault"), history.clone(), cancel.clone(), &tracker)
        .await
        .expect("vault");
    let workers = Workers::start(
        Config {
            socket,
            group: false,
            report_interval: Duration::from_secs(1),
            duties: Duties::default(),
            tenure: Tenure::unbounded(),
        },
        Arc::new(supervisor.clone()),
        broker.clone(),
        vault.clone(),
        cancel.clone(),
        &tracker,
    )
    .await
    .expect("workers");

    let name: ProcessName = "tanako/0".parse().expect("a good name");
    let mut table = supervisor.status();
    let mut reach = async |is: &dyn Fn(&ProcessStatus) -> bool| {
        let reached = timeout(
            SOON,
            table.wait_for(|table| table.get(&name).is_some_and(|p| is(p))),
        )
        .await;
        match reached {
            Ok(Ok(table)) => Arc::clone(&table[&name]),
            Ok(Err(error)) => panic!("{error}"),
            Err(late) => panic!("{late}; {:?}", supervisor.status().borrow().get(&name)),
        }
    };
    supervisor
        .define(spec(&name), Desired::Running)
        .await
        .expect("defined");
    let first = reach(&|p| p.ready).await;
    let second_spec = spec(&name);
    assert_eq!(vault.sessions_for(&second_spec, None)[0].seq, 101);

    supervisor
        .restart(&name, first.attempt)
        .await
        .expect("restarts");
    let second = reach(&|p| p.ready && p.attempt > first.attempt).await;
    assert_ne!(first.pid, second.pid);
    assert_eq!(
        vault.sessions_for(&second_spec, None)[0].seq,
        102,
        "it went on from 101"
    );
    let mut states = workers.states();
    let state = timeout(
        SOON,
        states.wait_for(|s| {
            s.get(&name)
                .is_some_and(|s| s.attempt == second.attempt && !s.shards.is_empty())
        }),
    )
    .await
    .expect("in time")
    .expect("published")[&name]
        .clone();
    let shard = &state.shards[&0].report;
    assert_eq!((shard.resumes, shard.identifies), (1, 0));
    let mut identify = broker.status();
    timeout(SOON, identify.wait_for(|s| s.used == 1))
        .await
        .expect("in time")
        .expect("published");

    supervisor.stop(&name).await.expect("stops");
    reach(&|p| p.state == State::Stopped).await;
    timeout(
        SOON,
        states.wait_for(|s| s.get(&name).is_some_and(|s| !s.attached)),
    )
    .await
    .expect("in time")
    .expect("published");
    supervisor.detach().await.expect("leaves");
    cancel.cancel();
    tracker.close();
    timeout(SOON, tracker.wait()).await.expect("all tasks end");
}
