//! The session vault against kill -9, damage and latecomers.

mod spec_kit;

use std::{collections::HashMap, path::Path, time::Duration};

use tanako_agent::{
    history::{self, History},
    vault::{DepositError, Vault},
};
use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::worker::v1::{GuildCounts, SessionDeposit, SessionDiscard};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(30);
const SHARDS: u32 = 40;

fn name(text: &str) -> ProcessName {
    text.parse().expect("a good name")
}

fn spec(process: &str) -> ProcessSpec {
    spec_kit::worker(process, (0..SHARDS).collect(), SHARDS, SOON)
}

fn deposit(shard_id: u32, seq: u64, ack: u64) -> SessionDeposit {
    SessionDeposit {
        shard_id,
        shard_count: SHARDS,
        session_id: format!("secret-session-{shard_id}"),
        seq,
        resume_url: "wss://gateway.example".to_owned(),
        token_sha256: vec![7; 32].into(),
        guilds: Some(GuildCounts {
            ids: vec![seq / 10],
            members: vec![1],
        }),
        handled_interactions: vec![seq; (seq % 700) as usize],
        ack,
        ..SessionDeposit::default()
    }
}

struct Life {
    cancel: CancellationToken,
    tracker: TaskTracker,
    vault: Vault,
    history: History,
}

impl Life {
    async fn begin(vault_dir: &Path, history_dir: &Path) -> Self {
        let cancel = CancellationToken::new();
        let tracker = TaskTracker::new();
        let config = history::Config {
            directory: history_dir.to_owned(),
            host: "here".to_owned(),
        };
        let history = History::start(config, cancel.clone(), &tracker);
        let vault = Vault::start(
            vault_dir.to_owned(),
            history.clone(),
            cancel.clone(),
            &tracker,
        )
        .await
        .expect("the vault opens");
        Self {
            cancel,
            tracker,
            vault,
            history,
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait())
            .await
            .expect("all tasks end");
    }

    fn seqs(&self) -> HashMap<u32, u64> {
        self.vault
            .sessions_for(&spec("tanako/0"), None)
            .into_iter()
            .map(|deposit| (deposit.shard_id, deposit.seq))
            .collect()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("makes");
    for entry in std::fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        // A draft may be renamed away meanwhile.
        let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_files_at_any_moment_is_enough_to_resume() {
    let dir = tempfile::tempdir().expect("a directory");
    let vault_dir = dir.path().join("vault");
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    let process = name("tanako/0");
    life.vault.attach(&spec("tanako/0"), 1);
    let mut last_acked = 0;
    for round in 1..=20_u64 {
        for shard in 0..SHARDS {
            let ack = if shard == 0 { round } else { 0 };
            life.vault
                .deposit(&process, 1, deposit(shard, round * 50, ack))
                .await
                .expect("kept");
            if ack != 0 {
                last_acked = round * 50;
            }
        }
        // What a kill -9 leaves is what the files hold; reading them while they are written shows
        // torn ones too.
        let left = dir.path().join(format!("left-{round}"));
        copy(&vault_dir, &left);
        let next = Life::begin(&left, &dir.path().join(format!("history-{round}"))).await;
        let found = next.seqs();
        assert!(found[&0] >= last_acked, "an acknowledged deposit was lost");
        for (shard, seq) in &found {
            assert!(
                *seq <= round * 50 && seq % 50 == 0,
                "shard {shard} has seq {seq}"
            );
        }
        next.end().await;
    }
    life.end().await;

    // A clean end writes everything.
    let next = Life::begin(&vault_dir, &dir.path().join("history-end")).await;
    let found = next.seqs();
    assert_eq!(found.len(), SHARDS as usize);
    assert!(found.values().all(|seq| *seq == 1000), "{found:?}");
    let sessions = next.vault.sessions_for(&spec("tanako/0"), Some([7; 32]));
    assert!(
        sessions
            .iter()
            .all(|s| s.guilds.as_ref().is_some_and(|g| g.ids == [100]))
    );
    assert!(
        next.vault
            .sessions_for(&spec("tanako/0"), Some([8; 32]))
            .is_empty()
    );
    assert!(next.vault.sessions_for(&spec("other/0"), None).is_empty());
    next.end().await;
}

#[tokio::test]
async fn damage_costs_the_damaged_session_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let vault_dir = dir.path().join("vault");
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    let process = name("tanako/0");
    for shard in 0..SHARDS {
        life.vault
            .deposit(&process, 1, deposit(shard, 5, 0))
            .await
            .expect("kept");
    }
    life.end().await;

    let file = vault_dir.join("tanako.sessions");
    let mut bytes = std::fs::read(&file).expect("reads");
    assert!(bytes.len() > 16 << 10);
    for byte in &mut bytes[..16 << 10] {
        *byte ^= 0x55;
    }
    std::fs::write(&file, &bytes).expect("writes");
    std::fs::write(vault_dir.join("foreign.sessions"), b"not a vault at all").expect("writes");

    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    assert_eq!(life.seqs().len(), SHARDS as usize - 1);
    let events = life.history.events(10, 0, &[]).await;
    let damaged = events
        .iter()
        .filter(|e| e.kind == "session-damaged")
        .count();
    assert_eq!(damaged, 2, "{events:?}");
    // The lost one finds a slot again.
    for shard in 0..SHARDS {
        life.vault
            .deposit(&process, 1, deposit(shard, 6, 1))
            .await
            .expect("kept");
    }
    life.end().await;
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    assert_eq!(life.seqs().len(), SHARDS as usize);
    life.end().await;
}

#[tokio::test]
async fn latecomers_and_nonsense_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let life = Life::begin(&dir.path().join("vault"), &dir.path().join("history")).await;
    let (old, new) = (name("tanako/0"), name("tanako/1"));
    let vault = &life.vault;
    vault.attach(&spec("tanako/0"), 5);
    assert_eq!(
        vault.deposit(&old, 4, deposit(0, 1, 0)).await,
        Err(DepositError::Superseded)
    );
    vault
        .deposit(&old, 5, deposit(0, 1, 0))
        .await
        .expect("kept");
    // A late Hello of an older attempt takes nothing away.
    vault.attach(&spec("tanako/0"), 4);
    vault
        .deposit(&old, 5, deposit(0, 2, 0))
        .await
        .expect("kept");
    // The shards moved to another process.
    vault.attach(&spec("tanako/1"), 1);
    assert_eq!(
        vault.deposit(&old, 5, deposit(0, 3, 0)).await,
        Err(DepositError::Superseded)
    );
    let discard = |session: &str| SessionDiscard {
        shard_id: 0,
        shard_count: SHARDS,
        session_id: session.to_owned(),
    };
    vault.discard(&old, 5, &discard("secret-session-0"));
    vault.discard(&new, 1, &discard("another"));
    assert_eq!(life.seqs().get(&0), Some(&2));
    vault.discard(&new, 1, &discard("secret-session-0"));
    assert!(life.seqs().is_empty());

    let nonsense = [
        SessionDeposit {
            shard_id: SHARDS,
            ..deposit(0, 1, 0)
        },
        SessionDeposit {
            session_id: "x".repeat(10_000),
            ..deposit(0, 1, 0)
        },
        SessionDeposit {
            guilds: Some(GuildCounts {
                ids: vec![1, 2],
                members: vec![],
            }),
            ..deposit(0, 1, 0)
        },
    ];
    for bad in nonsense {
        let refused = vault.deposit(&new, 1, bad).await;
        assert!(
            matches!(refused, Err(DepositError::Malformed(_))),
            "{refused:?}"
        );
    }
    assert_eq!(
        vault.deposit(&new, 1, deposit(0, 9, 0)).await,
        Err(DepositError::Ended),
        "a session that was given up came back"
    );
    let another = SessionDeposit {
        session_id: "secret-session-another".to_owned(),
        ..deposit(0, 9, 0)
    };
    vault.deposit(&new, 1, another).await.expect("kept");
    assert!(!format!("{vault:?}").contains("secret"));
    life.end().await;

    // Discarded sessions and moved shards stay what they are in the next life.
    let life = Life::begin(&dir.path().join("vault"), &dir.path().join("history")).await;
    assert_eq!(life.seqs().get(&0), Some(&9));
    assert_eq!(
        life.vault.deposit(&old, 5, deposit(0, 10, 0)).await,
        Err(DepositError::Superseded)
    );
    life.end().await;
}

#[tokio::test]
async fn a_shard_is_handed_over_with_its_session_and_not_taken_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let vault_dir = dir.path().join("vault");
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    let (old, new) = (spec("tanako/0"), spec("tanako/g2-0"));
    life.vault.attach(&old, 3);
    for shard in 0..SHARDS {
        let last = SessionDeposit {
            last_event_at: 1_000 + i64::from(shard),
            stopped_at: 2_000,
            ..deposit(shard, 5, 1)
        };
        life.vault.deposit(&old.name, 3, last).await.expect("kept");
    }
    let moved = life.vault.handover(&old, &new, 1);
    assert_eq!(moved, (0..SHARDS).collect::<Vec<_>>());
    assert_eq!(life.vault.handover(&old, &new, 1), moved, "asked twice");
    let sessions = life.vault.sessions_for(&new, Some([7; 32]));
    assert_eq!(sessions.len(), SHARDS as usize);
    assert!(sessions.iter().all(|s| s.seq == 5 && s.guilds.is_some()));
    assert_eq!(
        life.vault.deposit(&old.name, 3, deposit(1, 6, 0)).await,
        Err(DepositError::Superseded)
    );
    life.vault
        .deposit(&new.name, 1, deposit(1, 7, 0))
        .await
        .expect("kept");
    let gap = life.vault.last_deposit_before(1, SHARDS, &new.name, 1);
    let gap = gap.expect("the old one's last deposit");
    assert_eq!((gap.by.process, gap.by.attempt), (old.name.clone(), 3));
    assert_eq!((gap.last_event_at, gap.stopped_at), (1_001, 2_000));
    let last = life.vault.last_deposit("tanako", 1, SHARDS);
    assert_eq!(last.map(|last| last.seq), Some(7));
    life.end().await;

    // The agent and the old process come back, in whatever order.
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    life.vault.attach(&old, 4);
    assert_eq!(
        life.vault.deposit(&old.name, 4, deposit(1, 8, 0)).await,
        Err(DepositError::Superseded)
    );
    // Undone: back it goes.
    assert_eq!(life.vault.handover(&new, &old, 4).len(), SHARDS as usize);
    life.vault
        .deposit(&old.name, 4, deposit(1, 9, 1))
        .await
        .expect("kept");
    // A set that is no more leaves nothing behind.
    life.vault.forget("tanako", SHARDS);
    life.end().await;
    let life = Life::begin(&vault_dir, &dir.path().join("history")).await;
    assert!(life.vault.sessions_for(&old, None).is_empty());
    life.end().await;
}
