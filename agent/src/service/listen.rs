//! The TCP listener of a fleet's agent: TLS in which both ends show who they are.
//!
//! Connections are accepted in one task; each handshake is a task of its own with a deadline, and what
//! comes out of it goes to the gRPC server. Everything is bounded: handshakes under way, altogether and
//! for each address; connections, altogether and for each identity; those without a certificate, which
//! can only join or renew, live for a short time. A connection ends at once when its certificate is
//! revoked or over.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tanako_pki::{
    Peer, Serial,
    tls::{ServerStream, TlsAcceptor, rustls},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

use super::{
    admission::{Admission, Connection},
    overheard::Overheard,
};
use crate::identity::{Credentials, Guards, Refusal, Refusals};

/// How much an outsider can make us hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes under way.
    pub handshakes: usize,
    /// Of these, from one address.
    pub handshakes_per_address: usize,
    /// How long one may take.
    pub handshake: Duration,
    /// Connections without a certificate.
    pub strangers: usize,
    /// How long such a one lives.
    pub stranger_life: Duration,
    /// Connections with one.
    pub connections: usize,
    /// Of these, of one identity.
    pub per_identity: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Half of what the system lets this process open; the rest is for the fleet's work.
        let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let open = open.map_or(usize::MAX, |open| open.try_into().unwrap_or(usize::MAX));
        Self {
            handshakes: 128.min(open / 16),
            handshakes_per_address: 16,
            handshake: Duration::from_secs(5),
            strangers: 32,
            stranger_life: Duration::from_secs(30),
            connections: 4096.min(open / 4),
            per_identity: 64,
        }
    }
}

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 256;
/// Longest header list.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// Connections on their way to the server.
const READY_MAX: usize = 16;
/// After an accept that failed: the system is short of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the ends of certificates are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// A connection that answers no ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// What the listener is made of.
pub struct Parts {
    /// Bound.
    pub listener: TcpListener,
    /// The services behind it.
    pub routes: Routes,
    /// The door in front of them.
    pub admission: Admission,
    /// Who this agent is.
    pub credentials: Credentials,
    /// Who is let in.
    pub guards: Guards,
    /// How much.
    pub limits: Limits,
}

/// Serves until cancelled.
pub fn serve(parts: Parts, cancel: CancellationToken, tracker: &TaskTracker) {
    let Parts {
        listener,
        routes,
        admission,
        credentials,
        guards,
        limits,
    } = parts;
    let (ready, incoming) = mpsc::channel(READY_MAX);
    let open = Arc::new(Open::default());
    let acceptor = Acceptor {
        handshakes: Arc::new(Semaphore::new(limits.handshakes)),
        strangers: Arc::new(Semaphore::new(limits.strangers)),
        connections: Arc::new(Semaphore::new(limits.connections)),
        addresses: Arc::default(),
        open: open.clone(),
        credentials,
        guards: guards.clone(),
        limits,
        tracker: tracker.clone(),
        ready,
    };
    tracker.spawn(
        cancel
            .clone()
            .run_until_cancelled_owned(acceptor.run(listener, cancel.clone())),
    );
    tracker.spawn(
        cancel
            .clone()
            .run_until_cancelled_owned(sweep(open, guards)),
    );
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .layer(admission)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            cancel.clone().cancelled_owned(),
        );
    tracker.spawn(super::until_stopped(server, cancel, "the listener"));
}

/// What is under way from one address; gone when nothing is.
type Addresses = Mutex<HashMap<IpAddr, usize>>;

#[derive(Clone)]
struct Acceptor {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    open: Arc<Open>,
    credentials: Credentials,
    guards: Guards,
    limits: Limits,
    tracker: TaskTracker,
    ready: mpsc::Sender<io::Result<Guarded>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, cancel: CancellationToken) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.handshakes.clone().try_acquire_owned() else {
                self.refuse(address, "nobody", "too many handshakes are under way");
                continue;
            };
            let Some(seat) = Seat::take(&self.addresses, address.ip(), self.limits) else {
                self.refuse(address, "nobody", "too many handshakes from one address");
                continue;
            };
            let acceptor = self.clone();
            self.tracker
                .spawn(cancel.clone().run_until_cancelled_owned(async move {
                    let guarded = acceptor.shake_hands(stream, address).await;
                    drop((place, seat));
                    if let Some(guarded) = guarded {
                        // Only fails when the server has ended.
                        let _ = acceptor.ready.send(Ok(guarded)).await;
                    }
                }));
        }
    }

    async fn shake_hands(&self, stream: TcpStream, address: SocketAddr) -> Option<Guarded> {
        // Small messages go at once.
        let _ = stream.set_nodelay(true);
        let config = self.credentials.current().server.clone();
        let shaken = tokio::time::timeout(
            self.limits.handshake,
            TlsAcceptor::from(config).accept(stream),
        );
        let stream = match shaken.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.refuse(address, "nobody", &cause_of(&error));
                return None;
            }
            Err(_) => {
                self.refuse(address, "nobody", "the handshake took too long");
                return None;
            }
        };
        // The verifier has seen it already.
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| {
            let peer = Peer::from_der(chain.first()?).ok()?;
            Some(Arc::new(peer))
        });
        let who = peer
            .as_ref()
            .map_or("nobody".to_owned(), ToString::to_string);
        // One that is revoked gets no place of a member, but its answer: the door refuses each call.
        let member = peer
            .clone()
            .filter(|peer| !self.guards.revoked.contains(&peer.serial));
        let room = match &member {
            Some(_) => self.connections.clone().try_acquire_owned(),
            None => self.strangers.clone().try_acquire_owned(),
        };
        let Ok(place) = room else {
            self.refuse(address, &who, "too many connections are open");
            return None;
        };
        let severed = CancellationToken::new();
        if member.is_none() {
            // It is worth a request or two, not a place for ever.
            let (severed, life) = (severed.clone(), self.limits.stranger_life);
            self.tracker.spawn(async move {
                if severed
                    .run_until_cancelled(tokio::time::sleep(life))
                    .await
                    .is_some()
                {
                    severed.cancel();
                }
            });
        }
        let entry = self
            .open
            .enter(member, severed.clone(), self.limits.per_identity);
        let Some(entry) = entry else {
            self.refuse(address, &who, "too many connections of one identity");
            return None;
        };
        Some(Guarded {
            stream: Box::pin(stream),
            severed: Box::pin(severed.clone().cancelled_owned()),
            connection: Connection { address, peer },
            overheard: Overheard::default(),
            refusals: self.guards.refusals.clone(),
            _end: severed.drop_guard(),
            _entry: entry,
            _place: place,
        })
    }

    fn refuse(&self, address: SocketAddr, who: &str, cause: &str) {
        refuse(&self.guards.refusals, address, who, cause);
    }
}

fn refuse(refusals: &Refusals, address: SocketAddr, who: &str, cause: &str) {
    let from = address.to_string();
    refusals.report(Refusal::new(who, &from, "connect", cause.to_owned()));
}

/// What went wrong in a handshake, in words that do not vary with what the other end sent.
fn cause_of(error: &io::Error) -> String {
    use rustls::{CertificateError as Certificate, Error as Tls};

    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Tls>());
    let text = match tls {
        Some(Tls::InvalidCertificate(
            Certificate::Expired | Certificate::ExpiredContext { .. },
        )) => "the certificate has ended",
        Some(Tls::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        )) => "the certificate is not valid yet",
        Some(Tls::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature)) => {
            "the certificate is of another authority"
        }
        Some(Tls::InvalidCertificate(Certificate::ApplicationVerificationFailure)) => {
            "the certificate is of another fleet"
        }
        Some(Tls::InvalidCertificate(_)) => "the certificate is not valid",
        Some(Tls::AlertReceived(_)) => "the other end does not trust this agent",
        Some(_) => "it does not speak TLS 1.3",
        None => "the connection broke in the handshake",
    };
    text.to_owned()
}

/// One of the handshakes of an address.
struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Seat {
    fn take(addresses: &Arc<Addresses>, address: IpAddr, limits: Limits) -> Option<Self> {
        let mut taken = addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= limits.handshakes_per_address {
            return None;
        }
        *count += 1;
        Some(Self {
            addresses: addresses.clone(),
            address,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// The connections that are open, by number.
#[derive(Default)]
struct Open {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Member>>,
}

struct Member {
    peer: Option<Arc<Peer>>,
    severed: CancellationToken,
}

impl Open {
    fn enter(
        self: &Arc<Self>,
        peer: Option<Arc<Peer>>,
        severed: CancellationToken,
        per_identity: usize,
    ) -> Option<Entry> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = &peer {
            let same = |member: &&Member| {
                let known = member.peer.as_ref();
                known.is_some_and(|known| known.name == peer.name && known.role == peer.role)
            };
            if all.values().filter(same).count() >= per_identity {
                return None;
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        all.insert(number, Member { peer, severed });
        Some(Entry {
            open: self.clone(),
            number,
        })
    }

    /// Ends the connections whose certificate does not count any more.
    fn sever(&self, gone: impl Fn(&Serial, i64) -> bool) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for member in all.values() {
            let Some(peer) = &member.peer else { continue };
            if gone(&peer.serial, peer.not_after) {
                member.severed.cancel();
            }
        }
    }
}

/// A connection's line in [`Open`].
struct Entry {
    open: Arc<Open>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.open.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.number);
    }
}

async fn sweep(open: Arc<Open>, guards: Guards) {
    let mut revoked = guards.revoked.watch();
    // Without a store that changes it the list's sender is gone: then only time matters.
    let mut changes = true;
    loop {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |now| now.as_secs().try_into().unwrap_or(i64::MAX));
        let list = revoked.borrow_and_update().clone();
        open.sever(|serial, not_after| not_after <= now || list.contains_key(serial));
        tokio::select! {
            changed = revoked.changed(), if changes => changes = changed.is_ok(),
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

/// A connection with its place, which breaks off when it is severed.
struct Guarded {
    stream: Pin<Box<ServerStream<TcpStream>>>,
    severed: Pin<Box<WaitForCancellationFutureOwned>>,
    connection: Connection,
    overheard: Overheard,
    refusals: Refusals,
    _end: tokio_util::sync::DropGuard,
    _entry: Entry,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match std::future::Future::poll(self.severed.as_mut(), context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Writes down why the connection ends.
    fn refuse(&self, cause: &str) {
        let Connection { address, peer } = &self.connection;
        let who = peer
            .as_ref()
            .map_or("nobody".to_owned(), ToString::to_string);
        refuse(&self.refusals, *address, &who, cause);
    }
}

impl Connected for Guarded {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        let read = self.stream.as_mut().poll_read(context, buffer);
        if !self.overheard.came_in(&buffer.filled()[before..]) {
            self.refuse("what it sends inside of TLS is not HTTP/2");
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = self.stream.as_mut().poll_write(context, buffer);
        if let Poll::Ready(Ok(len)) = written
            && let Some(fault) = self.overheard.went_out(&buffer[..len])
        {
            self.refuse(fault);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}
