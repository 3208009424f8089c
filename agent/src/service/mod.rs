//! The services of this agent: what `tanakoctl` asks over a unix socket, and in a fleet what it and other
//! agents ask over TLS.
//!
//! - [`socket`], [`listen`]: the two ways in.
//! - [`admission`]: the door behind both: who is on the other end, and whether they may.
//! - `rpc`: the calls, each a few lines over the parts of the agent.
//! - `moving`: the store's move to etcd.
//! - [`view`]: the status of the fleet, composed from what the parts publish; pure.
//! - [`watch`]: that status as a stream of changes.
//! - [`logs`]: many logs as one stream; `gather`: those of many hosts. `happened`: events of many hosts.
//! - `everywhere`: one question to all hosts. `backups`: those of all hosts.
//! - [`locate`]: where a guild lives. `targets`: what targets stand for.
//! - [`doctor`]: what is wrong with this machine and this fleet, and what to do.

pub mod admission;
mod backups;
pub mod doctor;
mod everywhere;
mod gather;
mod happened;
pub mod listen;
pub mod locate;
pub mod logs;
mod moving;
mod overheard;
mod rpc;
pub mod socket;
mod targets;
pub mod view;
pub mod watch;

use std::{fmt::Display, future::Future, time::Duration};

use tokio_util::sync::CancellationToken;

pub use rpc::{Service, Sources, Upgrades};

/// Largest request of the fleet service. A spec is the largest.
pub const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;
/// After the end was asked for, what is under way may take so long.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a server until it has ended. Streams end with the same token; a client that holds its connection
/// open is not waited for.
async fn until_stopped<E: Display>(
    server: impl Future<Output = Result<(), E>>,
    cancel: CancellationToken,
    what: &'static str,
) {
    let grace = async {
        cancel.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => if let Err(error) = result {
            tracing::error!(%error, "{what} has ended");
        },
        () = grace => {}
    }
}
