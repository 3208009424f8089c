//! The command line of the agent, and the places that follow from it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, ValueEnum};

/// The longest path that a unix socket may have on Linux, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Supervises the shard processes and database nodes of one host.
#[derive(Debug, Clone, Parser)]
#[command(name = "tanako-agent", version, about, long_about = None, after_help = "\
Exit codes: 0 stopped as asked · 1 error · 2 usage · 11 another agent holds the data directory

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
        let config = Self {
            data_dir,
            run_dir,
            host,
            http: args.http,
            spec: args.spec.as_ref().map(absolute).transpose()?,
            info_file: args.info_file.as_ref().map(absolute).transpose()?,
            group_access: args.group_access,
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
