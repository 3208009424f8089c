//! What the fleet remembers of the certificates it has issued: one document a name, changed by compare
//! and set, so that issuing and revoking never pass each other. Pure.
//!
//! In the store: `identities/NAME` holds [`Holder`], `join/ID` holds [`Invitation`].

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tanako_pki::{Given, Holder, Peer, Role, Secret};

/// Prefix of [`Holder`]s.
pub const HOLDERS: &str = "identities/";
/// Prefix of [`Invitation`]s.
pub const INVITATIONS: &str = "join/";
/// Certificates of one name that hold at the same time. Renewing leaves the old one to its end.
pub const CERTIFICATES_MAX: usize = 32;

/// Why a certificate is not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The name has another role.
    #[error("{name} is the name of one with the role {role}")]
    Taken {
        /// The name.
        name: String,
        /// Its role.
        role: Role,
    },
    /// Too many that hold.
    #[error("{0} has {CERTIFICATES_MAX} certificates that hold")]
    TooMany(String),
    /// It was never issued, or has been revoked with its name.
    #[error("the certificate is not among those that the fleet has issued")]
    Unknown,
    /// No such token, or another secret.
    #[error("the join token is not known")]
    NoInvitation,
    /// The token was used.
    #[error("the join token has been used")]
    Used,
    /// Its time is over.
    #[error("the join token has expired")]
    Late,
    /// It is for another host.
    #[error("the join token is for another host")]
    OtherHost,
}

/// The document of a name with this certificate more, and without those that are over.
pub fn entered(before: Option<Holder>, peer: &Peer, by: &str, now: i64) -> Result<Holder, Refused> {
    let mut holder = before.unwrap_or_else(|| Holder {
        name: peer.name.clone(),
        role: peer.role,
        certificates: Vec::new(),
    });
    holder.certificates.retain(|given| given.not_after > now);
    if holder.certificates.is_empty() {
        holder.role = peer.role;
    }
    if holder.role != peer.role {
        return Err(Refused::Taken {
            name: holder.name,
            role: holder.role,
        });
    }
    if holder.certificates.len() >= CERTIFICATES_MAX {
        return Err(Refused::TooMany(holder.name));
    }
    holder.certificates.push(Given::new(peer, by, now));
    Ok(holder)
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The only host it is for.
    pub host: String,
    /// What the host will be.
    pub roles: Vec<Role>,
    /// SHA-256 of the secret, in hex.
    pub sha256: String,
    /// Milliseconds since 1970.
    pub expires: i64,
    /// When it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<i64>,
    /// Who made it.
    pub by: String,
}

impl Invitation {
    /// For a host.
    pub fn new(host: &str, secret: &Secret, expires: i64, by: &str) -> Self {
        Self {
            host: host.to_owned(),
            roles: vec![Role::Agent],
            sha256: digest(secret.reveal()),
            expires,
            used_at: None,
            by: by.to_owned(),
        }
    }

    /// The same, used; or why it does not help.
    pub fn used(mut self, secret: &[u8], host: &str, now: i64) -> Result<Self, Refused> {
        // First of all: who does not know the secret learns nothing about the rest.
        if !bool::from(digest(secret).as_bytes().ct_eq(self.sha256.as_bytes())) {
            return Err(Refused::NoInvitation);
        }
        if self.used_at.is_some() {
            return Err(Refused::Used);
        }
        if self.expires <= now {
            return Err(Refused::Late);
        }
        if self.host != host {
            return Err(Refused::OtherHost);
        }
        self.used_at = Some(now);
        Ok(self)
    }
}

fn digest(secret: &[u8]) -> String {
    let bytes = Sha256::digest(secret);
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

#[cfg(test)]
mod tests {
    use tanako_pki::Serial;

    use super::*;

    fn peer(role: Role, number: u8, not_after: i64) -> Peer {
        Peer {
            name: "b".into(),
            fleet: "f".into(),
            role,
            serial: Serial::try_from(format!("{number:02x}")).expect("hex"),
            addresses: Vec::new(),
            not_before: 0,
            not_after,
        }
    }

    #[test]
    fn a_token_is_good_once_for_its_host_in_its_time() {
        let secret = Secret::generate().expect("random");
        let invitation = Invitation::new("b", &secret, 100, "anna");
        let stored = serde_json::to_string(&invitation).expect("JSON");
        assert!(!stored.contains(&format!("{:?}", secret.reveal())));
        let refused = |invitation: &Invitation, secret: &[u8], host, now| {
            invitation
                .clone()
                .used(secret, host, now)
                .expect_err("refused")
        };
        let right = secret.reveal();
        assert_eq!(
            refused(&invitation, b"guess", "b", 1),
            Refused::NoInvitation
        );
        assert_eq!(refused(&invitation, right, "c", 1), Refused::OtherHost);
        assert_eq!(refused(&invitation, right, "b", 100), Refused::Late);
        let used = invitation.used(right, "b", 99).expect("good");
        assert_eq!(used.used_at, Some(99));
        assert_eq!(refused(&used, right, "b", 99), Refused::Used);
    }

    #[test]
    fn a_name_has_one_role_and_a_bounded_number_of_certificates() {
        let mut holder = entered(None, &peer(Role::Agent, 0, 10), "x", 0).expect("first");
        assert!(matches!(
            entered(Some(holder.clone()), &peer(Role::Admin, 1, 10), "x", 0),
            Err(Refused::Taken { .. })
        ));
        for number in 1..CERTIFICATES_MAX as u8 {
            let next = peer(Role::Agent, number, 10);
            holder = entered(Some(holder), &next, "x", 0).expect("room");
            assert!(holder.has(&next.serial));
        }
        let more = peer(Role::Agent, 99, 10);
        assert!(matches!(
            entered(Some(holder.clone()), &more, "x", 0),
            Err(Refused::TooMany(_))
        ));
        // What is over makes room, also for another role.
        let other = entered(Some(holder), &peer(Role::Admin, 99, 30), "x", 10_000);
        let other = other.expect("free again");
        assert_eq!((other.role, other.certificates.len()), (Role::Admin, 1));
    }
}
