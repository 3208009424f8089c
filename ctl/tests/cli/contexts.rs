//! Contexts, and which agent is meant.

use std::{fmt::Write as _, fs};

use crate::{fake::fleet, world::World};

#[tokio::test]
async fn contexts_are_added_chosen_and_removed() {
    let world = World::empty();
    world.config("# my fleets\n");
    let ran = world.run(&["context", "list"]).await;
    assert!(ran.stdout.contains("no contexts"), "{}", ran.all());
    assert_eq!(
        world
            .run(&["context", "add", "one", "--socket", "/run/one.sock"])
            .await
            .code,
        Some(0)
    );
    assert_eq!(
        world
            .run(&["context", "add", "one", "--socket", "/run/one.sock"])
            .await
            .code,
        Some(3)
    );
    assert_eq!(
        world
            .run(&[
                "context",
                "add",
                "two",
                "--socket",
                "/run/two.sock",
                "--production",
                "--current"
            ])
            .await
            .code,
        Some(0)
    );
    insta::assert_snapshot!("contexts", world.run(&["context", "list"]).await.all());
    insta::assert_snapshot!(
        "context_show",
        world.run(&["context", "show", "-o", "json"]).await.all()
    );
    insta::assert_snapshot!(
        "context_file",
        fs::read_to_string(world.config_path()).expect("read")
    );
    assert_eq!(world.run(&["context", "use", "one"]).await.code, Some(0));
    assert_eq!(world.run(&["context", "use", "one"]).await.code, Some(3));
    let ran = world.run(&["context", "use", "tow", "-o", "json"]).await;
    assert_eq!(
        (ran.code, ran.error()["hint"].as_str()),
        (Some(1), Some("did you mean two?"))
    );
    assert_eq!(world.run(&["context", "remove", "one"]).await.code, Some(0));
    let file = fs::read_to_string(world.config_path()).expect("read");
    assert!(
        file.starts_with("# my fleets\n") && !file.contains("current"),
        "{file}"
    );
    assert_eq!(
        world
            .run(&["context", "add", "no socket", "--socket", "/x"])
            .await
            .code,
        Some(2)
    );
    assert_eq!(
        world.run(&["context", "add", "nosocket"]).await.code,
        Some(2)
    );
}

#[tokio::test]
async fn flags_come_before_the_environment_before_the_current_context() {
    let world = World::empty();
    // Each socket answers with its own name.
    let mut config = "current = \"current\"\n".to_owned();
    let mut fakes = Vec::new();
    for name in [
        "flag",
        "variable",
        "current",
        "socket-flag",
        "socket-variable",
    ] {
        let fake = crate::fake::Fake::default();
        fake.state().status = fleet();
        fake.state().status.fleet = name.into();
        let socket = fake.serve(&world.directory.path().join(format!("{name}.sock")));
        let _ = writeln!(config, "[contexts.{name}]\nsocket = {socket:?}");
        fakes.push(fake);
    }
    world.config(&config);
    let socket = |name: &str| {
        world
            .directory
            .path()
            .join(format!("{name}.sock"))
            .display()
            .to_string()
    };
    let asked = async |variables: &[(&str, &str)], flags: &[&str]| {
        let mut arguments = vec!["status", "-o", "json"];
        arguments.extend(flags);
        let mut command = world.command(&arguments);
        command.envs(variables.iter().copied());
        let ran = crate::world::finish(command, world.directory.path()).await;
        ran.json()["fleet"].as_str().expect("a name").to_owned()
    };
    let context = ("TANAKO_CONTEXT", "variable");
    let by_socket = socket("socket-variable");
    let agent = ("TANAKO_SOCKET_AGENT", by_socket.as_str());
    assert_eq!(asked(&[], &[]).await, "current");
    assert_eq!(asked(&[context], &[]).await, "variable");
    assert_eq!(asked(&[context, agent], &[]).await, "socket-variable");
    assert_eq!(
        asked(&[context, agent], &["--context", "flag"]).await,
        "flag"
    );
    assert_eq!(
        asked(&[context, agent], &["--socket", &socket("socket-flag")]).await,
        "socket-flag"
    );
    assert_eq!(
        asked(&[("TANAKO_CONTEXT", ""), ("TANAKO_SOCKET_AGENT", "")], &[]).await,
        "current"
    );
}

#[tokio::test]
async fn a_misspelt_context_and_a_broken_file() {
    let world = World::new();
    let ran = world.run(&["--context", "tset", "status"]).await;
    insta::assert_snapshot!("context_misspelt", ran.all());
    world.config("current = \"test\"\n[contexts.test]\nsocet = \"/x\"\n");
    let ran = world.run(&["status"]).await;
    insta::assert_snapshot!("context_broken", ran.all());
    // A broken file does not stand in the way of who names the socket.
    let socket = world.socket();
    assert_eq!(
        world
            .run(&["--socket", socket.to_str().expect("utf-8"), "status"])
            .await
            .code,
        Some(0)
    );
}
