//! Listening: TCP connections that can be cut from outside, as a fault or at the stop.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle on one TCP connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(Arc<WireState>);

#[derive(Debug, Default)]
struct WireState {
    cut: AtomicBool,
    linger: AtomicBool,
    waker: AtomicWaker,
}

impl Wire {
    /// Ends the connection by a TCP reset: no close frame, no FIN.
    pub(crate) fn reset(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.waker.wake();
    }

    /// When the connection is over, what the client still sends is read and dropped for a while: unread bytes
    /// would turn its end into a reset, and our last frame would be lost.
    pub(crate) fn linger(&self) {
        self.0.linger.store(true, Ordering::Release);
    }

    fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }
}

impl<'a> Connected<IncomingStream<'a, Door>> for Wire {
    fn connect_info(stream: IncomingStream<'a, Door>) -> Self {
        stream.io().wire.clone()
    }
}

/// All open TCP connections of a simulated Discord.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wires(Arc<WiresState>);

#[derive(Debug, Default)]
struct WiresState {
    next: AtomicU64,
    /// Connections that are over but still read from.
    lingering: TaskTracker,
    stop: CancellationToken,
    open: Mutex<HashMap<u64, Wire>>,
}

impl Wires {
    /// Cuts every connection.
    pub(crate) fn reset_all(&self) {
        self.0.stop.cancel();
        let open: Vec<Wire> = self.open().values().cloned().collect();
        for wire in open {
            wire.reset();
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Wire>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener whose connections can be cut.
pub(crate) struct Door {
    listener: TcpListener,
    wires: Wires,
}

impl Door {
    pub(crate) fn new(listener: TcpListener, wires: Wires) -> Self {
        Self { listener, wires }
    }
}

impl Listener for Door {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((tcp, peer)) => {
                    // Without this, small frames wait for acknowledgements; failing changes only the delay.
                    let _ = tcp.set_nodelay(true);
                    let wire = Wire::default();
                    let id = self.wires.0.next.fetch_add(1, Ordering::Relaxed);
                    self.wires.open().insert(id, wire.clone());
                    return (
                        Stream {
                            tcp: Some(tcp),
                            wire,
                            id,
                            wires: self.wires.clone(),
                        },
                        peer,
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors, most likely: give the others time to close some.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A TCP stream that can be cut through its [`Wire`].
pub(crate) struct Stream {
    /// None once dropped.
    tcp: Option<TcpStream>,
    wire: Wire,
    id: u64,
    wires: Wires,
}

impl Stream {
    fn tcp(&mut self, context: &Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        self.wire.0.waker.register(context.waker());
        match &mut self.tcp {
            Some(tcp) if !self.wire.is_cut() => Ok(Pin::new(tcp)),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// How long and how much is read of a connection that is over.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 << 20;

async fn linger(mut tcp: TcpStream, stop: CancellationToken) {
    // The FIN after our last frame; failing means that the client is gone already.
    let _ = tcp.shutdown().await;
    let drain = async {
        let mut rest = (&mut tcp).take(LINGER_BYTES);
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    };
    tokio::select! {
        _ = tokio::time::timeout(LINGER, drain) => {}
        () = stop.cancelled() => {}
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.wires.open().remove(&self.id);
        let Some(tcp) = self.tcp.take() else { return };
        if self.wire.is_cut() {
            // A failure leaves an orderly FIN: the connection ends all the same.
            let _ = tcp.set_zero_linger();
        } else if self.wire.0.linger.load(Ordering::Acquire)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let state = &self.wires.0;
            state
                .lingering
                .spawn_on(linger(tcp, state.stop.clone()), &runtime);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tcp(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tcp(context)?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tcp(context)?.poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp(context)?.poll_shutdown(context)
    }
}
