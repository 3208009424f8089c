//! What was typed, checked and completed.

use std::path::PathBuf;
use std::time::Duration;

use twilight_gateway::Intents;

use crate::agent::Identity;
use crate::args::Args;
use crate::database::Address;
use crate::token::{Token, TokenError};

/// Shards of one process at most; more would not fit one core.
const SHARDS_MAX: usize = 256;
/// Database nodes at most.
const DB_NODES_MAX: usize = 64;

/// A usable configuration.
#[derive(Debug)]
pub struct Config {
    /// The bot's token.
    pub token: Token,
    /// Shards of this process, as given; may be empty under an agent, which says it in its Welcome.
    pub shard_ids: Vec<u32>,
    /// Number of shards of the bot.
    pub shard_count: u32,
    /// Base of the REST API.
    pub api_url: Option<String>,
    /// Gateway URL.
    pub gateway_url: Option<String>,
    /// Database nodes.
    pub db_nodes: Vec<Address>,
    /// The database's token.
    pub db_token: Option<Token>,
    /// Intents.
    pub intents: Intents,
    /// Longest wait for handlers when stopping.
    pub drain_within: Duration,
    /// The agent, if there is one.
    pub agent: Option<(PathBuf, Identity)>,
}

/// What is wrong with a configuration and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No token.
    #[error("no token file\n  hint: give one with --token-file or TANAKO_TOKEN_FILE")]
    NoToken,
    /// The token file cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Shards do not fit.
    #[error(
        "{what}\n  hint: SHARD_IDS is a list like 0,1 and SHARD_COUNT is greater than each of them"
    )]
    Shards {
        /// What does not fit.
        what: String,
    },
    /// Not a URL of the expected kind.
    #[error("{name} is not usable: {url}\n  hint: it looks like {example}")]
    Url {
        /// Which setting.
        name: &'static str,
        /// What was given.
        url: String,
        /// What it looks like.
        example: &'static str,
    },
    /// The list of database nodes cannot be read.
    #[error(
        "TANAKO_DB_NODES: {what}\n  hint: it looks like node1=ws://127.0.0.1:7101,node2=ws://127.0.0.1:7102"
    )]
    DbNodes {
        /// What is wrong.
        what: String,
    },
    /// The worker socket without a name.
    #[error(
        "TANAKO_SOCKET is set but TANAKO_PROCESS is not\n  hint: the agent sets both; unset TANAKO_SOCKET to run without an agent"
    )]
    NoProcess,
}

impl Config {
    /// Checks and completes what was typed; reads the token files.
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        let agent = match (args.socket, args.process) {
            (None, _) => None,
            (Some(_), None) => return Err(ConfigError::NoProcess),
            (Some(socket), Some(process)) => Some((
                socket,
                Identity {
                    process,
                    attempt: args.attempt.unwrap_or_default(),
                },
            )),
        };
        let (shard_ids, shard_count) = shards(args.shard_ids, args.shard_count, agent.is_some())?;
        check_url(
            "TANAKO_API_URL",
            args.api_url.as_deref(),
            &["http", "https"],
            "http://127.0.0.1:8080",
        )?;
        check_url(
            "TANAKO_GATEWAY_URL",
            args.gateway_url.as_deref(),
            &["ws", "wss"],
            "ws://127.0.0.1:8080",
        )?;
        let token_file = args.token_file.ok_or(ConfigError::NoToken)?;
        let trim = |url: Option<String>| url.map(|url| url.trim_end_matches('/').to_owned());
        Ok(Self {
            token: Token::read(&token_file)?,
            shard_ids,
            shard_count,
            api_url: trim(args.api_url),
            gateway_url: trim(args.gateway_url),
            db_nodes: db_nodes(args.db_nodes.as_deref().unwrap_or_default())?,
            db_token: args.db_token_file.as_deref().map(Token::read).transpose()?,
            intents: args
                .intents
                .map_or(Intents::GUILDS | Intents::GUILD_MESSAGES, |bits| {
                    Intents::from_bits_retain(bits)
                }),
            drain_within: Duration::from_secs(u64::from(args.drain_seconds)),
            agent,
        })
    }
}

fn shards(
    mut ids: Vec<u32>,
    count: Option<u32>,
    attached: bool,
) -> Result<(Vec<u32>, u32), ConfigError> {
    let wrong = |what: String| Err(ConfigError::Shards { what });
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > SHARDS_MAX {
        return wrong(format!(
            "{} shards in one process; {SHARDS_MAX} are possible",
            ids.len()
        ));
    }
    match (ids.last().copied(), count) {
        (_, Some(0)) => wrong("SHARD_COUNT is 0".to_owned()),
        (None, None) if attached => Ok((ids, 0)),
        (None, None | Some(1)) => Ok((vec![0], 1)),
        (None, Some(_)) if attached => Ok((ids, 0)),
        (None, Some(count)) => wrong(format!("SHARD_COUNT is {count} but SHARD_IDS is not set")),
        (Some(0), None) => Ok((ids, 1)),
        (Some(_), None) => wrong("SHARD_IDS is set but SHARD_COUNT is not".to_owned()),
        (Some(last), Some(count)) if last >= count => wrong(format!(
            "shard {last} does not exist with SHARD_COUNT {count}"
        )),
        (Some(_), Some(count)) => Ok((ids, count)),
    }
}

fn check_url(
    name: &'static str,
    url: Option<&str>,
    schemes: &[&str],
    example: &'static str,
) -> Result<(), ConfigError> {
    let Some(url) = url else { return Ok(()) };
    let parsed = url.parse::<http::Uri>().ok();
    let good = parsed.is_some_and(|uri| {
        uri.scheme_str()
            .is_some_and(|scheme| schemes.contains(&scheme))
            && uri.host().is_some_and(|host| !host.is_empty())
    });
    if good {
        Ok(())
    } else {
        Err(ConfigError::Url {
            name,
            url: url.to_owned(),
            example,
        })
    }
}

fn db_nodes(text: &str) -> Result<Vec<Address>, ConfigError> {
    let mut nodes: Vec<Address> = Vec::new();
    for entry in text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        let wrong = |what: String| ConfigError::DbNodes { what };
        let (name, url) = entry
            .split_once('=')
            .ok_or_else(|| wrong(format!("`{entry}` has no name")))?;
        check_url("", Some(url), &["ws", "wss"], "")
            .map_err(|_| wrong(format!("`{url}` is not a WebSocket URL")))?;
        if name.is_empty() || nodes.iter().any(|node| node.name == name) {
            return Err(wrong(format!("the name `{name}` is empty or there twice")));
        }
        nodes.push(Address {
            name: name.to_owned(),
            url: url.to_owned(),
        });
    }
    if nodes.len() > DB_NODES_MAX {
        return Err(ConfigError::DbNodes {
            what: format!("{} nodes; {DB_NODES_MAX} are possible", nodes.len()),
        });
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_checked() {
        let good = |ids: &[u32], count, attached| shards(ids.to_vec(), count, attached).unwrap();
        assert_eq!(good(&[], None, false), (vec![0], 1));
        assert_eq!(good(&[0], None, false), (vec![0], 1));
        assert_eq!(good(&[3, 2, 2], Some(4), false), (vec![2, 3], 4));
        assert_eq!(good(&[], None, true), (vec![], 0));
        for (ids, count) in [
            (vec![4], Some(4)),
            (vec![1], None),
            (vec![], Some(4)),
            (vec![0], Some(0)),
        ] {
            let error = shards(ids.clone(), count, false).unwrap_err().to_string();
            assert!(error.contains("hint"), "{ids:?} {count:?}: {error}");
        }
        assert!(shards((0..300).collect(), Some(300), false).is_err());
    }

    #[test]
    fn database_nodes_are_read() {
        let nodes = db_nodes("node1=ws://127.0.0.1:7101, node2=wss://db.example:443").unwrap();
        assert_eq!(
            nodes[1],
            Address {
                name: "node2".into(),
                url: "wss://db.example:443".into()
            }
        );
        assert!(db_nodes("").unwrap().is_empty());
        for bad in [
            "ws://127.0.0.1:7101",
            "a=http://x",
            "a=ws://x,a=ws://y",
            "=ws://x",
            "a=ws://",
        ] {
            assert!(db_nodes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_are_checked() {
        let check = |url| {
            check_url(
                "TANAKO_API_URL",
                Some(url),
                &["http", "https"],
                "http://127.0.0.1:8080",
            )
        };
        assert!(check("http://127.0.0.1:8080").is_ok());
        for bad in ["127.0.0.1:8080", "ws://x", "http://", "", "http://a b"] {
            let error = check(bad).unwrap_err().to_string();
            assert!(
                error.contains("TANAKO_API_URL") && error.contains("hint"),
                "{error}"
            );
        }
    }
}
