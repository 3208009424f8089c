//! What a command is about: `all`, a bot, a process, a shard, `db`, a host, a guild (design,
//! "CLI contract").

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::{
    process::{ProcessKind, ProcessName},
    shard,
};

/// A target as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every process.
    All,
    /// Every process of a bot, or, with the name `db`, every database node.
    Group(String),
    /// One process.
    Process(ProcessName),
    /// The processes that hold this shard, one per bot that has it.
    Shard(u32),
    /// Every process on a host.
    Host(String),
    /// The processes whose shard receives this guild's events.
    Guild(u64),
}

/// What a target is looked up in: one row per process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its name.
    pub name: &'a ProcessName,
    /// What it is.
    pub kind: ProcessKind,
    /// The host it is on.
    pub host: &'a str,
    /// Its shards.
    pub shard_ids: &'a [u32],
    /// Of how many.
    pub shard_count: u32,
}

/// Why a target stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is not of any known form.
    #[error("{text:?} is not a target")]
    Malformed {
        /// As typed.
        text: String,
    },
    /// It is well formed, but there is no such thing.
    #[error("there is no {what} {text:?}")]
    Unknown {
        /// bot, process, shard, host.
        what: &'static str,
        /// As typed.
        text: String,
        /// What was probably meant.
        near: Option<String>,
    },
}

impl TargetError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Malformed { .. } => {
                "use all, a bot, db, tanako/3, shard:17, host:a or guild:81384788765712384"
                    .to_owned()
            }
            Self::Unknown {
                near: Some(near), ..
            } => format!("did you mean {near}?"),
            Self::Unknown { .. } => "`tanakoctl status` lists what there is".to_owned(),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError::Malformed {
            text: text.to_owned(),
        };
        if let Some((kind, rest)) = text.split_once(':') {
            return match kind {
                "shard" => rest.parse().map(Self::Shard).map_err(|_| malformed()),
                "guild" => rest.parse().map(Self::Guild).map_err(|_| malformed()),
                "host" if !rest.is_empty() => Ok(Self::Host(rest.to_owned())),
                _ => Err(malformed()),
            };
        }
        if text == "all" {
            return Ok(Self::All);
        }
        if text.contains('/') {
            return text.parse().map(Self::Process).map_err(|_| malformed());
        }
        // A bot's name, checked against the fleet when it is resolved.
        ProcessName::new(text, 0)
            .map(|_| Self::Group(text.to_owned()))
            .map_err(|_| malformed())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Group(name) => f.write_str(name),
            Self::Process(name) => write!(f, "{name}"),
            Self::Shard(id) => write!(f, "shard:{id}"),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Guild(id) => write!(f, "guild:{id}"),
        }
    }
}

impl Target {
    fn matches(&self, row: &Row<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Group(name) => row.name.group() == name,
            Self::Process(name) => row.name == name,
            Self::Shard(id) => row.shard_ids.contains(id),
            Self::Host(name) => row.host == name,
            Self::Guild(guild) => {
                row.kind == ProcessKind::Shard
                    && row
                        .shard_ids
                        .contains(&shard::shard_of(*guild, row.shard_count))
            }
        }
    }

    fn unknown(&self, rows: &[Row<'_>]) -> TargetError {
        let (what, known): (_, BTreeSet<String>) = match self {
            Self::All => ("process", BTreeSet::new()),
            Self::Group(_) => (
                "bot",
                rows.iter().map(|row| row.name.group().to_owned()).collect(),
            ),
            Self::Process(_) => (
                "process",
                rows.iter().map(|row| row.name.to_string()).collect(),
            ),
            Self::Shard(_) => ("shard", BTreeSet::new()),
            Self::Host(_) => (
                "host",
                rows.iter()
                    .map(|row| format!("host:{}", row.host))
                    .collect(),
            ),
            Self::Guild(_) => ("shard process for", BTreeSet::new()),
        };
        let text = self.to_string();
        TargetError::Unknown {
            what,
            near: nearest(&text, known.iter().map(String::as_str)).map(str::to_owned),
            text,
        }
    }
}

/// The known name that a misspelt one probably stands for.
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(text, name), name))
        .min()
        .filter(|(distance, _)| *distance <= 1 + text.chars().count() / 3)
        .map(|(_, name)| name)
}

/// The processes that `targets` stand for, each once, in the order of `rows`; an error names the
/// first target that stands for nothing. `all` of an empty fleet is empty.
pub fn resolve(targets: &[Target], rows: &[Row<'_>]) -> Result<Vec<ProcessName>, TargetError> {
    for target in targets {
        if *target != Target::All && !rows.iter().any(|row| target.matches(row)) {
            return Err(target.unknown(rows));
        }
    }
    Ok(rows
        .iter()
        .filter(|row| targets.iter().any(|target| target.matches(row)))
        .map(|row| row.name.clone())
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_rows<T>(test: impl FnOnce(&[Row<'_>]) -> T) -> T {
        let names: Vec<ProcessName> = ["db/node1", "tanako/0", "tanako/1", "tanako/12"]
            .iter()
            .map(|name| name.parse().expect("a good name"))
            .collect();
        let shards: [&[u32]; 4] = [&[], &[0, 1], &[2, 3], &[24]];
        let rows: Vec<Row<'_>> = names
            .iter()
            .zip(shards)
            .map(|(name, shard_ids)| Row {
                name,
                kind: if name.group() == "db" {
                    ProcessKind::Db
                } else {
                    ProcessKind::Shard
                },
                host: "a",
                shard_ids,
                shard_count: if shard_ids.is_empty() { 0 } else { 4 },
            })
            .collect();
        test(&rows)
    }

    fn resolved(targets: &[&str]) -> Result<String, String> {
        let targets: Result<Vec<Target>, _> = targets.iter().map(|text| text.parse()).collect();
        let found = targets.and_then(|targets| with_rows(|rows| resolve(&targets, rows)));
        found
            .map(|names| {
                let names: Vec<&str> = names.iter().map(ProcessName::as_str).collect();
                names.join(" ")
            })
            .map_err(|error| format!("{error}; {}", error.hint()))
    }

    #[test]
    fn every_form() {
        assert_eq!(
            resolved(&["all"]).as_deref(),
            Ok("db/node1 tanako/0 tanako/1 tanako/12")
        );
        assert_eq!(resolved(&["db"]).as_deref(), Ok("db/node1"));
        assert_eq!(
            resolved(&["tanako"]).as_deref(),
            Ok("tanako/0 tanako/1 tanako/12")
        );
        assert_eq!(
            resolved(&["tanako/1", "tanako/0", "tanako/1"]).as_deref(),
            Ok("tanako/0 tanako/1")
        );
        assert_eq!(resolved(&["shard:3"]).as_deref(), Ok("tanako/1"));
        assert_eq!(resolved(&["host:a"]).map(|text| text.len()), Ok(36));
        // 81384788765712384 >> 22 is even but not a multiple of 4.
        assert_eq!(
            resolved(&["guild:81384788765712384"]).as_deref(),
            Ok("tanako/1")
        );
    }

    #[test]
    fn what_does_not_exist_is_named_with_a_suggestion() {
        assert_eq!(
            resolved(&["tanakoo"]),
            Err("there is no bot \"tanakoo\"; did you mean tanako?".to_owned())
        );
        assert_eq!(
            resolved(&["tanako/2"]),
            Err("there is no process \"tanako/2\"; did you mean tanako/0?".to_owned())
        );
        assert_eq!(
            resolved(&["all", "shard:99"]),
            Err(
                "there is no shard \"shard:99\"; `tanakoctl status` lists what there is".to_owned()
            )
        );
        for bad in [
            "", "shard:", "shard:x", "guild:-1", "host:", "a/b/c", "quux:1", "a b",
        ] {
            assert!(
                matches!(bad.parse::<Target>(), Err(TargetError::Malformed { .. })),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "(shard:[0-9]{1,4}|guild:[0-9]{1,18}|[a-z]{1,9}(/[0-9]{1,3})?|host:[a-z]{1,4})") {
            // Leading zeros are the one thing that is not kept.
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = text.parse::<Target>();
        }
    }
}
