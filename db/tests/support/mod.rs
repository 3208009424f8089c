//! What the tests of the database node share: nodes in this process, the real binary, a client.

// Each test file is a crate of its own and uses its part.
#![allow(dead_code, reason = "shared between test crates")]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use serde_json::{Value, json};
use tanako_db::config::{Settings, Token, Tuning};
use tanako_db::node::Node;
use tanako_db::server::Server;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

/// The token of all test nodes.
pub const TOKEN: &str = "a-token-for-tests-only";
/// Nothing in these tests takes this long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node in this process.
pub struct TestNode {
    pub node: Arc<Node>,
    pub settings: Settings,
    pub url: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl TestNode {
    /// One node alone, in this directory.
    pub async fn start(directory: &Path) -> Self {
        Self::tuned(directory, Tuning::default()).await
    }

    /// One node alone with these bounds.
    pub async fn tuned(directory: &Path, tuning: Tuning) -> Self {
        start_all(directory, &["node1"], tuning).await.remove(0)
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }

    /// Stops it cleanly.
    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.expect("serving ends");
        self.node.stop().await;
    }
}

/// Nodes wait for each other longer than a client would: what is tested is the answer, not its speed.
pub fn patient() -> Tuning {
    Tuning {
        peer_deadline_ms: 30_000,
        ..Tuning::default()
    }
}

/// Nodes of one ring in this process.
pub async fn start_all(directory: &Path, names: &[&str], tuning: Tuning) -> Vec<TestNode> {
    let mut servers = Vec::new();
    // An address that nobody else uses: a port that is freed there stays free for the node that comes back.
    let address = Ipv4Addr::from_bits(0x7f40_0000 | fastrand::u32(..1 << 22));
    for _ in names {
        servers.push(Server::bind((address, 0).into()).await.expect("binds"));
    }
    let peers: Vec<_> = names
        .iter()
        .zip(&servers)
        .map(|(name, server)| {
            (
                (*name).to_owned(),
                format!("ws://{}", server.address()).parse().expect("a URL"),
            )
        })
        .collect();
    let mut nodes = Vec::new();
    for (name, server) in names.iter().zip(servers) {
        let settings = Settings {
            name: (*name).to_owned(),
            data_dir: directory.join(name),
            listen: server.address(),
            token: Token::new(TOKEN),
            peers: peers.clone(),
            weights: BTreeMap::new(),
            backup_dir: directory.join("backups").join(name),
            tuning,
        };
        let node = Node::open(&settings).expect("opens");
        let stop = CancellationToken::new();
        let url = format!("ws://{}", server.address());
        let serving = tokio::spawn(server.run(Arc::clone(&node), tuning, stop.clone()));
        nodes.push(TestNode {
            node,
            settings,
            url,
            stop,
            serving,
        });
    }
    nodes
}

/// A client with the token in the header.
pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    next: u64,
}

impl Client {
    pub async fn connect(url: &str) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_connect(url).await {
                Ok(client) => return client,
                Err(error) if Instant::now() < deadline => {
                    let _ = error;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("cannot connect to {url}: {error}"),
            }
        }
    }

    pub async fn try_connect(url: &str) -> Result<Self, tokio_websockets::Error> {
        let bearer = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("a header");
        let builder = ClientBuilder::new()
            .uri(url)
            .expect("a URL")
            .add_header(AUTHORIZATION, bearer)
            .expect("a header");
        let address = url.trim_start_matches("ws://");
        let address = address.split('/').next().expect("an address");
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true).expect("a socket");
        let (socket, _) = builder.connect_on(stream).await?;
        Ok(Self { socket, next: 0 })
    }

    pub async fn send(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.expect("sends");
    }

    /// The next text frame, if the connection still stands.
    pub async fn receive(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("answers in time");
            match message {
                Some(Ok(message)) if message.is_text() => {
                    return Some(
                        serde_json::from_str(message.as_text().expect("text")).expect("JSON"),
                    );
                }
                Some(Ok(message)) if message.is_close() => return None,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Asks and returns the reply, checking the request id.
    pub async fn ask(&mut self, action: &str, data: Value) -> Value {
        self.next += 1;
        let id = self.next;
        self.send(json!({"action": action, "data": data, "request_id": id}).to_string())
            .await;
        let reply = self.receive().await.expect("a reply");
        assert_eq!(reply["request_id"], json!(id), "{reply}");
        reply
    }

    /// Asks and expects success.
    pub async fn ok(&mut self, action: &str, data: Value) -> Value {
        let reply = self.ask(action, data.clone()).await;
        assert_eq!(reply["success"], json!(true), "{action} {data}: {reply}");
        reply
    }

    /// Asks and expects a refusal; returns its code and text.
    pub async fn refused(&mut self, action: &str, data: Value) -> (String, String) {
        let reply = self.ask(action, data.clone()).await;
        assert_eq!(reply["success"], json!(false), "{action} {data}: {reply}");
        let text = |name: &str| reply[name].as_str().expect("a text").to_owned();
        assert_eq!(
            reply["retryable"].as_bool().map(|_| ()),
            Some(()),
            "{reply}"
        );
        (text("code"), text("error"))
    }
}

/// The real binary.
pub struct Process {
    pub child: Child,
    pub url: String,
    pub directory: PathBuf,
}

impl Process {
    /// A command with the settings that all tests need, for `DIRECTORY/data`.
    pub fn command(directory: &Path) -> Command {
        let token = directory.join("token");
        std::fs::write(&token, TOKEN).expect("writable");
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600))
            .expect("permissions");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tanako-db"));
        for name in [
            "TANAKO_SOCKET",
            "TANAKO_PROCESS",
            "TANAKO_ATTEMPT",
            "TANAKO_DB_PEERS",
            "TANAKO_DB_WEIGHTS",
        ] {
            command.env_remove(name);
        }
        command
            .args(["--name", "node1", "--listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(directory.join("data"))
            .arg("--token-file")
            .arg(token)
            .arg("--info-file")
            .arg(directory.join("info.json"));
        command
    }

    /// Starts it and waits until it answers.
    pub fn start(directory: &Path, more: impl FnOnce(&mut Command)) -> Self {
        let info = directory.join("info.json");
        let _ = std::fs::remove_file(&info);
        let mut command = Self::command(directory);
        command.stderr(Stdio::piped());
        more(&mut command);
        let mut child = command.spawn().expect("starts");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read(&info)
                && let Ok(info) = serde_json::from_slice::<Value>(&text)
            {
                let url = info["url"].as_str().expect("a URL").to_owned();
                // Nobody reads the log of a node that works; a pipe that is full would stop it.
                let mut log = child.stderr.take().expect("a pipe");
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Self {
                    child,
                    url,
                    directory: directory.to_owned(),
                };
            }
            if let Some(status) = child.try_wait().expect("a child") {
                let mut log = String::new();
                child
                    .stderr
                    .take()
                    .expect("a pipe")
                    .read_to_string(&mut log)
                    .expect("text");
                panic!("the node ended with {status}: {log}");
            }
            assert!(Instant::now() < deadline, "the node does not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs it to its end, which must come by itself; returns the exit code and the log.
    pub fn run_to_end(command: &mut Command) -> (i32, String) {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut pipe = child.stderr.take().expect("a pipe");
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            pipe.read_to_string(&mut log).expect("text");
            log
        });
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            if Instant::now() >= deadline {
                child.kill().expect("kills");
                child.wait().expect("ends");
                panic!(
                    "the node did not end by itself: {}",
                    log.join().expect("a log")
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        (status.code().unwrap_or(-1), log.join().expect("a log"))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("ends");
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already in most tests; after a failed assertion nothing may be left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for one test.
pub fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A plain HTTP request; returns the status and the body.
pub async fn http_get(url: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = url.trim_start_matches("ws://");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut reply = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut reply))
        .await
        .expect("in time")
        .expect("text");
    let status = reply
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    let body = reply
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    (status, body)
}
