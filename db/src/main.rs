//! `tanako-db`: a guild database node, and the tools for its backups.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tanako_db::backup;
use tanako_db::config::{Settings, Tuning, parse_peer, parse_weight, read_token};
use tanako_db::node::Node;
use tanako_db::server::Server;
use tanako_db::store::{chain, write_atomically};
use tanako_db::topology::ring_of;
use tanako_db::worker::{Identity, Worker};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The Tanako guild database node.
///
/// Without a subcommand it serves the database protocol until SIGTERM.
#[derive(Parser)]
#[command(name = "tanako-db", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Subcommand)]
enum Command {
    /// Read backup archives completely and check every checksum and row count.
    Verify(Verify),
    /// Replace the data of a stopped node by the rows of a backup that belong to it.
    Restore(Restore),
}

#[derive(Args)]
struct Verify {
    /// The archives, NODE.tbk.
    #[arg(required = true, value_name = "ARCHIVE")]
    archives: Vec<PathBuf>,
}

#[derive(Args)]
struct Restore {
    /// An archive of the backup, NODE.tbk; give those of all nodes.
    #[arg(long = "archive", required = true)]
    archives: Vec<PathBuf>,
    /// The directory of the node's data.
    #[arg(long, env = "TANAKO_DB_DATA_DIR")]
    data_dir: PathBuf,
    /// The node's name in the ring.
    #[arg(long, env = "TANAKO_DB_NAME", default_value = "node1")]
    name: String,
    /// A node of the ring that the data is restored into, NAME=ws://HOST:PORT or NAME.
    #[arg(long = "peer", env = "TANAKO_DB_PEERS", value_delimiter = ',')]
    peers: Vec<String>,
    /// A node's share of the data, NAME=1 to 16; 1 unless given.
    #[arg(long = "weight", env = "TANAKO_DB_WEIGHTS", value_delimiter = ',')]
    weights: Vec<String>,
}

#[derive(Args)]
struct Serve {
    /// This node's name in the ring.
    #[arg(long, env = "TANAKO_DB_NAME")]
    name: String,
    /// The directory of its data; made if it does not exist.
    #[arg(long, env = "TANAKO_DB_DATA_DIR")]
    data_dir: PathBuf,
    /// Where to listen; port 0 takes any free one.
    #[arg(long, env = "TANAKO_DB_LISTEN", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The file with the token, readable by its owner only.
    #[arg(long, env = "TANAKO_DB_TOKEN_FILE")]
    token_file: PathBuf,
    /// A node of the ring, NAME=ws://HOST:PORT; may be given several times and include this node.
    #[arg(long = "peer", env = "TANAKO_DB_PEERS", value_delimiter = ',')]
    peers: Vec<String>,
    /// A node's share of the data, NAME=1 to 16, the same for all nodes; 1 unless given.
    #[arg(long = "weight", env = "TANAKO_DB_WEIGHTS", value_delimiter = ',')]
    weights: Vec<String>,
    /// The directory below which backups asked for by clients are written [default: DATA_DIR/backups].
    #[arg(long, env = "TANAKO_DB_BACKUP_DIR")]
    backup_dir: Option<PathBuf>,
    /// Write the address in use into this file, as JSON, once the node answers.
    #[arg(long, env = "TANAKO_DB_INFO_FILE")]
    info_file: Option<PathBuf>,
    /// The largest request in bytes.
    #[arg(long, env = "TANAKO_DB_MESSAGE_BYTES_MAX", default_value_t = Tuning::default().message_bytes_max)]
    message_bytes_max: usize,
    /// The most connections at one time.
    #[arg(long, env = "TANAKO_DB_CONNECTIONS_MAX", default_value_t = Tuning::default().connections_max)]
    connections_max: usize,
    /// A connection that takes no replies for this long is cut off, in milliseconds.
    #[arg(long, env = "TANAKO_DB_SLOW_READER_MS", default_value_t = Tuning::default().slow_reader_ms)]
    slow_reader_ms: u64,
    /// Memory for blocks read from disk, in bytes.
    #[arg(long, env = "TANAKO_DB_CACHE_BYTES", default_value_t = Tuning::default().cache_bytes)]
    cache_bytes: u64,
    /// Memory for unflushed writes per key space, in bytes.
    #[arg(long, env = "TANAKO_DB_MEMTABLE_BYTES", default_value_t = Tuning::default().memtable_bytes)]
    memtable_bytes: u64,
    /// Refuse writes while less than this is free on the disk, in bytes.
    #[arg(long, env = "TANAKO_DB_FREE_BYTES_MIN", default_value_t = Tuning::default().free_bytes_min)]
    free_bytes_min: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("TANAKO_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match cli.command {
        Some(Command::Verify(options)) => return verify(&options),
        Some(Command::Restore(options)) => return restore(&options),
        None => {}
    }
    let Some(options) = cli.serve else {
        let _ = writeln!(
            std::io::stderr(),
            "tanako-db: give --name, --data-dir and --token-file; see --help"
        );
        return ExitCode::from(2);
    };
    let settings = match settings(&options) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), 1),
    };
    match runtime.block_on(serve(settings, options.info_file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody can be told when stderr is closed.
    let _ = writeln!(std::io::stderr(), "tanako-db: {}", chain(error.as_ref()));
    ExitCode::from(code)
}

fn settings(options: &Serve) -> anyhow::Result<Settings> {
    Ok(Settings {
        name: options.name.clone(),
        data_dir: options.data_dir.clone(),
        listen: options.listen,
        token: read_token(&options.token_file)?,
        peers: options
            .peers
            .iter()
            .filter(|peer| !peer.trim().is_empty())
            .map(|peer| parse_peer(peer.trim()))
            .collect::<Result<_, _>>()?,
        weights: weights(&options.weights)?,
        backup_dir: options
            .backup_dir
            .clone()
            .unwrap_or_else(|| options.data_dir.join("backups")),
        tuning: Tuning {
            message_bytes_max: options.message_bytes_max,
            connections_max: options.connections_max,
            slow_reader_ms: options.slow_reader_ms,
            cache_bytes: options.cache_bytes,
            memtable_bytes: options.memtable_bytes,
            free_bytes_min: options.free_bytes_min,
            ..Tuning::default()
        },
    })
}

fn weights(given: &[String]) -> anyhow::Result<BTreeMap<String, u32>> {
    let given = given.iter().map(|weight| weight.trim());
    let parsed = given.filter(|weight| !weight.is_empty()).map(parse_weight);
    Ok(parsed.collect::<Result<_, _>>()?)
}

fn verify(options: &Verify) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in &options.archives {
        match backup::verify(path, &mut report(&format!("verify {}", path.display()))) {
            Ok(manifest) => {
                let _ = writeln!(
                    std::io::stdout(),
                    "{}: good, node {}, {} rows, {} bytes, of {}",
                    path.display(),
                    manifest.node,
                    manifest.rows(),
                    manifest.bytes,
                    manifest.created_at
                );
            }
            Err(error) => code = fail(&error.into(), 1),
        }
    }
    code
}

fn restore(options: &Restore) -> ExitCode {
    let names = options
        .peers
        .iter()
        .map(|peer| {
            peer.split_once('=')
                .map_or(peer.as_str(), |(name, _)| name)
                .trim()
        })
        .chain([options.name.as_str()])
        .filter(|name| !name.is_empty());
    let result = weights(&options.weights)
        .and_then(|weights| Ok(ring_of(names, &weights)?))
        .and_then(|ring| {
            let mut progress = report("restore");
            backup::restore_offline(
                &options.archives,
                &ring,
                &options.name,
                &options.data_dir,
                &mut progress,
            )
            .map_err(anyhow::Error::from)
        });
    match result {
        Ok(loaded) => {
            let _ = writeln!(
                std::io::stdout(),
                "restored {} of {} rows into {} for {}",
                loaded.rows_loaded,
                loaded.rows_total,
                options.data_dir.display(),
                options.name
            );
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, 1),
    }
}

/// Plain lines about progress on stderr, at most one a second.
fn report(what: &str) -> impl FnMut(u64, u64) + Send + use<> {
    let what = what.to_owned();
    let mut told = std::time::Instant::now();
    move |done, total| {
        if told.elapsed().as_secs() >= 1 {
            told = std::time::Instant::now();
            let of = if total > 0 {
                format!(" of {total}")
            } else {
                String::new()
            };
            let _ = writeln!(std::io::stderr(), "{what}: {done}{of} rows");
        }
    }
}

/// The life of a node: bind, open, serve, drain, sync.
async fn serve(settings: Settings, info_file: Option<PathBuf>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let end = CancellationToken::new();
    let worker = Identity::from_environment(&settings.name)
        .map(|identity| Worker::new(identity, stop.clone()));
    let attached = worker
        .clone()
        .map(|worker| tokio::spawn(worker.run(end.clone())));
    let server = Server::bind(settings.listen).await?;
    let address = server.address();
    let url = format!("ws://{address}");
    let node = {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || Node::open(&settings))
            .await
            .context("opening was given up")??
    };
    let serving = tokio::spawn(server.run(node.clone(), settings.tuning, stop.clone()));
    tracing::info!(node = %settings.name, %address, rows = node.metrics.rows_total(), "ready");
    if let Some(path) = &info_file {
        let info = serde_json::json!({
            "name": settings.name,
            "address": address.to_string(),
            "url": url,
            "pid": std::process::id(),
        });
        write_atomically(path, info.to_string().as_bytes())?;
    }
    if let Some(worker) = &worker {
        worker.ready(node.clone(), url);
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    tracing::info!("stopping: finishing what is in flight");
    if let Some(worker) = &worker {
        worker.draining();
    }
    stop.cancel();
    serving.await.context("serving was given up")?;
    end.cancel();
    if let Some(attached) = attached {
        attached.await.context("the worker was given up")?;
    }
    drop(worker);
    node.stop().await;
    tracing::info!("stopped");
    Ok(())
}
