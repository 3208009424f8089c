//! From what was typed to what it means; gathers every problem instead of stopping at the first.

mod placing;
mod run;

use std::{collections::BTreeMap, net::SocketAddr, ops::Range, path::Path, time::Duration};

use serde_spanned::Spanned;

use super::{
    Backup, Bot, Database, Host, Node, Spec,
    error::SpecProblem,
    raw,
    value::{parse_bytes, parse_duration},
};
use crate::{health, ring::WEIGHT_MAX, sizing};

/// More than this many shards is a typing error: the largest bots run a few thousand.
const SHARDS_MAX: u32 = 100_000;

/// Below this, ports need privileges that an agent does not have.
const PORT_MIN: u16 = 1024;

/// What a database node keeps in memory unless told otherwise; its default too.
const DB_CACHE_BYTES: u64 = 8 << 20;

/// Bounds of the silence that counts. Below, reports once a second say too little.
const SILENT_MIN: Duration = Duration::from_secs(10);
const SILENT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

struct Checker {
    problems: Vec<SpecProblem>,
    warnings: Vec<String>,
}

impl Checker {
    fn refuse(&mut self, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(SpecProblem::new(span, message, hint));
    }

    /// A name of a fleet, host, bot or node.
    fn name(&mut self, what: &str, text: &raw::Text) -> String {
        let name = text.get_ref();
        let good = !name.is_empty()
            && name.len() <= 40
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-');
        if !good {
            self.refuse(
                text.span(),
                format!("{name:?} cannot be the name of a {what}"),
                "use 1 to 40 lower-case letters, digits and dashes, such as node1 or my-bot",
            );
        }
        name.clone()
    }

    fn duration(&mut self, text: Option<&raw::Text>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        match parse_duration(text.get_ref()) {
            Ok(duration) => duration,
            Err(message) => {
                self.refuse(text.span(), message, "units are ms, s, m, h and d");
                default
            }
        }
    }

    /// `[bots.x.health] silent`: a time, or `off`.
    fn silent(&mut self, text: Option<&raw::Text>) -> Option<Duration> {
        if text.is_some_and(|text| text.get_ref() == "off") {
            return None;
        }
        let silent = self.duration(text, health::SILENT_DEFAULT);
        if let Some(text) = text
            && !(SILENT_MIN..=SILENT_MAX).contains(&silent)
        {
            self.refuse(
                text.span(),
                "silent is out of bounds",
                "give 10s to 24h, or \"off\"; 5m is good for most bots",
            );
        }
        Some(silent)
    }

    fn bytes(&mut self, text: &raw::Text) -> Option<u64> {
        match parse_bytes(text.get_ref()) {
            Ok(0) => {
                self.refuse(
                    text.span(),
                    "a size of 0 leaves nothing",
                    "give a size such as 512MiB, or leave the key out",
                );
                None
            }
            Ok(bytes) => Some(bytes),
            Err(message) => {
                self.refuse(
                    text.span(),
                    message,
                    "units are B, KiB, MiB, GiB, TiB, KB, MB, GB and TB",
                );
                None
            }
        }
    }

    fn at_least_one<T: Copy + PartialOrd + From<u8>>(
        &mut self,
        what: &str,
        value: Option<&Spanned<T>>,
        default: T,
    ) -> T {
        let Some(value) = value else { return default };
        if *value.get_ref() < T::from(1) {
            self.refuse(
                value.span(),
                format!("{what} must be at least 1"),
                "leave it out for the default",
            );
            return default;
        }
        *value.get_ref()
    }

    fn url(&mut self, text: Option<&raw::Text>, schemes: &[&str], what: &str) -> Option<String> {
        let text = text?;
        let url = text.get_ref().trim_end_matches('/');
        let known = schemes.iter().any(|scheme| {
            url.strip_prefix(scheme)
                .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        });
        if !known {
            self.refuse(
                text.span(),
                format!("{:?} is not a {what}", text.get_ref()),
                format!("write it like {}host:port", schemes[0]),
            );
        }
        Some(url.to_owned())
    }

    fn variable(&mut self, text: &raw::Text) -> String {
        let name = text.get_ref();
        let good = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good {
            self.refuse(
                text.span(),
                format!("{name:?} cannot be the name of a variable"),
                "use letters, digits and underscores, such as DISCORD_TOKEN",
            );
        }
        name.clone()
    }

    fn command(&mut self, command: &Spanned<Vec<String>>) -> Vec<String> {
        let words = command.get_ref();
        if words
            .first()
            .is_none_or(|program| program.trim().is_empty())
        {
            self.refuse(
                command.span(),
                "the command is empty",
                "give the program and its arguments as a list: command = [\"node\", \"bot.js\"]",
            );
        } else if words.len() == 1 && words[0].contains(' ') && !words[0].contains('/') {
            self.refuse(
                command.span(),
                format!("{:?} is one word; no shell splits it", words[0]),
                format!(
                    "write command = [{}]",
                    words[0]
                        .split_whitespace()
                        .map(|word| format!("{word:?}"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            );
        }
        if words.iter().any(|word| word.contains('\0')) {
            self.refuse(command.span(), "an argument holds a NUL byte", "remove it");
        }
        words.clone()
    }

    fn bot(&mut self, name: &raw::Text, spanned: Spanned<raw::Bot>) -> Bot {
        let span = spanned.span();
        let mut raw = spanned.into_inner();
        let label = self.name("bot", name);
        if label == "db"
            || label == "all"
            || label == "host"
            || label == "shard"
            || label == "guild"
        {
            self.refuse(
                name.span(),
                format!(
                    "a bot cannot be called {label:?}: commands use that word for something else"
                ),
                "choose another name",
            );
        }
        let command = self.command(&raw.command);
        let worker = raw
            .worker
            .unwrap_or_else(|| is_program(&command, "tanako-bot"));
        let identifies = raw
            .identifies
            .as_ref()
            .map_or(!worker, |flag| *flag.get_ref());
        if worker
            && identifies
            && let Some(flag) = &raw.identifies
        {
            self.refuse(
                flag.span(),
                "a worker asks the agent before each IDENTIFY; its starts need no spacing",
                "remove identifies, or set worker = false",
            );
        }
        let identify_queue = raw
            .identify_queue
            .as_ref()
            .is_some_and(|flag| *flag.get_ref());
        if let Some(flag) = raw.identify_queue.as_ref().filter(|_| identify_queue) {
            if worker {
                self.refuse(
                    flag.span(),
                    "a worker asks the agent over its socket before each IDENTIFY",
                    "remove identify_queue, or set worker = false",
                );
            } else if !identifies {
                self.refuse(
                    flag.span(),
                    "a bot that sends no IDENTIFY has nothing to ask for",
                    "remove identify_queue, or identifies = false",
                );
            }
        }
        let refused_before = self.problems.len();
        let auto_shards = *raw.shards.get_ref() == raw::Shards::Auto;
        let shards = match (*raw.shards.get_ref(), raw.guilds) {
            (raw::Shards::Count(0), _) => {
                self.refuse(
                    raw.shards.span(),
                    "a bot has at least 1 shard",
                    "set shards = 1, or run `tanakoctl sizing --guilds N`",
                );
                1
            }
            (raw::Shards::Count(count), _) if count > SHARDS_MAX => {
                self.refuse(
                    raw.shards.span(),
                    format!("{count} shards are more than any bot has"),
                    "one shard serves up to 2500 guilds",
                );
                1
            }
            (raw::Shards::Count(count), guilds) => {
                if let Some(guilds) = guilds
                    && guilds > u64::from(count) * sizing::GUILDS_PER_SHARD_MAX
                {
                    self.refuse(
                        raw.shards.span(),
                        format!("{count} shards cannot hold {guilds} guilds: Discord allows 2500 a shard and closes with 4011"),
                        format!("set shards = {} or more", sizing::recommend(guilds).shards),
                    );
                }
                count
            }
            (raw::Shards::Auto, Some(guilds)) => sizing::recommend(guilds).shards,
            (raw::Shards::Auto, None) => {
                self.refuse(
                    raw.shards.span(),
                    "shards = \"auto\" needs to know how many guilds the bot is in",
                    "add guilds = N, or give the number of shards",
                );
                1
            }
        };
        let shards_per_process =
            self.at_least_one("shards_per_process", raw.shards_per_process.as_ref(), 1);
        if shards_per_process > shards
            && refused_before == self.problems.len()
            && let Some(per) = &raw.shards_per_process
        {
            self.refuse(
                per.span(),
                format!(
                    "shards_per_process is {shards_per_process}, but there are only {shards} shards"
                ),
                format!("set shards_per_process = {shards} or less"),
            );
        }
        if raw.token_file.is_none() && (worker || raw.token_env.is_some()) {
            self.refuse(
                span,
                format!("bot {label:?} needs a token_file"),
                "put the token into a file of mode 0600 and name it: token_file = \"/etc/tanako/discord.token\"",
            );
        }
        if raw.token_file.is_some() && !worker && raw.token_env.is_none() {
            self.warnings.push(format!(
                "bot {label}: token_file is set, but a foreign bot gets the token only with token_env = \"DISCORD_TOKEN\"; it finds the path in TANAKO_TOKEN_FILE"
            ));
        }
        let token_env = raw.token_env.as_ref().map(|text| self.variable(text));
        let db_uri_env = raw.db_uri_env.as_ref().map(|text| self.variable(text));
        let mut shard_env = BTreeMap::new();
        for (variable, template) in &raw.shard_env {
            if let Err(unknown) = super::resolve::check_template(template.get_ref()) {
                self.refuse(
                    template.span(),
                    format!("{{{unknown}}} is not known in a template"),
                    "use {shard_ids}, {shard_id}, {shard_count}, {instance} or {process}",
                );
            }
            let variable = self.variable(variable);
            shard_env.insert(variable, template.get_ref().clone());
        }
        let run = raw.run();
        Bot {
            api_url: self.url(
                raw.api_url.as_ref(),
                &["https://", "http://"],
                "REST address",
            ),
            gateway_url: self.url(
                raw.gateway_url.as_ref(),
                &["wss://", "ws://"],
                "gateway address",
            ),
            max_concurrency: self.at_least_one("max_concurrency", raw.max_concurrency.as_ref(), 1),
            identify_reserve: raw.identify_reserve,
            silent: self.silent(raw.health.and_then(|health| health.silent).as_ref()),
            token_file: raw.token_file.map(Spanned::into_inner),
            run: self.run(run, worker),
            command,
            shards,
            auto_shards,
            guilds: raw.guilds,
            shards_per_process,
            worker,
            identifies,
            identify_queue,
            token_env,
            db_uri_env,
            shard_env,
            placement: self.bot_placement(raw.placement),
        }
    }

    fn database(&mut self, spanned: Spanned<raw::Database>, hosts: &[Host]) -> Database {
        let span = spanned.span();
        let mut raw = spanned.into_inner();
        let command = raw.command.as_ref().map_or_else(
            || vec!["tanako-db".to_owned()],
            |command| self.command(command),
        );
        if let Some(engine) = &raw.engine
            && engine.get_ref() != "embedded"
        {
            self.refuse(
                engine.span(),
                format!("{:?} is not an engine of this version", engine.get_ref()),
                "use engine = \"embedded\", or leave it out",
            );
        }
        let mut nodes: Vec<Node> = Vec::new();
        match (&raw.nodes, raw.node.is_empty()) {
            (Some(count), false) => self.refuse(
                count.span(),
                "both database.nodes and [[database.node]] are given",
                "keep one: `nodes = N` for N alike, [[database.node]] to name each",
            ),
            (None, true) => self.refuse(
                span,
                "the database has no nodes",
                "add nodes = 1, or [[database.node]] entries",
            ),
            (Some(count), true) => {
                let address = raw
                    .listen
                    .as_ref()
                    .map_or("127.0.0.1", |text| text.get_ref().as_str());
                let base = raw.base_port.as_ref().map_or(7101, |port| *port.get_ref());
                let number = *count.get_ref();
                let place = raw.base_port.as_ref().map_or(count.span(), Spanned::span);
                if number == 0 || number > 1_000 {
                    self.refuse(
                        count.span(),
                        format!("{number} database nodes cannot be run"),
                        "give 1 to 1000; `tanakoctl sizing --guilds N` recommends",
                    );
                } else if base < PORT_MIN || u32::from(base) + number > 65_536 {
                    self.refuse(
                        place,
                        format!(
                            "ports {base} to {} cannot be used",
                            u32::from(base) + number - 1
                        ),
                        "choose a base_port between 1024 and 65535 - nodes",
                    );
                } else {
                    for index in 0..number {
                        let port = u32::from(base) + index;
                        nodes.push(Node {
                            name: format!("node{}", index + 1),
                            listen: format!("{address}:{port}"),
                            weight: 1,
                            host: None,
                        });
                    }
                }
                if let Some(listen) = &raw.listen
                    && address.parse::<std::net::IpAddr>().is_err()
                {
                    self.refuse(
                        listen.span(),
                        format!("{address:?} is not an address"),
                        "write an IP address without a port, such as 127.0.0.1",
                    );
                }
            }
            (None, false) => {
                if let Some(port) = &raw.base_port {
                    self.refuse(
                        port.span(),
                        "base_port says nothing beside [[database.node]]",
                        "remove it; each node has its own `listen`",
                    );
                }
                for entry in &raw.node {
                    let node = entry.get_ref();
                    let name = self.name("database node", &node.name);
                    let listen = node.listen.get_ref().clone();
                    match listen.parse::<SocketAddr>() {
                        Ok(address) if address.port() == 0 => self.refuse(
                            node.listen.span(),
                            "a node needs a fixed port",
                            "clients must find it: give a port other than 0",
                        ),
                        Ok(_) => {}
                        Err(_) => self.refuse(
                            node.listen.span(),
                            format!("{listen:?} is not an address with a port"),
                            "write it like 127.0.0.1:7101",
                        ),
                    }
                    if let Some(twin) = nodes.iter().find(|twin| twin.name == name) {
                        self.refuse(
                            node.name.span(),
                            format!("two nodes are called {}", twin.name),
                            "give each a name of its own",
                        );
                    }
                    if let Some(twin) = nodes.iter().find(|twin| twin.listen == listen) {
                        self.refuse(
                            node.listen.span(),
                            format!("{} listens on {listen} already", twin.name),
                            "give each node a port of its own",
                        );
                    }
                    let weight = node.weight.as_ref().map_or(1, |weight| {
                        if !(1..=WEIGHT_MAX).contains(weight.get_ref()) {
                            self.refuse(
                                weight.span(),
                                format!("a weight is a whole number from 1 to {WEIGHT_MAX}"),
                                "1 is the default; 2 takes twice the guilds",
                            );
                        }
                        *weight.get_ref()
                    });
                    nodes.push(Node {
                        name,
                        listen,
                        weight,
                        host: node.host.as_ref().map(|host| self.name("host", host)),
                    });
                }
            }
        }
        self.homes(&raw, &nodes, hosts);
        let worker = is_program(&command, "tanako-db");
        let run = raw.run();
        Database {
            nodes,
            token_file: raw.token_file.into_inner(),
            cache_bytes: raw
                .cache
                .as_ref()
                .and_then(|text| self.bytes(text))
                .unwrap_or(DB_CACHE_BYTES),
            run: self.run(run, worker),
            command,
        }
    }

    fn backup(&mut self, raw: Option<raw::Backup>) -> Backup {
        let Some(raw) = raw else {
            return Backup::default();
        };
        Backup {
            directory: raw.directory.map(|directory| {
                if !Path::new(directory.get_ref()).is_absolute() {
                    self.refuse(
                        directory.span(),
                        format!("{:?} is not an absolute path", directory.get_ref()),
                        "agents do not share a working directory: write the whole path",
                    );
                }
                directory.into_inner()
            }),
            schedule_minute: raw.schedule.and_then(|text| {
                let minute = minute_of_day(text.get_ref());
                if minute.is_none() {
                    self.refuse(
                        text.span(),
                        format!("{:?} is not a time of day", text.get_ref()),
                        "write it like \"03:00\" (UTC)",
                    );
                }
                minute
            }),
            keep: self.at_least_one("keep", raw.keep.as_ref(), Backup::default().keep),
        }
    }
}

fn minute_of_day(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    if hour.len() != 2 || minute.len() != 2 {
        return None;
    }
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

fn is_program(command: &[String], name: &str) -> bool {
    command
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|file| file == name)
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            directory: None,
            schedule_minute: None,
            keep: 7,
        }
    }
}

pub(super) fn check(raw: raw::Document) -> Result<Spec, Vec<SpecProblem>> {
    let mut checker = Checker {
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let name = checker.name("fleet", &raw.fleet.name);
    let mut hosts: Vec<Host> = Vec::new();
    for entry in raw.hosts {
        let place = entry.get_ref().name.span();
        let host = entry.into_inner();
        let name = checker.name("host", &host.name);
        if hosts.iter().any(|twin| twin.name == name) {
            checker.refuse(
                place,
                format!("two hosts are called {name}"),
                "give each a name of its own",
            );
        }
        hosts.push(Host {
            name,
            address: host.address,
            labels: checker.labels(host.labels),
            capacity: checker.capacity(host.capacity),
        });
    }
    let place = raw.fleet.name.span();
    let mut bots = BTreeMap::new();
    for (name, bot) in raw.bots {
        let bot = checker.bot(&name, bot);
        bots.insert(name.into_inner(), bot);
    }
    let database = raw
        .database
        .map(|database| checker.database(database, &hosts));
    let backup = checker.backup(raw.backup);
    let advise = checker.advise(raw.advise);
    if bots.is_empty() && database.is_none() {
        checker.refuse(
            place,
            "the fleet has neither a bot nor a database",
            "add [bots.NAME] with its command and shards",
        );
    }
    if checker.problems.is_empty() {
        Ok(Spec {
            name,
            production: raw.fleet.production,
            hosts,
            bots,
            database,
            backup,
            advise,
            warnings: checker.warnings,
        })
    } else {
        Err(checker.problems)
    }
}
