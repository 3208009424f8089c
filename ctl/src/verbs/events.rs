//! `tanakoctl events`.

use std::collections::HashMap;

use tanako_proto::fleet::v1::{EventsRequest, Problem};

use super::logs::next;
use crate::{
    client::Fleet,
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{backoff, is_passing},
    session::{Session, status},
    target,
    units::parse_since,
    view::stream::EventView,
};

/// Events asked for again after a lost connection; what was shown already is left out.
const TAIL_AGAIN: u32 = 10_000;

/// Show what happened in the fleet
///
/// Starts and exits, crash loops, operations, refused IDENTIFYs. With -f it goes on with new events.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only events about these [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Go on with new events
    #[arg(long, short = 'f')]
    follow: bool,
    /// Begin with so many of the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tail: u32,
    /// Only those of the last while (10m), or since a time (2026-11-21T03:00:00Z)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        target::parse(&self.targets)?;
        let since = match &self.since {
            None => 0,
            Some(text) => parse_since(text, jiff::Timestamp::now())
                .map_err(|message| Failure::usage("--since", message))?,
        };
        if self.follow {
            session.if_cancelled(Some(String::new()));
        }
        let mut fleet = session.fleet().await?;
        if !self.targets.is_empty() {
            target::check(&self.targets, &status(&mut fleet).await?)?;
        }
        let mut request = EventsRequest {
            tail: self.tail,
            follow: self.follow,
            since,
            targets: self.targets,
        };
        let mut newest = HashMap::new();
        let mut tries = 0;
        loop {
            match read(session, &mut fleet, request.clone(), &mut newest).await? {
                None if self.follow => tries += 1,
                None => return Ok(Exit::Ok),
                Some(problem) if self.follow && is_passing(&problem) => {
                    tries += 1;
                    session.ui.note(&format!(
                        "lost the agent ({}), trying again",
                        problem.message
                    ));
                }
                Some(problem) => return Err(problem.into()),
            }
            tokio::time::sleep(backoff(tries)).await;
            if let Ok(again) = session.endpoint()?.open().await {
                fleet = again;
                tries = 0;
            }
            if !newest.is_empty() {
                request.tail = TAIL_AGAIN;
            }
        }
    }
}

/// Reads to the end of the stream. The ids of each host's events rise, so that `newest` tells what was shown
/// already.
async fn read(
    session: &Session,
    fleet: &mut Fleet,
    request: EventsRequest,
    newest: &mut HashMap<String, u64>,
) -> Result<Option<Problem>, Failure> {
    let follow = request.follow;
    let mut events = match fleet.events(request).await {
        Ok(events) => events,
        Err(problem) => return Ok(Some(problem)),
    };
    loop {
        match next(fleet.endpoint(), &mut events, follow).await {
            Ok(Some(event)) => {
                // An agent that numbers nothing sends 0; then everything is shown.
                let known = newest.entry(event.host.clone()).or_default();
                if event.id == 0 || event.id > *known {
                    *known = event.id.max(*known);
                    session.ui.item(&EventView::from(event))?;
                }
            }
            Ok(None) => return Ok(None),
            Err(problem) => return Ok(Some(problem)),
        }
    }
}
