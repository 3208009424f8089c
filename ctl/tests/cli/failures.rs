//! Agents that are not there, do not answer, or are no agents.

use std::{fs, io::Write as _, os::unix::net::UnixListener};

use tanako_proto::fleet::v1::Problem;
use tonic::Code;

use crate::world::World;

#[tokio::test]
async fn no_agent_names_the_socket_and_what_to_start() {
    let world = World::empty();
    let socket = world.socket();
    let socket = socket.to_str().expect("utf-8");
    let ran = world.run(&["--socket", socket, "status"]).await;
    insta::assert_snapshot!("no_agent", ran.all());
    let ran = world
        .run(&["--socket", socket, "status", "-o", "json"])
        .await;
    insta::assert_snapshot!("no_agent_json", ran.all());
    // A socket that a dead agent has left.
    drop(UnixListener::bind(world.socket()).expect("a socket"));
    let ran = world
        .run(&["--socket", socket, "status", "-o", "json"])
        .await;
    assert_eq!(
        (ran.code, ran.error()["code"].as_str()),
        (Some(1), Some("unreachable")),
        "{}",
        ran.all()
    );
    assert!(
        ran.error()["message"]
            .as_str()
            .is_some_and(|text| text.contains("nobody listens"))
    );
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_12() {
    let world = World::new();
    world.fake.state().hangs.insert("status");
    let ran = world
        .run(&["status", "--request-timeout", "300ms", "-o", "json"])
        .await;
    assert_eq!(ran.code, Some(12), "{}", ran.all());
    let error = ran.error();
    assert_eq!(
        (error["code"].as_str(), error["retryable"].as_bool()),
        (Some("timeout"), Some(true))
    );
    assert_eq!(error["object"], "DIR/agent.sock");
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_12() {
    let world = World::empty();
    let _listener = UnixListener::bind(world.socket()).expect("a socket");
    let socket = world.socket();
    let ran = world
        .run(&[
            "--socket",
            socket.to_str().expect("utf-8"),
            "status",
            "--request-timeout",
            "300ms",
        ])
        .await;
    assert_eq!(ran.code, Some(12), "{}", ran.all());
}

#[tokio::test]
async fn something_else_on_the_socket_is_told_as_such() {
    for garbage in [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
        b"+PONG\r\n".repeat(100),
        vec![0xff; 4096],
        vec![0; 4096],
        Vec::new(),
    ] {
        let world = World::empty();
        let listener = UnixListener::bind(world.socket()).expect("a socket");
        let reply = garbage.clone();
        let server = std::thread::spawn(move || {
            // Until the client gives up it may come several times.
            for connection in listener.incoming().take(1).flatten() {
                let mut connection = connection;
                let _ = connection.write_all(&reply);
            }
        });
        let socket = world.socket();
        let ran = world
            .run(&[
                "--socket",
                socket.to_str().expect("utf-8"),
                "status",
                "--request-timeout",
                "5s",
                "-o",
                "json",
            ])
            .await;
        server.join().expect("served");
        assert_eq!(ran.code, Some(1), "{garbage:?}: {}", ran.all());
        let code = ran.error()["code"].as_str().map(str::to_owned);
        assert!(
            matches!(code.as_deref(), Some("protocol" | "unreachable")),
            "{}",
            ran.all()
        );
        assert!(
            !ran.error()["hint"].as_str().unwrap_or_default().is_empty(),
            "{}",
            ran.all()
        );
    }
}

#[tokio::test]
async fn denials_are_13() {
    let world = World::new();
    let problem = Problem::new("denied", "status", "the role viewer may not do this")
        .hint("ask for the role operator");
    world
        .fake
        .state()
        .fails
        .insert("status", (Code::PermissionDenied, Some(problem)));
    let ran = world.run(&["status"]).await;
    insta::assert_snapshot!(ran.all());
    world
        .fake
        .state()
        .fails
        .insert("status", (Code::Unauthenticated, None));
    assert_eq!(world.run(&["status"]).await.code, Some(13));
}

#[tokio::test]
async fn an_older_agent_is_told_as_such() {
    let world = World::new();
    world
        .fake
        .state()
        .fails
        .insert("audit", (Code::Unimplemented, None));
    let ran = world.run(&["audit", "-o", "json"]).await;
    assert_eq!(
        (ran.code, ran.error()["code"].as_str()),
        (Some(1), Some("unsupported")),
        "{}",
        ran.all()
    );
    assert!(
        ran.error()["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("older"))
    );
}

#[tokio::test]
async fn the_command_line_itself() {
    let world = World::empty();
    for (name, arguments) in [
        ("misspelt_verb", "statsu"),
        ("misspelt_option", "status --wathc"),
        ("bad_format", "status -o xml"),
        ("bad_duration", "status --wait --timeout soon"),
        ("no_target", "restart"),
        ("bad_regex", "logs --grep ("),
        ("bad_since", "logs --since yesterday"),
        ("bad_guild", "guild abc"),
    ] {
        let ran = world.run(&arguments.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ran.code, Some(2), "{}", ran.all());
        assert_eq!(ran.stdout, "");
        insta::assert_snapshot!(format!("usage_{name}"), ran.all());
    }
    let ran = world.run(&["statsu", "-o", "json"]).await;
    assert_eq!(
        (ran.code, ran.error()["code"].as_str()),
        (Some(2), Some("usage")),
        "{}",
        ran.all()
    );
    let ran = world.run(&["--help"]).await;
    assert_eq!(ran.code, Some(0));
    insta::assert_snapshot!("help", ran.stdout);
}

#[tokio::test]
async fn no_secret_of_the_environment_is_ever_shown() {
    let world = World::new();
    let ran = world
        .run_with(("DISCORD_TOKEN", "very-secret"), &["status", "-o", "json"])
        .await;
    assert!(!ran.all().contains("very-secret"));
    let help = world
        .run_with(("TANAKO_DEMO_DIR", "/very-secret"), &["demo", "--help"])
        .await;
    assert!(!help.all().contains("very-secret"), "{}", help.all());
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        let process = state.status.processes[0].clone();
        state.status.processes = vec![process; 5_000];
    }
    let mut command = world.command(&["status", "-o", "json"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stdout(writer);
    drop(reader);
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("a process");
        drop(command);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut text)
            .expect("read");
        (child.wait().expect("waited").code(), text)
    })
    .await
    .expect("no panic");
    assert_eq!(ran, (Some(0), String::new()));
}

#[tokio::test]
async fn a_full_disk_behind_stdout_is_an_error() {
    let world = World::new();
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        panic!("Linux has /dev/full");
    };
    let mut command = world.command(&["status"]);
    command.stdout(full);
    let code = tokio::task::spawn_blocking(move || command.status().expect("run").code())
        .await
        .expect("no panic");
    assert_eq!(code, Some(1));
}
