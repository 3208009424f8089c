//! What can go wrong with a store, and what to do about it.

use std::path::PathBuf;

use crate::model::{LeaseId, Revision};

/// Why the store refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store {path} is open in another process")]
    Locked {
        /// Directory of the store.
        path: PathBuf,
    },
    /// A file is not what was written to it.
    #[error("the store file {path} is damaged: {detail}")]
    Corrupt {
        /// The file, or the directory when the engine does not say which.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Made by a version that this one cannot read.
    #[error("the store {path} has a format that this version cannot read: {detail}")]
    Format {
        /// Directory of the store.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The disk is full: nothing was changed, reading goes on.
    #[error("{path} has only {free} bytes free, the store keeps {need} in reserve")]
    NoSpace {
        /// Directory of the store.
        path: PathBuf,
        /// Bytes free for this user.
        free: u64,
        /// Bytes below which writes are refused.
        need: u64,
    },
    /// The request breaks a limit that all backends share.
    #[error("{what} exceeds the limit of {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The request contradicts itself or names no key.
    #[error("{0}")]
    Invalid(&'static str),
    /// The history asked for has been dropped.
    #[error("changes before revision {oldest} are no longer kept")]
    Compacted {
        /// The oldest revision that can be watched from.
        oldest: Revision,
    },
    /// The lease has ended.
    #[error("lease {0} does not exist or has ended")]
    NoLease(LeaseId),
    /// The medium failed. A commit may or may not have happened.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The server's quota is used up: nothing was changed, reading goes on.
    #[error("{server} has used up its space quota")]
    Full {
        /// Which.
        server: String,
    },
    /// The server knows the caller not, or not for this.
    #[error("{0}")]
    Denied(String),
    /// The office that the commit was made in has passed on; nothing was changed.
    #[error("the office {key:?} is no longer held")]
    Fenced {
        /// Key of the office.
        key: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "stop the other process, or use another data directory",
            Self::Corrupt { .. } => {
                "check the disk; move the store directory aside (do not delete it), start again with \
                 --spec fleet.toml, and report what happened"
            }
            Self::Format { .. } => "use the version that wrote it, or move the directory aside",
            Self::NoSpace { .. } => "free disk space; writing resumes by itself",
            Self::TooLarge { .. } | Self::Invalid(_) => "this is a fault in the caller",
            Self::Compacted { .. } => "list again and watch from the listing's revision",
            Self::NoLease(_) => "grant a new lease",
            Self::Unavailable(_) => {
                "check the disk, or the etcd servers (etcdctl endpoint health); what was asked may or \
                 may not have happened: look before asking again"
            }
            Self::Full { .. } => {
                "compact and defragment etcd or raise its --quota-backend-bytes, then: etcdctl alarm \
                 disarm; set --auto-compaction-retention so that it does not fill again"
            }
            Self::Denied(_) => {
                "check the etcd user, its password file and client certificate, and that its role may \
                 read and write the fleet's prefix"
            }
            Self::Fenced { .. } => "another agent decides now; ask that one",
            Self::Closed => "the agent is stopping",
        }
    }

    /// Whether the same request may succeed later without anything being changed in it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. } | Self::Full { .. } | Self::Unavailable(_) | Self::Locked { .. }
        )
    }
}
