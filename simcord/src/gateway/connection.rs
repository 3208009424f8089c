//! One WebSocket connection: reads what the client sends, writes what the hub has for it.
//!
//! Reading and writing go on side by side within one task, so that a client that is slow to read can still
//! prove that it is alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::compression::{Compression, Encoder};
use super::limits::SendLimit;
use super::protocol::{PAYLOAD_BYTES_MAX, decode};
use super::{CloseCode, Command, Control, Link, event};
use crate::app::App;
use crate::hub::{Admission, Fetched, Frame};
use crate::server::Wire;

/// Messages above this are not even read to their end. Discord's own limit is [`PAYLOAD_BYTES_MAX`].
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Events written between two flushes.
const BATCH_EVENTS: usize = 256;
const BATCH_BYTES: usize = 256 * 1024;
/// A client that takes nothing for this long is cut off.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// How long the other side has to answer a close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The query of a gateway URL.
#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    v: Option<String>,
    encoding: Option<String>,
    compress: Option<String>,
}

/// `GET /`, `/gateway`: opens a connection.
pub(crate) async fn open(
    State(app): State<Arc<App>>,
    ConnectInfo(wire): ConnectInfo<Wire>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if app.hub().gateway_is_out(Instant::now()) {
        wire.reset();
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if parameters
        .encoding
        .as_deref()
        .is_some_and(|encoding| encoding != "json")
    {
        return (StatusCode::BAD_REQUEST, "only encoding=json is served\n").into_response();
    }
    let Some(compression) = Compression::parse(parameters.compress.as_deref()) else {
        return (
            StatusCode::BAD_REQUEST,
            "compress must be zlib-stream or zstd-stream\n",
        )
            .into_response();
    };
    let encoder = match Encoder::new(compression) {
        Ok(encoder) => encoder,
        Err(error) => {
            tracing::error!(%error, "cannot make a compression stream");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let right_version = parameters.v.as_deref() == Some("10");
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| async move {
            Connection::new(app, wire)
                .run(socket, encoder, right_version)
                .await;
        })
}

/// `GET /resume`: as [`open`], unless resume URLs are dead.
pub(crate) async fn open_for_resume(
    state: State<Arc<App>>,
    ConnectInfo(wire): ConnectInfo<Wire>,
    query: Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if state.hub().faults.resume_url_dead {
        wire.reset();
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    open(state, ConnectInfo(wire), query, upgrade).await
}

struct Connection {
    app: Arc<App>,
    link: Arc<Link>,
    heartbeat_interval: Duration,
    /// How late a heartbeat may be before the client counts as dead.
    heartbeat_patience: Duration,
}

/// How a connection ended.
enum End {
    /// The client sent a close frame, with a code or without.
    Received(Option<u16>),
    /// The connection broke.
    Gone,
    /// We sent a close frame.
    Sent,
}

impl Connection {
    fn new(app: Arc<App>, wire: Wire) -> Self {
        let (link, heartbeat_interval, patience) = {
            let mut hub = app.hub();
            let link = hub.connected(wire);
            let config = &hub.config;
            (link, config.heartbeat_interval, config.heartbeat_patience)
        };
        let heartbeat_patience =
            patience.unwrap_or_else(|| (heartbeat_interval / 2).max(Duration::from_secs(1)));
        Self {
            app,
            link,
            heartbeat_interval,
            heartbeat_patience,
        }
    }

    async fn run(self, socket: WebSocket, encoder: Encoder, right_version: bool) {
        let hello = json!({ "t": null, "s": null, "op": 10, "d": {
            "heartbeat_interval": self.heartbeat_interval.as_millis() as u64,
            "_trace": ["[\"simcord\",{\"micros\":0}]"],
        }});
        self.link.control(if right_version {
            Control::Send(hello.to_string())
        } else {
            Control::Close(CloseCode::InvalidApiVersion)
        });
        let (mut sink, mut stream) = socket.split();
        let end = tokio::select! {
            end = self.read(&mut stream) => end,
            end = self.write(&mut sink, encoder) => end,
        };
        match end {
            End::Received(code) => {
                self.app.hub().account.close_received(code.unwrap_or(1005));
                self.release(matches!(code, Some(1000 | 1001)));
            }
            End::Gone => {
                self.app.hub().account.close_received(1006);
                self.release(false);
            }
            // Released before the close frame went out.
            End::Sent => {}
        }
        // The other half of the closing handshake. What still comes from the client is read and dropped, so that
        // unread bytes do not turn our close frame into a reset.
        let _ = timeout(CLOSE_WAIT, async {
            while let Some(Ok(_)) = stream.next().await {}
        })
        .await;
    }

    fn release(&self, void: bool) {
        self.app
            .hub()
            .disconnected(Instant::now(), &self.link, self.link.session(), void);
    }

    async fn read(&self, stream: &mut SplitStream<WebSocket>) -> End {
        let mut sends = SendLimit::default();
        let patience = self.heartbeat_interval + self.heartbeat_patience;
        let mut heard = Instant::now();
        // After a violation the close frame is on its way; everything else is read and dropped.
        let mut violated = false;
        loop {
            let left = patience.saturating_sub(heard.elapsed());
            let message = if violated || self.link.is_silenced() {
                stream.next().await
            } else {
                match timeout(left, stream.next()).await {
                    Ok(message) => message,
                    Err(_) if self.link.is_silenced() => continue,
                    Err(_) => {
                        self.link
                            .control(Control::Close(CloseCode::SessionTimedOut));
                        violated = true;
                        continue;
                    }
                }
            };
            let outcome = match message {
                // After what cannot be read nothing more is: our close frame goes out all the same.
                None if violated => {
                    tokio::time::sleep(CLOSE_WAIT).await;
                    return End::Gone;
                }
                None => return End::Gone,
                Some(Ok(Message::Close(frame))) => {
                    return End::Received(frame.map(|frame| frame.code));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(_) if violated => continue,
                Some(Ok(Message::Text(text))) => {
                    self.receive(text.as_bytes(), &mut sends, &mut heard)
                }
                Some(Ok(Message::Binary(bytes))) => self.receive(&bytes, &mut sends, &mut heard),
                Some(Err(error)) if is_broken(&error) => return End::Gone,
                // Too long, not UTF-8, or not a WebSocket frame at all.
                Some(Err(_)) => Err(CloseCode::DecodeError),
            };
            if let Err(code) = outcome {
                self.link.linger();
                self.link.control(Control::Close(code));
                violated = true;
            }
        }
    }

    fn receive(
        &self,
        payload: &[u8],
        sends: &mut SendLimit,
        heard: &mut Instant,
    ) -> Result<(), CloseCode> {
        let now = Instant::now();
        let mut hub = self.app.hub();
        hub.account.sends += 1;
        if !sends.send(now) {
            return Err(CloseCode::RateLimited);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(CloseCode::DecodeError);
        }
        let session = self.link.session();
        let admission = match decode(payload)? {
            Command::Heartbeat(seq) => {
                *heard = now;
                hub.heartbeat(now, &self.link, session, seq);
                self.link.control(Control::Send(
                    r#"{"t":null,"s":null,"op":11,"d":null}"#.to_owned(),
                ));
                return Ok(());
            }
            Command::Identify(_) | Command::Resume(_) if session.is_some() => {
                return Err(CloseCode::AlreadyAuthenticated);
            }
            Command::Identify(identify) => hub.identify(now, &self.link, &identify),
            Command::Resume(resume) => hub.resume(now, &self.link, &resume),
            Command::Ignored | Command::RequestGuildMembers(_) if session.is_none() => {
                return Err(CloseCode::NotAuthenticated);
            }
            Command::Ignored => return Ok(()),
            Command::RequestGuildMembers(request) => {
                hub.request_members(now, session, &request);
                return Ok(());
            }
        };
        match admission {
            Admission::Attached(key) => self.link.attach(key),
            Admission::InvalidSession => {
                self.link.control(Control::Send(
                    r#"{"t":null,"s":null,"op":9,"d":false}"#.to_owned(),
                ));
            }
            Admission::Close(code) => return Err(code),
        }
        Ok(())
    }

    async fn write(&self, sink: &mut SplitSink<WebSocket, Message>, mut encoder: Encoder) -> End {
        loop {
            let mut wrote = false;
            while let Some(control) = self.link.next_control() {
                wrote = true;
                match control {
                    Control::Send(payload) => {
                        if self.feed(sink, &mut encoder, payload).await.is_err() {
                            return End::Gone;
                        }
                    }
                    Control::Close(code) => return self.close(sink, code).await,
                }
            }
            let fetched = match self.link.session().filter(|_| !self.link.is_silenced()) {
                Some(key) => self
                    .app
                    .hub()
                    .fetch(&self.link, key, BATCH_EVENTS, BATCH_BYTES),
                None => None,
            };
            match fetched {
                Some(Fetched::Frames(frames)) => {
                    for Frame { seq, name, body } in frames {
                        wrote = true;
                        if self
                            .feed(sink, &mut encoder, event::frame(&name, seq, &body))
                            .await
                            .is_err()
                        {
                            return End::Gone;
                        }
                    }
                }
                Some(Fetched::FellBehind) => {
                    tracing::warn!(
                        "a client is too slow: events left its buffer before it took them"
                    );
                    if let Some(key) = self.link.session() {
                        self.app.hub().void(key);
                    }
                    return self.close(sink, CloseCode::UnknownError).await;
                }
                None => {}
            }
            if wrote {
                match timeout(WRITE_STALL, sink.flush()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return End::Gone,
                    Err(_) => return self.stalled(),
                }
            } else {
                self.link.woken().await;
            }
        }
    }

    async fn feed(
        &self,
        sink: &mut SplitSink<WebSocket, Message>,
        encoder: &mut Encoder,
        payload: String,
    ) -> Result<(), ()> {
        let message = encoder.encode(payload).map_err(|error| {
            tracing::error!(%error, "cannot compress a payload");
        })?;
        let Ok(sent) = timeout(WRITE_STALL, sink.feed(message)).await else {
            self.stalled();
            return Err(());
        };
        sent.map_err(|_| ())
    }

    fn stalled(&self) -> End {
        tracing::warn!("a client takes nothing any more; its connection is cut");
        self.link.reset();
        End::Gone
    }

    async fn close(&self, sink: &mut SplitSink<WebSocket, Message>, code: CloseCode) -> End {
        let (code, reason) = code.parts();
        // First the session, then the frame: a client that resumes at once must find its session waiting.
        self.release(matches!(code, 1000 | 1001));
        self.app.hub().account.close_sent(code);
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        let _ = timeout(CLOSE_WAIT, sink.send(Message::Close(Some(frame)))).await;
        End::Sent
    }
}

/// Whether a read failed because the connection is gone, rather than because of what the client sent.
fn is_broken(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    let text = error.to_string();
    text.contains("closed") || text.contains("Connection reset")
}
