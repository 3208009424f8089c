//! What can be wrong between a host and others, as rules of its packet filter.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

/// Where etcd's clients and its members come in.
pub const ETCD_CLIENT_PORT: u16 = 2379;
/// See [`ETCD_CLIENT_PORT`].
pub const ETCD_PEER_PORT: u16 = 2380;

/// What a host is connected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Everything outside of it.
    All,
    /// The other hosts, apart from etcd on them.
    Others,
    /// Etcd, as its client; its own member as well.
    Etcd,
    /// The other members of etcd, for the member on it.
    EtcdPeers,
    /// The simulated Discord.
    Discord,
}

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes, in silence.
    Cut,
    /// So many of a hundred packets are lost each way.
    Loss(u8),
}

/// Who is where.
#[derive(Debug, Clone)]
pub(super) struct Map {
    pub(super) others: Vec<Ipv4Addr>,
    pub(super) discord: Ipv4Addr,
}

/// The whole rule set for these faults; it replaces whatever there was.
pub(super) fn rules(map: &Map, faults: &BTreeMap<Link, Fault>) -> String {
    let mut text = String::from("table inet faults\ndelete table inet faults\n");
    if faults.is_empty() {
        return text;
    }
    text.push_str("table inet faults {\n");
    for (hook, address, remote, local) in [
        ("input", "saddr", "sport", "dport"),
        ("output", "daddr", "dport", "sport"),
    ] {
        let _ = writeln!(
            text,
            "  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;"
        );
        for (link, fault) in faults {
            let verdict = match fault {
                // Rules know no hundred of a hundred.
                Fault::Cut | Fault::Loss(100..) => "drop".to_owned(),
                Fault::Loss(percent) => format!("numgen random mod 100 < {percent} drop"),
            };
            let which = match link {
                Link::All => {
                    let device = if hook == "input" {
                        "iifname"
                    } else {
                        "oifname"
                    };
                    format!("{device} != \"lo\"")
                }
                Link::Others if map.others.is_empty() => continue,
                Link::Others => {
                    let etcd = format!("{{ {ETCD_CLIENT_PORT}, {ETCD_PEER_PORT} }}");
                    let others: Vec<String> = map.others.iter().map(Ipv4Addr::to_string).collect();
                    format!(
                        "ip {address} {{ {} }} tcp {remote} != {etcd} tcp {local} != {etcd}",
                        others.join(", ")
                    )
                }
                Link::Etcd => format!("tcp {remote} {ETCD_CLIENT_PORT}"),
                Link::EtcdPeers => {
                    // Either side may have begun.
                    let _ = writeln!(text, "    tcp {local} {ETCD_PEER_PORT} {verdict}");
                    format!("tcp {remote} {ETCD_PEER_PORT}")
                }
                Link::Discord => format!("ip {address} {}", map.discord),
            };
            let _ = writeln!(text, "    {which} {verdict}");
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}
