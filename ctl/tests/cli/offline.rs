//! Verbs that need no agent.

use std::fs;

use crate::world::World;

#[tokio::test]
async fn sizing() {
    let world = World::empty();
    for guilds in ["500", "10000", "200000"] {
        let ran = world.run(&["sizing", "--guilds", guilds]).await;
        assert_eq!(ran.code, Some(0));
        insta::assert_snapshot!(format!("sizing_{guilds}"), ran.all());
    }
    let json = world
        .run(&["sizing", "--guilds", "10000", "-o", "json"])
        .await
        .json();
    assert_eq!(
        (json["shards"].as_u64(), json["db_nodes_max"].as_u64()),
        (Some(10), Some(3))
    );
    assert_eq!(
        world.run(&["sizing", "--guilds", "many"]).await.code,
        Some(2)
    );
}

#[tokio::test]
async fn init_writes_once_and_never_over() {
    let world = World::empty();
    let ran = world
        .run(&["init", "--name", "my-bot", "--guilds", "10000"])
        .await;
    insta::assert_snapshot!("init", ran.all());
    let path = world.directory.path().join("fleet.toml");
    let text = fs::read_to_string(&path).expect("read");
    assert!(
        text.contains("name = \"my-bot\"") && text.contains("shards = 10"),
        "{text}"
    );
    let again = world.run(&["init"]).await;
    assert_eq!(again.code, Some(1), "{}", again.all());
    assert_eq!(fs::read_to_string(&path).expect("read"), text);
    let dry = world.run(&["init", "--dry-run", "other.toml"]).await;
    assert_eq!(dry.code, Some(0));
    assert!(
        dry.stdout.contains("[bots.tanako]") && !world.directory.path().join("other.toml").exists()
    );
    assert_eq!(
        world
            .run(&["init", "x.toml", "--name", "Not A Name"])
            .await
            .code,
        Some(2)
    );
    assert_eq!(
        world.run(&["init", "no/such/dir/fleet.toml"]).await.code,
        Some(1)
    );
}

#[tokio::test]
async fn completions_and_man_pages_know_every_verb() {
    let world = World::empty();
    for shell in ["bash", "zsh", "fish"] {
        let ran = world.run(&["completions", shell]).await;
        assert_eq!(ran.code, Some(0));
        for verb in ["restart", "identify", "completions"] {
            assert!(ran.stdout.contains(verb), "{shell} lacks {verb}");
        }
    }
    let directory = world.directory.path().join("man");
    let ran = world
        .run(&["man", directory.to_str().expect("utf-8")])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    for page in [
        "tanakoctl.1",
        "tanakoctl-status.1",
        "tanakoctl-backup-prune.1",
        "tanakoctl-demo-up.1",
    ] {
        assert!(directory.join(page).is_file(), "{page}");
    }
}

#[tokio::test]
async fn doctor_says_what_to_do_and_is_10_without_an_agent() {
    let world = World::empty();
    let socket = world.socket();
    let ran = world
        .run(&[
            "--socket",
            socket.to_str().expect("utf-8"),
            "doctor",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(ran.code, Some(10), "{}", ran.all());
    let report = ran.json();
    let findings = report["findings"].as_array().expect("a list");
    let agent = findings
        .iter()
        .find(|finding| finding["check"] == "agent")
        .expect("about the agent");
    assert_eq!(
        (agent["severity"].as_str(), agent["scope"].as_str()),
        (Some("error"), Some("fleet"))
    );
    for finding in findings {
        assert!(
            finding["severity"] == "ok" || finding["hint"] != "",
            "{finding}"
        );
    }
    assert!(findings.iter().any(|finding| finding["check"] == "kernel"));
}

#[tokio::test]
async fn doctor_asks_the_agent_as_well() {
    use tanako_proto::fleet::v1::{Finding, SpecDocument};
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.findings = vec![Finding {
            severity: "warning".into(),
            check: "log space".into(),
            message: "logs take 90 % of their share".into(),
            hint: "raise logs.keep".into(),
            ..Finding::default()
        }];
        state.spec = SpecDocument {
            toml: "[fleet]\nname = \"test\"\n[bots.a]\ncommand = [\"/bin/sh\"]\nworker = false\nshards = 1\ntoken_file = \"/no/such/token\"\ntoken_env = \"T\"\n".into(),
            version: 1,
        };
    }
    let ran = world.run(&["doctor"]).await;
    assert_eq!(ran.code, Some(10), "a token file is missing: {}", ran.all());
    assert!(
        ran.stdout.contains("log space") && ran.stdout.contains("do: raise logs.keep"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("/no/such/token") && ran.stdout.contains("install -m 600"),
        "{}",
        ran.stdout
    );
}
