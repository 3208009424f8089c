//! The way to the agent: a unix socket that speaks gRPC.
//!
//! [`link`] holds the stream: Hello, reports and deposits go up, Welcome, acknowledgements and commands
//! come down. [`Permits`] asks for IDENTIFYs on the same channel. When the agent is gone the process
//! goes on; both come back with jittered backoff.

pub mod link;
pub mod report;
pub mod validity;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tanako_proto::worker::v1::worker_client::WorkerClient;
use tanako_proto::worker::v1::{IdentifyPermit, IdentifyRequest};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// Who we are to the agent.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `TANAKO_PROCESS`, for example `tanako/0`.
    pub process: String,
    /// `TANAKO_ATTEMPT`.
    pub attempt: u64,
}

/// A lazily connected channel to the worker socket.
pub fn channel(socket: PathBuf) -> Channel {
    // The address is never used: the connector goes to the socket.
    Endpoint::from_static("http://agent.invalid")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        }))
}

/// Asks the agent for permits.
#[derive(Clone)]
pub struct Permits {
    client: WorkerClient<Channel>,
    identity: Identity,
    superseded: CancellationToken,
}

impl Permits {
    /// `superseded` is cancelled when the agent says that a newer attempt has taken over.
    pub fn new(channel: Channel, identity: Identity, superseded: CancellationToken) -> Self {
        Self {
            client: WorkerClient::new(channel),
            identity,
            superseded,
        }
    }

    /// One call; the agent answers when the permit is due. `unused` is the number of the shard's latest permit,
    /// where it came too late and will not be used; 0 = there is none.
    pub async fn acquire(
        &self,
        shard_id: u32,
        shard_count: u32,
        unused: u64,
    ) -> Result<IdentifyPermit, tonic::Status> {
        let request = IdentifyRequest {
            process: self.identity.process.clone(),
            attempt: self.identity.attempt,
            shard_id,
            shard_count,
            unused_permit: unused,
        };
        Ok(self
            .client
            .clone()
            .acquire_identify(request)
            .await?
            .into_inner())
    }

    /// This process has been replaced.
    pub fn superseded(&self) {
        self.superseded.cancel();
    }
}
