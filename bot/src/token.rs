//! The bot's token: read from a file, never shown.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Longest token file that is read, in bytes. Discord's tokens have about 70.
const FILE_BYTES_MAX: u64 = 4096;

/// A secret that `Debug` does not show.
#[derive(Clone)]
pub struct Token(String);

/// Why a token file cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nothing is at the path, or it cannot be opened.
    #[error("cannot read the token file {path}: {reason}\n  hint: {hint}")]
    Unreadable {
        /// Where the token was looked for.
        path: String,
        /// What the system said.
        reason: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Others than the owner may read it.
    #[error(
        "the token file {path} can be read by other users (mode {mode:04o})\n  hint: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds nothing but white space.
    #[error("the token file {path} is empty\n  hint: write the token into it, alone on one line")]
    Empty {
        /// The file.
        path: String,
    },
    /// It holds something that cannot be a token.
    #[error(
        "the token file {path} does not hold a token: {what}\n  hint: it must hold the token alone, on one line"
    )]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Token {
    /// Takes a token as it is, without the `Bot ` prefix.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Reads a token file that only its owner may read.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let shown = path.display().to_string();
        let unreadable = |reason: std::io::Error| {
            let hint = match reason.kind() {
                std::io::ErrorKind::NotFound => {
                    "create it with mode 0600, or name another with --token-file"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "it must belong to the user that runs the bot"
                }
                _ => "it must be a regular file",
            };
            TokenError::Unreadable {
                path: shown.clone(),
                reason,
                hint,
            }
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
        }
        // The group may read: that is how some secret stores hand files to a service.
        if metadata.is_file() && metadata.mode() & 0o007 != 0 {
            return Err(TokenError::Exposed {
                path: shown,
                mode: metadata.mode() & 0o7777,
            });
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
        let malformed = |what| TokenError::Malformed {
            path: shown.clone(),
            what,
        };
        match read {
            Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
                return Err(malformed("it is longer than 4 KiB"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(malformed("it is not text"));
            }
            Err(error) => return Err(unreadable(error)),
        }
        let secret = text.trim().trim_start_matches("Bot ").trim();
        if secret.is_empty() {
            return Err(TokenError::Empty { path: shown });
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("it holds white space or non-ASCII characters"));
        }
        Ok(Self::new(secret))
    }

    /// The secret itself. Only for headers and IDENTIFY.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What a session deposit is tied to.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn reads_a_token_and_forgets_the_prefix() {
        let (_keep, path) = file(b"Bot abc.def.ghi\n", 0o600);
        assert_eq!(Token::read(&path).unwrap().expose(), "abc.def.ghi");
    }

    #[test]
    fn refuses_with_a_hint() {
        for (content, mode, expected) in [
            (&b"x.y.z"[..], 0o644, "chmod 600"),
            (b" \n", 0o600, "is empty"),
            (b"two words", 0o600, "white space"),
            (b"\xff\xfe", 0o600, "not text"),
            (&[b'a'; 5000], 0o600, "longer than"),
        ] {
            let (_keep, path) = file(content, mode);
            let message = Token::read(&path).unwrap_err().to_string();
            assert!(
                message.contains(expected) && message.contains("hint"),
                "{message}"
            );
        }
        let missing = Token::read(Path::new("/nonexistent/token"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("--token-file"), "{missing}");
    }

    #[test]
    fn never_shows_the_secret() {
        let shown = format!("{:?}", Token::new("hunter2"));
        assert!(!shown.contains("hunter2"));
    }
}
