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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// A handle on one TCP connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(Arc<WireState>);

#[derive(Debug, Default)]
struct WireState {
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Wire {
    /// Ends the connection by a TCP reset: no close frame, no FIN.
    pub(crate) fn reset(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.waker.wake();
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
    open: Mutex<HashMap<u64, Wire>>,
}

impl Wires {
    /// Cuts every connection.
    pub(crate) fn reset_all(&self) {
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
                            tcp,
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
    tcp: TcpStream,
    wire: Wire,
    id: u64,
    wires: Wires,
}

impl Stream {
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.wire.0.waker.register(context.waker());
        if self.wire.is_cut() {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.wires.open().remove(&self.id);
        if self.wire.is_cut() {
            // A failure leaves an orderly FIN: the connection ends all the same.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
