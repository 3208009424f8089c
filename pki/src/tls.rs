//! TLS between parts of the fleet: version 1.3, both ends known by their certificates.
//!
//! A server's certificate must be an agent's of the right fleet, and of the right host where the caller
//! knows which; its address is not looked at, so that hosts may change theirs. A client's certificate
//! must hold, or be missing: then only calls with their own proof are open to it. Sessions are not
//! resumed, so that each connection shows its certificate anew.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
    version::TLS13,
};
use tanako_fleet::access::Role;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use rustls;
pub use tokio_rustls::{
    TlsAcceptor, client::TlsStream as ClientStream, server::TlsStream as ServerStream,
};

use crate::{Error, Identity, Peer, credentials::provider};

/// The one protocol spoken.
const ALPN: &[u8] = b"h2";

/// For an agent's listener.
pub fn server(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(provider());
    let inner = WebPkiClientVerifier::builder_with_provider(
        roots(identity.authorities())?,
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()?;
    let verifier = ClientVerifier {
        inner,
        fleet: identity.peer().fleet.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// For a client that shows its identity. `host`: the only one whose agent will do.
pub fn client(identity: &Identity, host: Option<&str>) -> Result<Arc<ClientConfig>, Error> {
    let verifier = AgentVerifier::new(
        identity.authorities(),
        &identity.peer().fleet,
        host.map(str::to_owned),
    )?;
    let resolver = SingleCertAndKey::from(identity.certified());
    let mut config = client_builder(verifier)?.with_client_cert_resolver(Arc::new(resolver));
    finish(&mut config);
    Ok(Arc::new(config))
}

/// For one that has no identity yet, and knows the fleet's authority from its token.
pub fn newcomer(
    authority: CertificateDer<'static>,
    fleet: &str,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = AgentVerifier::new(&[authority], fleet, None)?;
    let mut config = client_builder(verifier)?.with_no_client_auth();
    finish(&mut config);
    Ok(Arc::new(config))
}

/// Connects and shakes hands, within `within`.
pub async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    within: Duration,
) -> io::Result<ClientStream<TcpStream>> {
    let handshake = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The verifier looks at the identity, not at the name that was dialled.
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(within, handshake)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn client_builder(
    verifier: AgentVerifier,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    Ok(ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Addresses are dialled, no names: there is nothing to indicate.
    config.enable_sni = false;
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    Ok(Arc::new(roots))
}

/// Whether a certificate holds now for a client, under these authorities.
pub(crate) fn check_client(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
) -> Result<(), Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(authorities)?, Arc::new(provider()))
            .build()?;
    verifier
        .verify_client_cert(certificate, &[], UnixTime::now())
        .map(|_| ())
        .map_err(Error::Untrusted)
}

fn stranger(_: crate::PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)
}

/// The chain must hold and name somebody of this fleet.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    fleet: String,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Which fleet this is concerns nobody who does not belong to it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        let peer = Peer::from_der(end_entity).map_err(stranger)?;
        if peer.fleet != self.fleet {
            return Err(stranger(crate::PeerError::NoIdentity));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The chain must hold and name an agent of this fleet, and of this host where one is given.
#[derive(Debug)]
struct AgentVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    fleet: String,
    host: Option<String>,
}

impl AgentVerifier {
    fn new(
        authorities: &[CertificateDer<'static>],
        fleet: &str,
        host: Option<String>,
    ) -> Result<Self, Error> {
        let (roots, provider) = (roots(authorities)?, Arc::new(provider()));
        // Refuses authorities that cannot be used now, and not at the first connection.
        WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        Ok(Self {
            roots,
            provider,
            fleet: fleet.to_owned(),
            host,
        })
    }
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let peer = Peer::from_der(end_entity).map_err(stranger)?;
        let right = peer.role == Role::Agent
            && peer.fleet == self.fleet
            && self.host.as_ref().is_none_or(|host| *host == peer.name);
        if right {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(stranger(crate::PeerError::NoIdentity))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
