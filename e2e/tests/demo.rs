//! The main job: a live local fleet from one command, on the real binaries.

use std::{collections::BTreeSet, net::TcpStream, path::Path};

use serde_json::{Value, json};
use tanako_e2e::{Fleet, db, fleet, http, logs, processes, wait};

fn until_dead(pid: u32) {
    wait::until("a process's end", 60, || {
        (!processes::alive(pid))
            .then_some(())
            .ok_or("alive".to_owned())
    });
}

fn sum(status: &Value, field: &str) -> u64 {
    let shards = status["processes"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|process| process["shards"].as_array().into_iter().flatten());
    shards
        .map(|shard| shard[field].as_u64().unwrap_or_default())
        .sum()
}

/// One fleet, looked at from every side: starting it takes longer than any of the questions.
#[test]
fn a_fleet_from_one_command_and_nothing_left_of_it() {
    let fleet = Fleet::new();
    let up = fleet.ctl(&["demo", "up"]);
    let printed = fleet::text(&up);
    assert!(up.status.success(), "{printed}\n{}", fleet.logs());
    assert!(
        printed.contains("tanako/3") && printed.contains("demo down"),
        "{printed}"
    );

    // What the contract promises of status and info.
    let status = fleet.healthy();
    for field in [
        "fleet",
        "version",
        "healthy",
        "hosts",
        "processes",
        "identify",
        "operations",
    ] {
        assert!(!status[field].is_null(), "{field}: {status}");
    }
    let before = fleet::pids(&status);
    let names: Vec<&str> = before.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "db/node1", "db/node2", "db/node3", "tanako/0", "tanako/1", "tanako/2", "tanako/3"
        ]
    );
    wait::until("10,000 guilds on 8 shards", 60, || {
        let status = fleet.status()?;
        let guilds = sum(&status, "guilds");
        (guilds == 10_000)
            .then_some(())
            .ok_or(format!("{guilds} guilds"))
    });
    let identify = &status["identify"];
    assert_eq!(identify["max_concurrency"], 8, "{identify}");
    assert_eq!(fleet.counted("/identifies"), 8, "one IDENTIFY per shard");
    let wasted = logs::wasted_permits(&fleet.dir());
    let used = identify["used"].as_u64().expect("a number");
    assert!((8..=8 + wasted).contains(&used), "{wasted} {identify}");
    assert_eq!(fleet.counted("/identifies_refused"), 0);
    let info = fleet.info();
    for field in [
        "agent",
        "simcord",
        "db",
        "db_token_file",
        "data_dir",
        "context",
    ] {
        assert!(!info[field].is_null(), "{field}: {info}");
    }
    assert_eq!(info["db"].as_array().map(Vec::len), Some(3));
    assert_eq!(info["context"], "demo");

    // Living numbers: slash commands are answered, the database is read and written.
    let answered = fleet.counted("/interactions/answered");
    wait::until("more answered interactions", 60, || {
        let now = fleet.counted("/interactions/answered");
        (now >= answered + 5)
            .then_some(())
            .ok_or(format!("{now} after {answered}"))
    });
    let account = fleet.account();
    assert_eq!(account["interactions"]["answered_twice"], 0, "{account}");

    // A second `demo up` says so and changes nothing.
    let again = fleet.ctl(&["demo", "up"]);
    assert!(again.status.success(), "{}", fleet::text(&again));
    assert!(
        fleet::text(&again).contains("already"),
        "{}",
        fleet::text(&again)
    );
    assert_eq!(fleet::pids(&fleet.healthy()), before);

    // kill -9 of the agent: the children live on, and the next agent adopts them.
    let agent = u32::try_from(info["agent_pid"].as_u64().expect("the agent's pid")).expect("a pid");
    processes::kill(agent);
    until_dead(agent);
    for (name, (pid, _)) in &before {
        assert!(
            processes::alive(u32::try_from(*pid).expect("a pid")),
            "{name} died with its agent"
        );
    }
    let back = fleet.ctl(&["demo", "up"]);
    assert!(
        back.status.success(),
        "{}\n{}",
        fleet::text(&back),
        fleet.logs()
    );
    assert_eq!(
        fleet::pids(&fleet.healthy()),
        before,
        "adopted, not started again"
    );
    assert_eq!(fleet.counted("/identifies"), 8, "nobody identified again");

    // The agent's own endpoints.
    let agent_http = fleet.info()["agent_http"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let (code, metrics) = http::get(&format!("{agent_http}/metrics")).expect("metrics");
    assert!(
        code == 200 && metrics.contains("tanako_process_ready"),
        "{metrics}"
    );
    assert_eq!(
        http::get(&format!("{agent_http}/health"))
            .expect("health")
            .0,
        200
    );

    // Nothing is left: no process, no socket, no port.
    let down = fleet.ctl(&["demo", "down"]);
    assert!(down.status.success(), "{}", fleet::text(&down));
    let left = processes::of(fleet.home());
    assert!(left.is_empty(), "{left:?}");
    let sockets = sockets_below(fleet.home());
    assert!(sockets.is_empty(), "{sockets:?}");
    for url in info["db"]
        .as_array()
        .into_iter()
        .flatten()
        .chain([&info["simcord"]])
    {
        let url = url.as_str().expect("a URL");
        let address = url
            .split("//")
            .nth(1)
            .expect("an authority")
            .trim_end_matches('/');
        assert!(
            TcpStream::connect(address).is_err(),
            "{address} still answers"
        );
    }
    let twice = fleet.ctl(&["demo", "down"]);
    assert!(
        twice.status.success(),
        "down is idempotent: {}",
        fleet::text(&twice)
    );
}

fn sockets_below(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets_below(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path().display().to_string()),
            _ => {}
        }
    }
    found
}

/// Restarts, by hand and by kill -9, cost no IDENTIFY and lose nothing; what was stopped stays stopped.
#[test]
fn restarts_resume_and_stopped_stays_stopped() {
    let fleet = Fleet::up(&["--guilds", "800"]);
    let before = fleet::pids(&fleet.healthy());
    let identifies = fleet.counted("/identifies");
    let resumes = fleet.counted("/resumes");

    fleet.ok(&["restart", "tanako", "--yes", "--wait"]);
    let after = fleet::pids(&fleet.healthy());
    for (name, (pid, attempt)) in &before {
        let (new_pid, new_attempt) = after[name];
        if name.starts_with("tanako/") {
            assert!(
                new_pid != *pid && new_attempt == attempt + 1,
                "{name} was not restarted"
            );
        } else {
            assert_eq!(
                (new_pid, new_attempt),
                (*pid, *attempt),
                "{name} was touched"
            );
        }
    }
    assert_eq!(
        fleet.counted("/identifies"),
        identifies,
        "a restart spends no IDENTIFY"
    );
    assert_eq!(fleet.counted("/resumes"), resumes + 8);
    assert_eq!(fleet.counted("/interactions/answered_twice"), 0);

    // What was answered in the last moment before a kill -9 is replayed and answered again, which
    // Discord refuses; but nothing is lost.
    let (victim, attempt) = after["tanako/1"];
    processes::kill(u32::try_from(victim).expect("a pid"));
    wait::until("the victim's successor", 60, || {
        let status = fleet.status()?;
        let (pid, now) = fleet::pids(&status)["tanako/1"];
        (status["healthy"] == true && pid != victim && now == attempt + 1)
            .then_some(())
            .ok_or(status["reasons"].to_string())
    });
    assert_eq!(
        fleet.counted("/identifies"),
        identifies,
        "a crash spends no IDENTIFY"
    );
    assert_eq!(fleet.counted("/events_lost"), 0);

    fleet.ok(&["stop", "tanako/2", "--yes", "--wait"]);
    let agent = fleet.info()["agent_pid"].as_u64().expect("the agent's pid");
    let agent = u32::try_from(agent).expect("a pid");
    processes::kill(agent);
    until_dead(agent);
    let up = fleet.ctl(&["demo", "up"]);
    assert!(
        up.status.success(),
        "{}\n{}",
        fleet::text(&up),
        fleet.logs()
    );
    let status = wait::until("the agent's return", 60, || fleet.status());
    let stopped = status["processes"]
        .as_array()
        .and_then(|all| all.iter().find(|process| process["name"] == "tanako/2"))
        .cloned()
        .expect("tanako/2");
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    fleet.ok(&["start", "tanako/2", "--wait"]);
    fleet.healthy();
    assert_eq!(fleet.counted("/identifies_refused"), 0);
}

/// Acknowledged rows survive; a backup brings them back after they were overwritten.
#[test]
fn backup_verify_restore() {
    let fleet = Fleet::up(&["--guilds", "200"]);
    let info = fleet.info();
    let urls: Vec<String> = info["db"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|url| url.as_str().expect("a URL").to_owned())
        .collect();
    let token =
        db::bearer(Path::new(info["db_token_file"].as_str().expect("a path"))).expect("a token");
    let guilds: Vec<u64> = (1..=60).map(|n: u64| n << 22).collect();
    for (index, guild) in guilds.iter().enumerate() {
        let row = json!({ "ticket_id": format!("t{guild}"), "guild_id": guild, "channel_id": 1, "creator_id": 2, "subject": "before" });
        // On a busy machine a node may be asked in vain; it has the row then, or not.
        wait::until("a row", 60, || {
            let url = &urls[index % urls.len()];
            let row = json!({ "table": "tickets", "row": row });
            let reply = db::call(url, &token, "insert", row).map_err(|why| why.to_string())?;
            let there = reply["success"] == true || reply["code"] == "duplicate_key";
            assert!(there || reply["code"] == "unavailable", "{reply}");
            there.then_some(()).ok_or_else(|| reply.to_string())
        });
    }
    let subject = |url: &str, guild: u64| -> Value {
        let reply = db::call(
            url,
            &token,
            "find_one",
            json!({ "table": "tickets", "conditions": { "guild_id": guild } }),
        )
        .expect("a reply");
        reply["row"]["subject"].clone()
    };
    fleet.ok(&["backup"]);
    let list = fleet.json(&["backup", "list"]);
    let backups = list
        .as_array()
        .or_else(|| list["backups"].as_array())
        .cloned()
        .expect("a list");
    assert_eq!(backups.len(), 1, "{list}");
    assert_eq!(backups[0]["state"], "verified", "{list}");
    let date = backups[0]["date"].as_str().expect("a date").to_owned();

    for guild in &guilds {
        let reply = db::call(&urls[0], &token, "update", json!({ "table": "tickets", "data": { "subject": "after" }, "conditions": { "ticket_id": format!("t{guild}"), "guild_id": guild } })).expect("a reply");
        assert_eq!(reply["updated"], 1, "{reply}");
    }
    fleet.ok(&["backup", "verify", "--date", &date]);
    fleet.ok(&["restore", "--date", &date, "--confirm=demo", "--wait"]);
    for url in &urls {
        for guild in guilds.iter().step_by(7) {
            assert_eq!(
                subject(url, *guild),
                "before",
                "any node answers for any guild"
            );
        }
    }

    // Damage is found, said, and nothing is touched.
    let archive =
        find(Path::new(info["data_dir"].as_str().expect("a path")), "tbk").expect("an archive");
    let mut bytes = std::fs::read(&archive).expect("the archive");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&archive, bytes).expect("damage");
    let verify = fleet.ctl(&["--context", "demo", "backup", "verify", "--date", &date]);
    assert!(!verify.status.success(), "{}", fleet::text(&verify));
    let restore = fleet.ctl(&[
        "--context",
        "demo",
        "restore",
        "--date",
        &date,
        "--confirm=demo",
        "--wait",
    ]);
    assert!(!restore.status.success(), "{}", fleet::text(&restore));
    assert_eq!(subject(&urls[1], guilds[0]), "before");
}

fn find(directory: &Path, extension: &str) -> Option<std::path::PathBuf> {
    let mut folders = BTreeSet::from([directory.to_owned()]);
    while let Some(folder) = folders.pop_first() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.insert(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                return Some(path);
            }
        }
    }
    None
}

/// `guild ID` agrees with who really holds the guild.
#[test]
fn guild_names_shard_process_and_node() {
    let fleet = Fleet::up(&["--guilds", "100"]);
    let guild = 81_384_788_765_712_384_u64;
    let found = fleet.json(&["guild", &guild.to_string()]);
    let shard = &found["shards"][0];
    assert_eq!(shard["shard_id"], (guild >> 22) % 8, "{found}");
    assert_eq!(
        shard["process"],
        format!("tanako/{}", (guild >> 22) % 8 / 2),
        "{found}"
    );
    let node = found["database"]["node"].as_str().expect("a node");
    assert!(node.starts_with("db/node"), "{found}");
    let unknown = fleet.ctl(&["--context", "demo", "restart", "tanakoo", "--yes"]);
    let said = fleet::text(&unknown);
    assert!(
        !unknown.status.success() && said.contains("did you mean tanako?"),
        "{said}"
    );
}
