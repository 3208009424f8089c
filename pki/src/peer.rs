//! Who a certificate speaks for.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use tanako_fleet::access::Role;
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::authority::hex;

/// Longest name of an identity or fleet, as for DNS labels.
const NAME_MAX: usize = 63;
/// Longest serial number, in bytes (RFC 5280).
const SERIAL_BYTES_MAX: usize = 20;

/// Serial number of a certificate, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

impl Serial {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(hex(bytes))
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Serial {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let text = text.to_ascii_lowercase().replace(':', "");
        let good = !text.is_empty()
            && text.len() <= 2 * SERIAL_BYTES_MAX
            && text.len().is_multiple_of(2)
            && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if good {
            Ok(Self(text))
        } else {
            Err(NameError(text))
        }
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.0
    }
}

/// Not usable as a name or serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name an identity; use letters, digits, dashes, dots and underscores, at most {NAME_MAX}"
)]
pub struct NameError(pub String);

/// Whether a text can name an identity or fleet: it becomes part of a URI and of keys in the store.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let good = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if good {
        Ok(())
    } else {
        Err(NameError(name.to_owned()))
    }
}

/// Why a certificate speaks for nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Not X.509.
    #[error("the certificate cannot be read")]
    Malformed,
    /// No URI of ours, or several.
    #[error("the certificate names no identity of a Tanako fleet")]
    NoIdentity,
    /// Subject and URI contradict each other.
    #[error("the certificate's subject and its URI name different identities")]
    Contradiction,
}

/// An identity, as its certificate has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Host of an agent, or name of a person or program.
    pub name: String,
    /// The fleet it belongs to.
    pub fleet: String,
    /// What it may do.
    pub role: Role,
    /// Number of the certificate.
    pub serial: Serial,
    /// Addresses that it names.
    pub addresses: Vec<IpAddr>,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl Peer {
    /// Reads a certificate (DER). Says nothing of who signed it.
    pub fn from_der(certificate: &[u8]) -> Result<Self, PeerError> {
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
        if !rest.is_empty() {
            return Err(PeerError::Malformed);
        }
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| PeerError::Malformed)?
            .ok_or(PeerError::NoIdentity)?;
        let (mut uri, mut addresses) = (None, Vec::new());
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(text) if uri.is_none() => uri = Some(*text),
                GeneralName::URI(_) => return Err(PeerError::NoIdentity),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let (fleet, role, name) = uri.and_then(split).ok_or(PeerError::NoIdentity)?;
        let subject = parsed.subject();
        let agrees = one(subject.iter_common_name()) == Some(name)
            && one(subject.iter_organization()) == Some(fleet)
            && one(subject.iter_organizational_unit()) == Some(role.as_str());
        if !agrees {
            return Err(PeerError::Contradiction);
        }
        let serial = parsed.raw_serial();
        if serial.is_empty() || serial.len() > SERIAL_BYTES_MAX {
            return Err(PeerError::Malformed);
        }
        Ok(Self {
            name: name.to_owned(),
            fleet: fleet.to_owned(),
            role,
            serial: Serial::from_bytes(serial),
            addresses,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.role)
    }
}

/// `tanako://FLEET/ROLE/NAME`
pub(crate) fn uri(fleet: &str, role: Role, name: &str) -> String {
    format!("tanako://{fleet}/{role}/{name}")
}

fn split(uri: &str) -> Option<(&str, Role, &str)> {
    let mut parts = uri.strip_prefix("tanako://")?.split('/');
    let (fleet, role, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || check_name(fleet).is_err() || check_name(name).is_err() {
        return None;
    }
    Some((fleet, role.parse().ok()?, name))
}

fn one<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let first = values.next()?.as_str().ok()?;
    values.next().is_none().then_some(first)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_uris_and_keys() {
        for good in ["a", "host-1.example", "Anna_K"] {
            check_name(good).expect("good");
        }
        for bad in ["", "a/b", "a b", "ä", "-a", ".a", &"a".repeat(64), "a\0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(split("tanako://f/agent/a"), Some(("f", Role::Agent, "a")));
        for bad in [
            "tanako://f/agent/a/b",
            "tanako://f/root/a",
            "tanako:///agent/a",
            "http://f/agent/a",
            "tanako://f/agent/",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn serials_are_hex_however_they_are_written() {
        let serial = Serial::try_from("0A:ff".to_owned()).expect("good");
        assert_eq!(serial.as_str(), "0aff");
        for bad in ["", "0", "zz", &"aa".repeat(21), "../x"] {
            assert!(Serial::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_certificate_speaks_for_nobody() {
        for bytes in [&b""[..], b"\x30\x80", &[0xff; 500]] {
            assert_eq!(Peer::from_der(bytes), Err(PeerError::Malformed));
        }
    }
}
