//! What an agent of a fleet starts beside its services: the bound listener with its identity, the
//! registrar, the renewal of its own certificate.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use tanako_pki::{Authority, FIRST_FILE, Holder};
use tanako_store::{Backoff, Store};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Credentials, Guards, registrar::Registrar, renewal, service::Service};
use crate::{config::Config, history::History, peers::Peers, registry::Registry};

/// Pauses while the store does not take it.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The listener for others, bound, with this agent's identity.
pub struct Bound {
    /// Bound.
    pub listener: TcpListener,
    /// Where.
    pub address: SocketAddr,
    /// What others are told.
    pub advertised: SocketAddr,
    /// Who this agent is.
    pub credentials: Credentials,
    /// The authority, where its key is here.
    pub authority: Option<Arc<Authority>>,
    certificate_life: Duration,
}

/// What the identity service needs of the rest of the agent.
pub struct Trust {
    /// Who is let in.
    pub guards: Guards,
    /// The ways to those who can issue.
    pub peers: Peers,
    /// Who they are.
    pub registry: Registry,
    /// Where identities are kept.
    pub store: Arc<dyn Store>,
    /// What happens.
    pub history: History,
}

impl Bound {
    /// Reads the identity and binds the listener, if one is configured.
    pub async fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(network) = &config.network else {
            return Ok(None);
        };
        let credentials = Credentials::load(&network.identity, &config.host)?;
        let authority = Authority::load(&network.identity).with_context(|| {
            let directory = network.identity.display();
            format!("the authority in {directory} cannot be used")
        })?;
        let listener = TcpListener::bind(network.listen)
            .await
            .with_context(|| format!("--listen {} cannot be bound", network.listen))?;
        let address = listener.local_addr().context("the listener's address")?;
        let mut advertised = network.advertise.unwrap_or(address);
        if advertised.port() == 0 {
            advertised.set_port(address.port());
        }
        Ok(Some(Self {
            listener,
            address,
            advertised,
            credentials,
            authority: authority.map(Arc::new),
            certificate_life: network.certificate_life,
        }))
    }

    /// The identity service; begins to renew this agent's certificate.
    pub fn identities(
        &self,
        trust: Trust,
        cancel: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Service {
        let registrar = Registrar::new(
            trust.store,
            self.authority.clone(),
            self.credentials.clone(),
            trust.guards.revoked,
            self.certificate_life,
        );
        if registrar.is_issuer() {
            let file = self.credentials.directory().join(FIRST_FILE);
            let adopt = adopt(registrar.clone(), file.into());
            tracker.spawn(cancel.clone().run_until_cancelled_owned(adopt));
        }
        let service = Service::new(
            registrar,
            self.credentials.clone(),
            trust.peers,
            trust.registry.watch(),
            trust.guards.refusals,
        );
        tracker.spawn(cancel.clone().run_until_cancelled_owned(renewal::keep(
            service.clone(),
            self.credentials.clone(),
            trust.history,
        )));
        service
    }
}

/// Enters the first certificates once the store takes them.
async fn adopt(registrar: Registrar, file: Box<Path>) {
    let holders: Vec<Holder> = match std::fs::read(&file) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(holders) => holders,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "the first certificates are not listed");
                return;
            }
        },
        // Restored from elsewhere, or adopted long ago.
        Err(_) => return,
    };
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    while let Err(error) = registrar.adopt(&holders).await {
        tracing::debug!(%error, "the first certificates are not listed yet");
        tokio::time::sleep(backoff.pause()).await;
    }
}
