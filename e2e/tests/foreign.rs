//! Bots in any language from `fleet.toml` alone, and what operators and bots get wrong.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::Value;
use tanako_e2e::{Agent, fleet::text, wait};

/// Exit code of what another operation or agent is in the way of.
const CONFLICT: i32 = 11;

/// A bot that knows nothing of Tanako: it finds its token and its shard where bots look for them.
const BOT: &str = r#"#!/bin/sh
[ "$DISCORD_TOKEN" = "a.foreign.token" ] || { echo "no token"; exit 9; }
echo "Logged in as shard $SHARD_ID of $TOTAL_SHARDS ($MY)"
trap 'exit 0' TERM
while :; do sleep 0.1; done
"#;

fn spec(shards: u32, extra: &str, bot: &str, token: &str) -> String {
    format!(
        r#"[fleet]
name = "foreign"

[bots.legacy]
command = ["sh", "{bot}"]
token_file = "{token}"
token_env = "DISCORD_TOKEN"
shards = {shards}
shard_env = {{ MY = "{{shard_ids}} in {{process}}" }}
ready = {{ kind = "log", pattern = "Logged in", timeout = "30s" }}
stop = {{ grace = "1s" }}
{extra}
"#
    )
}

fn with(bot: &str, shards: u32, extra: &str) -> Agent {
    let agent = Agent::new();
    let script = agent.file("bot.sh", bot);
    let token = agent.file("token", "a.foreign.token\n");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("mode 0600");
    let text = spec(
        shards,
        extra,
        &script.to_string_lossy(),
        &token.to_string_lossy(),
    );
    agent.file("fleet.toml", &text);
    agent
}

#[test]
fn a_foreign_bot_runs_unchanged_and_its_identifies_are_spaced() {
    let mut agent = with(BOT, 2, "");
    agent.start();
    agent.until_state("legacy/0", "ready");
    agent.until_state("legacy/1", "ready");
    // In one status, so that both are as old as they are at one moment.
    let [first, second] = agent.processes(["legacy/0", "legacy/1"]);
    let up = |process: &Value| process["uptime_s"].as_u64().expect("a number");
    let apart = up(&first).abs_diff(up(&second));
    assert!(apart >= 4, "one IDENTIFY per 5 s in a bucket: {apart} s");
    let logs = agent.ctl(&["logs", "legacy/1", "--tail", "5"]);
    let said = String::from_utf8_lossy(&logs.stdout);
    assert!(
        said.contains("Logged in as shard 1 of 2 (1 in legacy/1)"),
        "{said}"
    );

    // The token is in the bot's environment and nowhere else that anyone could look.
    let pid = first["pid"].as_u64().expect("a pid");
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its arguments");
    assert!(!arguments.contains("foreign.token"));
    let status = agent.ctl(&["status", "-o", "json"]);
    assert!(!text(&status).contains("a.foreign.token"));
    assert!(!agent.log().contains("a.foreign.token"));

    // A second agent on the same directory is refused and harms nothing.
    let twin = agent.command().output().expect("the twin starts");
    assert_eq!(twin.status.code(), Some(CONFLICT), "{}", text(&twin));
    assert_eq!(agent.process("legacy/0")["pid"], first["pid"]);

    // kill -9 of the agent: the bots live on and are adopted.
    agent.kill();
    agent.start();
    assert_eq!(agent.until_state("legacy/0", "ready")["pid"], first["pid"]);
    let stopped = agent.ctl(&["stop", "all", "--yes", "--wait"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
}

#[test]
fn a_token_that_others_can_read_is_refused_with_the_remedy() {
    let mut agent = with(
        BOT,
        1,
        "restart = { backoff_min = \"50ms\", backoff_max = \"100ms\", crash_loop_starts = 2 }",
    );
    fs::set_permissions(agent.path("token"), fs::Permissions::from_mode(0o644)).expect("mode 0644");
    agent.start();
    let detail = wait::until("the reason", 60, || {
        let detail = agent.process("legacy/0")["detail"].to_string();
        if detail.contains("chmod") {
            Ok(detail)
        } else {
            Err(detail)
        }
    });
    assert!(detail.contains("token"), "{detail}");
    agent.until_state("legacy/0", "failed");
    fs::set_permissions(agent.path("token"), fs::Permissions::from_mode(0o600)).expect("mode 0600");
    let started = wait::until("a manual start is never refused", 60, || {
        let started = agent.ctl(&["start", "legacy/0", "--wait"]);
        match started.status.code() {
            // The operation that applied the spec is about to end.
            Some(CONFLICT) => Err(text(&started)),
            _ => Ok(started),
        }
    });
    assert!(started.status.success(), "{}", text(&started));
}

#[test]
fn a_bot_that_exits_at_once_is_given_up_before_it_burns_identifies() {
    let mut agent = with(
        "#!/bin/sh\necho falling\nexit 3\n",
        1,
        "identifies = false\nrestart = { backoff_min = \"20ms\", backoff_max = \"50ms\", crash_loop_starts = 4 }",
    );
    agent.start();
    let failed = agent.until_state("legacy/0", "failed");
    let attempts = failed["attempt"].as_u64().expect("a number");
    assert!((3..=6).contains(&attempts), "{failed}");
    assert!(failed["last_exit"].to_string().contains('3'), "{failed}");
    let status = agent.ctl(&["status"]);
    assert_eq!(status.status.code(), Some(10), "{}", text(&status));
}

#[test]
fn a_bad_spec_is_refused_with_file_line_and_hint_and_changes_nothing() {
    let mut agent = with(BOT, 1, "identifies = false");
    agent.start();
    let before = agent.until_state("legacy/0", "ready");
    let good = fs::read_to_string(agent.path("fleet.toml")).expect("the spec");
    let bad = agent.file("bad.toml", &good.replace("shards = 1", "shrads = 1"));
    for verb in ["plan", "apply"] {
        let refused = agent.ctl(&[verb, &bad.to_string_lossy(), "--no-input"]);
        let said = text(&refused);
        assert!(!refused.status.success(), "{said}");
        assert!(
            said.contains("bad.toml")
                && said.contains("shrads")
                && said.contains("did you mean `shards`?"),
            "{said}"
        );
    }
    assert_eq!(agent.process("legacy/0")["pid"], before["pid"]);
    let same = agent.ctl(&["plan", &agent.path("fleet.toml").to_string_lossy()]);
    assert!(same.status.success(), "nothing to change: {}", text(&same));
    let grown = agent.file("grown.toml", &good.replace("shards = 1", "shards = 2"));
    let plan = agent.ctl(&["plan", &grown.to_string_lossy()]);
    assert_eq!(
        plan.status.code(),
        Some(4),
        "a plan with changes: {}",
        text(&plan)
    );
    assert!(text(&plan).contains("legacy/1"), "{}", text(&plan));
    let applied = agent.ctl(&["apply", &grown.to_string_lossy(), "--yes", "--wait"]);
    assert!(applied.status.success(), "{}", text(&applied));
    agent.until_state("legacy/1", "ready");
}

#[test]
fn an_agent_that_cannot_start_says_why_and_ends() {
    let agent = with(BOT, 1, "shrads = 4");
    let refused = agent.command().output().expect("the agent starts");
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("fleet.toml:") && said.contains("shrads"),
        "{said}"
    );
}
