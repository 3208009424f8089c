//! The TLS listener and its door, in this process: who gets in, who does not, and what is written down.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hyper_util::rt::TokioIo;
use tanako_agent::{
    audit,
    history::{self, History},
    identity::{Credentials, Guards, Refusals, Revoked, revoked},
    peers::{PeerError, Peers},
    registry::{HostRecord, Hosts, Known},
    service::{
        admission::{self, Admission, Owners},
        listen::{self, Limits},
    },
};
use tanako_pki::{Authority, Identity, Role, Subject, tls};
use tanako_proto::{
    fleet::v1::{OperationRequest, Problem, StatusRequest, fleet_client::FleetClient},
    identity::v1::{Caller, JoinRequest, identity_client::IdentityClient},
};
use tanako_store::{
    Store, Txn,
    embedded::{EmbeddedStore, Options},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Request, Status,
    metadata::BinaryMetadataValue,
    service::Routes,
    transport::{Channel, Endpoint},
};

const SOON: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A listener in front of no services: whoever is admitted is told that the call is not there.
struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    credentials: Credentials,
    store: Arc<EmbeddedStore>,
    address: SocketAddr,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create("f").expect("made");
        let ip = "127.0.0.1".parse().expect("an address");
        authority
            .issue_to(&dir.path().join("a"), &Subject::agent("a", [ip]), DAY)
            .expect("issued");
        let credentials = Credentials::load(&dir.path().join("a"), "a").expect("loads");
        let store = EmbeddedStore::open(&dir.path().join("store"), &Options::default());
        let store = Arc::new(store.expect("opens"));
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let history = History::start(
            history::Config {
                directory: dir.path().join("history"),
                host: "a".into(),
            },
            cancel.clone(),
            &tracker,
        );
        let guards = Guards {
            revoked: Revoked::start(
                store.clone(),
                dir.path().join("a/revoked.json"),
                cancel.clone(),
                &tracker,
            ),
            refusals: Refusals::start(store.clone(), "a".into(), history, cancel.clone(), &tracker),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("binds");
        let address = listener.local_addr().expect("bound");
        listen::serve(
            listen::Parts {
                listener,
                routes: Routes::default(),
                admission: Admission::new(guards.clone(), Owners::new(false)),
                credentials: credentials.clone(),
                guards,
                limits,
            },
            cancel.clone(),
            &tracker,
        );
        Self {
            dir,
            authority,
            credentials,
            store,
            address,
            cancel,
            tracker,
        }
    }

    fn user(&self, name: &str, role: Role) -> Identity {
        self.authority
            .identity(&Subject::user(name, role), DAY)
            .expect("made")
    }

    async fn channel(&self, identity: &Identity) -> Channel {
        let config = tls::client(identity, None).expect("configured");
        channel(self.address, config).await.expect("connects")
    }

    /// The refusals that are written down, once they say that.
    async fn told(&self, words: &[&str]) {
        let until = Instant::now() + SOON;
        loop {
            let records = audit::list(&*self.store, 100).await.expect("lists");
            let lines: Vec<String> = records
                .iter()
                .map(|r| format!("{} {} {} {}", r.who, r.from, r.object, r.outcome))
                .collect();
            if lines
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)))
            {
                return;
            }
            assert!(Instant::now() < until, "{words:?} is not in {lines:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(SOON, self.tracker.wait())
            .await
            .expect("ends");
    }
}

async fn channel(
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

async fn status(channel: &Channel) -> Status {
    FleetClient::new(channel.clone())
        .get_status(StatusRequest {})
        .await
        .expect_err("nothing is served")
}

async fn submit(channel: &Channel, on_behalf_of: Option<&Caller>) -> Status {
    let mut request = Request::new(OperationRequest::default());
    if let Some(caller) = on_behalf_of {
        let bytes = prost::Message::encode_to_vec(caller);
        request
            .metadata_mut()
            .insert_bin(admission::CALLER, BinaryMetadataValue::from_bytes(&bytes));
    }
    FleetClient::new(channel.clone())
        .submit(request)
        .await
        .expect_err("nothing is served")
}

fn admitted(status: &Status) {
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

fn denied(status: &Status, cause: &str) {
    let problem = Problem::from_status(status);
    assert_eq!(problem.code, "denied", "{status:?}");
    assert!(problem.cause.contains(cause), "{problem:?}");
    assert!(!problem.hint.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gets_what_its_role_may_and_the_rest_leaves_a_line() {
    let world = World::new(Limits::default()).await;
    let viewer = world.channel(&world.user("vera", Role::Viewer)).await;
    admitted(&status(&viewer).await);
    denied(&submit(&viewer, None).await, "viewer may not");
    world
        .told(&["vera (viewer)", "127.0.0.1", "Fleet/Submit", "may not"])
        .await;
    let operator = world.channel(&world.user("otto", Role::Operator)).await;
    admitted(&submit(&operator, None).await);

    // Only agents speak for others, and only as far as those may.
    let caller = |role: &str| Caller {
        who: "vera (viewer)".into(),
        from: "10.0.0.9:1".into(),
        role: role.into(),
    };
    denied(
        &submit(&operator, Some(&caller("admin"))).await,
        "is no agent",
    );
    let b = world.authority.identity(&Subject::agent("b", []), DAY);
    let agent = world.channel(&b.expect("made")).await;
    denied(&submit(&agent, None).await, "agent may not");
    denied(
        &submit(&agent, Some(&caller("viewer"))).await,
        "viewer may not",
    );
    admitted(&submit(&agent, Some(&caller("operator"))).await);
    denied(
        &submit(&agent, Some(&caller("god"))).await,
        "cannot be read",
    );

    // Without a certificate: joining, nothing else.
    let config = tls::newcomer(world.authority.certificate().clone(), "f").expect("configured");
    let nobody = channel(world.address, config).await.expect("connects");
    denied(&status(&nobody).await, "there is no certificate");
    world
        .told(&["nobody", "Fleet/GetStatus", "no certificate"])
        .await;
    let joined = IdentityClient::new(nobody)
        .join(JoinRequest::default())
        .await;
    admitted(&joined.expect_err("nothing is served"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_do_not_hold_get_nowhere() {
    let world = World::new(Limits::default()).await;
    let now = SystemTime::now();
    let subject = Subject::user("eve", Role::Admin);
    let ended = world
        .authority
        .identity_between(&subject, now - 2 * DAY, now - DAY)
        .expect("made");
    let foreign = Authority::create("f").expect("made");
    let theirs = foreign.identity(&subject, DAY).expect("made");
    // Shows the foreign certificate, and trusts our agent all the same.
    let mixed = |identity: &Identity| {
        let ours = world.authority.certificate().clone();
        let dir = world.dir.path().join("mixed");
        identity.save(&dir).expect("saved");
        let foreign = Authority::create("f").expect("made");
        drop(foreign);
        let pem = std::fs::read_to_string(dir.join(tanako_pki::IDENTITY_FILE)).expect("reads");
        let key = pem
            .split_inclusive("-----END PRIVATE KEY-----")
            .next()
            .expect("a key");
        Identity::new(key, identity.chain().to_vec(), vec![ours]).expect("belongs")
    };
    for (identity, cause) in [(ended, "has ended"), (mixed(&theirs), "another authority")] {
        let config = tls::client(&identity, None).expect("configured");
        // With TLS 1.3 the client learns of it at its first read.
        let code = match channel(world.address, config).await {
            Ok(channel) => status(&channel).await.code(),
            Err(_) => Code::Unavailable,
        };
        assert!(code != Code::Unimplemented && code != Code::Ok, "{code:?}");
        world.told(&["connect", cause]).await;
    }
    // And a client does not take an agent of another fleet, nor a user's certificate, for its own.
    let config = tls::client(&theirs, None).expect("configured");
    channel(world.address, config).await.expect_err("no trust");
    let other_host = tls::client(&world.user("anna", Role::Viewer), Some("b")).expect("configured");
    channel(world.address, other_host)
        .await
        .expect_err("another host");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_holds_at_once_and_breaks_open_connections() {
    let world = World::new(Limits::default()).await;
    let identity = world.user("mallory", Role::Admin);
    let config = tls::client(&identity, None).expect("configured");
    let mut open = tls::connect(world.address, config, SOON)
        .await
        .expect("connects");
    let channel = world.channel(&identity).await;
    admitted(&status(&channel).await);
    let revocation = revoked::Revocation {
        name: "mallory".into(),
        ..revoked::Revocation::default()
    };
    let serial = &identity.peer().serial;
    let txn = Txn::new().put(revoked::key(serial), revoked::value(&revocation));
    world.store.commit(txn).await.expect("revoked");
    // The idle connection ends by itself.
    let ended = tokio::time::timeout(SOON, async {
        let mut buffer = [0; 1024];
        while !matches!(open.read(&mut buffer).await, Ok(0) | Err(_)) {}
    });
    ended.await.expect("severed");
    let until = Instant::now() + SOON;
    // A call on a connection that has just been broken says nothing yet; on the next one it is denied.
    while status(&channel).await.code() != Code::PermissionDenied {
        assert!(Instant::now() < until, "a revoked caller is not denied");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.told(&["mallory (admin)", "revoked"]).await;
    // The list outlives the store: it is on disk, soon after it holds.
    let until = Instant::now() + SOON;
    loop {
        let file = std::fs::read_to_string(world.dir.path().join("a/revoked.json"));
        if file
            .as_ref()
            .is_ok_and(|list| list.contains(serial.as_str()))
        {
            break;
        }
        assert!(Instant::now() < until, "{file:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_silent_connections_keeps_nobody_out() {
    let limits = Limits {
        handshakes_per_address: 8,
        handshake: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = World::new(limits).await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(TcpStream::connect(world.address).await.expect("connects"));
    }
    // Each is closed by the listener, in its time.
    for stream in &mut crowd {
        let mut buffer = [0; 64];
        let closed = tokio::time::timeout(SOON, async {
            while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
        });
        closed.await.expect("closed");
    }
    world
        .told(&["nobody", "connect", "too many handshakes"])
        .await;
    world.told(&["nobody", "connect", "took too long"]).await;
    // So little time is not always enough for a friend either, where the machine is busy.
    let config = tls::client(&world.user("anna", Role::Viewer), None).expect("configured");
    let until = Instant::now() + SOON;
    loop {
        if let Ok(channel) = channel(world.address, config.clone()).await
            && status(&channel).await.code() == Code::Unimplemented
        {
            break;
        }
        assert!(Instant::now() < until, "a friend is kept out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_identity_has_so_many_connections_and_keeps_no_other_out() {
    let limits = Limits {
        per_identity: 4,
        ..Limits::default()
    };
    let world = World::new(limits).await;
    let identity = world.user("anna", Role::Viewer);
    let mut channels = Vec::new();
    for _ in 0..4 {
        let channel = world.channel(&identity).await;
        admitted(&status(&channel).await);
        channels.push(channel);
    }
    let config = tls::client(&identity, None).expect("configured");
    if let Ok(fifth) = channel(world.address, config).await {
        assert_ne!(status(&fifth).await.code(), Code::Unimplemented);
    }
    world.told(&["anna", "connect", "of one identity"]).await;
    let other = world.channel(&world.user("bert", Role::Viewer)).await;
    admitted(&status(&other).await);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_while_connections_go_on_and_peers_follow() {
    let world = World::new(Limits::default()).await;
    let record = |address: String| Known {
        record: HostRecord {
            name: "a".into(),
            address,
            ..HostRecord::default()
        },
        revision: 1,
        present: None,
        lost_at: None,
    };
    let hosts: Hosts = BTreeMap::from([
        ("a".to_owned(), record(world.address.to_string())),
        ("mute".to_owned(), record(String::new())),
        // Somebody else's address: its certificate says so.
        ("b".to_owned(), record(world.address.to_string())),
    ]);
    let (_hosts, watched) = watch::channel(Arc::new(hosts));
    let peers = Peers::new(Some(world.credentials.clone()), watched.clone());
    let channel = peers.channel("a").await.expect("reached");
    admitted(&status(&channel).await);
    for (host, words) in [
        ("x", "no host x"),
        ("mute", "--listen"),
        ("b", "cannot be reached"),
    ] {
        let error = peers.channel(host).await.expect_err("no way");
        assert!(error.to_string().contains(words), "{error}");
    }
    let lone = Peers::new(None, watched);
    assert!(matches!(
        lone.channel("a").await,
        Err(PeerError::NoIdentity)
    ));

    let successor = world.authority.identity(&Subject::agent("a", []), DAY);
    let successor = successor.expect("made");
    world
        .credentials
        .replace(successor.clone())
        .expect("replaced");
    admitted(&status(&channel).await);
    let anew = peers.channel("a").await.expect("reached");
    admitted(&status(&anew).await);
    let config = tls::client(&world.user("anna", Role::Viewer), Some("a")).expect("configured");
    let stream = tls::connect(world.address, config, SOON)
        .await
        .expect("connects");
    let shown = stream.get_ref().1.peer_certificates().expect("shown");
    assert_eq!(shown, successor.chain());
    let on_disk = Credentials::load(&world.dir.path().join("a"), "a").expect("loads");
    assert_eq!(on_disk.current().identity.peer(), successor.peer());
    world.end().await;
}
