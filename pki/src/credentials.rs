//! A key with its certificate and the authorities to trust.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use crate::{
    AUTHORITIES_FILE, Error, IDENTITY_FILE,
    authority::pem,
    files,
    peer::{Peer, PeerError},
};

/// Who we are to others of the fleet: key, certificate, and whom we trust. Shows no key.
#[derive(Clone)]
pub struct Identity {
    peer: Peer,
    certified: Arc<CertifiedKey>,
    authorities: Vec<CertificateDer<'static>>,
    key_pem: Arc<str>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// From a key in PEM form, its certificate and those between it and an authority, and the
    /// authorities. Fails when key and certificate do not belong together.
    pub fn new(
        key_pem: &str,
        chain: Vec<CertificateDer<'static>>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let own = chain.first().ok_or(PeerError::NoIdentity)?;
        let peer = Peer::from_der(own)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|_| rustls::Error::General("the key is not in PEM form".to_owned()))?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        Ok(Self {
            peer,
            certified: Arc::new(certified),
            authorities,
            key_pem: key_pem.into(),
        })
    }

    /// Reads an identity directory.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(IDENTITY_FILE);
        let text = files::read_private(&path)?;
        let content = |fault| Error::Content {
            path: path.clone(),
            fault,
        };
        let chain = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| content("is not in PEM form"))?;
        if chain.is_empty() {
            return Err(content("holds no certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| content("holds no private key"))?;
        let key_pem = pem("PRIVATE KEY", key.secret_der());
        Self::new(
            &key_pem,
            chain,
            certificates(&directory.join(AUTHORITIES_FILE))?,
        )
    }

    /// Writes it into an identity directory: key and certificate in one step.
    pub fn save(&self, directory: &Path) -> Result<(), Error> {
        files::private_dir(directory)?;
        let blocks = |certificates: &[CertificateDer<'_>]| -> String {
            let blocks = certificates.iter().map(|der| pem("CERTIFICATE", der));
            blocks.collect()
        };
        let authorities = directory.join(AUTHORITIES_FILE);
        files::write_private(&authorities, blocks(&self.authorities).as_bytes())?;
        let own = format!("{}{}", self.key_pem, blocks(&self.certified.cert));
        files::write_private(&directory.join(IDENTITY_FILE), own.as_bytes())
    }

    /// Who we are.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Our certificate, and those between it and an authority.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whom we trust.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// When to ask for a new certificate: a third of its life before its end.
    pub fn renew_at(&self) -> SystemTime {
        let life = (self.peer.not_after - self.peer.not_before).max(0);
        let at = self.peer.not_before + life / 3 * 2;
        UNIX_EPOCH + Duration::from_secs(at.try_into().unwrap_or(0))
    }

    /// When it ends.
    pub fn ends_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.peer.not_after.try_into().unwrap_or(0))
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

/// All certificates of a PEM file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = files::read(path)?;
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::Content {
            path: path.to_owned(),
            fault: "holds no certificate in PEM form",
        }),
    }
}

pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}
