//! Where one host of a demo has its things.
//!
//! A demo of one host has them where it always had, and needs no more than a socket. Several hosts are
//! loopback addresses of their own, with the same ports on each: no root, no interfaces.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::{place::Place, record::Record};

/// Hosts that a demo may have.
pub const HOSTS_MAX: u16 = 9;

/// Hosts with a member of etcd: the first ones.
pub const ETCD_MEMBERS: usize = 3;

/// Ports of one row that a demo of several hosts uses: simcord, then on each host those below.
pub const PORTS: u16 = 7;

/// What the hosts are called.
pub fn name(index: usize) -> String {
    const NAMES: [&str; HOSTS_MAX as usize] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    NAMES[index].to_owned()
}

/// The address of a host: 127.X.Y.N, with X and Y from the demo's directory, so that two demos never
/// meet. The first is not 127.0.0.x, where other things listen.
pub fn address(fingerprint: u64, index: usize) -> Ipv4Addr {
    let [x, y, ..] = fingerprint.to_be_bytes();
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, x.max(1), y, last)
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its place in the record; none when the demo has one host.
    pub index: Option<usize>,
    /// Where its processes listen.
    pub address: Ipv4Addr,
    /// Directory of its sockets.
    pub run_dir: PathBuf,
    /// What its agent says about itself.
    pub info: PathBuf,
    /// Output of its agent.
    pub log: PathBuf,
    /// Its agent's own directory.
    pub data_dir: PathBuf,
    /// Port of its agent's HTTP.
    pub http_port: u16,
    /// What it has as one of several.
    pub member: Option<Member>,
}

/// What a host has as one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its power is off: `demo kill-host`.
    pub off: bool,
    /// Certificate and key of its agent.
    pub identity: PathBuf,
    /// Where its agent listens for other agents and for `tanakoctl`.
    pub listen: SocketAddr,
    /// Its member of etcd.
    pub etcd: Option<Etcd>,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Its data.
    pub data_dir: PathBuf,
    /// Its output.
    pub log: PathBuf,
    /// Its certificate and key.
    pub identity: PathBuf,
    /// Where clients reach it.
    pub client: SocketAddr,
    /// Where other members reach it.
    pub peer: SocketAddr,
    /// Where it tells how it is, without TLS.
    pub health: SocketAddr,
}

impl Seat {
    /// How to call it to a user.
    pub fn whose(&self, what: &str) -> String {
        match &self.member {
            Some(member) => format!("{what} of host {}", member.name),
            None => what.to_owned(),
        }
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The socket of the agent's children: all of them know it.
    pub fn worker_socket(&self) -> PathBuf {
        self.run_dir.join("worker.sock")
    }

    /// Whether nothing may run there.
    pub fn is_off(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.off)
    }
}

/// Every host of a demo.
pub fn seats(place: &Place, record: &Record) -> Vec<Seat> {
    if record.hosts.is_empty() {
        return vec![Seat {
            index: None,
            address: Ipv4Addr::LOCALHOST,
            run_dir: record.run_dir.clone(),
            info: place.agent_info(),
            log: place.agent_log(),
            data_dir: place.agent_dir(),
            http_port: record.http_port(),
            member: None,
        }];
    }
    let several = record.hosts.iter().enumerate().map(|(index, host)| {
        let at = |file: &str| place.host_dir(&host.name).join(file);
        let listen = |offset| SocketAddr::new(IpAddr::V4(host.address), record.base_port + offset);
        let etcd = (index < ETCD_MEMBERS).then(|| Etcd {
            data_dir: at("etcd"),
            log: place.log(&format!("etcd-{}", host.name)),
            identity: at("etcd-identity"),
            client: listen(4),
            peer: listen(5),
            health: listen(6),
        });
        Seat {
            index: Some(index),
            address: host.address,
            run_dir: record.run_dir.join(&host.name),
            info: at("agent.json"),
            log: place.log(&format!("agent-{}", host.name)),
            data_dir: at("agent"),
            http_port: listen(2).port(),
            member: Some(Member {
                name: host.name.clone(),
                off: host.off,
                identity: at("identity"),
                listen: listen(3),
                etcd,
            }),
        }
    });
    several.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_loopback_and_never_the_usual_ones() {
        for fingerprint in [0, 1, u64::MAX, 0x0042_ffff_0000_0000] {
            let all: Vec<Ipv4Addr> = (0..3).map(|index| address(fingerprint, index)).collect();
            for (index, one) in all.iter().enumerate() {
                assert!(one.is_loopback());
                assert_ne!(one.octets()[1], 0, "{one}");
                assert_eq!(usize::from(one.octets()[3]), index + 1);
            }
        }
        assert_ne!(
            address(0x0102_0000_0000_0000, 0),
            address(0x0103_0000_0000_0000, 0)
        );
    }
}
