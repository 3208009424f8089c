//! What changes the fleet goes to the agent that holds the office: as it is, with its caller, at most
//! one hop, within its deadline, and again while an election goes on.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tanako_proto::fleet::v1::{Problem, fleet_client::FleetClient};
use tanako_store::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Channel};

use super::{Hub, peer};
use crate::{
    coordinator::Caller,
    office::{Front, Standing},
    problem,
    service::admission,
};

/// How long a call may take whose caller does not say.
const WITHIN: Duration = Duration::from_secs(30);
/// How long the next election is waited for, and whoever is elected to begin its term.
const ELECTION_WITHIN: Duration = Duration::from_secs(15);
/// Pauses before the same agent is asked again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Where a call is carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// By this agent.
    Here,
    /// By the agent of this host.
    There(String),
}

/// Where a call is carried out that changes the fleet.
pub fn place(standing: &Standing, own: &str, metadata: &MetadataMap) -> Place {
    match standing {
        Standing::Waiting { leader } if leader != own && !peer::is_hop(metadata) => {
            Place::There(leader.clone())
        }
        // This agent decides, or knows why nobody does.
        _ => Place::Here,
    }
}

/// The same; an agent that has lost the store knows from the others who decides.
pub async fn find(hub: &Hub, standing: &Standing, metadata: &MetadataMap) -> Place {
    let place = place(standing, hub.host(), metadata);
    let lost = matches!(standing, Standing::Away { .. } | Standing::Starting);
    if place == Place::Here && lost && !peer::is_hop(metadata) {
        let leader = hub.look(|core, _| core.leader()).await;
        if let Ok(Some(leader)) = leader {
            return Place::There(leader);
        }
    }
    place
}

/// What is passed on.
pub struct Call<T> {
    /// The request.
    pub message: T,
    /// Who made it.
    pub caller: Caller,
    /// What came with it.
    pub metadata: MetadataMap,
}

/// How a call is made.
pub type Make<T, R> =
    fn(FleetClient<Channel>, Request<T>) -> BoxFuture<'static, Result<Response<R>, Status>>;

/// Has `call` carried out by the agent that holds the office. `here` is asked when an election gives it
/// to this one meanwhile.
pub async fn forward<T: Clone, R>(
    hub: &Hub,
    front: &Front,
    leader: String,
    call: Call<T>,
    make: Make<T, R>,
    here: impl FnOnce(T, Caller) -> BoxFuture<'static, Result<R, Problem>> + Send,
) -> Result<R, Status> {
    let until = Instant::now() + deadline(&call.metadata).unwrap_or(WITHIN);
    let ask = |leader| once(hub, leader, &call, make, until);
    let answer = insist(front.standing(), hub.host(), leader, until, ask).await;
    if let Some(answer) = answer {
        return answer;
    }
    here(call.message, call.caller)
        .await
        .map_err(problem::status)
}

/// Asks the agent of `leader`, and whoever is elected meanwhile, until one has taken it in or refused it. One
/// that was just elected says for a while that it does not decide, for it reads everything first. `None` = it
/// is for this agent, that of `own`: it decides by now, or knows why nobody does.
async fn insist<R, F>(
    standing: watch::Receiver<Standing>,
    own: &str,
    mut leader: String,
    until: Instant,
    ask: impl Fn(String) -> F,
) -> Option<Result<R, Status>>
where
    F: Future<Output = Result<R, Status>>,
{
    let mut patience: Option<Instant> = None;
    let mut pauses = Backoff::new(AGAIN.0, AGAIN.1);
    loop {
        let last = patience.is_some_and(|end| Instant::now() >= end);
        tokio::select! {
            biased;
            answer = ask(leader.clone()) => match answer {
                Err(refusal) if !last && is_worth_another(&refusal) => {}
                answer => return Some(answer.map_err(|refusal| in_doubt(&leader, refusal))),
            },
            // A host that is frozen, or without power, does not even say that it is gone. Whatever it has
            // decided by now the next one knows, and it decides nothing more.
            () = replaced(standing.clone(), &leader) => {}
        }
        let end = *patience.get_or_insert_with(|| (Instant::now() + ELECTION_WITHIN).min(until));
        let next = (Instant::now() + pauses.pause()).min(end);
        // Whoever is elected next, at once; or the same one, when it was only on its way up.
        let _ = timeout_at(next, replaced(standing.clone(), &leader)).await;
        let stands = now(&standing);
        match place(&stands, own, &MetadataMap::new()) {
            Place::There(elected) => leader = elected,
            Place::Here if matches!(stands, Standing::Holding { .. }) => return None,
            Place::Here if Instant::now() >= end => return None,
            // It knows of nobody else yet.
            Place::Here => sleep_until(next).await,
        }
    }
}

/// Resolves once another agent than that of `leader` decides.
async fn replaced(mut standing: watch::Receiver<Standing>, leader: &str) {
    if standing
        .wait_for(|now| is_another(now, leader))
        .await
        .is_err()
    {
        // This agent ends, and all its calls do.
        std::future::pending::<()>().await;
    }
}

fn is_another(now: &Standing, leader: &str) -> bool {
    match now {
        Standing::Holding { .. } => true,
        Standing::Waiting { leader: now } => now != leader,
        _ => false,
    }
}

/// Nobody has answered, not even after an election: whether it was taken in is for the caller to find out.
fn in_doubt(leader: &str, refusal: Status) -> Status {
    let problem = Problem::from_status(&refusal);
    if problem.code != "host-unreachable" {
        return refusal;
    }
    problem::status(unanswered(leader, &problem.cause))
}

fn unanswered(leader: &str, cause: &str) -> Problem {
    Problem::new(
        "timeout",
        format!("host:{leader}"),
        format!("the agent of host {leader}, which decides, did not answer"),
    )
    .cause(cause)
    .hint("see `tanakoctl operation list` whether it was taken in; asking again with the same request id is safe")
    .retryable()
}

fn now(standing: &watch::Receiver<Standing>) -> Standing {
    standing.borrow().clone()
}

async fn once<T: Clone, R>(
    hub: &Hub,
    leader: String,
    call: &Call<T>,
    make: Make<T, R>,
    until: Instant,
) -> Result<R, Status> {
    let client = peer::client(hub, &leader).await.map_err(problem::status)?;
    let mut request = peer::hop(call.message.clone());
    let caller = admission::passed_on(&call.caller);
    request.metadata_mut().insert_bin(admission::CALLER, caller);
    request.set_timeout(until.saturating_duration_since(Instant::now()));
    match timeout_at(until, make(client, request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if status.details().is_empty() => {
            Err(problem::status(peer::problem_of(&leader, &status)))
        }
        Ok(Err(status)) => Err(status),
        Err(_) => Err(problem::status(unanswered(&leader, "the time is over"))),
    }
}

/// Whether the agent that was asked has surely, or by the request's id harmlessly, not done it.
fn is_worth_another(refusal: &Status) -> bool {
    let code = Problem::from_status(refusal).code;
    refusal.code() == Code::Unavailable
        && matches!(
            code.as_str(),
            "not-coordinator" | "host-unreachable" | problem::STOPPING
        )
}

/// `grpc-timeout`: at most eight digits and a unit.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use tonic::metadata::MetadataValue;

    use super::*;

    fn metadata(pairs: &[(&'static str, &'static str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.insert(*key, MetadataValue::from_static(value));
        }
        map
    }

    #[test]
    fn a_call_goes_to_the_office_and_no_further() {
        let waiting = Standing::Waiting {
            leader: "c".to_owned(),
        };
        let fresh = metadata(&[]);
        assert_eq!(place(&waiting, "b", &fresh), Place::There("c".to_owned()));
        let passed = metadata(&[(HOP_KEY, "1")]);
        assert_eq!(place(&waiting, "b", &passed), Place::Here);
        let holding = Standing::Holding { trouble: None };
        assert_eq!(place(&holding, "b", &fresh), Place::Here);
        let away = Standing::Away { why: String::new() };
        assert_eq!(place(&away, "b", &fresh), Place::Here);
    }

    const HOP_KEY: &str = peer::HOP;

    fn refused(standing: &Standing) -> Status {
        problem::status(standing.problem())
    }

    #[tokio::test]
    async fn one_that_has_yet_to_begin_its_term_is_asked_again() {
        let waiting = |leader: &str| Standing::Waiting {
            leader: leader.to_owned(),
        };
        let (standing, watched) = watch::channel(waiting("c"));
        let (until, asked) = (Instant::now() + WITHIN, Cell::new(0));
        let ask = |leader: String| {
            asked.set(asked.get() + 1);
            ready(match asked.get() {
                1 | 2 => Err(refused(&waiting("b"))),
                _ => Ok(leader),
            })
        };
        let answer = insist(watched.clone(), "a", "c".to_owned(), until, ask).await;
        assert_eq!(answer.expect("its").expect("taken in"), "c");
        assert_eq!(asked.get(), 3);

        // Another one is elected meanwhile; then this one is.
        let ask = |leader: String| {
            let next = match leader.as_str() {
                "c" => waiting("b"),
                _ => Standing::Holding { trouble: None },
            };
            standing.send_replace(next);
            ready(Err::<(), Status>(refused(&Standing::Starting)))
        };
        let answer = insist(watched, "a", "c".to_owned(), until, ask).await;
        assert!(answer.is_none(), "{answer:?}");
    }

    #[test]
    fn the_callers_deadline_is_kept() {
        let of = |text| deadline(&metadata(&[("grpc-timeout", text)]));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "S", "123456789S", "12x", "-1S", "é"] {
            let mut map = MetadataMap::new();
            let Ok(value) = MetadataValue::try_from(bad) else {
                continue;
            };
            map.insert("grpc-timeout", value);
            assert_eq!(deadline(&map), None, "{bad:?}");
        }
    }

    #[test]
    fn only_what_was_surely_not_done_is_asked_for_again() {
        let of = |code: &str| problem::status(Problem::new(code, "x", "y"));
        assert!(is_worth_another(&of("not-coordinator")));
        assert!(is_worth_another(&problem::status(peer::unreachable(
            "a", ""
        ))));
        assert!(!is_worth_another(&of("conflict")));
        assert!(!is_worth_another(&of("store-unavailable")));
        assert!(!is_worth_another(&of("timeout")));
        // Once more was not enough either.
        let doubt = in_doubt("a", problem::status(peer::unreachable("a", "reset")));
        let problem = Problem::from_status(&doubt);
        assert_eq!(
            (problem.code.as_str(), problem.cause.as_str()),
            ("timeout", "reset")
        );
        assert!(
            problem.retryable && problem.hint.contains("request id"),
            "{problem:?}"
        );
        let clear = Problem::from_status(&in_doubt("a", of("conflict")));
        assert_eq!(clear.code, "conflict");
    }
}
