//! The consistent-hash ring: which database node holds which partition.
//!
//! Every node of a fleet, and every agent, builds the same ring from the same list, so all of them
//! answer "where does this guild live?" alike without asking each other. A ring is a value: it is
//! never changed, a new one is built. [`Ring::version`] names its content, so that two nodes with
//! different lists notice before either answers for the other.
//!
//! Each node owns a number of points on a circle of 64-bit hashes, in proportion to its weight. A
//! partition belongs to the node that owns the first point at or after the partition's own hash.
//! A node that joins therefore takes partitions only from others to itself, and a node that leaves
//! hands out only its own. Hashes are XXH3 over little-endian bytes: the same on all platforms.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Points on the circle for each unit of weight: shares differ by a few percent at most.
const POINTS_PER_WEIGHT: u32 = 512;
/// A weight above this is treated as this: it bounds the ring's memory.
pub const WEIGHT_MAX: u32 = 16;
/// Keeps the hash of a partition apart from the hash of a point.
const PARTITION_SEED: u64 = 0x5441_4e41_4b4f_0001;

/// A database node as the ring sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct RingNode {
    /// The node's name, for example `node1`. Names never change meaning.
    pub name: String,
    /// Its share of the data relative to the others; 0 takes no data (except pinned guilds).
    pub weight: u32,
}

impl RingNode {
    /// A node of weight 1.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            weight: 1,
        }
    }
}

/// What data is placed by: one partition is never split between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey(pub u64);

impl PartitionKey {
    /// The partition of a guild: its id, so that a guild can be pinned by id.
    pub fn guild(guild_id: i64) -> Self {
        Self(guild_id.cast_unsigned())
    }

    /// The partition of a row in a table that has no guild: its key's hash.
    pub fn keyed(table: &str, key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, xxh3_64(table.as_bytes())))
    }
}

impl From<u64> for PartitionKey {
    fn from(partition: u64) -> Self {
        Self(partition)
    }
}

/// An immutable ring. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    nodes: Vec<RingNode>,
    /// `(hash, index into nodes)`, sorted.
    points: Vec<(u64, u32)>,
    pins: BTreeMap<PartitionKey, u32>,
    version: u64,
}

/// Why a list of nodes is no ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Nobody could hold anything.
    #[error("the ring has no node with a weight above 0")]
    Empty,
    /// Two nodes with one name would both believe to be the primary.
    #[error("the ring names node {0:?} twice")]
    Duplicate(String),
    /// The pin points nowhere.
    #[error("partition {partition} is pinned to {node:?}, which is not in the ring")]
    UnknownPin {
        /// The pinned partition (a guild id).
        partition: u64,
        /// The name that is missing.
        node: String,
    },
}

impl Ring {
    /// Builds the ring. The order of `nodes` and `pins` does not matter.
    pub fn new(
        nodes: &[RingNode],
        pins: impl IntoIterator<Item = (PartitionKey, String)>,
    ) -> Result<Self, RingError> {
        let mut nodes = nodes.to_vec();
        nodes.sort();
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(RingError::Duplicate(pair[0].name.clone()));
        }
        if nodes.iter().all(|node| node.weight == 0) {
            return Err(RingError::Empty);
        }
        let mut points = Vec::new();
        for (index, node) in (0u32..).zip(&nodes) {
            let seed = xxh3_64(node.name.as_bytes());
            for point in 0..node.weight.min(WEIGHT_MAX) * POINTS_PER_WEIGHT {
                points.push((xxh3_64_with_seed(&point.to_le_bytes(), seed), index));
            }
        }
        // Two points with one hash: the smaller name wins on every platform.
        points.sort_unstable();
        points.dedup_by_key(|point| point.0);
        let mut placed = BTreeMap::new();
        for (partition, name) in pins {
            let Ok(index) = nodes.binary_search_by(|node| node.name.as_str().cmp(&name)) else {
                return Err(RingError::UnknownPin {
                    partition: partition.0,
                    node: name,
                });
            };
            placed.insert(partition, index as u32);
        }
        let version = version(&nodes, &placed);
        Ok(Self {
            nodes,
            points,
            pins: placed,
            version,
        })
    }

    /// The node that holds the partition.
    pub fn primary(&self, partition: impl Into<PartitionKey>) -> &str {
        let partition = partition.into();
        let index = self.pins.get(&partition).copied().unwrap_or_else(|| {
            let hash = xxh3_64_with_seed(&partition.0.to_le_bytes(), PARTITION_SEED);
            let at = self.points.partition_point(|point| point.0 < hash);
            self.points.get(at).unwrap_or(&self.points[0]).1
        });
        &self.nodes[index as usize].name
    }

    /// The nodes, sorted by name.
    pub fn nodes(&self) -> &[RingNode] {
        &self.nodes
    }

    /// The pinned partitions and their nodes, sorted.
    pub fn pins(&self) -> impl Iterator<Item = (PartitionKey, &str)> {
        self.pins
            .iter()
            .map(|(partition, index)| (*partition, self.nodes[*index as usize].name.as_str()))
    }

    /// Names the ring's content: equal lists have equal versions, on every machine.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Each node's share of the circle, between 0 and 1, by name. Pins are not counted.
    pub fn shares(&self) -> BTreeMap<&str, f64> {
        let mut shares: BTreeMap<&str, f64> = self
            .nodes
            .iter()
            .map(|node| (node.name.as_str(), 0.0))
            .collect();
        let Some(last) = self.points.last() else {
            return shares;
        };
        let mut previous = last.0;
        for (hash, index) in &self.points {
            let arc = if self.points.len() == 1 {
                u64::MAX
            } else {
                hash.wrapping_sub(previous)
            };
            *shares.entry(&self.nodes[*index as usize].name).or_default() +=
                arc as f64 / u64::MAX as f64;
            previous = *hash;
        }
        shares
    }
}

fn version(nodes: &[RingNode], pins: &BTreeMap<PartitionKey, u32>) -> u64 {
    let mut text = Vec::new();
    for node in nodes {
        text.extend((node.name.len() as u64).to_le_bytes());
        text.extend(node.name.as_bytes());
        text.extend(node.weight.to_le_bytes());
    }
    for (partition, index) in pins {
        text.extend(partition.0.to_le_bytes());
        text.extend(index.to_le_bytes());
    }
    xxh3_64(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(names: &[&str]) -> Ring {
        let nodes: Vec<_> = names.iter().map(|name| RingNode::new(*name)).collect();
        Ring::new(&nodes, []).expect("a ring")
    }

    /// Ids shaped like Discord's: a time, a worker, a counter.
    fn guilds(count: u64) -> impl Iterator<Item = PartitionKey> {
        (0..count).map(|i| {
            PartitionKey::guild(((i * 86_400_000 + 1_420_070_400_000) << 22 | i).cast_signed())
        })
    }

    #[test]
    fn placement_is_the_same_on_every_platform_and_release() {
        // Literal values: a change here would silently misplace the data of every fleet.
        let ring = ring(&["node1", "node2", "node3"]);
        let placed: Vec<_> = [0, 1, 2, 81_384_788_765_712_384, u64::MAX]
            .map(|id| ring.primary(id).to_owned())
            .to_vec();
        assert_eq!(placed, ["node1", "node3", "node2", "node3", "node2"]);
        assert_eq!(format!("{:016x}", ring.version()), "c05f679895b2c311");
    }

    #[test]
    fn guilds_are_spread_evenly() {
        for count in [2usize, 3, 5, 8] {
            let names: Vec<String> = (1..=count).map(|i| format!("node{i}")).collect();
            let ring = ring(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let mut held: BTreeMap<String, u64> = BTreeMap::new();
            for guild in guilds(40_000) {
                *held.entry(ring.primary(guild).to_owned()).or_default() += 1;
            }
            let mean = 40_000.0 / count as f64;
            for (name, guilds) in held {
                let off = (guilds as f64 - mean).abs() / mean;
                assert!(off < 0.15, "{name} of {count} holds {guilds}, mean {mean}");
            }
        }
    }

    #[test]
    fn a_join_moves_only_to_the_joined_and_about_its_share() {
        let before = ring(&["node1", "node2", "node3"]);
        let after = ring(&["node1", "node2", "node3", "node4"]);
        let mut moved = 0u32;
        for guild in guilds(20_000) {
            if before.primary(guild) != after.primary(guild) {
                assert_eq!(after.primary(guild), "node4");
                moved += 1;
            }
        }
        let fraction = f64::from(moved) / 20_000.0;
        assert!((0.20..0.30).contains(&fraction), "moved {fraction}");
    }

    #[test]
    fn weight_decides_the_share() {
        let nodes = [
            RingNode {
                name: "big".into(),
                weight: 3,
            },
            RingNode::new("small"),
        ];
        let shares = Ring::new(&nodes, []).expect("a ring");
        assert!(
            (0.68..0.82).contains(&shares.shares()["big"]),
            "{:?}",
            shares.shares()
        );
        let sum: f64 = shares.shares().values().sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_pin_moves_one_guild_and_nothing_else() {
        let nodes = [RingNode::new("node1"), RingNode::new("node2")];
        let free = Ring::new(&nodes, []).expect("a ring");
        let guild = guilds(50)
            .find(|guild| free.primary(*guild) == "node1")
            .expect("one on node1");
        let pinned = Ring::new(&nodes, [(guild, "node2".to_owned())]).expect("a ring");
        assert_ne!(free.version(), pinned.version());
        for other in guilds(5_000) {
            let expected = if other == guild {
                "node2"
            } else {
                free.primary(other)
            };
            assert_eq!(pinned.primary(other), expected);
        }
    }

    #[test]
    fn impossible_rings_are_refused() {
        assert_eq!(Ring::new(&[], []), Err(RingError::Empty));
        assert_eq!(
            Ring::new(
                &[RingNode {
                    name: "a".into(),
                    weight: 0
                }],
                []
            ),
            Err(RingError::Empty)
        );
        assert_eq!(
            Ring::new(
                &[
                    RingNode::new("a"),
                    RingNode {
                        name: "a".into(),
                        weight: 2
                    }
                ],
                []
            ),
            Err(RingError::Duplicate("a".into()))
        );
        assert_eq!(
            Ring::new(&[RingNode::new("a")], [(PartitionKey(7), "b".to_owned())]),
            Err(RingError::UnknownPin {
                partition: 7,
                node: "b".into()
            })
        );
    }

    proptest! {
        #[test]
        fn leaving_hands_out_only_the_leavers_data(
            names in proptest::collection::btree_set("[a-z]{1,8}", 2..8),
            leaver in any::<prop::sample::Index>(),
            partitions in proptest::collection::vec(any::<u64>(), 1..200),
        ) {
            let all: Vec<_> = names.iter().map(|name| RingNode::new(name.as_str())).collect();
            let gone = leaver.get(&all).name.clone();
            let rest: Vec<_> = all.iter().filter(|node| node.name != gone).cloned().collect();
            let before = Ring::new(&all, []).expect("a ring");
            let after = Ring::new(&rest, []).expect("a ring");
            for partition in partitions {
                if before.primary(partition) == gone {
                    prop_assert_ne!(after.primary(partition), gone.as_str());
                } else {
                    prop_assert_eq!(before.primary(partition), after.primary(partition));
                }
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(
            mut nodes in proptest::collection::vec(("[a-z]{1,6}", 1u32..4), 1..6),
            partition in any::<u64>(),
        ) {
            nodes.sort();
            nodes.dedup_by(|a, b| a.0 == b.0);
            let forward: Vec<_> =
                nodes.iter().map(|(name, weight)| RingNode { name: name.clone(), weight: *weight }).collect();
            let backward: Vec<_> = forward.iter().rev().cloned().collect();
            let a = Ring::new(&forward, []).expect("a ring");
            let b = Ring::new(&backward, []).expect("a ring");
            prop_assert_eq!(a.version(), b.version());
            prop_assert_eq!(a.primary(partition), b.primary(partition));
        }
    }
}
