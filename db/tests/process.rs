//! The real binary: what it says at a wrong start, what survives kill -9, a full disk, damage.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{Client, PATIENCE, Process, directory, eventually, http_get};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_by_kill_9() {
    let directory = directory();
    let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
    let mut counter = 0;
    for round in 0..5_i64 {
        let mut process = Process::start(directory.path(), |_| {});
        let mut check = Client::connect(&process.url).await;
        let rows = check
            .ok(
                "select",
                json!({"table": "guilds", "columns": ["guild_id", "case_counter"]}),
            )
            .await;
        let found: BTreeMap<i64, i64> = rows["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| {
                (
                    row["guild_id"].as_i64().expect("an id"),
                    row["case_counter"].as_i64().expect("a number"),
                )
            })
            .collect();
        for (guild, value) in &expected {
            assert_eq!(
                found.get(guild),
                Some(value),
                "round {round}, guild {guild}"
            );
        }
        assert_eq!(
            check.ok("count", json!({"table": "guilds"})).await["count"],
            json!(found.len()),
            "the counter fits the rows"
        );
        let indexed = check
            .ok(
                "count",
                json!({"table": "users", "conditions": {"user_id": 7}}),
            )
            .await["count"]
            .clone();
        let rows = check.ok("select", json!({"table": "users"})).await["count"].clone();
        assert_eq!(indexed, rows, "the index fits the rows");
        let value = check.ok("increment", json!({"table": "guilds", "conditions": {"guild_id": 9_999_999}, "column": "ticket_counter", "create": true})).await;
        let value = value["value"].as_i64().expect("a number");
        assert!(
            value > counter,
            "an increment was lost: {value} after {counter}"
        );
        counter = value;
        expected.insert(9_999_999, 0);

        let mut writers = Vec::new();
        for writer in 0..6_i64 {
            let mut client = Client::connect(&process.url).await;
            writers.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    let guild = (round * 10 + writer) * 100_000 + n + 1;
                    let insert = json!({"action": "insert", "data": {"table": "guilds", "row": {"guild_id": guild, "case_counter": n}}});
                    let user = json!({"action": "insert", "data": {"table": "users", "row": {"guild_id": guild, "user_id": 7}}});
                    for request in [insert, user] {
                        use futures_util::SinkExt;
                        let text = tokio_websockets::Message::text(request.to_string());
                        if client.socket.send(text).await.is_err() {
                            return acknowledged;
                        }
                    }
                    for _ in 0..2 {
                        match client.receive().await {
                            Some(reply) if reply["row_id"] == guild => acknowledged.push((guild, n)),
                            Some(_) => {}
                            None => return acknowledged,
                        }
                    }
                }
                acknowledged
            }));
        }
        // Let it write for a while; when exactly it dies is the chance we want.
        let metrics = process.url.clone();
        eventually("enough was written", async || {
            let (_, text) = http_get(&metrics, "/metrics").await;
            text.lines()
                .find_map(|line| {
                    line.strip_prefix("tanako_db_grouped_writes_total{node=\"node1\"} ")
                })
                .and_then(|count| count.parse::<f64>().ok())
                .is_some_and(|count| count > 150.0 + round as f64 * 37.0)
        })
        .await;
        process.kill();
        let mut count = 0;
        for writer in writers {
            for (guild, value) in writer.await.expect("a writer") {
                expected.insert(guild, value);
                count += 1;
            }
        }
        assert!(count > 20, "round {round} acknowledged only {count} writes");
    }
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    use futures_util::StreamExt;
    let directory = directory();
    let mut process = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&process.url).await;
    for guild in 1..=200 {
        client.send(json!({"action": "insert", "data": {"table": "guilds", "row": {"guild_id": guild}}, "request_id": guild}).to_string()).await;
    }
    let mut acknowledged = 0;
    for _ in 0..50 {
        assert_eq!(client.receive().await.expect("a reply")["success"], true);
        acknowledged += 1;
    }
    let waiting = tokio::spawn(async move {
        let mut closed = None;
        while let Some(Ok(message)) = client.socket.next().await {
            if let Some((code, reason)) = message.as_close() {
                closed = Some((u16::from(code), reason.to_owned()));
            } else if message
                .as_text()
                .is_some_and(|text| text.contains("\"success\":true"))
            {
                acknowledged += 1;
            }
        }
        (acknowledged, closed)
    });
    let (code, process) = tokio::task::spawn_blocking(move || {
        let code = process.terminate();
        (code, process)
    })
    .await
    .expect("stops");
    assert_eq!(code, 0);
    let (acknowledged, closed) = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("in time")
        .expect("a task");
    assert_eq!(closed.map(|(code, _)| code), Some(1001), "going away");
    drop(process);
    let again = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&again.url).await;
    let count = client.ok("count", json!({"table": "guilds"})).await["count"]
        .as_i64()
        .expect("a number");
    assert!(
        count >= acknowledged,
        "{count} rows, {acknowledged} acknowledged"
    );
}

#[test]
fn wrong_starts_say_what_to_do() {
    let directory = directory();
    let path = directory.path();
    let token = path.join("token");
    let refused = |command: &mut Command, code: i32, parts: &[&str]| {
        let (found, log) = Process::run_to_end(command);
        assert_eq!(found, code, "{log}");
        for part in parts {
            assert!(log.contains(part), "{part} is missing in: {log}");
        }
        assert!(!log.contains(support::TOKEN), "the token is in the log");
    };
    let shown = token.display().to_string();
    let mut command = Process::command(path);
    std::fs::remove_file(&token).expect("removes");
    refused(
        &mut command,
        2,
        &["cannot read token file", &shown, "chmod 600"],
    );
    let mut command = Process::command(path);
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).expect("permissions");
    refused(
        &mut command,
        2,
        &["can be read by others", &format!("chmod 600 {shown}")],
    );
    let mut command = Process::command(path);
    std::fs::write(&token, "\n").expect("writable");
    refused(&mut command, 2, &["is empty", &shown]);
    refused(
        Process::command(path).args(["--peer", "node2"]),
        2,
        &["invalid peer", "NAME=ws://HOST:PORT"],
    );
    refused(
        Process::command(path).args(["--name2", "x"]),
        2,
        &["--name2"],
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = Process::command(path);
    command
        .env_remove("TANAKO_DB_LISTEN")
        .args(["--listen", &address]);
    // The first --listen is from the common settings; the last one counts only if clap allows it.
    let (code, log) = Process::run_to_end(&mut command);
    assert_ne!(code, 0);
    assert!(
        log.contains("the port is in use") || log.contains("cannot be used multiple times"),
        "{log}"
    );
    let binary = env!("CARGO_BIN_EXE_tanako-db");
    let mut command = Command::new(binary);
    Process::command(path);
    command
        .env("TANAKO_DB_NAME", "node1")
        .env("TANAKO_DB_DATA_DIR", path.join("data"))
        .env("TANAKO_DB_TOKEN_FILE", &token)
        .env("TANAKO_DB_LISTEN", &address)
        .env_remove("TANAKO_SOCKET");
    refused(&mut command, 1, &["the port is in use", &address]);
    std::fs::write(path.join("file"), "").expect("writable");
    let mut command = Command::new(binary);
    command
        .env_remove("TANAKO_SOCKET")
        .args(["--name", "node1"]);
    command
        .arg("--data-dir")
        .arg(path.join("file"))
        .arg("--token-file")
        .arg(&token);
    refused(&mut command, 1, &["file"]);
}

#[tokio::test]
async fn a_second_node_on_the_same_directory_is_refused() {
    let directory = directory();
    let process = Process::start(directory.path(), |_| {});
    let (code, log) = Process::run_to_end(&mut Process::command(directory.path()));
    assert_eq!(code, 1);
    assert!(
        log.contains("is in use by another node") && log.contains("data"),
        "{log}"
    );
    Client::connect(&process.url)
        .await
        .ok("ping", json!({}))
        .await;
}

/// All files below a directory with their content.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let content = std::fs::read(&path).expect("readable");
                found.insert(path, content);
            }
        }
    }
    found
}

fn unchanged(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, content) in after {
        assert!(
            before.get(path) == Some(content),
            "{} was changed",
            path.display()
        );
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        // The engine has removed what a newer list of tables had replaced before the damage.
        let own = path
            .components()
            .any(|part| part.as_os_str() == "keyspaces");
        assert!(own, "{} is gone", path.display());
    }
}

#[tokio::test]
async fn a_damaged_store_is_refused_by_name_and_left_as_it_is() {
    let directory = directory();
    let mut process = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&process.url).await;
    for guild in 1..=50 {
        client
            .ok(
                "insert",
                json!({"table": "guilds", "row": {"guild_id": guild}}),
            )
            .await;
    }
    process.kill();
    let data = directory.path().join("data");
    let (journal, content) = files(&data)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|extension| extension == "jnl"))
        .expect("a journal");
    let mut damaged = content.clone();
    for byte in &mut damaged[2_000..2_010] {
        *byte ^= 0xff;
    }
    std::fs::write(&journal, &damaged).expect("writable");
    let before = files(&data);
    let (code, log) = Process::run_to_end(&mut Process::command(directory.path()));
    assert_eq!(code, 1, "{log}");
    assert!(
        log.contains(&journal.display().to_string()) && log.contains("is damaged"),
        "{log}"
    );
    assert!(log.contains("Restore a backup"), "{log}");
    unchanged(&before, &files(&data));

    std::fs::write(&journal, &content).expect("writable");
    // Of each key space, the list of tables that is in use: `current` begins with its number.
    let lists: Vec<(PathBuf, Vec<u8>)> = files(&data)
        .into_iter()
        .filter(|(path, _)| path.file_name().is_some_and(|name| name == "current"))
        .map(|(path, content)| {
            let number = u64::from_le_bytes(content[..8].try_into().expect("a number"));
            let list = path.with_file_name(format!("v{number}"));
            let content = std::fs::read(&list).expect("readable");
            (list, content)
        })
        .collect();
    assert_eq!(lists.len(), 4, "the engine's own and three of ours");
    for (list, intact) in lists {
        let mut damaged = intact.clone();
        let middle = damaged.len() / 2;
        for byte in &mut damaged[middle..middle + 8] {
            *byte ^= 0xff;
        }
        std::fs::write(&list, &damaged).expect("writable");
        let before = files(&data);
        let (code, log) = Process::run_to_end(&mut Process::command(directory.path()));
        assert_eq!(code, 1, "{log}");
        assert!(
            log.contains(&list.display().to_string()) && log.contains("is damaged"),
            "{log}"
        );
        unchanged(&before, &files(&data));
        std::fs::write(&list, &intact).expect("writable");
    }
    std::fs::write(data.join("CURRENT"), "\u{0}\u{0}").expect("writable");
    let (code, log) = Process::run_to_end(&mut Process::command(directory.path()));
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("CURRENT is damaged"), "{log}");
    std::fs::remove_file(data.join("CURRENT")).expect("removes");
    let (code, log) = Process::run_to_end(&mut Process::command(directory.path()));
    assert_eq!(code, 1, "a store without CURRENT is not begun anew: {log}");
    std::fs::write(data.join("CURRENT"), "gen-000001\n").expect("writable");
    let again = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&again.url).await;
    assert_eq!(
        client.ok("count", json!({"table": "guilds"})).await["count"],
        50,
        "the intact file is good again"
    );
}

/// A file system of its own that can be filled.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        std::fs::create_dir_all(path).ok()?;
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .output()
            .ok()?;
        mounted.status.success().then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Fills the disk, and checks that writes are refused, reads go on, nothing is lost, and that the
/// node goes on once there is space.
async fn full_disk(free_bytes_min: &str, expected: &[&str]) {
    let directory = directory();
    let data = directory.path().join("data");
    let Some(_disk) = SmallDisk::mount(&data, 160) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut process = Process::start(directory.path(), |command| {
        command.args(["--free-bytes-min", free_bytes_min]);
    });
    let mut client = Client::connect(&process.url).await;
    let ballast = data.join("ballast");
    let row = |n: i64| json!({"table": "guilds", "row": {"guild_id": n, "settings": {"text": "x".repeat(40_000)}}});
    let mut acknowledged = 0;
    for n in 1..=20 {
        client.ok("insert", row(n)).await;
        acknowledged = n;
    }
    // Leave a little, so that the node itself meets the end of the disk.
    let free = {
        let stat = rustix::fs::statvfs(&data).expect("a file system");
        stat.f_bavail * stat.f_frsize
    };
    std::fs::write(&ballast, vec![1; (free - (3 << 20)) as usize]).expect("fills");
    let mut refusal = None;
    for n in 21..=400 {
        let reply = client.ask("insert", row(n)).await;
        if reply["success"] == true {
            acknowledged = n;
        } else {
            refusal = Some(reply);
            break;
        }
    }
    let refusal = refusal.expect("the disk became full");
    let code = refusal["code"].as_str().expect("a code").to_owned();
    assert!(expected.contains(&code.as_str()), "{refusal}");
    assert_eq!(refusal["retryable"], true);
    assert!(
        refusal["error"]
            .as_str()
            .expect("a text")
            .contains("disk is full"),
        "{refusal}"
    );
    for n in [1, acknowledged] {
        let found = client
            .ok(
                "find_by_id",
                json!({"table": "guilds", "id_column": "guild_id", "id_value": n}),
            )
            .await;
        assert_eq!(found["row"]["guild_id"], n, "reads go on");
    }
    std::fs::remove_file(&ballast).expect("removes");
    eventually("writes go on once there is space", async || {
        client.ask("upsert", row(1_000)).await["success"] == true
    })
    .await;
    let count = client.ok("count", json!({"table": "guilds"})).await["count"]
        .as_i64()
        .expect("a number");
    assert!(
        count > acknowledged,
        "{count} rows, {acknowledged} acknowledged and one more"
    );
    process.kill();
    let mut again = Process::start(directory.path(), |command| {
        command.args(["--free-bytes-min", free_bytes_min]);
    });
    let mut client = Client::connect(&again.url).await;
    for n in (1..=acknowledged).chain([1_000]) {
        let found = client
            .ok(
                "find_by_id",
                json!({"table": "guilds", "id_column": "guild_id", "id_value": n}),
            )
            .await;
        assert_eq!(found["row"]["guild_id"], n, "nothing acknowledged was lost");
    }
    again.kill();
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_writes_early() {
    full_disk("8388608", &["disk_full"]).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_write_loses_nothing() {
    full_disk("0", &["disk_full"]).await;
}

#[tokio::test]
async fn health_and_metrics_need_no_token() {
    let directory = directory();
    let process = Process::start(directory.path(), |_| {});
    assert_eq!(
        http_get(&process.url, "/health").await,
        (200, "OK".to_owned())
    );
    let mut client = Client::connect(&process.url).await;
    client
        .ok("insert", json!({"table": "guilds", "row": {"guild_id": 5}}))
        .await;
    client
        .refused("insert", json!({"table": "guilds", "row": {"guild_id": 5}}))
        .await;
    let (status, text) = http_get(&process.url, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "tanako_db_requests_total{node=\"node1\",action=\"insert\",outcome=\"ok\"} 1",
        "tanako_db_requests_total{node=\"node1\",action=\"insert\",outcome=\"error\"} 1",
        "tanako_db_rows{node=\"node1\",table=\"guilds\"} 1",
        "tanako_db_connections{node=\"node1\"} 1",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in {text}"
        );
    }
    let info: Value = serde_json::from_slice(
        &std::fs::read(directory.path().join("info.json")).expect("readable"),
    )
    .expect("JSON");
    assert_eq!(info["pid"], process.child.id());
}
