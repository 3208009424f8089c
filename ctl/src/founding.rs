//! The certificates with which a fleet of hosts begins: its authority, its first agent, its first admin.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tanako_pki::{
    AUTHORITY_KEY_FILE, Authority, FIRST_FILE, Given, Holder, IDENTITY_FILE, Identity, Role,
    Subject, write_private,
};

use crate::{client::chain, failure::Failure};

/// Life of the first agent's certificate; it renews itself.
const AGENT_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Life of the first admin's.
const ADMIN_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What is made.
#[derive(Debug)]
pub struct Founding {
    /// Name of the fleet.
    pub fleet: String,
    /// The first host.
    pub host: String,
    /// Its addresses, for clients that look for them in the certificate.
    pub addresses: Vec<IpAddr>,
    /// The identity directory of its agent, which will issue certificates.
    pub agent: PathBuf,
    /// Name of the first admin.
    pub admin: String,
    /// Their identity directory.
    pub admin_out: PathBuf,
}

impl Founding {
    /// Refuses what would overwrite something.
    pub fn check(&self) -> Result<(), Failure> {
        for (directory, file) in [
            (&self.agent, AUTHORITY_KEY_FILE),
            (&self.agent, IDENTITY_FILE),
            (&self.admin_out, IDENTITY_FILE),
        ] {
            let path = directory.join(file);
            if path.exists() {
                return Err(Failure::new(
                    "exists",
                    path.display().to_string(),
                    "the file is there already and stays as it is",
                )
                .hint("name other directories with --identity and --admin-identity"));
            }
        }
        Ok(())
    }

    /// Makes it all.
    pub fn make(&self) -> Result<(), Failure> {
        self.check()?;
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: tanako_pki::Error| {
                Failure::new("io", path, "the certificates cannot be made")
                    .cause(chain(&error))
                    .hint("check owner and mode of the directory, or name another")
            }
        };
        let authority = Authority::create(&self.fleet).map_err(failed(&self.agent))?;
        let agent = Subject::agent(&self.host, self.addresses.iter().copied());
        let admin = Subject::user(&self.admin, Role::Admin);
        // The key that all depends on comes first: without it the rest is worth nothing.
        authority.save(&self.agent).map_err(failed(&self.agent))?;
        let agent = authority
            .issue_to(&self.agent, &agent, AGENT_LIFE)
            .map_err(failed(&self.agent))?;
        let admin = authority
            .issue_to(&self.admin_out, &admin, ADMIN_LIFE)
            .map_err(failed(&self.admin_out))?;
        let holders = [holder(&agent), holder(&admin)];
        let list = serde_json::to_vec_pretty(&holders).unwrap_or_default();
        let path = self.agent.join(FIRST_FILE);
        write_private(&path, &list).map_err(failed(&path))
    }
}

fn holder(identity: &Identity) -> Holder {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let peer = identity.peer();
    Holder {
        name: peer.name.clone(),
        role: peer.role,
        certificates: vec![Given::new(peer, "init", now.as_millis() as i64)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_begins_once_with_an_issuer_and_an_admin() {
        let directory = tempfile::tempdir().expect("a directory");
        let founding = Founding {
            fleet: "prod".into(),
            host: "a".into(),
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            agent: directory.path().join("agent"),
            admin: "anna".into(),
            admin_out: directory.path().join("anna"),
        };
        founding.make().expect("made");
        let authority = Authority::load(&founding.agent).expect("reads");
        assert_eq!(authority.expect("there").fleet(), "prod");
        let agent = Identity::load(&founding.agent).expect("reads");
        let admin = Identity::load(&founding.admin_out).expect("reads");
        assert_eq!(agent.peer().to_string(), "a (agent)");
        assert_eq!(admin.peer().to_string(), "anna (admin)");
        assert!(!founding.admin_out.join(AUTHORITY_KEY_FILE).exists());
        let list = std::fs::read(founding.agent.join(FIRST_FILE)).expect("reads");
        let holders: Vec<Holder> = serde_json::from_slice(&list).expect("a list");
        assert!(holders[0].has(&agent.peer().serial) && holders[1].has(&admin.peer().serial));
        let failure = founding.make().expect_err("once");
        assert_eq!(failure.code(), "exists");
    }
}
