//! A network of hosts.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{
    Fault, Link, Namespace, Owner,
    faults::{Map, rules},
    owner::Reaper,
    sweep,
};

/// Where the simulated Discord is.
pub const DISCORD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Hosts that one network can have.
const HOSTS_MAX: usize = 200;

/// A bridge and what is connected with it. Dropping it ends every process in it and removes its files.
#[derive(Debug)]
pub struct Lan {
    owner: Owner,
    bridge: Namespace,
    discord: Namespace,
    hosts: BTreeMap<String, Plugged>,
    _reaper: Reaper,
}

#[derive(Debug)]
struct Plugged {
    namespace: Namespace,
    address: Ipv4Addr,
    faults: BTreeMap<Link, Fault>,
}

impl Lan {
    /// A network of hosts with these names, and of the simulated Discord.
    pub fn new(names: &[&str]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "hosts as network namespaces need root: run these tests as root, or leave them out with \
             `cargo test … -- --skip netns::`"
        );
        assert!(names.len() <= HOSTS_MAX, "at most {HOSTS_MAX} hosts");
        sweep();
        let owner = Owner::new();
        // Before anything is there that it would have to clear up.
        let reaper = owner.reaper();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(owner.directory())
            .expect("a directory of its own");
        let make = |label: &str| Namespace::make(format!("{}-{label}", owner.prefix()));
        let bridge = make("lan");
        bridge.ip(&["link", "add", "br0", "type", "bridge"]);
        bridge.ip(&["link", "set", "br0", "up"]);
        let discord = make("discord");
        plug(&bridge, &discord, 0, DISCORD);
        let mut hosts = BTreeMap::new();
        for (number, name) in (1_u8..).zip(names) {
            let namespace = make(&format!("host-{name}"));
            let address = Ipv4Addr::new(10, 77, 0, 10 + number);
            plug(&bridge, &namespace, number, address);
            let plugged = Plugged {
                namespace,
                address,
                faults: BTreeMap::new(),
            };
            hosts.insert((*name).to_owned(), plugged);
        }
        Self {
            owner,
            bridge,
            discord,
            hosts,
            _reaper: reaper,
        }
    }

    /// What everything of this network has in its name.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// A directory for files; it goes with the network.
    pub fn directory(&self) -> PathBuf {
        self.owner.directory()
    }

    /// A file in it.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Names of the hosts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }

    /// Where the simulated Discord lives.
    pub fn discord(&self) -> &Namespace {
        &self.discord
    }

    /// Where the bridge is; processes there reach nobody.
    pub fn bridge(&self) -> &Namespace {
        &self.bridge
    }

    /// A host.
    pub fn host(&self, name: &str) -> &Namespace {
        &self.plugged(name).namespace
    }

    /// A host's address.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.plugged(name).address
    }

    /// A directory for the files of a host.
    pub fn directory_of(&self, name: &str) -> PathBuf {
        let path = self.directory().join(name);
        if !Path::new(&path).exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .expect("a directory");
        }
        path
    }

    fn plugged(&self, name: &str) -> &Plugged {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Lets a link of a host be bad from now on, beside what is bad already.
    pub fn impair(&mut self, name: &str, link: Link, fault: Fault) {
        self.change(name, |faults| {
            faults.insert(link, fault);
        });
    }

    /// Whether any link of a host is bad.
    pub fn is_impaired(&self, name: &str) -> bool {
        !self.plugged(name).faults.is_empty()
    }

    /// All links of a host are good again.
    pub fn heal(&mut self, name: &str) {
        self.change(name, BTreeMap::clear);
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut BTreeMap<Link, Fault>)) {
        let others = self
            .hosts
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(_, plugged)| plugged.address)
            .collect();
        let map = Map {
            others,
            discord: DISCORD,
        };
        let plugged = self
            .hosts
            .get_mut(name)
            .unwrap_or_else(|| panic!("no host {name}"));
        change(&mut plugged.faults);
        plugged.namespace.filter(&rules(&map, &plugged.faults));
    }

    /// What a power cut does: silence on the wire first, so that no peer is told of an end, and then the
    /// end of everything. What the kernel has taken for the disk stays: this is the loss of a host, not
    /// of its disk.
    pub fn cut_power(&mut self, name: &str) {
        self.impair(name, Link::All, Fault::Cut);
        self.host(name).kill_all();
    }
}

/// Connects a namespace with the bridge.
fn plug(bridge: &Namespace, namespace: &Namespace, number: u8, address: Ipv4Addr) {
    let port = format!("port{number}");
    namespace.ip(&[
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        &port,
        "netns",
        bridge.name(),
    ]);
    bridge.ip(&["link", "set", &port, "master", "br0", "up"]);
    namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
    namespace.ip(&["link", "set", "eth0", "up"]);
}
