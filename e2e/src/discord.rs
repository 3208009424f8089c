//! A simulated Discord of a test's own.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{binaries, http, netns::Namespace, wait};

/// Between two heartbeats of a client. Short, because a client proves with them what it has.
const HEARTBEAT: &str = "5s";
/// What a machine is forgiven that tests and compilers keep busy, where a bot may wait for a core for seconds:
/// being late with a heartbeat, for which it would have to identify, and with the answer to a command, for which
/// Discord gives 3 s. Nothing of it in [`crate::rig::full`] runs.
const FORGIVEN: [&str; 4] = ["--heartbeat-patience", "60s", "--answer-within", "60s"];

/// How long a bucket must rest between two IDENTIFYs, as [`Discord::start`] enforces it. Discord's rule is
/// 5 s between their arrivals, and the fleet allows for little jitter on the way. On a machine that tests
/// and compilers keep busy, arrivals wait for a core; half a second is forgiven there, nothing in
/// [`crate::rig::full`] runs, which want a machine of their own.
pub fn identify_interval_ms() -> u64 {
    if crate::rig::full() { 5_000 } else { 4_500 }
}

/// `simcord`, its token file and its address.
#[derive(Debug)]
pub struct Discord {
    child: Child,
    url: String,
    token_file: PathBuf,
    /// Where its admin API is reached, when that is not here.
    inside: Option<Inside>,
}

#[derive(Debug)]
struct Inside {
    namespace: Namespace,
    admin: String,
}

/// Ports in a namespace, where nobody else wants one.
const PORT: u16 = 8080;
/// See [`PORT`].
const ADMIN_PORT: u16 = 8081;

impl Discord {
    /// Starts one with its files in `directory`, and waits until it serves.
    pub fn start(directory: &Path, arguments: &[String]) -> Self {
        let listen = ["127.0.0.1:0".to_owned()];
        Self::launch(Command::new("nice"), &listen, directory, arguments)
    }

    /// Starts one in a namespace, for bots at this address, and waits until it serves.
    pub fn start_in(
        namespace: &Namespace,
        address: impl Into<IpAddr>,
        directory: &Path,
        arguments: &[String],
    ) -> Self {
        let listen = [
            format!("{}:{PORT}", address.into()),
            format!("127.0.0.1:{ADMIN_PORT}"),
        ];
        let mut discord = Self::launch(namespace.command("nice"), &listen, directory, arguments);
        discord.inside = Some(Inside {
            namespace: namespace.clone(),
            admin: format!("http://127.0.0.1:{ADMIN_PORT}"),
        });
        discord
    }

    fn launch(
        mut nice: Command,
        listen: &[String],
        directory: &Path,
        arguments: &[String],
    ) -> Self {
        let info = directory.join("simcord.json");
        let token_file = directory.join("discord.token");
        let log = fs::File::create(directory.join("simcord.log")).expect("a log");
        // The real one does not share its cores with us. Where this may not be asked for, `nice` says
        // so and goes on without.
        nice.args(["-n", "-15"])
            .arg(binaries::path("simcord"))
            .args(["--heartbeat-interval", HEARTBEAT]);
        if !crate::rig::full() {
            nice.args(FORGIVEN);
        }
        for address in listen {
            nice.args(["--listen", address]);
        }
        let child = nice
            .args([
                "--identify-interval",
                &format!("{}ms", identify_interval_ms()),
            ])
            .arg("--info-file")
            .arg(&info)
            .arg("--token-file")
            .arg(&token_file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("simcord starts");
        let url = wait::until("simcord", 60, || {
            let text = fs::read_to_string(&info).map_err(|error| error.to_string())?;
            let info: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            info["http"].as_str().map(str::to_owned).ok_or(text)
        });
        Self {
            child,
            url,
            token_file,
            inside: None,
        }
    }

    /// Where REST and admin API are.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file with the bot's token.
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// What it answers to `GET /_sim/…`.
    pub fn get(&self, path: &str) -> Value {
        let get = |base: &str| http::get_json(&format!("{base}/_sim{path}"));
        let answer = match &self.inside {
            Some(inside) => inside.namespace.within(|| get(&inside.admin)),
            None => get(&self.url),
        };
        answer.expect("an answer of simcord")
    }

    /// What it answers to `POST /_sim/…`.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.try_post(path, body).expect("an answer of simcord")
    }

    /// As [`Self::post`], for what may be refused.
    pub fn try_post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let post = |base: &str| http::post_json(&format!("{base}/_sim{path}"), body);
        match &self.inside {
            Some(inside) => inside.namespace.within(|| post(&inside.admin)),
            None => post(&self.url),
        }
    }

    /// What the REST API answers to the bot's token.
    pub fn rest(&self, path: &str) -> anyhow::Result<Value> {
        let token = fs::read_to_string(&self.token_file)?;
        let header = format!("authorization: Bot {}", token.trim());
        let url = format!("{}/api/v10{path}", self.url);
        let ask = || http::get_with(&url, &[header]);
        let (status, body) = match &self.inside {
            Some(inside) => inside.namespace.within(ask),
            None => ask(),
        }?;
        anyhow::ensure!(status == 200, "{path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// What happened since the start or the last [`Self::forget`].
    pub fn account(&self) -> Value {
        self.get("/account")
    }

    /// Begins the account anew; sessions and limits stay.
    pub fn forget(&self) {
        self.post("/account/reset", &json!({}));
    }

    /// Sets how many events and slash commands a second there are.
    pub fn rates(&self, events: u32, interactions: u32) {
        let body = json!({ "events_per_second": events, "interactions_per_second": interactions });
        self.post("/rates", &body);
    }

    /// Waits until every session has a connection, every client has proven to have everything it was
    /// sent, and every command is answered or too old for it; gives the account of that moment.
    pub fn settled(&self, sessions: u32) -> Value {
        wait::until("a settled account", 90, || {
            let account = self.account();
            let count = |pointer| number(&account, pointer);
            let open = count("/sessions_open") == u64::from(sessions)
                && count("/sessions_resumable") == 0
                && count("/events_unproven") == 0;
            let interactions = count("/interactions/answered")
                + count("/interactions/late")
                + count("/interactions/unanswered");
            if open && interactions >= count("/interactions/sent") {
                Ok(account)
            } else {
                Err(account.to_string())
            }
        })
    }
}

impl Drop for Discord {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number of an account by its JSON pointer.
pub fn number(account: &Value, pointer: &str) -> u64 {
    account
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{pointer} in {account}"))
}

/// What may not be in an account when nothing was spent, nothing missed, nothing handled twice.
///
/// `identifies` is how many IDENTIFYs were right.
pub fn flaws(account: &Value, identifies: u64) -> Vec<String> {
    let mut flaws = Vec::new();
    let spent = number(account, "/identifies");
    if spent != identifies {
        flaws.push(format!("{spent} IDENTIFYs, right are {identifies}"));
    }
    for pointer in [
        "/identifies_refused",
        "/tokens_reset",
        "/heartbeats_bogus",
        "/events_lost",
        "/events_evicted",
        "/events_unrouted",
        "/interactions/answered_twice",
        "/interactions/late",
        "/interactions/unanswered",
        "/interactions/unrouted",
        "/rest/unauthorized",
    ] {
        let count = number(account, pointer);
        if count != 0 {
            flaws.push(format!("{pointer} = {count}"));
        }
    }
    let (sent, answered) = (
        number(account, "/interactions/sent"),
        number(account, "/interactions/answered"),
    );
    if sent != answered {
        flaws.push(format!("{answered} of {sent} commands answered"));
    }
    flaws
}

/// Fails with everything that is wrong with an account.
pub fn demand_exact(what: &str, account: &Value, identifies: u64) {
    let flaws = flaws(account, identifies);
    assert!(flaws.is_empty(), "{what}: {flaws:#?}\n{account:#}");
}

/// Fails when the log of IDENTIFYs shows two of one bucket within the interval, or a refused one.
/// Gives the milliseconds from the first to the last.
pub fn demand_spaced(log: &Value) -> u64 {
    let interval_ms = identify_interval_ms();
    let mut last = std::collections::BTreeMap::new();
    let all = log.as_array().cloned().unwrap_or_default();
    let at = |entry: &Value| entry["at_ms"].as_u64().expect("a time");
    for entry in &all {
        let same: Vec<&Value> = all
            .iter()
            .filter(|one| one["bucket"] == entry["bucket"])
            .collect();
        assert_eq!(entry["outcome"], "granted", "{entry} of {same:?}");
        let bucket = entry["bucket"].as_u64().expect("a bucket");
        if let Some(before) = last.insert(bucket, at(entry)) {
            let apart = at(entry) - before;
            assert!(
                apart >= interval_ms,
                "bucket {bucket}: two IDENTIFYs {apart} ms apart"
            );
        }
    }
    let first = all.iter().map(at).min().unwrap_or_default();
    all.iter().map(at).max().unwrap_or_default() - first
}
