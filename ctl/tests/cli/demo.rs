//! What of the demo can be seen without its programs; the whole demo is tested in `e2e/`.

use crate::world::World;

#[tokio::test]
async fn a_demo_that_never_was() {
    let world = World::empty();
    let ran = world.run(&["demo", "info", "-o", "json"]).await;
    assert_eq!(
        (ran.code, ran.error()["code"].as_str()),
        (Some(1), Some("not-found")),
        "{}",
        ran.all()
    );
    let ran = world.run(&["demo", "down"]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "the demo does not run\n"),
        "{}",
        ran.all()
    );
    let ran = world.run(&["demo", "down", "--dry-run"]).await;
    assert_eq!(ran.code, Some(0));
    assert!(
        !world.directory.path().join("state").exists(),
        "looking makes nothing"
    );
}

#[tokio::test]
async fn a_name_that_cannot_be_one_and_a_directory_of_others() {
    let world = World::empty();
    assert_eq!(
        world.run(&["demo", "up", "--context", "a/b"]).await.code,
        Some(2)
    );
    let ran = world.run(&["demo", "up", "--dry-run"]).await;
    assert_eq!(ran.code, Some(4), "{}", ran.all());
    assert!(
        ran.stdout.contains("DIR/state/tanako/demo"),
        "{}",
        ran.stdout
    );
    let ran = world
        .run(&["demo", "up", "--dry-run", "--context", "two"])
        .await;
    assert!(
        ran.stdout.contains("DIR/state/tanako/demo-two"),
        "each name has its directory: {}",
        ran.stdout
    );
    let ran = world
        .run_with(
            ("TANAKO_DEMO_DIR", "/elsewhere"),
            &["demo", "up", "--dry-run"],
        )
        .await;
    assert!(
        ran.stdout.contains("would start in /elsewhere"),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn purging_a_directory_that_is_no_demo_is_impossible() {
    let world = World::empty();
    world.write("precious.txt", "precious");
    let directory = world.directory.path().display().to_string();
    let ran = world
        .run(&[
            "demo",
            "down",
            "--purge",
            "--confirm=demo",
            "--data-dir",
            &directory,
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(world.directory.path().join("precious.txt").exists());
}
