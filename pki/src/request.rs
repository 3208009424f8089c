//! Requests for certificates: only the request travels, the key stays where it was made.

use std::fmt;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PublicKey,
    SigningKey as _,
};
use rustls::{
    SignatureScheme,
    pki_types::{CertificateDer, CertificateSigningRequestDer},
};

use crate::{Error, Identity, Peer, credentials::provider, tls};

/// What a renewal's signature covers before the request itself: it is good for nothing else.
const CONTEXT: &[u8] = b"tanako renew\0";

/// The public key that a certificate is asked for, from a request whose signature holds.
#[derive(Debug, Clone)]
pub struct KeyRequest {
    key: PublicKey,
}

impl KeyRequest {
    /// Reads a request (DER) and checks that its sender has the key.
    pub fn from_der(request: &[u8]) -> Result<Self, Error> {
        let request = CertificateSigningRequestDer::from(request);
        let parsed = CertificateSigningRequestParams::from_der(&request).map_err(Error::Request)?;
        // One kind of key everywhere; others would only widen what an attacker can send.
        if *parsed.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request(rcgen::Error::UnsupportedSignatureAlgorithm));
        }
        Ok(Self {
            key: parsed.public_key,
        })
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// A new key that waits for its certificate. Shows nothing.
pub struct Pending {
    key: KeyPair,
    request: Vec<u8>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

impl Pending {
    /// Makes a key and the request for it.
    pub fn generate() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, request })
    }

    /// The request, DER.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Completes it with what the issuer sent.
    pub fn complete(
        self,
        chain: impl IntoIterator<Item = Vec<u8>>,
        authorities: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Identity, Error> {
        let der = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        Identity::new(
            &self.key.serialize_pem(),
            der(chain.into_iter().collect()),
            der(authorities.into_iter().collect()),
        )
    }
}

/// A request for a new certificate in place of one that holds, signed with the old key: whoever passes
/// it on can change nothing in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The request, DER.
    pub request: Vec<u8>,
    /// The certificate that it replaces, DER.
    pub certificate: Vec<u8>,
    /// By its key.
    pub signature: Vec<u8>,
}

impl Renewal {
    /// Asks for a successor of `identity`.
    pub fn of(identity: &Identity, pending: &Pending) -> Result<Self, Error> {
        let key = KeyPair::from_pem(identity.key_pem())?;
        let certificate = identity.chain().first().map(|own| own.to_vec());
        Ok(Self {
            request: pending.request.clone(),
            certificate: certificate.unwrap_or_default(),
            signature: key.sign(&signed_part(&pending.request))?,
        })
    }

    /// Whose it is, if signature and certificate hold, now, under these authorities. Whether it was
    /// revoked is for the caller to look up.
    pub fn check(
        &self,
        authorities: &[CertificateDer<'static>],
    ) -> Result<(Peer, KeyRequest), Error> {
        let certificate = CertificateDer::from(self.certificate.as_slice());
        tls::check_client(&certificate, authorities)?;
        let peer = Peer::from_der(&certificate)?;
        let key = public_key(&certificate)?;
        let provider = provider();
        let mut algorithms = provider
            .signature_verification_algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256)
            .flat_map(|(_, algorithms)| algorithms.iter());
        let message = signed_part(&self.request);
        if !algorithms.any(|algorithm| {
            algorithm
                .verify_signature(&key, &message, &self.signature)
                .is_ok()
        }) {
            return Err(Error::Signature);
        }
        Ok((peer, KeyRequest::from_der(&self.request)?))
    }
}

fn signed_part(request: &[u8]) -> Vec<u8> {
    [CONTEXT, request].concat()
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    use x509_parser::prelude::*;

    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| crate::PeerError::Malformed)?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, Role, Subject};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_request_yields_a_certificate_for_its_key_and_no_more() {
        let authority = Authority::create("f").expect("made");
        let pending = Pending::generate().expect("made");
        let request = KeyRequest::from_der(pending.request()).expect("holds");
        let issued = authority
            .issue(&request, &Subject::user("anna", Role::Viewer), DAY)
            .expect("issued");
        assert_eq!(issued.peer.role, Role::Viewer);
        let wrong = Pending::generate().expect("made");
        let parts = || {
            (
                [issued.certificate.to_vec()],
                [authority.certificate().to_vec()],
            )
        };
        let (chain, authorities) = parts();
        wrong
            .complete(chain, authorities)
            .expect_err("another key's certificate");
        let (chain, authorities) = parts();
        let identity = pending.complete(chain, authorities).expect("belongs");
        assert_eq!(identity.peer(), &issued.peer);
    }

    #[test]
    fn requests_that_were_touched_are_refused() {
        let pending = Pending::generate().expect("made");
        for at in [10, 60, pending.request().len() - 3] {
            let mut bytes = pending.request().to_vec();
            bytes[at] ^= 1;
            assert!(KeyRequest::from_der(&bytes).is_err(), "{at}");
        }
        for bytes in [&b""[..], &[0x30; 4000]] {
            assert!(KeyRequest::from_der(bytes).is_err());
        }
    }

    #[test]
    fn only_the_holder_of_a_valid_certificate_renews_it() {
        let authority = Authority::create("f").expect("made");
        let trusted = [authority.certificate().clone()];
        let subject = Subject::agent("a", []);
        let identity = authority.identity(&subject, DAY).expect("made");
        let pending = Pending::generate().expect("made");
        let renewal = Renewal::of(&identity, &pending).expect("signed");
        let (peer, _) = renewal.check(&trusted).expect("holds");
        assert_eq!(&peer, identity.peer());

        // Another key under the same signature.
        let other = Pending::generate().expect("made");
        let swapped = Renewal {
            request: other.request().to_vec(),
            ..renewal.clone()
        };
        assert!(matches!(swapped.check(&trusted), Err(Error::Signature)));
        // Somebody else's certificate in front.
        let admin = authority
            .identity(&Subject::user("root", Role::Admin), DAY)
            .expect("made");
        let stolen = Renewal {
            certificate: admin.chain()[0].to_vec(),
            ..renewal.clone()
        };
        assert!(matches!(stolen.check(&trusted), Err(Error::Signature)));
        // Of another fleet.
        let foreign = Authority::create("f").expect("made");
        let theirs = foreign.identity(&subject, DAY).expect("made");
        let renewal = Renewal::of(&theirs, &pending).expect("signed");
        assert!(matches!(renewal.check(&trusted), Err(Error::Untrusted(_))));
        // Over.
        let now = std::time::SystemTime::now();
        let ended = authority
            .identity_between(&subject, now - DAY, now - DAY / 2)
            .expect("made");
        let renewal = Renewal::of(&ended, &pending).expect("signed");
        assert!(matches!(renewal.check(&trusted), Err(Error::Untrusted(_))));
    }
}
