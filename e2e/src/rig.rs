//! A fleet under load and a simulated Discord that keeps the account: what proofs are made on.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Instant,
};

use serde_json::Value;

use crate::{
    Agent,
    agent::PATIENT,
    binaries,
    discord::{Discord, number},
    fleet::{pids, text},
    logs, processes, wait,
};

/// Every intent under which simcord generates events, so that all of them reach the bots.
pub(crate) const INTENTS: u32 = 1 | 1 << 1 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;

/// Ports for database nodes: below the range from which the kernel takes the local ports of
/// connections, and apart from those of demos.
const PORTS: std::ops::Range<u16> = 29_500..32_000;

/// How big a rig is.
#[derive(Debug, Clone)]
pub struct Size {
    /// Shards of the bot.
    pub shards: u32,
    /// `shards = "auto"`: the guilds say how many there are at first.
    pub auto: bool,
    /// Shards of one process.
    pub per_process: u32,
    /// Guilds.
    pub guilds: u32,
    /// Buckets of IDENTIFYs.
    pub max_concurrency: u32,
    /// Guild events a second.
    pub events: u32,
    /// Slash commands a second, on top.
    pub interactions: u32,
    /// More lines of the bot in `fleet.toml`.
    pub bot: String,
    /// More arguments of simcord.
    pub discord: Vec<String>,
    /// How long a host of several owns what it runs without an answer of the store.
    pub host_lease_s: u32,
}

impl Size {
    /// What is promised: 64 shards in 16 processes, 50,000 guilds, 2,000 events a second.
    pub fn promised() -> Self {
        Self {
            shards: 64,
            auto: false,
            per_process: 4,
            guilds: 50_000,
            max_concurrency: 64,
            events: 1_950,
            interactions: 50,
            bot: String::new(),
            discord: Vec::new(),
            host_lease_s: 5,
        }
    }

    /// The same, with a third of the guilds unless [`full`]: what it takes to start them all in
    /// unoptimised binaries is no part of any proof.
    pub fn lighter() -> Self {
        let promised = Self::promised();
        Self {
            guilds: if full() { promised.guilds } else { 16_000 },
            ..promised
        }
    }

    /// The same machinery with less in it, for what is tried many ways.
    pub fn small() -> Self {
        Self {
            shards: 16,
            per_process: 2,
            guilds: 8_000,
            events: 380,
            interactions: 20,
            ..Self::promised()
        }
    }

    /// [`Self::promised`] when [`full`], else [`Self::small`].
    pub fn chosen() -> Self {
        if full() {
            Self::promised()
        } else {
            Self::small()
        }
    }

    /// Processes of the bot.
    pub fn processes(&self) -> u32 {
        self.shards.div_ceil(self.per_process)
    }
}

/// The newest operation of this kind, as `tanakoctl` shows it where `ctl` asks.
pub fn newest(kind: &str, ctl: impl Fn(&[&str]) -> Output) -> Result<Value, String> {
    let json = |arguments: &[&str]| -> Result<Value, String> {
        let output = ctl(arguments);
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", text(&output)))
    };
    let list = json(&["operation", "list", "-o", "json"])?;
    let mut all = list.as_array().into_iter().flatten();
    let id = all
        .find(|operation| operation["kind"] == kind)
        .and_then(|operation| operation["id"].as_str())
        .ok_or_else(|| list.to_string())?;
    json(&["operation", "show", id, "-o", "json"])
}

/// Whether an operation goes on no more.
pub fn has_ended(operation: &Value) -> bool {
    matches!(
        operation["state"].as_str(),
        Some("succeeded" | "failed" | "aborted")
    )
}

/// Whether the long runs were asked for: `TANAKO_E2E_FULL=1`.
pub fn full() -> bool {
    std::env::var("TANAKO_E2E_FULL").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// The seed of what is random in a test, from `TANAKO_E2E_SEED` or new; printed.
pub fn seed() -> u64 {
    let seed = std::env::var("TANAKO_E2E_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("TANAKO_E2E_SEED={seed}");
    seed
}

/// Tests with a rig take turns: two fleets at once would only slow each other down.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other test has a rig.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running fleet with one database node, and its Discord.
#[derive(Debug)]
pub struct Rig {
    /// The agent, with everything it runs. First, so that it ends first.
    pub agent: Agent,
    /// The simulated Discord.
    pub discord: Discord,
    /// How big it is.
    pub size: Size,
    since: Instant,
    db_port: u16,
    db_token: PathBuf,
    _first: First,
    _turn: MutexGuard<'static, ()>,
}

/// What is proven is proven of a fleet on a machine of its own, not of one between compilers: while this
/// lives, the session of this test comes before others. Where the user may not ask for that, or the
/// kernel does not group by session, nothing changes.
#[derive(Debug)]
pub(crate) struct First;

const AUTOGROUP: &str = "/proc/self/autogroup";

impl First {
    pub(crate) fn begin() -> Self {
        let _ = fs::write(AUTOGROUP, "-15");
        Self
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = fs::write(AUTOGROUP, "0");
    }
}

impl Rig {
    /// A fleet of which every process is ready and every guild known. No events flow yet, and the
    /// account still has what the start took.
    pub fn up(size: Size) -> Self {
        let turn = turn();
        let first = First::begin();
        let mut agent = Agent::new();
        agent.nice(-5);
        let mut arguments = vec![
            "--guilds".to_owned(),
            size.guilds.to_string(),
            "--max-concurrency".to_owned(),
            size.max_concurrency.to_string(),
        ];
        arguments.extend(size.discord.iter().cloned());
        let home = agent.path("");
        let discord = Discord::start(&home, &arguments);
        let db_token = agent.file("db.token", "a-token-of-a-test-only-0123456789abcdef\n");
        fs::set_permissions(&db_token, fs::Permissions::from_mode(0o600)).expect("mode 0600");
        let db_port = free_port();
        let spec = spec(&size, &discord, db_port, &db_token);
        agent.file("fleet.toml", &spec);
        agent.start();
        let rig = Self {
            agent,
            discord,
            size,
            since: Instant::now(),
            db_port,
            db_token,
            _first: first,
            _turn: turn,
        };
        rig.whole();
        rig.say("up");
        rig
    }

    /// Prints a line of what happens, with the seconds since the start.
    pub fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.since.elapsed().as_secs_f64());
    }

    /// Lets events and commands flow, from a clean account, and waits until they do.
    pub fn flow(&self) {
        self.flow_of(self.size.shards);
    }

    /// As [`Self::flow`], for another number of shards.
    pub fn flow_of(&self, shards: u32) {
        self.discord.settled(shards);
        self.discord.forget();
        self.discord.rates(self.size.events, self.size.interactions);
        wait::until("events", 60, || {
            let account = self.discord.account();
            let enough = number(&account, "/events_generated") > u64::from(self.size.events)
                && number(&account, "/interactions/answered")
                    >= u64::from(self.size.interactions.min(1));
            enough.then_some(()).ok_or(account.to_string())
        });
        self.say("events flow");
    }

    /// Stops the flow and gives the account once everything in it is settled.
    pub fn settle(&self) -> Value {
        self.settle_of(self.size.shards)
    }

    /// As [`Self::settle`], for another number of shards.
    pub fn settle_of(&self, shards: u32) -> Value {
        self.say("whole");
        self.discord.rates(0, 0);
        let account = self.discord.settled(shards);
        self.say("settled");
        account
    }

    /// The status, whether healthy or not.
    pub fn status(&self) -> Result<Value, String> {
        let output = self.agent.ctl(&["status", "-o", "json"]);
        match output.status.code() {
            Some(0 | 10) => {
                serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
            }
            _ => Err(text(&output)),
        }
    }

    /// Waits until every process is ready and every guild known; gives that status.
    pub fn whole(&self) -> Value {
        self.whole_of(self.size.processes(), self.size.shards)
    }

    /// As [`Self::whole`], for another number of processes and shards.
    pub fn whole_of(&self, processes: u32, shards: u32) -> Value {
        wait::until("a whole fleet", 240, || {
            let status = self
                .status()
                .map_err(|why| format!("{why}\n{}", self.story()))?;
            counted(&status, processes, shards, self.size.guilds)
                .map(|()| status)
                .map_err(|why| format!("{why}\n{}", self.story()))
        })
    }

    /// pid and attempt of each process by name.
    pub fn pids(&self) -> BTreeMap<String, (u64, u64)> {
        pids(&self.status().expect("a status"))
    }

    /// pids of the bot's processes that live.
    pub fn bot_pids(&self) -> Vec<(String, u32)> {
        let all = self.pids().into_iter();
        all.filter(|(name, _)| name.starts_with("tanako/"))
            .filter_map(|(name, (pid, _))| Some((name, u32::try_from(pid).ok()?)))
            .filter(|(_, pid)| *pid != 0 && processes::alive(*pid))
            .collect()
    }

    /// Runs `tanakoctl … -o json`, which must succeed, and gives what it printed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let output = self.agent.ctl(&all);
        assert!(
            output.status.success(),
            "tanakoctl {}: {}\n{}",
            all.join(" "),
            text(&output),
            self.story()
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    }

    /// Starts `tanakoctl … -o json` and leaves it running.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        Command::new(binaries::path("tanakoctl"))
            .arg("--socket")
            .arg(self.agent.path("run/agent.sock"))
            .args(PATIENT)
            .args(arguments)
            .args(["-o", "json"])
            .env("HOME", self.agent.path(""))
            .env("XDG_CONFIG_HOME", self.agent.path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tanakoctl starts")
    }

    /// The newest operation of this kind, once it is there and `wanted` of it.
    pub fn operation(
        &self,
        kind: &str,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        wait::until(&format!("{kind}: {what}"), seconds, || {
            let operation = newest(kind, |arguments| self.agent.ctl(arguments))?;
            if wanted(&operation) {
                Ok(operation)
            } else {
                Err(format!("{operation:#}\n{}", self.story()))
            }
        })
    }

    /// The newest operation of this kind, once it has ended.
    pub fn ended(&self, kind: &str, seconds: u64) -> Value {
        self.operation(kind, "its end", seconds, has_ended)
    }

    /// Where the database node listens, and the file with its token.
    pub fn database(&self) -> (String, &Path) {
        (format!("ws://127.0.0.1:{}", self.db_port), &self.db_token)
    }

    /// The last lines of every log, for the message of a failed test.
    pub fn story(&self) -> String {
        logs::tails(&self.agent.path(""), 8)
    }
}

/// Whether every process of a fleet of this size is ready and every guild known; else what is missing.
pub fn is_whole(status: &Value, size: &Size) -> Result<(), String> {
    counted(status, size.processes(), size.shards, size.guilds)
}

fn counted(status: &Value, processes: u32, shards: u32, guilds: u32) -> Result<(), String> {
    let bots: Vec<&Value> = bots(status).collect();
    let ready = bots.iter().filter(|bot| bot["ready"] == true).count();
    let held: Vec<&Value> = bots
        .iter()
        .flat_map(|bot| bot["shards"].as_array().into_iter().flatten())
        .collect();
    let up = held
        .iter()
        .filter(|shard| shard["stage"] == "ready")
        .count();
    let known: u64 = held
        .iter()
        .filter_map(|shard| shard["guilds"].as_u64())
        .sum();
    if status["healthy"] == true
        && (bots.len(), ready) == (processes as usize, processes as usize)
        && (held.len(), up) == (shards as usize, shards as usize)
        && known == u64::from(guilds)
    {
        return Ok(());
    }
    Err(format!(
        "{ready} of {} processes ready, {up} of {} shards, {known} guilds; {}",
        bots.len(),
        held.len(),
        status["reasons"],
    ))
}

/// The bot's processes of a status.
pub fn bots(status: &Value) -> impl Iterator<Item = &Value> {
    let all = status["processes"].as_array().into_iter().flatten();
    all.filter(|process| process["kind"] == "shard")
}

fn spec(size: &Size, discord: &Discord, db_port: u16, db_token: &Path) -> String {
    let quoted = |path: &Path| Value::from(path.to_string_lossy()).to_string();
    format!(
        r#"[fleet]
name = "proof"

[bots.tanako]
command = ["tanako-bot", "--intents", "{INTENTS}"]
token_file = {token}
shards = {shards}
shards_per_process = {per_process}
api_url = "{url}"
max_concurrency = {max_concurrency}
{more}

[database]
nodes = 1
base_port = {db_port}
token_file = {db_token}
"#,
        token = quoted(discord.token_file()),
        shards = if size.auto {
            format!("\"auto\"\nguilds = {}", size.guilds)
        } else {
            size.shards.to_string()
        },
        per_process = size.per_process,
        url = discord.url(),
        max_concurrency = size.max_concurrency,
        more = size.bot,
        db_token = quoted(db_token),
    )
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let first = (std::process::id() % u32::from(span)) as u16;
    (0..span)
        .map(|_| {
            PORTS.start
                + (u32::from(first) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed)))
                    .rem_euclid(u32::from(span)) as u16
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
