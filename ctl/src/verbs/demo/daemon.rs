//! Starting simcord and the agent in sessions of their own, and finding them again.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};

use super::{
    etcd,
    place::Place,
    process::{Identity, Live},
    record::Record,
    seat::Seat,
};
use crate::{client::Endpoint, failure::Failure, units::age};

/// How long simcord may take to generate its guilds and the agent to open its store.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The argument by which both are found again: nobody else writes that file.
const INFO_FLAG: &str = "--info-file";

/// Programs that a demo needs, beside `tanakoctl`.
pub const PROGRAMS: [&str; 4] = ["simcord", "tanako-agent", "tanako-bot", "tanako-db"];

/// The program of that name beside this one.
pub fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::io("/proc/self/exe", "find out where tanakoctl is", &error))?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new("missing-program", path.display().to_string(), "the demo needs this program beside tanakoctl")
        .hint("`./install.sh demo` builds all of them and starts the demo; by hand: cargo build --release"))
}

/// The simulated Discord of this demo, if it lives.
pub fn simcord(place: &Place, record: &Record) -> Option<Live> {
    find(record.simcord.as_ref(), &place.simcord_info())
}

/// The agent of a host, if it lives.
pub fn agent(seat: &Seat, record: &Record) -> Option<Live> {
    find(record.agent_of(seat), &seat.info)
}

/// What agents of a host have left behind to watch over its processes.
pub fn guards(seat: &Seat) -> Vec<Live> {
    [&seat.run_dir, &seat.data_dir]
        .into_iter()
        .flat_map(|path| Live::by_program("tanako-agent", path))
        .collect()
}

fn find(known: Option<&Identity>, info: &Path) -> Option<Live> {
    known
        .and_then(Live::by_identity)
        .or_else(|| Live::by_argument(INFO_FLAG, info).into_iter().next())
}

/// Starts the simulated Discord and waits until it answers.
pub async fn start_simcord(place: &Place, record: &mut Record) -> Result<(), Failure> {
    let arguments: Vec<OsString> = [
        "--listen".into(),
        format!("127.0.0.1:{}", record.simcord_port()).into(),
        INFO_FLAG.into(),
        place.simcord_info().into_os_string(),
        "--guilds".into(),
        record.guilds.to_string().into(),
        "--max-concurrency".into(),
        record.shards().to_string().into(),
        "--recommended-shards".into(),
        record.shards().to_string().into(),
        "--events-per-second".into(),
        "200".into(),
        "--interactions-per-second".into(),
        "4".into(),
        "--token-file".into(),
        place.discord_token().into_os_string(),
    ]
    .into();
    forget(&place.simcord_info())?;
    let program = program("simcord")?;
    let mut daemon = Daemon::start("simcord", &program, &arguments, place.simcord_log(), place)?;
    record.simcord = daemon.identity();
    record.save(&place.record())?;
    let address = ("127.0.0.1", record.simcord_port());
    let info = place.simcord_info();
    daemon
        .until(async || info.exists() && TcpStream::connect(address).await.is_ok())
        .await
}

/// Starts the agent of a host and waits until its socket answers.
pub async fn start_agent(
    place: &Place,
    record: &mut Record,
    seat: &Seat,
    endpoint: &Endpoint,
) -> Result<(), Failure> {
    let mut arguments: Vec<OsString> = [
        "--data-dir".into(),
        seat.data_dir.clone().into_os_string(),
        "--run-dir".into(),
        seat.run_dir.clone().into_os_string(),
        "--http".into(),
        format!("{}:{}", seat.address, seat.http_port).into(),
        INFO_FLAG.into(),
        seat.info.clone().into_os_string(),
    ]
    .into();
    match &seat.member {
        // What a fleet of several hosts is to run is said when all of them are there.
        Some(member) => arguments.extend(etcd::agent_arguments(place, record, member)),
        None => arguments.extend(["--spec".into(), place.spec().into_os_string()]),
    }
    for directory in [&record.run_dir, &seat.run_dir] {
        super::place::private_directory(directory)?;
    }
    forget(&seat.info)?;
    let program = program("tanako-agent")?;
    let mut daemon = Daemon::start(
        "tanako-agent",
        &program,
        &arguments,
        seat.log.clone(),
        place,
    )?;
    record.set_agent(seat, daemon.identity());
    record.save(&place.record())?;
    daemon.until(async || answers(endpoint).await).await
}

/// Removes the file in which a daemon's last run said where it was.
fn forget(info: &Path) -> Result<(), Failure> {
    match fs::remove_file(info) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io(
            info,
            "remove the file of an earlier run",
            &error,
        )),
        _ => Ok(()),
    }
}

/// Whether an agent answers there.
pub async fn answers(endpoint: &Endpoint) -> bool {
    let ask = async {
        let mut fleet = endpoint.open().await.ok()?;
        crate::session::status(&mut fleet).await.ok()
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(5), ask).await,
        Ok(Some(_))
    )
}

/// A process that was just started.
pub(super) struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
    log_start: u64,
    /// What to type to clean up.
    down: String,
}

impl Daemon {
    /// Starts it through `__detach`, which leaves the terminal's session and keeps the process id.
    pub(super) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[OsString],
        log: PathBuf,
        place: &Place,
    ) -> Result<Self, Failure> {
        let open = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log);
        let failed = |error: io::Error| Failure::io(&log, "open the log file", &error);
        let out = open.map_err(failed)?;
        let log_start = out.metadata().map_err(failed)?.len();
        let err = out.try_clone().map_err(failed)?;
        // /proc/self/exe stays right when the file was replaced by a newer build meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("tanakoctl")
            .args(["__detach", "--"])
            .arg(program)
            .args(arguments)
            .current_dir(&place.data_dir)
            // As the agent's unit does.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        // What was meant for this process must not reach the daemon.
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("TANAKO_")
                || name.starts_with("ETCD_")
                || variable == "NOTIFY_SOCKET"
                || variable == "LISTEN_FDS"
                || variable == "LISTEN_PID"
            {
                command.env_remove(variable);
            }
        }
        let child = command
            .spawn()
            .map_err(|error| Failure::io(program, "start the program", &error))?;
        Ok(Self {
            name,
            child,
            log,
            log_start,
            down: place.command("down"),
        })
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        Identity::of(self.child.id())
    }

    /// Waits until it is there; an early end or a long silence is told with the last lines of its log.
    pub(super) async fn until(
        &mut self,
        mut is_there: impl AsyncFnMut() -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let ended = self
                .child
                .try_wait()
                .map_err(|error| Failure::io(self.name, "wait for the program", &error))?;
            if let Some(status) = ended {
                return Err(self.failed(
                    "start-failed",
                    format!("{} ended at once: {status}", self.name),
                ));
            }
            if is_there().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "{} does not answer after {}",
                    self.name,
                    age(START_PATIENCE.as_secs())
                );
                return Err(self.failed("timeout", message));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn failed(&self, code: &str, message: String) -> Failure {
        let tail = tail(&self.log, self.log_start, 5).unwrap_or_default();
        let cause = if tail.is_empty() {
            "it wrote nothing to its log".to_owned()
        } else {
            tail
        };
        Failure::new(code, self.log.display().to_string(), message)
            .cause(cause)
            .hint(format!(
                "the whole log is in that file; `{}` cleans up, then try again",
                self.down
            ))
    }
}

/// The last lines of a file behind `start`, from its last 8 KiB.
fn tail(path: &Path, start: u64, lines: usize) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(8192))))?;
    let mut bytes = Vec::new();
    file.take(8192).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let last: Vec<String> = all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| crate::paint::clean(line, false))
        .collect();
    Ok(last.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_starts_where_this_run_did() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        fs::write(&path, "old\n1\n2\n3\n").expect("written");
        assert_eq!(tail(&path, 4, 2).expect("read"), "2\n3");
        assert_eq!(tail(&path, 4, 9).expect("read"), "1\n2\n3");
        assert_eq!(tail(&path, 10, 9).expect("read"), "");
    }
}
