//! The attacker: two real agents on a real etcd, and everybody who should get nowhere. Nothing may be
//! read or changed, each try leaves a line in the audit log, and the agents live.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agent_kit::{Agent, patiently};
use etcd_kit::Etcd;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tanako_agent::service::admission::CALLER;
use tanako_fleet::access;
use tanako_pki::{
    Authority, FIRST_FILE, Given, Holder, Identity, JoinToken, Pending, Renewal, Role, Subject,
    tls, write_private,
};
use tanako_proto::{
    fleet::v1::{AuditRequest, Problem, StatusRequest, fleet_client::FleetClient},
    host::v1::{OrderRequest, ShardsQuestion, host_client::HostClient, order_request::Order},
    identity::v1::{
        Caller, GrantRequest, JoinRequest, ListRequest, RenewRequest, RevokeRequest, TokenRequest,
        identity_client::IdentityClient,
    },
};
use tanako_store::{
    Store as _,
    etcd::{EtcdStore, Options},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::BinaryMetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const SOON: Duration = Duration::from_secs(90);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What `tanako-agent join` says when nobody has decided: the store is slow on a loaded machine.
const UNDECIDED: &str = "no agent of the fleet gave an answer";

/// A member of the fleet, which keeps its identity with its data.
fn member(dir: PathBuf, host: &str, etcd: &Etcd, extra: &[&str]) -> Agent {
    let args = [&["--host", host], extra].concat();
    let mut agent = Agent::member(dir.clone(), dir, &etcd.urls().join(","), &args);
    agent.start();
    agent
}

/// The fleet: host a, which issues certificates, and host b, which has joined with a token.
struct World {
    // First, so that they end first: one that lives writes into its directory again.
    a: Agent,
    b: Agent,
    dir: tempfile::TempDir,
    etcd: Etcd,
    authority: Authority,
    admin: Identity,
    /// The token that b has used.
    token: JoinToken,
}

impl World {
    async fn new(extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("tat").tempdir();
        let dir = dir.expect("a directory");
        let etcd = Etcd::single();
        let (home, admin_home) = (dir.path().join("a/identity"), dir.path().join("admin"));
        let authority = Authority::create("t").expect("made");
        authority.save(&home).expect("saved");
        let ip = "127.0.0.1".parse().expect("an address");
        let agent = authority.issue_to(&home, &Subject::agent("a", [ip]), DAY);
        let admin = Subject::user("root", Role::Admin);
        let admin = authority
            .issue_to(&admin_home, &admin, DAY)
            .expect("issued");
        let holders = [agent.expect("issued"), admin.clone()].map(|identity| Holder {
            name: identity.peer().name.clone(),
            role: identity.peer().role,
            certificates: vec![Given::new(identity.peer(), "init", 0)],
        });
        let list = serde_json::to_vec(&holders).expect("JSON");
        write_private(&home.join(FIRST_FILE), &list).expect("writes");
        let a = member(dir.path().join("a"), "a", &etcd, extra);

        let until = Instant::now() + SOON;
        let text = loop {
            let text = token(a.listens(), &admin, "b", 600).await;
            let joined = join(dir.path(), "b", &text);
            if joined.status.success() {
                break text;
            }
            // Whether the store has taken in the use of that token nobody knows.
            let said = String::from_utf8_lossy(&joined.stderr).into_owned();
            assert!(said.contains(UNDECIDED), "{said}");
            assert!(Instant::now() < until, "{said}");
        };
        let b = member(dir.path().join("b"), "b", &etcd, extra);
        let world = Self {
            dir,
            etcd,
            authority,
            admin,
            a,
            b,
            token: JoinToken::decode(&text).expect("a token"),
        };
        world.adopted().await;
        world
    }

    /// Waits until the first certificates are in the store, which is done beside everything else.
    async fn adopted(&self) {
        let (store, until) = (self.store(), Instant::now() + SOON);
        for key in ["identities/root", "identities/a"] {
            while !matches!(store.get(key).await, Ok(Some(_))) {
                assert!(Instant::now() < until, "no {key}: {}", self.a.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn identity(&self, name: &str, role: Role) -> Identity {
        let subject = match role {
            Role::Agent => Subject::agent(name, []),
            role => Subject::user(name, role),
        };
        self.authority.identity(&subject, DAY).expect("made")
    }

    fn store(&self) -> EtcdStore {
        let options = Options {
            endpoints: self.etcd.urls(),
            prefix: "tanako/t/".to_owned(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(20),
        };
        EtcdStore::open(options).expect("opens")
    }

    /// What an attacker would want to change.
    async fn precious(&self) -> BTreeMap<String, Vec<u8>> {
        let items = self.store().list("").await.expect("lists").items;
        // What agents write by themselves, and the lines about the attacker.
        let own = ["refused/", "present/", "hosts/", "coordinator", "sessions/"];
        items
            .into_iter()
            .filter(|item| !own.iter().any(|prefix| item.key.starts_with(prefix)))
            .map(|item| (item.key, item.value.to_vec()))
            .collect()
    }

    /// Waits for a line with all these words in the audit log.
    async fn told(&self, words: &[&str]) {
        self.traced(words, async || {}).await;
    }

    /// Does it until there is a line with all these words in the audit log: of many different refusals in
    /// a row some are only counted.
    async fn traced(&self, words: &[&str], act: impl AsyncFn()) {
        let mut client = self.b.client().await;
        let until = Instant::now() + SOON;
        loop {
            act().await;
            let again = Instant::now() + Duration::from_secs(1);
            while Instant::now() < again {
                let lines: Vec<String> = match client.audit(AuditRequest { limit: 500 }).await {
                    Ok(list) => list
                        .into_inner()
                        .records
                        .iter()
                        .map(|r| {
                            format!(
                                "{} {} {} {} {}",
                                r.who, r.from, r.action, r.object, r.outcome
                            )
                        })
                        .collect(),
                    // The store is slow on a loaded machine.
                    Err(status) => vec![status.to_string()],
                };
                let all = |line: &String| words.iter().all(|word| line.contains(word));
                if lines.iter().any(all) {
                    return;
                }
                assert!(Instant::now() < until, "{words:?} is not in {lines:#?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn still_serves(&mut self) {
        for member in [&mut self.a, &mut self.b] {
            assert!(member.lives(), "{}", member.log());
            let log = member.log();
            assert!(!log.contains("panicked"), "{log}");
        }
        for address in [self.a.listens(), self.b.listens()] {
            let channel = channel(address, &self.admin).await.expect("connects");
            let status = FleetClient::new(channel).get_status(StatusRequest {}).await;
            status.expect("the fleet answers");
        }
    }
}

/// `tanako-agent join`, the token on standard input.
fn join(root: &Path, host: &str, token: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tanako-agent"))
        .args(["join", "--token-file", "-", "--advertise", "127.0.0.1:7400"])
        .arg("--data-dir")
        .arg(root.join(host))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(token.as_bytes()).expect("writes");
    drop(input);
    child.wait_with_output().expect("ends")
}

async fn token(address: SocketAddr, admin: &Identity, host: &str, ttl_s: u32) -> String {
    let until = Instant::now() + SOON;
    loop {
        let channel = channel(address, admin).await.expect("connects");
        let made = IdentityClient::new(channel)
            .create_token(TokenRequest {
                host: host.to_owned(),
                ttl_s,
                role: String::new(),
            })
            .await;
        match made {
            Ok(token) => return token.into_inner().token,
            // It has not read its own record yet.
            Err(status) => assert!(Problem::from_status(&status).retryable, "{status:?}"),
        }
        assert!(Instant::now() < until, "no token");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn open(
    address: SocketAddr,
    config: Arc<tls::rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://agent.tanako")
        .connect_with_connector(tower::service_fn(move |_| {
            let config = config.clone();
            async move {
                let stream = tls::connect(address, config, SOON).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
        .await
}

async fn channel(
    address: SocketAddr,
    identity: &Identity,
) -> Result<Channel, tonic::transport::Error> {
    open(address, tls::client(identity, None).expect("configured")).await
}

/// Makes a call with these bytes as its body, and gets nothing for it.
async fn post(world: &World, identity: &Identity, path: &str, body: &[u8]) {
    let config = tls::client(identity, None).expect("configured");
    let stream = tls::connect(world.b.listens(), config, SOON).await;
    let io = TokioIo::new(stream.expect("connects"));
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .expect("speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let request = http::Request::post(format!("http://agent.tanako{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(bytes::Bytes::copy_from_slice(
            body,
        )))
        .expect("a request");
    let answer = tokio::time::timeout(SOON, sender.send_request(request)).await;
    if let Ok(response) = answer.expect("an answer") {
        // Trailers only: the status is in the headers.
        let code = response.headers().get("grpc-status");
        assert!(code.is_none_or(|code| code != "0"), "{response:?}");
    }
    driver.abort();
}

/// The same call, in the name of somebody else.
async fn call_for(channel: &Channel, path: &'static str, caller: &[u8]) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let mut request = Request::new(());
    let value = BinaryMetadataValue::from_bytes(caller);
    request.metadata_mut().insert_bin(CALLER, value);
    let path = http::uri::PathAndQuery::from_static(path);
    let asked = grpc.server_streaming(request, path, ProstCodec::<(), ()>::default());
    tokio::time::timeout(SOON, asked)
        .await
        .expect("an answer")
        .map(|_| ())
}

/// Any call, with nothing in it.
async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(path);
    let asked = grpc.server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default());
    tokio::time::timeout(SOON, asked)
        .await
        .expect("an answer")
        .map(|_| ())
}

fn denied(answer: Result<(), Status>, what: &str) -> Problem {
    let status = answer.expect_err(what);
    let problem = Problem::from_status(&status);
    assert_eq!(problem.code, "denied", "{what}: {status:?}");
    problem
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_roles_and_wrong_certificates_get_nothing() {
    let mut world = World::new(&[]).await;
    let before = world.precious().await;
    for role in Role::ALL {
        let name = format!("eve-{role}");
        let channel = channel(world.b.listens(), &world.identity(&name, role)).await;
        let channel = channel.expect("connects");
        for path in access::calls() {
            if access::allowed(role, path) {
                continue;
            }
            let problem = denied(call(&channel, path).await, path);
            assert!(problem.cause.contains(role.as_str()), "{problem:?}");
        }
        // A read that the role may: the door lets it through.
        call(&channel, "/tanako.fleet.v1.Fleet/GetStatus")
            .await
            .expect("may look");
    }
    world
        .told(&["eve-viewer (viewer)", "127.0.0.1", "Fleet/"])
        .await;

    let newcomer = tls::newcomer(world.authority.certificate().clone(), "t").expect("configured");
    let nobody = open(world.b.listens(), newcomer).await.expect("connects");
    for path in access::calls().filter(|path| !access::open(path)) {
        let problem = denied(call(&nobody, path).await, path);
        assert!(problem.cause.contains("no certificate"), "{problem:?}");
    }
    world.told(&["nobody", "no certificate"]).await;

    let subject = Subject::user("eve", Role::Admin);
    let now = SystemTime::now();
    let ended = world
        .authority
        .identity_between(&subject, now - 2 * DAY, now - DAY);
    let foreign = Authority::create("t").expect("made");
    let theirs = foreign.identity(&subject, DAY).expect("made");
    // It trusts our agents, or it would leave before it had shown its certificate.
    let home = world.dir.path().join("theirs");
    theirs.save(&home).expect("saved");
    fs::copy(world.a.dir.join("identity/ca.pem"), home.join("ca.pem")).expect("copies");
    let theirs = Identity::load(&home).expect("loads");
    for (identity, cause) in [
        (ended.expect("made"), "has ended"),
        (theirs, "another authority"),
    ] {
        if let Ok(channel) = channel(world.b.listens(), &identity).await {
            let answer = call(&channel, "/tanako.fleet.v1.Fleet/GetStatus").await;
            answer.expect_err("nobody of ours");
        }
        world.told(&["connect", cause]).await;
    }

    // Revoked, with a stream open.
    let mut asked = 0;
    let granted = {
        let channel = channel(world.a.listens(), &world.admin)
            .await
            .expect("connects");
        let pending = Pending::generate().expect("made");
        let request = GrantRequest {
            name: "mallory".into(),
            role: "admin".into(),
            csr: pending.request().to_vec().into(),
            ttl_s: 3600,
        };
        let mut client = IdentityClient::new(channel);
        let grant = async || {
            asked += 1;
            client.grant(request.clone()).await
        };
        let issued = patiently(grant).await.expect("issued");
        let der = |list: Vec<bytes::Bytes>| list.into_iter().map(|der| der.to_vec());
        pending
            .complete(der(issued.chain), der(issued.authorities))
            .expect("belongs")
    };
    let mallory = channel(world.b.listens(), &granted)
        .await
        .expect("connects");
    let mut watch = FleetClient::new(mallory.clone())
        .watch(tanako_proto::fleet::v1::WatchRequest::default())
        .await
        .expect("an admin")
        .into_inner();
    watch.message().await.expect("a snapshot");
    let admin = channel(world.a.listens(), &world.admin)
        .await
        .expect("connects");
    let mut client = IdentityClient::new(admin);
    let request = RevokeRequest {
        name: "mallory".into(),
        ..RevokeRequest::default()
    };
    let revoke = async || {
        asked += 1;
        client.revoke(request.clone()).await
    };
    let revoked = patiently(revoke).await.expect("revoked");
    // Where an answer was lost there may be one more by then, or none left.
    let own = [granted.peer().serial.to_string()];
    assert!(asked > 2 || revoked.serials == own, "{revoked:?}");
    let cut = tokio::time::timeout(SOON, async {
        while let Ok(Some(_)) = watch.message().await {}
    });
    cut.await.expect("the open stream is cut");
    let again = channel(world.b.listens(), &granted)
        .await
        .expect("connects");
    let problem = denied(
        call(&again, "/tanako.fleet.v1.Fleet/GetStatus").await,
        "revoked",
    );
    assert!(problem.cause.contains("revoked"), "{problem:?}");
    world.told(&["mallory (admin)", "is revoked"]).await;
    world.told(&["root (admin)", "access-revoke mallory"]).await;
    let list = patiently(async || client.list(ListRequest {}).await).await;
    let known = list.expect("lists").certificates;
    let of = |name: &str| known.iter().find(|one| one.name == name).expect("listed");
    assert!(of("mallory").revoked_at > 0 && of("b").revoked_at == 0);
    assert_eq!(of("root").issued_by, "init");

    let mut after = world.precious().await;
    // Only what the admin did.
    after.retain(|key, _| !key.starts_with("changes/") && !key.starts_with("revoked/"));
    let before: BTreeMap<_, _> = before
        .into_iter()
        .filter(|(key, _)| !key.starts_with("changes/"))
        .collect();
    assert_eq!(before, after);
    world.still_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_talk_among_themselves_and_to_nobody_else() {
    let mut world = World::new(&[]).await;
    let before = world.precious().await;
    let between: Vec<&'static str> = access::calls()
        .filter(|path| path.starts_with("/tanako.host.v1.Host/"))
        .collect();
    assert!(between.len() >= 10, "{between:?}");
    // An admin of the fleet is no agent. One each: what is the same is counted, not listed.
    for (number, path) in between.iter().enumerate() {
        let name = format!("ann-{number}");
        let channel = channel(world.b.listens(), &world.identity(&name, Role::Admin)).await;
        let channel = channel.expect("connects");
        let words = [&format!("{name} (admin)"), *path, "refused"];
        let act = async || {
            let problem = denied(call(&channel, path).await, path);
            assert!(problem.cause.contains("role admin"), "{problem:?}");
        };
        world.traced(&words, act).await;
    }

    // An agent of a fleet of the same name.
    let foreign = Authority::create("t").expect("made");
    let theirs = foreign
        .identity(&Subject::agent("a", []), DAY)
        .expect("made");
    let home = world.dir.path().join("theirs");
    theirs.save(&home).expect("saved");
    fs::copy(world.a.dir.join("identity/ca.pem"), home.join("ca.pem")).expect("copies");
    let theirs = Identity::load(&home).expect("loads");
    let act = async || {
        if let Ok(channel) = channel(world.b.listens(), &theirs).await {
            for path in &between {
                call(&channel, path).await.expect_err("no agent of ours");
            }
        }
    };
    world.traced(&["connect", "another authority"], act).await;

    // Whoever is no agent speaks for nobody, and agents only as they should.
    let root = wire_caller("root (admin)", "admin");
    let paths = [
        "/tanako.fleet.v1.Fleet/Submit",
        "/tanako.host.v1.Host/Order",
    ];
    for (name, role) in [
        ("vic", Role::Viewer),
        ("oli", Role::Operator),
        ("al", Role::Admin),
    ] {
        let channel = channel(world.b.listens(), &world.identity(name, role)).await;
        let channel = channel.expect("connects");
        let words = [&format!("{name} ({role})"), "speaks for somebody else"];
        let act = async || {
            for path in paths {
                let problem = denied(call_for(&channel, path, &root).await, path);
                assert!(problem.cause.contains("is no agent"), "{problem:?}");
            }
        };
        world.traced(&words, act).await;
    }
    let local = world.b.client().await;
    let mut request = Request::new(StatusRequest {});
    let value = BinaryMetadataValue::from_bytes(&root);
    request.metadata_mut().insert_bin(CALLER, value);
    let status = local
        .clone()
        .get_status(request)
        .await
        .expect_err("no agent");
    assert_eq!(Problem::from_status(&status).code, "denied");

    // A host that was taken over makes no messages that anybody takes.
    let agent = world.identity("z", Role::Agent);
    let channel = channel(world.b.listens(), &agent).await.expect("connects");
    let words = ["z (agent)", "the caller it speaks for cannot be read"];
    let act = async || {
        for bad in [
            &b"\xff\xff\xff"[..],
            &wire_caller(&"x".repeat(1000), "admin"),
            &wire_caller("root", "emperor"),
            b"",
        ] {
            let problem = denied(call_for(&channel, paths[0], bad).await, "unreadable");
            assert!(problem.cause.contains("cannot be read"), "{problem:?}");
        }
    };
    world.traced(&words, act).await;
    // In the name of a viewer it may what a viewer may.
    let viewer = wire_caller("vic (viewer)", "viewer");
    let words = ["vic (viewer)", "by way of z", "the role viewer may not"];
    let act = async || {
        for path in paths {
            let problem = denied(call_for(&channel, path, &viewer).await, path);
            assert!(problem.cause.contains("role viewer"), "{problem:?}");
        }
    };
    world.traced(&words, act).await;
    // In its own it changes nothing.
    let act = async || drop(denied(call(&channel, paths[0]).await, "of its own"));
    let words = ["z (agent)", "the role agent may not"];
    world.traced(&words, act).await;

    let frames: [&[u8]; 3] = [
        b"\x00\x00\x00\x00\x05\xff\xff\xff\xff\xff",
        b"\x00\xff\xff\xff\xff",
        b"garbage that is no frame",
    ];
    for call in ["Order", "AskShards", "GiveSessions"] {
        let path = format!("/tanako.host.v1.Host/{call}");
        let who = format!("{} (agent)", call.to_lowercase());
        let agent = world.identity(&call.to_lowercase(), Role::Agent);
        for cause in ["cannot be read", "too large"] {
            let act = async || {
                for frame in frames {
                    post(&world, &agent, &path, frame).await;
                }
            };
            world.traced(&[&who, &path, cause], act).await;
        }
    }
    // Well-formed nonsense is answered, and gives no orders.
    let mut host = HostClient::new(channel);
    let bare = host.order(OrderRequest::default()).await;
    assert_eq!(bare.expect_err("no order").code(), Code::InvalidArgument);
    let order = OrderRequest {
        epoch: u64::MAX,
        from: "z".repeat(10_000),
        sequence: u64::MAX,
        order: Some(Order::Stop("../../etc/passwd".to_owned())),
        ..OrderRequest::default()
    };
    let status = host.order(order).await.expect_err("no name of a process");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let question = ShardsQuestion {
        bot: "t".to_owned(),
        question: "rm -rf /".to_owned(),
        ..ShardsQuestion::default()
    };
    let status = host.ask_shards(question).await.expect_err("no question");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(before, world.precious().await);
    world.still_serves().await;
}

fn wire_caller(who: &str, role: &str) -> Vec<u8> {
    let caller = Caller {
        who: who.to_owned(),
        from: "nowhere".to_owned(),
        role: role.to_owned(),
    };
    caller.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_good_once_and_tell_nobody_anything() {
    let mut world = World::new(&[]).await;
    let text = world.token.encode();
    // Used before, also from another directory; the agent that is asked first may be b, which passes
    // it on.
    let until = Instant::now() + SOON;
    let said = loop {
        let replayed = join(&world.dir.path().join("elsewhere"), "b", &text);
        let said = String::from_utf8_lossy(&replayed.stderr).into_owned();
        assert!(!replayed.status.success(), "{said}");
        if !said.contains(UNDECIDED) {
            break said;
        }
        assert!(Instant::now() < until, "{said}");
    };
    assert!(said.contains("has been used"), "{said}");
    world.told(&["Identity/Join", "has been used"]).await;
    let again = join(world.dir.path(), "b", &text);
    assert_eq!(again.status.code(), Some(3), "{again:?}");

    let newcomer = tls::newcomer(world.authority.certificate().clone(), "t").expect("configured");
    let open = |address| open(address, newcomer.clone());
    let fresh = JoinToken::decode(&token(world.a.listens(), &world.admin, "c", 600).await);
    let fresh = fresh.expect("a token");
    let pending = Pending::generate().expect("made");
    let good = JoinRequest {
        token_id: fresh.id.clone(),
        secret: fresh.secret.reveal().to_vec().into(),
        host: "c".into(),
        address: "127.0.0.1:7400".into(),
        csr: pending.request().to_vec().into(),
    };
    let late = JoinToken::decode(&token(world.a.listens(), &world.admin, "d", 1).await);
    let late = late.expect("a token");
    let wait = Instant::now() + SOON;
    while tanako_agent::clock::now_ms() <= late.expires_at {
        assert!(Instant::now() < wait);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = world.precious().await;
    for (request, words) in [
        (
            JoinRequest {
                host: "a".into(),
                ..good.clone()
            },
            "another host",
        ),
        (
            JoinRequest {
                secret: vec![0; 32].into(),
                ..good.clone()
            },
            "not known",
        ),
        (
            JoinRequest {
                token_id: "../identities/root".into(),
                ..good.clone()
            },
            "not known",
        ),
        (
            JoinRequest {
                token_id: late.id.clone(),
                secret: late.secret.reveal().to_vec().into(),
                host: "d".into(),
                ..good.clone()
            },
            "has expired",
        ),
    ] {
        for address in [world.a.listens(), world.b.listens()] {
            let mut client = IdentityClient::new(open(address).await.expect("connects"));
            let joined = patiently(async || client.join(request.clone()).await).await;
            let problem = joined.expect_err(words);
            assert_eq!(problem.code, "denied", "{problem:?}");
            assert!(problem.message.contains(words), "{problem:?}");
        }
        world.told(&["Identity/Join", words]).await;
    }
    for (csr, address) in [
        (vec![0x30; 300], "127.0.0.1:7400"),
        (pending.request().to_vec(), "nowhere"),
    ] {
        let mut client = IdentityClient::new(open(world.b.listens()).await.expect("connects"));
        let request = JoinRequest {
            csr: csr.into(),
            address: address.into(),
            ..good.clone()
        };
        let joined = patiently(async || client.join(request.clone()).await).await;
        let problem = joined.expect_err("refused");
        assert_eq!(problem.code, "invalid-argument", "{problem:?}");
    }
    // Renewals need the old key.
    let eve = Authority::create("t").expect("made");
    let eve = eve
        .identity(&Subject::user("root", Role::Admin), DAY)
        .expect("made");
    let renewal = Renewal::of(&eve, &pending).expect("signed");
    let mut client = IdentityClient::new(open(world.b.listens()).await.expect("connects"));
    let request = RenewRequest {
        csr: renewal.request.into(),
        certificate: world.admin.chain()[0].to_vec().into(),
        signature: renewal.signature.into(),
    };
    let renewed = patiently(async || client.renew(request.clone()).await).await;
    let problem = renewed.expect_err("not root's key");
    assert_eq!(problem.code, "denied", "{problem:?}");
    world.told(&["Identity/Renew", "not signed"]).await;
    assert_eq!(before, world.precious().await);
    // Nothing of it has used up the token.
    let mut asked = 0;
    let join = async || {
        asked += 1;
        client.join(good.clone()).await
    };
    if let Err(problem) = patiently(join).await {
        // An answer that was lost.
        let used = problem.message.contains("has been used");
        assert!(asked > 1 && used, "{problem:?}");
    }

    // No secret anywhere where others look.
    let secrets = [
        world.token.secret.reveal().to_vec(),
        text.split('.').nth(1).expect("a body").as_bytes().to_vec(),
        b"PRIVATE KEY".to_vec(),
    ];
    let mut places = vec![world.a.log().into_bytes(), world.b.log().into_bytes()];
    for pid in [world.a.pid(), world.b.pid()] {
        for file in ["cmdline", "environ"] {
            places.push(fs::read(format!("/proc/{pid}/{file}")).expect("reads"));
        }
    }
    places.extend(
        world
            .store()
            .list("")
            .await
            .expect("lists")
            .items
            .into_iter()
            .map(|item| [item.key.as_bytes(), &item.value].concat()),
    );
    for place in &places {
        for secret in &secrets {
            let found = place.windows(secret.len()).any(|part| part == secret);
            assert!(!found, "{}", String::from_utf8_lossy(place));
        }
    }
    world.still_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_crowds_and_giants_leave_the_agent_alive() {
    const CROWD: usize = 300;
    let mut world = World::new(&[]).await;
    let before = world.precious().await;
    let operator = world.identity("otto", Role::Operator);
    // Messages of every wrong form, from somebody who may make the call.
    let frames: [&[u8]; 4] = [
        b"\x00\x00\x00\x00\x05\xff\xff\xff\xff\xff",
        b"\x01\x00\x00\x00\x01x",
        b"\x00\xff\xff\xff\xff",
        b"garbage that is no frame",
    ];
    let giant = [b"\x00\x00\x50\x00\x00".to_vec(), vec![b'x'; 0x50_0000]].concat();
    for body in frames.into_iter().chain([&giant[..]]) {
        post(&world, &operator, "/tanako.fleet.v1.Fleet/Apply", body).await;
    }
    for cause in ["cannot be read", "too large"] {
        world.told(&["otto (operator)", "Fleet/Apply", cause]).await;
    }
    // Noise instead of TLS, and inside of it.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        &[0; 4096],
    ] {
        let mut stream = tokio::net::TcpStream::connect(world.b.listens())
            .await
            .expect("connects");
        let _ = stream.write_all(bytes).await;
        let config = tls::client(&operator, None).expect("configured");
        let mut inside = tls::connect(world.b.listens(), config, SOON)
            .await
            .expect("connects");
        let _ = inside.write_all(bytes).await;
        let closed = tokio::time::timeout(SOON, async {
            let mut sink = Vec::new();
            let _ = stream.read_to_end(&mut sink).await;
        });
        closed.await.expect("closed");
    }
    world.told(&["nobody", "connect", "TLS"]).await;
    let words = ["otto (operator)", "connect", "not HTTP/2"];
    world.told(&words).await;
    // And what begins well: settings of a stream, which has none (RFC 9113, 6.5).
    let config = tls::client(&operator, None).expect("configured");
    let mut inside = tls::connect(world.b.listens(), config, SOON)
        .await
        .expect("connects");
    let begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\x01";
    inside.write_all(begun).await.expect("sent");
    let ended = tokio::time::timeout(SOON, async {
        let mut sink = Vec::new();
        let _ = inside.read_to_end(&mut sink).await;
    });
    ended.await.expect("ended");
    let words = ["otto (operator)", "connect", "broke the rules of HTTP/2"];
    world.told(&words).await;
    // Crowds that say nothing, one after the other; friends get through all the while.
    for _ in 0..7 {
        let mut crowd = Vec::with_capacity(CROWD);
        for _ in 0..CROWD {
            crowd.extend(tokio::net::TcpStream::connect(world.b.listens()).await);
        }
        assert!(world.b.lives(), "{}", world.b.log());
        let friend = world.b.client().await.get_status(StatusRequest {}).await;
        friend.expect("the socket is served");
    }
    world
        .told(&["nobody", "connect", "too many handshakes"])
        .await;
    assert_eq!(before, world.precious().await);
    // The last crowd's handshakes time out first.
    let until = Instant::now() + SOON;
    while channel(world.b.listens(), &world.admin).await.is_err() {
        assert!(Instant::now() < until, "nobody gets in any more");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.still_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_renew_themselves_while_the_agents_run() {
    let mut world = World::new(&["--certificate-seconds", "30"]).await;
    let serial = |member: &Agent| {
        let identity = Identity::load(&member.dir.join("identity")).expect("loads");
        identity.peer().serial.clone()
    };
    let pids = (world.a.pid(), world.b.pid());
    // b cannot issue: a does it. That of a lasts a day.
    let first = serial(&world.b);
    let mut seen = vec![first];
    let until = Instant::now() + 2 * SOON;
    while seen.len() < 3 {
        assert!(Instant::now() < until, "{}", world.b.log());
        let now = serial(&world.b);
        if !seen.contains(&now) {
            seen.push(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.still_serves().await;
    assert_eq!(pids, (world.a.pid(), world.b.pid()));
    // A host that is revoked gets no successor.
    let admin = channel(world.a.listens(), &world.admin)
        .await
        .expect("connects");
    let request = RevokeRequest {
        name: "b".into(),
        ..RevokeRequest::default()
    };
    let mut client = IdentityClient::new(admin);
    let mut asked = 0;
    let revoke = async || {
        asked += 1;
        client.revoke(request.clone()).await
    };
    let revoked = patiently(revoke).await.expect("revoked");
    assert!(asked > 1 || !revoked.serials.is_empty(), "{revoked:?}");
    world.told(&["b (agent)", "refused", "revoked"]).await;
    let identity = Identity::load(&world.b.dir.join("identity")).expect("loads");
    // Its last certificate ends while its agent runs, and no other one comes.
    let until = Instant::now() + SOON;
    let seconds = || {
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("a clock")
    };
    while i64::try_from(seconds().as_secs()).expect("now") <= identity.peer().not_after {
        assert!(Instant::now() < until, "it does not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(serial(&world.b), identity.peer().serial);
    if let Ok(b) = channel(world.a.listens(), &identity).await {
        let answer = call(&b, "/tanako.fleet.v1.Fleet/GetStatus").await;
        let status = answer.expect_err("revoked");
        assert_ne!(status.code(), Code::Ok);
    }
}
