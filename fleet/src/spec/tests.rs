use proptest::prelude::*;

use super::*;
use crate::process::ProcessKind;

const GOOD: &str = r#"
[fleet]
name = "demo"

[bots.tanako]
command = ["tanako-bot"]
token_file = "/etc/tanako/discord.token"
shards = 8
shards_per_process = 2
api_url = "http://127.0.0.1:8080/"
gateway_url = "ws://127.0.0.1:8080"
max_concurrency = 8

[bots.legacy]
command = ["node", "bot.js"]
token_file = "/etc/tanako/legacy.token"
token_env = "DISCORD_TOKEN"
db_uri_env = "DB_API_URI"
shards = 3
shard_env = { MY = "{shard_ids} of {shard_count} in {process}#{instance}" }
ready = { kind = "log", pattern = "Logged in", timeout = "2m" }
restart = { when = "on-failure", backoff_max = "5m" }
stop = { signal = "SIGINT", grace = "5s" }
limits = { memory = "512MiB", cpus = 0.5, open_files = 4096 }

[database]
nodes = 3
base_port = 7201
token_file = "/etc/tanako/db.token"

[backup]
directory = "/var/backups/tanako"
schedule = "03:30"
keep = 5
"#;

fn places() -> Places {
    Places {
        data_dir: "/var/lib/tanako".to_owned(),
    }
}

#[test]
fn a_whole_fleet() {
    let spec = parse(GOOD, "fleet.toml").expect("a good spec");
    assert_eq!(spec.backup.schedule_minute, Some(210));
    let processes = spec.processes(&places());
    let names: Vec<&str> = processes.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "db/node1", "db/node2", "db/node3", "legacy/0", "legacy/1", "legacy/2", "tanako/0",
            "tanako/1", "tanako/2", "tanako/3"
        ]
    );
    let node = &processes[1];
    assert_eq!(
        (node.kind, node.env["TANAKO_DB_LISTEN"].as_str()),
        (ProcessKind::Db, "127.0.0.1:7202")
    );
    assert_eq!(node.env["TANAKO_DB_DATA_DIR"], "/var/lib/tanako/db/node2");
    assert_eq!(
        node.env["TANAKO_DB_PEERS"],
        "node1=ws://127.0.0.1:7201,node2=ws://127.0.0.1:7202,node3=ws://127.0.0.1:7203"
    );
    let legacy = &processes[4];
    assert!(legacy.gated);
    assert_eq!(legacy.env["MY"], "1 of 3 in legacy/1#1");
    assert_eq!(legacy.env["TOTAL_SHARDS"], "3");
    assert_eq!(
        legacy.secret_env["DISCORD_TOKEN"].file,
        "/etc/tanako/legacy.token"
    );
    assert_eq!(
        legacy.secret_env["DB_API_URI"].template,
        "ws://127.0.0.1:7202/?token={secret}"
    );
    assert_eq!(legacy.stop.signal, "INT");
    let tanako = &processes[9];
    assert!(!tanako.gated);
    let free = GOOD.replace("shards = 3", "shards = 3\nidentifies = false");
    let free = parse(&free, "fleet.toml").expect("a good spec");
    assert!(
        free.processes(&places())
            .iter()
            .all(|process| !process.gated)
    );
    let asks = GOOD.replace("shards = 3", "shards = 3\nidentify_queue = true");
    let asks = parse(&asks, "fleet.toml").expect("a good spec");
    for process in asks.processes(&places()) {
        let foreign = process.name.group() == "legacy";
        assert_eq!((process.gated, process.identify_queue), (false, foreign));
    }
    assert_eq!(tanako.shard_ids, [6, 7]);
    assert_eq!(tanako.env["SHARD_IDS"], "6,7");
    assert_eq!(tanako.env["TANAKO_API_URL"], "http://127.0.0.1:8080");
    assert_eq!(tanako.ready.probe, Probe::Worker);
}

#[test]
fn no_secret_reaches_a_resolved_process() {
    let spec = parse(GOOD, "fleet.toml").expect("a good spec");
    for process in spec.processes(&places()) {
        for secret in process.secret_env.values() {
            assert!(secret.template.contains("{secret}") && secret.file.starts_with('/'));
        }
    }
}

/// The text of `GOOD` with one replacement, and what is said about it.
fn refusal(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    let error = parse(&GOOD.replacen(from, to, 1), "fleet.toml").expect_err("must be refused");
    let hints: Vec<&str> = error
        .problems()
        .iter()
        .map(|problem| problem.hint.as_str())
        .collect();
    format!("{error}\n  hint: {}", hints.join("\n  hint: "))
}

#[test]
fn refusals_name_place_reason_and_remedy() {
    let cases = [
        ("name = \"demo\"", "name = \"De mo\""),
        ("name = \"demo\"", "nam = \"demo\""),
        ("shards = 8", "shrads = 8"),
        ("shards = 8", "shards = 0"),
        ("shards = 8", "shards = \"many\""),
        ("shards = 8", "shards = \"auto\""),
        ("shards = 8", "shards = 8\nguilds = 50000"),
        ("shards_per_process = 2", "shards_per_process = 20"),
        (
            "shards_per_process = 2",
            "shards_per_process = 2\nidentifies = true",
        ),
        (
            "shards_per_process = 2",
            "shards_per_process = 2\nidentify_queue = true",
        ),
        (
            "shards = 3",
            "shards = 3\nidentifies = false\nidentify_queue = true",
        ),
        (
            "command = [\"node\", \"bot.js\"]",
            "command = [\"node bot.js\"]",
        ),
        ("command = [\"node\", \"bot.js\"]", "command = []"),
        ("token_file = \"/etc/tanako/discord.token\"\n", ""),
        ("kind = \"log\"", "kind = \"logs\""),
        ("kind = \"log\"", "kind = \"worker\""),
        ("pattern = \"Logged in\"", "pattern = \"Logged (in\""),
        ("timeout = \"2m\"", "timeout = \"2 minutes\""),
        (
            "backoff_max = \"5m\"",
            "backoff_max = \"5m\", backoff_min = \"10m\"",
        ),
        ("signal = \"SIGINT\"", "signal = \"KILL\""),
        ("memory = \"512MiB\"", "memory = \"512M\""),
        ("cpus = 0.5", "cpus = 0"),
        ("{process}", "{proces}"),
        ("nodes = 3", "nodes = 0"),
        ("base_port = 7201", "base_port = 80"),
        (
            "nodes = 3",
            "nodes = 3\n[[database.node]]\nname = \"x\"\nlisten = \"127.0.0.1:1\"",
        ),
        ("schedule = \"03:30\"", "schedule = \"3:30am\""),
        ("directory = \"/var", "directory = \"var"),
        ("[bots.legacy]", "[bots.db]"),
        (
            "stop = {",
            "env = { API_TOKEN = \"abc\", TANAKO_X = \"1\" }\nstop = {",
        ),
        ("[database]", "[database"),
        (
            "api_url = \"http://127.0.0.1:8080/\"",
            "api_url = \"127.0.0.1:8080\"",
        ),
    ];
    let said: Vec<String> = cases
        .iter()
        .map(|(from, to)| format!("{to}\n{}", refusal(from, to)))
        .collect();
    insta::assert_snapshot!(said.join("\n\n"));
}

#[test]
fn an_empty_or_foreign_file_is_refused() {
    for text in [
        "",
        "hello",
        "[fleet]\nname = \"x\"",
        "\0\0\0",
        "[package]\nname = \"x\"",
    ] {
        assert!(parse(text, "f").is_err(), "{text:?}");
    }
}

#[test]
fn silence_is_a_time_or_off() {
    let with = |health: &str| {
        let text =
            format!("[fleet]\nname = \"x\"\n[bots.b]\ncommand = [\"b\"]\nshards = 1\n{health}");
        parse(&text, "f").map(|spec| spec.bots["b"].silent)
    };
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(with("").expect("good"), seconds(300));
    assert_eq!(
        with("[bots.b.health]\nsilent = \"90s\"").expect("good"),
        seconds(90)
    );
    assert_eq!(
        with("[bots.b.health]\nsilent = \"off\"").expect("good"),
        None
    );
    for bad in ["\"1s\"", "\"2d\"", "\"never\"", "5", "\"5m\"\nloud = true"] {
        let text = format!("[bots.b.health]\nsilent = {bad}");
        assert_eq!(with(&text).expect_err("bad").problems().len(), 1, "{bad}");
    }
}

const HOSTS: &str = r#"
[fleet]
name = "demo"

[[hosts]]
name = "a"
labels = { rack = "r1", disk = "ssd" }
capacity = { processes = 40, memory = "28GiB", share = 2 }

[[hosts]]
name = "b"

[bots.tanako]
command = ["tanako-bot"]
token_file = "/etc/tanako/discord.token"
shards = 8
placement = { required = { disk = "ssd" }, preferred = { zone = "eu" }, anti_affinity = "host", weight = 4 }

[database]
token_file = "/etc/tanako/db.token"

[[database.node]]
name = "n1"
listen = "10.0.0.1:7101"
host = "a"

[advise]
act = ["rebalance", "reshard"]
max_shards = 64
quiet_hours = "23:00-06:00"
"#;

#[test]
fn hosts_placement_and_advice() {
    let spec = parse(HOSTS, "fleet.toml").expect("a good spec");
    assert_eq!(spec.warnings, [] as [&str; 0]);
    let capacity = &spec.hosts[0].capacity;
    assert_eq!(
        (capacity.processes, capacity.memory_bytes, capacity.share),
        (Some(40), Some(28 << 30), Some(2))
    );
    assert_eq!(spec.hosts[1].capacity, HostCapacity::default());
    let placement = &spec.bots["tanako"].placement;
    assert_eq!(placement.weight, Some(4));
    assert_eq!(placement.rules.anti_affinity.as_deref(), Some("host"));
    let nodes = &spec.database.as_ref().expect("a database").nodes;
    assert_eq!(nodes[0].host.as_deref(), Some("a"));
    assert_eq!(spec.advise.max_shards, Some(64));
    let quiet = |hour: u32| spec.advise.is_quiet(hour * 60);
    assert!(quiet(23) && quiet(0) && quiet(5) && !quiet(6) && !quiet(22));
    assert!(Advise::default().is_quiet(12 * 60) && Advise::default().act.is_empty());
    // Odd, and perhaps meant.
    let odd = HOSTS
        .replace("10.0.0.1:7101", "127.0.0.1:7101")
        .replace("host = \"a\"", "host = \"c\"");
    let odd = parse(&odd, "fleet.toml").expect("a spec");
    assert_eq!(
        odd.warnings,
        [
            "database node n1: host c is not among [[hosts]]; it must have joined the fleet",
            "database node n1: other hosts cannot reach it at 127.0.0.1:7101",
        ]
    );
}

#[test]
fn refusals_about_hosts_name_reason_and_remedy() {
    let cases = [
        ("name = \"b\"", "name = \"a\""),
        ("name = \"b\"", "name = \"b\"\nlabel = { x = \"y\" }"),
        ("rack = \"r1\"", "rack = \"r 1\""),
        ("rack = \"r1\"", "host = \"r1\""),
        ("memory = \"28GiB\"", "memory = \"28 gigs\""),
        ("share = 2", "share = 0"),
        ("share = 2", "cores = 2"),
        ("weight = 4", "weight = 0"),
        ("zone = \"eu\"", "disk = \"hdd\""),
        ("anti_affinity = \"host\"", "anti_affinity = \"\""),
        ("anti_affinity = \"host\"", "affinity = \"host\""),
        ("host = \"a\"\n", ""),
        ("host = \"a\"\n", "host = \"A!\"\n"),
        ("\"rebalance\", ", "\"rebalnce\", "),
        ("max_shards = 64\n", ""),
        ("max_shards = 64", "max_shards = 0"),
        ("23:00-06:00", "23-6"),
        ("23:00-06:00", "23:00-23:00"),
    ];
    let said: Vec<String> = cases
        .iter()
        .map(|(from, to)| {
            assert!(HOSTS.contains(from), "{from}");
            let error = parse(&HOSTS.replacen(from, to, 1), "fleet.toml");
            let error = error.expect_err("must be refused");
            let hints = error
                .problems()
                .iter()
                .map(|it| format!("\n  hint: {}", it.hint));
            format!("{to}\n{error}{}", hints.collect::<String>())
        })
        .collect();
    insta::assert_snapshot!(said.join("\n\n"));
    // So many alike have no homes.
    let from = HOSTS.find("[[database.node]]").expect("it is there");
    let to = HOSTS.find("[advise]").expect("it is there");
    let text = format!("{}nodes = 3\n\n{}", &HOSTS[..from], &HOSTS[to..]);
    let error = parse(&text, "fleet.toml").expect_err("must be refused");
    assert!(
        error
            .to_string()
            .contains("each database node needs a host"),
        "{error}"
    );
}

#[test]
fn explicit_nodes_and_collisions() {
    let with = |nodes: &str| {
        parse(
            &format!("[fleet]\nname = \"x\"\n[database]\ntoken_file = \"/t\"\n{nodes}"),
            "f",
        )
    };
    let node = |name: &str, port: u16| {
        format!("[[database.node]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\n")
    };
    let spec = with(&(node("a", 7001) + &node("b", 7002))).expect("a good spec");
    assert_eq!(spec.database.expect("a database").nodes.len(), 2);
    let error = with(&(node("a", 7001) + &node("a", 7001))).expect_err("twins");
    assert_eq!(error.problems().len(), 2);
}

proptest! {
    #[test]
    fn any_text_gets_an_answer(text in "\\PC{0,200}") {
        let _ = parse(&text, "f");
    }

    /// Damage anywhere in a good file is either harmless or refused with a place inside the file.
    #[test]
    fn damage_is_placed(at in 0..GOOD.len(), junk in "[ -~\n]{0,6}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + 1).min(GOOD.len()), &junk);
        if let Err(error) = parse(&text, "f") {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!(problem.span.end <= text.len());
                prop_assert!(!problem.message.is_empty() && !problem.hint.is_empty());
                prop_assert!(error.place(problem).0 <= text.lines().count() + 1);
            }
            let _ = error.to_string();
        }
    }
}
