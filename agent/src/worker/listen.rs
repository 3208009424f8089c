//! The socket itself: bound with its final mode, connections counted, and cut off when they do not
//! say in time who they are.

use std::{
    collections::HashMap,
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::transport::server::Connected;

/// Connections that have not yet said who they are.
const STRANGERS_MAX: usize = 64;
/// How long they may take.
const INTRODUCE_WITHIN: Duration = Duration::from_secs(10);
/// Connections of one peer process.
const PER_PEER_MAX: u32 = 64;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// After a failed accept (no file descriptor is left) the next waits this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Binds the socket. It never exists with a wider mode than its final one.
pub(super) fn bind_socket(path: &Path, group: bool) -> io::Result<UnixListener> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let mode = if group {
        Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP
    } else {
        Mode::RUSR | Mode::WUSR
    };
    // Linux gives the file the mode of the socket's inode, less the umask.
    fchmod(&socket, mode)?;
    // Left behind by an agent that was killed: whoever holds the data directory's lock owns it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) pid: Option<u32>,
    known: Arc<AtomicBool>,
}

impl Peer {
    /// The peer has shown that it belongs to a process of ours.
    pub(super) fn introduce(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

/// A connection that is cut when its peer does not introduce itself in time.
pub(super) struct Connection {
    io: UnixStream,
    peer: Peer,
    /// Both are given up once the peer is known.
    stranger: Option<Stranger>,
    _count: Count,
}

/// A place among the strangers, and until when it may be held.
type Stranger = (OwnedSemaphorePermit, Pin<Box<Sleep>>);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stranger.is_some() {
            if self.peer.known.load(Ordering::Relaxed) {
                self.stranger = None;
            } else if let Some((_, deadline)) = &mut self.stranger
                && deadline.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Counts = Arc<Mutex<HashMap<u32, u32>>>;

/// One connection of a peer.
struct Count {
    counts: Counts,
    pid: u32,
}

impl Count {
    /// `None` when the peer has too many.
    fn take(counts: &Counts, pid: u32) -> Option<Self> {
        let mut by_pid = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_pid.entry(pid).or_default();
        if *count >= PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Self {
            counts: Arc::clone(counts),
            pid,
        })
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let mut by_pid = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_pid.get_mut(&self.pid) {
            *count -= 1;
            if *count == 0 {
                by_pid.remove(&self.pid);
            }
        }
    }
}

/// The connections as they come; never ends.
pub(super) fn accept(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let counts = Counts::default();
    futures_util::stream::unfold(
        (listener, strangers, counts),
        |(listener, strangers, counts)| async move {
            loop {
                let io = match listener.accept().await {
                    Ok((io, _)) => io,
                    Err(error) => {
                        tracing::warn!(error = %error, "worker socket cannot accept");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                };
                let pid = io
                    .peer_cred()
                    .ok()
                    .and_then(|cred| u32::try_from(cred.pid()?).ok());
                let Some(count) = Count::take(&counts, pid.unwrap_or(0)) else {
                    continue;
                };
                // Waiting for a place is bounded: each stranger leaves within the time above.
                let Ok(place) = Arc::clone(&strangers).acquire_owned().await else {
                    return None;
                };
                let connection = Connection {
                    io,
                    peer: Peer {
                        pid,
                        known: Arc::default(),
                    },
                    stranger: Some((place, Box::pin(tokio::time::sleep(INTRODUCE_WITHIN)))),
                    _count: count,
                };
                return Some((Ok(connection), (listener, strangers, counts)));
            }
        },
    )
}
