//! Children outlive the agent: killed at any point, re-executed in place, with damaged records.
//!
//! The agent that dies is this test program itself, run again as its test `an_agent_to_be_killed`
//! with `TANAKO_TEST_AGENT` naming its directory.

#[path = "supervisor_kit/mod.rs"]
mod kit;

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kit::{Bench, shell};
use serde::{Deserialize, Serialize};
use tanako_agent::supervisor::{Desired, State, Supervisor, kind};
use tanako_fleet::{ProcessSpec, process::Probe};

const AGENT: &str = "TANAKO_TEST_AGENT";

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct Row {
    state: State,
    pid: Option<u32>,
    attempt: u64,
    restarts: u64,
    adopted: bool,
    last_exit: String,
    detail: String,
}

/// What an agent of a process of its own shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Shown {
    life: u32,
    rows: BTreeMap<String, Row>,
}

fn write(path: &Path, value: &impl Serialize) {
    let beside = path.with_extension("part");
    std::fs::write(&beside, serde_json::to_vec(value).expect("plain data")).expect("it writes");
    std::fs::rename(&beside, path).expect("it is renamed");
}

/// Not a test by itself: the agent of the others.
#[test]
fn an_agent_to_be_killed() {
    let Some(dir) = std::env::var_os(AGENT) else {
        return;
    };
    let dir = Path::new(&dir);
    let life: u32 = std::env::var("TANAKO_TEST_LIFE")
        .ok()
        .and_then(|life| life.parse().ok())
        .unwrap_or(1);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let again = runtime.block_on(async {
        let supervisor = kit::start(kit::config(dir));
        let specs: Vec<ProcessSpec> =
            serde_json::from_slice(&std::fs::read(dir.join("specs.json")).expect("specs"))
                .expect("specs");
        for spec in specs {
            supervisor
                .define(spec, Desired::Running)
                .await
                .expect("it is defined");
        }
        let mut table = supervisor.status();
        loop {
            let rows = rows(&supervisor);
            write(&dir.join("shown.json"), &Shown { life, rows });
            tokio::select! {
                changed = table.changed() => changed.expect("it lives"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            if std::fs::remove_file(dir.join("again")).is_ok() {
                supervisor.detach().await.expect("it leaves");
                return true;
            }
        }
    });
    if again {
        // As an upgrade does: the same process, a new program.
        let error = agent_command(dir, life + 1).exec();
        panic!("{error}");
    }
}

fn rows(supervisor: &Supervisor) -> BTreeMap<String, Row> {
    supervisor
        .status()
        .borrow()
        .iter()
        .map(|(name, status)| {
            let row = Row {
                state: status.state,
                pid: status.pid,
                attempt: status.attempt,
                restarts: status.restarts,
                adopted: status.adopted,
                last_exit: status.last_exit.clone(),
                detail: status.detail.clone(),
            };
            (name.to_string(), row)
        })
        .collect()
}

fn agent_command(dir: &Path, life: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("its own path"));
    command
        .args(["--exact", "an_agent_to_be_killed", "--nocapture"])
        .env(AGENT, dir)
        .env("TANAKO_TEST_LIFE", life.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// An agent in a process of its own; killed when it goes.
struct Agent {
    child: Child,
}

impl Agent {
    fn start(bench: &Bench, specs: &[ProcessSpec]) -> Self {
        let dir = bench.dir.path();
        write(&dir.join("specs.json"), &specs);
        // What an earlier one showed.
        let _ = std::fs::remove_file(dir.join("shown.json"));
        let child = agent_command(dir, 1).spawn().expect("it starts");
        Self { child }
    }

    fn kill(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is gone");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn shown(bench: &Bench, what: &str, wanted: impl Fn(&Shown) -> bool) -> Shown {
    let path = bench.dir.path().join("shown.json");
    let mut found = Shown::default();
    kit::eventually(what, || {
        let Ok(bytes) = std::fs::read(&path) else {
            return false;
        };
        found = serde_json::from_slice(&bytes).expect("written whole");
        wanted(&found)
    })
    .await;
    found
}

fn sleepers(count: usize) -> Vec<ProcessSpec> {
    (0..count)
        .map(|number| shell(&format!("a/{number}"), "exec sleep 1000"))
        .collect()
}

/// Live processes by the name they were given.
fn by_name(bench: &Bench) -> BTreeMap<String, Vec<u32>> {
    let mark = bench.dir.path().display().to_string();
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for pid in kit::marked(&mark) {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let name = environ
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(b"TANAKO_PROCESS="));
        if let Some(name) = name {
            let name = String::from_utf8_lossy(name).into_owned();
            found.entry(name).or_default().push(pid);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_taken_over_after_kill_9() {
    let bench = Bench::new();
    let mut specs = sleepers(5);
    specs[1].ready.probe = Probe::Log {
        pattern: "^up$".to_owned(),
    };
    specs[1].command[2] = "echo up; exec sleep 1000".to_owned();
    specs[2].ready.probe = Probe::Worker;
    let agent = Agent::start(&bench, &specs);
    let before = shown(&bench, "all run", |shown| {
        shown.rows.len() == 5
            && shown.rows.iter().all(|(name, row)| {
                let wanted = if name == "a/2" {
                    State::Starting
                } else {
                    State::Ready
                };
                row.state == wanted && row.pid.is_some()
            })
    })
    .await;
    agent.kill();

    let supervisor = bench.start();
    let mut events = supervisor.events();
    let after = rows(&supervisor);
    for (name, row) in &before.rows {
        let now = &after[name];
        assert_eq!(
            (now.state, now.pid, now.attempt, now.adopted),
            (row.state, row.pid, 1, true),
            "{name}"
        );
    }
    kit::event(&mut events, kind::ADOPTED).await;
    for spec in specs {
        supervisor
            .define(spec, Desired::Running)
            .await
            .expect("it is defined");
    }
    assert_eq!(
        rows(&supervisor),
        after,
        "defining the same changes nothing"
    );

    // Not its own child, and yet its end is noticed.
    let name = kit::name("a/0");
    kit::kill(before.rows["a/0"].pid.expect("it runs"));
    let status = kit::until(&supervisor, &name, |status| {
        status.attempt == 2 && status.ready
    })
    .await;
    assert_eq!(
        (status.last_exit.as_str(), status.restarts, status.adopted),
        ("status unknown", 1, false)
    );
    // The operator's stop reaches it as well.
    let name = kit::name("a/1");
    supervisor.stop(&name).await.expect("it stops");
    kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    assert!(!kit::alive(before.rows["a/1"].pid.expect("it ran")));
    assert!(by_name(&bench).values().all(|pids| pids.len() == 1));

    // Stopped stays stopped in the next life.
    supervisor.detach().await.expect("it leaves");
    let supervisor = bench.start();
    let after = rows(&supervisor);
    assert_eq!(
        (after["a/1"].state, after["a/1"].pid),
        (State::Stopped, None)
    );
    assert_eq!(
        (after["a/0"].state, after["a/0"].restarts),
        (State::Ready, 1)
    );
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_any_point_never_doubles_a_child() {
    const COUNT: usize = 25;
    let bench = Bench::new();
    let specs = sleepers(COUNT);
    let mut rng = fastrand::Rng::new();
    for round in 0..12 {
        let agent = Agent::start(&bench, &specs);
        if round > 0 {
            // Some crash, so that there is something to start in each life.
            for pids in by_name(&bench).values().take(8) {
                kit::kill(pids[0]);
            }
        }
        // Mostly in the middle of the starts.
        let records = bench.dir.path().join("run/records");
        let written = std::fs::metadata(&records).map_or(0, |meta| meta.len());
        kit::eventually("it writes", || {
            agent_has_begun(&records, written) || by_name(&bench).len() == COUNT
        })
        .await;
        std::thread::sleep(Duration::from_micros(rng.u64(..40_000)));
        agent.kill();
        for (name, pids) in by_name(&bench) {
            assert_eq!(pids.len(), 1, "round {round}: {name} runs as {pids:?}");
        }
    }
    let supervisor = bench.start();
    for spec in specs {
        let name = spec.name.clone();
        supervisor
            .define(spec, Desired::Running)
            .await
            .expect("it is defined");
        kit::until(&supervisor, &name, |status| status.ready).await;
    }
    // One that becomes what it executes has no name for a moment, and one that was killed last may have been
    // seen while it died.
    kit::eventually("each runs once", || {
        let running = by_name(&bench);
        let rows = rows(&supervisor);
        for (name, pids) in &running {
            assert_eq!(pids.len(), 1, "{name} runs as {pids:?}");
        }
        running.len() == COUNT
            && rows.iter().all(|(name, row)| {
                let pids = running.get(name);
                row.pid
                    .is_some_and(|pid| pids.is_some_and(|pids| *pids == [pid]))
            })
    })
    .await;
    bench.end(supervisor).await;
}

fn agent_has_begun(records: &Path, before: u64) -> bool {
    std::fs::metadata(records).is_ok_and(|meta| meta.len() != before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_in_place_keeps_its_children() {
    let bench = Bench::new();
    let specs = sleepers(4);
    let agent = Agent::start(&bench, &specs);
    let all_ready = |shown: &Shown, life| {
        shown.life == life
            && shown.rows.len() == 4
            && shown.rows.values().all(|row| row.state == State::Ready)
    };
    let before = shown(&bench, "all run", |shown| all_ready(shown, 1)).await;
    // One ends while no agent looks: it must not stay a zombie.
    let victim = before.rows["a/3"].pid.expect("it runs");
    std::fs::write(bench.dir.path().join("again"), "").expect("it writes");
    kit::kill(victim);
    let after = shown(&bench, "the next life", |shown| all_ready(shown, 2)).await;
    for name in ["a/0", "a/1", "a/2"] {
        assert_eq!(after.rows[name].pid, before.rows[name].pid, "{name}");
        assert!(after.rows[name].adopted);
    }
    assert_eq!(after.rows["a/3"].attempt, 2);
    kit::eventually("no zombie is left", || {
        std::fs::metadata(format!("/proc/{victim}")).is_err()
    })
    .await;
    // Still its own children: how they end is known.
    kit::kill(before.rows["a/0"].pid.expect("it runs"));
    let last = shown(&bench, "it comes back", |shown| {
        shown.rows["a/0"].attempt == 2 && shown.rows["a/0"].state == State::Ready
    })
    .await;
    assert_eq!(last.rows["a/0"].last_exit, "signal KILL");
    agent.kill();
    let supervisor = bench.start();
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_records_cost_no_child() {
    let bench = Bench::new();
    let specs = sleepers(6);
    let agent = Agent::start(&bench, &specs);
    let before = shown(&bench, "all run", |shown| {
        shown.rows.len() == 6 && shown.rows.values().all(|row| row.state == State::Ready)
    })
    .await;
    agent.kill();
    // The first half is garbage, and so are all lines of one process.
    let path = bench.dir.path().join("run/records");
    let text = std::fs::read_to_string(&path).expect("it reads");
    let half = text.len() / 2;
    let damaged: Vec<String> = text[half..]
        .lines()
        .map(|line| {
            if line.contains("\"a/4\"") {
                line.replace("a/4", "a/9")
            } else {
                line.to_owned()
            }
        })
        .collect();
    let mut bytes = vec![0xff; half];
    bytes.extend_from_slice(damaged.join("\n").as_bytes());
    std::fs::write(&path, bytes).expect("it writes");

    let supervisor = bench.start();
    let mut events = supervisor.events();
    kit::event(&mut events, kind::RECORD_DAMAGED).await;
    for spec in specs {
        supervisor
            .define(spec, Desired::Running)
            .await
            .expect("it is defined");
    }
    for (name, row) in &before.rows {
        let status = kit::until(&supervisor, &kit::name(name), |status| status.ready).await;
        assert_eq!((status.pid, status.adopted), (row.pid, true), "{name}");
    }
    assert!(by_name(&bench).values().all(|pids| pids.len() == 1));
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_only_looks_the_part_is_not_taken_over() {
    let bench = Bench::new();
    let specs = sleepers(1);
    let agent = Agent::start(&bench, &specs);
    let before = shown(&bench, "it runs", |shown| {
        shown.rows.values().any(|row| row.state == State::Ready)
    })
    .await;
    agent.kill();
    let old = before.rows["a/0"].pid.expect("it runs");
    kit::kill(old);
    kit::gone(old).await;
    // The same command by someone else, even with its name in the environment.
    let mut stranger = Command::new("sleep")
        .arg("1000")
        .env("TANAKO_PROCESS", "a/0")
        .env("TANAKO_ATTEMPT", "1")
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let supervisor = bench.start();
    let status = kit::until(&supervisor, &kit::name("a/0"), |status| status.ready).await;
    assert_eq!((status.attempt, status.adopted), (2, false));
    assert_ne!(status.pid, Some(stranger.id()));
    bench.end(supervisor).await;
    assert!(kit::alive(stranger.id()), "strangers are left alone");
    stranger.kill().expect("it is killed");
    stranger.wait().expect("it is gone");
}
