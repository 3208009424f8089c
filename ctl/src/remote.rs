//! The way to a fleet of hosts: TLS with the user's own certificate, to any agent that answers.
//!
//! One address is enough. Which other agents there are is asked now and then and remembered in
//! `$XDG_STATE_HOME/tanako/agents-FLEET.json`; when the first does not answer, the next is tried a moment
//! later, beside it, and the first to answer is used. Nothing in that file is believed: whoever answers
//! must show an agent's certificate of the fleet.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper_util::rt::TokioIo;
use tanako_pki::{Identity, tls};
use tanako_proto::{
    fleet::v1::Problem,
    identity::v1::{MembersRequest, identity_client::IdentityClient},
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{
    client::chain,
    context::{base, write_atomically},
};

/// The next address is tried after so long.
const STAGGER: Duration = Duration::from_millis(400);
/// Longest that one may take, TLS included.
const ONE_WITHIN: Duration = Duration::from_secs(5);
/// Most that are tried.
const ADDRESSES_MAX: usize = 16;
/// What is remembered of the agents is asked again after so long.
const LEARN_EVERY: Duration = Duration::from_secs(600);
/// Longest that this may take: the user waits for something else.
const LEARN_WITHIN: Duration = Duration::from_secs(1);

/// How a fleet is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Agents to begin with.
    pub addresses: Vec<SocketAddr>,
    /// Directory with the user's certificate and key.
    pub identity: PathBuf,
}

impl Remote {
    /// For messages: `10.0.0.1:7400, 10.0.0.2:7400`.
    pub fn label(&self) -> String {
        list(&self.addresses)
    }

    /// Who the user is to the fleet.
    #[expect(
        clippy::result_large_err,
        reason = "the same error as every call's; it is made once a run"
    )]
    pub fn identity(&self) -> Result<Identity, Problem> {
        let object = self.identity.display().to_string();
        let identity = Identity::load(&self.identity).map_err(|error| {
            Problem::new("denied", &object, "your identity cannot be used")
                .cause(chain(&error))
                .hint("an admin makes one: tanakoctl access grant NAME --role ROLE --out DIR")
        })?;
        if identity.ends_at() <= SystemTime::now() {
            return Err(
                Problem::new("denied", &object, "your certificate has ended").hint(
                    "ask an admin for a new one: tanakoctl access grant NAME --role ROLE --out DIR",
                ),
            );
        }
        Ok(identity)
    }

    /// Connects to the first agent that answers.
    pub async fn connect(&self, settings: Endpoint, within: Duration) -> Result<Channel, Problem> {
        let identity = self.identity()?;
        let fleet = identity.peer().fleet.clone();
        let memory = Memory::of(&fleet);
        let mut addresses = self.addresses.clone();
        let learned = memory.as_ref().map(Memory::read).unwrap_or_default();
        addresses.extend(
            learned
                .iter()
                .filter(|known| !self.addresses.contains(known)),
        );
        addresses.truncate(ADDRESSES_MAX);
        let config = tls::client(&identity, None).map_err(|error| {
            Problem::new(
                "denied",
                self.identity.display().to_string(),
                "your identity cannot be used",
            )
            .cause(chain(&error))
            .hint("an admin makes one: tanakoctl access grant NAME --role ROLE --out DIR")
        })?;
        let racing = tokio::time::timeout(within, race(&addresses, &settings, &config)).await;
        let channel = match racing {
            Ok(Ok(channel)) => channel,
            Ok(Err(failures)) => return Err(nobody(&addresses, &failures.join("\n"))),
            Err(_) => {
                let why = format!("no answer within {} s", within.as_secs_f64());
                return Err(nobody(&addresses, &why));
            }
        };
        if let Some(memory) = memory.filter(Memory::is_old) {
            memory.renew(channel.clone()).await;
        }
        Ok(channel)
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn nobody(addresses: &[SocketAddr], cause: &str) -> Problem {
    Problem::new(
        "unreachable",
        list(addresses),
        "no agent of the fleet answers",
    )
    .cause(cause)
    .hint("check the network and the agents (systemctl status tanako-agent on a host); another address: tanakoctl context add NAME --address IP:PORT --identity DIR")
    .retryable()
}

/// The first connection that comes about, or why none did.
async fn race(
    addresses: &[SocketAddr],
    settings: &Endpoint,
    config: &Arc<tls::rustls::ClientConfig>,
) -> Result<Channel, Vec<String>> {
    let mut waiting = addresses.iter().copied();
    let mut under_way = FuturesUnordered::new();
    let mut failures = Vec::new();
    under_way.extend(waiting.next().map(|first| one(first, settings, config)));
    loop {
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            ended = under_way.next() => match ended {
                Some(Ok(channel)) => return Ok(channel),
                Some(Err(failure)) => {
                    failures.push(failure);
                    under_way.extend(waiting.next().map(|next| one(next, settings, config)));
                }
                None => return Err(failures),
            },
            () = tokio::time::sleep(STAGGER), if more => {
                under_way.extend(waiting.next().map(|next| one(next, settings, config)));
            }
        }
    }
}

async fn one(
    address: SocketAddr,
    settings: &Endpoint,
    config: &Arc<tls::rustls::ClientConfig>,
) -> Result<Channel, String> {
    let config = config.clone();
    let connector = service_fn(move |_| {
        let config = config.clone();
        async move {
            let stream = tls::connect(address, config, ONE_WITHIN).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let connecting = settings.connect_with_connector(connector);
    match tokio::time::timeout(ONE_WITHIN, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(format!("{address}: {}", chain(&error))),
        Err(_) => Err(format!("{address}: no answer in time")),
    }
}

/// What is remembered of a fleet's agents.
struct Memory(PathBuf);

impl Memory {
    fn of(fleet: &str) -> Option<Self> {
        let base = base("XDG_STATE_HOME", ".local/state").ok()?;
        Some(Self(
            base.join("tanako").join(format!("agents-{fleet}.json")),
        ))
    }

    fn read(&self) -> Vec<SocketAddr> {
        let text = fs::read(&self.0).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn is_old(&self) -> bool {
        let age = fs::metadata(&self.0)
            .and_then(|meta| meta.modified())
            .map(|at| at.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age > LEARN_EVERY) || !self.0.exists()
    }

    /// Best effort: what the user asked for does not fail because of it.
    async fn renew(&self, channel: Channel) {
        let mut client = IdentityClient::new(channel);
        let members = tokio::time::timeout(LEARN_WITHIN, client.get_members(MembersRequest {}));
        let Ok(Ok(members)) = members.await else {
            return;
        };
        let mut members = members.into_inner().members;
        members.sort_by_key(|member| !member.present);
        let addresses: Vec<SocketAddr> = members
            .iter()
            .filter_map(|member| member.address.parse().ok())
            .take(ADDRESSES_MAX)
            .collect();
        let directory = self.0.parent().unwrap_or(Path::new("."));
        let text = serde_json::to_vec(&addresses).unwrap_or_default();
        let written = fs::create_dir_all(directory).is_ok()
            && write_atomically(&self.0, &text, 0o600).is_ok();
        tracing::debug!(written, "the fleet's agents are remembered");
    }
}

/// What the other end's TLS said no to, for people; `None` when it was something else.
pub fn refusal(text: &str) -> Option<(&'static str, &'static str)> {
    const GRANT: &str =
        "ask an admin for a new identity: tanakoctl access grant NAME --role ROLE --out DIR";
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let has = |words: &str| alert.starts_with(words);
    Some(if has("CertificateExpired") {
        ("your certificate has ended", GRANT)
    } else if has("UnknownCA") || has("UnknownCa") || has("DecryptError") {
        ("your certificate is not of this fleet", GRANT)
    } else {
        ("the agent does not accept your certificate", GRANT)
    })
}

#[cfg(test)]
mod tests {
    use tanako_pki::{Authority, Role, Subject};

    use super::*;

    #[tokio::test]
    async fn every_address_that_was_asked_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::create("f").expect("made");
        let day = Duration::from_secs(24 * 3600);
        let subject = Subject::user("anna", Role::Viewer);
        authority
            .issue_to(directory.path(), &subject, day)
            .expect("issued");
        let mut addresses = Vec::new();
        for _ in 0..3 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
            addresses.push(listener.local_addr().expect("bound"));
        }
        let identity = Identity::load(directory.path()).expect("loads");
        let config = tls::client(&identity, None).expect("configured");
        let settings = Endpoint::from_static("http://agent.tanako");
        let failures = race(&addresses, &settings, &config)
            .await
            .expect_err("nobody");
        let problem = nobody(&addresses, &failures.join("\n"));
        for address in &addresses {
            assert!(problem.object.contains(&address.to_string()), "{problem:?}");
            assert!(problem.cause.contains(&address.to_string()), "{problem:?}");
        }
        assert!(problem.retryable && problem.hint.contains("--address"));
    }

    #[test]
    fn an_identity_that_is_missing_or_over_says_how_to_get_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let remote = Remote {
            addresses: Vec::new(),
            identity: directory.path().join("none"),
        };
        let problem = remote.identity().expect_err("missing");
        assert_eq!(problem.code, "denied");
        assert!(problem.hint.contains("access grant"), "{problem:?}");
        let authority = Authority::create("f").expect("made");
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let ended = authority
            .identity_between(
                &Subject::user("anna", Role::Viewer),
                now - 2 * day,
                now - day,
            )
            .expect("made");
        ended.save(&remote.identity).expect("saved");
        let problem = remote.identity().expect_err("over");
        assert!(problem.message.contains("has ended"), "{problem:?}");
    }

    #[test]
    fn alerts_are_put_into_words() {
        let (message, _) = refusal("io error: received fatal alert: UnknownCA").expect("an alert");
        assert!(message.contains("not of this fleet"));
        assert!(refusal("connection refused").is_none());
    }
}
