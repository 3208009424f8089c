//! kill -9 of anything at any time: no IDENTIFY, nothing missed, nothing handled twice.
//!
//! The seed of what is killed when is printed; `TANAKO_E2E_SEED` gives it again. `TANAKO_E2E_FULL=1`
//! kills for two minutes in a fleet of 64 shards in 16 processes with 50,000 guilds and 2,000 events
//! a second.

use std::{
    io::Read as _,
    process::Child,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tanako_e2e::{
    Rig, Size, Warnings,
    discord::{demand_exact, number},
    processes,
    rig::{bots, full, seed},
    wait,
};

/// A bot's restart policy under which being killed all the time is no crash loop.
const KILLED_OFTEN: &str =
    "restart = { backoff_min = \"50ms\", backoff_max = \"200ms\", crash_loop_starts = 1000 }";

/// What ends `tanakoctl` when its user presses Ctrl-C.
const CANCELLED: i32 = 130;

fn size() -> Size {
    Size {
        bot: KILLED_OFTEN.to_owned(),
        ..Size::chosen()
    }
}

/// kill -9 of random bots for a while; gives how many.
fn kill_bots(rig: &Rig, rng: &mut fastrand::Rng, seconds: u64) -> u32 {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut killed = 0;
    while Instant::now() < end {
        // One that is still coming up would cost no RESUME.
        let status = rig.status().unwrap_or_default();
        let ready: Vec<u64> = bots(&status)
            .filter(|process| process["ready"] == true)
            .filter_map(|process| process["pid"].as_u64())
            .collect();
        if let Some(pid) = rng.choice(&ready) {
            processes::kill(u32::try_from(*pid).expect("a pid"));
            killed += 1;
        }
        std::thread::park_timeout(Duration::from_millis(rng.u64(100..900)));
    }
    killed
}

/// As with every test here: nothing spent, nothing missed, nothing twice.
fn demand_nothing(rig: &Rig, what: &str, warnings: Warnings) -> Value {
    rig.whole();
    let account = rig.settle();
    demand_exact(what, &account, 0);
    assert_eq!(number(&account, "/resumes_refused"), 0, "{account}");
    let warned = warnings.judge(rig);
    rig.say(&format!(
        "{what}: {} resumes, {} events, {} commands, {} replayed, {} of them again, {warned} warnings written once",
        number(&account, "/resumes"),
        number(&account, "/events_generated"),
        number(&account, "/interactions/sent"),
        number(&account, "/events_replayed"),
        number(&account, "/events_replayed_again"),
    ));
    account
}

#[test]
fn bots_killed_at_random_resume_everything_once() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let rig = Rig::up(size());
    rig.flow();
    let warnings = Warnings::begin(&rig, if full() { 800 } else { 120 });
    let killed = kill_bots(&rig, &mut rng, if full() { 120 } else { 20 });
    let account = demand_nothing(&rig, &format!("{killed} bots killed"), warnings);
    let at_least = u64::from(killed) / 2 * u64::from(rig.size.per_process);
    assert!(number(&account, "/resumes") >= at_least, "{account}");
}

#[test]
fn an_agent_killed_with_and_without_its_bots_comes_back_to_everything() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut rig = Rig::up(size());

    // The agent alone: nobody notices.
    let before = rig.pids();
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    for _ in 0..3 {
        rig.agent.kill();
        rig.agent.start();
    }
    let account = demand_nothing(&rig, "agent killed", warnings);
    assert_eq!(number(&account, "/resumes"), 0, "{account}");
    assert_eq!(rig.pids(), before, "adopted, not started again");

    // A bot while the agent is dead, and the agent while a bot comes back.
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    for _ in 0..3 {
        let alive = rig.bot_pids();
        let (_, victim) = rng.choice(&alive).expect("a bot").clone();
        rig.agent.kill();
        processes::kill(victim);
        rig.agent.start();
        let alive = rig.bot_pids();
        let (_, victim) = rng.choice(&alive).expect("a bot").clone();
        processes::kill(victim);
        rig.agent.kill();
        rig.agent.start();
    }
    demand_nothing(&rig, "agent and bot killed", warnings);

    // Everything at once.
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    let everyone = rig.bot_pids();
    rig.agent.kill();
    for (_, pid) in &everyone {
        processes::kill(*pid);
    }
    rig.agent.start();
    let account = demand_nothing(&rig, "agent and all bots killed", warnings);
    let all = u64::from(rig.size.shards);
    assert_eq!(number(&account, "/resumes"), all, "{account}");
}

/// How far a rolling restart is.
fn done(operation: &Value) -> u64 {
    operation["done"].as_u64().unwrap_or_default()
}

fn exit_code(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        let _ = err.read_to_string(&mut said);
    }
    (child.wait().expect("its end").code(), said)
}

#[test]
fn a_rolling_restart_goes_on_through_crashes_and_ctrl_c() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut rig = Rig::up(size());
    let processes = u64::from(rig.size.processes());

    // Ctrl-C: the command ends, the operation does not.
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    let command = rig.spawn(&["restart", "tanako", "--yes", "--wait"]);
    rig.operation("restart", "its second process", 60, |operation| {
        done(operation) >= 2 && operation["state"] == "running"
    });
    processes::signal(command.id(), Signal::INT);
    let (code, said) = exit_code(command);
    assert_eq!(code, Some(CANCELLED), "{said}");
    assert!(said.contains("goes on in the fleet"), "{said}");
    let operation = rig.ended("restart", 120);
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    assert_eq!(done(&operation), processes, "{operation:#}");
    demand_nothing(&rig, "Ctrl-C in a rolling restart", warnings);

    // kill -9 of bots in the middle: the one that is restarted, and others.
    let before = rig.pids();
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    let command = rig.spawn(&["restart", "tanako", "--yes", "--wait"]);
    for step in 1..=3 {
        rig.operation("restart", "another process", 60, |operation| {
            done(operation) >= step && operation["state"] == "running"
        });
        let alive = rig.bot_pids();
        let (_, victim) = rng.choice(&alive).expect("a bot").clone();
        processes::kill(victim);
    }
    let (code, said) = exit_code(command);
    assert_eq!(code, Some(0), "{said}\n{}", rig.story());
    demand_nothing(&rig, "bots killed in a rolling restart", warnings);
    for (name, (pid, attempt)) in rig.pids() {
        let (old_pid, old_attempt) = before[&name];
        if name.starts_with("tanako/") {
            assert!(pid != old_pid && attempt > old_attempt, "{name}");
        }
    }

    // kill -9 of the agent in the middle: the next one goes on, and the command sees the end.
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    let command = rig.spawn(&["restart", "tanako", "--yes", "--wait"]);
    rig.operation("restart", "its second process", 60, |operation| {
        done(operation) >= 2 && operation["state"] == "running"
    });
    rig.agent.kill();
    rig.agent.start();
    let (code, said) = exit_code(command);
    assert_eq!(code, Some(0), "{said}\n{}", rig.story());
    let operation = rig.ended("restart", 120);
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    demand_nothing(&rig, "agent killed in a rolling restart", warnings);

    // Agent and a bot at once in the middle.
    rig.flow();
    let warnings = Warnings::begin(&rig, 60);
    let command = rig.spawn(&["restart", "tanako", "--yes", "--wait"]);
    rig.operation("restart", "its second process", 60, |operation| {
        done(operation) >= 2 && operation["state"] == "running"
    });
    let alive = rig.bot_pids();
    let (_, victim) = rng.choice(&alive).expect("a bot").clone();
    rig.agent.kill();
    processes::kill(victim);
    rig.agent.start();
    let (code, said) = exit_code(command);
    assert_eq!(code, Some(0), "{said}\n{}", rig.story());
    demand_nothing(
        &rig,
        "agent and a bot killed in a rolling restart",
        warnings,
    );
    wait::until("nothing at work", 30, || {
        let status = rig.status()?;
        let operations = status["operations"].as_array().cloned().unwrap_or_default();
        let open = operations.iter().find(|operation| {
            matches!(
                operation["state"].as_str(),
                Some("pending" | "running" | "paused")
            )
        });
        open.is_none().then_some(()).ok_or(status.to_string())
    });
}
