//! RESUME: what is replayed, what is refused, what counts as lost.

use std::time::Duration;

use serde_json::json;
use simcord::Config;

use crate::client::{Gateway, Received, account, admin, config, events, look, start, until};

#[tokio::test]
async fn a_resume_replays_what_was_missed_and_nothing_else() {
    let sim = start(config()).await;
    let (gateway, session) = Gateway::session(&sim, [0, 1]).await;
    let seq = gateway.seq;
    gateway.close(4000).await;
    until(&sim, "the session waits", |account| {
        account["sessions_resumable"] == 1
    })
    .await;
    events(&sim, "MESSAGE_CREATE", 7).await;
    let mut again = Gateway::connect_to(&format!("{}/resume", sim.info().gateway)).await;
    again.resume(&session, seq).await;
    for _ in 0..7 {
        assert_eq!(again.receive().await.payload()["t"], "MESSAGE_CREATE");
    }
    assert_eq!(again.receive().await.payload()["t"], "RESUMED");
    again.prove().await;
    let account = account(&sim).await;
    assert_eq!(account["identifies"], 1, "a RESUME costs none");
    assert_eq!(
        (&account["resumes"], &account["events_replayed"]),
        (&json!(1), &json!(7))
    );
    assert_eq!(
        (&account["events_lost"], &account["events_unproven"]),
        (&json!(0), &json!(0))
    );
    let sessions = look(&sim, "/sessions").await;
    assert_eq!(sessions[0]["session"], session);
    assert_eq!(sessions[0]["seq_proven"], again.seq);
    assert_eq!(sessions[0]["replayed"], 7);
}

#[tokio::test]
async fn resuming_from_before_the_last_heartbeat_replays_again_and_is_counted() {
    let sim = start(config()).await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    events(&sim, "TYPING_START", 3).await;
    for _ in 0..3 {
        gateway.event("TYPING_START").await;
    }
    gateway.prove().await;
    let seq = gateway.seq;
    gateway.close(4001).await;
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, seq - 2).await;
    again.event("TYPING_START").await;
    again.event("TYPING_START").await;
    again.event("RESUMED").await;
    assert_eq!(account(&sim).await["events_replayed_again"], 2);
}

#[tokio::test]
async fn closing_with_1000_or_1001_voids_the_session() {
    let sim = start(config()).await;
    for code in [1000, 1001] {
        let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
        gateway.prove().await;
        let seq = gateway.seq;
        gateway.close(code).await;
        let mut again = Gateway::connect(&sim).await;
        again.resume(&session, seq).await;
        let refused = again.receive().await.payload();
        assert_eq!(
            (&refused["op"], &refused["d"]),
            (&json!(9), &json!(false)),
            "{code}"
        );
    }
    let account = account(&sim).await;
    assert_eq!(
        (&account["sessions_voided"], &account["resumes_refused"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(account["events_lost"], 0, "everything was proven before");
}

#[tokio::test]
async fn other_codes_no_code_and_no_close_at_all_leave_it_resumable() {
    let sim = start(config()).await;
    for way in ["4000", "4900", "3000", "none", "drop"] {
        let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
        let seq = gateway.seq;
        match way {
            "drop" => drop(gateway),
            "none" => {
                let close = tokio_websockets::Message::close(None, "");
                let _ = futures_util::SinkExt::send(&mut gateway.socket, close).await;
                while !matches!(gateway.receive().await, Received::Broken) {}
            }
            code => gateway.close(code.parse().expect("a code")).await,
        }
        let mut again = Gateway::connect(&sim).await;
        again.resume(&session, seq).await;
        again.event("RESUMED").await;
        again.close(1000).await;
    }
}

#[tokio::test]
async fn the_window_closes() {
    let sim = start(Config {
        resume_window: Duration::from_secs(2),
        ..config()
    })
    .await;
    let (gateway, session) = Gateway::session(&sim, [0, 1]).await;
    let seq = gateway.seq;
    // What is sent in silence waits for a RESUME, as what comes after the close does.
    admin(&sim, "/faults/silence", json!({ "all": true })).await;
    events(&sim, "TYPING_START", 2).await;
    gateway.close(4000).await;
    let account = until(&sim, "the session is void", |account| {
        account["sessions_voided"] == 1
    })
    .await;
    assert_eq!(account["events_lost_undelivered"], 2);
    assert_eq!(account["events_lost_unproven"], seq, "nothing was proven");
    assert_eq!(account["events_lost"], seq + 2);
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, seq).await;
    assert_eq!(again.receive().await.payload()["op"], 9);
    // On the same connection an IDENTIFY may follow.
    again.identify([0, 1]).await;
    again.ready().await;
}

#[tokio::test]
async fn a_number_that_was_never_sent_is_4007() {
    let sim = start(config()).await;
    let (gateway, session) = Gateway::session(&sim, [0, 1]).await;
    let seq = gateway.seq;
    gateway.close(4000).await;
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, seq + 1).await;
    assert_eq!(again.closed().await, 4007);
    assert_eq!(account(&sim).await["resumes_refused"], 1);
}

#[tokio::test]
async fn unknown_sessions_are_opcode_9() {
    let sim = start(config()).await;
    let mut gateway = Gateway::connect(&sim).await;
    gateway.resume("0123456789abcdef0123456789abcdef", 0).await;
    assert_eq!(gateway.receive().await.payload()["op"], 9);
}

#[tokio::test]
async fn events_pushed_out_of_the_buffer_are_lost_and_the_session_is_void() {
    let sim = start(Config {
        resume_events: 20,
        ..config()
    })
    .await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    gateway.prove().await;
    let seq = gateway.seq;
    gateway.close(4000).await;
    events(&sim, "TYPING_START", 25).await;
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, seq).await;
    assert_eq!(again.receive().await.payload()["op"], 9);
    let account = account(&sim).await;
    assert_eq!(account["events_evicted"], 5);
    assert_eq!(account["events_lost"], 25);
    assert_eq!(account["sessions_voided"], 1);
}

#[tokio::test]
async fn a_second_connection_takes_the_session_over_and_is_noticed() {
    let sim = start(config()).await;
    let (mut first, session) = Gateway::session(&sim, [0, 1]).await;
    let mut second = Gateway::connect(&sim).await;
    second.resume(&session, first.seq).await;
    second.event("RESUMED").await;
    assert_eq!(first.closed().await, 4000);
    events(&sim, "TYPING_START", 1).await;
    second.event("TYPING_START").await;
    let account = account(&sim).await;
    assert_eq!(
        (
            &account["resumes_while_connected"],
            &account["sessions_open"]
        ),
        (&json!(1), &json!(1))
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_session_but_nobody_else_does() {
    let sim = start(Config {
        resume_events: 200,
        ..config()
    })
    .await;
    let (mut slow, session) = Gateway::session(&sim, [0, 1]).await;
    let (mut other, _) = Gateway::session(&sim, [0, 1]).await;
    // Until sockets and buffers hold no more, and the session neither.
    let filler = "x".repeat(20_000);
    let data = json!({ "content": filler });
    let mut sent = 0;
    loop {
        admin(
            &sim,
            "/events",
            json!({ "type": "MESSAGE_CREATE", "data": data, "count": 100 }),
        )
        .await;
        sent += 100;
        for _ in 0..100 {
            other.event("MESSAGE_CREATE").await;
        }
        let sessions = look(&sim, "/sessions").await;
        let mut sessions = sessions.as_array().expect("sessions").iter();
        // If it is not there any more, it was noticed already.
        let behind = sessions
            .find(|one| one["session"] == session)
            .and_then(|one| one["seq"].as_u64()?.checked_sub(one["seq_sent"].as_u64()?));
        if behind.is_none_or(|behind| behind > 200) {
            break;
        }
        assert!(sent < 10_000, "{behind:?} of {sent} events are waiting");
    }
    // The slow one gets what was on its way, then the end.
    let mut received = 0;
    loop {
        match slow.receive().await {
            Received::Payload(_) => received += 1,
            Received::Closed(4000) => break,
            end => panic!("{end:?} after {received}"),
        }
    }
    assert!(received < sent, "{received}");
    let account = until(&sim, "it is void", |account| {
        account["sessions_voided"] == 1
    })
    .await;
    assert!(account["events_lost_undelivered"].as_u64() > Some(0));
    assert_eq!(account["sessions_open"], 1);
}

#[tokio::test]
async fn an_event_is_missed_only_when_no_session_of_its_guild_got_it() {
    let sim = start(Config {
        resume_window: Duration::from_millis(300),
        ..config()
    })
    .await;
    let (mut whole, _) = Gateway::session(&sim, [0, 1]).await;
    whole.prove().await;
    let (mut half, _) = Gateway::session(&sim, [0, 2]).await;
    let (mut other, _) = Gateway::session(&sim, [1, 2]).await;
    half.prove().await;
    other.prove().await;
    events(&sim, "MESSAGE_CREATE", 40).await;
    for _ in 0..40 {
        whole.event("MESSAGE_CREATE").await;
    }
    whole.prove().await;
    // Both halves end without a proof, but the whole one has everything.
    drop((half, other));
    let lost = until(&sim, "two sessions end", |account| {
        account["sessions_voided"] == 2
    })
    .await;
    assert_eq!(
        (&lost["events_lost"], &lost["missed"]),
        (&json!(40), &json!(0)),
        "{lost}"
    );
    // Now there is nobody else.
    events(&sim, "MESSAGE_CREATE", 7).await;
    drop(whole);
    let lost = until(&sim, "the last session ends", |account| {
        account["sessions_voided"] == 3
    })
    .await;
    assert_eq!(lost["missed"], 7, "{lost}");
    let of_shard = |shard: u32, count: u32, missed: u32| {
        json!({ "shard": shard, "count": count, "identifies": 1, "resumes": 0, "replayed": 0,
                "replayed_again": 0, "missed": missed })
    };
    assert_eq!(
        lost["shards"],
        json!([of_shard(0, 1, 7), of_shard(0, 2, 0), of_shard(1, 2, 0)])
    );
}
