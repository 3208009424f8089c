//! The Tanako bot: security and utilities, one process for one or more shards
