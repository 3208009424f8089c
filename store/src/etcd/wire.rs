//! Etcd's messages and calls, as far as they are used. Generated; `tests/bootstrap.rs` proves it fresh.

#![allow(missing_docs, clippy::pedantic)]

include!("gen/etcdserverpb.rs");
