//! The fleet's own certificate authority.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use tanako_fleet::access::Role;

use crate::{
    AUTHORITIES_FILE, AUTHORITY_KEY_FILE, Error, Identity,
    credentials::certificates,
    files,
    peer::{Peer, check_name, uri},
    request::KeyRequest,
};

/// Life of the authority itself. Its certificate is replaced by hand, long before.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of hosts may differ by so much.
const SKEW: Duration = Duration::from_secs(300);
/// Random bytes in a serial number. The first bit stays clear.
const SERIAL_BYTES: usize = 16;

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Host of an agent, or name of a person or program.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Addresses of an agent.
    pub addresses: Vec<IpAddr>,
}

impl Subject {
    /// The agent of a host.
    pub fn agent(host: impl Into<String>, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            name: host.into(),
            role: Role::Agent,
            addresses: addresses.into_iter().collect(),
        }
    }

    /// A person or program.
    pub fn user(name: impl Into<String>, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
            addresses: Vec::new(),
        }
    }
}

/// A new certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// It.
    pub certificate: CertificateDer<'static>,
    /// Whom it speaks for.
    pub peer: Peer,
}

/// The fleet's certificate authority, with its key.
pub struct Authority {
    fleet: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new one.
    pub fn create(fleet: &str) -> Result<Self, Error> {
        check_name(fleet)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Tanako");
        params
            .distinguished_name
            .push(DnType::OrganizationName, fleet);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(serial_number()?);
        let now = SystemTime::now();
        valid(&mut params, now - SKEW, now + AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            fleet: fleet.to_owned(),
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// Reads it from an identity directory; `None` when its key is not there.
    pub fn load(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(AUTHORITY_KEY_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let content = |fault| Error::Content {
            path: path.clone(),
            fault,
        };
        let key = KeyPair::from_pem(&files::read_private(&path)?)
            .map_err(|_| content("holds no private key in PEM form"))?;
        for certificate in certificates(&directory.join(AUTHORITIES_FILE))? {
            let Some(fleet) = fleet_of(&certificate, &key) else {
                continue;
            };
            return Ok(Some(Self {
                fleet,
                issuer: Issuer::from_ca_cert_der(&certificate, key)?,
                certificate,
            }));
        }
        Err(content("belongs to none of the certificates in ca.pem"))
    }

    /// Writes certificate and key into an identity directory, which then is an issuer's.
    pub fn save(&self, directory: &Path) -> Result<(), Error> {
        files::private_dir(directory)?;
        let key = directory.join(AUTHORITY_KEY_FILE);
        if key.exists() {
            return Err(Error::Content {
                path: key,
                fault: "is there already; it is never overwritten",
            });
        }
        files::write_private(
            &directory.join(AUTHORITIES_FILE),
            pem("CERTIFICATE", &self.certificate).as_bytes(),
        )?;
        files::write_private(&key, self.issuer.key().serialize_pem().as_bytes())
    }

    /// The fleet whose authority it is.
    pub fn fleet(&self) -> &str {
        &self.fleet
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Makes a certificate for the key of a request. Nothing else of the request counts: who it is for
    /// is said here alone.
    pub fn issue(
        &self,
        request: &KeyRequest,
        subject: &Subject,
        life: Duration,
    ) -> Result<Issued, Error> {
        let now = SystemTime::now();
        self.sign(request.key(), subject, now - SKEW, now + life)
    }

    /// Makes a key and its certificate, here and now.
    pub fn identity(&self, subject: &Subject, life: Duration) -> Result<Identity, Error> {
        let now = SystemTime::now();
        self.identity_between(subject, now - SKEW, now + life)
    }

    /// The same, valid from one moment to another.
    pub fn identity_between(
        &self,
        subject: &Subject,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Identity, Error> {
        let key = KeyPair::generate()?;
        let issued = self.sign(&key, subject, from, until)?;
        Identity::new(
            &key.serialize_pem(),
            vec![issued.certificate],
            vec![self.certificate.clone()],
        )
    }

    /// The same, into an identity directory.
    pub fn issue_to(
        &self,
        directory: &Path,
        subject: &Subject,
        life: Duration,
    ) -> Result<Identity, Error> {
        let identity = self.identity(subject, life)?;
        identity.save(directory)?;
        Ok(identity)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Issued, Error> {
        check_name(&subject.name)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in [
            (DnType::CommonName, subject.name.as_str()),
            (DnType::OrganizationName, &self.fleet),
            (DnType::OrganizationalUnitName, subject.role.as_str()),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let text = |text: String| text.try_into().map_err(Error::Make);
        let name = uri(&self.fleet, subject.role, &subject.name);
        params.subject_alt_names.push(SanType::URI(text(name)?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Agent {
            let host = text(subject.name.clone())?;
            params.subject_alt_names.push(SanType::DnsName(host));
            let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
            params.subject_alt_names.extend(addresses);
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial_number()?);
        valid(&mut params, from, until);
        let certificate = params.signed_by(key, &self.issuer)?.der().clone();
        let peer = Peer::from_der(&certificate)?;
        Ok(Issued { certificate, peer })
    }
}

/// The fleet in an authority's certificate, if that is the certificate of this key.
fn fleet_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> Option<String> {
    use x509_parser::prelude::*;

    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    if &*parsed.public_key().subject_public_key.data != key.der_bytes() {
        return None;
    }
    let fleet = parsed.subject().iter_organization().next()?.as_str().ok()?;
    check_name(fleet).ok()?;
    Some(fleet.to_owned())
}

fn valid(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let at = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + since
    };
    params.not_before = at(from);
    params.not_after = at(until);
}

fn serial_number() -> Result<SerialNumber, Error> {
    let mut bytes = [0; SERIAL_BYTES];
    random(&mut bytes)?;
    // Positive, and never shortened: the hex digits are what the store and the lists show.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Fills a buffer with random bytes.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Error> {
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(bytes)
        .map_err(|_| Error::Random)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 0xf] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

/// A block of PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};

    let body = BASE64_STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn certificates_say_whom_they_speak_for() {
        let authority = Authority::create("prod").expect("made");
        let ip: IpAddr = "10.0.0.7".parse().expect("an address");
        let agent = authority
            .identity(&Subject::agent("a", [ip]), DAY)
            .expect("made");
        let peer = agent.peer();
        assert_eq!(
            (&*peer.name, &*peer.fleet, peer.role, &peer.addresses[..]),
            ("a", "prod", Role::Agent, &[ip][..])
        );
        assert_eq!(peer.serial.as_str().len(), 2 * SERIAL_BYTES);
        assert!(peer.not_after - peer.not_before >= DAY.as_secs() as i64);
        let other = authority
            .identity(&Subject::user("anna", Role::Viewer), DAY)
            .expect("made");
        assert_eq!(other.peer().to_string(), "anna (viewer)");
        assert_ne!(other.peer().serial, peer.serial);
    }

    #[test]
    fn names_that_would_lie_are_refused() {
        for bad in ["a/admin", "", "a\nb"] {
            assert!(Authority::create(bad).is_err());
            let authority = Authority::create("f").expect("made");
            let subject = Subject::user(bad, Role::Admin);
            assert!(matches!(
                authority.identity(&subject, DAY),
                Err(Error::Name(_))
            ));
        }
    }

    #[test]
    fn it_comes_back_from_its_directory_and_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("identity");
        assert!(Authority::load(dir.path()).expect("none").is_none());
        let authority = Authority::create("f").expect("made");
        authority.save(&home).expect("saved");
        let again = Authority::load(&home).expect("read").expect("there");
        assert_eq!(again.fleet(), "f");
        assert_eq!(again.certificate(), authority.certificate());
        let error = Authority::create("g")
            .expect("made")
            .save(&home)
            .expect_err("kept");
        assert!(error.to_string().contains("never overwritten"), "{error}");
        let mode = |path: &Path| {
            let meta = std::fs::metadata(path).expect("there");
            meta.permissions().mode() & 0o777
        };
        assert_eq!(mode(&home), 0o700);
        assert_eq!(mode(&home.join(AUTHORITY_KEY_FILE)), 0o600);
        std::fs::set_permissions(
            home.join(AUTHORITY_KEY_FILE),
            std::fs::Permissions::from_mode(0o640),
        )
        .expect("sets");
        let error = Authority::load(&home).expect_err("exposed");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
