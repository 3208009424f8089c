//! From the spec of a fleet to the processes an agent supervises.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{Bot, Database, Run, Spec};
use crate::{
    process::{DATA_DIR, ProcessKind, ProcessName, ProcessSpec, Readiness, SecretEnv},
    shard,
};

/// Where things are on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The agent's data directory.
    pub data_dir: String,
}

impl Places {
    /// On whichever host it will be: the supervisor there fills in its own.
    pub fn anywhere() -> Self {
        Self {
            data_dir: DATA_DIR.to_owned(),
        }
    }

    /// Where backups go: as the spec says, else `backups` in the data directory.
    pub fn backup_dir(&self, spec: &Spec) -> String {
        spec.backup
            .directory
            .clone()
            .unwrap_or_else(|| in_dir(&self.data_dir, "backups"))
    }
}

/// One set of processes of a bot. The first is `tanako/0`, `tanako/1`, …; every later one has a number of
/// its own that is never used again: `tanako/g2-0`, `tanako/g2-1`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// 1, 2, …
    pub number: u32,
    /// Shards in all.
    pub shards: u32,
    /// Shards each process holds; the last may hold fewer.
    pub shards_per_process: u32,
}

impl Generation {
    /// How many processes it has.
    pub fn instances(&self) -> u32 {
        shard::instances(self.shards, self.shards_per_process)
    }

    /// Name of the process that holds the `instance`th part of the shards.
    pub fn process(&self, bot: &str, instance: u32) -> ProcessName {
        if self.number <= 1 {
            name(bot, instance)
        } else {
            name(bot, format!("g{}-{instance}", self.number))
        }
    }

    /// Name of the process that holds `shard`.
    pub fn process_of(&self, bot: &str, shard: u32) -> ProcessName {
        self.process(bot, shard / self.shards_per_process.max(1))
    }

    /// The names of its processes.
    pub fn names(&self, bot: &str) -> Vec<ProcessName> {
        (0..self.instances())
            .map(|instance| self.process(bot, instance))
            .collect()
    }

    /// The generation that a process name belongs to: 1, or what stands behind the `g`.
    pub fn number_of(name: &ProcessName) -> u32 {
        name.instance()
            .strip_prefix('g')
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(number, _)| number.parse().ok())
            .unwrap_or(1)
    }
}

/// The generations of each bot that have processes; a bot that is not in it has its first.
pub type Layout = BTreeMap<String, Vec<Generation>>;

fn in_dir(directory: &str, name: &str) -> String {
    Path::new(directory)
        .join(name)
        .to_string_lossy()
        .into_owned()
}

const VARIABLES: &[&str] = &[
    "shard_ids",
    "shard_id",
    "shard_count",
    "instance",
    "process",
    "data_dir",
];

/// The first `{name}` of a template that is not known.
pub(super) fn check_template(template: &str) -> Result<(), String> {
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        let Some(end) = rest[start..].find('}') else {
            return Ok(());
        };
        let name = &rest[start + 1..start + end];
        if !VARIABLES.contains(&name) {
            return Err(name.to_owned());
        }
        rest = &rest[start + end + 1..];
    }
    Ok(())
}

impl Spec {
    /// Every process of the fleet, database nodes first: bots need them.
    pub fn processes(&self, places: &Places) -> Vec<ProcessSpec> {
        self.processes_in(places, &Layout::new())
    }

    /// The same where bots have other generations than their first.
    pub fn processes_in(&self, places: &Places, layout: &Layout) -> Vec<ProcessSpec> {
        let mut processes = Vec::new();
        if let Some(database) = &self.database {
            let backup_dir = places.backup_dir(self);
            for node in &database.nodes {
                processes.push(database.process(&node.name, places, &backup_dir));
            }
        }
        for (name, bot) in &self.bots {
            let first = [bot.first()];
            let generations = layout.get(name).map_or(&first[..], Vec::as_slice);
            for generation in generations {
                for instance in 0..generation.instances() {
                    let database = self.database.as_ref();
                    processes.push(bot.process(name, generation, instance, database));
                }
            }
        }
        processes
    }
}

impl Database {
    /// `node1=ws://127.0.0.1:7101,node2=…`
    pub fn peers(&self) -> String {
        let peers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}={}", node.name, node.url()))
            .collect();
        peers.join(",")
    }

    fn process(&self, node: &str, places: &Places, backup_dir: &str) -> ProcessSpec {
        let listen = self
            .nodes
            .iter()
            .find(|candidate| candidate.name == node)
            .map_or("", |candidate| candidate.listen.as_str());
        let weights: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}={}", node.name, node.weight))
            .collect();
        let own = [
            ("TANAKO_DB_NAME", node.to_owned()),
            (
                "TANAKO_DB_DATA_DIR",
                in_dir(&in_dir(&places.data_dir, "db"), node),
            ),
            ("TANAKO_DB_LISTEN", listen.to_owned()),
            ("TANAKO_DB_TOKEN_FILE", self.token_file.clone()),
            ("TANAKO_DB_PEERS", self.peers()),
            ("TANAKO_DB_WEIGHTS", weights.join(",")),
            ("TANAKO_DB_CACHE_BYTES", self.cache_bytes.to_string()),
            ("TANAKO_DB_BACKUP_DIR", backup_dir.to_owned()),
        ];
        self.run.process(
            name("db", node),
            ProcessKind::Db,
            &self.command,
            own,
            BTreeMap::new(),
        )
    }
}

impl Bot {
    /// Its first generation, laid out as the spec says.
    pub fn first(&self) -> Generation {
        Generation {
            number: 1,
            shards: self.shards,
            shards_per_process: self.shards_per_process,
        }
    }

    fn process(
        &self,
        bot: &str,
        generation: &Generation,
        instance: u32,
        database: Option<&Database>,
    ) -> ProcessSpec {
        let Generation {
            shards: total,
            shards_per_process,
            ..
        } = *generation;
        let shards = shard::shards_of_instance(instance, total, shards_per_process);
        let list: Vec<String> = shards.iter().map(ToString::to_string).collect();
        let first = list.first().cloned().unwrap_or_default();
        let (list, count) = (list.join(","), total.to_string());
        let process = generation.process(bot, instance);
        let mut own = vec![
            ("SHARD_IDS", list.clone()),
            ("SHARD_LIST", list.clone()),
            ("SHARD_COUNT", count.clone()),
            ("SHARD_ID", first.clone()),
            ("TOTAL_SHARDS", count.clone()),
            ("DISCORD_SHARD_ID", first.clone()),
            ("DISCORD_SHARD_COUNT", count.clone()),
            ("TANAKO_INSTANCE", instance.to_string()),
            ("TANAKO_BOT", bot.to_owned()),
        ];
        let optional = [
            ("TANAKO_TOKEN_FILE", self.token_file.as_ref()),
            ("TANAKO_API_URL", self.api_url.as_ref()),
            ("TANAKO_GATEWAY_URL", self.gateway_url.as_ref()),
        ];
        own.extend(
            optional
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?.clone()))),
        );
        let mut secret_env = BTreeMap::new();
        if let (Some(variable), Some(file)) = (&self.token_env, &self.token_file) {
            secret_env.insert(variable.clone(), plain_secret(file));
        }
        if let Some(database) = database {
            own.push(("TANAKO_DB_NODES", database.peers()));
            own.push(("TANAKO_DB_TOKEN_FILE", database.token_file.clone()));
            // Bots of the original protocol know one address: spread them over the nodes.
            if let (Some(variable), false) = (&self.db_uri_env, database.nodes.is_empty()) {
                let node = &database.nodes[instance as usize % database.nodes.len()];
                secret_env.insert(
                    variable.clone(),
                    SecretEnv {
                        file: database.token_file.clone(),
                        template: format!("{}/?token={{secret}}", node.url()),
                    },
                );
            }
        }
        let mut spec = self.run.process(
            process.clone(),
            ProcessKind::Shard,
            &self.command,
            own,
            secret_env,
        );
        for (variable, template) in &self.shard_env {
            let value = template
                .replace("{shard_ids}", &list)
                .replace("{shard_id}", &first)
                .replace("{shard_count}", &count)
                .replace("{instance}", &instance.to_string())
                .replace("{process}", process.as_str());
            spec.env.insert(variable.clone(), value);
        }
        spec.shard_ids = shards;
        spec.shard_count = total;
        spec.gated = self.identifies && !self.identify_queue;
        spec.identify_queue = self.identify_queue;
        spec
    }
}

impl Run {
    /// What the operator wrote wins over what we set for bots of other makes; `TANAKO_` names cannot
    /// be written by the operator.
    fn process<I>(
        &self,
        name: ProcessName,
        kind: ProcessKind,
        command: &[String],
        own: I,
        mut secret_env: BTreeMap<String, SecretEnv>,
    ) -> ProcessSpec
    where
        I: IntoIterator<Item = (&'static str, String)>,
    {
        let mut env: BTreeMap<String, String> = own
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        env.extend(self.env.clone());
        for (variable, file) in &self.secret_env {
            secret_env.insert(variable.clone(), plain_secret(file));
        }
        ProcessSpec {
            name,
            kind,
            command: command.to_vec(),
            directory: self.directory.clone(),
            env,
            secret_env,
            shard_ids: Vec::new(),
            shard_count: 0,
            gated: false,
            identify_queue: false,
            ready: Readiness {
                probe: self.probe.clone(),
                timeout: self.ready_timeout,
            },
            watchdog: self.watchdog,
            restart: self.restart.clone(),
            stop: self.stop.clone(),
            limits: self.limits.clone(),
            logs: self.logs.clone(),
        }
    }
}

fn plain_secret(file: &str) -> SecretEnv {
    SecretEnv {
        file: file.to_owned(),
        template: "{secret}".to_owned(),
    }
}

fn name(group: &str, instance: impl std::fmt::Display) -> ProcessName {
    ProcessName::new(group, instance).expect("invariant: names were checked when the spec was read")
}
