//! One client's WebSocket: frames in, replies out.
//!
//! Requests of one connection are carried out side by side and answered as they finish; writes keep
//! their order, and a read that was sent after a write of the same guild sees it. A connection that
//! does not take its replies is cut off.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tokio_websockets::{CloseCode, Config, Limits, Message, ServerBuilder, WebSocketStream};

use crate::config::Tuning;
use crate::node::{Handled, Node, Reply, Session};
use crate::reply;
use crate::row::Style;

/// Requests of one connection that are being carried out; further ones wait in the socket.
const IN_FLIGHT: usize = 1024;
/// Other nodes add a few members to a request that they pass on.
const FORWARDING_BYTES: usize = 64 << 10;

/// A connection that has said nothing for this long is asked whether it still lives.
const PING_AFTER: Duration = Duration::from_secs(30);
/// A connection that has not even answered that is given up.
const GONE_AFTER: Duration = Duration::from_secs(90);

enum End {
    /// The client closed, or was lost.
    Gone,
    /// We close, and say why.
    Close(CloseCode, &'static str),
}

/// Serves the connection until it ends or `stop` is cancelled.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    node: &Arc<Node>,
    stream: S,
    style: Style,
    tuning: &Tuning,
    stop: &CancellationToken,
) {
    let mut socket = ServerBuilder::new()
        .config(Config::default().flush_threshold(64 << 10))
        .limits(
            Limits::default().max_payload_len(Some(tuning.message_bytes_max + FORWARDING_BYTES)),
        )
        .serve(stream);
    let patience = Duration::from_millis(tuning.slow_reader_ms);
    match exchange(node, &mut socket, style, tuning, stop, patience).await {
        End::Gone => {}
        End::Close(code, reason) => {
            let close = async {
                socket.send(Message::close(Some(code), reason)).await?;
                // Wait for the client's own close frame, so that it sees ours.
                while let Some(Ok(_)) = socket.next().await {}
                Ok::<(), tokio_websockets::Error>(())
            };
            let _ = timeout(Duration::from_secs(1), close).await;
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    node: &Arc<Node>,
    socket: &mut WebSocketStream<S>,
    style: Style,
    tuning: &Tuning,
    stop: &CancellationToken,
    patience: Duration,
) -> End {
    let mut session = Session::new(style);
    let mut later: FuturesUnordered<Numbered> = FuturesUnordered::new();
    let mut dirty = false;
    let mut stopping = false;
    let mut heard = Instant::now();
    let mut pulse = tokio::time::interval(PING_AFTER);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let reply = tokio::select! {
            biased;
            Some((number, reply)) = later.next(), if !later.is_empty() => {
                if let Some(number) = number {
                    session.write_answered(number);
                }
                reply
            }
            message = socket.next(), if !stopping && later.len() < IN_FLIGHT => {
                heard = Instant::now();
                let message = match message {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => return broken(&error),
                    None => return End::Gone,
                };
                if message.is_text() {
                    let Some(text) = message.as_text() else { continue };
                    if text.len() > tuning.message_bytes_max && !text.contains("\"forwarded\"") {
                        return End::Close(CloseCode::MESSAGE_TOO_BIG, "the message is too large; send rows in smaller parts");
                    }
                    match node.handle(text, &mut session) {
                        Handled::Now(reply) => reply,
                        Handled::Later(number, reply) => {
                            later.push(Numbered { number, reply });
                            continue;
                        }
                    }
                } else if message.is_binary() {
                    node.metrics.invalid.fetch_add(1, Relaxed);
                    reply::invalid_json()
                } else if message.is_close() {
                    return End::Gone;
                } else {
                    continue;
                }
            }
            _ = pulse.tick() => {
                if heard.elapsed() > GONE_AFTER {
                    return End::Gone;
                }
                if heard.elapsed() >= PING_AFTER {
                    dirty = true;
                    match timeout(patience, socket.feed(Message::ping(""))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return End::Gone,
                        Err(_) => return slow(node),
                    }
                }
                continue;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                continue;
            }
            () = std::future::ready(()), if dirty => {
                dirty = false;
                match timeout(patience, socket.flush()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => return End::Gone,
                    Err(_) => return slow(node),
                }
            }
            () = std::future::ready(()), if stopping && later.is_empty() => {
                return End::Close(CloseCode::GOING_AWAY, "the node is stopping");
            }
        };
        dirty = true;
        match timeout(patience, socket.feed(Message::text(reply))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Gone,
            Err(_) => return slow(node),
        }
    }
}

fn slow(node: &Node) -> End {
    node.metrics.slow_readers.fetch_add(1, Relaxed);
    tracing::warn!("connection cut off: it does not read its replies");
    End::Gone
}

fn broken(error: &tokio_websockets::Error) -> End {
    match error {
        tokio_websockets::Error::PayloadTooLong { .. } => End::Close(
            CloseCode::MESSAGE_TOO_BIG,
            "the message is too large; send rows in smaller parts",
        ),
        // The library has answered a breach of the WebSocket protocol with a close frame itself.
        _ => End::Gone,
    }
}

/// A reply to come, with the number of the write that it settles.
struct Numbered {
    number: Option<u64>,
    reply: Reply,
}

impl Future for Numbered {
    type Output = (Option<u64>, Vec<u8>);

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let number = self.number;
        self.reply.as_mut().poll(cx).map(|reply| (number, reply))
    }
}
