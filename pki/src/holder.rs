//! What a fleet remembers of a name and its certificates. Kept in the store; the first ones, which
//! `tanakoctl init` makes before there is a store, wait in a file beside the authority's key.

use serde::{Deserialize, Serialize};
use tanako_fleet::access::Role;

use crate::{Peer, Serial};

/// File of the first ones, a JSON list, in an issuer's identity directory.
pub const FIRST_FILE: &str = "issued.json";

/// A name and the certificates it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host, person or program.
    pub name: String,
    /// What it may do. A name keeps its role until all of its certificates are revoked or over.
    pub role: Role,
    /// Those that have not ended.
    pub certificates: Vec<Given>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Its number.
    pub serial: Serial,
    /// Milliseconds since 1970.
    pub issued_at: i64,
    /// When it ends, in milliseconds since 1970.
    pub not_after: i64,
    /// Who had it issued.
    pub by: String,
}

impl Given {
    /// What is remembered of a certificate.
    pub fn new(peer: &Peer, by: &str, now: i64) -> Self {
        Self {
            serial: peer.serial.clone(),
            issued_at: now,
            not_after: peer.not_after.saturating_mul(1000),
            by: by.to_owned(),
        }
    }
}

impl Holder {
    /// Whether it was given that certificate.
    pub fn has(&self, serial: &Serial) -> bool {
        self.certificates
            .iter()
            .any(|given| given.serial == *serial)
    }
}
