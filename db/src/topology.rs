//! The ring as this node knows it, and the links to the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::value::RawValue;
use tanako_fleet::ring::{Ring, RingError, RingNode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::failure::{Code, Failure};
use crate::peer::{Link, Peer};
use crate::request::{Call, Scope};
use crate::row::Style;
use crate::write::Op;

/// The ring of these nodes; a name given twice counts once, a node without a weight has 1.
pub fn ring_of<'a>(
    names: impl IntoIterator<Item = &'a str>,
    weights: &BTreeMap<String, u32>,
) -> Result<Ring, RingError> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    let nodes: Vec<RingNode> = names
        .into_iter()
        .map(|name| RingNode {
            name: name.to_owned(),
            weight: weights.get(name).copied().unwrap_or(1),
        })
        .collect();
    Ring::new(&nodes, [])
}

/// The ring and the ways to its other nodes; replaced as a whole.
pub struct Topology {
    /// Which node holds what.
    pub ring: Ring,
    /// Its version as it is sent.
    pub(crate) version: String,
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) urls: BTreeMap<String, String>,
    pub(crate) stop: CancellationToken,
}

impl Topology {
    pub(crate) fn new(settings: &Settings, tasks: &TaskTracker) -> Result<Self, RingError> {
        let peers = settings.peers.iter().map(|(name, _)| name.as_str());
        let ring = ring_of(peers.chain([settings.name.as_str()]), &settings.weights)?;
        let stop = CancellationToken::new();
        let mut links = BTreeMap::new();
        let mut urls = BTreeMap::new();
        for (name, url) in &settings.peers {
            urls.insert(name.clone(), url.to_string());
            if *name != settings.name {
                let peer = Peer {
                    name: name.clone(),
                    url: url.clone(),
                    token: settings.token.clone(),
                    deadline: Duration::from_millis(settings.tuning.peer_deadline_ms),
                };
                let (link, task) = Link::new(peer, stop.clone());
                tasks.spawn(task);
                links.insert(name.clone(), link);
            }
        }
        let version = format!("{:016x}", ring.version());
        Ok(Self {
            ring,
            version,
            links,
            urls,
            stop,
        })
    }

    /// The way to another node.
    pub(crate) fn link(&self, name: &str) -> Result<&Link, Failure> {
        self.links.get(name).ok_or_else(|| {
            Failure::new(
                Code::Unavailable,
                format!("Node {name} has no address: check the peers"),
            )
        })
    }

    /// A request to another node, without its request id.
    pub(crate) fn forwarded(&self, action: &str, data: &str, style: Style) -> String {
        let snowflakes = if style == Style::Strings {
            ",\"snowflakes\":\"string\""
        } else {
            ""
        };
        format!(
            "\"action\":\"{action}\",\"forwarded\":\"{}\"{snowflakes},\"data\":{data}}}",
            self.version
        )
    }

    /// A forwarded request is answered here or not at all: it never travels on.
    pub(crate) fn check_forwarded(
        &self,
        own: &str,
        version: &RawValue,
        call: &Call,
    ) -> Result<(), Failure> {
        let differs = || {
            Failure::new(
                Code::RingChanged,
                "The nodes do not agree on the ring just now: retry after a pause; if it stays, give all nodes the same peers",
            )
        };
        if version.get().trim_matches('"') != self.version {
            return Err(differs());
        }
        let here = |partition| self.ring.primary(partition) == own;
        let fits = match call {
            Call::Write(Op::Insert { rows, .. }) => rows
                .iter()
                .all(|row| crate::keys::row_partition(&row.key).is_some_and(here)),
            call => match call.scope() {
                Scope::Partition(partition) => here(partition),
                _ => true,
            },
        };
        if fits { Ok(()) } else { Err(differs()) }
    }
}
