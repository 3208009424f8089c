//! What an agent needs to know to run one process: the spec of a fleet, resolved down to the unit of
//! supervision. Made by [`crate::spec`], carried out by the agent's supervisor.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Name of a process: `tanako/0` (bot, instance) or `db/node1`. Never changes its meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessName(String);

/// Why a text is not a process name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a process name; one looks like tanako/0 or db/node1")]
pub struct BadProcessName(pub String);

impl ProcessName {
    /// The name of instance `instance` of `group`.
    pub fn new(group: &str, instance: impl fmt::Display) -> Result<Self, BadProcessName> {
        format!("{group}/{instance}").parse()
    }

    /// The part before the slash: the bot, or `db`.
    pub fn group(&self) -> &str {
        self.0.split_once('/').map_or("", |(group, _)| group)
    }

    /// The part behind the slash.
    pub fn instance(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, instance)| instance)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one path component: `tanako.0`.
    pub fn file_stem(&self) -> String {
        self.0.replace('/', ".")
    }
}

impl FromStr for ProcessName {
    type Err = BadProcessName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |part: &str| {
            !part.is_empty()
                && part.len() <= 63
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        match text.split_once('/') {
            Some((group, instance)) if good(group) && good(instance) => Ok(Self(text.to_owned())),
            _ => Err(BadProcessName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ProcessName {
    type Error = BadProcessName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProcessName> for String {
    fn from(name: ProcessName) -> Self {
        name.0
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessKind {
    /// Holds shards of a bot.
    Shard,
    /// A database node.
    Db,
}

impl fmt::Display for ProcessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shard => "shard",
            Self::Db => "db",
        })
    }
}

/// One process, ready to be started on a host.
///
/// Two specs are equal exactly when a running process needs no restart to go from one to the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Its name.
    pub name: ProcessName,
    /// What it is.
    pub kind: ProcessKind,
    /// Program and arguments; never a shell line. Never holds a secret.
    pub command: Vec<String>,
    /// Working directory; the agent's data directory when unset.
    pub directory: Option<String>,
    /// Environment besides what the agent itself sets. Holds no secret.
    pub env: BTreeMap<String, String>,
    /// Variables whose value is the content of a file, read by the agent at each start:
    /// name to (file, template with `{secret}`). How a foreign bot gets `DISCORD_TOKEN`.
    pub secret_env: BTreeMap<String, SecretEnv>,
    /// Shards held; empty for a database node.
    pub shard_ids: Vec<u32>,
    /// Shards of the bot in all; 0 for a database node.
    pub shard_count: u32,
    /// Whether starts are spaced by the identify broker because the process identifies on its own
    /// (every bot that does not ask for permits over the worker socket).
    pub gated: bool,
    /// Whether it asks the agent over HTTP before each IDENTIFY: it gets an address of its own in
    /// `TANAKO_IDENTIFY_QUEUE`, and its starts need no spacing.
    #[serde(default)]
    pub identify_queue: bool,
    /// When it counts as ready.
    pub ready: Readiness,
    /// Silence after which it is taken for hung and restarted; unset = never.
    pub watchdog: Option<Duration>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// How it is stopped.
    pub stop: StopPolicy,
    /// What it may use.
    pub limits: Limits,
    /// How much of its output is kept.
    pub logs: LogPolicy,
}

/// Stands in a spec for the data directory of whichever host runs the process.
pub const DATA_DIR: &str = "{data_dir}";

impl ProcessSpec {
    /// As it is on a host with that data directory: what follows from [`DATA_DIR`] is filled in.
    pub fn on_host(&self, data_dir: &str) -> Cow<'_, Self> {
        let texts = self
            .command
            .iter()
            .chain(&self.directory)
            .chain(self.env.values())
            .chain(self.secret_env.values().map(|secret| &secret.file));
        if !texts.into_iter().any(|text| text.contains(DATA_DIR)) {
            return Cow::Borrowed(self);
        }
        let mut own = self.clone();
        let texts = own
            .command
            .iter_mut()
            .chain(&mut own.directory)
            .chain(own.env.values_mut())
            .chain(own.secret_env.values_mut().map(|secret| &mut secret.file));
        for text in texts {
            if text.contains(DATA_DIR) {
                *text = text.replace(DATA_DIR, data_dir);
            }
        }
        Cow::Owned(own)
    }
}

/// A variable made from a secret file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretEnv {
    /// File of mode 0600 or stricter.
    pub file: String,
    /// `{secret}` is replaced by the file's trimmed content.
    pub template: String,
}

/// When a process counts as ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Readiness {
    /// What shows it.
    pub probe: Probe,
    /// How long it may take from the start; then the start has failed.
    pub timeout: Duration,
}

/// What shows that a process is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Probe {
    /// It stayed alive for this long.
    Started {
        /// How long.
        after: Duration,
    },
    /// It reports READY over the worker socket.
    Worker,
    /// It sends `READY=1` to `NOTIFY_SOCKET` (sd_notify).
    Notify,
    /// A GET answers 200-299.
    Http {
        /// `http://127.0.0.1:PORT/path`.
        url: String,
        /// Between two tries.
        interval: Duration,
    },
    /// A line of its output matches.
    Log {
        /// A regular expression.
        pattern: String,
    },
}

/// When a process is started again by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which exits.
    pub when: RestartWhen,
    /// Wait before the second restart in a row (the first is immediate); doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Ready for this long = the next exit counts as the first again.
    pub reset_after: Duration,
    /// So many failed runs within `crash_loop_window` = Failed until someone starts it by hand.
    pub crash_loop_starts: u32,
    /// Window of the crash-loop guard.
    pub crash_loop_window: Duration,
}

/// After which exits a process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// After every exit that was not asked for.
    Always,
    /// After a signal or an exit code other than 0.
    OnFailure,
    /// Never.
    Never,
}

/// How a process is stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// Signal to the process itself: TERM, INT, QUIT, HUP, USR1, USR2.
    pub signal: String,
    /// Then SIGKILL to its whole process group.
    pub grace: Duration,
}

/// What a process may use; unset = as the agent's own limits are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory (cgroup v2 `memory.max`, else RLIMIT_AS is not used: it breaks runtimes;
    /// then the agent watches RSS and restarts above it).
    pub memory_bytes: Option<u64>,
    /// Cores, 0.5 = half of one (cgroup v2 `cpu.max`; not enforced without it).
    pub cpus: Option<f64>,
    /// RLIMIT_NOFILE.
    pub open_files: Option<u64>,
    /// Processes and threads (cgroup v2 `pids.max`; not enforced without it).
    pub tasks: Option<u64>,
}

/// How much of a process's output is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// Size at which the current file is rotated.
    pub max_bytes: u64,
    /// Rotated files kept.
    pub keep: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_fits_every_host() {
        let toml = "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"x\", \"{data_dir}/a\"]\n\
                    token_file = \"/t\"\nshards = 1\nenv = { A = \"{data_dir}\", B = \"{other}\" }\n";
        let spec = crate::spec::parse(toml, "fleet.toml").expect("a good spec");
        let spec = &spec.processes(&crate::spec::Places::anywhere())[0];
        let own = spec.on_host("/d");
        assert_eq!(own.command[1], "/d/a");
        assert_eq!((&*own.env["A"], &*own.env["B"]), ("/d", "{other}"));
        assert!(matches!(own.on_host("/e"), Cow::Borrowed(_)));
        assert_ne!(*own, *spec.on_host("/e"));
    }

    #[test]
    fn names_are_parsed_strictly() {
        let name: ProcessName = "tanako/12".parse().expect("a good name");
        assert_eq!((name.group(), name.instance()), ("tanako", "12"));
        assert_eq!(name.file_stem(), "tanako.12");
        for bad in [
            "", "tanako", "/", "a/", "/b", "a/b/c", "a b/0", "../x/0", "ä/0",
        ] {
            assert!(bad.parse::<ProcessName>().is_err(), "{bad}");
        }
    }
}
