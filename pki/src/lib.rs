//! Certificates of a fleet: one authority, one identity for each agent, person and program, and TLS in
//! which both ends show theirs.
//!
//! - [`Authority`]: the fleet's own CA; makes certificates. Its key is on few hosts, the issuers.
//! - [`Identity`]: a key, its certificate and the authorities to trust, as they lie in an identity
//!   directory: `identity.pem` (key and chain in one file, so that both change at once) and `ca.pem`;
//!   beside them, on issuers, `ca.key`. Files have mode 0600, directories 0700.
//! - [`Peer`]: who a certificate speaks for.
//! - [`tls`]: server and client configurations, TLS 1.3 only.
//! - [`Holder`]: what a fleet remembers of a name and its certificates.
//! - [`JoinToken`]: what a new host is given so that it can ask for its certificate.
//!
//! A certificate's subject has CN = name, O = fleet, OU = role; what counts is its one URI
//! `tanako://FLEET/ROLE/NAME`, with which the subject must agree. Agents' certificates also name the
//! host and its addresses, for clients that look there, and only theirs are good for a server.
//!
//! Revocation is by serial number and is not looked up here: an agent does that at each call.

mod authority;
mod credentials;
mod files;
mod holder;
mod peer;
mod request;
pub mod tls;
mod token;

pub use authority::{Authority, Issued, Subject};
pub use credentials::Identity;
pub use files::{private_dir, write_private};
pub use holder::{FIRST_FILE, Given, Holder};
pub use peer::{NameError, Peer, PeerError, Serial, check_name};
pub use request::{KeyRequest, Pending, Renewal};
pub use tanako_fleet::access::Role;
pub use token::{JoinToken, Secret, TokenError};

use std::path::PathBuf;

/// Certificates and the key of an identity.
pub const IDENTITY_FILE: &str = "identity.pem";
/// The authorities to trust.
pub const AUTHORITIES_FILE: &str = "ca.pem";
/// The authority's own key, on issuers.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";

/// Why certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path} cannot be {done}")]
    Io {
        /// Which.
        path: PathBuf,
        /// read, written, made.
        done: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A key that others may read.
    #[error(
        "{path} has mode {mode:04o}, so that others can read the key in it; run: chmod 600 {path}"
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file without what belongs there.
    #[error("{path} {fault}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A certificate or request cannot be made.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// What was sent is no request for a certificate.
    #[error("that is no valid request for a certificate")]
    Request(#[source] rcgen::Error),
    /// A name that a certificate cannot carry.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate that says nobody of ours.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// TLS refuses the material.
    #[error("TLS cannot be set up with these certificates")]
    Tls(#[from] rustls::Error),
    /// TLS refuses the authorities.
    #[error("TLS cannot be set up with these authorities")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// There is no randomness.
    #[error("the system gives no random numbers")]
    Random,
    /// A renewal that does not hold.
    #[error("the renewal is not signed by the key of the certificate that it replaces")]
    Signature,
    /// A certificate that no authority of this fleet signed, or that is over.
    #[error("the certificate does not hold: {0}")]
    Untrusted(#[source] rustls::Error),
}
