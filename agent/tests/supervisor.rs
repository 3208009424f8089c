//! The supervisor with real processes.

#[path = "supervisor_kit/mod.rs"]
mod kit;

use std::time::Duration;

use kit::{Bench, shell};
use tanako_agent::supervisor::{Desired, State, Supervisor, kind};
use tanako_fleet::{
    ProcessName,
    process::{Probe, RestartWhen},
};

/// Waits for so many lines in its log: one that is ready has been started, and may not have got to say
/// anything.
async fn has_said(supervisor: &Supervisor, name: &ProcessName, lines: usize) {
    let end = std::time::Instant::now() + kit::PATIENCE;
    while kit::texts(supervisor, name).await.len() < lines {
        assert!(std::time::Instant::now() < end, "it says nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_started_stopped_and_restarted() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let spec = shell(
        "a/0",
        "echo up $TANAKO_PROCESS $TANAKO_ATTEMPT; echo err >&2; exec sleep 1000",
    );
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    let first = kit::until(&supervisor, &name, |status| status.ready).await;
    assert_eq!((first.attempt, first.restarts), (1, 0));
    let pid = first.pid.expect("it runs");
    assert!(kit::alive(pid));

    // It has said all it says before it is stopped.
    has_said(&supervisor, &name, 2).await;
    supervisor
        .restart(&name, first.attempt)
        .await
        .expect("it restarts");
    let second = kit::until(&supervisor, &name, |status| {
        status.attempt == 2 && status.ready
    })
    .await;
    assert_eq!(second.restarts, 0, "nobody counts what was asked for");
    assert!(!kit::alive(pid));
    assert_eq!(second.last_exit, "signal TERM");

    has_said(&supervisor, &name, 4).await;
    supervisor.stop(&name).await.expect("it stops");
    let third = kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    assert_eq!((third.pid, third.desired), (None, Desired::Stopped));
    assert!(!kit::alive(second.pid.expect("it ran")));

    let texts = kit::texts(&supervisor, &name).await;
    assert_eq!(texts, ["up a/0 1", "err", "up a/0 2", "err"]);
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_followed_by_a_new_process_at_once() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    supervisor
        .define(shell("a/0", "exec sleep 1000"), Desired::Running)
        .await
        .expect("it is defined");
    let first = kit::until(&supervisor, &name, |status| status.ready).await;
    kit::kill(first.pid.expect("it runs"));
    let second = kit::until(&supervisor, &name, |status| {
        status.attempt == 2 && status.ready
    })
    .await;
    assert_eq!(
        (second.restarts, second.last_exit.as_str()),
        (1, "signal KILL")
    );
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_exits_at_once_ends_as_failed_and_starts_by_hand() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut events = supervisor.events();
    let mut spec = shell("a/0", "exit 3");
    spec.restart.crash_loop_starts = 3;
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    let failed = kit::until(&supervisor, &name, |status| status.state == State::Failed).await;
    assert_eq!(
        (failed.attempt, failed.last_exit.as_str()),
        (3, "exit code 3")
    );
    assert!(failed.detail.contains("crash loop"), "{}", failed.detail);
    kit::event(&mut events, kind::CRASH_LOOP).await;

    supervisor
        .start_process(&name)
        .await
        .expect("never refused");
    kit::until(&supervisor, &name, |status| {
        status.state == State::Failed && status.attempt == 6
    })
    .await;
    supervisor.stop(&name).await.expect("it stops");
    kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_after_an_exit() {
    let bench = Bench::new();
    let supervisor = bench.start();
    let cases = [
        (
            "a/0",
            RestartWhen::OnFailure,
            "exit 0",
            State::Stopped,
            "finished",
        ),
        (
            "a/1",
            RestartWhen::Never,
            "exit 0",
            State::Stopped,
            "finished",
        ),
        (
            "a/2",
            RestartWhen::Never,
            "exit 1",
            State::Failed,
            "exit code 1",
        ),
    ];
    for (name, when, script, _, _) in &cases {
        let mut spec = shell(name, script);
        spec.restart.when = *when;
        supervisor
            .define(spec, Desired::Running)
            .await
            .expect("it is defined");
    }
    for (name, _, _, state, detail) in &cases {
        let status = kit::until(&supervisor, &kit::name(name), |status| {
            status.state == *state && status.attempt == 1
        })
        .await;
        assert!(status.detail.contains(detail), "{name}: {}", status.detail);
    }
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ignores_the_signal_is_killed_with_its_group() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut events = supervisor.events();
    let mut spec = shell(
        "a/0",
        "trap '' TERM; sleep 1000 & echo child $!; while :; do sleep 1000; done",
    );
    spec.stop.grace = Duration::from_millis(300);
    spec.ready.probe = Probe::Log {
        pattern: "^child".to_owned(),
    };
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    let status = kit::until(&supervisor, &name, |status| status.ready).await;
    let child = kit::number_in_log(&supervisor, &name, "child ").await;
    assert!(kit::alive(child));
    supervisor.stop(&name).await.expect("it stops");
    kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    kit::event(&mut events, kind::KILLED).await;
    assert!(!kit::alive(status.pid.expect("it ran")));
    kit::gone(child).await;
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_a_dead_process_are_killed() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut events = supervisor.events();
    // One in the group, one that escaped it.
    let mut spec = shell(
        "a/0",
        "sleep 1000 & echo inside $!; setsid sh -c 'echo escaped $$; exec sleep 1000' & wait",
    );
    spec.ready.probe = Probe::Log {
        pattern: "^escaped".to_owned(),
    };
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    let status = kit::until(&supervisor, &name, |status| status.ready).await;
    let inside = kit::number_in_log(&supervisor, &name, "inside ").await;
    let escaped = kit::number_in_log(&supervisor, &name, "escaped ").await;
    assert!(kit::alive(inside) && kit::alive(escaped));
    kit::kill(status.pid.expect("it runs"));
    kit::gone(inside).await;
    kit::gone(escaped).await;
    let event = kit::event(&mut events, kind::LEFTOVERS).await;
    assert!(
        event.message.contains(&escaped.to_string()),
        "{}",
        event.message
    );
    bench.end(supervisor).await;
}
