//! The demo as three hosts: a power cut heals, a return is quiet, and whatever is interrupted, refused or
//! missing says so and leaves nothing behind.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;
use tanako_e2e::{Fleet, fleet, http, processes, wait};

fn names(status: &Value, what: &str) -> BTreeSet<String> {
    let all = status[what].as_array().into_iter().flatten();
    all.filter_map(|one| one["name"].as_str().map(str::to_owned))
        .collect()
}

/// The shards that are ready, and not on `host`.
fn ready_elsewhere(status: &Value, host: &str) -> usize {
    let all = status["processes"].as_array().into_iter().flatten();
    all.filter(|process| process["host"] != host && process["ready"] == true)
        .flat_map(|process| process["shards"].as_array().into_iter().flatten())
        .filter(|shard| shard["stage"] == "ready")
        .count()
}

fn nothing_is_left(fleet: &Fleet) {
    let left = processes::of(fleet.home());
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn three_hosts_lose_one_heal_and_get_it_back() {
    let fleet = Fleet::up(&["--hosts", "3", "--guilds", "300", "--no-monitor"]);
    let status = fleet.healthy();
    let hosts: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    assert_eq!(names(&status, "hosts"), hosts, "{status}");
    assert_eq!(ready_elsewhere(&status, ""), 12, "{status}");
    for host in &hosts {
        assert!(ready_elsewhere(&status, host) < 12, "none on {host}");
    }
    let info = fleet.info();
    assert_eq!(info["hosts"].as_array().map(Vec::len), Some(3), "{info}");
    let identifies = fleet.counted("/identifies");
    assert_eq!(identifies, 12);

    // Said in time: what a typing mistake means.
    let wrong = fleet.ctl(&["demo", "kill-host", "d"]);
    assert!(!wrong.status.success());
    assert!(
        fleet::text(&wrong).contains("a, b, c"),
        "{}",
        fleet::text(&wrong)
    );

    // A power cut: nothing of it lives, and its shards resume elsewhere. They can once the store has
    // their sessions, a moment after they are ready.
    for host in info["hosts"].as_array().into_iter().flatten() {
        let metrics = format!("{}/metrics", host["agent_http"].as_str().expect("a URL"));
        wait::until("sessions in the store", 60, || {
            let (_, page) = http::get(&metrics).map_err(|why| why.to_string())?;
            let safe = page.lines().any(|line| line == "tanako_vault_only_here 0");
            safe.then_some(())
                .ok_or_else(|| format!("{page}\n{}", fleet.logs()))
        });
    }
    let dry = fleet.ctl(&["demo", "kill-host", "b", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(4), "{}", fleet::text(&dry));
    let killed = fleet.ctl(&["demo", "kill-host", "b"]);
    assert!(killed.status.success(), "{}", fleet::text(&killed));
    let of_b = fleet.dir().join("hosts/b");
    let left = processes::of(&of_b);
    assert!(left.is_empty(), "{left:#?}");
    wait::until("all shards on a and c", 120, || {
        let status = fleet
            .status()
            .map_err(|why| format!("{why}\n{}", fleet.logs()))?;
        let ready = ready_elsewhere(&status, "b");
        (ready == 12)
            .then_some(())
            .ok_or(format!("{ready} ready\n{}", fleet.logs()))
    });
    assert_eq!(fleet.counted("/identifies"), identifies, "resumed");
    assert_eq!(fleet.counted("/events_lost"), 0);
    let again = fleet.json_of(&["demo", "kill-host", "b"]);
    assert_eq!(again["unchanged"], true, "{again}");

    // It comes back, and takes nothing from anybody.
    let back = fleet.ctl(&["demo", "revive-host", "b"]);
    assert!(
        back.status.success(),
        "{}\n{}",
        fleet::text(&back),
        fleet.logs()
    );
    let status = fleet.healthy();
    assert_eq!(ready_elsewhere(&status, ""), 12, "{status}");
    assert_eq!(fleet.counted("/identifies"), identifies);
    let again = fleet.json_of(&["demo", "revive-host", "b"]);
    assert_eq!(again["unchanged"], true, "{again}");

    // Nothing is left, although one host was switched off the hard way.
    let killed = fleet.ctl(&["demo", "kill-host", "c"]);
    assert!(killed.status.success(), "{}", fleet::text(&killed));
    let down = fleet.ctl(&["demo", "down"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    nothing_is_left(&fleet);
    assert!(!fleet.dir().join("run").exists());

    // And all of it comes back with the next `up`.
    let up = fleet.ctl(&["demo", "up", "--no-monitor"]);
    assert!(
        up.status.success(),
        "{}\n{}",
        fleet::text(&up),
        fleet.logs()
    );
    assert_eq!(names(&fleet.healthy(), "hosts"), hosts);
    let second = fleet.ctl(&["demo", "up", "--hosts", "3", "--no-monitor"]);
    let said = fleet::text(&second);
    assert!(
        second.status.success() && said.contains("already"),
        "{said}"
    );
    // What is there is not what is asked for: nobody is shown the one for the other.
    for other in [
        &["--hosts", "5"] as &[_],
        &["--hosts", "1"],
        &["--hosts", "5", "--dry-run"],
        &["--hosts", "3", "--guilds", "301"],
    ] {
        let refused = fleet.ctl(&[&["demo", "up", "--no-monitor"], other].concat());
        let said = fleet::text(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("was made with 3"), "{said}");
        assert!(said.contains("demo down --purge"), "{said}");
    }
    let down = fleet.ctl(&["demo", "down", "--purge", "--confirm=demo"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    nothing_is_left(&fleet);
    assert!(!fleet.dir().exists(), "purged");
}

/// A small demo on three hosts that comes up in the background.
fn begin(fleet: &Fleet) -> Child {
    let up = ["demo", "up", "--hosts", "3", "--guilds", "100"];
    fleet
        .command()
        .args(up)
        .arg("--no-monitor")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tanakoctl starts")
}

#[test]
fn an_interrupted_start_is_stopped_without_a_trace() {
    let fleet = Fleet::new();
    let mut up = begin(&fleet);
    wait::until("a first member of etcd", 90, || {
        let all = processes::of(fleet.home());
        let etcd = all
            .iter()
            .any(|(_, command)| command.contains("--initial-cluster"));
        etcd.then_some(()).ok_or(format!("{all:?}"))
    });
    processes::signal(up.id(), Signal::INT);
    assert_eq!(up.wait().expect("its end").code(), Some(130));
    let down = fleet.ctl(&["demo", "down"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    nothing_is_left(&fleet);
}

#[test]
fn what_is_missing_or_taken_is_said_before_anything_starts() {
    // No etcd.
    let fleet = Fleet::new();
    let folder = tempfile::tempdir().expect("a directory");
    let up = fleet
        .command()
        .args(["demo", "up", "--hosts", "3"])
        .env("PATH", folder.path())
        .output()
        .expect("tanakoctl starts");
    let said = fleet::text(&up);
    assert_eq!(up.status.code(), Some(1), "{said}");
    assert!(said.contains("apt-get install etcd-server"), "{said}");
    assert!(!fleet.dir().join("demo.json").exists(), "nothing was begun");
    nothing_is_left(&fleet);

    for wrong in ["0", "2", "10", "x"] {
        let up = fleet.ctl(&["demo", "up", "--hosts", wrong]);
        assert_eq!(up.status.code(), Some(2), "{}", fleet::text(&up));
    }
    let kill = fleet.ctl(&["demo", "kill-host", "b"]);
    assert!(
        fleet::text(&kill).contains("there is no demo"),
        "{}",
        fleet::text(&kill)
    );

    // A port of a demo that was made before is taken.
    let fleet = Fleet::new();
    let dry = fleet.ctl(&["demo", "up", "--hosts", "3", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(4), "{}", fleet::text(&dry));
    assert!(
        fleet::text(&dry).contains("3 x etcd"),
        "{}",
        fleet::text(&dry)
    );
    let mut up = begin(&fleet);
    wait::until("the demo's record", 60, || {
        let there = fleet.dir().join("simcord.json").exists();
        there.then_some(()).ok_or_else(String::new)
    });
    processes::signal(up.id(), Signal::INT);
    up.wait().expect("its end");
    let down = fleet.ctl(&["demo", "down"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    let info = fleet.info();
    let taken = info["hosts"][1]["address"].as_str().expect("an address");
    let _taken = TcpListener::bind(taken).expect("the port is free again");
    let up = fleet.ctl(&["demo", "up", "--no-monitor"]);
    let said = fleet::text(&up);
    assert!(!up.status.success() && said.contains(taken), "{said}");
    let down = fleet.ctl(&["demo", "down"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    nothing_is_left(&fleet);
    assert!(Path::new(&fleet.dir()).exists());
}

#[test]
fn one_host_cannot_be_killed_as_one_of_several() {
    let fleet = Fleet::up(&["--guilds", "50", "--no-monitor"]);
    let kill = fleet.ctl(&["demo", "kill-host", "a"]);
    let said = fleet::text(&kill);
    assert_eq!(kill.status.code(), Some(2), "{said}");
    assert!(said.contains("--hosts 3"), "{said}");
}
