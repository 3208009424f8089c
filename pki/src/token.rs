//! What a new host is given: whom to ask, whom to trust, and a secret that is good once.

use std::{fmt, net::SocketAddr};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    authority::{hex, random},
    peer::check_name,
};

/// What every token begins with, so that scanners for leaked secrets can find them.
const PREFIX: &str = "tanako-join-1.";
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Longest token.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Most addresses in one.
const ADDRESSES_MAX: usize = 16;

/// A random secret. Shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A new one.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = vec![0; SECRET_BYTES];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Its bytes, to be hashed or sent.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is no join token, or not all of it; make one with `tanakoctl join-token --host NAME`"
)]
pub struct TokenError;

/// The token of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Under which the fleet knows it.
    pub id: String,
    /// The proof.
    pub secret: Secret,
    /// The fleet.
    pub fleet: String,
    /// The only host it is good for.
    pub host: String,
    /// Agents that can be asked.
    pub addresses: Vec<SocketAddr>,
    /// The authority that their certificates come from.
    pub authority: CertificateDer<'static>,
    /// Until when it is good, in milliseconds since 1970.
    pub expires_at: i64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    id: String,
    secret: String,
    fleet: String,
    host: String,
    addresses: Vec<SocketAddr>,
    authority: String,
    expires_at: i64,
}

impl JoinToken {
    /// A new id.
    pub fn new_id() -> Result<String, Error> {
        let mut bytes = [0; 8];
        random(&mut bytes)?;
        Ok(hex(&bytes))
    }

    /// The text for the new host: all of it is secret.
    pub fn encode(&self) -> String {
        let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let body = Body {
            id: self.id.clone(),
            secret: base64(self.secret.reveal()),
            fleet: self.fleet.clone(),
            host: self.host.clone(),
            addresses: self.addresses.clone(),
            authority: base64(&self.authority),
            expires_at: self.expires_at,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        format!("{PREFIX}{}", base64(&json))
    }

    /// Reads one; white space around it does not matter.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError)?;
        if body.len() > TOKEN_BYTES_MAX {
            return Err(TokenError);
        }
        let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError);
        let body: Body = serde_json::from_slice(&bytes(body)?).map_err(|_| TokenError)?;
        let token = Self {
            secret: Secret(bytes(&body.secret)?),
            authority: bytes(&body.authority)?.into(),
            id: body.id,
            fleet: body.fleet,
            host: body.host,
            addresses: body.addresses,
            expires_at: body.expires_at,
        };
        let good = token.secret.0.len() == SECRET_BYTES
            && !token.addresses.is_empty()
            && token.addresses.len() <= ADDRESSES_MAX
            && [&token.id, &token.fleet, &token.host]
                .iter()
                .all(|name| check_name(name).is_ok());
        if good { Ok(token) } else { Err(TokenError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    #[test]
    fn a_token_comes_back_whole_or_not_at_all() {
        let authority = Authority::create("f").expect("made");
        let token = JoinToken {
            id: JoinToken::new_id().expect("random"),
            secret: Secret::generate().expect("random"),
            fleet: "f".into(),
            host: "b".into(),
            addresses: vec!["10.0.0.1:7400".parse().expect("an address")],
            authority: authority.certificate().clone(),
            expires_at: 17,
        };
        let text = token.encode();
        assert_eq!(JoinToken::decode(&format!(" {text}\n")), Ok(token.clone()));
        for end in [0, 10, PREFIX.len(), text.len() / 2, text.len() - 1] {
            assert_eq!(JoinToken::decode(&text[..end]), Err(TokenError), "{end}");
        }
        let none = JoinToken {
            addresses: Vec::new(),
            ..token.clone()
        };
        assert_eq!(JoinToken::decode(&none.encode()), Err(TokenError));
        let debug = format!("{token:?}");
        assert!(
            debug.contains("[hidden]") && !debug.contains("secret: Secret(["),
            "{debug}"
        );
    }
}
