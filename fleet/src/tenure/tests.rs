use proptest::prelude::*;

use super::*;

const TTL: u64 = 5_000;

fn renew(lease: u64, way: Way) -> Effect {
    Effect::Renew { lease, way }
}

fn renewed(lease: u64, sent_at: u64) -> Input {
    Input::Renewed {
        lease,
        way: Way::Direct,
        sent_at,
    }
}

fn cut(peer: &str, asked_at: u64) -> Input {
    Input::Cut {
        peer: peer.to_owned(),
        asked_at,
    }
}

/// A tenure that began at 1,000 with the lease 7.
fn tenured(stay: u32) -> Tenure {
    let mut tenure = Tenure::new(TTL, 0);
    assert_eq!(tenure.step(0, Input::Tick), [Effect::Begin]);
    let began = Input::Began {
        lease: 7,
        sent_at: 1_000,
        stay,
    };
    assert_eq!(tenure.step(1_000, Input::Stay(stay)), []);
    assert_eq!(tenure.step(1_000, began), []);
    tenure
}

#[test]
fn a_lease_carries_from_when_it_was_sent_less_a_margin() {
    let mut tenure = tenured(1);
    assert_eq!(tenure.until(1_000), 5_500);
    assert_eq!(tenure.deadline(1_000), Some(1_500));
    assert_eq!(tenure.step(1_500, Input::Tick), [renew(7, Way::Direct)]);
    // Answered late: what counts is when it was sent. Stale and foreign answers change nothing.
    tenure.step(2_300, renewed(7, 1_500));
    assert_eq!(tenure.until(2_300), 6_000);
    tenure.step(2_300, renewed(7, 1_200));
    tenure.step(2_300, renewed(8, 2_200));
    tenure.step(2_300, renewed(7, 9_999_999));
    assert_eq!(tenure.until(2_300), 6_000);
    assert_eq!(tenure.step(6_000, Input::Tick)[0], Effect::Stop);
    assert_eq!(tenure.until(6_000), 0);
    // Nothing brings it back; what is left of it falls away.
    assert_eq!(tenure.step(6_001, renewed(7, 5_999)), []);
    assert_eq!(tenure.step(6_001, Input::Ended { lease: 7 }), []);
    assert_eq!(tenure.step(6_100, Input::Stopped), [Effect::Begin]);
    assert!(!tenure.is_tenured(6_100));
}

#[test]
fn a_frozen_host_looks_at_the_clock_first() {
    let mut tenure = tenured(1);
    tenure.step(3_000, cut("b", 2_999));
    // Thawed: what it is told first must not prolong anything that is over, but a renewal that was
    // answered in time still holds.
    let mut other = tenure.clone();
    assert_eq!(tenure.step(60_000, cut("b", 59_990))[0], Effect::Stop);
    other.step(60_000, renewed(7, 59_000));
    assert!(other.is_tenured(60_000));
}

#[test]
fn peers_carry_a_host_through_an_outage_as_long_as_they_say_so() {
    let mut tenure = tenured(2);
    assert!(
        tenure
            .step(2_300, Input::Tick)
            .contains(&renew(7, Way::Relayed))
    );
    assert!(tenure.step(3_000, Input::Tick).contains(&Effect::Ask));
    tenure.step(5_300, cut("b", 5_200));
    tenure.step(5_300, cut("b", 5_250));
    assert_eq!(tenure.until(5_300), 5_500, "one is not two");
    tenure.step(5_310, cut("c", 5_100));
    assert_eq!(tenure.until(5_310), 5_100 + 1_666);
    tenure.step(5_320, cut("c", 2_000));
    assert_eq!(
        tenure.until(5_320),
        5_100 + 1_666,
        "an old answer takes nothing back"
    );
    tenure.step(6_000, cut("c", 5_990));
    assert!(tenure.is_staying(6_000));
    // The lease is gone meanwhile; the tenure is not.
    let effects = tenure.step(6_100, Input::Ended { lease: 7 });
    assert!(effects.contains(&Effect::Reclaim), "{effects:?}");
    tenure.step(6_150, Input::NotBegan);
    assert_eq!(tenure.step(6_350, Input::Tick)[0], Effect::Reclaim);
    let again = Input::Began {
        lease: 8,
        sent_at: 6_350,
        stay: 2,
    };
    tenure.step(6_400, again);
    assert_eq!(tenure.until(6_400), 6_350 + 4_500);
    // Nobody says anything more.
    assert_eq!(tenure.step(10_850, Input::Tick)[0], Effect::Stop);
}

#[test]
fn a_tenure_that_was_ended_for_good_stops_at_once() {
    let mut tenure = tenured(0);
    assert!(tenure.is_tenured(1_000_000), "alone it stays");
    tenure.step(100_000, Input::Ended { lease: 7 });
    assert_eq!(tenure.step(100_010, Input::Released)[0], Effect::Stop);
}

#[test]
fn a_lease_that_ends_before_its_time_carries_nothing() {
    let mut tenure = tenured(1);
    assert_eq!(
        tenure.step(1_200, Input::Ended { lease: 7 })[0],
        Effect::Stop
    );
}

#[test]
fn more_peers_are_asked_for_at_once_and_fewer_only_once_stored() {
    let mut tenure = tenured(1);
    assert_eq!(tenure.step(1_001, Input::Stay(3)), [Effect::Store(3)]);
    assert_eq!(tenure.stay(), 3);
    tenure.step(1_002, Input::NotStored);
    assert_eq!(tenure.step(1_003, Input::Stay(2)), [], "one is under way");
    assert_eq!(tenure.stay, 3, "three may be stored, for all that is known");
    tenure.step(1_004, Input::NotStored);
    tenure.step(1_005, Input::Stored(2));
    assert_eq!(tenure.stay, 2);
    assert_eq!(tenure.step(1_006, Input::Stay(1)), [Effect::Store(1)]);
    assert_eq!(tenure.stay, 2);
    tenure.step(1_007, Input::Stored(1));
    assert_eq!(tenure.stay, 1);
}

#[test]
fn an_agent_goes_on_with_the_tenure_of_the_one_before() {
    let mut tenure = Tenure::adopted(TTL, 10_000, 7, 12_000, 1);
    assert!(tenure.is_tenured(10_000));
    assert!(
        !tenure.standing(10_000).cut,
        "it has not looked for long enough"
    );
    assert!(
        tenure
            .step(10_000, Input::Tick)
            .contains(&renew(7, Way::Direct))
    );
    tenure.step(10_100, renewed(7, 10_000));
    assert_eq!(tenure.until(10_100), 14_500);
    let mut late = Tenure::adopted(TTL, 13_000, 7, 12_000, 1);
    assert_eq!(late.step(13_000, Input::Tick)[0], Effect::Stop);
}

#[test]
fn a_host_says_that_it_is_cut_off_only_while_it_owns_something() {
    let mut tenure = tenured(1);
    assert!(!tenure.standing(3_999).cut);
    assert!(tenure.standing(4_000).cut);
    tenure.step(4_000, renewed(7, 3_500));
    let standing = tenure.standing(4_100);
    assert!(standing.tenured && !standing.cut);
    assert_eq!(standing.contact_ages, [3_100, 100]);
    tenure.step(20_000, Input::Tick);
    assert!(!tenure.standing(30_000).cut);
}

fn any_input() -> impl Strategy<Value = Input> {
    let way = prop_oneof![Just(Way::Direct), Just(Way::Relayed)];
    prop_oneof![
        Just(Input::Tick),
        (1..4u64, 0..40_000u64, 0..3u32).prop_map(|(lease, sent_at, stay)| Input::Began {
            lease,
            sent_at,
            stay
        }),
        Just(Input::NotBegan),
        Just(Input::Released),
        (1..4u64, way.clone(), 0..40_000u64).prop_map(|(lease, way, sent_at)| Input::Renewed {
            lease,
            way,
            sent_at
        }),
        (1..4u64, way).prop_map(|(lease, way)| Input::NotRenewed { lease, way }),
        (1..4u64).prop_map(|lease| Input::Ended { lease }),
        ("[a-d]", 0..40_000u64).prop_map(|(peer, asked_at)| Input::Cut { peer, asked_at }),
        (0..4u32).prop_map(Input::Stay),
        (0..4u32).prop_map(Input::Stored),
        Just(Input::NotStored),
        Just(Input::Stopped),
    ]
}

proptest! {
    /// Whatever comes, in whatever order, from whenever: it never owns anything beyond what an answer
    /// of the store or enough statements carry, it says so when it ends, and it always has a next
    /// moment to wake at while it owns something.
    #[test]
    fn nothing_carries_that_was_not_given(
        inputs in proptest::collection::vec((0..900u64, any_input()), 1..120),
    ) {
        let mut tenure = Tenure::new(TTL, 0);
        let spans = tenure.spans();
        let mut now = 0;
        let mut sent: Vec<u64> = Vec::new();
        let mut asked: BTreeMap<String, u64> = BTreeMap::new();
        let mut owned = false;
        for (pause, input) in inputs {
            now += pause;
            match &input {
                Input::Began { sent_at, .. } | Input::Renewed { sent_at, .. } if *sent_at <= now => {
                    sent.push(*sent_at);
                }
                Input::Cut { peer, asked_at } if *asked_at <= now => {
                    let known = asked.entry(peer.clone()).or_default();
                    *known = (*known).max(*asked_at);
                }
                _ => {}
            }
            let effects = tenure.step(now, input);
            let until = tenure.until(now);
            let by_lease = sent.iter().max().map_or(0, |at| at + spans.ttl - spans.margin);
            let by_peers = match tenure.stay {
                0 => now + spans.ttl - spans.margin,
                n => {
                    let mut asked: Vec<u64> = asked.values().copied().collect();
                    asked.sort_unstable();
                    asked.iter().rev().nth(n as usize - 1).map_or(0, |at| at + spans.statement)
                }
            };
            prop_assert!(until <= by_lease.max(by_peers), "{until} {by_lease} {by_peers}");
            let owns = tenure.is_tenured(now);
            let stopped = effects.contains(&Effect::Stop);
            prop_assert!(!stopped || !owns);
            prop_assert!(!owned || owns || stopped, "it ended without a word");
            prop_assert!(effects.iter().filter(|effect| **effect == Effect::Stop).count() <= 1);
            if owns {
                let next = tenure.deadline(now);
                prop_assert!(next.is_some_and(|at| at > now && at <= until), "{next:?} at {now}");
                prop_assert!(tenure.stay >= tenure.stored, "it goes by less than is stored");
            }
            owned = owns;
        }
    }
}
