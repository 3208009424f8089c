//! A real etcd with a member on each of several hosts, over TLS.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tanako_pki::{AUTHORITIES_FILE, Authority, IDENTITY_FILE, Subject};

use super::{
    Lan,
    faults::{ETCD_CLIENT_PORT, ETCD_PEER_PORT},
};
use crate::{http, wait};

/// Health and metrics, for this test alone: on the loopback of the member's host, without TLS.
const METRICS_PORT: u16 = 2381;

/// Longer than any test runs.
const LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// A cluster, with a member on each of its hosts.
#[derive(Debug)]
pub struct Etcd {
    members: BTreeMap<String, Member>,
    cluster: String,
}

#[derive(Debug)]
struct Member {
    address: Ipv4Addr,
    directory: PathBuf,
    child: Option<Child>,
}

impl Etcd {
    /// Starts a member on each of these hosts and waits until all serve. Servers and clients show
    /// certificates of `authority`.
    pub fn start(lan: &Lan, authority: &Authority, names: &[&str]) -> Self {
        let members: BTreeMap<String, Member> = names
            .iter()
            .map(|name| {
                let address = lan.address(name);
                let directory = lan.directory_of(name).join("etcd");
                let subject = Subject::agent(*name, [address.into(), Ipv4Addr::LOCALHOST.into()]);
                authority
                    .issue_to(&directory, &subject, LIFE)
                    .expect("a certificate");
                let member = Member {
                    address,
                    directory,
                    child: None,
                };
                ((*name).to_owned(), member)
            })
            .collect();
        let cluster: Vec<String> = members
            .iter()
            .map(|(name, member)| format!("{name}=https://{}:{ETCD_PEER_PORT}", member.address))
            .collect();
        let mut etcd = Self {
            members,
            cluster: cluster.join(","),
        };
        for name in names {
            etcd.start_member(lan, name);
        }
        for name in names {
            etcd.until_healthy(lan, name);
        }
        etcd
    }

    /// Whether it has a member there.
    pub fn is_on(&self, host: &str) -> bool {
        self.members.contains_key(host)
    }

    /// URLs for clients, of all members.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self
            .members
            .values()
            .map(|member| format!("https://{}:{ETCD_CLIENT_PORT}", member.address))
            .collect();
        urls.join(",")
    }

    /// Starts the member of a host; one that was there before goes on with its data.
    pub fn start_member(&mut self, lan: &Lan, host: &str) {
        let cluster = self.cluster.clone();
        let member = self.members.get_mut(host).expect("a member is there");
        member.reap();
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(member.directory.join("etcd.log"))
            .expect("a log");
        let clients = format!("https://{}:{ETCD_CLIENT_PORT}", member.address);
        let peers = format!("https://{}:{ETCD_PEER_PORT}", member.address);
        let mut command = lan.host(host).command("etcd");
        command
            .args(["--name", host, "--data-dir"])
            .arg(member.directory.join("data"))
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &cluster])
            .args(["--initial-cluster-token", &lan.owner().prefix()])
            .arg("--listen-metrics-urls")
            .arg(format!("http://127.0.0.1:{METRICS_PORT}"))
            .args(["--logger", "zap", "--log-outputs", "stderr"]);
        tls(&mut command, &member.directory);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("ip starts");
        member.child = Some(child);
    }

    /// kill -9 of the member of a host, and of nothing else there.
    pub fn kill_member(&mut self, host: &str) {
        let member = self.members.get_mut(host).expect("a member is there");
        if let Some(child) = &mut member.child {
            let _ = child.kill();
        }
        member.reap();
    }

    /// Collects a member that something else has ended.
    pub(super) fn reap(&mut self, host: &str) {
        if let Some(member) = self.members.get_mut(host) {
            member.reap();
        }
    }

    /// Waits until the member of a host serves, with a leader.
    pub fn until_healthy(&mut self, lan: &Lan, host: &str) {
        wait::until(&format!("etcd on {host}"), 90, || {
            let member = self.members.get_mut(host).expect("a member is there");
            let ended = member.child.as_mut().map(Child::try_wait);
            assert!(
                matches!(ended, Some(Ok(None))),
                "etcd on {host} ended (it needs etcd in PATH; Debian: apt-get install etcd-server): \
                 {}",
                member.log()
            );
            let answer = lan.host(host).within(|| get("/health"));
            match answer {
                Ok(text) if text.contains(r#""health":"true""#) => Ok(()),
                Ok(text) => Err(format!("{text}\n{}", member.log())),
                Err(error) => Err(format!("{error}\n{}", member.log())),
            }
        });
    }

    /// The host whose member leads, once there is one.
    pub fn leader(&self, lan: &Lan) -> String {
        wait::until("a leader of etcd", 90, || {
            let leads = |host: &&String| {
                lan.host(host)
                    .within(|| get("/metrics"))
                    .is_ok_and(|text| text.contains("\netcd_server_is_leader 1"))
            };
            self.members
                .keys()
                .find(leads)
                .cloned()
                .ok_or_else(|| "none leads".to_owned())
        })
    }
}

impl Member {
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("etcd.log")).unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
        self.reap();
    }
}

/// Certificates of one directory for everything that a member serves and asks.
fn tls(command: &mut Command, directory: &Path) {
    let (own, trusted) = (
        directory.join(IDENTITY_FILE),
        directory.join(AUTHORITIES_FILE),
    );
    for kind in ["", "peer-"] {
        command
            .arg(format!("--{kind}cert-file"))
            .arg(&own)
            .arg(format!("--{kind}key-file"))
            .arg(&own)
            .arg(format!("--{kind}trusted-ca-file"))
            .arg(&trusted)
            .arg(format!("--{kind}client-cert-auth"));
    }
}

fn get(path: &str) -> Result<String, String> {
    let answer = http::get(&format!("http://127.0.0.1:{METRICS_PORT}{path}"));
    answer
        .map(|(_, body)| body)
        .map_err(|error| error.to_string())
}
