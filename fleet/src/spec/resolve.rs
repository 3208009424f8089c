//! From the spec of a fleet to the processes an agent supervises.

use std::{collections::BTreeMap, path::Path};

use super::{Bot, Database, Run, Spec};
use crate::{
    process::{ProcessKind, ProcessName, ProcessSpec, Readiness, SecretEnv},
    shard,
};

/// Where things are on the host that runs the processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The agent's data directory.
    pub data_dir: String,
}

impl Places {
    /// Where backups go: as the spec says, else `backups` in the data directory.
    pub fn backup_dir(&self, spec: &Spec) -> String {
        spec.backup
            .directory
            .clone()
            .unwrap_or_else(|| in_dir(&self.data_dir, "backups"))
    }
}

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
        let mut processes = Vec::new();
        if let Some(database) = &self.database {
            let backup_dir = places.backup_dir(self);
            for node in &database.nodes {
                processes.push(database.process(&node.name, places, &backup_dir));
            }
        }
        for (name, bot) in &self.bots {
            for instance in 0..shard::instances(bot.shards, bot.shards_per_process) {
                processes.push(bot.process(name, instance, self.database.as_ref()));
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
    fn process(&self, bot: &str, instance: u32, database: Option<&Database>) -> ProcessSpec {
        let shards = shard::shards_of_instance(instance, self.shards, self.shards_per_process);
        let list: Vec<String> = shards.iter().map(ToString::to_string).collect();
        let first = list.first().cloned().unwrap_or_default();
        let (list, count) = (list.join(","), self.shards.to_string());
        let process = name(bot, instance);
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
        spec.shard_count = self.shards;
        spec.gated = self.identifies;
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
