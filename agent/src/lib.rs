//! The Tanako agent: supervises the shard processes and database nodes of one host
