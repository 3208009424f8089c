//! The one door of every service: who calls, and whether they may.
//!
//! On the unix socket the system says who is on the other end, and whoever may open it may everything
//! that an admin may. On TCP the certificate says it; it is looked at again at each call, so that one that
//! is revoked or has ended is worth nothing from that moment on, on open connections as well. Which role
//! may make which call says [`tanako_fleet::access`] alone.
//!
//! An agent may pass a call on for somebody else, whom it names in the metadata; nobody else may.

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use prost::Message as _;
use tanako_fleet::access::{self, Role};
use tanako_pki::Peer;
use tanako_proto::{fleet::v1::Problem, identity::v1 as wire};
use tonic::{Code, Status, body::Body, metadata::MetadataMap, transport::server::UdsConnectInfo};
use tower::{Layer, Service};

use crate::{
    coordinator::Caller,
    identity::{Guards, Refusal},
    problem,
};

/// Metadata with the caller for whom an agent passes a call on.
pub const CALLER: &str = "tanako-caller-bin";
/// Longest text in it.
const TEXT_MAX: usize = 200;

/// What is known of a TLS connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end.
    pub address: SocketAddr,
    /// Whose certificate it showed.
    pub peer: Option<Arc<Peer>>,
}

/// Who may use the unix socket.
#[derive(Debug, Clone, Copy)]
pub struct Owners {
    /// The agent's user.
    pub own: u32,
    /// Whether its group may, too: the socket's mode keeps others out.
    pub group: bool,
}

impl Owners {
    /// This process's user.
    pub fn new(group: bool) -> Self {
        Self {
            own: rustix::process::geteuid().as_raw(),
            group,
        }
    }
}

/// Puts the door in front of services.
#[derive(Debug, Clone)]
pub struct Admission {
    guards: Guards,
    owners: Owners,
}

impl Admission {
    /// With what it needs to tell friend from foe.
    pub fn new(guards: Guards, owners: Owners) -> Self {
        Self { guards, owners }
    }

    /// The caller of a request, or why it is refused.
    fn admit(&self, request: &http::Request<Body>) -> Result<Caller, Denied> {
        let call = request.uri().path();
        let extensions = request.extensions();
        let (caller, peer) = if let Some(connection) = extensions.get::<Connection>() {
            self.by_certificate(connection, call)?
        } else {
            let info = extensions.get::<UdsConnectInfo>();
            (self.by_credentials(info)?, None)
        };
        let caller = match request.headers().get(CALLER) {
            Some(_) => on_behalf(&caller, peer, request)?,
            None => caller,
        };
        if !access::known(call) {
            // Nobody is told what there is, but a newer tanakoctl deserves its proper answer.
            return Ok(caller);
        }
        if !access::allowed(caller.role, call) {
            let needed = access::needed(call).map_or("another role", Role::as_str);
            return Err(Denied::new(
                &caller.who,
                &caller.from,
                format!("the role {} may not do this", caller.role),
                format!(
                    "it needs the role {needed}: ask an admin for `tanakoctl access grant NAME --role {needed}`"
                ),
            ));
        }
        Ok(caller)
    }

    fn by_certificate<'c>(
        &self,
        connection: &'c Connection,
        call: &str,
    ) -> Result<(Caller, Option<&'c Peer>), Denied> {
        let from = connection.address.ip().to_string();
        let Some(peer) = &connection.peer else {
            if access::open(call) {
                let caller = Caller {
                    who: "nobody".to_owned(),
                    from,
                    role: Role::Viewer,
                };
                return Ok((caller, None));
            }
            return Err(Denied::new(
                "nobody",
                &from,
                "there is no certificate".to_owned(),
                "add a context with the identity directory that an admin gave you: tanakoctl context add NAME --address IP:PORT --identity DIR".to_owned(),
            ));
        };
        let who = peer.to_string();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(i64::MAX, |now| now.as_secs().try_into().unwrap_or(i64::MAX));
        if peer.not_after <= now {
            return Err(Denied::new(
                &who,
                &from,
                "the certificate has ended".to_owned(),
                "ask an admin for a new one: tanakoctl access grant; an agent joins anew"
                    .to_owned(),
            ));
        }
        if self.guards.revoked.contains(&peer.serial) {
            return Err(Denied::new(
                &who,
                &from,
                "the certificate is revoked".to_owned(),
                "ask an admin of the fleet".to_owned(),
            ));
        }
        let from = connection.address.to_string();
        let role = peer.role;
        Ok((Caller { who, from, role }, Some(peer)))
    }

    fn by_credentials(&self, info: Option<&UdsConnectInfo>) -> Result<Caller, Denied> {
        let hint =
            "run tanakoctl as root or as the agent's user, or start the agent with --group-access";
        let Some(credentials) = info.and_then(|info| info.peer_cred) else {
            return Err(Denied::new(
                "nobody",
                "unix socket",
                "the system does not tell who asks".to_owned(),
                hint.to_owned(),
            ));
        };
        let uid = credentials.uid();
        let Owners { own, group } = self.owners;
        let who = user(uid);
        if uid != own && uid != 0 && !group {
            return Err(Denied::new(
                &who,
                "unix socket",
                format!("uid {uid} is neither root nor the agent's user ({own})"),
                hint.to_owned(),
            ));
        }
        let from = credentials.pid().map_or_else(
            || "unix socket".to_owned(),
            |pid| format!("unix socket, pid {pid}"),
        );
        Ok(Caller {
            who,
            from,
            role: Role::Admin,
        })
    }
}

/// The caller for whom an agent passes a call on.
fn on_behalf(
    by: &Caller,
    peer: Option<&Peer>,
    request: &http::Request<Body>,
) -> Result<Caller, Denied> {
    let deny = |cause: &str| {
        Denied::new(
            &by.who,
            &by.from,
            cause.to_owned(),
            "only agents pass calls on".to_owned(),
        )
    };
    let agent = peer
        .filter(|peer| peer.role == Role::Agent)
        .ok_or_else(|| deny("it speaks for somebody else and is no agent"))?;
    let metadata = MetadataMap::from_headers(request.headers().clone());
    let caller = metadata
        .get_bin(CALLER)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| wire::Caller::decode(bytes).ok())
        .filter(|caller| caller.who.len() <= TEXT_MAX && caller.from.len() <= TEXT_MAX)
        .and_then(|caller| Some((caller.role.parse::<Role>().ok()?, caller)))
        .ok_or_else(|| deny("the caller it speaks for cannot be read"))?;
    let (role, caller) = caller;
    Ok(Caller {
        who: caller.who,
        from: format!("{}, by way of {}", caller.from, agent.name),
        role,
    })
}

/// The metadata value that names a caller to the next agent.
pub fn passed_on(caller: &Caller) -> tonic::metadata::BinaryMetadataValue {
    let cut = |text: &str| text.chars().take(TEXT_MAX / 4).collect();
    let caller = wire::Caller {
        who: cut(&caller.who),
        from: cut(&caller.from),
        role: caller.role.to_string(),
    };
    tonic::metadata::BinaryMetadataValue::from_bytes(&caller.encode_to_vec())
}

/// A refusal: what its maker is told, and what is written down.
#[derive(Debug)]
struct Denied {
    who: String,
    from: String,
    cause: String,
    hint: String,
}

impl Denied {
    fn new(who: &str, from: &str, cause: String, hint: String) -> Self {
        Self {
            who: who.to_owned(),
            from: from.to_owned(),
            cause,
            hint,
        }
    }

    fn status(&self) -> Status {
        problem::status(
            Problem::new("denied", "agent", "this agent does not serve you")
                .cause(self.cause.clone())
                .hint(self.hint.clone()),
        )
    }

    fn refusal(self, call: &str) -> Refusal {
        let known = access::known(call);
        let call = if known { call } else { "an unknown call" };
        Refusal::new(&self.who, &self.from, call, self.cause)
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            admission: self.clone(),
            inner,
        }
    }
}

/// Services behind the door.
#[derive(Debug, Clone)]
pub struct Admitted<S> {
    admission: Admission,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let refusals = self.admission.guards.refusals.clone();
        let call = request.uri().path().to_owned();
        match self.admission.admit(&request) {
            Ok(caller) => {
                let peer = request.extensions().get::<Connection>();
                let peer = peer.and_then(|connection| connection.peer.clone());
                if let Some(peer) = peer {
                    request.extensions_mut().insert(peer);
                }
                let (who, from) = (caller.who.clone(), caller.from.clone());
                request.extensions_mut().insert(caller);
                let answering = self.inner.call(request);
                async move {
                    let response = answering.await?;
                    if let Some(cause) = unreadable(response.headers()) {
                        let denied = Denied::new(&who, &from, cause.to_owned(), String::new());
                        refusals.report(denied.refusal(&call));
                    }
                    Ok(response)
                }
                .boxed()
            }
            Err(denied) => {
                let response = denied.status().into_http();
                refusals.report(denied.refusal(&call));
                std::future::ready(Ok(response)).boxed()
            }
        }
    }
}

/// Why the message of a call did not even come to what answers it. Whatever does answer says more than
/// a bare code.
fn unreadable(headers: &http::HeaderMap) -> Option<&'static str> {
    let text = |name| headers.get(name)?.to_str().ok();
    if headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    match Code::from_bytes(text("grpc-status")?.as_bytes()) {
        Code::OutOfRange => Some("its message is too large"),
        Code::Internal | Code::DataLoss => Some("its message cannot be read"),
        _ => None,
    }
}

/// `uid 0 (root)`; the name as the local user database has it.
fn user(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&passwd, uid).map_or_else(
        || format!("uid {uid}"),
        |name| format!("uid {uid} ({name})"),
    )
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == uid && !name.is_empty()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_answered_was_unreadable() {
        let of = |status: Status| {
            let response: http::Response<Body> = status.into_http();
            unreadable(response.headers())
        };
        assert!(of(Status::out_of_range("message length too large")).is_some());
        assert!(of(Status::internal("failed to decode")).is_some());
        assert!(of(Status::unimplemented("")).is_none());
        assert!(of(Status::ok("")).is_none());
        let said = Problem::new("internal", "x", "y").into_status(Code::Internal);
        assert!(of(said).is_none());
    }

    #[test]
    fn names_come_from_the_user_database() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nbot:x:1001:1001::/:/bin/false\n";
        assert_eq!(name_of(passwd, 0), Some("root"));
        assert_eq!(name_of(passwd, 1001), Some("bot"));
        assert_eq!(name_of(passwd, 7), None);
    }
}
