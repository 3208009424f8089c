//! What a node is told at its start, and the checks that catch a wrong setting before anything runs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tanako_fleet::ring::WEIGHT_MAX;

/// The secret that clients and the other nodes show. Never printed.
#[derive(Clone)]
pub struct Token {
    text: Arc<str>,
    digest: [u8; 32],
}

impl Token {
    /// A token of that text.
    pub fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            digest: Sha256::digest(text.as_bytes()).into(),
        }
    }

    /// Whether this is the token; takes the same time wherever the difference is.
    pub fn matches(&self, shown: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        digest.ct_eq(&self.digest).into()
    }

    /// The text, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// A setting that cannot be used. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The token file cannot be read.
    #[error(
        "cannot read token file {path}: {source}. Write the token into it and run: chmod 600 {path}"
    )]
    TokenUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could read the token.
    #[error("token file {path} can be read by others (mode {mode:03o}). Run: chmod 600 {path}")]
    TokenExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is nothing usable in it.
    #[error(
        "token file {path} {why}. Write one line with a token of at most 256 visible ASCII characters into it, for example: head -c 24 /dev/urandom | base64 > {path} && chmod 600 {path}"
    )]
    TokenUnusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// A peer is not `NAME=ws://HOST:PORT`.
    #[error("invalid peer {given:?}: {why}. Give it as NAME=ws://HOST:PORT")]
    Peer {
        /// What was given.
        given: String,
        /// What is wrong.
        why: String,
    },
    /// A weight is not `NAME=NUMBER`.
    #[error("invalid weight {0:?}. Give it as NAME=NUMBER, a whole number from 1 to {WEIGHT_MAX}")]
    Weight(String),
    /// The node's name is unusable.
    #[error("invalid node name {0:?}: use 1 to 64 letters, digits, '-', '_' and '.'")]
    Name(String),
}

/// The longest token accepted.
const TOKEN_CHARS_MAX: usize = 256;
/// A shorter token is accepted with a warning: it may be guessed.
const TOKEN_CHARS_WARN: usize = 16;

/// Reads the token file and checks that only its owner can.
pub fn read_token(path: &Path) -> Result<Token, ConfigError> {
    use std::os::unix::fs::PermissionsExt;
    let unreadable = |source| ConfigError::TokenUnreadable {
        path: path.to_owned(),
        source,
    };
    let mode = std::fs::metadata(path)
        .map_err(unreadable)?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::TokenExposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let text = text.trim();
    let unusable = |why| ConfigError::TokenUnusable {
        path: path.to_owned(),
        why,
    };
    if text.is_empty() {
        return Err(unusable("is empty"));
    }
    if text.len() > TOKEN_CHARS_MAX {
        return Err(unusable("holds a token that is too long"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable("holds something that is no token"));
    }
    if text.len() < TOKEN_CHARS_WARN {
        tracing::warn!(path = %path.display(), "the token is short and may be guessed; use at least 16 characters");
    }
    Ok(Token::new(text))
}

/// Reads `NAME=ws://HOST:PORT`.
pub fn parse_peer(given: &str) -> Result<(String, Uri), ConfigError> {
    let wrong = |why: &str| ConfigError::Peer {
        given: given.to_owned(),
        why: why.to_owned(),
    };
    let (name, url) = given
        .split_once('=')
        .ok_or_else(|| wrong("there is no '='"))?;
    check_name(name)?;
    let uri: Uri = url
        .trim()
        .parse()
        .map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
    if uri.scheme_str() != Some("ws") || uri.host().is_none() || uri.port_u16().is_none() {
        return Err(wrong("the address is not ws://HOST:PORT"));
    }
    Ok((name.to_owned(), uri))
}

/// Reads `NAME=NUMBER`, a node's share of the data.
pub fn parse_weight(given: &str) -> Result<(String, u32), ConfigError> {
    let wrong = || ConfigError::Weight(given.to_owned());
    let (name, weight) = given.split_once('=').ok_or_else(wrong)?;
    check_name(name).map_err(|_| wrong())?;
    let weight = weight.trim().parse().map_err(|_| wrong())?;
    if (1..=WEIGHT_MAX).contains(&weight) {
        Ok((name.to_owned(), weight))
    } else {
        Err(wrong())
    }
}

/// Checks a node's name: it appears in file names and metrics.
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let fine = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with('.');
    if fine {
        Ok(())
    } else {
        Err(ConfigError::Name(name.to_owned()))
    }
}

/// Everything a node is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name in the ring.
    pub name: String,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The token of the fleet.
    pub token: Token,
    /// The nodes of the ring with their addresses; this node may be among them.
    pub peers: Vec<(String, Uri)>,
    /// Shares of the data where they are not 1, by node.
    pub weights: BTreeMap<String, u32>,
    /// Backups asked for by clients are written below this directory only.
    pub backup_dir: PathBuf,
    /// Bounds and memory.
    pub tuning: Tuning,
}

/// Bounds and memory.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// The largest request, in bytes.
    pub message_bytes_max: usize,
    /// The most connections at one time.
    pub connections_max: usize,
    /// A connection that takes no replies for this long is cut off.
    pub slow_reader_ms: u64,
    /// A request to another node is answered, or failed, within this time.
    pub peer_deadline_ms: u64,
    /// Blocks kept in memory.
    pub cache_bytes: u64,
    /// Unflushed writes kept in memory, per space.
    pub memtable_bytes: u64,
    /// Writes are refused while less is free on the disk.
    pub free_bytes_min: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        let sizes = crate::engine::Sizes::default();
        Self {
            message_bytes_max: 1 << 20,
            connections_max: 1024,
            slow_reader_ms: 10_000,
            // A bot asks another node after two seconds.
            peer_deadline_ms: 1_800,
            cache_bytes: sizes.cache_bytes,
            memtable_bytes: sizes.memtable_bytes,
            free_bytes_min: 64 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        std::fs::write(&path, content).expect("writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .expect("permissions");
        (directory, path)
    }

    #[test]
    fn a_token_file_must_be_private_and_hold_a_token() {
        let (_keep, path) = file("0123456789abcdef\n", 0o600);
        let token = read_token(&path).expect("a token");
        assert!(token.matches("0123456789abcdef"));
        assert!(!token.matches("0123456789abcdeg"));
        assert!(!token.matches(""));
        assert!(!format!("{token:?}").contains("0123"));
        for (content, mode, part) in [
            ("0123456789abcdef", 0o644, "chmod 600"),
            ("0123456789abcdef", 0o640, "chmod 600"),
            ("\n", 0o600, "is empty"),
            (&"x".repeat(257), 0o600, "too long"),
            ("0123456789 abcdef", 0o600, "no token"),
        ] {
            let (_keep, path) = file(content, mode);
            let text = read_token(&path).expect_err("refused").to_string();
            assert!(
                text.contains(part) && text.contains(&path.display().to_string()),
                "{text}"
            );
        }
        let missing = read_token(Path::new("/nonexistent/token"))
            .expect_err("refused")
            .to_string();
        assert!(
            missing.contains("/nonexistent/token") && missing.contains("chmod 600"),
            "{missing}"
        );
    }

    #[test]
    fn weights_are_named_numbers() {
        assert_eq!(
            parse_weight("node2=3").expect("a weight"),
            ("node2".to_owned(), 3)
        );
        for wrong in ["node2", "=3", "node2=", "node2=0", "node2=17", "node2=1.5"] {
            let error = parse_weight(wrong).expect_err(wrong).to_string();
            assert!(error.contains("from 1 to 16"), "{error}");
        }
    }

    #[test]
    fn peers_are_named_addresses() {
        assert_eq!(
            parse_peer("node2=ws://127.0.0.1:7102").expect("a peer").0,
            "node2"
        );
        for wrong in [
            "node2",
            "=ws://a:1",
            "node2=http://a:1",
            "node2=ws://a",
            "no de=ws://a:1",
        ] {
            assert!(parse_peer(wrong).is_err(), "{wrong}");
        }
    }
}
