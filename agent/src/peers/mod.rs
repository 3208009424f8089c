//! Channels to the agents of other hosts, by host name.
//!
//! A channel is made when it is first asked for and then kept: it connects again by itself. It is made
//! anew when the host's address or this agent's certificate has changed. A host that could not be reached
//! is left alone for a while that grows, so that callers that ask in a loop cost nothing.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tanako_pki::{Serial, tls};
use tanako_proto::host::v1::host_client::HostClient;
use tanako_store::Backoff;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{identity::Credentials, registry::Hosts};

/// Longest that a connection may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// For so long a host that did not answer is left alone.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A peer that answers no ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Largest message taken from a peer.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why there is no channel to a host.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// No host of that name is known.
    #[error("no host {0} is known in the fleet")]
    Unknown(String),
    /// It is known, but not where.
    #[error("host {0} has announced no address; its agent needs --listen")]
    NoAddress(String),
    /// This agent has no identity, so nobody would talk to it.
    #[error("this agent has no identity in the fleet; start it with --listen and --identity")]
    NoIdentity,
    /// It did not answer.
    #[error("the agent of host {host} at {address} cannot be reached: {cause}")]
    Unreachable {
        /// Which.
        host: String,
        /// Where.
        address: SocketAddr,
        /// Why, with everything behind it.
        cause: String,
    },
    /// TLS cannot be set up.
    #[error("TLS to other agents cannot be set up")]
    Tls(#[source] Arc<tanako_pki::Error>),
}

/// The agents of other hosts; clones share their channels.
#[derive(Debug, Clone)]
pub struct Peers {
    credentials: Option<Credentials>,
    hosts: watch::Receiver<Arc<Hosts>>,
    known: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<Peer>>>>>,
}

/// What is kept of one host.
#[derive(Debug)]
struct Peer {
    channel: Option<Made>,
    backoff: Backoff,
    /// Until then it is left alone, for this reason.
    failed: Option<(Instant, PeerError)>,
}

/// A channel, and what it was made with.
#[derive(Debug)]
struct Made {
    channel: Channel,
    address: SocketAddr,
    serial: Serial,
}

impl Peers {
    /// Finds hosts in the registry and shows this agent's identity.
    pub fn new(credentials: Option<Credentials>, hosts: watch::Receiver<Arc<Hosts>>) -> Self {
        Self {
            credentials,
            hosts,
            known: Arc::default(),
        }
    }

    /// Where the agents of the fleet listen, by host.
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        let hosts = self.hosts.borrow();
        hosts
            .iter()
            .filter_map(|(name, known)| Some((name.clone(), known.record.address.parse().ok()?)))
            .collect()
    }

    /// A channel to the agent of a host, connected when it was made.
    pub async fn channel(&self, host: &str) -> Result<Channel, PeerError> {
        let credentials = self.credentials.as_ref().ok_or(PeerError::NoIdentity)?;
        let address = self.address(host)?;
        let peer = self.peer(host);
        // Whoever else wants this host waits for the same connection.
        let mut peer = peer.lock().await;
        let serial = credentials.current().identity.peer().serial.clone();
        if let Some(made) = &peer.channel
            && made.address == address
            && made.serial == serial
        {
            return Ok(made.channel.clone());
        }
        if let Some((until, error)) = &peer.failed
            && *until > Instant::now()
        {
            return Err(error.clone());
        }
        match connect(credentials.clone(), host, address).await {
            Ok(channel) => {
                peer.channel = Some(Made {
                    channel: channel.clone(),
                    address,
                    serial,
                });
                peer.failed = None;
                peer.backoff.reset();
                Ok(channel)
            }
            Err(error) => {
                let until = Instant::now() + peer.backoff.pause();
                peer.failed = Some((until, error.clone()));
                Err(error)
            }
        }
    }

    /// A client of the host service of a host.
    pub async fn host(&self, host: &str) -> Result<HostClient<Channel>, PeerError> {
        let channel = self.channel(host).await?;
        Ok(HostClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn address(&self, host: &str) -> Result<SocketAddr, PeerError> {
        let hosts = self.hosts.borrow();
        let known = hosts
            .get(host)
            .ok_or_else(|| PeerError::Unknown(host.to_owned()))?;
        known
            .record
            .address
            .parse()
            .map_err(|_| PeerError::NoAddress(host.to_owned()))
    }

    fn peer(&self, host: &str) -> Arc<tokio::sync::Mutex<Peer>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Hosts that have left the fleet leave nothing here.
        let hosts = self.hosts.borrow();
        known.retain(|name, _| hosts.contains_key(name));
        let peer = known.entry(host.to_owned()).or_insert_with(|| {
            Arc::new(tokio::sync::Mutex::new(Peer {
                channel: None,
                backoff: Backoff::new(PAUSE_FIRST, PAUSE_MAX),
                failed: None,
            }))
        });
        peer.clone()
    }
}

async fn connect(
    credentials: Credentials,
    host: &str,
    address: SocketAddr,
) -> Result<Channel, PeerError> {
    let unreachable = |error: &tonic::transport::Error| PeerError::Unreachable {
        host: host.to_owned(),
        address,
        cause: crate::problem::with_sources(error),
    };
    // Checked here, so that a broken identity does not look like a broken network.
    tls::client(&credentials.current().identity, Some(host))
        .map_err(|error| PeerError::Tls(Arc::new(error)))?;
    let name: Arc<str> = host.into();
    let connector = service_fn(move |_| {
        let (credentials, name) = (credentials.clone(), name.clone());
        async move {
            let identity = credentials.current().identity.clone();
            let config = tls::client(&identity, Some(&name)).map_err(std::io::Error::other)?;
            let stream = tls::connect(address, config, CONNECT_WITHIN).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // Only a label: the connector knows the way.
    Endpoint::from_static("http://agent.tanako")
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(&error))
}
