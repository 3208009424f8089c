//! The clients of the tests: as thin as can be, so that nothing hides what is on the wire.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use simcord::{Config, DEVELOPMENT_TOKEN, Sim};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_websockets::{CloseCode, Limits, MaybeTlsStream, Message, WebSocketStream};

/// Nothing that a test waits for takes longer, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// All intents that a bot needs to see every generated event.
pub const ALL_INTENTS: u64 = 0x1_ffff;

/// A configuration for tests: small, without waiting between IDENTIFYs, and patient with answers.
pub fn config() -> Config {
    Config {
        guilds: 12,
        max_concurrency: 16,
        identify_interval: Duration::from_nanos(1),
        answer_within: Duration::from_secs(600),
        ..Config::default()
    }
}

pub async fn start(config: Config) -> Sim {
    Sim::start(config).await.expect("simcord starts")
}

/// What came from the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    Payload(Value),
    Closed(u16),
    /// The connection ended without a close frame.
    Broken,
}

impl Received {
    pub fn payload(self) -> Value {
        match self {
            Self::Payload(payload) => payload,
            other => panic!("{other:?} instead of a payload"),
        }
    }
}

pub struct Gateway {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The newest sequence number received.
    pub seq: u64,
}

impl Gateway {
    /// Opens a connection and reads Hello.
    pub async fn connect(sim: &Sim) -> Self {
        Self::connect_to(&sim.info().gateway).await
    }

    pub async fn connect_to(base: &str) -> Self {
        let mut gateway = Self::open(&format!("{base}/?v=10&encoding=json")).await;
        let hello = gateway.receive().await.payload();
        assert_eq!(hello["op"], 10, "{hello}");
        gateway
    }

    /// Opens a connection with a URL as it is.
    pub async fn open(url: &str) -> Self {
        Self::try_open(url)
            .await
            .expect("the gateway takes connections")
    }

    pub async fn try_open(url: &str) -> Result<Self, tokio_websockets::Error> {
        let limits = Limits::unlimited();
        let builder = tokio_websockets::ClientBuilder::new()
            .uri(url)
            .expect("a URL")
            .limits(limits);
        let (socket, _) = timeout(PATIENCE, builder.connect())
            .await
            .expect("an answer in time")?;
        Ok(Self { socket, seq: 0 })
    }

    pub async fn send(&mut self, payload: Value) {
        self.send_text(payload.to_string()).await;
    }

    pub async fn send_text(&mut self, payload: String) {
        // A send may fail when the server has closed: what it closed with is read next.
        let _ = self.socket.send(Message::text(payload)).await;
    }

    pub async fn heartbeat(&mut self) {
        let seq = self.seq;
        self.send(json!({ "op": 1, "d": seq })).await;
    }

    pub async fn identify(&mut self, shard: [u32; 2]) {
        self.identify_with(shard, ALL_INTENTS).await;
    }

    pub async fn identify_with(&mut self, shard: [u32; 2], intents: u64) {
        // A new session counts from 1.
        self.seq = 0;
        self.send(identify(shard, intents, DEVELOPMENT_TOKEN)).await;
    }

    pub async fn resume(&mut self, session: &str, seq: u64) {
        self.seq = seq;
        let d = json!({ "token": DEVELOPMENT_TOKEN, "session_id": session, "seq": seq });
        self.send(json!({ "op": 6, "d": d })).await;
    }

    /// The next thing from the gateway.
    pub async fn receive(&mut self) -> Received {
        let message = timeout(PATIENCE, self.socket.next())
            .await
            .expect("something comes in time");
        match message {
            Some(Ok(message)) if message.is_text() => {
                let text = message.as_text().expect("text");
                let payload: Value = serde_json::from_str(text).expect("JSON");
                if let Some(seq) = payload["s"].as_u64() {
                    assert_eq!(seq, self.seq + 1, "numbers follow each other: {payload}");
                    self.seq = seq;
                }
                Received::Payload(payload)
            }
            Some(Ok(message)) if message.is_close() => {
                let (code, _) = message.as_close().expect("a close frame");
                Received::Closed(code.into())
            }
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(_)) | None => Received::Broken,
        }
    }

    /// The next dispatch of a type; others are passed over.
    pub async fn event(&mut self, name: &str) -> Value {
        loop {
            let payload = self.receive().await.payload();
            if payload["t"] == name {
                return payload["d"].clone();
            }
        }
    }

    /// The next payload with an opcode; others are passed over.
    pub async fn opcode(&mut self, op: u64) -> Value {
        loop {
            let payload = self.receive().await.payload();
            if payload["op"] == op {
                return payload;
            }
        }
    }

    /// The code that the connection is closed with; payloads before are passed over.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.receive().await {
                Received::Closed(code) => return code,
                Received::Payload(_) => {}
                Received::Broken => panic!("the connection broke without a close frame"),
            }
        }
    }

    /// Connects, identifies and reads READY and all guilds.
    pub async fn session(sim: &Sim, shard: [u32; 2]) -> (Self, String) {
        let mut gateway = Self::connect(sim).await;
        gateway.identify(shard).await;
        let ready = gateway.ready().await;
        let session = ready["session_id"].as_str().expect("an id").to_owned();
        (gateway, session)
    }

    /// Reads READY and a GUILD_CREATE for each of its guilds.
    pub async fn ready(&mut self) -> Value {
        let ready = self.event("READY").await;
        for _ in 0..ready["guilds"].as_array().expect("guilds").len() {
            self.event("GUILD_CREATE").await;
        }
        ready
    }

    /// Closes with a code and waits for the end.
    pub async fn close(mut self, code: u16) {
        let code = CloseCode::try_from(code).expect("a code");
        let _ = self.socket.send(Message::close(Some(code), "")).await;
        while let Some(Ok(_)) = timeout(PATIENCE, self.socket.next())
            .await
            .expect("an end in time")
        {}
    }

    /// Proves by a heartbeat everything received, and waits for its ACK.
    pub async fn prove(&mut self) {
        self.heartbeat().await;
        self.opcode(11).await;
    }
}

pub fn identify(shard: [u32; 2], intents: u64, token: &str) -> Value {
    json!({ "op": 2, "d": {
        "token": token, "intents": intents, "shard": shard,
        "properties": { "os": "linux", "browser": "test", "device": "test" },
    }})
}

/// An answer of the HTTP server.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {self:?}"));
        value.to_str().expect("text")
    }

    /// The body of a successful answer.
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.body
    }

    /// Status and code of an error.
    pub fn error(&self) -> (u16, u64) {
        (
            self.status.as_u16(),
            self.body["code"]
                .as_u64()
                .unwrap_or_else(|| panic!("{self:?}")),
        )
    }
}

pub async fn request(
    sim: &Sim,
    method: Method,
    path: &str,
    authorization: Option<&str>,
    body: Vec<u8>,
) -> Result<Answer, hyper_util::client::legacy::Error> {
    let client = HyperClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", sim.url()));
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request = request.header("content-type", "application/json");
    let request = request
        .body(Full::new(Bytes::from(body)))
        .expect("a request");
    let response = timeout(PATIENCE, client.request(request))
        .await
        .expect("an answer in time")?;
    let (parts, body) = response.into_parts();
    let bytes = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}

/// A REST request with the bot's token.
pub async fn rest(sim: &Sim, method: Method, path: &str, body: Value) -> Answer {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let authorization = format!("Bot {DEVELOPMENT_TOKEN}");
    let path = format!("/api/v10{path}");
    request(sim, method, &path, Some(&authorization), body)
        .await
        .expect("an answer")
}

pub async fn get(sim: &Sim, path: &str) -> Answer {
    rest(sim, Method::GET, path, Value::Null).await
}

/// An admin request.
pub async fn admin(sim: &Sim, path: &str, body: Value) -> Value {
    let path = format!("/_sim{path}");
    let answer = request(
        sim,
        Method::POST,
        &path,
        None,
        body.to_string().into_bytes(),
    )
    .await;
    answer.expect("an answer").ok()
}

pub async fn look(sim: &Sim, path: &str) -> Value {
    let path = format!("/_sim{path}");
    request(sim, Method::GET, &path, None, Vec::new())
        .await
        .expect("an answer")
        .ok()
}

pub async fn account(sim: &Sim) -> Value {
    look(sim, "/account").await
}

/// Waits until the account fulfils a condition, and gives it.
pub async fn until(sim: &Sim, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let account = account(sim).await;
        if condition(&account) {
            return account;
        }
        assert!(Instant::now() < end, "not in time: {what}: {account:#}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Sends events to a guild through the admin API.
pub async fn events(sim: &Sim, kind: &str, count: u32) {
    admin(sim, "/events", json!({ "type": kind, "count": count })).await;
}

pub async fn first_guild(sim: &Sim) -> String {
    look(sim, "/guilds?limit=1").await["guilds"][0]
        .as_str()
        .expect("a guild")
        .to_owned()
}
