//! Hubs of several hosts that follow each other over real gRPC, on connections within this process.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use hyper_util::rt::TokioIo;
use tanako_agent::{
    clock::now_ms,
    hosts::Dial,
    hub::{
        Hub,
        board::Board,
        core::{Core, Known},
        feed,
        report::Report,
    },
    service::watch,
};
use tanako_proto::{
    fleet::v1::{self as fleet, fleet_update::Update},
    host::v1::{self as host, FleetPart, host_server},
};
use tokio::{io::DuplexStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService},
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

const SOON: Duration = Duration::from_secs(90);

/// What a host has, as the test says.
#[derive(Clone, Default)]
struct Truth {
    processes: BTreeMap<String, fleet::Process>,
    reasons: Vec<String>,
    part: Option<FleetPart>,
}

/// Who can be reached, and the ends of new connections.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<BTreeMap<String, mpsc::Sender<std::io::Result<DuplexStream>>>>>);

impl Dial for Wires {
    fn channel<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        let (wires, host) = (self.clone(), host.to_owned());
        async move {
            let connector = tower::service_fn(move |_| {
                let wire = wires.0.lock().expect("whole").get(&host).cloned();
                async move {
                    let wire = wire.ok_or_else(|| std::io::Error::other("nobody listens"))?;
                    let (near, far) = tokio::io::duplex(1 << 16);
                    let sent = wire.send(Ok(far)).await;
                    sent.map_err(|_| std::io::Error::other("nobody listens any more"))?;
                    Ok::<_, std::io::Error>(TokioIo::new(near))
                }
            });
            Endpoint::from_static("http://agent.tanako")
                .connect_with_connector(connector)
                .await
                .map_err(|error| error.to_string())
        }
        .boxed()
    }
}

/// An agent, as far as hubs go.
struct Agent {
    name: String,
    truth: Arc<Mutex<Truth>>,
    board: Arc<Board>,
    hub: Hub,
    cut: CancellationToken,
}

struct World {
    agents: BTreeMap<String, Agent>,
    wires: Wires,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl World {
    fn new(names: &[&str]) -> Self {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let known: BTreeMap<String, Known> = names
            .iter()
            .map(|name| ((*name).to_owned(), Known::default()))
            .collect();
        let mut world = Self {
            agents: BTreeMap::new(),
            wires: Wires::default(),
            tracker,
            cancel,
        };
        for name in names {
            let truth: Arc<Mutex<Truth>> = Arc::default();
            let board = Arc::new(board(name, truth.clone()));
            let hub = Hub::start(
                board.clone(),
                Some(Arc::new(world.wires.clone())),
                tokio::sync::watch::channel(Some(Arc::new(known.clone()))).1,
                world.cancel.clone(),
                &world.tracker,
            );
            let agent = Agent {
                name: (*name).to_owned(),
                truth,
                board,
                hub,
                cut: CancellationToken::new(),
            };
            world.agents.insert((*name).to_owned(), agent);
            world.connect(name);
        }
        world
    }

    /// Others can reach this host from now on.
    fn connect(&mut self, name: &str) {
        let agent = self.agents.get_mut(name).expect("a host");
        agent.cut = self.cancel.child_token();
        let (wire, incoming) = mpsc::channel(8);
        let service = Follows {
            board: agent.board.clone(),
            cut: agent.cut.clone(),
        };
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming),
                agent.cut.clone().cancelled_owned(),
            );
        self.tracker.spawn(server);
        let mut wires = self.wires.0.lock().expect("whole");
        wires.insert(name.to_owned(), wire);
    }

    /// Nobody can reach this host any more.
    fn cut(&self, name: &str) {
        self.wires.0.lock().expect("whole").remove(name);
        self.agents[name].cut.cancel();
    }

    fn set(&self, host: &str, change: impl FnOnce(&mut Truth)) {
        change(&mut self.agents[host].truth.lock().expect("whole"));
    }

    /// Waits until each of these hosts' hubs shows the fleet as wished.
    async fn all_show(
        &self,
        names: &[&str],
        what: &str,
        wish: impl Fn(&fleet::FleetStatus) -> bool,
    ) {
        for name in names {
            let agent = &self.agents[*name];
            let looked = timeout(SOON, async {
                loop {
                    let status = agent.hub.look(Core::status).await;
                    let status = status.expect("the hub runs");
                    if wish(&status) {
                        return;
                    }
                    let mut pulse = agent.hub.pulse();
                    pulse.mark_unchanged();
                    // What is new here is found by looking.
                    let _ = timeout(Duration::from_millis(100), pulse.changed()).await;
                }
            });
            if looked.await.is_err() {
                let status = agent.hub.look(Core::status).await;
                panic!("{what}, on {}: {status:#?}", agent.name);
            }
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait())
            .await
            .expect("everything ends");
    }
}

fn board(name: &str, truth: Arc<Mutex<Truth>>) -> Board {
    Board::of(name, move |before| {
        let truth = truth.lock().expect("whole").clone();
        let processes = truth.processes.into_iter().map(|(name, process)| {
            let name: tanako_fleet::ProcessName = name.parse().expect("a good name");
            let known = before.and_then(|before| before.processes.get(&name));
            let process = match known {
                Some(known) if **known == process => known.clone(),
                _ => Arc::new(process),
            };
            (name, process)
        });
        Report {
            revision: before.map_or(1, |before| before.revision + 1),
            at: now_ms(),
            host: fleet::Host::default(),
            processes: processes.collect(),
            reasons: Arc::new(truth.reasons),
            fleet: truth.part.map(Arc::new),
            operations: Vec::new(),
        }
    })
}

fn process(name: &str, pid: u32) -> fleet::Process {
    fleet::Process {
        name: name.to_owned(),
        state: if pid > 0 { "ready" } else { "stopped" }.to_owned(),
        ready: pid > 0,
        pid,
        ..fleet::Process::default()
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `Follow`, and nothing else of the host service.
#[derive(Clone)]
struct Follows {
    board: Arc<Board>,
    cut: CancellationToken,
}

impl NamedService for Follows {
    const NAME: &'static str = host_server::SERVICE_NAME;
}

impl ServerStreamingService<host::FollowRequest> for Follows {
    type Response = host::HostUpdate;
    type ResponseStream = Streaming<host::HostUpdate>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<host::FollowRequest>) -> Self::Future {
        let (updates, receiver) = mpsc::channel(feed::UPDATES_MAX);
        tokio::spawn(feed::feed(
            self.board.clone(),
            request.into_inner(),
            updates,
            self.cut.clone(),
        ));
        async { Ok(Response::new(ReceiverStream::new(receiver).boxed())) }.boxed()
    }
}

impl tower::Service<http::Request<Body>> for Follows {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.server_streaming(service, request).await)
        }
        .boxed()
    }
}

fn where_is(status: &fleet::FleetStatus) -> Vec<(&str, &str, u32)> {
    let mut found: Vec<(&str, &str, u32)> = status
        .processes
        .iter()
        .map(|process| (process.name.as_str(), process.host.as_str(), process.pid))
        .collect();
    found.sort_unstable();
    found
}

fn host_state<'s>(status: &'s fleet::FleetStatus, name: &str) -> &'s str {
    status
        .hosts
        .iter()
        .find(|host| host.name == name)
        .map_or("unknown", |host| host.state.as_str())
}

const ALL: [&str; 3] = ["a", "b", "c"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_agent_shows_the_same_fleet_and_a_lost_host_as_it_was() {
    let mut world = World::new(&ALL);
    for (at, name) in ALL.iter().enumerate() {
        let process = process(&format!("t/{at}"), 100 + at as u32);
        world.set(name, |truth| {
            truth.processes.insert(process.name.clone(), process);
        });
    }
    world.set("b", |truth| {
        truth.reasons = vec!["t/1 is slow".to_owned()];
        truth.part = Some(FleetPart {
            epoch: 7,
            fleet: "shop".to_owned(),
            version: 3,
            ..FleetPart::default()
        });
    });
    let whole = [("t/0", "a", 100), ("t/1", "b", 101), ("t/2", "c", 102)];
    world
        .all_show(&ALL, "three hosts", |status| {
            where_is(status) == whole
                && status.hosts.iter().all(|host| host.state == "ready")
                && (status.fleet.as_str(), status.version) == ("shop", 3)
                && status.reasons == ["host b: t/1 is slow"]
        })
        .await;
    world.cut("b");
    world
        .all_show(&["a", "c"], "b is lost", |status| {
            host_state(status, "b") == "unreachable"
                && where_is(status) == whole
                && (status.fleet.as_str(), status.version) == ("shop", 3)
                && status.reasons[0].starts_with("host b is unreachable: not heard of since")
        })
        .await;
    // Its process runs elsewhere now, and it has learned that when it comes back.
    world.set("c", |truth| {
        truth
            .processes
            .insert("t/1".to_owned(), process("t/1", 201));
    });
    let moved = [("t/0", "a", 100), ("t/1", "c", 201), ("t/2", "c", 102)];
    world
        .all_show(&["a", "c"], "moved", |status| where_is(status) == moved)
        .await;
    world.set("b", |truth| *truth = Truth::default());
    world.connect("b");
    world
        .all_show(&ALL, "b is back", |status| {
            where_is(status) == moved && host_state(status, "b") == "ready" && status.healthy
        })
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_reads_slowly_ends_with_the_latest() {
    let world = World::new(&["a", "b"]);
    for at in 0..200 {
        world.set("b", |truth| {
            let process = process(&format!("t/{at}"), 1);
            truth.processes.insert(process.name.clone(), process);
        });
    }
    world
        .all_show(&["a"], "all there", |status| status.processes.len() == 200)
        .await;
    let (updates, mut read) = mpsc::channel(1);
    let feeding = watch::feed(
        world.agents["a"].hub.clone(),
        Duration::from_millis(100),
        updates,
        world.cancel.clone(),
    );
    world.tracker.spawn(feeding);
    // Nothing is read while everything changes many times.
    for round in 2..20 {
        world.set("b", |truth| {
            for process in truth.processes.values_mut() {
                process.pid = round;
            }
        });
        world
            .all_show(&["a"], "this round", |status| {
                status.processes.iter().all(|process| process.pid == round)
            })
            .await;
    }
    let mut known: BTreeMap<String, u32> = BTreeMap::new();
    let mut taken = 0;
    let reading = async {
        while known.len() < 200 || known.values().any(|pid| *pid != 19) {
            let update: fleet::FleetUpdate = read.recv().await.expect("goes on").expect("good");
            taken += 1;
            let processes = match update.update.expect("says something") {
                Update::Snapshot(status) => status.processes,
                Update::Delta(delta) => delta.processes,
            };
            known.extend(
                processes
                    .into_iter()
                    .map(|process| (process.name, process.pid)),
            );
        }
    };
    timeout(SOON, reading).await.expect("catches up");
    assert!(taken <= 4, "{taken} updates were kept for a slow reader");
    drop(read);
    world.end().await;
}
