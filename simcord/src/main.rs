//! `simcord`: serves a simulated Discord until told to stop.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use simcord::{Config, Info, Sim};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A Discord that holds its clients to the rules of Discord.
///
/// Serves REST, gateway and admin API (under /_sim/, on loopback only) until SIGTERM or SIGINT.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    #[command(flatten)]
    config: Config,

    /// File to write the addresses to once everything is served: {"pid", "http", "gateway", "application_id"}.
    #[arg(long, value_name = "PATH")]
    info_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("SIMCORD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simcord: {error:#}");
            ExitCode::FAILURE
        }
    }
}

// More threads than cores: while some are busy with what a shard's coming up takes, others still read
// what arrives at once. When an IDENTIFY came is what clients are judged by.
#[tokio::main(worker_threads = 16)]
async fn run(args: Args) -> anyhow::Result<()> {
    // Before anything is served: a signal must not find the default action.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let guilds = args.config.guilds;
    let sim = Sim::start(args.config).await?;
    if let Some(path) = &args.info_file {
        write_info(path, sim.info())
            .with_context(|| format!("cannot write the info file {}", path.display()))?;
    }
    tracing::info!(
        http = sim.url(),
        gateway = sim.info().gateway,
        guilds,
        "serving"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    sim.stop().await;
    Ok(())
}

/// Writes the info file so that readers see all of it or nothing.
fn write_info(path: &Path, info: &Info) -> anyhow::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", info.pid));
    let fresh = PathBuf::from(fresh);
    let mut file = std::fs::File::create(&fresh)?;
    serde_json::to_writer(&mut file, info)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok(())
}
