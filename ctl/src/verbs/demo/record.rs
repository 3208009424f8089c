//! `demo.json`: what a demo is and what it has started.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    place::{Place, fingerprint},
    process::Identity,
    seat::{self, Seat},
    setup,
};
use crate::{context::write_atomically, failure::Failure};

/// The form of the file.
const FORMAT: u32 = 1;

/// One host of a demo of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its own loopback address.
    pub address: Ipv4Addr,
    /// The agent that was started last.
    pub agent: Option<Identity>,
    /// The member of etcd that was started last.
    pub etcd: Option<Identity>,
    /// `demo kill-host` has ended everything there; the next `up` or `revive-host` starts it again.
    pub off: bool,
}

/// What a demo is and what it has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Name of its context.
    pub context: String,
    /// Guilds of the simulated Discord.
    pub guilds: u32,
    /// Directory of the sockets.
    pub run_dir: PathBuf,
    /// First of the ports: simcord, then the database nodes, then the agent's HTTP. Several hosts have
    /// all but simcord on addresses of their own.
    pub base_port: u16,
    /// Nodes of the database.
    pub db_nodes: u16,
    /// The simulated Discord that was started last.
    pub simcord: Option<Identity>,
    /// The agent that was started last.
    pub agent: Option<Identity>,
    /// `demo down` has stopped everything; the next `up` starts it again.
    pub stopped: bool,
    /// Its hosts when it has several; else it is this machine, without etcd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
}

impl Record {
    /// A demo that has not started anything.
    pub fn new(place: &Place, guilds: u32, base_port: u16, db_nodes: u16) -> Result<Self, Failure> {
        Ok(Self {
            format: FORMAT,
            context: place.context.clone(),
            guilds,
            run_dir: place.run_dir()?,
            base_port,
            db_nodes,
            simcord: None,
            agent: None,
            stopped: false,
            hosts: Vec::new(),
        })
    }

    /// The same over so many hosts.
    pub fn over(mut self, place: &Place, hosts: u16) -> Self {
        let fingerprint = fingerprint(&place.data_dir);
        self.hosts = (0..usize::from(hosts))
            .map(|index| Host {
                name: seat::name(index),
                address: seat::address(fingerprint, index),
                agent: None,
                etcd: None,
                off: false,
            })
            .collect();
        self
    }

    /// Reads it; none when there is no demo.
    pub fn load(path: &Path) -> Result<Option<Self>, Failure> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io(path, "read the demo's record", &error)),
        };
        let wrong = |cause: String| {
            Failure::new(
                "damaged",
                path.display().to_string(),
                "the demo's record cannot be used",
            )
            .cause(cause)
            .hint("end its processes by hand if any run, then remove the file and start again")
        };
        let record: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if record.format != FORMAT {
            return Err(wrong(format!(
                "its format is {}, this tanakoctl knows {FORMAT}",
                record.format
            )));
        }
        Ok(Some(record))
    }

    /// Writes it.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(|error| {
            Failure::new(
                "internal",
                path.display().to_string(),
                "the record has no JSON form",
            )
            .cause(error.to_string())
        })?;
        write_atomically(path, (text + "\n").as_bytes(), 0o600)
    }

    /// Shards of the demo's bot: as many on each host, or 8 on one.
    pub fn shards(&self) -> u16 {
        match u16::try_from(self.hosts.len()) {
            Ok(hosts) if hosts > 0 => 2 * setup::SHARDS_PER_PROCESS * hosts,
            _ => 8,
        }
    }

    /// Port of simcord.
    pub fn simcord_port(&self) -> u16 {
        self.base_port
    }

    /// Port of the first database node.
    pub fn db_port(&self) -> u16 {
        self.base_port + 1
    }

    /// Port of the agent's HTTP.
    pub fn http_port(&self) -> u16 {
        self.base_port + 1 + self.db_nodes
    }

    /// The agent of a host that was started last.
    pub fn agent_of(&self, seat: &Seat) -> Option<&Identity> {
        match seat.index {
            None => self.agent.as_ref(),
            Some(index) => self.hosts[index].agent.as_ref(),
        }
    }

    /// Notes the agent of a host.
    pub fn set_agent(&mut self, seat: &Seat, agent: Option<Identity>) {
        match seat.index {
            None => self.agent = agent,
            Some(index) => self.hosts[index].agent = agent,
        }
    }

    /// URL of the simulated Discord.
    pub fn simcord_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.simcord_port())
    }

    /// Where the database nodes listen, and on which host when there are several: one after the other.
    pub fn db_nodes(&self) -> Vec<(SocketAddr, Option<&str>)> {
        let hosts = self.hosts.iter().cycle();
        if self.hosts.is_empty() {
            return (0..self.db_nodes)
                .map(|node| ((Ipv4Addr::LOCALHOST, self.db_port() + node).into(), None))
                .collect();
        }
        hosts
            .take(usize::from(self.db_nodes))
            .map(|host| ((host.address, self.db_port()).into(), Some(&*host.name)))
            .collect()
    }

    /// URLs of the database nodes.
    pub fn db_urls(&self) -> Vec<String> {
        let nodes = self.db_nodes().into_iter();
        nodes.map(|(listen, _)| format!("ws://{listen}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_file_and_a_damaged_one_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = Place {
            data_dir: directory.path().into(),
            context: "demo".into(),
            named: false,
            elsewhere: true,
        };
        assert_eq!(Record::load(&place.record()), Ok(None));
        let record = Record::new(&place, 10_000, 21_000, 3).expect("a record");
        record.save(&place.record()).expect("saved");
        assert_eq!(Record::load(&place.record()), Ok(Some(record.clone())));
        assert_eq!(
            record.db_urls(),
            [
                "ws://127.0.0.1:21001",
                "ws://127.0.0.1:21002",
                "ws://127.0.0.1:21003"
            ]
        );
        assert_eq!(record.http_port(), 21_004);
        for bad in ["", "{}", "[1]", "{\"format\":1}"] {
            fs::write(place.record(), bad).expect("written");
            assert_eq!(
                Record::load(&place.record()).expect_err(bad).code(),
                "damaged"
            );
        }
    }
}
