//! Who may make which call: one table for every service of an agent.
//!
//! A call is named as gRPC names it, `/tanako.fleet.v1.Fleet/GetStatus`. What is not in the table nobody
//! may call; a test compares the table with the `.proto` files.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What an identity may do. Stands in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs the fleet: operations, rollouts, specs.
    Operator,
    /// Also decides who else may.
    Admin,
    /// An agent of the fleet. Reads by itself, changes only in the name of a caller.
    Agent,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Agent];

    /// As certificates, flags and messages have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not the name of a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no role {0:?}; the roles are viewer, operator, admin and agent")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// Also whoever has no certificate: the call carries its own proof.
    Anyone,
    /// Viewers and above, and agents.
    Read,
    /// Operators and admins.
    Change,
    /// Admins.
    Govern,
    /// Agents.
    Between,
}

const TABLE: &[(&str, Right)] = &[
    ("/tanako.fleet.v1.Fleet/GetStatus", Right::Read),
    ("/tanako.fleet.v1.Fleet/Watch", Right::Read),
    ("/tanako.fleet.v1.Fleet/GetSpec", Right::Read),
    ("/tanako.fleet.v1.Fleet/Plan", Right::Read),
    ("/tanako.fleet.v1.Fleet/Apply", Right::Change),
    ("/tanako.fleet.v1.Fleet/Submit", Right::Change),
    ("/tanako.fleet.v1.Fleet/GetOperation", Right::Read),
    ("/tanako.fleet.v1.Fleet/ListOperations", Right::Read),
    ("/tanako.fleet.v1.Fleet/WatchOperation", Right::Read),
    ("/tanako.fleet.v1.Fleet/ControlOperation", Right::Change),
    ("/tanako.fleet.v1.Fleet/Logs", Right::Read),
    ("/tanako.fleet.v1.Fleet/Events", Right::Read),
    ("/tanako.fleet.v1.Fleet/History", Right::Read),
    ("/tanako.fleet.v1.Fleet/LocateGuild", Right::Read),
    ("/tanako.fleet.v1.Fleet/GetIdentify", Right::Read),
    ("/tanako.fleet.v1.Fleet/ListBackups", Right::Read),
    ("/tanako.fleet.v1.Fleet/Audit", Right::Read),
    ("/tanako.fleet.v1.Fleet/Doctor", Right::Read),
    ("/tanako.fleet.v1.Fleet/Broadcast", Right::Change),
    // It says where everything is kept from now on.
    ("/tanako.fleet.v1.Fleet/MigrateStore", Right::Govern),
    ("/tanako.fleet.v1.Fleet/Advise", Right::Read),
    // It runs another binary.
    ("/tanako.fleet.v1.Fleet/Upgrade", Right::Govern),
    ("/tanako.host.v1.Host/Follow", Right::Between),
    ("/tanako.host.v1.Host/Order", Right::Between),
    ("/tanako.host.v1.Host/Command", Right::Between),
    ("/tanako.host.v1.Host/TakeSessions", Right::Between),
    ("/tanako.host.v1.Host/GiveSessions", Right::Between),
    ("/tanako.host.v1.Host/AcquirePermit", Right::Between),
    ("/tanako.host.v1.Host/ReportGateway", Right::Between),
    ("/tanako.host.v1.Host/GetStanding", Right::Between),
    ("/tanako.host.v1.Host/RelayKeepAlive", Right::Between),
    ("/tanako.host.v1.Host/AskShards", Right::Between),
    // The one-time token in the request is the proof.
    ("/tanako.identity.v1.Identity/Join", Right::Anyone),
    // The signature by the certificate's key is.
    ("/tanako.identity.v1.Identity/Renew", Right::Anyone),
    ("/tanako.identity.v1.Identity/GetMembers", Right::Read),
    ("/tanako.identity.v1.Identity/List", Right::Read),
    ("/tanako.identity.v1.Identity/CreateToken", Right::Govern),
    ("/tanako.identity.v1.Identity/Grant", Right::Govern),
    ("/tanako.identity.v1.Identity/Revoke", Right::Govern),
];

fn right(call: &str) -> Option<Right> {
    TABLE
        .iter()
        .find(|(name, _)| *name == call)
        .map(|(_, right)| *right)
}

/// Whether there is such a call at all.
pub fn known(call: &str) -> bool {
    right(call).is_some()
}

/// Whether it carries its own proof, so that whoever has no certificate may make it.
pub fn open(call: &str) -> bool {
    right(call) == Some(Right::Anyone)
}

/// Whether that role may make that call.
pub fn allowed(role: Role, call: &str) -> bool {
    match right(call) {
        None => false,
        Some(Right::Anyone | Right::Read) => true,
        Some(Right::Change) => matches!(role, Role::Operator | Role::Admin),
        Some(Right::Govern) => role == Role::Admin,
        Some(Right::Between) => role == Role::Agent,
    }
}

/// The least role that may make that call, for messages.
pub fn needed(call: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| allowed(*role, call))
}

/// Every call there is.
pub fn calls() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// `/package.Service/Method` of every rpc in a `.proto` file.
    fn rpcs(text: &str) -> Vec<String> {
        let word = |line: &str, keyword: &str| {
            line.trim()
                .strip_prefix(keyword)
                .and_then(|rest| {
                    rest.split([' ', '(', ';', '{'])
                        .find(|part| !part.is_empty())
                })
                .map(str::to_owned)
        };
        let (mut package, mut service) = (String::new(), String::new());
        let mut found = Vec::new();
        for line in text.lines() {
            if let Some(name) = word(line, "package ") {
                package = name;
            } else if let Some(name) = word(line, "service ") {
                service = name;
            } else if let Some(name) = word(line, "rpc ") {
                found.push(format!("/{package}.{service}/{name}"));
            }
        }
        found
    }

    #[test]
    fn every_call_of_every_service_is_in_the_table() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto/tanako");
        let mut found = BTreeSet::new();
        for package in fs::read_dir(root).expect("the .proto files") {
            let package = package.expect("an entry").path();
            // Workers are on a socket of their own and are known by their process id.
            if package.ends_with("worker") {
                continue;
            }
            for file in fs::read_dir(package.join("v1")).expect("a version") {
                let text = fs::read_to_string(file.expect("an entry").path()).expect("text");
                found.extend(rpcs(&text));
            }
        }
        assert!(found.len() > 20, "{found:?}");
        let table: BTreeSet<String> = calls().map(str::to_owned).collect();
        assert_eq!(found, table);
        assert_eq!(table.len(), TABLE.len(), "a call is there twice");
    }

    #[test]
    fn rights_grow_with_the_role_and_agents_stand_beside() {
        for call in calls() {
            let may = |role| allowed(role, call);
            assert!(!may(Role::Viewer) || may(Role::Operator), "{call}");
            assert!(!may(Role::Operator) || may(Role::Admin), "{call}");
            assert!(needed(call).is_some(), "{call}");
            assert!(known(call));
            // No agent changes anything in its own name.
            if !may(Role::Viewer) && may(Role::Operator) || needed(call) == Some(Role::Admin) {
                assert!(!may(Role::Agent), "{call}");
            }
        }
        assert!(!allowed(Role::Admin, "/tanako.host.v1.Host/Order"));
        assert!(!allowed(Role::Viewer, "/tanako.fleet.v1.Fleet/Submit"));
        assert!(!allowed(
            Role::Operator,
            "/tanako.identity.v1.Identity/Grant"
        ));
        for role in Role::ALL {
            assert!(!allowed(role, "/tanako.fleet.v1.Fleet/Destroy"));
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn only_calls_with_their_own_proof_are_open() {
        let open: Vec<_> = calls().filter(|call| open(call)).collect();
        assert_eq!(
            open,
            [
                "/tanako.identity.v1.Identity/Join",
                "/tanako.identity.v1.Identity/Renew"
            ]
        );
    }
}
