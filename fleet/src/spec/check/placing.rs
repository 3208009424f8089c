//! Hosts, labels, placement, and what the fleet may do by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{Checker, minute_of_day, raw};
use crate::{
    placement::{APART_HOSTS, Rules},
    spec::{Act, Advise, BotPlacement, Host, HostCapacity, Node},
};

/// Most that a weight or a share may be, so that sums never come near an overflow.
const WEIGHT_MAX: u32 = 1_000_000;

/// What a label may be.
fn is_label(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    !text.is_empty() && text.len() <= 63 && text.bytes().all(good)
}

impl Checker {
    fn label(&mut self, text: &raw::Text) -> String {
        if !is_label(text.get_ref()) {
            self.refuse(
                text.span(),
                format!("{:?} cannot be a label", text.get_ref()),
                "use 1 to 63 letters, digits, dashes, underscores, dots and slashes, such as zone = \"eu-1\"",
            );
        }
        text.get_ref().clone()
    }

    pub(super) fn labels(
        &mut self,
        raw: BTreeMap<raw::Text, raw::Text>,
    ) -> BTreeMap<String, String> {
        raw.iter()
            .map(|(key, value)| {
                if key.get_ref() == APART_HOSTS {
                    self.refuse(
                        key.span(),
                        "host cannot be the key of a label: rules mean the host itself by it",
                        "choose another key",
                    );
                }
                (self.label(key), self.label(value))
            })
            .collect()
    }

    fn weight(&mut self, what: &str, raw: Option<&serde_spanned::Spanned<u32>>) -> Option<u32> {
        let raw = raw?;
        if !(1..=WEIGHT_MAX).contains(raw.get_ref()) {
            self.refuse(
                raw.span(),
                format!("{what} is a whole number from 1 to {WEIGHT_MAX}"),
                "only the ratio to the others counts: 2 is twice 1",
            );
        }
        Some(*raw.get_ref())
    }

    pub(super) fn capacity(&mut self, raw: Option<raw::Capacity>) -> HostCapacity {
        let Some(raw) = raw else {
            return HostCapacity::default();
        };
        HostCapacity {
            processes: raw.processes.map(serde_spanned::Spanned::into_inner),
            memory_bytes: raw.memory.as_ref().and_then(|text| self.bytes(text)),
            share: self.weight("a share", raw.share.as_ref()),
        }
    }

    pub(super) fn bot_placement(&mut self, raw: Option<raw::Placement>) -> BotPlacement {
        let Some(raw) = raw else {
            return BotPlacement::default();
        };
        if let Some((key, _)) = raw.preferred.iter().find(|(key, value)| {
            let required = raw.required.get(*key);
            required.is_some_and(|required| required.get_ref() != value.get_ref())
        }) {
            self.refuse(
                key.span(),
                format!("{} is required with another value", key.get_ref()),
                "no host has both: remove one of them",
            );
        }
        BotPlacement {
            weight: self.weight("a weight", raw.weight.as_ref()),
            rules: Rules {
                anti_affinity: raw.anti_affinity.as_ref().map(|text| self.label(text)),
                required: self.labels(raw.required),
                preferred: self.labels(raw.preferred),
            },
        }
    }

    /// Where database nodes live, in a fleet of several hosts.
    pub(super) fn homes(&mut self, raw: &raw::Database, nodes: &[Node], hosts: &[Host]) {
        if hosts.len() > 1
            && let Some(count) = &raw.nodes
        {
            self.refuse(
                count.span(),
                "with more than one host each database node needs a host: its data lies there",
                "write a [[database.node]] for each, with name, listen and host = \"NAME\"",
            );
        }
        for (node, entry) in nodes.iter().zip(&raw.node) {
            let place = entry.get_ref().name.span();
            let Some(host) = &node.host else {
                if hosts.len() > 1 {
                    self.refuse(
                        place,
                        format!("{} does not say on which host it lives", node.name),
                        format!("its data lies there: add host = {:?}", hosts[0].name),
                    );
                }
                continue;
            };
            if !hosts.is_empty() && !hosts.iter().any(|known| known.name == *host) {
                self.warnings.push(format!(
                    "database node {}: host {host} is not among [[hosts]]; it must have joined the fleet",
                    node.name
                ));
            }
            let listen = node.listen.parse::<SocketAddr>();
            if hosts.len() > 1
                && listen.is_ok_and(|at| at.ip().is_loopback() || at.ip().is_unspecified())
            {
                self.warnings.push(format!(
                    "database node {}: other hosts cannot reach it at {}",
                    node.name, node.listen
                ));
            }
        }
    }

    pub(super) fn advise(&mut self, raw: Option<raw::Advise>) -> Advise {
        let Some(raw) = raw else {
            return Advise::default();
        };
        let mut act = BTreeSet::new();
        for text in &raw.act {
            match text.get_ref().as_str() {
                "rebalance" => act.insert(Act::Rebalance),
                "reshard" => act.insert(Act::Reshard),
                other => {
                    self.refuse(
                        text.span(),
                        format!("{other:?} is nothing that a fleet does by itself"),
                        "use act = [\"rebalance\", \"reshard\"], or one of them",
                    );
                    false
                }
            };
        }
        let max_shards = raw
            .max_shards
            .as_ref()
            .map(|max| self.at_least_one("max_shards", Some(max), 1));
        if act.contains(&Act::Reshard) && max_shards.is_none() {
            let place = raw.act[0].span();
            self.refuse(
                place,
                "a fleet that reshards by itself needs a bound",
                "add max_shards = N, the most shards that it may give a bot",
            );
        }
        let quiet_hours = raw.quiet_hours.as_ref().and_then(|text| {
            let range = text
                .get_ref()
                .split_once('-')
                .and_then(|(from, to)| Some((minute_of_day(from)?, minute_of_day(to)?)))
                .filter(|(from, to)| from != to);
            if range.is_none() {
                self.refuse(
                    text.span(),
                    format!("{:?} is not a range of hours", text.get_ref()),
                    "write it like \"02:00-06:00\" (UTC): the fleet acts only then",
                );
            }
            range
        });
        Advise {
            act,
            max_shards,
            quiet_hours,
        }
    }
}
