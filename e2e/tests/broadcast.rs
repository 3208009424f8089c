//! A question to every shard, on real binaries: each answers, or the reason why not is said.

use rustix::process::Signal;
use serde_json::Value;
use tanako_e2e::{Rig, Size, fleet::text, processes};

fn stats(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

#[test]
fn every_shard_answers_or_is_named_with_the_reason() {
    let rig = Rig::up(Size {
        shards: 4,
        per_process: 2,
        guilds: 400,
        max_concurrency: 16,
        ..Size::small()
    });
    let said = rig.json(&["broadcast", "stats"]);
    assert_eq!(
        (said["answered"].as_u64(), said["failed"].as_u64()),
        (Some(4), Some(0)),
        "{said:#}"
    );
    let answers = said["answers"].as_array().expect("answers");
    let guilds: u64 = answers
        .iter()
        .filter_map(|one| one["answer"]["guilds"].as_u64())
        .sum();
    assert_eq!(guilds, 400, "{said:#}");
    let table = text(&rig.agent.ctl(&["broadcast", "version"]));
    assert!(
        table.contains("4 answers") && table.contains("tanako/1"),
        "{table}"
    );

    // One process stands still: its shards are named, the others answer all the same.
    let (_, frozen) = rig
        .bot_pids()
        .into_iter()
        .find(|(name, _)| name == "tanako/1")
        .expect("it runs");
    processes::signal(frozen, Signal::STOP);
    let output = rig
        .agent
        .ctl(&["broadcast", "stats", "--timeout", "10s", "-o", "json"]);
    processes::signal(frozen, Signal::CONT);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = stats(&output);
    let silent: Vec<(u64, &str)> = said["answers"]
        .as_array()
        .expect("answers")
        .iter()
        .filter_map(|one| Some((one["shard_id"].as_u64()?, one["error"]["code"].as_str()?)))
        .collect();
    assert_eq!(silent, [(2, "timeout"), (3, "timeout")], "{said:#}");

    // Names only, no code; and nothing that the bot does not know.
    let unknown = rig.agent.ctl(&["broadcast", "uptime", "-o", "json"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", text(&unknown));
    assert_eq!(
        stats(&unknown)["answers"][0]["error"]["code"],
        "unknown-question"
    );
    let code = rig.agent.ctl(&["broadcast", "client.guilds.cache.size"]);
    assert!(
        !code.status.success() && text(&code).contains("letters a-z"),
        "{}",
        text(&code)
    );
    let nobody = rig.agent.ctl(&["broadcast", "stats", "--bot", "tanaka"]);
    assert!(
        text(&nobody).contains("bots are tanako"),
        "{}",
        text(&nobody)
    );
}
