//! The way to an agent: where it listens, how long a call may take, and what a failed call means.
//!
//! [`Endpoint`] is cheap to clone and connects on demand. [`Fleet`] reads; whoever wants to change
//! something needs a [`Writer`], and an endpoint that is read-only never hands one out, so that
//! `--readonly` holds by construction and not by a check in each verb.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tanako_proto::fleet::v1::{
    Advice, AdviseRequest, ApplyRequest, AuditList, AuditRequest, BackupList, BroadcastRequest,
    ControlRequest, DoctorReport, DoctorRequest, Event, EventsRequest, FleetStatus, FleetUpdate,
    GuildLocation, GuildRequest, HistoryReply, HistoryRequest, IdentifyStatus,
    IdentifyStatusRequest, ListBackupsRequest, ListOperationsRequest, LogLine, LogsRequest,
    MigrateStoreReply, MigrateStoreRequest, Operation, OperationId, OperationList,
    OperationRequest, PlanReply, PlanRequest, Problem, SpecDocument, SpecRequest, StatusRequest,
    UpgradeReply, UpgradeRequest, WatchRequest, fleet_client::FleetClient,
};
use tanako_proto::identity::v1::{
    GrantRequest, Identities, Issued, ListRequest, Members, MembersRequest, RevokeRequest, Revoked,
    Token, TokenRequest, identity_client::IdentityClient,
};
use tanako_proto::worker::v1::BroadcastReply;
use tokio::net::UnixStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tower::service_fn;

use crate::remote::{self, Remote};

/// How long one call may take unless `--request-timeout` says else.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent may copy its state.
const MIGRATE_WITHIN: Duration = Duration::from_mins(2);

/// How long the socket itself may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent agent is noticed on an idle stream after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The largest answer taken: the status of about 20,000 processes with all their event counters.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The socket of an agent that runs as a system service.
pub const SYSTEM_SOCKET: &str = "/run/tanako/agent.sock";

/// How an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Over its unix socket.
    Socket(PathBuf),
    /// Over the network, to any agent of a fleet.
    Fleet(Remote),
}

impl Way {
    /// The socket, if that is the way.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Fleet(_) => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.display().fmt(f),
            Self::Fleet(remote) => f.write_str(&remote.label()),
        }
    }
}

/// Where an agent listens and how to talk to it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    way: Way,
    request_timeout: Duration,
    readonly: bool,
}

impl Endpoint {
    /// The agent behind the unix socket `socket`.
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self::new(Way::Socket(socket.into()))
    }

    /// An agent, however it is reached.
    pub fn new(way: Way) -> Self {
        Self {
            way,
            request_timeout: REQUEST_TIMEOUT,
            readonly: false,
        }
    }

    /// With another deadline for each call.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Hands out no [`Writer`] when `readonly`.
    pub fn readonly(mut self, readonly: bool) -> Self {
        self.readonly = readonly;
        self
    }

    /// Whether nothing may be changed through it.
    pub fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// The deadline of each call.
    pub fn deadline(&self) -> Duration {
        self.request_timeout
    }

    /// How it is reached.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Connects. The error names whom it asked and says how to get an agent there.
    pub async fn connect(&self) -> Result<Channel, Problem> {
        // The URI is only a label: the connector knows the way.
        let settings = tonic::transport::Endpoint::from_static("http://agent.tanako")
            .user_agent(concat!("tanakoctl/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| self.unreachable(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let socket = match &self.way {
            Way::Fleet(remote) => return remote.connect(settings, self.request_timeout).await,
            Way::Socket(socket) => socket.clone(),
        };
        settings
            .connect_with_connector(service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// Connects, for calls with this endpoint's deadline.
    pub async fn open(&self) -> Result<Fleet, Problem> {
        let channel = self.connect().await?;
        Ok(Fleet {
            client: FleetClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            identities: IdentityClient::new(channel),
            endpoint: self.clone(),
        })
    }

    /// What a failed call to this endpoint means to the user.
    pub fn problem(&self, status: &Status) -> Problem {
        let mut problem = Problem::from_status(status);
        let bare = status.details().is_empty();
        if bare && let Some((message, hint)) = remote::refusal(&chain(status)) {
            problem = Problem::new("denied", self.object(), message).hint(hint);
        } else if bare && is_foreign(status) {
            problem = Problem::new(
                "protocol",
                self.object(),
                "what answers there is not a tanako-agent",
            )
            .cause(chain(status))
            .hint("check --socket and the context's socket (tanakoctl context show)");
        } else if bare
            && (problem.code == "unreachable" || io_error(status).is_some() || is_cut(status))
        {
            // Also one that ended in the middle of the call.
            problem = self.unreachable(status);
        } else if bare && problem.code == "unsupported" {
            problem.message = "the agent does not know this request".into();
            problem.hint = "it is older than this tanakoctl: install the same version on the host, then tanakoctl agent upgrade".into();
        }
        if problem.object.is_empty() {
            problem.object = self.object();
        }
        if bare && problem.cause.is_empty() && chain(status) != problem.message {
            problem.cause = chain(status);
        }
        problem
    }

    pub(crate) fn timeout(&self, what: &str) -> Problem {
        Problem::new(
            "timeout",
            self.object(),
            format!(
                "no answer to {what} within {}",
                Seconds(self.request_timeout)
            ),
        )
        .hint("the agent may be overloaded: try again, or wait longer with --request-timeout")
        .retryable()
    }

    fn unreachable(&self, error: &(dyn Error + 'static)) -> Problem {
        if let Way::Fleet(_) = &self.way {
            return Problem::new(
                "unreachable",
                self.object(),
                "the agent does not answer any more",
            )
            .cause(chain(error))
            .hint("try again: the next agent of the fleet is asked then")
            .retryable();
        }
        let io = io_error(error);
        let object = self.object();
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::PermissionDenied) => Problem::new(
                "denied",
                object,
                "this user may not open the agent's socket",
            )
            .cause(chain(error))
            .hint("run it as a member of the group that owns the socket (usually tanako), or with sudo"),
            Some(io::ErrorKind::NotFound) => {
                Problem::new("unreachable", object, "no agent runs there: the socket does not exist")
                    .hint(START_HINT)
                    .retryable()
            }
            Some(io::ErrorKind::ConnectionRefused) => Problem::new(
                "unreachable",
                object,
                "no agent runs there: nobody listens on the socket",
            )
            .hint(START_HINT)
            .retryable(),
            _ => Problem::new("unreachable", object, "the agent cannot be reached")
                .cause(chain(error))
                .hint(START_HINT)
                .retryable(),
        }
    }

    fn object(&self) -> String {
        self.way.to_string()
    }
}

const START_HINT: &str = "start it with `systemctl start tanako-agent`, or try the demo with `tanakoctl demo up`; another agent is chosen with --context or --socket";

/// A connected fleet that can be asked, each call with its deadline.
#[derive(Debug, Clone)]
pub struct Fleet {
    client: FleetClient<Channel>,
    identities: IdentityClient<Channel>,
    endpoint: Endpoint,
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident($label:literal, $request:ty) -> $reply:ty;)*) => {
        impl Fleet {
            $($(#[$doc])*
            pub async fn $name(&mut self, request: $request) -> Result<$reply, Problem> {
                let endpoint = &self.endpoint;
                bounded(endpoint, $label, self.client.$name(request)).await
            })*
        }
    };
}

reads! {
    /// The fleet as it is.
    get_status("status", StatusRequest) -> FleetStatus;
    /// The fleet as it is, and what changes.
    watch("watch", WatchRequest) -> Streaming<FleetUpdate>;
    /// The desired state.
    get_spec("the spec", SpecRequest) -> SpecDocument;
    /// What a change would do and cost.
    plan("plan", PlanRequest) -> PlanReply;
    /// One operation.
    get_operation("the operation", OperationId) -> Operation;
    /// The operations that are remembered.
    list_operations("operations", ListOperationsRequest) -> OperationList;
    /// One operation until it has ended.
    watch_operation("the operation", OperationId) -> Streaming<Operation>;
    /// Output of processes.
    logs("logs", LogsRequest) -> Streaming<LogLine>;
    /// What happened.
    events("events", EventsRequest) -> Streaming<Event>;
    /// Samples of the past.
    history("history", HistoryRequest) -> HistoryReply;
    /// Where a guild is served.
    locate_guild("the guild", GuildRequest) -> GuildLocation;
    /// The IDENTIFY budget.
    get_identify("identify", IdentifyStatusRequest) -> IdentifyStatus;
    /// The backups.
    list_backups("backups", ListBackupsRequest) -> BackupList;
    /// Who changed what.
    audit("audit", AuditRequest) -> AuditList;
    /// What the agent finds wrong.
    doctor("doctor", DoctorRequest) -> DoctorReport;
    /// What the fleet should have.
    advise("advise", AdviseRequest) -> Advice;
}

impl Fleet {
    /// What every shard says to a question. Takes as long as the question says, and the usual time besides.
    pub async fn broadcast(
        &mut self,
        request: BroadcastRequest,
    ) -> Result<BroadcastReply, Problem> {
        let asked = Duration::from_millis(request.timeout_ms.into());
        let endpoint = Endpoint {
            request_timeout: self.endpoint.request_timeout + asked,
            ..self.endpoint.clone()
        };
        bounded(&endpoint, "the answers", self.client.broadcast(request)).await
    }

    /// The agents of the fleet.
    pub async fn members(&mut self) -> Result<Members, Problem> {
        let call = self.identities.get_members(MembersRequest {});
        bounded(&self.endpoint, "the members", call).await
    }

    /// Who was given a certificate.
    pub async fn identities(&mut self) -> Result<Identities, Problem> {
        let call = self.identities.list(ListRequest {});
        bounded(&self.endpoint, "the identities", call).await
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The right to change something; refused when the endpoint is read-only.
    #[expect(
        clippy::result_large_err,
        reason = "the same error as every call's; it is made once a run"
    )]
    pub fn writer(&self) -> Result<Writer, Problem> {
        if self.endpoint.readonly {
            return Err(readonly());
        }
        Ok(Writer {
            client: self.client.clone(),
            identities: self.identities.clone(),
            endpoint: self.endpoint.clone(),
        })
    }
}

/// Why a change is refused under `--readonly`.
pub fn readonly() -> Problem {
    Problem::new("readonly", "", "nothing may be changed: --readonly is set")
        .hint("leave out --readonly (TANAKO_READONLY) to change something")
}

/// A connected fleet that can be changed.
#[derive(Debug, Clone)]
pub struct Writer {
    client: FleetClient<Channel>,
    identities: IdentityClient<Channel>,
    endpoint: Endpoint,
}

impl Writer {
    /// Makes a spec the desired state.
    pub async fn apply(&mut self, request: ApplyRequest) -> Result<Operation, Problem> {
        bounded(&self.endpoint, "apply", self.client.apply(request)).await
    }

    /// Starts an operation.
    pub async fn submit(&mut self, request: OperationRequest) -> Result<Operation, Problem> {
        bounded(&self.endpoint, "the operation", self.client.submit(request)).await
    }

    /// Pauses, resumes or aborts an operation.
    pub async fn control(&mut self, request: ControlRequest) -> Result<Operation, Problem> {
        let call = self.client.control_operation(request);
        bounded(&self.endpoint, "the operation", call).await
    }

    /// Moves the control state to etcd, or looks whether it could be done. The agent takes a minute at most.
    pub async fn migrate_store(
        &mut self,
        request: MigrateStoreRequest,
    ) -> Result<MigrateStoreReply, Problem> {
        let endpoint = Endpoint {
            request_timeout: self.endpoint.request_timeout + MIGRATE_WITHIN,
            ..self.endpoint.clone()
        };
        bounded(&endpoint, "the move", self.client.migrate_store(request)).await
    }

    /// Makes a token with which a host can join.
    pub async fn create_token(&mut self, request: TokenRequest) -> Result<Token, Problem> {
        let call = self.identities.create_token(request);
        bounded(&self.endpoint, "the token", call).await
    }

    /// Has a certificate issued.
    pub async fn grant(&mut self, request: GrantRequest) -> Result<Issued, Problem> {
        bounded(
            &self.endpoint,
            "the certificate",
            self.identities.grant(request),
        )
        .await
    }

    /// Makes certificates worthless.
    pub async fn revoke(&mut self, request: RevokeRequest) -> Result<Revoked, Problem> {
        bounded(
            &self.endpoint,
            "the revocation",
            self.identities.revoke(request),
        )
        .await
    }

    /// Replaces the running agent by the binary on disk.
    pub async fn upgrade(&mut self) -> Result<UpgradeReply, Problem> {
        let call = self.client.upgrade(Request::new(UpgradeRequest {}));
        bounded(&self.endpoint, "upgrade", call).await
    }
}

async fn bounded<T>(
    endpoint: &Endpoint,
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(endpoint.request_timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(endpoint.problem(&status)),
        Err(_) => Err(endpoint.timeout(what)),
    }
}

/// Whether the failure came from something that speaks no gRPC.
fn is_foreign(status: &Status) -> bool {
    if is_cut(status) {
        return false;
    }
    // What an agent sends has no source here, and a lost connection is `Unavailable` or an IO error.
    let local = status.source().is_some() && io_error(status).is_none();
    let text = chain(status);
    (local && status.code() != Code::Unavailable)
        // h2 and tonic have no public types for these; their words are stable.
        || text.contains("http2 error")
        || text.contains("protocol error")
        || text.contains("grpc-status header missing")
}

/// Whether the agent ended in the middle of an answer. h2 calls that a protocol error and keeps the IO
/// error behind it to itself; its words are stable.
fn is_cut(status: &Status) -> bool {
    chain(status).contains("stream closed because of a broken pipe")
}

/// The error and its sources, `: ` between, repetitions left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        // A status shows its metadata as well, which says nothing to a user.
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

fn io_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_socket_is_a_denial_and_names_the_way_in() {
        let endpoint = Endpoint::unix("/run/x.sock");
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        let problem = endpoint.unreachable(&error);
        assert_eq!(problem.code, "denied");
        assert_eq!(problem.object, "/run/x.sock");
        assert!(problem.hint.contains("group"), "{}", problem.hint);
        assert!(!problem.retryable);
    }

    #[tokio::test]
    async fn a_missing_socket_is_unreachable_and_says_how_to_start_an_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let endpoint = Endpoint::unix(directory.path().join("agent.sock"));
        let problem = endpoint.connect().await.expect_err("nobody is there");
        assert_eq!(
            (problem.code.as_str(), problem.retryable),
            ("unreachable", true)
        );
        assert!(problem.hint.contains("demo up"));
        assert!(problem.object.ends_with("agent.sock"));
    }

    #[test]
    fn an_agent_that_dies_while_it_answers_is_unreachable_and_no_stranger() {
        let words = "h2 protocol error: error reading a body from connection: stream closed because of a broken pipe";
        assert!(!is_foreign(&Status::internal(words)));
        assert!(is_cut(&Status::internal(words)));
        assert!(is_foreign(&Status::internal(
            "h2 protocol error: http2 error"
        )));
    }
}
