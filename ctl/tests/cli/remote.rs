//! A fleet of several agents behind TLS: one address is enough, and the death of an agent is no obstacle.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tanako_pki::{Authority, Role, Subject, tls};
use tanako_proto::{
    fleet::v1::fleet_server::FleetServer,
    identity::v1::{
        GrantRequest, Identities, Issued, JoinRequest, ListRequest, Member, Members,
        MembersRequest, RenewRequest, RevokeRequest, Revoked, Token, TokenRequest,
        identity_server::{Identity, IdentityServer},
    },
};
use tokio::{io::DuplexStream, net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    fake::{Fake, fleet},
    world::World,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What each agent says of the others.
#[derive(Clone, Default)]
struct Register(Arc<Mutex<Vec<Member>>>);

#[tonic::async_trait]
impl Identity for Register {
    async fn get_members(&self, _: Request<MembersRequest>) -> Result<Response<Members>, Status> {
        Ok(Response::new(Members {
            fleet: "t".into(),
            members: self.0.lock().expect("whole").clone(),
        }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<Issued>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<Issued>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Identities>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn create_token(&self, _: Request<TokenRequest>) -> Result<Response<Token>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn grant(&self, _: Request<GrantRequest>) -> Result<Response<Issued>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn revoke(&self, _: Request<RevokeRequest>) -> Result<Response<Revoked>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

/// An agent that says its own name as the fleet's; gone when dropped, with its connections.
struct Agent {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Agent {
    async fn start(authority: &Authority, name: &str, register: &Register) -> Self {
        let ip = "127.0.0.1".parse().expect("an address");
        let identity = authority.identity(&Subject::agent(name, [ip]), DAY);
        let config = tls::server(&identity.expect("made")).expect("configured");
        let acceptor = tls::TlsAcceptor::from(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let fake = Fake::default();
        fake.state().status = fleet();
        name.clone_into(&mut fake.state().status.fleet);
        let (ready, incoming) = mpsc::channel::<std::io::Result<DuplexStream>>(4);
        let server = Server::builder()
            .add_service(FleetServer::new(fake))
            .add_service(IdentityServer::new(register.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = server.await;
        });
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Of another fleet, perhaps.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let (mut near, far) = tokio::io::duplex(1 << 16);
                open.spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut near).await;
                });
                if ready.send(Ok(far)).await.is_err() {
                    return;
                }
            }
        });
        register.0.lock().expect("whole").push(Member {
            host: name.to_owned(),
            address: address.to_string(),
            present: true,
            issuer: false,
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

/// Somebody to whom agents of the fleet answer, and where the agents are.
fn context(world: &World, authority: &Authority, addresses: &[SocketAddr]) -> PathBuf {
    let home = world.directory.path().join("me");
    let subject = Subject::user("anna", Role::Viewer);
    authority.issue_to(&home, &subject, DAY).expect("issued");
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    world.config(&format!(
        "current = \"t\"\n[contexts.t]\naddresses = {addresses:?}\nidentity = \"{}\"\n",
        home.display()
    ));
    world.directory.path().join("state/tanako/agents-t.json")
}

async fn asked(world: &World) -> String {
    let ran = world.run(&["status", "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    ran.json()["fleet"].as_str().expect("a name").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_is_enough_and_others_take_over() {
    let world = World::empty();
    let authority = Authority::create("t").expect("made");
    let register = Register::default();
    let a = Agent::start(&authority, "a", &register).await;
    let b = Agent::start(&authority, "b", &register).await;
    let c = Agent::start(&authority, "c", &register).await;
    let memory = context(&world, &authority, &[a.address]);
    // Others are learned of only when that takes no longer than a moment: asked until it did.
    let end = Instant::now() + Duration::from_secs(60);
    while !memory.exists() {
        assert!(Instant::now() < end, "never learned of the others");
        assert_eq!(asked(&world).await, "a");
    }
    let known: Vec<SocketAddr> =
        serde_json::from_slice(&fs::read(&memory).expect("remembered")).expect("JSON");
    assert_eq!(known, [a.address, b.address, c.address]);

    drop(a);
    // Whichever of the two answers first.
    let other = asked(&world).await;
    assert!(["b", "c"].contains(&other.as_str()), "{other}");
    drop(b);
    assert_eq!(asked(&world).await, "c");
    let gone = c.address;
    drop(c);
    let ran = world.run(&["status", "-o", "json"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    let error = ran.error();
    assert_eq!(error["code"], "unreachable");
    let cause = error["cause"].as_str().expect("why");
    for address in known {
        assert!(cause.contains(&address.to_string()), "{cause}");
    }

    // What is remembered may be anything: it only says whom to ask.
    fs::write(&memory, "not JSON").expect("writes");
    let d = Agent::start(&authority, "d", &register).await;
    context(&world, &authority, &[gone, d.address]);
    assert_eq!(
        asked(&world).await,
        "d",
        "the second address of the context"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_or_a_stranger_is_passed_over() {
    let world = World::empty();
    let authority = Authority::create("t").expect("made");
    let foreign = Authority::create("t").expect("made");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let stranger = Agent::start(&foreign, "evil", &Register::default()).await;
    let register = Register::default();
    let good = Agent::start(&authority, "good", &register).await;
    let addresses = [
        silent.local_addr().expect("bound"),
        stranger.address,
        good.address,
    ];
    context(&world, &authority, &addresses);
    // Nobody answers at the first address: it accepts, and says nothing.
    assert_eq!(asked(&world).await, "good");
    drop(good);
    let ran = world.run(&["status", "--request-timeout", "10s"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(!ran.all().contains("evil"), "{}", ran.all());
}
