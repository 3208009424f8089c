//! The link to another node: one persistent WebSocket, many requests in flight.
//!
//! ```text
//! Down ──request or backoff over──▶ Connecting ──▶ Up ──lost──▶ Down
//!   requests fail at once             requests wait    requests in flight fail
//! ```
//!
//! Requests go out in the order in which they were handed over. Every request has a deadline: a
//! caller always gets an answer in time, if only that the node cannot be reached.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_websockets::{ClientBuilder, Limits, Message, WebSocketStream};

use crate::config::Token;
use crate::failure::{Code, Failure};

const CONNECT_WITHIN: Duration = Duration::from_millis(1_000);
/// Requests handed over but not yet sent.
const QUEUE: usize = 2048;
/// Requests sent but not yet answered.
const IN_FLIGHT: usize = 2048;
const REPLY_BYTES_MAX: usize = 64 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The part of a peer's reply after its request id: `"success":…}`.
pub type Reply = Result<Vec<u8>, Failure>;

struct Outbound {
    /// Everything after the request id: `"action":…}`.
    rest: String,
    answer: oneshot::Sender<Reply>,
    deadline: Instant,
}

/// A handle to a link. The link ends when its token is cancelled.
#[derive(Clone)]
pub struct Link {
    name: String,
    deadline: Duration,
    requests: mpsc::Sender<Outbound>,
    up: watch::Receiver<bool>,
}

/// Where and how to reach the peer.
#[derive(Clone)]
pub struct Peer {
    /// Its name in the ring.
    pub name: String,
    /// Its address.
    pub url: Uri,
    /// The fleet's token.
    pub token: Token,
    /// A request is answered, or failed, within this time.
    pub deadline: Duration,
}

impl Link {
    /// The link and the task that carries it out.
    pub fn new(
        peer: Peer,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (up_sender, up) = watch::channel(false);
        let link = Self {
            name: peer.name.clone(),
            deadline: peer.deadline,
            requests,
            up,
        };
        let task = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = run(&peer, queue, &up_sender) => {}
            }
        };
        (link, task)
    }

    /// Whether the connection stands.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Hands a request over now; the future waits for the answer.
    pub fn send(&self, rest: String) -> impl Future<Output = Reply> + Send + 'static {
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + self.deadline;
        let sent = self.requests.try_send(Outbound {
            rest,
            answer,
            deadline,
        });
        let name = self.name.clone();
        async move {
            if let Err(error) = sent {
                return Err(match error {
                    mpsc::error::TrySendError::Full(_) => Failure::new(
                        Code::Overloaded,
                        format!("Too many requests wait for node {name}: retry after a pause"),
                    ),
                    mpsc::error::TrySendError::Closed(_) => {
                        unreachable(&name, "this node is stopping")
                    }
                });
            }
            match tokio::time::timeout_at(deadline.into(), receiver).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(_)) => Err(unreachable(&name, "the link was closed")),
                Err(_) => Err(unreachable(
                    &name,
                    "it does not answer; a write may or may not have happened",
                )),
            }
        }
    }
}

fn unreachable(name: &str, why: &str) -> Failure {
    Failure::new(
        Code::Unavailable,
        format!("Node {name} cannot be reached: {why}. Retry after a pause"),
    )
}

type Socket = WebSocketStream<TcpStream>;

async fn run(peer: &Peer, mut queue: mpsc::Receiver<Outbound>, up: &watch::Sender<bool>) {
    let mut backoff = BACKOFF_FIRST;
    let mut told = false;
    loop {
        match connect(peer).await {
            Ok(socket) => {
                tracing::info!(peer = %peer.name, "linked");
                told = false;
                up.send_replace(true);
                let started = Instant::now();
                let why = serve(peer, socket, &mut queue).await;
                up.send_replace(false);
                tracing::warn!(peer = %peer.name, reason = %why, "link lost");
                if started.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_FIRST;
                }
                if queue.is_closed() {
                    return;
                }
            }
            Err(why) => {
                if !told {
                    tracing::warn!(peer = %peer.name, reason = %why, "cannot link; retrying");
                    told = true;
                }
                // Whoever waited for this attempt learns its outcome at once.
                while let Ok(request) = queue.try_recv() {
                    let _ = request.answer.send(Err(unreachable(&peer.name, &why)));
                }
            }
        }
        let wait = backoff / 2 + backoff.mul_f64(fastrand::f64() / 2.0);
        backoff = (backoff * 2).min(BACKOFF_MAX);
        let until = tokio::time::Instant::now() + wait;
        loop {
            match tokio::time::timeout_at(until, queue.recv()).await {
                Err(_) => break,
                Ok(None) => return,
                Ok(Some(request)) => {
                    let _ = request
                        .answer
                        .send(Err(unreachable(&peer.name, "the connection is down")));
                }
            }
        }
    }
}

async fn connect(peer: &Peer) -> Result<Socket, String> {
    let host = peer.url.host().unwrap_or_default();
    let port = peer.url.port_u16().unwrap_or_default();
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", peer.token.expose()))
        .map_err(|_| "the token cannot be sent in a header".to_owned())?;
    bearer.set_sensitive(true);
    let builder = ClientBuilder::from_uri(peer.url.clone())
        .limits(Limits::default().max_payload_len(Some(REPLY_BYTES_MAX)))
        .add_header(AUTHORIZATION, bearer)
        .map_err(|error| error.to_string())?;
    let connecting = async {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let (socket, _) = builder
            .connect_on(stream)
            .await
            .map_err(|error| error.to_string())?;
        Ok(socket)
    };
    tokio::time::timeout(CONNECT_WITHIN, connecting)
        .await
        .map_err(|_| "it does not accept the connection".to_owned())?
}

/// Carries requests until the connection fails; says why it failed.
async fn serve(peer: &Peer, mut socket: Socket, queue: &mut mpsc::Receiver<Outbound>) -> String {
    let mut waiting: HashMap<u64, (oneshot::Sender<Reply>, Instant)> = HashMap::new();
    let mut next_id = 0u64;
    let mut check = tokio::time::interval(Duration::from_millis(250));
    let mut heard = Instant::now();
    let why = loop {
        tokio::select! {
            request = queue.recv(), if waiting.len() < IN_FLIGHT => {
                let Some(mut request) = request else { break "this node is stopping".to_owned() };
                let mut failed = None;
                // Take along whatever else is waiting, then flush once.
                loop {
                    next_id += 1;
                    if request.deadline > Instant::now() && !request.answer.is_closed() {
                        let text = format!("{{\"request_id\":{next_id},{}", request.rest);
                        waiting.insert(next_id, (request.answer, request.deadline));
                        let fed = tokio::time::timeout(peer.deadline, socket.feed(Message::text(text))).await;
                        if !matches!(fed, Ok(Ok(()))) {
                            failed = Some("it does not take requests".to_owned());
                            break;
                        }
                    }
                    if waiting.len() >= IN_FLIGHT {
                        break;
                    }
                    match queue.try_recv() {
                        Ok(next) => request = next,
                        Err(_) => break,
                    }
                }
                if failed.is_none() && !matches!(tokio::time::timeout(peer.deadline, socket.flush()).await, Ok(Ok(()))) {
                    failed = Some("it does not take requests".to_owned());
                }
                if let Some(why) = failed {
                    break why;
                }
            }
            message = socket.next() => match message {
                Some(Ok(message)) if message.is_text() => {
                    heard = Instant::now();
                    let payload = message.into_payload();
                    if let Some((id, rest)) = split_reply(&payload)
                        && let Some((answer, _)) = waiting.remove(&id)
                    {
                        let _ = answer.send(Ok(rest.to_vec()));
                    }
                }
                Some(Ok(message)) if message.is_close() => break "it closed the connection".to_owned(),
                Some(Ok(_)) => heard = Instant::now(),
                Some(Err(error)) => break error.to_string(),
                None => break "it closed the connection".to_owned(),
            },
            _ = check.tick() => {
                let now = Instant::now();
                let before = waiting.len();
                waiting.retain(|_, (_, deadline)| *deadline > now);
                if waiting.len() < before && heard.elapsed() > peer.deadline {
                    break "it does not answer".to_owned();
                }
            }
        }
    };
    for (answer, _) in waiting.into_values() {
        let _ = answer.send(Err(unreachable(
            &peer.name,
            "the connection was lost; a write may or may not have happened",
        )));
    }
    why
}

/// Splits `{"request_id":N,REST` into N and REST.
fn split_reply(payload: &[u8]) -> Option<(u64, &[u8])> {
    let rest = payload.strip_prefix(b"{\"request_id\":")?;
    let comma = rest.iter().position(|byte| *byte == b',')?;
    let id = std::str::from_utf8(&rest[..comma]).ok()?.parse().ok()?;
    Some((id, &rest[comma + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_split_after_their_id() {
        assert_eq!(
            split_reply(b"{\"request_id\":17,\"success\":true}"),
            Some((17, &b"\"success\":true}"[..]))
        );
        assert_eq!(split_reply(b"{\"request_id\":null,\"success\":true}"), None);
        assert_eq!(split_reply(b"{\"success\":false}"), None);
    }
}
