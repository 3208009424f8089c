//! Real etcd servers for tests, each on a loopback address of its own, so that tests that run side by
//! side, in this process or another, never meet. Killed when dropped, also by a test that panics.

#![allow(dead_code)] // each test file uses a part

mod proxy;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

#[allow(unused_imports)] // likewise
pub use proxy::{Lost, Proxy};

/// Longer than a loaded machine needs to start a cluster.
const SOON: Duration = Duration::from_secs(60);

/// An address of 127.0.0.0/8 that nobody else uses: from the pid and a counter.
fn own_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let pid = std::process::id();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(count < 250, "no more than 250 servers in one test process");
    format!("127.{}.{}.{count}", 1 + (pid >> 8) % 250, pid & 0xff)
}

/// One member of a cluster.
pub struct Member {
    name: String,
    address: String,
    dir: PathBuf,
    cluster: String,
    /// Flags beside those that every member gets.
    pub extra: Vec<String>,
    /// Whether clients come by https.
    pub tls: bool,
    child: Option<Child>,
}

impl Member {
    /// URL for clients.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:2379", self.address)
    }

    /// Address and port for clients.
    pub fn socket(&self) -> String {
        format!("{}:2379", self.address)
    }

    /// The address alone.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn start(&mut self) {
        let peer = format!("http://{}:2380", self.address);
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("log"))
            .expect("a log");
        let child = Command::new("etcd")
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "these tests need etcd in PATH (Debian: apt-get install etcd-server): {error}"
                )
            });
        self.child = Some(child);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }

    /// Stops it in its tracks, or lets it go on. Frozen when it returns: every thread has stopped.
    pub fn freeze(&self, frozen: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let child = self.child.as_ref().expect("it runs");
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(child), signal).expect("signals");
        let until = Instant::now() + SOON;
        while frozen && !is_stopped(child.id()) {
            assert!(Instant::now() < until, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Whether it leads its cluster; `None` = it does not answer.
    pub fn leads(&self) -> Option<bool> {
        let metrics = http(&self.socket(), "GET", "/metrics", "")?;
        Some(metrics.contains("\netcd_server_is_leader 1"))
    }

    /// How many watches are open at it; `None` = it does not answer.
    pub fn watches(&self) -> Option<u64> {
        let metrics = http(&self.socket(), "GET", "/metrics", "")?;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "))?;
        count.trim().parse().ok()
    }

    fn is_ready(&self) -> bool {
        http(&self.socket(), "GET", "/health", "")
            .is_some_and(|answer| answer.contains(r#""health":"true""#))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cluster of its own.
pub struct Etcd {
    /// Its members.
    pub members: Vec<Member>,
    dir: tempfile::TempDir,
}

impl Etcd {
    /// One server.
    pub fn single() -> Self {
        Self::cluster(1)
    }

    /// Several.
    pub fn cluster(size: usize) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("etcd")
            .tempdir()
            .expect("a directory");
        let addresses: Vec<String> = (0..size).map(|_| own_address()).collect();
        let cluster: Vec<String> = addresses
            .iter()
            .enumerate()
            .map(|(n, address)| format!("m{n}=http://{address}:2380"))
            .collect();
        let members = addresses.into_iter().enumerate().map(|(n, address)| {
            let dir = dir.path().join(n.to_string());
            fs::create_dir(&dir).expect("a directory");
            Member {
                name: format!("m{n}"),
                address,
                dir,
                cluster: cluster.join(","),
                extra: Vec::new(),
                tls: false,
                child: None,
            }
        });
        let mut etcd = Self {
            members: members.collect(),
            dir,
        };
        for member in &mut etcd.members {
            member.start();
        }
        etcd.wait_ready();
        etcd
    }

    /// Where test files can be put.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts what does not run; does not wait.
    pub fn start(&mut self) {
        for member in &mut self.members {
            if member.child.is_none() {
                member.start();
            }
        }
    }

    /// Kills all members and starts them again.
    pub fn restart(&mut self) {
        for member in &mut self.members {
            member.kill();
        }
        self.start();
        self.wait_ready();
    }

    /// Waits until every member that runs serves. Members with TLS only until they listen.
    pub fn wait_ready(&mut self) {
        let until = Instant::now() + SOON;
        for n in 0..self.members.len() {
            loop {
                let member = &mut self.members[n];
                let Some(child) = &mut member.child else {
                    break;
                };
                if let Some(status) = child.try_wait().expect("asks") {
                    panic!("etcd ended with {status}: {}", member.log());
                }
                let ready = if member.tls {
                    TcpStream::connect(member.socket()).is_ok()
                } else {
                    member.is_ready()
                };
                if ready {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "etcd does not serve: {}",
                    member.log()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// URLs of all members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(Member::url).collect()
    }

    /// The number of the leader.
    pub fn leader(&self) -> usize {
        let until = Instant::now() + SOON;
        loop {
            let leader = self
                .members
                .iter()
                .position(|member| member.child.is_some() && member.leads() == Some(true));
            if let Some(leader) = leader {
                return leader;
            }
            assert!(Instant::now() < until, "no leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the first member's JSON interface.
    pub fn ask(&self, path: &str, body: &str) -> String {
        let answer = http(&self.members[0].socket(), "POST", path, body).expect("an answer");
        assert!(answer.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        answer
    }
}

fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" T"))
    })
}

/// By HTTP/1.0: with 1.1 a long answer comes in chunks, and a line of it may be cut in two.
fn http(address: &str, method: &str, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
