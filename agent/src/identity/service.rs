//! The calls of the identity service. Those that need the authority's key and carry their own proof go
//! on to an agent that has it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tanako_pki::{Issued, Renewal};
use tanako_proto::{
    fleet::v1::Problem,
    identity::v1::{
        self as wire, identity_client::IdentityClient, identity_server::Identity as Calls,
    },
};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, metadata::MetadataValue, transport::Channel};

use super::{
    Credentials, Refusal, Refusals,
    registrar::{Registrar, RegistrarError},
};
use crate::{coordinator::Caller, peers::Peers, problem, registry::Hosts};

/// Largest request.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Calls without a certificate that are worked on at once.
const OPEN_CALLS_MAX: usize = 8;
/// Agents that are asked in turn.
const ISSUERS_MAX: usize = 3;
/// How long one of them may take.
const ISSUER_WITHIN: Duration = Duration::from_secs(5);
/// Says that a call has been passed on once.
const HOP: &str = "tanako-hop";

type Reply<T> = Result<Response<T>, Status>;

/// The identity service.
#[derive(Clone)]
pub struct Service {
    registrar: Registrar,
    credentials: Credentials,
    peers: Peers,
    hosts: watch::Receiver<Arc<Hosts>>,
    refusals: Refusals,
    open: Arc<Semaphore>,
}

impl Service {
    /// Over the registrar; `peers` leads to those who have the authority's key.
    pub fn new(
        registrar: Registrar,
        credentials: Credentials,
        peers: Peers,
        hosts: watch::Receiver<Arc<Hosts>>,
        refusals: Refusals,
    ) -> Self {
        Self {
            registrar,
            credentials,
            peers,
            hosts,
            refusals,
            open: Arc::new(Semaphore::new(OPEN_CALLS_MAX)),
        }
    }

    /// Renews by itself or asks those who can.
    pub async fn renew_own(&self, renewal: &Renewal) -> Result<wire::Issued, Problem> {
        if self.registrar.is_issuer() {
            let issued = self.registrar.renew(renewal).await;
            return issued
                .map(|issued| self.reply(&issued))
                .map_err(|error| error.problem("identity"));
        }
        let request = wire::RenewRequest {
            csr: renewal.request.clone().into(),
            certificate: renewal.certificate.clone().into(),
            signature: renewal.signature.clone().into(),
        };
        self.at_issuer(PassedOn::Renew(request))
            .await
            .map_err(|status| Problem::from_status(&status))
    }

    fn issuers(&self) -> Vec<String> {
        let own = &self.credentials.current().identity.peer().name.clone();
        let hosts = self.hosts.borrow();
        let issuers = hosts
            .iter()
            .filter(|(name, known)| known.record.issuer && *name != own);
        let (here, gone): (Vec<_>, Vec<_>) =
            issuers.partition(|(_, known)| known.present.is_some());
        let names = here.into_iter().chain(gone).map(|(name, _)| name.clone());
        names.take(ISSUERS_MAX).collect()
    }

    /// Asks issuers in turn, until one answers.
    async fn at_issuer(&self, call: PassedOn) -> Result<wire::Issued, Status> {
        let mut last = problem::status(
            Problem::new(
                "not-issuer",
                "identity",
                "no agent of the fleet that holds the authority's key is known",
            )
            .hint("start the agent of the host on which `tanakoctl init` made the authority")
            .retryable(),
        );
        for host in self.issuers() {
            let channel = match self.peers.channel(&host).await {
                Ok(channel) => channel,
                Err(error) => {
                    last = problem::status(
                        Problem::new("unreachable", format!("host:{host}"), error.to_string())
                            .hint("try again when that agent runs")
                            .retryable(),
                    );
                    continue;
                }
            };
            match tokio::time::timeout(ISSUER_WITHIN, call.clone().to(channel)).await {
                Ok(Ok(issued)) => return Ok(issued),
                // It has decided.
                Ok(Err(status)) if !Problem::from_status(&status).retryable => return Err(status),
                Ok(Err(status)) => last = status,
                Err(_) => {
                    last = problem::status(
                        Problem::new(
                            "timeout",
                            format!("host:{host}"),
                            "it did not answer in time",
                        )
                        .hint("try again")
                        .retryable(),
                    );
                }
            }
        }
        Err(last)
    }

    fn reply(&self, issued: &Issued) -> wire::Issued {
        let current = self.credentials.current();
        let authorities = current.identity.authorities().iter();
        wire::Issued {
            chain: vec![issued.certificate.to_vec().into()],
            authorities: authorities.map(|der| der.to_vec().into()).collect(),
            serial: issued.peer.serial.to_string(),
            not_after: issued.peer.not_after.saturating_mul(1000),
        }
    }

    fn issued(
        &self,
        issued: Result<Issued, RegistrarError>,
        caller: &Caller,
        object: &str,
        call: &str,
    ) -> Reply<wire::Issued> {
        match issued {
            Ok(issued) => Ok(Response::new(self.reply(&issued))),
            Err(error) => Err(self.refused(&error, caller, object, call)),
        }
    }

    fn refused(&self, error: &RegistrarError, caller: &Caller, object: &str, call: &str) -> Status {
        if error.is_refusal() {
            let refusal = Refusal::new(&caller.who, &caller.from, call, error.to_string());
            self.refusals.report(refusal);
        }
        problem::status(error.problem(object))
    }
}

/// A call that goes on to an agent which can issue.
#[derive(Clone)]
enum PassedOn {
    Join(wire::JoinRequest),
    Renew(wire::RenewRequest),
}

impl PassedOn {
    async fn to(self, channel: Channel) -> Result<wire::Issued, Status> {
        let mut client = IdentityClient::new(channel);
        let issued = match self {
            Self::Join(request) => client.join(marked(request)).await,
            Self::Renew(request) => client.renew(marked(request)).await,
        };
        issued.map(Response::into_inner)
    }
}

/// It goes no further.
fn marked<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert(HOP, MetadataValue::from_static("1"));
    request
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    // The door puts it there; without a door nobody may.
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| problem::status(Problem::new("denied", "agent", "nobody is known to ask")))
}

fn too_many() -> Status {
    problem::status(
        Problem::new(
            "too-many",
            "identity",
            "too many ask for certificates at once",
        )
        .hint("try again in a moment")
        .retryable(),
    )
}

const JOIN: &str = "/tanako.identity.v1.Identity/Join";
const RENEW: &str = "/tanako.identity.v1.Identity/Renew";
const GRANT: &str = "/tanako.identity.v1.Identity/Grant";

#[tonic::async_trait]
impl Calls for Service {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Reply<wire::Issued> {
        let _place = self.open.try_acquire().map_err(|_| too_many())?;
        let caller = caller(&request)?;
        let passed_on = request.metadata().contains_key(HOP);
        let request = request.into_inner();
        if !self.registrar.is_issuer() && !passed_on {
            return self
                .at_issuer(PassedOn::Join(request))
                .await
                .map(Response::new);
        }
        let address: SocketAddr = request.address.parse().map_err(|_| {
            problem::status(
                Problem::new(
                    "invalid-argument",
                    "address",
                    "the address of the new host is not IP:PORT",
                )
                .hint("give it with --listen or --advertise"),
            )
        })?;
        let issued = self.registrar.join(&request, address, &caller).await;
        self.issued(issued, &caller, "join", JOIN)
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Reply<wire::Issued> {
        let _place = self.open.try_acquire().map_err(|_| too_many())?;
        let caller = caller(&request)?;
        let passed_on = request.metadata().contains_key(HOP);
        let request = request.into_inner();
        if !self.registrar.is_issuer() && !passed_on {
            return self
                .at_issuer(PassedOn::Renew(request))
                .await
                .map(Response::new);
        }
        let renewal = Renewal {
            request: request.csr.to_vec(),
            certificate: request.certificate.to_vec(),
            signature: request.signature.to_vec(),
        };
        let issued = self.registrar.renew(&renewal).await;
        self.issued(issued, &caller, "renew", RENEW)
    }

    async fn get_members(&self, _: Request<wire::MembersRequest>) -> Reply<wire::Members> {
        let fleet = self.credentials.current().identity.peer().fleet.clone();
        let hosts = self.hosts.borrow().clone();
        let members = hosts.iter().map(|(name, known)| wire::Member {
            host: name.clone(),
            address: known.record.address.clone(),
            present: known.present.is_some(),
            issuer: known.record.issuer,
        });
        Ok(Response::new(wire::Members {
            fleet,
            members: members.collect(),
        }))
    }

    async fn list(&self, _: Request<wire::ListRequest>) -> Reply<wire::Identities> {
        let certificates = self.registrar.list().await;
        certificates
            .map(|certificates| Response::new(wire::Identities { certificates }))
            .map_err(|error| problem::status(error.problem("identities")))
    }

    async fn create_token(&self, request: Request<wire::TokenRequest>) -> Reply<wire::Token> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if !matches!(request.role.as_str(), "" | "agent") {
            return Err(problem::status(
                Problem::new("invalid-argument", &request.role, "hosts join as agents").hint(
                    "for a person or program: tanakoctl access grant NAME --role ROLE --out DIR",
                ),
            ));
        }
        let all = self.peers.addresses();
        let hosts = self.hosts.borrow().clone();
        // Those who can issue first, then whoever lives.
        let mut addresses: Vec<_> = all
            .into_iter()
            .map(|(name, address)| {
                let known = hosts.get(&name);
                let issuer = known.is_some_and(|known| known.record.issuer);
                let present = known.is_some_and(|known| known.present.is_some());
                ((!present, !issuer, name), address)
            })
            .collect();
        addresses.sort();
        let addresses: Vec<_> = addresses.into_iter().map(|(_, address)| address).collect();
        if addresses.is_empty() {
            return Err(problem::status(
                Problem::new("not-ready", "hosts", "no agent's address is known yet")
                    .hint("try again when this agent is in the store")
                    .retryable(),
            ));
        }
        let ttl = Duration::from_secs(request.ttl_s.into());
        let token = self
            .registrar
            .invite(&request.host, ttl, addresses, &caller)
            .await;
        match token {
            Ok(token) => Ok(Response::new(wire::Token {
                token: token.encode(),
                expires_at: token.expires_at,
                id: token.id,
            })),
            Err(error) => Err(problem::status(error.problem(&request.host))),
        }
    }

    async fn grant(&self, request: Request<wire::GrantRequest>) -> Reply<wire::Issued> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if !self.registrar.is_issuer() {
            // Whoever asks must show itself to the issuer: no agent can ask for it in another's name.
            let hosts = self.hosts.borrow().clone();
            let known: Vec<String> = self
                .issuers()
                .into_iter()
                .filter_map(|name| Some(format!("{name} ({})", hosts.get(&name)?.record.address)))
                .collect();
            let mut problem = RegistrarError::NotIssuer.problem("grant");
            if !known.is_empty() {
                problem.hint = format!("ask one that does: {}", known.join(", "));
            }
            return Err(problem::status(problem));
        }
        let issued = self.registrar.grant(&request, &caller).await;
        self.issued(issued, &caller, &request.name, GRANT)
    }

    async fn revoke(&self, request: Request<wire::RevokeRequest>) -> Reply<wire::Revoked> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if request.name.is_empty() == request.serial.is_empty() {
            return Err(problem::status(
                Problem::new(
                    "invalid-argument",
                    "revoke",
                    "name an identity or a serial number",
                )
                .hint("`tanakoctl access list` shows both"),
            ));
        }
        let object = format!("{}{}", request.name, request.serial);
        let serials = self
            .registrar
            .revoke(&request, &caller)
            .await
            .map_err(|error| problem::status(error.problem(&object)))?;
        Ok(Response::new(wire::Revoked {
            unchanged: serials.is_empty(),
            serials: serials.into_iter().map(String::from).collect(),
        }))
    }
}
