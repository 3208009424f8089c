//! Backups: one verified archive per node, and a restore into any number of nodes.
//!
//! A backup is written from a snapshot while the node serves. It counts as good only after the file
//! has been read back from its first to its last byte and every checksum and row count agreed; only
//! then does it get its name, and only then is its manifest written. A restore checks all archives
//! before it touches anything, loads the rows whose primary the node is into a new generation of
//! the store, counts them, and replaces the old generation in one step.

mod archive;
mod online;
mod restore;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use archive::{Header, verify, write};
pub use restore::{Loaded, check_set, load, restore_offline};

use crate::failure::Failure;

/// The version of the archive's format.
pub const FORMAT: u32 = 1;

/// Told how far a backup, verification or restore is: rows done, and rows in total.
pub type Progress<'p> = dyn FnMut(u64, u64) + Send + 'p;

/// What a table's part of an archive holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableSum {
    /// How many rows.
    pub rows: u64,
    /// SHA-256 over the rows in their order, in hexadecimal.
    pub sha256: String,
}

/// Written beside the archive once it has been verified.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// The archive's format, [`FORMAT`].
    pub format: u32,
    /// The node whose rows it holds.
    pub node: String,
    /// All nodes of the ring at that time: a restore needs the archive of each.
    pub ring_nodes: Vec<String>,
    /// When the snapshot was taken, ISO 8601.
    pub created_at: String,
    /// The tables.
    pub tables: BTreeMap<String, TableSum>,
    /// The archive's size.
    pub bytes: u64,
    /// SHA-256 of the archive file, in hexadecimal.
    pub archive_sha256: String,
    /// The declared tables' version.
    pub schema_version: u32,
    /// The version of Tanako that wrote it.
    pub tanako_version: String,
    /// Always true: a manifest is only written after the archive was read back.
    pub verified: bool,
}

impl Manifest {
    /// All rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }
}

/// Why a backup, verification or restore failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The operating system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("no space is left for {path}: free space there, or choose another directory")]
    DiskFull {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The file is something else.
    #[error(
        "{path} is not a Tanako backup archive; nothing was changed. Give the NODE.tbk files of a backup"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Made by a version that this one does not understand.
    #[error(
        "{path} has {what} {found}, this version reads up to {known}; nothing was changed. Use a tanako-db as new as the one that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Format or schema version.
        what: &'static str,
        /// The version in the file.
        found: u32,
        /// The version known here.
        known: u32,
    },
    /// Cut short or altered.
    #[error("{path} is damaged: {why}; nothing was changed. Use another backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// The archives given are not one whole backup.
    #[error("incomplete backup: {0}; nothing was changed")]
    Incomplete(String),
    /// The node's own store failed.
    #[error("the store failed: {0}")]
    Store(Failure),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::store::StoreError),
}

impl BackupError {
    /// The stable name of the kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::DiskFull { .. } => "disk_full",
            Self::Foreign { .. } => "foreign_archive",
            Self::Version { .. } => "archive_version",
            Self::Damaged { .. } => "archive_damaged",
            Self::Incomplete(_) => "backup_incomplete",
            Self::Store(_) | Self::Directory(_) => "storage",
        }
    }
}

pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| {
        if crate::engine::disk_full(&source) {
            BackupError::DiskFull { path }
        } else {
            BackupError::Io { what, path, source }
        }
    }
}
