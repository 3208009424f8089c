//! When a process counts as ready and as alive, and what happens when it cannot be started.

#[path = "supervisor_kit/mod.rs"]
mod kit;

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use kit::{Bench, shell};
use tanako_agent::supervisor::{Desired, StartGate, State, Supervisor, WorkerInput, kind};
use tanako_fleet::{
    ProcessSpec,
    process::{Probe, SecretEnv},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Sends its arguments to the notify socket, one datagram each, from a child of the process. It stays until
/// they have been read, as `systemd-notify` does: of one that has gone nobody can tell whose child it was.
const NOTIFY: &str = r#"notify() { python3 -c '
import array, os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for text in sys.argv[1:]:
    s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
r, w = os.pipe()
fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [w]))]
s.sendmsg([b"BARRIER=1"], fds, 0, os.environ["NOTIFY_SOCKET"])
os.close(w)
os.read(r, 1)
' "$@"; }"#;

async fn define(supervisor: &Supervisor, spec: ProcessSpec) {
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_by_notification() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let script = format!(
        "{NOTIFY}; trap 'notify STOPPING=1; exit 0' TERM; \
         notify STATUS=warming; read x <gate; notify READY=1 'STATUS=all is well'; \
         while :; do sleep 0.1; done"
    );
    let gate = bench.dir.path().join("gate");
    std::process::Command::new("mkfifo")
        .arg(&gate)
        .status()
        .expect("a fifo");
    let mut spec = shell("a/0", &script);
    spec.ready.probe = Probe::Notify;
    define(&supervisor, spec).await;
    let status = kit::until(&supervisor, &name, |status| status.detail == "warming").await;
    assert_eq!(status.state, State::Starting);

    // A stranger's word counts for nothing.
    let stranger = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    stranger
        .send_to(b"READY=1", bench.dir.path().join("r/notify.sock"))
        .expect("it is sent");
    tokio::fs::write(&gate, "go\n").await.expect("it opens");
    let status = kit::until(&supervisor, &name, |status| {
        status.ready && status.detail == "all is well"
    })
    .await;
    assert!(status.ready_at_ms >= status.started_at_ms);
    supervisor.stop(&name).await.expect("it stops");
    let status = kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    assert_eq!(status.last_exit, "exit code 0");
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_does_not_make_it_ready() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut events = supervisor.events();
    let mut spec = shell("a/0", "exec sleep 1000");
    spec.ready.probe = Probe::Notify;
    spec.ready.timeout = Duration::from_millis(700);
    define(&supervisor, spec).await;
    kit::until(&supervisor, &name, |status| status.pid.is_some()).await;
    let stranger = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    stranger
        .send_to(b"READY=1", bench.dir.path().join("r/notify.sock"))
        .expect("it is sent");
    let event = kit::event(&mut events, kind::READY_TIMEOUT).await;
    assert!(event.message.contains("READY=1"), "{}", event.message);
    kit::until(&supervisor, &name, |status| status.attempt >= 2).await;
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_by_http_and_not_when_it_fails() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let (answer, answers) = tokio::sync::watch::channel("503 Not yet");
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let text = format!(
                "HTTP/1.1 {}\r\ncontent-length: 0\r\n\r\n",
                *answers.borrow()
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    let mut spec = shell("a/0", "exec sleep 1000");
    spec.ready.probe = Probe::Http {
        url: format!("http://{address}/health"),
        interval: Duration::from_millis(50),
    };
    // Longer than the test may need to see the failure before it.
    spec.watchdog = Some(Duration::from_secs(5));
    define(&supervisor, spec).await;
    kit::until(&supervisor, &name, |status| status.detail.contains("503")).await;
    answer.send_replace("204 Fine");
    kit::until(&supervisor, &name, |status| status.ready).await;
    answer.send_replace("500 Broken");
    let status = kit::until(&supervisor, &name, |status| status.state == State::Running).await;
    assert!(status.detail.contains("500"), "{}", status.detail);
    // Long enough without an answer: it hangs.
    kit::until(&supervisor, &name, |status| status.attempt >= 2).await;
    server.abort();
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_by_worker_report_of_this_attempt_only() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut spec = shell("a/0", "exec sleep 1000");
    spec.ready.probe = Probe::Worker;
    define(&supervisor, spec).await;
    let status = kit::until(&supervisor, &name, |status| status.pid.is_some()).await;
    supervisor.worker_input(&name, 7, WorkerInput::Ready).await;
    supervisor
        .worker_input(&name, 1, WorkerInput::Attached)
        .await;
    supervisor
        .worker_input(&name, 1, WorkerInput::NotReady("2 of 3 shards".to_owned()))
        .await;
    let waiting = kit::until(&supervisor, &name, |status| {
        status.detail == "2 of 3 shards"
    })
    .await;
    assert_eq!(waiting.state, State::Starting);
    supervisor.worker_input(&name, 1, WorkerInput::Ready).await;
    kit::until(&supervisor, &name, |status| status.ready).await;
    kit::kill(status.pid.expect("it runs"));
    kit::until(&supervisor, &name, |status| {
        status.attempt == 2 && status.pid.is_some()
    })
    .await;
    // What the first attempt left in the pipe.
    supervisor.worker_input(&name, 1, WorkerInput::Ready).await;
    supervisor
        .worker_input(&name, 2, WorkerInput::NotReady("none".to_owned()))
        .await;
    let status = kit::until(&supervisor, &name, |status| status.detail == "none").await;
    assert_eq!(status.state, State::Starting);
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_a_hang_whatever_the_probe() {
    let bench = Bench::new();
    let supervisor = bench.start();
    let mut events = supervisor.events();
    let mut by_log = shell("a/0", "echo up; exec sleep 1000");
    by_log.ready.probe = Probe::Log {
        pattern: "up".to_owned(),
    };
    let by_word = shell("a/1", "exec sleep 1000");
    let mut chatty = shell("a/2", "while :; do echo alive; sleep 0.3; done");
    chatty.watchdog = Some(Duration::from_secs(30));
    for mut spec in [by_log, by_word] {
        spec.watchdog = Some(Duration::from_millis(1500));
        define(&supervisor, spec).await;
    }
    define(&supervisor, chatty).await;
    kit::event(&mut events, kind::WATCHDOG).await;
    for name in ["a/0", "a/1"] {
        let status = kit::until(&supervisor, &kit::name(name), |status| status.attempt >= 2).await;
        assert!(status.restarts >= 1);
    }
    assert_eq!(
        kit::until(&supervisor, &kit::name("a/2"), |status| status.log_lines
            > 2)
        .await
        .attempt,
        1
    );
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_says_why() {
    let bench = Bench::new();
    let supervisor = bench.start();
    let dir = bench.dir.path();
    let plain = dir.join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").expect("it writes");
    let (open, empty) = (dir.join("open"), dir.join("empty"));
    std::fs::write(&open, "s3cr3t-t0ken").expect("it writes");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).expect("modes");
    std::fs::write(&empty, "\n").expect("it writes");
    std::fs::set_permissions(&empty, std::fs::Permissions::from_mode(0o600)).expect("modes");

    let secret = |file: &std::path::Path| {
        BTreeMap::from([(
            "TOKEN".to_owned(),
            SecretEnv {
                file: file.display().to_string(),
                template: "{secret}".to_owned(),
            },
        )])
    };
    let with = |change: &dyn Fn(&mut ProcessSpec)| {
        let mut spec = shell("a/0", "exec sleep 1000");
        spec.restart.crash_loop_starts = 2;
        change(&mut spec);
        spec
    };
    let cases = [
        (
            with(&|s| s.command = vec!["no-such-command".to_owned()]),
            "command not found",
        ),
        (
            with(&|s| s.command = vec!["/no/such/file".to_owned()]),
            "command not found",
        ),
        (
            with(&|s| s.command = vec![plain.display().to_string()]),
            "chmod +x",
        ),
        (
            with(&|s| s.command = vec![dir.display().to_string()]),
            "is a directory",
        ),
        (with(&|s| s.command = Vec::new()), "its command is empty"),
        (
            with(&|s| s.directory = Some("/no/such/dir".to_owned())),
            "directory /no/such/dir",
        ),
        (
            with(&|s| s.secret_env = secret(&dir.join("absent"))),
            "cannot be read",
        ),
        (with(&|s| s.secret_env = secret(&open)), "chmod 600"),
        (with(&|s| s.secret_env = secret(&empty)), "is empty"),
        (with(&|s| s.secret_env = secret(dir)), "is not a file"),
    ];
    for (number, (mut spec, _)) in cases.iter().cloned().enumerate() {
        spec.name = format!("a/{number}").parse().expect("a name");
        define(&supervisor, spec).await;
    }
    for (number, (_, expected)) in cases.iter().enumerate() {
        let name = kit::name(&format!("a/{number}"));
        let status = kit::until(&supervisor, &name, |status| status.state == State::Failed).await;
        assert!(
            status.detail.contains(expected),
            "{expected}: {}",
            status.detail
        );
        assert!(!format!("{status:?}").contains("s3cr3t"));
    }
    // Put right, it starts.
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o600)).expect("modes");
    let name = kit::name("a/7");
    supervisor.start_process(&name).await.expect("it starts");
    let status = kit::until(&supervisor, &name, |status| status.ready).await;
    // There is none for a moment while the shell becomes what it executes.
    let environ = format!("/proc/{}/environ", status.pid.expect("it runs"));
    kit::eventually("it has its secret", || {
        let environ = std::fs::read(&environ).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains("TOKEN=s3cr3t-t0ken\0")
    })
    .await;
    bench.end(supervisor).await;
    let written = std::fs::read_to_string(dir.join("run/records")).expect("it reads");
    assert!(
        !written.contains("s3cr3t"),
        "secrets are never written down"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_is_the_specs_and_not_the_agents() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut spec = shell("a/0", "env; echo end; exec sleep 1000");
    spec.env.insert("COLOUR".to_owned(), "green".to_owned());
    spec.limits.open_files = Some(123);
    spec.ready.probe = Probe::Log {
        pattern: "^end$".to_owned(),
    };
    define(&supervisor, spec).await;
    let status = kit::until(&supervisor, &name, |status| status.ready).await;
    let lines = supervisor
        .logs()
        .read_tail(&name, 1000)
        .await
        .expect("it has a log");
    let has = |text: &str| lines.iter().any(|line| line.text == text);
    assert!(has("COLOUR=green") && has("TANAKO_PROCESS=a/0") && has("TANAKO_ATTEMPT=1"));
    assert!(
        !lines.iter().any(|line| line.text.starts_with("CARGO")),
        "{lines:?}"
    );
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", status.pid.expect("it runs")))
        .expect("it reads");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("a limit");
    assert_eq!(files.split_whitespace().nth(3), Some("123"));
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_beyond_its_limit_ends_in_a_restart() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let mut events = supervisor.events();
    let mut spec = shell(
        "a/0",
        "exec python3 -c 'import time; x = bytearray(64 << 20); time.sleep(1000)'",
    );
    spec.limits.memory_bytes = Some(32 << 20);
    define(&supervisor, spec).await;
    let event = kit::event(&mut events, kind::MEMORY).await;
    assert!(event.message.contains("33554432"), "{}", event.message);
    kit::until(&supervisor, &name, |status| status.attempt >= 2).await;
    bench.end(supervisor).await;
}

/// A gate that opens by hand.
struct Gate(tokio::sync::watch::Sender<u32>);

impl StartGate for Gate {
    fn acquire(&self, _: &ProcessSpec, _: u64) -> BoxFuture<'static, Result<(), String>> {
        let mut open = self.0.subscribe();
        Box::pin(async move {
            match open.wait_for(|open| *open > 0).await {
                Ok(open) if *open == 1 => Ok(()),
                _ => Err("the budget is spent".to_owned()),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gated_processes_wait_for_their_turn() {
    let bench = Bench::new();
    let (gate, _) = tokio::sync::watch::channel(0);
    let supervisor = Supervisor::start(
        bench.config(),
        Arc::new(Gate(gate.clone())),
        CancellationToken::new(),
        &TaskTracker::new(),
    )
    .expect("it starts");
    let (gated, free) = (kit::name("a/0"), kit::name("a/1"));
    let mut spec = shell("a/0", "exec sleep 1000");
    spec.gated = true;
    define(&supervisor, spec).await;
    define(&supervisor, shell("a/1", "exec sleep 1000")).await;
    kit::until(&supervisor, &free, |status| status.ready).await;
    let waiting = kit::until(&supervisor, &gated, |status| {
        status.state == State::Starting
    })
    .await;
    assert_eq!(waiting.pid, None);
    assert!(waiting.detail.contains("turn"), "{}", waiting.detail);
    // Stopped while it waits, it gives its place up.
    supervisor.stop(&gated).await.expect("it stops");
    gate.send_replace(1);
    kit::until(&supervisor, &gated, |status| status.state == State::Stopped).await;
    supervisor.start_process(&gated).await.expect("it starts");
    let status = kit::until(&supervisor, &gated, |status| status.ready).await;
    assert_eq!(status.attempt, 2);
    gate.send_replace(2);
    supervisor
        .restart(&gated, status.attempt)
        .await
        .expect("it restarts");
    let status = kit::until(&supervisor, &gated, |status| status.state == State::Backoff).await;
    assert!(status.detail.contains("budget"), "{}", status.detail);
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_spec_waits_for_a_restart() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    define(&supervisor, shell("a/0", "exec sleep 1000")).await;
    let first = kit::until(&supervisor, &name, |status| status.ready).await;
    define(&supervisor, shell("a/0", "exec sleep 2000")).await;
    let changed = kit::until(&supervisor, &name, |status| status.needs_restart).await;
    assert_eq!((changed.pid, changed.attempt), (first.pid, 1));
    supervisor
        .restart(&name, first.attempt)
        .await
        .expect("it restarts");
    kit::until(&supervisor, &name, |status| {
        status.attempt == 2 && status.ready && !status.needs_restart
    })
    .await;
    let unknown = supervisor.stop(&kit::name("b/0")).await;
    assert!(
        unknown
            .expect_err("no such process")
            .to_string()
            .contains("b/0")
    );
    assert!(supervisor.signal(&name, "FLY").await.is_err());
    supervisor
        .signal(&name, "SIGKILL")
        .await
        .expect("it is sent");
    kit::until(&supervisor, &name, |status| {
        status.attempt == 3 && status.ready
    })
    .await;
    bench.end(supervisor).await;
}
