//! A fleet whose hosts are namespaces: etcd and an agent on each, bots under load, and a simulated
//! Discord that keeps the account.

mod ask;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::MutexGuard,
    time::{Duration, Instant},
};

use serde_json::Value;
use tanako_agent::office;
use tanako_pki::{AUTHORITIES_FILE, Authority, IDENTITY_FILE, Subject};
use tanako_store::{
    Store as _, StoreError, election,
    etcd::{EtcdStore, Options, Tls},
};

pub use ask::places;

use super::{Etcd, Fault, Lan, Link, lan::DISCORD};
use crate::{
    binaries,
    discord::{Discord, number},
    logs,
    rig::{self, INTENTS, Size},
    wait,
};

/// Where agents listen for each other.
const AGENT_PORT: u16 = 7443;

/// Where they serve their metrics, on the loopback of their host.
const HTTP_PORT: u16 = 9464;

/// Where nodes of the database listen.
const DB_PORT: u16 = 7101;

/// Seconds until another agent takes the office of one that is gone.
const OFFICE_LEASE_S: &str = "5";

/// Members of etcd: the first hosts have one each.
const ETCD_MEMBERS: usize = 3;

/// Number of the host whose agent can issue certificates.
const ISSUER: usize = 0;

/// Name of the fleet.
const FLEET: &str = "proof";

/// What its keys in etcd begin with.
const PREFIX: &str = "tanako/proof/";

/// Longer than from a shard's latest guild to the copy of its list.
const QUIET: Duration = Duration::from_secs(10);

/// Longer than any test runs.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What runs on a host apart from etcd.
#[derive(Debug, Default)]
pub struct Host {
    agent: Option<Child>,
    /// Nothing runs there: its power is off.
    off: bool,
    frozen: bool,
    /// Something was done to it.
    hit: bool,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// A running fleet over several hosts, and its Discord.
#[derive(Debug)]
pub struct Hosts {
    /// The hosts as namespaces, and what is wrong between them. First, so that it ends first: with it
    /// end all processes.
    pub lan: Lan,
    /// The simulated Discord.
    pub discord: Discord,
    /// The fleet's store.
    pub etcd: Etcd,
    /// How big the fleet is.
    pub size: Size,
    agents: BTreeMap<String, Host>,
    since: Instant,
    _first: rig::First,
    _turn: MutexGuard<'static, ()>,
}

impl Hosts {
    /// A fleet over hosts with these names of which every process is ready and every guild known. No
    /// events flow yet, and the account still has what the start took.
    pub fn up(names: &[&str], size: Size) -> Self {
        Self::with_database(names, size, &[])
    }

    /// The same, with a node of the database on each of `nodes`.
    pub fn with_database(names: &[&str], size: Size, nodes: &[&str]) -> Self {
        let turn = rig::turn();
        let first = rig::First::begin();
        let lan = Lan::new(names);
        let authority = Authority::create(FLEET).expect("an authority");
        let members = &names[..names.len().min(ETCD_MEMBERS)];
        let etcd = Etcd::start(&lan, &authority, members);
        let mut arguments = vec![
            "--guilds".to_owned(),
            size.guilds.to_string(),
            "--max-concurrency".to_owned(),
            size.max_concurrency.to_string(),
        ];
        arguments.extend(size.discord.iter().cloned());
        let discord = Discord::start_in(lan.discord(), DISCORD, &lan.directory(), &arguments);
        let mut spec = spec(&size, &discord);
        spec.push_str(&database(&lan, nodes));
        lan.file("fleet.toml", &spec);
        for (number, name) in names.iter().enumerate() {
            let directory = lan.directory_of(name).join("identity");
            let subject = Subject::agent(*name, [lan.address(name).into()]);
            // One of them can let others join.
            if number == ISSUER {
                authority.save(&directory).expect("the authority's key");
            }
            authority
                .issue_to(&directory, &subject, LIFE)
                .expect("a certificate");
        }
        let mut fleet = Self {
            lan,
            discord,
            etcd,
            size,
            agents: names
                .iter()
                .map(|name| ((*name).to_owned(), Host::default()))
                .collect(),
            since: Instant::now(),
            _first: first,
            _turn: turn,
        };
        for name in names {
            fleet.start_agent(name);
        }
        for name in names {
            fleet.until_answers(name);
        }
        // Now that all of them are there: all get their share.
        let spec = fleet.lan.directory().join("fleet.toml");
        let spec = spec.to_string_lossy();
        fleet.json(&fleet.coordinator(), &["apply", &spec, "--yes", "--detach"]);
        fleet.whole();
        fleet.until_copied();
        fleet.say("up");
        fleet
    }

    /// Prints a line of what happens, with the seconds since the start.
    pub fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.since.elapsed().as_secs_f64());
    }

    /// Names of the hosts that run. Those that are cut off from anything come last: what they tell of
    /// others may be old.
    pub fn living(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, host)| !host.off && !host.frozen && host.agent.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_by_key(|name| self.lan.is_impaired(name));
        names
    }

    /// The host whose agent can issue certificates.
    fn issuer(&self) -> &str {
        self.agents.keys().nth(ISSUER).expect("there are hosts")
    }

    fn run_dir(&self, host: &str) -> PathBuf {
        self.lan.directory_of(host).join("run")
    }

    /// The agent's command line on a host.
    fn agent_command(&self, host: &str) -> Command {
        let home = self.lan.directory_of(host);
        let identity = home.join("identity");
        let mut command = self.lan.host(host).command("nice");
        command
            .args(["-n", "-5"])
            .arg(binaries::path("tanako-agent"))
            .args(["--host", host, "--http"])
            .arg(format!("127.0.0.1:{HTTP_PORT}"))
            .arg("--data-dir")
            .arg(home.join("data"))
            .arg("--run-dir")
            .arg(home.join("run"))
            .args(["--store", "etcd", "--etcd-prefix", PREFIX])
            .args(["--etcd-endpoints", &self.etcd.urls()])
            .args(["--etcd-lease-seconds", OFFICE_LEASE_S])
            .args(["--host-lease-seconds", &self.size.host_lease_s.to_string()])
            .arg("--etcd-ca")
            .arg(identity.join(AUTHORITIES_FILE))
            .arg("--etcd-cert")
            .arg(identity.join(IDENTITY_FILE))
            .arg("--etcd-key")
            .arg(identity.join(IDENTITY_FILE))
            .arg("--identity")
            .arg(&identity)
            .arg("--listen")
            .arg(format!("{}:{AGENT_PORT}", self.lan.address(host)))
            .env("HOME", &home)
            .stdin(Stdio::null());
        command
    }

    /// Starts the agent of a host; does not wait.
    pub fn start_agent(&mut self, host: &str) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.lan.directory_of(host).join("agent.log"))
            .expect("a log");
        let mut command = self.agent_command(host);
        let child = command.stderr(log).stdout(Stdio::null()).spawn();
        let own = self.agents.get_mut(host).expect("a host of that name");
        own.agent = Some(child.expect("the agent starts"));
        own.off = false;
    }

    fn hit(&mut self, host: &str) {
        self.agents.get_mut(host).expect("a host of that name").hit = true;
    }

    /// kill -9 of a host's agent alone.
    pub fn kill_agent(&mut self, host: &str) {
        self.hit(host);
        let own = self.agents.get_mut(host).expect("a host of that name");
        if let Some(mut agent) = own.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        self.say(&format!("agent of {host} killed"));
    }

    /// Waits until the agent of a host answers.
    pub fn until_answers(&self, host: &str) {
        wait::until(&format!("the agent of {host}"), 90, || {
            self.status_of(host)
                .map(drop)
                .map_err(|why| format!("{why}\n{}", self.story()))
        });
    }

    /// A power cut on one host.
    pub fn cut_power(&mut self, host: &str) {
        self.hit(host);
        self.lan.cut_power(host);
        self.etcd.reap(host);
        let own = self.agents.get_mut(host).expect("a host of that name");
        (own.off, own.frozen) = (true, false);
        if let Some(mut agent) = own.agent.take() {
            let _ = agent.wait();
        }
        self.say(&format!("power of {host} cut"));
    }

    /// The power is back: etcd and agent start as a system starts them.
    pub fn revive(&mut self, host: &str) {
        self.lan.heal(host);
        if self.etcd.is_on(host) {
            self.etcd.start_member(&self.lan, host);
            self.etcd.until_healthy(&self.lan, host);
        }
        self.start_agent(host);
        self.until_answers(host);
        self.say(&format!("{host} is back"));
    }

    /// SIGSTOP of everything on a host.
    pub fn freeze(&mut self, host: &str) {
        self.hit(host);
        self.lan.host(host).freeze();
        self.agents
            .get_mut(host)
            .expect("a host of that name")
            .frozen = true;
        self.say(&format!("{host} frozen"));
    }

    /// SIGSTOP of a host's agent and bots, and of nothing else there.
    pub fn freeze_agent_and_bots(&mut self, host: &str) {
        self.hit(host);
        let namespace = self.lan.host(host);
        namespace.freeze_those(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            let program = words.next().unwrap_or_default();
            program.ends_with(b"tanako-bot")
                || program.ends_with(b"tanako-agent") && words.next() != Some(b"fence")
        });
        self.agents
            .get_mut(host)
            .expect("a host of that name")
            .frozen = true;
        self.say(&format!("agent and bots of {host} frozen"));
    }

    /// SIGSTOP of a host's bots alone.
    pub fn freeze_bots(&mut self, host: &str) {
        self.hit(host);
        let bots = self.bots_on(host);
        let namespace = self.lan.host(host);
        namespace.freeze_those(|pid| bots.contains(&pid));
        self.say(&format!("bots of {host} frozen"));
    }

    /// SIGCONT of everything on a host.
    pub fn thaw(&mut self, host: &str) {
        self.lan.host(host).thaw();
        self.agents
            .get_mut(host)
            .expect("a host of that name")
            .frozen = false;
        self.say(&format!("{host} goes on"));
    }

    /// Cuts a link of a host.
    pub fn cut(&mut self, host: &str, link: Link) {
        self.hit(host);
        self.lan.impair(host, link, Fault::Cut);
        self.say(&format!("{host} cut from {link:?}"));
    }

    /// Heals every link of a host.
    pub fn heal(&mut self, host: &str) {
        self.lan.heal(host);
        self.say(&format!("links of {host} healed"));
    }

    /// Waits until every process is ready and every guild known; gives that status.
    pub fn whole(&self) -> Value {
        let mut told = Instant::now();
        wait::until("a whole fleet", 240, || {
            let status = self
                .status()
                .map_err(|why| format!("{why}\n{}", self.story()))?;
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                self.say(&format!("not whole: {}", status["reasons"]));
            }
            rig::is_whole(&status, &self.size)
                .map(|()| status)
                .map_err(|why| format!("{why}\n{}", self.story()))
        })
    }

    /// The host whose agent decides, by the election in etcd.
    pub fn coordinator(&self) -> String {
        wait::until("a coordinator", 90, || {
            let asked = self.living().into_iter().next().ok_or("no host runs")?;
            let leader = self.in_store(&asked, async |store| {
                election::leader(store, office::KEY).await
            })?;
            leader.ok_or_else(|| "none is elected".to_owned())
        })
    }

    /// Waits until the store has a copy of every shard's session and guild list, for another host. The lists
    /// come last, some seconds after their guilds: that they change no more says that they are there.
    fn until_copied(&self) {
        let mut seen = (0, Instant::now());
        wait::until("copies of all sessions", 90, || {
            let asked = self.living().into_iter().next().ok_or("no host runs")?;
            let shards = self.size.shards as usize;
            let (counts, newest) = self.in_store(&asked, async |store| {
                let sessions = store.list("vault/").await?.items.len();
                let lists = store.list("guilds/").await?.items;
                let newest = lists.iter().map(|item| item.mod_revision).max();
                Ok(((sessions, lists.len()), newest.unwrap_or(0)))
            })?;
            if seen.0 != newest {
                seen = (newest, Instant::now());
            }
            let quiet = seen.1.elapsed();
            (counts == (shards, shards) && quiet >= QUIET)
                .then_some(())
                .ok_or_else(|| format!("{counts:?} of {shards}, {quiet:?}\n{}", self.story()))
        });
    }

    /// Whether a host that nothing was done to has lost its lease: then its shards have moved or resumed too, as
    /// they must. A machine so busy that etcd does not answer for seconds does that. The agent, the fence and each
    /// bot see to it that the lease is kept, and all say it in the same words.
    pub fn has_bystanders(&self) -> bool {
        let untouched = self.agents.iter().filter(|(_, host)| !host.hit);
        untouched
            .flat_map(|(name, _)| logs::below(&self.lan.directory_of(name)))
            .any(|(_, log)| log.contains("the lease of this host has ended"))
    }

    /// Does something with the store, as it is reached from a host.
    fn in_store<T: Send>(
        &self,
        host: &str,
        work: impl AsyncFnOnce(&EtcdStore) -> Result<T, StoreError> + Send,
    ) -> Result<T, String> {
        self.lan.host(host).within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let store =
                    EtcdStore::open(self.store_options(host)).map_err(|error| error.to_string())?;
                work(&store).await.map_err(|error| error.to_string())
            })
        })
    }

    /// Waits until the agent of another host decides.
    pub fn until_another_decides(&self, than: &str) {
        wait::until(&format!("a coordinator other than {than}"), 90, || {
            let coordinator = self.coordinator();
            if coordinator == than {
                Err(format!("it is still {than}"))
            } else {
                self.say(&format!("the agent of {coordinator} decides"));
                Ok(())
            }
        });
    }

    fn store_options(&self, host: &str) -> Options {
        let identity = self.lan.directory_of(host).join("identity");
        Options {
            endpoints: self.etcd.urls().split(',').map(str::to_owned).collect(),
            prefix: PREFIX.to_owned(),
            tls: Some(Tls {
                ca: identity.join(AUTHORITIES_FILE),
                cert: Some(identity.join(IDENTITY_FILE)),
                key: Some(identity.join(IDENTITY_FILE)),
            }),
            user: None,
            timeout: Duration::from_secs(10),
        }
    }

    /// Waits until these shards are ready on other hosts than `host`.
    pub fn until_elsewhere(&self, host: &str, shards: &BTreeSet<u64>) {
        wait::until(&format!("the shards of {host} elsewhere"), 120, || {
            let status = self.status()?;
            let there: BTreeSet<u64> = rig::bots(&status)
                .filter(|process| process["host"] != host && process["ready"] == true)
                .flat_map(|process| process["shards"].as_array().into_iter().flatten())
                .filter(|shard| shard["stage"] == "ready")
                .filter_map(|shard| shard["id"].as_u64())
                .collect();
            if shards.is_subset(&there) {
                return Ok(());
            }
            let missing: Vec<&u64> = shards.difference(&there).collect();
            Err(format!("missing {missing:?}\n{}", self.story()))
        });
        self.say(&format!("the shards of {host} are elsewhere"));
    }

    fn bots_on(&self, host: &str) -> Vec<u32> {
        let mut bots = self.lan.host(host).pids();
        bots.retain(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "tanako-bot")
        });
        bots
    }

    /// The bot's processes on all hosts, by their ids.
    pub fn bots(&self) -> BTreeSet<u32> {
        let hosts = self.agents.keys();
        hosts.flat_map(|host| self.bots_on(host)).collect()
    }

    /// Waits until none of the bot's processes lives on a host.
    pub fn until_idle(&self, host: &str) {
        wait::until(&format!("no bot on {host}"), 90, || {
            let bots = self.bots_on(host);
            if bots.is_empty() {
                Ok(())
            } else {
                Err(format!("{bots:?} live\n{}", self.story()))
            }
        });
        self.say(&format!("no bot lives on {host}"));
    }

    /// Lets events and commands flow, from a clean account, and waits until they do.
    pub fn flow(&self) {
        self.discord.settled(self.size.shards);
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

    /// Waits until the fleet is whole, stops the flow, and gives the account once everything in it is
    /// settled.
    pub fn settle(&self) -> Value {
        self.whole();
        self.say("whole");
        self.discord.rates(0, 0);
        let account = self.discord.settled(self.size.shards);
        self.say("settled");
        account
    }

    /// The last lines of the logs of all hosts, for the message of a failed test.
    pub fn story(&self) -> String {
        logs::tails(&self.lan.directory(), 8)
    }
}

/// A fleet that a busy machine carries; 64 shards, 50,000 guilds and 2,000 events a second when
/// [`rig::full`].
pub fn size() -> Size {
    if rig::full() {
        return Size::promised();
    }
    Size {
        shards: 12,
        per_process: 2,
        guilds: 1_200,
        max_concurrency: 12,
        events: 180,
        interactions: 10,
        ..Size::promised()
    }
}

/// Nodes of the database on these hosts.
fn database(lan: &Lan, nodes: &[&str]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let token = lan.file("db.token", "a-token-of-a-test-only-0123456789abcdef\n");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("mode 0600");
    // What all hosts share.
    let backups = lan.directory().join("backups");
    fs::create_dir_all(&backups).expect("a directory");
    let mut text = format!(
        "\n[backup]\ndirectory = {}\n\n[database]\ntoken_file = {}\n",
        Value::from(backups.to_string_lossy()),
        Value::from(token.to_string_lossy())
    );
    for host in nodes {
        let _ = write!(
            text,
            "\n[[database.node]]\nname = \"node-{host}\"\nlisten = \"{}:{DB_PORT}\"\nhost = \"{host}\"\n",
            lan.address(host)
        );
    }
    text
}

fn spec(size: &Size, discord: &Discord) -> String {
    format!(
        r#"[fleet]
name = "{FLEET}"

[bots.tanako]
command = ["tanako-bot", "--intents", "{INTENTS}"]
token_file = {token}
shards = {shards}
shards_per_process = {per_process}
api_url = "{url}"
max_concurrency = {max_concurrency}
{more}
"#,
        token = Value::from(discord.token_file().to_string_lossy()),
        shards = size.shards,
        per_process = size.per_process,
        url = discord.url(),
        max_concurrency = size.max_concurrency,
        more = size.bot,
    )
}
