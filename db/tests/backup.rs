//! Backups taken while serving, verified, and restored into other rings.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};
use support::{Client, Process, directory, patient, start_all};
use tanako_db::backup::{self, BackupError};

fn quiet() -> Box<backup::Progress<'static>> {
    Box::new(|_, _| {})
}

/// Everything that the nodes hold, by table.
async fn content(client: &mut Client) -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::new();
    let tables = client.ok("list_tables", json!({})).await["tables"].clone();
    for table in tables.as_array().expect("a list") {
        let rows = client.ok("select", json!({"table": table})).await["rows"].clone();
        let mut rows = rows.as_array().expect("rows").clone();
        rows.sort_by_key(Value::to_string);
        all.insert(table.as_str().expect("a name").to_owned(), rows);
    }
    all
}

async fn fill(client: &mut Client) {
    let rows: Vec<Value> = (1..=120)
        .map(|n| json!({"guild_id": n, "settings": {"n": n}}))
        .collect();
    client
        .ok("insert_many", json!({"table": "guilds", "rows": rows}))
        .await;
    let rows: Vec<Value> = (1..=300)
        .map(|n| json!({"id": format!("u{n}"), "guild_id": n % 120 + 1, "user_id": n % 7}))
        .collect();
    client
        .ok("insert_many", json!({"table": "users", "rows": rows}))
        .await;
    let rows: Vec<Value> = (1..=50)
        .map(|n| json!({"user_id": n, "nickname": format!("n{}", n % 3)}))
        .collect();
    client
        .ok(
            "insert_many",
            json!({"table": "secret_users", "rows": rows}),
        )
        .await;
    let rows: Vec<Value> = (1..=50)
        .map(|n| json!({"metric_type": "cpu", "value": n, "data": {"n": n}}))
        .collect();
    client
        .ok("insert_many", json!({"table": "metrics", "rows": rows}))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_is_restored_into_two_nodes() {
    let directory = directory();
    let nodes = start_all(directory.path(), &["node1", "node2", "node3"], patient()).await;
    let mut client = nodes[0].client().await;
    fill(&mut client).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writer = nodes[1].client().await;
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while !stopped.load(Relaxed) {
            // Both or none: a snapshot must never show one without the other.
            let ops = json!([
                {"action": "increment", "data": {"table": "guilds", "conditions": {"guild_id": 7}, "column": "case_counter"}},
                {"action": "insert", "data": {"table": "moderation_cases", "row": {"id": format!("c{written}"), "case_id": written, "target_id": 1}}},
            ]);
            writer
                .ok("transaction", json!({"guild_id": 7, "ops": ops}))
                .await;
            written += 1;
        }
        written
    });
    let set = directory.path().join("set");
    std::fs::create_dir(&set).expect("creates");
    let mut archives = Vec::new();
    for node in &nodes {
        let (path, manifest) = node
            .node
            .backup(set.clone(), quiet())
            .await
            .expect("a backup");
        assert!(manifest.verified && manifest.ring_nodes == ["node1", "node2", "node3"]);
        assert_eq!(
            manifest.bytes,
            std::fs::metadata(&path).expect("a file").len()
        );
        let written: backup::Manifest = serde_json::from_slice(
            &std::fs::read(path.with_extension("json")).expect("a manifest"),
        )
        .expect("JSON");
        assert_eq!(written, manifest);
        assert_eq!(
            backup::verify(&path, &mut *quiet()).expect("good"),
            manifest
        );
        archives.push(path);
    }
    stop.store(true, Relaxed);
    assert!(writing.await.expect("a writer") > 0);
    let mut before = content(&mut client).await;
    for node in nodes {
        node.stop().await;
    }

    let fewer = start_all(
        &directory.path().join("fewer"),
        &["node1", "node2"],
        patient(),
    )
    .await;
    let mut client = fewer[1].client().await;
    client
        .ok(
            "insert",
            json!({"table": "guilds", "row": {"guild_id": 999_999}}),
        )
        .await;
    let mut loaded = 0;
    for node in &fewer {
        let mut last = (0, 0);
        let seen = Arc::new(std::sync::Mutex::new(last));
        let told = Arc::clone(&seen);
        let progress = Box::new(move |done, total| *told.lock().expect("a lock") = (done, total));
        let result = node
            .node
            .restore(archives.clone(), progress)
            .await
            .expect("restores");
        last = *seen.lock().expect("a lock");
        assert_eq!(
            last,
            (result.rows_total, result.rows_total),
            "progress reached its end"
        );
        loaded += result.rows_loaded;
        assert_eq!(node.node.metrics.rows_total(), result.rows_loaded);
        assert!(result.rows_loaded < result.rows_total);
    }
    let mut after = content(&mut client).await;
    assert_eq!(loaded as usize, after.values().map(Vec::len).sum::<usize>());
    // What was written after the snapshot is not part of it; guild 7 is consistent in itself.
    let cases = after.remove("moderation_cases").expect("a table").len();
    before.remove("moderation_cases");
    let counter = |rows: &mut Vec<Value>| {
        let at = rows
            .iter()
            .position(|row| row["guild_id"] == 7)
            .expect("guild 7");
        rows.remove(at)["case_counter"].as_u64().expect("a number") as usize
    };
    assert_eq!(counter(after.get_mut("guilds").expect("a table")), cases);
    counter(before.get_mut("guilds").expect("a table"));
    assert_eq!(after, before);
    let indexed = client
        .ok(
            "count",
            json!({"table": "users", "conditions": {"user_id": 3}}),
        )
        .await;
    assert_eq!(indexed["count"], 43, "the indexes were built");
    let found = client
        .ok(
            "find_by_id",
            json!({"table": "users", "id_column": "id", "id_value": "u9"}),
        )
        .await;
    assert_eq!(found["row"]["guild_id"], 10);
    let (code, _) = client
        .refused(
            "insert",
            json!({"table": "users", "row": {"id": "u9", "guild_id": 10}}),
        )
        .await;
    assert_eq!(code, "duplicate_key");
    for node in fewer {
        node.stop().await;
    }
}

#[tokio::test]
async fn what_is_no_whole_intact_backup_is_refused_and_nothing_changes() {
    let directory = directory();
    let nodes = start_all(directory.path(), &["node1", "node2"], patient()).await;
    let mut client = nodes[0].client().await;
    fill(&mut client).await;
    let set = directory.path().join("set");
    std::fs::create_dir(&set).expect("creates");
    let mut archives = Vec::new();
    for node in &nodes {
        archives.push(
            node.node
                .backup(set.clone(), quiet())
                .await
                .expect("a backup")
                .0,
        );
    }
    let before = content(&mut client).await;
    let good = std::fs::read(&archives[0]).expect("readable");
    let odd = directory.path().join("odd.tbk");
    let second = archives[1].clone();
    let mut cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "not a Tanako backup archive"),
        (
            "foreign",
            b"PK\x03\x04 some other file that is long enough".to_vec(),
            "not a Tanako backup archive",
        ),
        ("truncated", good[..good.len() / 2].to_vec(), "is damaged"),
        (
            "without its end",
            good[..good.len() - 1].to_vec(),
            "is damaged",
        ),
        ("only its magic", good[..11].to_vec(), "is damaged"),
        (
            "with something after its end",
            [&good[..], b"x"].concat(),
            "is damaged",
        ),
    ];
    let mut newer = good.clone();
    newer[11] = 9;
    cases.push(("of another format", newer, "archive format 9"));
    for at in [
        20,
        good.len() / 3,
        good.len() / 2,
        good.len() - 20,
        good.len() - 45,
    ] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x04;
        cases.push(("bit-flipped", flipped, "odd.tbk"));
    }
    for (what, bytes, part) in cases {
        std::fs::write(&odd, bytes).expect("writable");
        let error = backup::verify(&odd, &mut *quiet()).expect_err(what);
        assert!(error.to_string().contains(part), "{what}: {error}");
        let error = nodes[0]
            .node
            .restore(vec![odd.clone(), second.clone()], quiet())
            .await
            .expect_err(what);
        assert!(
            error.to_string().contains("nothing was changed"),
            "{what}: {error}"
        );
    }
    for (given, part) in [
        (vec![archives[0].clone()], "node2 is missing"),
        (
            vec![archives[0].clone(), archives[0].clone()],
            "given twice",
        ),
        (vec![], "no archive was given"),
    ] {
        let error = nodes[0].node.restore(given, quiet()).await.expect_err(part);
        assert!(
            matches!(error, BackupError::Incomplete(_)) && error.to_string().contains(part),
            "{error}"
        );
    }
    let missing = nodes[0]
        .node
        .restore(vec![set.join("none.tbk"), second.clone()], quiet())
        .await
        .expect_err("missing");
    assert!(missing.to_string().contains("none.tbk"), "{missing}");
    // The manifest beside the archive must fit too.
    let manifest = set.join("node1.json");
    let text = std::fs::read_to_string(&manifest).expect("readable");
    std::fs::write(
        &manifest,
        text.replacen("\"rows\": 120", "\"rows\": 121", 1)
            .replace("\"node\": \"node1\"", "\"node\": \"node9\""),
    )
    .expect("writable");
    assert!(
        backup::verify(&archives[0], &mut *quiet())
            .expect_err("differs")
            .to_string()
            .contains("node1.json")
    );
    assert_eq!(content(&mut client).await, before, "nothing was changed");
    let left: Vec<_> = std::fs::read_dir(nodes[0].settings.data_dir.clone())
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with("gen-"))
        .collect();
    assert_eq!(left, ["gen-000001"], "nothing is left behind");
    let nowhere = nodes[0]
        .node
        .backup(directory.path().join("nowhere"), quiet())
        .await
        .expect_err("no directory");
    assert!(nowhere.to_string().contains("nowhere"), "{nowhere}");
    for node in nodes {
        node.stop().await;
    }
}

fn run(arguments: &[&str], paths: &[&Path]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tanako-db"));
    for name in [
        "TANAKO_DB_NAME",
        "TANAKO_DB_DATA_DIR",
        "TANAKO_DB_PEERS",
        "TANAKO_DB_WEIGHTS",
    ] {
        command.env_remove(name);
    }
    let output = command.args(arguments).args(paths).output().expect("runs");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(output.stdout).expect("UTF-8"),
        String::from_utf8(output.stderr).expect("UTF-8"),
    )
}

#[tokio::test]
async fn the_binary_verifies_and_restores_even_over_a_damaged_store() {
    let directory = directory();
    let mut process = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&process.url).await;
    fill(&mut client).await;
    let archive = client.ok("backup", json!({})).await["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    let kept = directory.path().join("node1.tbk");
    std::fs::copy(&archive, &kept).expect("copies");
    let before = content(&mut client).await;
    let (code, out, _) = run(&["verify"], &[&kept]);
    assert_eq!(code, 0);
    assert!(out.contains("good, node node1, 520 rows"), "{out}");
    let data = directory.path().join("data");
    let shown = data.to_str().expect("UTF-8");
    let kept_text = kept.to_str().expect("UTF-8");
    let restore = [
        "restore",
        "--name",
        "node1",
        "--data-dir",
        shown,
        "--archive",
        kept_text,
    ];
    let (code, _, log) = run(&restore, &[]);
    assert_eq!(
        code, 1,
        "a running node's data is not replaced behind its back"
    );
    assert!(log.contains("in use by another node"), "{log}");
    process.kill();
    let mut journal: Vec<PathBuf> = std::fs::read_dir(data.join("gen-000001"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    std::fs::write(journal.pop().expect("a journal"), vec![7; 5_000]).expect("writable");
    std::fs::write(data.join("CURRENT"), "?").expect("writable");
    let truncated = directory.path().join("truncated.tbk");
    let bytes = std::fs::read(&kept).expect("readable");
    std::fs::write(&truncated, &bytes[..bytes.len() - 9]).expect("writable");
    let (code, _, log) = run(&["verify"], &[&truncated, &kept]);
    assert_eq!(code, 1);
    assert!(
        log.contains("truncated.tbk") && log.contains("is damaged"),
        "{log}"
    );
    let (code, out, log) = run(&restore, &[]);
    assert_eq!(code, 0, "{log}");
    assert!(out.contains("restored 520 of 520 rows"), "{out}");
    let again = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&again.url).await;
    assert_eq!(content(&mut client).await, before);
}

#[tokio::test]
async fn a_restore_that_dies_leaves_the_old_data() {
    let directory = directory();
    let mut process = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&process.url).await;
    fill(&mut client).await;
    let archive = client.ok("backup", json!({})).await["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    client
        .ok(
            "insert",
            json!({"table": "guilds", "row": {"guild_id": 5_000}}),
        )
        .await;
    process.kill();
    // What a restore that was killed before its last step leaves: a generation that is not in use.
    let half = directory.path().join("data/gen-000002");
    std::fs::create_dir(&half).expect("creates");
    std::fs::write(half.join("rubbish"), "half a store").expect("writable");
    let mut process = Process::start(directory.path(), |_| {});
    let mut client = Client::connect(&process.url).await;
    let count = client.ok("count", json!({"table": "guilds"})).await["count"].clone();
    assert_eq!(count, 121, "the old data, complete");
    assert!(!half.exists(), "and what was begun is gone");
    process.kill();
    // Killed at any moment, the data is the old or the new.
    for after_ms in [0, 3, 10, 30, 60] {
        let shown = directory.path().join("data");
        let mut restore = Command::new(env!("CARGO_BIN_EXE_tanako-db"))
            .args([
                "restore",
                "--name",
                "node1",
                "--archive",
                &archive,
                "--data-dir",
            ])
            .arg(&shown)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        // Not a wait for anything: the moment of death is what is tried.
        tokio::time::sleep(std::time::Duration::from_millis(after_ms)).await;
        restore.kill().expect("kills");
        restore.wait().expect("ends");
        let mut process = Process::start(directory.path(), |_| {});
        let mut client = Client::connect(&process.url).await;
        let count = client.ok("count", json!({"table": "guilds"})).await["count"]
            .as_u64()
            .expect("a number");
        assert!(count == 121 || count == 120, "{count}");
        let users = client.ok("count", json!({"table": "users"})).await["count"].clone();
        assert_eq!(users, 300);
        process.kill();
    }
}
