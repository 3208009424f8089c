//! The bot's token.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::snowflake;

/// The token that holds when no token file is given. It opens nothing but this simulation.
pub const DEVELOPMENT_TOKEN: &str = concat!(
    "MTEwMDAwMDAwMDAwMDAwMDAwMA",
    ".",
    "Gs1mCo",
    ".",
    "development-token-of-simcord-only-here"
);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file is there but cannot be read.
    #[error("cannot read the token file {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file is not there and cannot be made.
    #[error("cannot create the token file {0}")]
    Create(PathBuf, #[source] io::Error),
    /// The file does not hold a bot token.
    #[error(
        "the token file {0} does not hold a bot token (three parts with dots, the first one the application id in base64); delete it to have a new one made"
    )]
    Malformed(PathBuf),
}

/// The token that holds at present, and where it is kept.
pub(crate) struct Token {
    /// None after it was reset.
    current: Option<String>,
    application_id: u64,
    file: Option<PathBuf>,
}

/// The token does not show.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("application_id", &self.application_id)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Reads the token, or makes a file with a new one when it does not exist.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, TokenError> {
        let Some(path) = file else {
            let application_id =
                application_id(DEVELOPMENT_TOKEN).expect("invariant: the token is well formed");
            return Ok(Self {
                current: Some(DEVELOPMENT_TOKEN.to_owned()),
                application_id,
                file: None,
            });
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = random(snowflake::now());
                let made = made.and_then(|token| write(path, &token).map(|()| token));
                made.map_err(|error| TokenError::Create(path.to_owned(), error))?
            }
            Err(error) => return Err(TokenError::Read(path.to_owned(), error)),
        };
        let token = text.trim();
        let application_id =
            application_id(token).ok_or_else(|| TokenError::Malformed(path.to_owned()))?;
        Ok(Self {
            current: Some(token.to_owned()),
            application_id,
            file: Some(path.to_owned()),
        })
    }

    pub(crate) fn application_id(&self) -> u64 {
        self.application_id
    }

    /// Whether this is the token. Clients may put `Bot ` before it.
    pub(crate) fn is(&self, given: &str) -> bool {
        let given = given.strip_prefix("Bot ").unwrap_or(given);
        self.current.as_deref() == Some(given)
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.current.is_some()
    }

    /// From now on no token is right.
    pub(crate) fn revoke(&mut self) {
        self.current = None;
    }

    /// Issues a new token as the developer portal would, into the token file. Without a file the development
    /// token holds again.
    pub(crate) fn reissue(&mut self) -> io::Result<()> {
        self.current = Some(match &self.file {
            None => DEVELOPMENT_TOKEN.to_owned(),
            Some(path) => {
                let token = random(self.application_id)?;
                let fresh = path.with_extension("new");
                // Left over from a crash, perhaps.
                match std::fs::remove_file(&fresh) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                write(&fresh, &token)?;
                std::fs::rename(&fresh, path)?;
                token
            }
        });
        Ok(())
    }
}

/// The application id in the first part of a token.
fn application_id(token: &str) -> Option<u64> {
    let mut parts = token.split('.');
    let (first, second, third) = (parts.next()?, parts.next()?, parts.next()?);
    if second.is_empty()
        || third.is_empty()
        || parts.next().is_some()
        || token.contains(char::is_whitespace)
    {
        return None;
    }
    let digits = STANDARD_NO_PAD.decode(first.trim_end_matches('=')).ok()?;
    std::str::from_utf8(&digits)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id > 0)
}

fn random(application_id: u64) -> io::Result<String> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let first = STANDARD_NO_PAD.encode(application_id.to_string());
    let rest = URL_SAFE_NO_PAD.encode(bytes);
    let (stamp, secret) = rest.split_at(6);
    Ok(format!("{first}.{stamp}.{secret}"))
}

fn write(path: &Path, token: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(token.as_bytes())?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_missing_file_is_made_private_and_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let made = Token::load(Some(&path)).expect("made");
        let mode = std::fs::metadata(&path)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).expect("a token");
        let read = Token::load(Some(&path)).expect("read");
        assert_eq!(made.application_id(), read.application_id());
        assert!(read.is(text.trim()) && read.is(&format!("Bot {}", text.trim())));
        assert!(!format!("{read:?}").contains(text.trim()));
    }

    #[test]
    fn a_new_token_is_for_the_same_application() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let mut token = Token::load(Some(&path)).expect("made");
        let old = std::fs::read_to_string(&path).expect("a token");
        token.revoke();
        assert!(!token.is(old.trim()) && !token.is(""));
        token.reissue().expect("issued");
        assert!(!token.is(old.trim()));
        assert!(token.is(std::fs::read_to_string(&path).expect("a token").trim()));
        assert_eq!(
            Token::load(Some(&path)).expect("read").application_id(),
            token.application_id()
        );
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        for bad in [
            "",
            "abc",
            "a.b.c",
            "MTIz..x",
            "MTIz.x.y.z",
            "MA.x.y",
            "MTIz.x y.z",
        ] {
            std::fs::write(&path, bad).expect("written");
            assert!(
                matches!(Token::load(Some(&path)), Err(TokenError::Malformed(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            Token::load(Some(dir.path())),
            Err(TokenError::Read(..))
        ));
    }

    #[test]
    fn the_development_token_is_well_formed() {
        assert_eq!(
            application_id(DEVELOPMENT_TOKEN),
            Some(1_100_000_000_000_000_000)
        );
    }
}
