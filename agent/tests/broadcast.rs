//! A question to every shard of a bot over several hosts: real agents on a real etcd, and this test's
//! own binary as the bot.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod fleet_kit;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use agent_kit::{Client, patiently, until_within};
use fleet_kit::{Fleet, SOON, counts};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tanako_proto::{
    fleet::v1::{BroadcastRequest, Problem},
    worker::v1::{
        self as wire, ShardAnswer, agent_message::Message as FromAgent, command::Command,
        worker_client::WorkerClient, worker_message::Message as ToAgent,
    },
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const ALL: [&str; 3] = ["a", "b", "c"];
/// Of one broadcast.
const WITHIN: Duration = Duration::from_secs(60);

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Does nothing in a test run. As a child it is a bot that says where it is, and asks the others.
#[tokio::test]
async fn play_the_bot() {
    let (Some(socket), Some(process), Some(attempt), Some(host)) = (
        var("TANAKO_SOCKET"),
        var("TANAKO_PROCESS"),
        var("TANAKO_ATTEMPT"),
        var("TANAKO_HOST"),
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
        let message = wire::WorkerMessage {
            message: Some(message),
        };
        let to_agent = to_agent.clone();
        async move { to_agent.send(message).await.expect("the stream is open") }
    };
    send(ToAgent::Hello(wire::Hello {
        process: process.clone(),
        attempt,
        pid: std::process::id(),
        kind: wire::WorkerKind::Shard.into(),
        version: "child".to_owned(),
    }))
    .await;
    let attached = client.attach(ReceiverStream::new(messages)).await;
    let mut from_agent = attached.expect("attaches").into_inner();
    let mut shards = Vec::new();
    while let Ok(Some(message)) = from_agent.message().await {
        match message.message {
            Some(FromAgent::Welcome(welcome)) => {
                shards.clone_from(&welcome.shard_ids);
                let reports = welcome.shard_ids.iter().map(|id| wire::ShardReport {
                    shard_id: *id,
                    shard_count: welcome.shard_count,
                    stage: wire::ShardStage::Ready.into(),
                    ..wire::ShardReport::default()
                });
                send(ToAgent::Report(wire::ProcessReport {
                    stage: wire::ProcessStage::Ready.into(),
                    shards: reports.collect(),
                    ..wire::ProcessReport::default()
                }))
                .await;
            }
            Some(FromAgent::Command(command)) => {
                let Some(Command::Ask(ask)) = command.command else {
                    continue;
                };
                let said = {
                    let (host, client) = (host.clone(), client.clone());
                    let process = process.clone();
                    async move {
                        match ask.question.as_str() {
                            "where" => json!(host),
                            _ => everybody(client, process, attempt).await,
                        }
                    }
                };
                let (shards, to_agent) = (shards.clone(), to_agent.clone());
                // Others ask it meanwhile.
                tokio::spawn(async move {
                    let said = said.await;
                    let answers: Vec<Value> = shards
                        .iter()
                        .map(|shard| json!({ "shard_id": shard, "json": said }))
                        .collect();
                    let result = ToAgent::Result(wire::CommandResult {
                        id: command.id,
                        ok: true,
                        json: Value::from(answers).to_string(),
                        ..wire::CommandResult::default()
                    });
                    let message = wire::WorkerMessage {
                        message: Some(result),
                    };
                    to_agent.send(message).await.expect("the stream is open");
                });
            }
            _ => {}
        }
    }
}

/// What all shards of this process's bot say, as it finds out itself.
async fn everybody(mut client: WorkerClient<Channel>, process: String, attempt: u64) -> Value {
    let asked = wire::BroadcastRequest {
        process,
        attempt,
        question: "where".to_owned(),
        json: String::new(),
        timeout_ms: WITHIN.as_millis() as u32,
    };
    match client.broadcast(asked).await {
        Ok(reply) => {
            let answers = reply.into_inner().answers;
            json!(answers.iter().filter(|one| one.code.is_empty()).count())
        }
        Err(status) => json!(status.message()),
    }
}

async fn ask(client: &mut Client, question: &str) -> Vec<ShardAnswer> {
    let asked = BroadcastRequest {
        question: question.to_owned(),
        timeout_ms: WITHIN.as_millis() as u32,
        ..BroadcastRequest::default()
    };
    let reply = patiently(async || client.broadcast(asked.clone()).await).await;
    reply.expect("answers").answers
}

/// Asks until the answers are as wished: those who are asked may not have seen all the others yet.
async fn ask_until(client: &mut Client, question: &str, wish: impl Fn(&[ShardAnswer]) -> bool) {
    let end = Instant::now() + SOON;
    loop {
        let answers = ask(client, question).await;
        if wish(&answers) {
            return;
        }
        assert!(Instant::now() < end, "{answers:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Shard, host, code and answer of each line.
fn lines(answers: &[ShardAnswer]) -> Vec<(u32, &str, &str, &str)> {
    let lines = answers.iter();
    lines
        .map(|one| {
            (
                one.shard_id,
                one.host.as_str(),
                one.code.as_str(),
                one.json.as_str(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shard_of_every_host_answers_any_agent_or_is_named_with_the_reason() {
    let mut fleet = Fleet::new(&ALL).await;
    let token = fleet.dir.path().join("token");
    let me = std::env::current_exe().expect("this binary");
    fleet
        .apply(&format!(
            "[fleet]\nname = \"t\"\n[bots.a]\n\
             command = [{me:?}, \"--exact\", \"play_the_bot\", \"--nocapture\"]\n\
             shards = 6\nworker = true\nwatchdog = \"1h\"\ntoken_file = {token:?}\n\
             ready = {{ kind = \"worker\", timeout = \"90s\" }}\n\
             stop = {{ signal = \"TERM\", grace = \"5s\" }}\n"
        ))
        .await;
    let placed = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let of: BTreeMap<u32, (&str, String)> = placed
        .iter()
        .flat_map(|(host, processes)| processes.iter().map(move |one| (*host, one)))
        .map(|(host, one)| (one.shards[0].id, (host, format!("\"{host}\""))))
        .collect();
    let whole: Vec<(u32, &str, &str, &str)> = of
        .iter()
        .map(|(shard, (host, said))| (*shard, *host, "", said.as_str()))
        .collect();
    for name in ALL {
        let mut client = fleet.hosts[name].client().await;
        until_within(SOON, &mut client, "seen by all", |status| {
            status.processes.iter().filter(|one| one.ready).count() == 6
        })
        .await;
        ask_until(&mut client, "where", |answers| lines(answers) == whole).await;
        // Bots ask over their own agents.
        ask_until(&mut client, "everybody", |answers| {
            answers.len() == 6 && answers.iter().all(|one| one.json == "6")
        })
        .await;

        let nobody = client
            .broadcast(BroadcastRequest {
                bot: "b".to_owned(),
                question: "where".to_owned(),
                ..BroadcastRequest::default()
            })
            .await;
        let problem = Problem::from_status(&nobody.expect_err("there is none"));
        assert_eq!(problem.code, "unknown-target");
        assert_eq!(problem.hint, "bots are a");
    }

    let (leader, _) = fleet.decides().await;
    let others: Vec<&str> = ALL.into_iter().filter(|name| *name != leader).collect();
    let (asked, lost) = (others[0], others[1]);
    fleet.host(lost).kill();
    let torn: Vec<(u32, &str, &str, &str)> = whole
        .iter()
        .map(|line| match line {
            (shard, host, ..) if *host == lost => (*shard, *host, "unreachable", ""),
            line => *line,
        })
        .collect();
    for name in [asked, leader] {
        let mut client = fleet.hosts[name].client().await;
        // At once, and when it is known that it is silent.
        assert_eq!(lines(&ask(&mut client, "where").await), torn, "{name}");
        until_within(SOON, &mut client, "lost", |status| {
            let mut hosts = status.hosts.iter();
            hosts.any(|host| host.name == lost && host.state == "unreachable")
        })
        .await;
        let answers = ask(&mut client, "where").await;
        assert_eq!(lines(&answers), torn, "{name}");
        let why = &answers
            .iter()
            .find(|one| one.host == lost)
            .expect("a line")
            .message;
        assert!(
            why.contains(&format!("host {lost}: not heard of since")),
            "{why}"
        );
    }

    // What the hosts said last is enough while the store is away.
    fleet.etcd.members[0].kill();
    for name in [asked, leader] {
        let mut client = fleet.hosts[name].client().await;
        assert_eq!(lines(&ask(&mut client, "where").await), torn, "{name}");
    }
}
