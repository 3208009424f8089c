//! What a verb acts on, checked before anything is asked of the agent, so that a typing mistake costs
//! nothing and is answered with the name that was probably meant. The rules are the fleet's own
//! ([`tanako_fleet::target`]).

use tanako_fleet::{
    ProcessKind, ProcessName,
    target::{Row, Target, TargetError, resolve},
};
use tanako_proto::fleet::v1::FleetStatus;

use crate::failure::Failure;

pub use tanako_fleet::target::nearest;

/// Reads targets; a form that does not exist is a usage error.
pub fn parse(targets: &[String]) -> Result<Vec<Target>, Failure> {
    targets
        .iter()
        .map(|text| {
            text.parse().map_err(|error: TargetError| {
                let kinds = text
                    .split_once(':')
                    .map(|(kind, rest)| (nearest(kind, ["host", "shard", "guild"]), rest));
                let hint = match kinds {
                    Some((Some(kind), rest)) if !text.starts_with(kind) => {
                        format!("did you mean {kind}:{rest}?")
                    }
                    _ => error.hint(),
                };
                Failure::usage(text, "this is not a target").hint(hint)
            })
        })
        .collect()
}

/// Checks targets against what the fleet has.
pub fn check(targets: &[String], status: &FleetStatus) -> Result<(), Failure> {
    let parsed = parse(targets)?;
    let named: Vec<_> = status
        .processes
        .iter()
        .filter_map(|process| {
            let name: ProcessName = process.name.parse().ok()?;
            let shards: Vec<u32> = process.shards.iter().map(|shard| shard.id).collect();
            Some((name, process, shards))
        })
        .collect();
    let rows: Vec<Row<'_>> = named
        .iter()
        .map(|(name, process, shards)| Row {
            name,
            kind: if process.kind == "db" {
                ProcessKind::Db
            } else {
                ProcessKind::Shard
            },
            host: &process.host,
            shard_ids: shards,
            shard_count: process.shards.first().map_or(0, |shard| shard.count),
        })
        .collect();
    for (target, text) in parsed.iter().zip(targets) {
        if let Err(error) = resolve(std::slice::from_ref(target), &rows) {
            return Err(Failure::new("unknown-target", text, error.to_string()).hint(error.hint()));
        }
    }
    Ok(())
}

/// Hosts as targets: `a` and `host:a` mean the same.
pub fn hosts(names: &[String]) -> Vec<String> {
    names
        .iter()
        .map(|name| format!("host:{}", name.strip_prefix("host:").unwrap_or(name)))
        .collect()
}

/// Checks hosts against those that the fleet has, whatever runs on them.
pub fn check_hosts(targets: &[String], status: &FleetStatus) -> Result<(), Failure> {
    for (target, text) in parse(targets)?.iter().zip(targets) {
        let Target::Host(name) = target else {
            return Err(Failure::usage(text, "this is not a host").hint("name it like a or host:a"));
        };
        if status.hosts.iter().any(|host| host.name == *name) {
            continue;
        }
        let known = || status.hosts.iter().map(|host| host.name.as_str());
        let hint = match nearest(name, known()) {
            Some(meant) => format!("did you mean host:{meant}?"),
            None => format!("hosts are {}", known().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("the fleet has no host {name:?}");
        return Err(Failure::new("unknown-target", text, message).hint(hint));
    }
    Ok(())
}

/// Reads a guild's id, with or without `guild:` in front.
pub fn guild_id(text: &str) -> Result<u64, Failure> {
    match text.strip_prefix("guild:").unwrap_or(text).parse() {
        Ok(0) | Err(_) => Err(Failure::usage(text, "this is not a guild's id").hint(
            "an id is a number such as 81384788765712384 (in Discord: developer mode, right-click on the server, Copy Server ID)",
        )),
        Ok(id) => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use tanako_proto::fleet::v1::{Process, Shard};

    use super::*;

    fn status() -> FleetStatus {
        let process = |name: &str, kind: &str, shards: &[u32]| Process {
            name: name.into(),
            kind: kind.into(),
            host: "a".into(),
            shards: shards
                .iter()
                .map(|id| Shard {
                    id: *id,
                    count: 4,
                    ..Shard::default()
                })
                .collect(),
            ..Process::default()
        };
        FleetStatus {
            processes: vec![
                process("tanako/0", "shard", &[0, 1]),
                process("tanako/1", "shard", &[2, 3]),
                process("db/node1", "db", &[]),
            ],
            ..FleetStatus::default()
        }
    }

    #[test]
    fn every_form_is_known() {
        for good in [
            "all",
            "tanako",
            "tanako/1",
            "db",
            "db/node1",
            "host:a",
            "shard:3",
            "guild:81384788765712384",
        ] {
            assert_eq!(check(&[good.into()], &status()), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_slip_is_answered_with_the_name_that_was_meant() {
        for (typed, code, meant) in [
            ("tanaka", "unknown-target", "tanako"),
            ("tanako/11", "unknown-target", "tanako/1"),
            ("db/nod1", "unknown-target", "db/node1"),
            ("hots:a", "usage", "host:a"),
            ("host:b", "unknown-target", "host:a"),
        ] {
            let failure = check(&[typed.into()], &status()).expect_err(typed);
            let problem = failure.problem.expect("a problem");
            assert_eq!(problem.code, code, "{typed}");
            assert_eq!(problem.hint, format!("did you mean {meant}?"), "{typed}");
        }
        for bad in ["shard:9", "shard:x", "guild:x", "a b", ""] {
            assert!(check(&[bad.into()], &status()).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_are_known_with_nothing_on_them() {
        let mut status = status();
        status.hosts = ["alpha", "beta"]
            .map(|name| tanako_proto::fleet::v1::Host {
                name: name.into(),
                ..Default::default()
            })
            .into();
        let check = |name: &str| check_hosts(&hosts(&[name.into()]), &status);
        assert_eq!(check("beta"), Ok(()));
        assert_eq!(check("host:beta"), Ok(()));
        for (typed, hint) in [
            ("bete", "did you mean host:beta?"),
            ("z", "hosts are alpha, beta"),
        ] {
            let problem = check(typed).expect_err(typed).problem.expect("a problem");
            assert_eq!((&*problem.code, &*problem.hint), ("unknown-target", hint));
        }
        assert!(check("tanako/1").is_err());
        assert!(check_hosts(&["tanako".into()], &status).is_err());
    }

    #[test]
    fn guilds_are_numbers() {
        assert_eq!(
            guild_id("guild:81384788765712384"),
            Ok(81_384_788_765_712_384)
        );
        assert_eq!(guild_id("17"), Ok(17));
        for bad in ["", "0", "-1", "x", "99999999999999999999999"] {
            assert!(guild_id(bad).is_err(), "{bad}");
        }
    }
}
