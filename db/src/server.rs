//! The listener: HTTP for `/health` and `/metrics`, WebSocket upgrades for everything else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Tuning;
use crate::connection;
use crate::node::Node;
use crate::row::Style;

/// A client must have sent its request head within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Connections that are stopping have this long to finish what is in flight.
const FINISH_WITHIN: Duration = Duration::from_secs(8);
/// How long accepting pauses after the system refused (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error(
        "cannot listen on {0}: the port is in use. Stop the process that uses it (ss -ltnp shows which), or choose another with --listen; port 0 takes any free one"
    )]
    InUse(SocketAddr),
    /// The operating system refused.
    #[error("cannot listen on {address}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Server {
    /// Takes the port.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address),
            _ => ListenError::Io { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled and what is in flight has been answered.
    pub async fn run(self, node: Arc<Node>, tuning: Tuning, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if connections.len() >= tuning.connections_max {
                node.metrics.connections_refused.fetch_add(1, Relaxed);
                connections.spawn(refuse(stream));
                continue;
            }
            let _ = stream.set_nodelay(true);
            let shared = Arc::new(Shared {
                node: Arc::clone(&node),
                tuning,
                stop: stop.clone(),
                connections: connections.clone(),
            });
            connections.spawn(http(stream, shared));
        }
        drop(self.listener);
        connections.close();
        if tokio::time::timeout(FINISH_WITHIN, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "connections did not finish in time"
            );
        }
    }
}

struct Shared {
    node: Arc<Node>,
    tuning: Tuning,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Too many connections: say so rather than hang. Bounded by its own deadline.
async fn refuse(stream: TcpStream) {
    use tokio::io::AsyncWriteExt;
    const TEXT: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 43\r\nconnection: close\r\n\r\ntoo many connections; close some and retry\n";
    let mut stream = stream;
    let _ = tokio::time::timeout(Duration::from_millis(500), stream.write_all(TEXT)).await;
}

async fn http(stream: TcpStream, shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(request, shared)) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    // Clients that break off or send no HTTP end here; there is nothing to do about them.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn respond(mut request: Request<Incoming>, shared: Arc<Shared>) -> Response<Full<Bytes>> {
    let node = &shared.node;
    let path = request.uri().path();
    if request.method() == Method::GET && !is_upgrade(request.headers()) {
        match path {
            "/health" if node.is_draining() => {
                return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
            }
            "/health" => return text(StatusCode::OK, "OK"),
            "/metrics" => {
                let disk = node.store.engine().map_or(0, |engine| engine.disk_bytes());
                let body = node
                    .metrics
                    .render(&node.name, disk, node.store.free_bytes());
                let mut response = text(StatusCode::OK, body);
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                return response;
            }
            _ => {}
        }
    }
    if !authorised(&request, node) {
        node.metrics.auth_failures.fetch_add(1, Relaxed);
        let mut response = text(
            StatusCode::UNAUTHORIZED,
            "wrong or missing token: send the header \"Authorization: Bearer TOKEN\", or append ?token=TOKEN to the address. The token is in the node's token file.\n",
        );
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let (true, Some(key)) = (is_upgrade(request.headers()), key) else {
        let mut response = text(
            StatusCode::UPGRADE_REQUIRED,
            "this is a database node: connect with a WebSocket client. /health and /metrics answer plain requests.\n",
        );
        response
            .headers_mut()
            .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    let style = match query(request.uri().query().unwrap_or_default(), "snowflakes").as_deref() {
        Some("string") => Style::Strings,
        _ => Style::Numbers,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let connections = shared.connections.clone();
    connections.spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let node = &shared.node;
        node.metrics.connections.fetch_add(1, Relaxed);
        connection::serve(
            node,
            Stream::new(upgraded),
            style,
            &shared.tuning,
            &shared.stop,
        )
        .await;
        node.metrics.connections.fetch_sub(1, Relaxed);
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::try_from(accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name, part: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(part))
    };
    has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")
}

fn authorised(request: &Request<Incoming>, node: &Node) -> bool {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    if let Some(token) = bearer {
        return node.token().matches(token);
    }
    query(request.uri().query().unwrap_or_default(), "token")
        .is_some_and(|token| node.token().matches(&token))
}

/// The decoded value of a query parameter.
fn query(query: &str, name: &str) -> Option<String> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// The upgraded connection: the socket itself, after what hyper had already read of it.
enum Stream {
    Plain { first: Bytes, socket: TcpStream },
    Wrapped(Box<TokioIo<Upgraded>>),
}

impl Stream {
    fn new(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => Self::Plain {
                first: parts.read_buf,
                socket: parts.io.into_inner(),
            },
            Err(upgraded) => Self::Wrapped(Box::new(TokioIo::new(upgraded))),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { first, socket } => {
                if first.has_remaining() {
                    let count = first.len().min(buf.remaining());
                    buf.put_slice(&first.split_to(count));
                    return Poll::Ready(Ok(()));
                }
                Pin::new(socket).poll_read(cx, buf)
            }
            Self::Wrapped(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { socket, .. } => Pin::new(socket).poll_write(cx, buf),
            Self::Wrapped(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { socket, .. } => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Wrapped(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { socket, .. } => Pin::new(socket).poll_flush(cx),
            Self::Wrapped(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { socket, .. } => Pin::new(socket).poll_shutdown(cx),
            Self::Wrapped(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// RFC 6455, 4.2.2: proves to the client that the server speaks WebSocket.
fn accept_key(key: &[u8]) -> String {
    use base64::Engine;
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(hash.digest().bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn query_parameters_are_decoded() {
        assert_eq!(
            query("a=1&token=x%2By%3D", "token").as_deref(),
            Some("x+y=")
        );
        assert_eq!(query("token=%zz", "token"), None);
        assert_eq!(query("nottoken=1", "token"), None);
    }
}
