//! `logs` and `events`.

use tanako_proto::fleet::v1::{Event, LogLine};

use crate::{fake::AT, world::World};

fn line(process: &str, at: i64, line: &str) -> LogLine {
    LogLine {
        process: process.into(),
        at: AT + at,
        line: line.into(),
        stream: "stdout".into(),
        truncated: false,
        ..LogLine::default()
    }
}

fn talkative() -> World {
    let world = World::new();
    world.fake.state().logs = vec![
        line("tanako/0", 1, "started"),
        line("db/node1", 2, "\x1b[32mlistening\x1b[0m on 7101\x07"),
        line("tanako/0", 2, "shard 0 ready"),
    ];
    world
}

#[tokio::test]
async fn lines_carry_their_process_unless_there_is_only_one() {
    let world = talkative();
    insta::assert_snapshot!("logs", world.run(&["logs"]).await.all());
    insta::assert_snapshot!(
        "logs_one",
        world.run(&["logs", "tanako/0", "-t"]).await.all()
    );
    insta::assert_snapshot!(
        "logs_json",
        world
            .run(&[
                "logs",
                "-o",
                "json",
                "--tail",
                "3",
                "--since",
                "2026-11-18T00:00:00Z",
                "-g",
                "!x"
            ])
            .await
            .all()
    );
    let state = world.fake.state();
    let request = state.asked_logs.last().expect("asked");
    assert_eq!(
        (request.tail, request.since, request.grep.as_str()),
        (3, 1_794_960_000_000, "!x")
    );
    assert_eq!(request.targets, ["all"]);
}

#[tokio::test]
async fn following_comes_back_without_showing_a_line_twice() {
    let world = talkative();
    world.fake.state().cuts = 1;
    let mut command = world.command(&["logs", "-f", "-o", "json"]);
    let lines = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("a process");
        let reader = std::io::BufReader::new(child.stdout.take().expect("piped"));
        // Three lines, then the stream stays open; a fourth would be a repetition.
        let lines: Vec<String> = std::io::BufRead::lines(reader)
            .take(3)
            .map(|line| line.expect("a line"))
            .collect();
        child.kill().expect("killed");
        child.wait().expect("reaped");
        lines
    })
    .await
    .expect("no panic");
    let texts: Vec<String> = lines
        .iter()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["line"]
                .as_str()
                .expect("text")
                .to_owned()
        })
        .collect();
    assert_eq!(texts[0], "started");
    assert_eq!(texts[2], "shard 0 ready");
    let state = world.fake.state();
    assert_eq!(state.asked_logs.len(), 2);
    assert_eq!(state.asked_logs[1].since, AT + 1);
}

#[tokio::test]
async fn events_in_every_form() {
    let world = World::new();
    world.fake.state().events = vec![
        Event {
            at: AT,
            severity: "info".into(),
            kind: "process-ready".into(),
            object: "tanako/0".into(),
            message: "ready after 1.2 s".into(),
            host: "alpha".into(),
            id: 1,
        },
        Event {
            at: AT + 1_000,
            severity: "error".into(),
            kind: "crash-loop".into(),
            object: "tanako/1".into(),
            message: "5 starts within 60 s; \x1b[2Jgiven up".into(),
            host: "alpha".into(),
            id: 2,
        },
    ];
    for format in ["table", "wide", "json", "yaml"] {
        insta::assert_snapshot!(
            format!("events_{format}"),
            world.run(&["events", "-o", format]).await.all()
        );
    }
}
