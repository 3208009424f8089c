//! The bot's real binary against a simulated Discord, with an agent and a database of the test's own.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod agent;
pub mod node;

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use simcord::Sim;
use tokio::process::{Child, Command};

/// Longest wait for anything. Generous: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(60);

/// Logged when Discord was asked what became of an interaction of a replay.
pub const LOOKED_UP: &str = "looked a replay up";

/// Waits until `check` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A simulated Discord and a directory for files.
pub struct World {
    pub sim: Sim,
    pub directory: tempfile::TempDir,
    http: reqwest::Client,
}

impl World {
    pub async fn new(config: simcord::Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sim = Sim::start(config).await.unwrap();
        secret_file(&directory.path().join("token"), simcord::DEVELOPMENT_TOKEN);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            sim,
            directory,
            http,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A request to the admin API.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let url = format!("{}/_sim/{path}", self.sim.url());
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string());
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub async fn get(&self, path: &str) -> Value {
        let url = format!("{}/_sim/{path}", self.sim.url());
        let text = self
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"))
    }

    pub async fn account(&self) -> Value {
        self.get("account").await
    }

    /// What the bot itself could ask Discord.
    pub async fn rest(&self, path: &str) -> Value {
        let url = format!("{}/api/v10/{path}", self.sim.url());
        let token = format!("Bot {}", simcord::DEVELOPMENT_TOKEN);
        let response = self
            .http
            .get(url)
            .header("authorization", token)
            .send()
            .await
            .unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    }

    /// Nothing more is generated; waits until every interaction has its answer.
    pub async fn calm(&self) -> Value {
        let rates = serde_json::json!({ "events_per_second": 0, "interactions_per_second": 0 });
        self.post("rates", rates).await;
        eventually("every interaction to be answered", || async {
            let account = self.account().await;
            let of = &account["interactions"];
            let settled = of["sent"].as_u64()
                == Some(of["answered"].as_u64()? + of["late"].as_u64()?)
                && of["deferred_open"] == 0;
            settled.then_some(account)
        })
        .await
    }

    /// Waits for a number of the account, given by its path with dots (absent until the first counts as 0), to reach `at_least`.
    pub async fn account_reaches(&self, path: &str, at_least: u64) -> Value {
        eventually(&format!("account.{path} >= {at_least}"), || async {
            let account = self.account().await;
            let number = path
                .split('.')
                .fold(&account, |value, name| &value[name])
                .as_u64()
                .unwrap_or(0);
            (number >= at_least).then_some(account)
        })
        .await
    }

    pub async fn guilds(&self) -> Vec<String> {
        let guilds = self.get("guilds").await;
        guilds["guilds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap().to_owned())
            .collect()
    }

    /// Uses a command and waits for the message that answers it.
    pub async fn use_command(&self, request: Value) -> Value {
        let id = self.post("interactions", request.clone()).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        eventually(&format!("an answer to {request}"), || async {
            let interaction = self.get(&format!("interactions/{id}")).await;
            let done = interaction["state"] == "answered"
                || (interaction["state"] == "deferred"
                    && interaction["message"]["embeds"][0].is_object());
            done.then(|| interaction["message"].clone())
        })
        .await
    }

    pub async fn commands_registered(&self) -> Vec<String> {
        eventually("registered commands", || async {
            let commands = self.get("commands").await;
            let names: Vec<String> = commands
                .as_array()?
                .iter()
                .map(|command| command["name"].as_str().unwrap().to_owned())
                .collect();
            (!names.is_empty()).then_some(names)
        })
        .await
    }

    /// The bot with this world's Discord; more environment may be added.
    pub fn bot(&self) -> BotBuilder {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tanako-bot"));
        command
            .env_clear()
            .env("TANAKO_TOKEN_FILE", self.path("token"))
            .env("TANAKO_API_URL", self.sim.url())
            .env("TANAKO_GATEWAY_URL", &self.sim.info().gateway)
            // What is looked up is logged at this level.
            .env("RUST_LOG", "info,tanako_bot=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        BotBuilder {
            command,
            log: self.path(&format!("bot-{}.log", fastrand::u32(..))),
        }
    }
}

/// Writes a file that only its owner can read.
pub fn secret_file(path: &Path, content: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

pub struct BotBuilder {
    command: Command,
    log: PathBuf,
}

impl BotBuilder {
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Without a setting that [`World::bot`] makes.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn start(mut self) -> Bot {
        self.command
            .stderr(std::fs::File::create(&self.log).unwrap());
        Bot {
            child: self.command.spawn().unwrap(),
            log: self.log,
        }
    }
}

/// A running bot; killed when dropped.
pub struct Bot {
    child: Child,
    log: PathBuf,
}

impl Bot {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn logged(&self, text: &str) {
        eventually(&format!("log line with {text:?}"), || async {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap())
            .unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, then the exit code.
    pub async fn terminate(&mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        self.exit_code().await
    }

    /// kill -9, and waits until the agent has taken all that was on its way to it.
    pub async fn kill(&mut self, agent: &agent::Agent) {
        self.signal(rustix::process::Signal::KILL);
        self.exit().await;
        agent.detached().await;
    }

    pub async fn exit_code(&mut self) -> i32 {
        self.exit()
            .await
            .code()
            .unwrap_or_else(|| panic!("killed by a signal: {}", self.log()))
    }

    async fn exit(&mut self) -> ExitStatus {
        tokio::time::timeout(SOON, self.child.wait())
            .await
            .expect("the bot exits in time")
            .unwrap()
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// No event missed, no interaction answered twice or not at all, whatever happened to the processes.
pub fn exact(account: &Value) {
    for zero in [
        "identifies_refused",
        "missed",
        "events_evicted",
        "events_unrouted",
        "resumes_while_connected",
    ] {
        assert_eq!(account[zero], 0, "{zero}: {account}");
    }
    for zero in [
        "answered_twice",
        "unanswered",
        "late",
        "deferred_open",
        "unrouted",
    ] {
        assert_eq!(account["interactions"][zero], 0, "{zero}: {account}");
    }
}

/// A Discord whose buckets open at once and that waits long for answers: what is tested here is who asks, and
/// whether there is an answer, not how long either takes.
pub fn quick(guilds: u32) -> simcord::Config {
    simcord::Config {
        guilds,
        max_concurrency: 16,
        identify_interval: Duration::from_millis(1),
        answer_within: Duration::from_secs(600),
        ..simcord::Config::default()
    }
}
