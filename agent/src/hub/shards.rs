//! Questions to the shards of other hosts, for [`crate::broadcast`].

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tanako_proto::{
    host::v1::{ShardsQuestion, host_client::HostClient},
    worker::v1::BroadcastReply,
};

use super::Hub;
use crate::problem::said;
use crate::{
    broadcast::{Elsewhere, View},
    desired::Desired,
    hosts::MESSAGE_BYTES_MAX,
    office::Wanted,
};

/// Hosts that have not been asked before are waited for so long.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// The other hosts as the hub knows them.
pub struct Others {
    hub: Hub,
    wanted: Wanted,
}

impl Others {
    /// Of this fleet.
    pub fn new(hub: Hub, wanted: Wanted) -> Self {
        Self { hub, wanted }
    }
}

impl Elsewhere for Others {
    fn desired(&self) -> BoxFuture<'_, Arc<Desired>> {
        self.wanted.now().boxed()
    }

    fn view(&self) -> BoxFuture<'_, View> {
        async {
            // Without it nothing is known, and the agent is on its way out.
            let _ = self.hub.settled(SETTLE_MAX).await;
            let view = self.hub.look(|core, _| View {
                hosts: core.askable(),
                processes: core.processes(),
            });
            view.await.unwrap_or_default()
        }
        .boxed()
    }

    fn ask(
        &self,
        host: String,
        question: ShardsQuestion,
    ) -> BoxFuture<'_, Result<BroadcastReply, String>> {
        async move {
            let dial = self.hub.dial().ok_or("this fleet has one host")?;
            let channel = dial.channel(&host).await?;
            let mut client = HostClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let answer = client.ask_shards(question).await;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|status| said(&status))
        }
        .boxed()
    }
}
