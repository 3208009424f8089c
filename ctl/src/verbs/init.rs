//! `tanakoctl init`.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use tanako_fleet::sizing::recommend;

use crate::{
    context,
    exit::Exit,
    failure::{Failure, Outcome},
    founding::Founding,
    session::Session,
};

/// Write a commented fleet.toml to start from; with --host also the certificates of a fleet of hosts
///
/// An existing file is never overwritten. Nothing is asked and nothing is started. With --host the fleet's
/// own certificate authority is made, the identity of the first host's agent, and yours as an admin; a
/// fleet.toml that is there then stays as it is and gives the fleet's name. Run it on that host.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    #[arg(default_value = "fleet.toml", value_name = "FILE")]
    file: PathBuf,
    /// Name of the fleet: lower-case letters, digits, dashes
    #[arg(long, value_name = "NAME", default_value = "my-fleet")]
    name: String,
    /// Guilds the bot is in: sizes shards, processes and database
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    guilds: u64,
    /// Print the file instead of writing it
    #[arg(long)]
    dry_run: bool,
    /// Name of the first of several hosts: makes authority and identities
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Addresses of that host, separated by commas
    #[arg(
        long = "address",
        value_name = "IP",
        value_delimiter = ',',
        requires = "host"
    )]
    addresses: Vec<IpAddr>,
    /// Where its agent's identity and the authority go
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/tanako/identity",
        requires = "host"
    )]
    identity: PathBuf,
    /// Your name
    #[arg(long, value_name = "NAME", default_value = "admin", requires = "host")]
    admin: String,
    /// Where your identity goes [default: tanako/identities/FLEET in the configuration directory]
    #[arg(long, value_name = "DIR", requires = "host")]
    admin_identity: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self, session: &Session) -> Outcome {
        let file = std::path::absolute(&self.file)
            .map_err(|error| Failure::io(&self.file, "use the path", &error))?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        if self.host.is_some() && file.exists() {
            return self.found(session, &named_in(&file)?, None);
        }
        let text = text(&self.name, self.guilds, directory);
        // What this writes must be accepted later; a bad name shows here and not at `apply`.
        if let Err(error) = tanako_fleet::spec::parse(&text, &self.file.display().to_string()) {
            return Err(
                Failure::usage("--name", format!("{:?} cannot name a fleet", self.name))
                    .cause(
                        error
                            .problems()
                            .first()
                            .map(|problem| problem.message.clone())
                            .unwrap_or_default(),
                    )
                    .hint(error.hint()),
            );
        }
        if self.dry_run {
            session.ui.print(&text)?;
            return Ok(Exit::Ok);
        }
        session.may_write()?;
        if let Some(founding) = self.founding(&self.name)? {
            // Before anything is written.
            founding.check()?;
        }
        let opened = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o644)
            .open(&file);
        opened
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Failure::new(
                    "exists",
                    self.file.display().to_string(),
                    "the file is there already and stays as it is",
                )
                .hint("name another file, or look at a fresh one with --dry-run"),
                io::ErrorKind::NotFound => {
                    Failure::io(&file, "write the file", &error).hint("make its directory first")
                }
                _ => Failure::io(&file, "write the file", &error),
            })?;
        session.ui.print(&format!("{}\n", self.file.display()))?;
        let next = next(&self.file, directory);
        if self.host.is_some() {
            return self.found(session, &self.name, Some(next));
        }
        session.ui.note(&next);
        Ok(Exit::Ok)
    }

    fn founding(&self, fleet: &str) -> Result<Option<Founding>, Failure> {
        let Some(host) = &self.host else {
            return Ok(None);
        };
        for name in [host, &self.admin] {
            tanako_pki::check_name(name)
                .map_err(|error| Failure::usage(name, error.to_string()))?;
        }
        if *host == self.admin {
            return Err(
                Failure::usage(host, "the host and the admin need different names")
                    .hint("name yourself with --admin"),
            );
        }
        let admin_out = match &self.admin_identity {
            Some(directory) => directory.clone(),
            None => context::base("XDG_CONFIG_HOME", ".config")?
                .join("tanako/identities")
                .join(fleet),
        };
        Ok(Some(Founding {
            fleet: fleet.to_owned(),
            host: host.clone(),
            addresses: self.addresses.clone(),
            agent: self.identity.clone(),
            admin: self.admin.clone(),
            admin_out,
        }))
    }

    /// Makes the certificates of a fleet of hosts.
    fn found(&self, session: &Session, fleet: &str, first: Option<String>) -> Outcome {
        let Some(founding) = self.founding(fleet)? else {
            return Ok(Exit::Ok);
        };
        founding.check()?;
        if self.dry_run {
            session.ui.print(&format!(
                "would make the authority of fleet {fleet} and the identity of host {} in {}, and that of {} in {}\n",
                founding.host,
                founding.agent.display(),
                founding.admin,
                founding.admin_out.display()
            ))?;
            return Ok(Exit::Changes);
        }
        session.may_write()?;
        founding.make()?;
        for directory in [&founding.agent, &founding.admin_out] {
            session.ui.print(&format!("{}\n", directory.display()))?;
        }
        if let Some(first) = first {
            session.ui.note(&first);
        }
        session.ui.note(&format!(
            "The fleet's hosts:
  1. {agent} holds the authority's key: give it to the agent's user, and keep a copy in a safe place
  2. Start the agent here with --host {host} --store etcd --listen IP:7400
  3. Reach the fleet from anywhere, as {admin}:
       tanakoctl context add {fleet} --address IP:7400 --identity {admin_out}
  4. For each further host: tanakoctl join-token --host NAME",
            agent = founding.agent.display(),
            host = founding.host,
            admin = founding.admin,
            admin_out = founding.admin_out.display(),
        ));
        Ok(Exit::Ok)
    }
}

/// The fleet's name in a fleet.toml.
fn named_in(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::io(file, "read the file", &error))?;
    let spec = tanako_fleet::spec::parse(&text, &file.display().to_string()).map_err(|error| {
        Failure::new(
            "invalid-spec",
            file.display().to_string(),
            "the file is refused",
        )
        .cause(error.to_string())
        .hint(error.hint())
    })?;
    Ok(spec.name)
}

fn next(file: &Path, directory: &Path) -> String {
    let directory = directory.display();
    let file = file.display();
    format!(
        "Next:
  1. The bot's token, readable for the agent's user alone, never on a command line:
       install -m 600 /dev/null {directory}/discord.token && $EDITOR {directory}/discord.token
     (Discord Developer Portal, your application, Bot, Reset Token)
  2. A token of your own for the database:
       (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > {directory}/db.token)
  3. Look, then do it:
       tanakoctl plan {file}
       tanakoctl apply {file}"
    )
}

fn text(name: &str, guilds: u64, directory: &Path) -> String {
    let sizing = recommend(guilds);
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    let path = |file: &str| quoted(&directory.join(file).to_string_lossy());
    let nodes = sizing.db_nodes_min;
    format!(
        r#"# The desired state of a fleet. `tanakoctl plan` shows what a change would do and cost, `tanakoctl
# apply` does it. Sized for {guilds} guilds (tanakoctl sizing --guilds {guilds}).

[fleet]
name = {name}
# Red colours and stricter confirmations.
production = false

# One table for each bot; the name behind the dot is the bot's, and its processes are called
# tanako/0, tanako/1, …
[bots.tanako]
# Program and arguments. A bare name is looked up beside tanako-agent, then in PATH.
command = ["tanako-bot"]
# File of mode 0600 with the token.
token_file = {discord_token}
shards = {shards}
shards_per_process = {per_process}
# Or shards = "auto" with guilds = {guilds}, to begin with what so many need. When Discord recommends more, `tanakoctl
# status` proposes a reshard; nothing moves by itself.
# IDENTIFYs that are never spent automatically; a tenth of the day's total unless set.
# identify_reserve = 100
# IDENTIFYs at once, until Discord has said it.
# max_concurrency = 1
# A shard that is connected and gets no event of a kind that it got before, for so long, is looked after: resumed,
# then identified, then its process restarted. "off" for bots that hear little.
# health = {{ silent = "5m" }}
# A process that gives no sign of life for so long is restarted.
# watchdog = "30s"
# env = {{ RUST_LOG = "info" }}
# ready = {{ kind = "worker", timeout = "60s" }}
# restart = {{ when = "always", backoff_min = "1s", backoff_max = "60s" }}
# stop = {{ signal = "TERM", grace = "20s" }}
# limits = {{ memory = "512MiB", open_files = 4096 }}
# logs = {{ max_size = "10MiB", keep = 5 }}

# In a fleet of several hosts: where its processes may run, and how much load one is. `required` and
# `preferred` are labels of hosts; anti_affinity keeps them on different hosts ("host") or on hosts that
# differ in a label ("rack"); weight is its shards unless set.
# placement = {{ preferred = {{ zone = "eu-1" }}, anti_affinity = "host", weight = 4 }}

# A bot in any other language runs as it is:
# [bots.mybot]
# command = ["node", "index.js"]
# directory = "/srv/mybot"
# token_file = {discord_token}
# token_env = "DISCORD_TOKEN"
# shards = 2
# Its starts are spaced, for it identifies by itself. One that can ask before each IDENTIFY, as twilight's HTTP
# queue does, at the address in TANAKO_IDENTIFY_QUEUE:
# identify_queue = true
# ready = {{ kind = "log", pattern = "Ready", timeout = "60s" }}

# A host is of the fleet because it has joined (`tanakoctl join-token`). A table here adds labels, bounds
# (processes, memory) and its part of the load beside the others; its processors unless set.
# [[hosts]]
# name = "a"
# labels = {{ zone = "eu-1", rack = "r1" }}
# capacity = {{ processes = 40, memory = "28GiB", share = 8 }}

# The guild database: nodes on ports {port}, {port} + 1, …
[database]
nodes = {nodes}
base_port = {port}
# With several hosts each node has one where its data lies; then, instead of nodes and base_port:
#   [[database.node]]
#   name = "node1"
#   listen = "10.0.0.1:7101"
#   host = "a"
# File of mode 0600 with a token of your own; the bots show it.
token_file = {db_token}

[backup]
# directory = "/var/backups/tanako"
# UTC, daily.
schedule = "03:00"
keep = 7

# `tanakoctl advise` says what it would change. This lets the fleet do it by itself, at most once a day and
# within these hours (UTC), never while another operation runs.
# [advise]
# act = ["rebalance", "reshard"]
# max_shards = 64
# quiet_hours = "02:00-06:00"
"#,
        name = quoted(name),
        discord_token = path("discord.token"),
        db_token = path("db.token"),
        shards = sizing.shards,
        per_process = sizing.shards_per_process,
        port = 7101,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_one_that_the_fleet_accepts() {
        for guilds in [0, 1_000, 10_000, 1_000_000] {
            let text = text("my-fleet", guilds, Path::new("/srv/it's \"here\""));
            let spec = tanako_fleet::spec::parse(&text, "fleet.toml").expect("a spec");
            let sizing = recommend(guilds);
            assert_eq!(spec.bots["tanako"].shards, sizing.shards);
            assert_eq!(
                spec.database.expect("a database").nodes.len() as u32,
                sizing.db_nodes_min
            );
            assert_eq!(
                spec.bots["tanako"].token_file.as_deref(),
                Some("/srv/it's \"here\"/discord.token")
            );
        }
    }

    #[test]
    fn what_is_commented_out_is_accepted_as_well() {
        let text = text("my-fleet", 10_000, Path::new("/srv"));
        // Comments that hold a setting begin with "# " and a key or a table.
        let active: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.starts_with('[')
                        || rest
                            .split_once(" = ")
                            .is_some_and(|(key, _)| !key.contains(' ')) =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let spec = tanako_fleet::spec::parse(&active, "fleet.toml").expect("a spec");
        assert_eq!(spec.bots.len(), 2);
        assert_eq!(spec.bots["tanako"].identify_reserve, Some(100));
        assert_eq!(spec.bots["tanako"].placement.weight, Some(4));
        assert_eq!(spec.hosts[0].capacity.processes, Some(40));
        assert_eq!(spec.advise.max_shards, Some(64));
    }
}
