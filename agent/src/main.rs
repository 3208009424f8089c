//! The life of the agent: parse, lock, start, wait, stop; and, when asked, begin again in place.

use std::{os::unix::net::UnixDatagram, path::Path, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use tanako_agent::{
    app::{self, App},
    config::{Args, Config, FenceArgs, LogFormat},
    history::Severity,
    identity::join,
    lock::{Lock, LockError},
    service::Upgrades,
    tenure,
    upgrade::{self, UpgradeError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing_subscriber::EnvFilter;

/// A hub of a thousand hosts spends half its time on messages that come and go; glibc's allocator takes three
/// times as long over them (bench/README.md, hub). This one also gives back what a burst took (supervise).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Another agent holds the data directory.
const EXIT_LOCKED: u8 = 11;

/// Why the agent ends.
enum End {
    /// It was told to.
    Stop,
    /// To be replaced by the binary on disk.
    Upgrade,
}

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == "join") {
        arguments.remove(1);
        return join::main(arguments);
    }
    if arguments.get(1).is_some_and(|first| first == "fence") {
        arguments.remove(0);
        return guard(&FenceArgs::parse_from(arguments));
    }
    let args = Args::parse();
    log_to_stderr(args.log_format);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tanako-agent: {error:#}");
            match error.downcast_ref::<LockError>() {
                Some(LockError::Held { .. }) => {
                    eprintln!(
                        "hint: one agent runs per data directory; stop that one, or choose another --data-dir"
                    );
                    ExitCode::from(EXIT_LOCKED)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The life of the process that an agent of a fleet leaves behind to guard its bots.
fn guard(args: &FenceArgs) -> ExitCode {
    match tenure::fence::run(&args.data_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let data_dir = args.data_dir.display();
            eprintln!("tanako-agent fence: {data_dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    // Asked now: once the file has been replaced, nobody knows its path.
    let binary = upgrade::own_path().context("the agent's own path")?;
    let config = Config::from_args(args)?;
    app::private_dir(&config.data_dir, config.group_access)?;
    let lock = Lock::take(&config.data_dir.join("agent.lock"))?;
    let info_file = config.info_file.clone();
    // Two threads do for a thousand processes; more would only cost memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .context("the async runtime")?;
    let end = match runtime.block_on(live(config, &binary)) {
        Ok(end) => end,
        Err(error) => {
            // What had started waits for work that will not come; the reason must not wait for it.
            runtime.shutdown_background();
            return Err(error);
        }
    };
    drop(runtime);
    match end {
        End::Stop => {
            if let Some(path) = info_file {
                let _ = std::fs::remove_file(path);
            }
            drop(lock);
            Ok(())
        }
        End::Upgrade => {
            // The kernel gives the lock back with the old image; the new one takes it at once.
            drop(lock);
            Err(upgrade::replace(&binary))
                .context("neither the new nor the present binary can be executed")
        }
    }
}

async fn live(config: Config, binary: &Path) -> anyhow::Result<End> {
    // Registered before anything starts, so that no signal finds the default action.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("SIGHUP")?;
    let (upgrades, mut requests): (Upgrades, _) = mpsc::channel(1);
    let app = App::start(config, &upgrade::origin(), upgrades).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), http = %app.http(), "the agent runs");
    notify("READY=1");
    let end = loop {
        let answer = tokio::select! {
            _ = terminate.recv() => break End::Stop,
            _ = interrupt.recv() => break End::Stop,
            _ = hang_up.recv() => None,
            Some(answer) = requests.recv() => Some(answer),
        };
        if is_replaceable(&app, binary, answer).await {
            break End::Upgrade;
        }
    };
    match end {
        End::Stop => notify("STOPPING=1"),
        End::Upgrade => notify("RELOADING=1"),
    }
    app.stop().await;
    // Told to stop while it was stopping to be replaced: then it is not replaced.
    let told = tokio::select! {
        biased;
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        () = std::future::ready(()) => false,
    };
    Ok(if told { End::Stop } else { end })
}

/// Whether the binary on disk can take over; tells whoever asked, and the history.
async fn is_replaceable(
    app: &App,
    binary: &Path,
    answer: Option<oneshot::Sender<Result<String, UpgradeError>>>,
) -> bool {
    let checked = upgrade::check(binary).await;
    match &checked {
        Ok(version) => tracing::info!(%version, "upgrading in place"),
        Err(error) => {
            tracing::error!(%error, "the upgrade is refused");
            let message = format!("the agent goes on in its present version: {error}");
            app.history()
                .event(Severity::Error, "upgrade-failed", "agent", message);
        }
    }
    let good = checked.is_ok();
    if let Some(answer) = answer {
        let _ = answer.send(checked);
        // The answer is on its way before the service stops: its stop waits for open calls.
    }
    good
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send_state(Path::new(&address), state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

fn send_state(address: &Path, state: &str) -> std::io::Result<()> {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr},
    };

    let bytes = address.as_os_str().as_bytes();
    let target = match bytes.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &target)
        .map(|_| ())
}
