//! The command line of the agent, and the places that follow from it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tanako_store::etcd;

use crate::{identity::registrar, migrate::file::StoreFile};

/// The longest path that a unix socket may have on Linux, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;
/// Longest that a call to etcd may take. Three fit into the shortest lease.
const ETCD_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Life of the lease under which a host owns its processes, where nothing else is said.
pub const HOST_LEASE: Duration = Duration::from_secs(5);

/// Supervises the shard processes and database nodes of one host.
#[derive(Debug, Clone, Parser)]
#[command(name = "tanako-agent", version, about, long_about = None, after_help = "\
Exit codes: 0 stopped as asked · 1 error · 2 usage · 11 another agent holds the data directory

`tanako-agent join --help` says how a host becomes a member of a fleet.

SIGTERM and SIGINT stop the agent and leave its processes running; the next agent takes them over.
SIGHUP replaces the agent by the binary now on disk, its processes untouched.")]
pub struct Args {
    /// Directory for everything that must outlast the agent; made when missing
    #[arg(long, value_name = "DIR", env = "TANAKO_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Directory for the sockets [default: DATA_DIR/run]; keep its path short
    #[arg(long, value_name = "DIR", env = "TANAKO_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// The fleet.toml to begin with, used only while the store holds none
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// Name of this host in the fleet [default: the system's host name]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Where /metrics, /health and /ready are served; port 0 picks one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub http: SocketAddr,
    /// Write pid, sockets and addresses to this file (JSON) once everything is up
    #[arg(long, value_name = "FILE")]
    pub info_file: Option<PathBuf>,
    /// Form of the agent's own log on stderr
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Let the members of the sockets' group use them too (mode 0660 instead of 0600)
    #[arg(long)]
    pub group_access: bool,
    /// Where other agents and tanakoctl reach this one over TLS; needs --store etcd and an identity
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "TANAKO_LISTEN",
        help_heading = "Fleet"
    )]
    pub listen: Option<SocketAddr>,
    /// What to tell them instead, where the address is translated or --listen is 0.0.0.0
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "TANAKO_ADVERTISE",
        requires = "listen",
        help_heading = "Fleet"
    )]
    pub advertise: Option<SocketAddr>,
    /// Directory with this host's certificate and key [default: DATA_DIR/identity]
    #[arg(
        long,
        value_name = "DIR",
        env = "TANAKO_IDENTITY",
        help_heading = "Fleet"
    )]
    pub identity: Option<PathBuf>,
    /// Seconds that the certificates of agents hold which this one issues; they renew themselves
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = registrar::AGENT_LIFE.as_secs(),
        value_parser = clap::value_parser!(u64).range(10..=31_536_000),
        env = "TANAKO_CERTIFICATE_SECONDS",
        help_heading = "Fleet"
    )]
    pub certificate_seconds: u64,
    /// Where the fleet's state is kept: here, or in an etcd that several hosts share
    #[arg(
        long,
        value_name = "STORE",
        value_enum,
        default_value_t = StoreKind::Embedded,
        env = "TANAKO_STORE"
    )]
    pub store: StoreKind,
    /// URLs of the etcd members, separated by commas
    #[arg(
        long,
        value_name = "URLS",
        value_delimiter = ',',
        env = "TANAKO_ETCD_ENDPOINTS",
        help_heading = "Etcd"
    )]
    pub etcd_endpoints: Vec<String>,
    /// What all keys of this fleet begin with, for example tanako/prod/
    #[arg(
        long,
        value_name = "PREFIX",
        env = "TANAKO_ETCD_PREFIX",
        help_heading = "Etcd"
    )]
    pub etcd_prefix: Option<String>,
    /// CA that signed the members' certificates (PEM); https needs it
    #[arg(
        long,
        value_name = "FILE",
        env = "TANAKO_ETCD_CA",
        help_heading = "Etcd"
    )]
    pub etcd_ca: Option<PathBuf>,
    /// Own client certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TANAKO_ETCD_CERT",
        help_heading = "Etcd"
    )]
    pub etcd_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM, mode 0600)
    #[arg(
        long,
        value_name = "FILE",
        env = "TANAKO_ETCD_KEY",
        help_heading = "Etcd"
    )]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(
        long,
        value_name = "NAME",
        env = "TANAKO_ETCD_USER",
        help_heading = "Etcd"
    )]
    pub etcd_user: Option<String>,
    /// File of mode 0600 that holds the user's password
    #[arg(
        long,
        value_name = "FILE",
        env = "TANAKO_ETCD_PASSWORD_FILE",
        help_heading = "Etcd"
    )]
    pub etcd_password_file: Option<PathBuf>,
    /// Seconds until another agent may decide after the one that did has fallen silent
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(3..=600),
        env = "TANAKO_ETCD_LEASE_SECONDS",
        help_heading = "Etcd"
    )]
    pub etcd_lease_seconds: u64,
    /// Seconds until the processes of this host may be started elsewhere after it has fallen silent; by
    /// then it has stopped them itself. Another value holds once the agent starts on a host that owns
    /// nothing, for example after a reboot
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = HOST_LEASE.as_secs(),
        value_parser = clap::value_parser!(u64).range(3..=600),
        env = "TANAKO_HOST_LEASE_SECONDS",
        help_heading = "Etcd"
    )]
    pub host_lease_seconds: u64,
    /// Minutes of etcd's history to keep, for all who use that server; 0 leaves it to the server's own
    /// auto-compaction
    #[arg(
        long,
        value_name = "MINUTES",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=10_080),
        env = "TANAKO_ETCD_HISTORY_MINUTES",
        help_heading = "Etcd"
    )]
    pub etcd_history_minutes: u64,
}

/// Kills the bots of a host whose lease has ended when its agent cannot; started by the agent
#[derive(Debug, Clone, Parser)]
#[command(name = "fence", version, about, long_about = None)]
pub struct FenceArgs {
    /// Data directory of the agent
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// Where the fleet's state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// In the data directory: one machine, nothing to install.
    Embedded,
    /// In an existing etcd, 3.4 or later.
    Etcd,
}

/// Form of the agent's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Everything that must outlast the agent.
    pub data_dir: PathBuf,
    /// The sockets.
    pub run_dir: PathBuf,
    /// Name of this host.
    pub host: String,
    /// HTTP address asked for.
    pub http: SocketAddr,
    /// Spec to begin with.
    pub spec: Option<PathBuf>,
    /// File that says where everything is.
    pub info_file: Option<PathBuf>,
    /// Whether the sockets' group may use them.
    pub group_access: bool,
    /// Where the fleet's state is.
    pub store: StoreConfig,
    /// Life of this host's lease, where the store is one of several hosts.
    pub host_lease: Duration,
    /// How others reach this agent; `None` = only over the unix socket.
    pub network: Option<Network>,
}

/// How other agents and `tanakoctl` reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What others are told, if that is something else. Port 0 stands for the one that listens.
    pub advertise: Option<SocketAddr>,
    /// Its identity directory.
    pub identity: PathBuf,
    /// Life of the certificates that it issues to agents.
    pub certificate_life: Duration,
}

/// Where the fleet's state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// In the data directory.
    Embedded,
    /// In etcd.
    Etcd(Box<EtcdConfig>),
}

/// Etcd, and the office in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// How it is reached.
    pub options: etcd::Options,
    /// Life of the coordinator's lease.
    pub lease: Duration,
    /// How much of the history is kept; `None` = the server sees to it.
    pub history: Option<Duration>,
}

/// Why the arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A socket's path is longer than the system allows.
    #[error(
        "the socket path {path} has {length} bytes, the system allows {SOCKET_PATH_MAX}; \
         choose a shorter directory with --run-dir, for example /run/tanako"
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The host's name cannot be used.
    #[error("{0:?} is not a host name; give one with --host: letters, digits, dashes and dots")]
    Host(String),
    /// Flags of one store with another.
    #[error("{0} is for --store etcd, but the store is embedded; add --store etcd or leave it out")]
    NotEtcd(&'static str),
    /// Etcd without something that it needs.
    #[error("--store etcd needs {0}")]
    Missing(&'static str),
    /// The data directory says another store than the flags.
    #[error(
        "the data directory uses etcd under {file}, the flags say {flags}; leave the flags out, or use another --data-dir"
    )]
    OtherStore {
        /// Prefix by `store.json`.
        file: String,
        /// Prefix by the flags.
        flags: String,
    },
    /// What the data directory says of its store cannot be read.
    #[error(transparent)]
    File(#[from] crate::migrate::file::FileError),
    /// Etcd cannot be reached in that way.
    #[error(transparent)]
    Etcd(#[from] etcd::OptionsError),
    /// A listener that nobody but this machine could use, and that nothing would keep apart.
    #[error("--listen needs --store etcd: a fleet's state is kept where all its hosts reach it")]
    ListenAlone,
    /// Others would be told nonsense.
    #[error(
        "others cannot connect to {0}; name the address at which they reach this host with --advertise"
    )]
    Unreachable(SocketAddr),
    /// A directory cannot be found or made absolute.
    #[error("{path} cannot be used")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Config {
    /// Separates what was typed from what it means.
    pub fn from_args(args: &Args) -> Result<Self, ConfigError> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| ConfigError::Path {
                path: path.clone(),
                source,
            })
        };
        let data_dir = absolute(&args.data_dir)?;
        let run_dir = match &args.run_dir {
            Some(run_dir) => absolute(run_dir)?,
            None => data_dir.join("run"),
        };
        let host = args.host.clone().unwrap_or_else(system_host);
        let good = !host.is_empty()
            && host.len() <= 63
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !good {
            return Err(ConfigError::Host(host));
        }
        let args = moved(args, &data_dir)?;
        let network = network(&args, &data_dir, absolute)?;
        let config = Self {
            run_dir,
            host,
            http: args.http,
            spec: args.spec.as_ref().map(absolute).transpose()?,
            info_file: args.info_file.as_ref().map(absolute).transpose()?,
            group_access: args.group_access,
            store: store(&args, absolute)?,
            host_lease: Duration::from_secs(args.host_lease_seconds),
            network,
            data_dir,
        };
        for path in [config.agent_socket(), config.worker_socket()] {
            let length = path.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                return Err(ConfigError::SocketPath { path, length });
            }
        }
        Ok(config)
    }

    /// Where `tanakoctl` connects.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Where workers connect.
    pub fn worker_socket(&self) -> PathBuf {
        self.run_dir.join("worker.sock")
    }
}

/// The arguments with what the data directory says of its store, which goes before the flags: it was
/// moved to etcd, and its unit still says where it was.
fn moved(args: &Args, data_dir: &std::path::Path) -> Result<Args, ConfigError> {
    let Some(file) = StoreFile::load(data_dir)? else {
        return Ok(args.clone());
    };
    let mut args = args.clone();
    if let (StoreKind::Etcd, Some(flags)) = (args.store, &args.etcd_prefix)
        && file.prefix.trim_end_matches('/') != flags.trim_end_matches('/')
    {
        return Err(ConfigError::OtherStore {
            file: file.prefix,
            flags: flags.clone(),
        });
    }
    if args.store == StoreKind::Embedded {
        args.store = StoreKind::Etcd;
        args.etcd_endpoints = file.endpoints;
        args.etcd_prefix = Some(file.prefix);
        args.etcd_ca = file.ca;
        args.etcd_cert = file.cert;
        args.etcd_key = file.key;
        args.etcd_user = file.user;
        args.etcd_password_file = file.password_file;
    }
    Ok(args)
}

fn network(
    args: &Args,
    data_dir: &Path,
    absolute: impl Fn(&PathBuf) -> Result<PathBuf, ConfigError>,
) -> Result<Option<Network>, ConfigError> {
    let Some(listen) = args.listen else {
        return Ok(None);
    };
    if args.store == StoreKind::Embedded {
        return Err(ConfigError::ListenAlone);
    }
    let told = args.advertise.unwrap_or(listen);
    if told.ip().is_unspecified() {
        return Err(ConfigError::Unreachable(told));
    }
    let identity = match &args.identity {
        Some(identity) => absolute(identity)?,
        None => data_dir.join("identity"),
    };
    Ok(Some(Network {
        listen,
        advertise: args.advertise,
        identity,
        certificate_life: Duration::from_secs(args.certificate_seconds),
    }))
}

fn store(
    args: &Args,
    absolute: impl Fn(&PathBuf) -> Result<PathBuf, ConfigError>,
) -> Result<StoreConfig, ConfigError> {
    if args.store == StoreKind::Embedded {
        let given = [
            ("--etcd-endpoints", !args.etcd_endpoints.is_empty()),
            ("--etcd-prefix", args.etcd_prefix.is_some()),
            ("--etcd-ca", args.etcd_ca.is_some()),
            ("--etcd-cert", args.etcd_cert.is_some()),
            ("--etcd-key", args.etcd_key.is_some()),
            ("--etcd-user", args.etcd_user.is_some()),
            ("--etcd-password-file", args.etcd_password_file.is_some()),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ConfigError::NotEtcd(flag)),
            None => Ok(StoreConfig::Embedded),
        };
    }
    if args.etcd_endpoints.is_empty() {
        return Err(ConfigError::Missing(
            "--etcd-endpoints, for example https://etcd-1.example:2379,https://etcd-2.example:2379",
        ));
    }
    let Some(prefix) = &args.etcd_prefix else {
        return Err(ConfigError::Missing(
            "--etcd-prefix, one for each fleet, for example tanako/prod/",
        ));
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(&absolute).transpose();
    let (ca, cert, key) = (
        path(&args.etcd_ca)?,
        path(&args.etcd_cert)?,
        path(&args.etcd_key)?,
    );
    let tls = match ca {
        Some(ca) => Some(etcd::Tls { ca, cert, key }),
        None if cert.is_some() || key.is_some() => {
            return Err(ConfigError::Missing(
                "--etcd-ca beside --etcd-cert and --etcd-key",
            ));
        }
        None => None,
    };
    let user = match (&args.etcd_user, path(&args.etcd_password_file)?) {
        (Some(name), Some(password_file)) => Some(etcd::User {
            name: name.clone(),
            password_file,
        }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(ConfigError::Missing(
                "--etcd-password-file beside --etcd-user; without a password use a client certificate",
            ));
        }
        (None, Some(_)) => {
            return Err(ConfigError::Missing(
                "--etcd-user beside --etcd-password-file",
            ));
        }
    };
    let lease = Duration::from_secs(args.etcd_lease_seconds);
    let options = etcd::Options {
        endpoints: args.etcd_endpoints.clone(),
        prefix: prefix.clone(),
        tls,
        user,
        timeout: ETCD_TIMEOUT_MAX.min(lease / 3),
    };
    Ok(StoreConfig::Etcd(Box::new(EtcdConfig {
        options: options.checked()?,
        lease,
        history: (args.etcd_history_minutes > 0)
            .then(|| Duration::from_secs(args.etcd_history_minutes * 60)),
    })))
}

fn system_host() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() || name == "(none)" {
        "local".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Config, ConfigError> {
        let args = ["tanako-agent"].iter().chain(args);
        Config::from_args(&Args::try_parse_from(args).expect("good arguments"))
    }

    #[test]
    fn a_socket_path_that_is_too_long_names_the_way_out() {
        let long = format!("/{}", "d".repeat(100));
        let error = parsed(&["--data-dir", &long])
            .expect_err("too long")
            .to_string();
        assert!(
            error.contains("--run-dir") && error.contains("107"),
            "{error}"
        );
        let config = parsed(&["--data-dir", &long, "--run-dir", "/run/t"]).expect("short enough");
        assert_eq!(config.agent_socket(), PathBuf::from("/run/t/agent.sock"));
    }

    #[test]
    fn etcd_needs_to_be_told_where_and_under_what() {
        let etcd = ["--data-dir", "/d", "--store", "etcd"];
        let endpoints = ["--etcd-endpoints", "http://127.0.0.1:1,http://127.0.0.1:2"];
        let prefix = ["--etcd-prefix", "tanako/t/"];
        let good = [&etcd[..], &endpoints, &prefix].concat();
        let StoreConfig::Etcd(etcd_config) = parsed(&good).expect("good").store else {
            panic!("etcd was asked for");
        };
        let EtcdConfig { options, lease, .. } = *etcd_config;
        assert_eq!(options.endpoints.len(), 2);
        assert_eq!(lease, Duration::from_secs(10));
        assert!(options.timeout * 3 <= lease);
        for (args, says) in [
            ([&etcd[..], &prefix].concat(), "--etcd-endpoints"),
            ([&etcd[..], &endpoints].concat(), "--etcd-prefix"),
            (
                [&good[..], &["--etcd-user", "u"]].concat(),
                "--etcd-password-file",
            ),
            (
                [&good[..], &["--etcd-password-file", "p"]].concat(),
                "--etcd-user",
            ),
            ([&good[..], &["--etcd-cert", "c"]].concat(), "--etcd-ca"),
            ([&good[..], &["--etcd-ca", "c"]].concat(), "https"),
            (
                [&["--data-dir", "/d"][..], &prefix].concat(),
                "--store etcd",
            ),
            (
                vec!["--data-dir", "/d", "--listen", "127.0.0.1:0"],
                "--store etcd",
            ),
            (
                [&good[..], &["--listen", "0.0.0.0:7400"]].concat(),
                "--advertise",
            ),
        ] {
            let error = parsed(&args).expect_err("refused").to_string();
            assert!(error.contains(says), "{args:?}: {error}");
        }
        assert_eq!(
            parsed(&["--data-dir", "/d"]).expect("good").store,
            StoreConfig::Embedded
        );
    }

    #[test]
    fn a_host_needs_a_plain_name() {
        assert!(parsed(&["--data-dir", "/d", "--host", "a b"]).is_err());
        assert_eq!(
            parsed(&["--data-dir", "/d", "--host", "a-1"])
                .expect("good")
                .host,
            "a-1"
        );
    }
}
