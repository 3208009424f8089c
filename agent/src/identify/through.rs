//! The way to the office over the Host service of its agent.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tanako_proto::host::v1::{GatewayReport, PermitReply, PermitRequest, host_client::HostClient};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Status, transport::Channel};

use super::{Office, Upstream};
use crate::office::Standing;

/// A call takes no longer: a poll waits a second, a report is quick.
const CALL_WITHIN: Duration = Duration::from_secs(4);

/// Gives a channel to the agent of a host, or says why there is none.
pub type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Channel, String>> + Send + Sync>;

/// The way, by the name of the host whose agent holds the office.
pub struct Through {
    own: String,
    dial: Dial,
    office: watch::Sender<Office>,
}

impl Through {
    /// Who holds the office is not known before [`Self::follow`].
    pub fn new(own: String, dial: Dial) -> Arc<Self> {
        Arc::new(Self {
            own,
            dial,
            office: watch::Sender::new(Office::Unknown),
        })
    }

    /// Follows what the office says of itself, until cancelled.
    pub fn follow(
        self: &Arc<Self>,
        mut standing: watch::Receiver<Standing>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) {
        let this = Arc::clone(self);
        tracker.spawn(cancel.run_until_cancelled_owned(async move {
            loop {
                let office = office_of(&standing.borrow_and_update());
                this.office.send_if_modified(|now| {
                    let is_new = *now != office;
                    *now = office;
                    is_new
                });
                if standing.changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    async fn client(&self, host: String) -> Result<HostClient<Channel>, Status> {
        let channel = (self.dial)(host).await.map_err(Status::unavailable)?;
        Ok(HostClient::new(channel))
    }
}

/// Who gives permits, by where this agent stands.
fn office_of(standing: &Standing) -> Office {
    match standing {
        // Trouble with the store is no change of office: its lease runs on.
        Standing::Holding { .. } => Office::Here,
        Standing::Waiting { leader } => Office::At(leader.clone()),
        _ => Office::Unknown,
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_WITHIN);
    request
}

impl Upstream for Through {
    fn office(&self) -> watch::Receiver<Office> {
        self.office.subscribe()
    }

    fn acquire(
        &self,
        host: String,
        request: PermitRequest,
    ) -> BoxFuture<'_, Result<PermitReply, Status>> {
        Box::pin(async move {
            let mut client = self.client(host).await?;
            let reply = client.acquire_permit(within(request)).await?;
            Ok(reply.into_inner())
        })
    }

    fn report(&self, host: String, report: GatewayReport) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async move {
            let mut client = self.client(host).await?;
            client.report_gateway(within(report)).await.map(drop)
        })
    }

    fn own(&self) -> &str {
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_asked_of_whoever_decides() {
        let holding = Standing::Holding {
            trouble: Some("slow".to_owned()),
        };
        assert_eq!(office_of(&holding), Office::Here);
        let waiting = Standing::Waiting {
            leader: "b".to_owned(),
        };
        assert_eq!(office_of(&waiting), Office::At("b".to_owned()));
        for standing in [Standing::Starting, Standing::Inheriting] {
            assert_eq!(office_of(&standing), Office::Unknown);
        }
    }
}
