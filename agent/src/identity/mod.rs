//! Who this agent is in its fleet, whom it lets in, and whom not any more.
//!
//! - [`Credentials`]: the agent's own identity, swapped while connections go on.
//! - [`revoked`]: the serial numbers that do not count any more, from the store and, while that does not
//!   answer, from disk.
//! - [`refused`]: what is written down of calls and connections that were refused.
//! - [`ledger`], [`registrar`], [`service`]: who gets a certificate and loses it, in the store and on the
//!   wire; [`renewal`] keeps this agent's own from ending.
//! - [`join`]: how a new host gets its first one.
//! - [`network`]: the parts of all this that an agent starts.

pub mod join;
pub mod ledger;
pub mod network;
pub mod refused;
pub mod registrar;
pub mod renewal;
pub mod revoked;
pub mod service;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tanako_pki::{Identity, Role, tls};
use tanako_store::Store;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::history::History;

pub use refused::{Refusal, Refusals};
pub use revoked::Revoked;

/// Why the agent cannot use its identity. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is none.
    #[error(
        "there is no identity in {directory}; make a token with `tanakoctl join-token --host {host}` on a \
         host of the fleet, then run `tanako-agent join` here"
    )]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
        /// This host.
        host: String,
    },
    /// It cannot be used.
    #[error("the identity in {directory} cannot be used")]
    Unusable {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        source: tanako_pki::Error,
    },
    /// It is another host's, or no agent's.
    #[error(
        "the identity in {directory} is that of {found}, but this is the agent of host {host}; name the \
         host with --host, or join anew"
    )]
    Other {
        /// Where it is.
        directory: PathBuf,
        /// Whose.
        found: String,
        /// This host.
        host: String,
    },
}

/// One identity and what TLS needs of it.
#[derive(Debug, Clone)]
pub struct Current {
    /// It.
    pub identity: Identity,
    /// For connections that come in.
    pub server: Arc<tls::rustls::ServerConfig>,
}

impl Current {
    fn new(identity: Identity) -> Result<Self, tanako_pki::Error> {
        let server = tls::server(&identity)?;
        Ok(Self { identity, server })
    }
}

/// The agent's own identity, which changes when its certificate is renewed; clones are cheap.
#[derive(Debug, Clone)]
pub struct Credentials {
    current: Arc<watch::Sender<Arc<Current>>>,
    directory: Arc<Path>,
}

impl Credentials {
    /// Reads the identity directory of the agent of `host`.
    pub fn load(directory: &Path, host: &str) -> Result<Self, IdentityError> {
        let unusable = |source| IdentityError::Unusable {
            directory: directory.to_owned(),
            source,
        };
        if !directory.join(tanako_pki::IDENTITY_FILE).exists() {
            return Err(IdentityError::Missing {
                directory: directory.to_owned(),
                host: host.to_owned(),
            });
        }
        let identity = Identity::load(directory).map_err(unusable)?;
        let peer = identity.peer();
        if peer.name != host || peer.role != Role::Agent {
            return Err(IdentityError::Other {
                directory: directory.to_owned(),
                found: peer.to_string(),
                host: host.to_owned(),
            });
        }
        let current = Current::new(identity).map_err(unusable)?;
        Ok(Self {
            current: Arc::new(watch::Sender::new(Arc::new(current))),
            directory: directory.into(),
        })
    }

    /// The identity now.
    pub fn current(&self) -> Arc<Current> {
        self.current.borrow().clone()
    }

    /// The identity, as a value that changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a new identity down and uses it from the next connection on.
    pub fn replace(&self, identity: Identity) -> Result<(), tanako_pki::Error> {
        let current = Current::new(identity)?;
        current.identity.save(&self.directory)?;
        self.current.send_replace(Arc::new(current));
        Ok(())
    }

    /// Takes over what somebody else has put into the directory.
    pub fn reload(&self) -> Result<(), tanako_pki::Error> {
        let identity = Identity::load(&self.directory)?;
        if identity.peer() != self.current().identity.peer() {
            self.current.send_replace(Arc::new(Current::new(identity)?));
        }
        Ok(())
    }
}

/// What the listener and the calls need to tell friend from foe.
#[derive(Debug, Clone)]
pub struct Guards {
    /// Whose certificates do not count any more.
    pub revoked: Revoked,
    /// Where refusals are written down.
    pub refusals: Refusals,
}

impl Guards {
    /// Follows the store. On one machine, without `credentials`, nobody has a certificate, so none can be
    /// revoked.
    pub fn start(
        credentials: Option<&Credentials>,
        store: Arc<dyn Store>,
        host: &str,
        history: &History,
        cancel: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let revoked = match credentials {
            None => Revoked::none(),
            Some(credentials) => Revoked::start(
                store.clone(),
                credentials.directory().join("revoked.json"),
                cancel.clone(),
                tracker,
            ),
        };
        let refusals = Refusals::start(
            store,
            host.to_owned(),
            history.clone(),
            cancel.clone(),
            tracker,
        );
        Self { revoked, refusals }
    }
}
