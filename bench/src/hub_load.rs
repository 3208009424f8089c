//! A fleet for the benchmark of the hub: simulated agents that serve `Follow` over mutual TLS, each on a
//! listener of its own, and a real hub that follows them all and is watched over a unix socket.
//!
//! `bench-hub-load hosts` prints a line when it listens; `bench-hub-load hub` when it serves;
//! `bench-hub-load probe` watches like a monitor does and prints what it saw.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use futures_util::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use hdrhistogram::Histogram;
use hyper_util::rt::TokioIo;
use tanako_agent::{
    clock::now_ms,
    hosts::Dial,
    hub::{Hub, board::Board, core::Known, feed, report::Report},
    service::watch,
};
use tanako_pki::{Authority, Identity, Subject, tls};
use tanako_proto::{
    fleet::v1::{self as fleet, fleet_client::FleetClient, fleet_server, fleet_update::Update},
    host::v1::{self as host, host_server},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService},
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

/// The agent's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LIFE: Duration = Duration::from_secs(24 * 3600);
const FLEET: &str = "bench";
const MESSAGE_BYTES_MAX: usize = 256 << 20;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The simulated agents.
    Hosts(Load),
    /// The hub.
    Hub(Load),
    /// A watcher.
    Probe(Probe),
}

#[derive(Args)]
struct Load {
    /// Certificates, addresses, the hub's socket.
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Of each host.
    #[arg(long, default_value_t = 50)]
    processes: usize,
}

#[derive(Args)]
struct Probe {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Hosts(load) => serve_hosts(load).await,
        What::Hub(load) => serve_hub(load).await,
        What::Probe(probe) => run_probe(probe).await,
    }
}

fn addresses(dir: &Path) -> PathBuf {
    dir.join("addresses.json")
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("hub.sock")
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

async fn serve_hosts(load: Load) -> anyhow::Result<()> {
    let authority = Authority::create(FLEET)?;
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    authority.issue_to(&load.dir.join("hub"), &Subject::agent("hub", [here]), LIFE)?;
    let mut known = BTreeMap::new();
    for number in 0..load.hosts {
        let name = format!("h{number:04}");
        let identity = authority.identity(&Subject::agent(name.as_str(), [here]), LIFE)?;
        let listener = TcpListener::bind((here, 0)).await?;
        known.insert(name.clone(), listener.local_addr()?);
        let service = Simulated {
            board: Arc::new(simulated(name, number, load.processes)),
        };
        tokio::spawn(listen(listener, identity, service));
    }
    std::fs::write(addresses(&load.dir), serde_json::to_vec(&known)?)?;
    say("listening");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

async fn listen(
    listener: TcpListener,
    identity: Identity,
    service: Simulated,
) -> anyhow::Result<()> {
    let acceptor = tls::TlsAcceptor::from(tls::server(&identity)?);
    let (ready, incoming) = mpsc::channel::<std::io::Result<_>>(4);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(incoming)),
    );
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let Ok(stream) = acceptor.accept(stream).await else {
            continue;
        };
        ready.send(Ok(stream)).await?;
    }
}

/// A host whose processes' figures all change each second.
fn simulated(name: String, number: usize, processes: usize) -> Board {
    Board::of(&name.clone(), move |before| {
        let now = now_ms();
        let revision = before.map_or(1, |before| before.revision + 1);
        Report {
            revision,
            at: now,
            host: simulated_host(&name, revision),
            processes: (0..processes)
                .map(|at| {
                    let process = simulated_process(number * processes + at, revision, now);
                    let name = process.name.parse().expect("a good name");
                    (name, Arc::new(process))
                })
                .collect(),
            reasons: Arc::default(),
            fleet: None,
            operations: Vec::new(),
        }
    })
}

fn simulated_host(name: &str, revision: u64) -> fleet::Host {
    fleet::Host {
        name: name.to_owned(),
        agent_version: "0.1.0".to_owned(),
        cpu_percent: (revision % 100) as f64,
        memory_used_bytes: 6 << 30,
        memory_total_bytes: 16 << 30,
        cpus: 8,
        load1: (revision % 8) as f64,
        disk_used_bytes: 200 << 30,
        disk_total_bytes: 500 << 30,
        net_rx_bytes_per_s: 1_000_000 + revision,
        net_tx_bytes_per_s: 600_000 + revision,
        os: "Linux 6.8".to_owned(),
        ..fleet::Host::default()
    }
}

fn simulated_process(at: usize, revision: u64, now: i64) -> fleet::Process {
    fleet::Process {
        name: format!("tanako/{at}"),
        kind: "shard".to_owned(),
        bot: "tanako".to_owned(),
        state: "ready".to_owned(),
        ready: true,
        desired: "running".to_owned(),
        pid: 10_000 + at as u32,
        attempt: 1,
        started_at: 1,
        cpu_percent: ((at as u64 + revision) % 100) as f64,
        rss_bytes: (40 << 20) + revision,
        threads: 6,
        fds: 40,
        // When it was said, for the lag.
        log_lines: now.unsigned_abs(),
        log_bytes: 900_000 + revision,
        shards: vec![fleet::Shard {
            id: at as u32,
            count: 50_000,
            stage: "ready".to_owned(),
            guilds: 1_000,
            guilds_expected: 1_000,
            latency_ms: 40.0 + (revision % 10) as f64,
            events_per_s: 60.0 + (revision % 7) as f64,
            events: 1_000 * revision,
            seq: 1_000 * revision,
            identified: 1,
            interactions: 10 * revision,
            members: 200_000,
            event_lag_ms: 12.0,
            health: "ok".to_owned(),
            ..fleet::Shard::default()
        }],
        ..fleet::Process::default()
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answering<T> = BoxFuture<'static, Result<Response<T>, Status>>;
type Answered = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

/// Answers one call of a service; nothing here makes another.
fn answer<S, T>(service: S, call: &'static str, request: http::Request<Body>) -> Answered
where
    S: ServerStreamingService<T> + Send + 'static,
    S::Response: prost::Message + 'static,
    S::ResponseStream: Send + 'static,
    S::Future: Send,
    T: prost::Message + Default + Send + 'static,
{
    async move {
        if !request.uri().path().ends_with(call) {
            return Ok(Status::unimplemented("not part of the benchmark").into_http());
        }
        let mut grpc = Grpc::new(ProstCodec::default());
        Ok(grpc.server_streaming(service, request).await)
    }
    .boxed()
}

/// The one call of the host service that a hub makes.
#[derive(Clone)]
struct Simulated {
    board: Arc<Board>,
}

impl NamedService for Simulated {
    const NAME: &'static str = host_server::SERVICE_NAME;
}

impl ServerStreamingService<host::FollowRequest> for Simulated {
    type Response = host::HostUpdate;
    type ResponseStream = Streaming<host::HostUpdate>;
    type Future = Answering<Self::ResponseStream>;

    fn call(&mut self, request: Request<host::FollowRequest>) -> Self::Future {
        let (updates, receiver) = mpsc::channel(feed::UPDATES_MAX);
        let board = self.board.clone();
        let feed = feed::feed(
            board,
            request.into_inner(),
            updates,
            CancellationToken::new(),
        );
        tokio::spawn(feed);
        async { Ok(Response::new(ReceiverStream::new(receiver).boxed())) }.boxed()
    }
}

impl tower::Service<http::Request<Body>> for Simulated {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answered {
        answer(self.clone(), "/Follow", request)
    }
}

async fn serve_hub(load: Load) -> anyhow::Result<()> {
    let identity = Identity::load(&load.dir.join("hub"))?;
    let known: BTreeMap<String, SocketAddr> =
        serde_json::from_slice(&std::fs::read(addresses(&load.dir))?)?;
    let hosts: BTreeMap<String, Known> = known
        .iter()
        .map(|(name, address)| {
            let known = Known {
                address: address.to_string(),
                leased: Some(true),
                ..Known::default()
            };
            (name.clone(), known)
        })
        .chain([("hub".to_owned(), Known::default())])
        .collect();
    let links = Arc::new(Direct { identity, known });
    let (_hosts, watched) = tokio::sync::watch::channel(Some(Arc::new(hosts)));
    let tracker = TaskTracker::new();
    let cancel = CancellationToken::new();
    let board = Board::of("hub", |before| Report {
        revision: before.map_or(1, |before| before.revision + 1),
        at: now_ms(),
        host: simulated_host("hub", 1),
        processes: BTreeMap::new(),
        reasons: Arc::default(),
        fleet: None,
        operations: Vec::new(),
    });
    let hub = Hub::start(
        Arc::new(board),
        Some(links),
        watched,
        cancel.clone(),
        &tracker,
    );
    let socket = socket(&load.dir);
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket)?;
    let service = Watched {
        hub,
        cancel: cancel.clone(),
        tracker,
    };
    say("serving");
    Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    cancel.cancel();
    Ok(())
}

/// Connects as an agent's peers do.
struct Direct {
    identity: Identity,
    known: BTreeMap<String, SocketAddr>,
}

impl Dial for Direct {
    fn channel<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        async move {
            let address = *self.known.get(host).ok_or("no such host")?;
            let config =
                tls::client(&self.identity, Some(host)).map_err(|error| error.to_string())?;
            let connector = tower::service_fn(move |_| {
                let config = config.clone();
                async move {
                    tls::connect(address, config, Duration::from_secs(10))
                        .await
                        .map(TokioIo::new)
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

/// The hub behind the part of the fleet service that a monitor needs.
#[derive(Clone)]
struct Watched {
    hub: Hub,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl NamedService for Watched {
    const NAME: &'static str = fleet_server::SERVICE_NAME;
}

impl ServerStreamingService<fleet::WatchRequest> for Watched {
    type Response = fleet::FleetUpdate;
    type ResponseStream = Streaming<fleet::FleetUpdate>;
    type Future = Answering<Self::ResponseStream>;

    fn call(&mut self, request: Request<fleet::WatchRequest>) -> Self::Future {
        let (updates, receiver) = mpsc::channel(1);
        self.tracker.spawn(watch::feed(
            self.hub.clone(),
            watch::interval_of(request.get_ref().interval_ms),
            updates,
            self.cancel.clone(),
        ));
        async { Ok(Response::new(ReceiverStream::new(receiver).boxed())) }.boxed()
    }
}

impl tower::Service<http::Request<Body>> for Watched {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answered {
        answer(self.clone(), "/Watch", request)
    }
}

async fn run_probe(probe: Probe) -> anyhow::Result<()> {
    let began = Instant::now();
    let path = socket(&probe.dir);
    let channel = Endpoint::from_static("http://hub")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
        .context("the hub")?;
    let mut client = FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut updates = client
        .watch(fleet::WatchRequest { interval_ms: 1000 })
        .await?
        .into_inner();
    let mut lag = Histogram::<u64>::new_with_bounds(1, 600_000, 3)?;
    let (mut first, mut whole) = (None, None);
    let mut seen = std::collections::HashSet::new();
    let mut said = 0u64;
    let mut steady = 0u64;
    while began.elapsed() < Duration::from_secs(probe.seconds) {
        let Some(update) = updates.message().await? else {
            break;
        };
        let at = began.elapsed();
        first.get_or_insert(at);
        let (processes, more) = match update.update {
            Some(Update::Snapshot(status)) => (status.processes, status.more),
            Some(Update::Delta(delta)) => (delta.processes, delta.more),
            None => continue,
        };
        let now = now_ms().unsigned_abs();
        said += processes.len() as u64;
        for process in processes {
            if whole.is_some() {
                steady += 1;
                lag.record(now.saturating_sub(process.log_lines).max(1))?;
            } else {
                seen.insert(process.name);
            }
        }
        if whole.is_none() && !more && !seen.is_empty() {
            whole = Some((at, seen.len()));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (at, count) = whole.unwrap_or_default();
    say(&serde_json::to_string(&serde_json::json!({
        "first_ms": first.unwrap_or_default().as_millis() as u64,
        "whole_ms": at.as_millis() as u64,
        "processes": count,
        "updates": said,
        "updates_per_s": steady as f64 / (seconds - at.as_secs_f64()),
        "lag_p50_ms": lag.value_at_quantile(0.5),
        "lag_p99_ms": lag.value_at_quantile(0.99),
    }))?);
    Ok(())
}
