//! Starts processes, on threads of its own: starting one blocks until its `execve`.
//!
//! `std` starts children by `posix_spawn` (vfork at heart) as long as nothing is asked of it that
//! must run between fork and exec; so limits are set from outside right after.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};
use tanako_fleet::{
    ProcessSpec,
    process::{Limits, Probe, SecretEnv},
};

use super::{
    cgroup::Cgroups,
    handle::StartGate,
    procfs::{self, RUN_VARIABLE, RunTag},
};
use crate::logs::LogFile;

/// Threads that start processes. Two, so that one can set up while the other waits for an exec.
const THREADS: usize = 2;
/// A secret is a token or a URL, not a file of data.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Variables of the agent's own environment that children get. Nothing else, for the agent's
/// environment may hold what they must not see.
const INHERITED: [&str; 20] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// What all children have in common.
pub(super) struct Common {
    pub(super) base_env: BTreeMap<String, String>,
    pub(super) inherited: Vec<(&'static str, OsString)>,
    pub(super) search_path: Vec<PathBuf>,
    pub(super) data_dir: PathBuf,
    pub(super) notify_socket: PathBuf,
    pub(super) cgroups: Option<Cgroups>,
    /// Knows what a process needs to ask for leave to identify.
    pub(super) gate: Arc<dyn StartGate>,
}

/// The agent's own values of the variables that children get.
pub(super) fn inherited() -> Vec<(&'static str, OsString)> {
    INHERITED
        .iter()
        .filter_map(|name| Some((*name, std::env::var_os(name)?)))
        .collect()
}

/// A process to be started.
pub(super) struct Job {
    pub(super) id: usize,
    pub(super) spec: Arc<ProcessSpec>,
    pub(super) tag: RunTag,
    pub(super) log: Arc<LogFile>,
}

impl Job {
    /// It starts again, nothing has to be read for it, and it moves to no cgroup, which takes the
    /// kernel long. First starts come in numbers, if one at a time: those are for the threads.
    pub(super) fn is_quick(&self) -> bool {
        self.tag.attempt > 1 && self.spec.secret_env.is_empty() && !needs_cgroup(&self.spec.limits)
    }
}

/// A process that was started.
pub(super) struct Spawned {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) start_ticks: u64,
    pub(super) cgroup: Option<PathBuf>,
    /// How its limits are enforced, in words.
    pub(super) limits: String,
    /// Limits that are not, in words.
    pub(super) unlimited: String,
    /// Where its output begins in its log.
    pub(super) log_from: u64,
}

/// What became of a [`Job`].
pub(super) struct Outcome {
    pub(super) id: usize,
    pub(super) attempt: u64,
    pub(super) result: Result<Spawned, String>,
}

/// The threads; they end when this is dropped and their queue is empty.
pub(super) struct Spawner {
    common: Arc<Common>,
    jobs: mpsc::Sender<Job>,
}

impl Spawner {
    /// Starts the threads. Outcomes go to `outcomes`; jobs are never more than there are processes.
    pub(super) fn start(
        common: Arc<Common>,
        outcomes: tokio::sync::mpsc::Sender<Outcome>,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let (common, queue, outcomes) =
                (Arc::clone(&common), Arc::clone(&queue), outcomes.clone());
            thread::Builder::new()
                .name(format!("spawn-{number}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    loop {
                        let job = match queue.lock() {
                            Ok(queue) => queue.recv(),
                            Err(_) => return,
                        };
                        let Ok(job) = job else { return };
                        if outcomes.blocking_send(start(&common, &job)).is_err() {
                            return;
                        }
                    }
                })?;
        }
        Ok(Self { common, jobs })
    }

    /// Starts a process on the caller's thread.
    pub(super) fn start_now(&self, job: &Job) -> Outcome {
        start(&self.common, job)
    }

    /// Starts a process; the outcome comes later.
    pub(super) fn submit(&self, job: Job) {
        // The threads end only after this sender.
        let _ = self.jobs.send(job);
    }
}

fn start(common: &Common, job: &Job) -> Outcome {
    Outcome {
        id: job.id,
        attempt: job.tag.attempt,
        result: spawn(common, job),
    }
}

fn spawn(common: &Common, job: &Job) -> Result<Spawned, String> {
    let spec = &*job.spec.on_host(&common.data_dir.to_string_lossy());
    let directory = match &spec.directory {
        Some(directory) => common.data_dir.join(directory),
        None => common.data_dir.clone(),
    };
    let program = spec.command.first().ok_or("its command is empty")?;
    let program = find(common, program, &directory)?;
    let (log, log_from) = job.log.open_for_child().map_err(|error| {
        format!(
            "its log {} cannot be opened: {error}",
            job.log.path().display()
        )
    })?;
    let errors = log
        .try_clone()
        .map_err(|error| format!("its log cannot be opened twice: {error}"))?;

    let mut command = Command::new(&program);
    command
        .args(&spec.command[1..])
        .current_dir(&directory)
        .env_clear()
        .envs(common.inherited.iter().map(|(name, value)| (name, value)))
        .envs(&common.base_env)
        .envs(&spec.env)
        .env("TANAKO_PROCESS", spec.name.as_str())
        .env("TANAKO_ATTEMPT", job.tag.attempt.to_string())
        .env(RUN_VARIABLE, job.tag.to_string())
        .env("NOTIFY_SOCKET", &common.notify_socket)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    if let (Some(silence), Probe::Notify) = (spec.watchdog, &spec.ready.probe) {
        command.env("WATCHDOG_USEC", silence.as_micros().to_string());
    }
    for (name, secret) in &spec.secret_env {
        command.env(name, read_secret(name, secret)?);
    }
    command.envs(common.gate.environment(spec, job.tag.attempt));
    common.gate.may_start(spec)?;
    let mut child = command
        .spawn()
        .map_err(|error| explain(&program, &directory, &error))?;
    // The agent may have been stopped in its tracks since it was asked.
    if let Err(why) = common.gate.may_start(spec) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(why);
    }
    let pid = child.id();
    // It is ours and nobody has waited for it: the pid cannot be anyone else's.
    let opened = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = match opened {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "no pidfd for it ({error}); the agent's limit of open files may be reached"
            ));
        }
    };
    let mut spawned = Spawned {
        pid,
        pidfd,
        start_ticks: procfs::stat(pid).map_or(0, |stat| stat.start_ticks),
        cgroup: None,
        limits: String::new(),
        unlimited: String::new(),
        log_from,
    };
    limit(common, job, &mut spawned);
    Ok(spawned)
}

/// Sets the limits of a process that was just started.
fn limit(common: &Common, job: &Job, spawned: &mut Spawned) {
    let limits = &job.spec.limits;
    if let Some(wanted) = limits.open_files {
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        let given = hard.map_or(wanted, |hard| wanted.min(hard));
        let limit = Rlimit {
            current: Some(given),
            maximum: Some(given),
        };
        let pid = i32::try_from(spawned.pid).ok().and_then(Pid::from_raw);
        match rustix::process::prlimit(pid, Resource::Nofile, limit) {
            Ok(_) if given < wanted => {
                let _ = write!(
                    spawned.unlimited,
                    "open_files is {given}, not {wanted}: the agent's hard limit. "
                );
            }
            Ok(_) => {}
            Err(error) => {
                let _ = write!(spawned.unlimited, "open_files could not be set: {error}. ");
            }
        }
    }
    // Moving a process between cgroups is dear in the kernel; only for those that need it.
    if !needs_cgroup(limits) {
        return;
    }
    if let Some(cgroups) = &common.cgroups {
        match cgroups.place(&job.spec, job.tag.attempt, spawned.pid) {
            Ok(placed) => {
                spawned.limits = placed.words;
                spawned.unlimited.push_str(&placed.missing);
                spawned.cgroup = Some(placed.path);
                return;
            }
            Err(error) => {
                let _ = write!(spawned.unlimited, "no cgroup for it: {error}. ");
            }
        }
    }
    if limits.memory_bytes.is_some() {
        "memory watched once a second (no cgroup is delegated to the agent)"
            .clone_into(&mut spawned.limits);
    }
    if limits.cpus.is_some() || limits.tasks.is_some() {
        spawned.unlimited.push_str(
            "cpus and tasks are not enforced: no cgroup v2 subtree is delegated to the agent \
             (systemd 254 or later: Delegate=yes, DelegateSubgroup=agent). ",
        );
    }
}

fn needs_cgroup(limits: &Limits) -> bool {
    limits.memory_bytes.is_some() || limits.cpus.is_some() || limits.tasks.is_some()
}

/// Finds the file of a command: a bare name in the search path and then in `PATH`.
fn find(common: &Common, program: &str, directory: &Path) -> Result<PathBuf, String> {
    if program.contains('/') {
        return Ok(directory.join(program));
    }
    let path = common
        .base_env
        .get("PATH")
        .map(OsString::from)
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    common
        .search_path
        .iter()
        .chain(&path)
        .map(|dir| dir.join(program))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
        .ok_or_else(|| {
            format!("command not found: no {program} beside the agent or in its PATH; install it or give its full path")
        })
}

/// Says what is wrong when a start failed.
fn explain(program: &Path, directory: &Path, error: &io::Error) -> String {
    let shown = program.display();
    match fs::metadata(directory) {
        Err(error) => {
            return format!(
                "its directory {} cannot be used: {error}",
                directory.display()
            );
        }
        Ok(meta) if !meta.is_dir() => {
            return format!("its directory {} is not a directory", directory.display());
        }
        Ok(_) => {}
    }
    match fs::metadata(program) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            format!("command not found: {shown}")
        }
        Err(error) => format!("{shown} cannot be used: {error}"),
        Ok(meta) if meta.is_dir() => format!("{shown} is a directory, not a program"),
        Ok(_) if rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_err() => {
            format!("{shown} is not executable: chmod +x {shown}")
        }
        Ok(_) if error.kind() == io::ErrorKind::NotFound => {
            format!("{shown} is there, but the interpreter of its first line is not")
        }
        Ok(_) if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            format!("{shown} is not a program of this machine, nor a script with a #! line")
        }
        Ok(_) => format!("{shown} could not be started: {error}"),
    }
}

/// Reads a secret for a variable. Errors name the file, never its content.
fn read_secret(name: &str, secret: &SecretEnv) -> Result<String, String> {
    let file = &secret.file;
    let opened = OpenOptions::new()
        .read(true)
        // A pipe must not hang the start.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(file)
        .map_err(|error| {
            format!("secret file {file} (for {name}) cannot be read: {error}; write the secret into it and chmod 600 {file}")
        })?;
    let meta = opened
        .metadata()
        .map_err(|error| format!("secret file {file} (for {name}) cannot be read: {error}"))?;
    if !meta.is_file() {
        return Err(format!("secret file {file} (for {name}) is not a file"));
    }
    // systemd shows the access list of its credentials as rights of the group.
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .is_some_and(|directory| Path::new(file).starts_with(directory));
    let forbidden = if credential { 0o027 } else { 0o077 };
    if meta.mode() & forbidden != 0 {
        return Err(format!(
            "secret file {file} (for {name}) may be read by others (mode {:o}): chmod 600 {file}",
            meta.mode() & 0o777
        ));
    }
    let mut text = String::new();
    opened
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => format!("secret file {file} (for {name}) is not text"),
            _ => format!("secret file {file} (for {name}) cannot be read: {error}"),
        })?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!(
            "secret file {file} (for {name}) is longer than {SECRET_BYTES_MAX} bytes"
        ));
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(format!(
            "secret file {file} (for {name}) is empty: write the secret into it"
        ));
    }
    if text.contains('\0') {
        return Err(format!("secret file {file} (for {name}) holds a NUL byte"));
    }
    Ok(secret.template.replace("{secret}", text))
}
