//! The keys under which rows and index entries are stored.
//!
//! | space | key | value |
//! |---|---|---|
//! | rows | table, partition, primary key | the row |
//! | index | table, 0, primary key | partition (only where the key alone does not place the row) |
//! | index | table, column, hash of the value, partition, primary key | nothing |
//!
//! So all rows of a guild lie together, and one index entry serves both "this value anywhere" and
//! "this value in this guild". Where the primary key is the guild id, the key part is empty.

use tanako_fleet::ring::PartitionKey;
use xxhash_rust::xxh3::xxh3_128;

use crate::schema::value::string;
use crate::schema::{KEY, Kind, Table};

/// Bytes before the primary key in the key of a row.
pub const ROW_PREFIX: usize = 1 + 8;
/// Bytes before the partition in the key of an index entry.
const INDEX_VALUE: usize = 1 + 1 + 16;

/// The bytes of a primary key, from its canonical JSON text.
pub fn primary(table: &Table, json: &[u8]) -> Vec<u8> {
    if table.key_is_guild() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(json);
    match table.key().kind {
        Kind::Text => string(&text).map_or_else(Vec::new, |text| text.as_bytes().to_vec()),
        _ => ordered(text.parse().unwrap_or_default()).to_vec(),
    }
}

/// The partition of a row of a table without a guild, or the guild itself.
pub fn partition_of(table: &Table, json: &[u8]) -> PartitionKey {
    if table.guild.is_some() {
        let guild = std::str::from_utf8(json)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        PartitionKey::guild(guild)
    } else {
        PartitionKey::keyed(table.name, json)
    }
}

/// The key of a row.
pub fn row(table: &Table, partition: PartitionKey, primary: &[u8]) -> Vec<u8> {
    let mut key = partition_prefix(table, partition);
    key.extend_from_slice(primary);
    key
}

/// What the keys of all rows of a partition start with.
pub fn partition_prefix(table: &Table, partition: PartitionKey) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(table.id);
    key.extend(partition.0.to_be_bytes());
    key
}

/// The partition in the key of a row.
pub fn row_partition(key: &[u8]) -> Option<PartitionKey> {
    let bytes: [u8; 8] = key.get(1..ROW_PREFIX)?.try_into().ok()?;
    Some(PartitionKey(u64::from_be_bytes(bytes)))
}

/// The key of the directory entry from primary key to partition.
pub fn directory(table: &Table, primary: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + primary.len());
    key.extend([table.id, KEY as u8]);
    key.extend_from_slice(primary);
    key
}

/// The partition that a directory entry names.
pub fn directory_partition(value: &[u8]) -> Option<PartitionKey> {
    Some(PartitionKey(u64::from_be_bytes(value.try_into().ok()?)))
}

/// What the index entries of a value start with, within one partition if given.
pub fn index_prefix(
    table: &Table,
    column: usize,
    json: &[u8],
    partition: Option<PartitionKey>,
) -> Vec<u8> {
    let mut key = Vec::with_capacity(96);
    key.extend([table.id, column as u8]);
    key.extend(xxh3_128(json).to_be_bytes());
    if let Some(partition) = partition {
        key.extend(partition.0.to_be_bytes());
    }
    key
}

/// The key of the row that an index entry points to.
pub fn indexed_row(table: &Table, entry: &[u8]) -> Option<Vec<u8>> {
    let rest = entry.get(INDEX_VALUE..)?;
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(table.id);
    key.extend_from_slice(rest);
    Some(key)
}

/// A signed integer in bytes that sort as it does.
fn ordered(number: i64) -> [u8; 8] {
    (number.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_entry_leads_back_to_its_row() {
        let users = Table::find("users").expect("a table");
        let partition = PartitionKey::guild(5);
        let primary = primary(users, b"\"a\\\"b\"");
        assert_eq!(primary, b"a\"b");
        let mut entry = index_prefix(users, 1, b"7", Some(partition));
        entry.extend_from_slice(&primary);
        let row = row(users, partition, &primary);
        assert_eq!(indexed_row(users, &entry), Some(row.clone()));
        assert_eq!(row_partition(&row), Some(partition));
    }

    #[test]
    fn integers_sort_by_value() {
        let mut keys: Vec<_> = [3, -1, i64::MIN, 0, i64::MAX].map(ordered).to_vec();
        keys.sort_unstable();
        assert_eq!(keys, [i64::MIN, -1, 0, 3, i64::MAX].map(ordered));
    }
}
