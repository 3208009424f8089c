//! The session vault: what a successor needs to RESUME, kept while nobody holds the shard.

use std::path::PathBuf;

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::worker::v1::{SessionDeposit, SessionDiscard};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::history::History;

/// Handle to the vault; cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault;

/// The vault cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be used.
    #[error("session vault in {directory} cannot be opened")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a deposit was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DepositError {
    /// A newer attempt holds the shard.
    #[error("a newer attempt holds the shard")]
    Superseded,
    /// A field is missing or too large.
    #[error("the deposit is malformed: {0}")]
    Malformed(&'static str),
    /// It could not be made safe on disk.
    #[error("the deposit could not be written")]
    NotSafe,
}

impl Vault {
    /// Loads the sessions in `directory` and starts the writer.
    pub async fn start(
        directory: PathBuf,
        history: History,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// This attempt now holds the shards of `spec`; deposits of earlier ones are refused from now on.
    pub fn attach(&self, spec: &ProcessSpec, attempt: u64) {
        todo!()
    }

    /// Keeps a session. Returns once it is in memory, or, when `deposit.ack` is set, on disk.
    pub async fn deposit(
        &self,
        process: &ProcessName,
        attempt: u64,
        deposit: SessionDeposit,
    ) -> Result<(), DepositError> {
        todo!()
    }

    /// Forgets a session that is void.
    pub fn discard(&self, process: &ProcessName, attempt: u64, discard: &SessionDiscard) {
        todo!()
    }

    /// The sessions that an attempt of `spec` may resume; with `token_sha256`, only that token's.
    pub fn sessions_for(
        &self,
        spec: &ProcessSpec,
        token_sha256: Option<[u8; 32]>,
    ) -> Vec<SessionDeposit> {
        todo!()
    }
}
