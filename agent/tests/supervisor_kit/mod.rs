//! What the supervisor's tests have in common.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tanako_agent::supervisor::{Config, ProcessStatus, Supervisor, SupervisorEvent, Ungated};
use tanako_fleet::{
    ProcessKind, ProcessName, ProcessSpec,
    process::{Limits, LogPolicy, Probe, Readiness, RestartPolicy, RestartWhen, StopPolicy},
};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(10);
/// In the environment of every child of a test.
const MARK: &str = "TANAKO_TEST_MARK";

/// A place for one supervisor; kills what is left when it goes.
pub struct Bench {
    pub dir: tempfile::TempDir,
    mark: String,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().display().to_string();
        Self { dir, mark }
    }

    pub fn config(&self) -> Config {
        config(self.dir.path())
    }

    pub fn start(&self) -> Supervisor {
        start(self.config())
    }

    /// Stops everything and says that nothing is left.
    pub async fn end(&self, supervisor: Supervisor) {
        let names: Vec<_> = supervisor.status().borrow().keys().cloned().collect();
        for name in &names {
            supervisor.forget(name).await.expect("it is forgotten");
        }
        let mut table = supervisor.status();
        tokio::time::timeout(PATIENCE, table.wait_for(|table| table.is_empty()))
            .await
            .expect("in time")
            .expect("the supervisor lives");
        supervisor.detach().await.expect("it leaves");
        eventually("nothing is left", || marked(&self.mark).is_empty()).await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in marked(&self.mark) {
            kill(pid);
        }
    }
}

pub fn name(name: &str) -> ProcessName {
    name.parse().expect("a name")
}

pub fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.to_owned(),
        run_dir: dir.join("r"),
        host: "test".to_owned(),
        base_env: BTreeMap::from([(MARK.to_owned(), dir.display().to_string())]),
        search_path: vec![PathBuf::from("/nowhere")],
        cgroup: None,
    }
}

pub fn start(config: Config) -> Supervisor {
    Supervisor::start(
        config,
        Arc::new(Ungated),
        CancellationToken::new(),
        &TaskTracker::new(),
    )
    .expect("it starts")
}

/// A process that runs a shell script and is ready when it has started.
pub fn shell(name: &str, script: &str) -> ProcessSpec {
    ProcessSpec {
        name: name.parse().expect("a name"),
        kind: ProcessKind::Shard,
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        directory: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        shard_ids: vec![0],
        shard_count: 1,
        gated: false,
        identify_queue: false,
        ready: Readiness {
            probe: Probe::Started {
                after: Duration::ZERO,
            },
            timeout: PATIENCE,
        },
        watchdog: None,
        restart: RestartPolicy {
            when: RestartWhen::Always,
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            reset_after: Duration::from_secs(60),
            crash_loop_starts: 0,
            crash_loop_window: Duration::from_secs(60),
        },
        stop: StopPolicy {
            signal: "TERM".to_owned(),
            grace: PATIENCE,
        },
        limits: Limits::default(),
        logs: LogPolicy {
            max_bytes: 1 << 20,
            keep: 3,
        },
    }
}

/// Waits until the status of a process is as wanted.
pub async fn until(
    supervisor: &Supervisor,
    name: &ProcessName,
    wanted: impl Fn(&ProcessStatus) -> bool,
) -> Arc<ProcessStatus> {
    let mut table = supervisor.status();
    let found = tokio::time::timeout(
        PATIENCE,
        table.wait_for(|table| table.get(name).is_some_and(|status| wanted(status))),
    )
    .await;
    match found {
        Ok(Ok(table)) => Arc::clone(&table[name]),
        Ok(Err(_)) => panic!("the supervisor has ended"),
        Err(elapsed) => panic!(
            "waited in vain ({elapsed}): {:?}",
            supervisor.status().borrow().get(name)
        ),
    }
}

/// The last lines of its log.
pub async fn texts(supervisor: &Supervisor, name: &ProcessName) -> Vec<String> {
    let lines = supervisor.logs().read_tail(name, 10).await;
    let lines = lines.unwrap_or_default().into_iter();
    lines.map(|line| line.text).collect()
}

/// The next event of this kind.
pub async fn event(
    events: &mut broadcast::Receiver<SupervisorEvent>,
    kind: &str,
) -> SupervisorEvent {
    tokio::time::timeout(PATIENCE, async {
        loop {
            let event = events.recv().await.expect("no event is missed");
            if event.kind == kind {
                return event;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {kind}"))
}

/// The number that follows `prefix` in the first line of a log that begins so.
pub async fn number_in_log(supervisor: &Supervisor, name: &ProcessName, prefix: &str) -> u32 {
    let begun = tokio::time::Instant::now();
    loop {
        let lines = supervisor
            .logs()
            .read_tail(name, 1000)
            .await
            .expect("it has a log");
        let number = lines
            .iter()
            .find_map(|line| line.text.strip_prefix(prefix)?.trim().parse().ok());
        if let Some(number) = number {
            return number;
        }
        assert!(begun.elapsed() < PATIENCE, "no {prefix} in {lines:?}");
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !check() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a process lives; a zombie does not.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|text| Some(!text.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

pub async fn gone(pid: u32) {
    eventually(&format!("{pid} is gone"), || !alive(pid)).await;
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    // It may have gone by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Live processes with this test's mark.
pub fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    std::fs::read_dir("/proc")
        .expect("proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == wanted.as_bytes())
            })
        })
        .collect()
}
