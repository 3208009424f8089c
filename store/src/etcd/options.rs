//! Where etcd is and who we are to it.

use std::{
    fmt, fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};

/// Most endpoints. No cluster has more members.
const ENDPOINTS_MAX: usize = 16;
/// Longest prefix, in bytes.
const PREFIX_MAX: usize = 256;
/// Largest password file and PEM file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest that making a connection may take, TLS included; and never more than a third of a call, so
/// that there is time for another member.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A server closes connections that ping more often than each 5 s.
const PING_EVERY: Duration = Duration::from_secs(6);
/// A ping that is not answered for this long breaks the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Client URLs of the members: `https://a.example:2379`. Without a scheme: https when
    /// [`Options::tls`] is given, else http.
    pub endpoints: Vec<String>,
    /// What all keys of this fleet begin with: `tanako/NAME/`.
    pub prefix: String,
    /// Certificates; needed for https endpoints.
    pub tls: Option<Tls>,
    /// User and password; `None` = none, or the name in the client certificate.
    pub user: Option<User>,
    /// Longest that any call takes.
    pub timeout: Duration,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Authority that signed the servers' certificates.
    pub ca: PathBuf,
    /// Own certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// A user of etcd. The password stays in its file and is read when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// File of mode 0600 that holds the password.
    pub password_file: PathBuf,
}

/// Why the options cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// None, or too many.
    #[error(
        "{0} etcd endpoints are given; give 1 to {ENDPOINTS_MAX}, for example https://etcd-1.example:2379"
    )]
    Count(usize),
    /// Not a URL of a member. Not shown when it might hold a password.
    #[error("the etcd endpoint {endpoint:?} {fault}; write it like https://etcd-1.example:2379")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Both http and https.
    #[error("some etcd endpoints are http and some https; use one of the two for all")]
    Mixed,
    /// Files for TLS, but no TLS.
    #[error(
        "a CA or client certificate for etcd is given, but the endpoints are http; write https://"
    )]
    TlsUnused,
    /// TLS, but no authority.
    #[error(
        "the etcd endpoints are https, but no CA is given; name the file of the CA that signed their certificates (for a public one /etc/ssl/certs/ca-certificates.crt)"
    )]
    NoCa,
    /// A certificate without its key, or the other way round.
    #[error(
        "a client certificate for etcd needs its key and the key its certificate; give both or neither"
    )]
    HalfIdentity,
    /// The password would cross the network for all to read.
    #[error(
        "a user for etcd is given, but {endpoint} is http and not on this machine: the password would cross the network unencrypted; use https"
    )]
    ClearPassword {
        /// Which.
        endpoint: String,
    },
    /// A user without a name.
    #[error("the name of the etcd user is empty; leave it out or name one")]
    NoUser,
    /// Not usable as a prefix.
    #[error(
        "the etcd prefix {0:?} must have 1 to {PREFIX_MAX} printable characters and end with /, for example tanako/prod/"
    )]
    Prefix(String),
    /// No time at all.
    #[error("calls to etcd need some time; give at least 100ms")]
    Timeout,
    /// A file cannot be read.
    #[error("{what} {path} cannot be read; check that it exists and that this user may read it")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that others may read.
    #[error("{what} {path} has mode {mode:04o}, so that others can read it; run: chmod 600 {path}")]
    Exposed {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file with nothing usable in it.
    #[error("{what} {path} {fault}")]
    Content {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The TLS library refuses what the files hold.
    #[error("TLS to etcd cannot be set up; check that the files are PEM and belong together")]
    Tls(#[source] tonic::transport::Error),
}

/// A password, never shown.
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

impl Options {
    /// The same with full URLs, or why it cannot be used. Reads no files.
    pub fn checked(mut self) -> Result<Self, OptionsError> {
        if self.endpoints.is_empty() || self.endpoints.len() > ENDPOINTS_MAX {
            return Err(OptionsError::Count(self.endpoints.len()));
        }
        for endpoint in &mut self.endpoints {
            *endpoint = full_url(endpoint, self.tls.is_some())?;
        }
        self.endpoints.dedup();
        let secure = self.endpoints.iter().filter(|url| is_https(url)).count();
        if secure != 0 && secure != self.endpoints.len() {
            return Err(OptionsError::Mixed);
        }
        if let Some(tls) = &self.tls {
            if tls.cert.is_some() != tls.key.is_some() {
                return Err(OptionsError::HalfIdentity);
            }
            if secure == 0 {
                return Err(OptionsError::TlsUnused);
            }
        } else if secure != 0 {
            return Err(OptionsError::NoCa);
        }
        if let Some(user) = &self.user {
            if user.name.is_empty() {
                return Err(OptionsError::NoUser);
            }
            if let Some(open) = self
                .endpoints
                .iter()
                .find(|url| !is_https(url) && !is_local(url))
            {
                return Err(OptionsError::ClearPassword {
                    endpoint: open.clone(),
                });
            }
        }
        let printable = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || self.prefix.len() > PREFIX_MAX || !self.prefix.ends_with('/') {
            return Err(OptionsError::Prefix(self.prefix));
        }
        if self.timeout < Duration::from_millis(100) {
            return Err(OptionsError::Timeout);
        }
        Ok(self)
    }

    /// How to connect to one endpoint. Reads the certificates anew, so that renewed ones count from
    /// the next connection on.
    pub(super) fn endpoint(&self, url: &str) -> Result<Endpoint, OptionsError> {
        let fault = |_| OptionsError::Endpoint {
            endpoint: url.to_owned(),
            fault: "cannot be understood",
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(fault)?
            .connect_timeout((self.timeout / 3).min(CONNECT_MAX))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        let Some(tls) = &self.tls else {
            return Ok(endpoint);
        };
        let ca = Certificate::from_pem(pem("the CA of etcd", &tls.ca)?);
        let mut config = ClientTlsConfig::new()
            .timeout((self.timeout / 3).min(CONNECT_MAX))
            .ca_certificate(ca);
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            private("the key for etcd", key)?;
            config = config.identity(Identity::from_pem(
                pem("the certificate for etcd", cert)?,
                pem("the key for etcd", key)?,
            ));
        }
        endpoint.tls_config(config).map_err(OptionsError::Tls)
    }

    /// The user's password, from its file.
    pub(super) fn password(user: &User) -> Result<Secret, OptionsError> {
        const WHAT: &str = "the password file for etcd";
        let path = &user.password_file;
        private(WHAT, path)?;
        let content = |fault| OptionsError::Content {
            what: WHAT,
            path: path.clone(),
            fault,
        };
        let text = String::from_utf8(read(WHAT, path)?)
            .map_err(|_| content("is not text; write the password in UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(content("is empty; write the password into it"));
        }
        Ok(Secret(password.to_owned()))
    }
}

fn full_url(endpoint: &str, tls: bool) -> Result<String, OptionsError> {
    let bad = |fault| OptionsError::Endpoint {
        endpoint: endpoint.to_owned(),
        fault,
    };
    if endpoint.contains('@') {
        return Err(OptionsError::Endpoint {
            endpoint: "…@…".to_owned(),
            fault: "holds a user or password, which would be seen in the process list",
        });
    }
    let url = if endpoint.contains("://") {
        endpoint.to_owned()
    } else if tls {
        format!("https://{endpoint}")
    } else {
        format!("http://{endpoint}")
    };
    let parsed: Uri = url.parse().map_err(|_| bad("cannot be understood"))?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err(bad("is neither http nor https"));
    }
    if parsed.host().is_none_or(str::is_empty) {
        return Err(bad("names no host"));
    }
    if parsed.port_u16().is_none() {
        return Err(bad("names no port"));
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        return Err(bad("has a path"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

fn is_local(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| {
        let host = uri.host()?;
        Some(host.trim_matches(['[', ']']).to_owned())
    });
    host.is_some_and(|host| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

fn pem(what: &'static str, path: &Path) -> Result<Vec<u8>, OptionsError> {
    let bytes = read(what, path)?;
    if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(OptionsError::Content {
            what,
            path: path.to_owned(),
            fault: "is not in PEM form; convert it with openssl",
        });
    }
    Ok(bytes)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, OptionsError> {
    let unreadable = |source| OptionsError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return Err(OptionsError::Content {
            what,
            path: path.to_owned(),
            fault: "is no plain file of at most 1 MiB",
        });
    }
    fs::read(path).map_err(unreadable)
}

fn private(what: &'static str, path: &Path) -> Result<(), OptionsError> {
    let meta = fs::metadata(path).map_err(|source| OptionsError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    })?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(OptionsError::Exposed {
            what,
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn options(endpoints: &[&str]) -> Options {
        Options {
            endpoints: endpoints.iter().map(|url| (*url).to_owned()).collect(),
            prefix: "tanako/t/".to_owned(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(5),
        }
    }

    fn tls() -> Tls {
        Tls {
            ca: "/ca".into(),
            cert: None,
            key: None,
        }
    }

    #[test]
    fn endpoints_are_completed_or_refused_with_a_way_out() {
        let good = options(&["a:2379", "http://b:2379/"])
            .checked()
            .expect("good");
        assert_eq!(good.endpoints, ["http://a:2379", "http://b:2379"]);
        let mut secure = options(&["a:2379"]);
        secure.tls = Some(tls());
        assert_eq!(
            secure.checked().expect("good").endpoints,
            ["https://a:2379"]
        );
        for (endpoints, says) in [
            (&[][..], "1 to 16"),
            (&["ftp://a:1"], "neither http nor https"),
            (&["http://a"], "no port"),
            (&["http://a:1/v3"], "has a path"),
            (&["http://a:1", "https://b:1"], "use one of the two"),
            (&["http://:1 x"], "cannot be understood"),
        ] {
            let error = options(endpoints)
                .checked()
                .expect_err("refused")
                .to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = options(&["http://root:hunter2@a:1"])
            .checked()
            .expect_err("refused");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let user = User {
            name: "tanako".to_owned(),
            password_file: "/p".into(),
        };
        let mut far = options(&["http://etcd.example:2379"]);
        far.user = Some(user.clone());
        assert!(matches!(
            far.checked(),
            Err(OptionsError::ClearPassword { .. })
        ));
        for near in [
            "http://127.0.0.1:1",
            "http://[::1]:1",
            "http://localhost:1",
            "https://e:1",
        ] {
            let mut near = options(&[near]);
            near.user = Some(user.clone());
            near.tls = near.endpoints[0].starts_with("https").then(tls);
            near.checked().expect("not read by others");
        }
        let mut unused = options(&["http://a:1"]);
        unused.tls = Some(tls());
        assert!(matches!(unused.checked(), Err(OptionsError::TlsUnused)));
        assert!(matches!(
            options(&["https://a:1"]).checked(),
            Err(OptionsError::NoCa)
        ));
        let mut half = options(&["https://a:1"]);
        half.tls = Some(Tls {
            key: Some("/k".into()),
            ..tls()
        });
        assert!(matches!(half.checked(), Err(OptionsError::HalfIdentity)));
        for prefix in ["", "tanako", "a b/"] {
            let mut odd = options(&["http://a:1"]);
            odd.prefix = prefix.to_owned();
            assert!(matches!(odd.checked(), Err(OptionsError::Prefix(_))));
        }
    }

    #[test]
    fn a_password_file_must_be_private_and_hold_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        let user = User {
            name: "u".to_owned(),
            password_file: path.clone(),
        };
        assert!(matches!(
            Options::password(&user),
            Err(OptionsError::Unreadable { .. })
        ));
        let mut file = fs::File::create(&path).expect("creates");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("sets");
        let error = Options::password(&user)
            .expect_err("others can read it")
            .to_string();
        assert!(
            error.contains("chmod 600") && error.contains("0644"),
            "{error}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
        let error = Options::password(&user).expect_err("empty").to_string();
        assert!(error.contains("is empty"), "{error}");
        file.write_all(b"hunter2\n").expect("writes");
        let secret = Options::password(&user).expect("good");
        assert_eq!(secret.0, "hunter2");
        assert!(!format!("{secret:?} {user:?}").contains("hunter2"));
    }

    #[test]
    fn certificates_must_be_pem() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = dir.path().join("ca");
        fs::write(&ca, "nothing").expect("writes");
        let mut options = options(&["https://a:1"]);
        options.tls = Some(Tls { ca, ..tls() });
        let error = options
            .endpoint("https://a:1")
            .expect_err("no PEM")
            .to_string();
        assert!(error.contains("PEM") && error.contains("/ca"), "{error}");
    }
}
