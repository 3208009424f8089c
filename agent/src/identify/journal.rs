//! The ledger's records in the store.
//!
//! ```text
//! identify/BOT/head              the number of the newest log key
//! identify/BOT/log/0000…001f     records of 64 bytes each
//! ```
//!
//! Each transaction changes the head and is refused when the head is not what it builds on. So a
//! write that was given up and arrives late changes nothing once another has been made, and a leader
//! that led before learns that somebody led in between. That nobody but the leader writes is the
//! store's affair: it is given to us fenced.
//!
//! Keys are few: when there are [`KEYS_MAX`], the next transaction replaces them all by what must
//! still be known.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tanako_fleet::identify::{PERSIST_MAX_MS, RECORD_BYTES, RECORDS_MAX, Record};
use tanako_store::{Outcome, Revision, Store, StoreError, Txn};

/// Every key of ours.
const PREFIX: &str = "identify/";
/// Log keys of a bot before they are replaced.
const KEYS_MAX: usize = 64;
/// Records of one log key, where all are replaced.
const RECORDS_A_KEY: usize = 1024;
/// A permit whose record takes longer is thrown away, so that nothing is waited for any longer.
const COMMIT_WITHIN: Duration = Duration::from_millis(PERSIST_MAX_MS as u64);
/// Reading a bot's records takes no longer, or is tried again.
const READ_WITHIN: Duration = Duration::from_secs(20);

// What replaces all keys has to fit into one transaction, and the head too.
const _: () = assert!(RECORDS_MAX * RECORD_BYTES <= tanako_store::value_bytes_max());
const _: () = assert!(KEYS_MAX + 2 * RECORDS_MAX.div_ceil(RECORDS_A_KEY) < tanako_store::ops_max());

/// Why records were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store refused, or nobody knows.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The store took too long; nobody knows.
    #[error("the store did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// Somebody else has written, or this agent leads no more.
    #[error("another leader has written, or has been elected")]
    Overtaken,
    /// The records have to be read first.
    #[error("its records have to be read first")]
    Unread,
}

impl JournalError {
    /// Whether nothing is wrong but that another agent leads, or led in between.
    pub(super) fn is_a_matter_of_office(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Fenced { .. }),
            Self::Late(_) => false,
            Self::Overtaken | Self::Unread => true,
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Store(error) => error.hint(),
            Self::Late(_) => "check the store's health and disk; the agent tries again",
            Self::Overtaken | Self::Unread => "nothing: the agent reads again by itself",
        }
    }
}

/// What the store has of a bot, as far as we know.
#[derive(Debug, Default)]
struct Known {
    /// When the head was last changed; 0 = it is not there.
    head: Revision,
    newest: u64,
    keys: BTreeSet<u64>,
}

/// The records of all bots.
pub(super) struct Journal {
    store: Arc<dyn Store>,
    known: HashMap<String, Known>,
}

impl Journal {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            known: HashMap::new(),
        }
    }

    /// The bots that have records.
    pub(super) async fn bots(&self) -> Result<BTreeSet<String>, JournalError> {
        let listing = within(READ_WITHIN, self.store.list(PREFIX)).await?;
        let bots = listing.items.iter().filter_map(|item| {
            let (bot, _) = item.key.strip_prefix(PREFIX)?.split_once('/')?;
            Some(bot.to_owned())
        });
        Ok(bots.collect())
    }

    /// The bot's records in the order in which they were written, `None` for each damaged one.
    pub(super) async fn read(&mut self, bot: &str) -> Result<Vec<Option<Record>>, JournalError> {
        self.known.remove(bot);
        let prefix = format!("{PREFIX}{bot}/");
        let listing = within(READ_WITHIN, self.store.list(&prefix)).await?;
        let mut known = Known::default();
        let mut records = Vec::new();
        for item in &listing.items {
            let name = item.key.strip_prefix(&prefix).unwrap_or_default();
            if name == "head" {
                known.head = item.mod_revision;
                let text = std::str::from_utf8(&item.value).unwrap_or_default();
                known.newest = known.newest.max(text.parse().unwrap_or(0));
            } else if let Some(number) = name.strip_prefix("log/").and_then(number_of) {
                known.newest = known.newest.max(number);
                known.keys.insert(number);
                records.extend(Record::decode_all(&item.value));
            }
        }
        self.known.insert(bot.to_owned(), known);
        Ok(records)
    }

    /// Whether so many keys have come together that the next write should replace them.
    pub(super) fn is_grown(keys: usize) -> bool {
        keys >= KEYS_MAX
    }

    /// Writes the records, in place of all others where `whole`. Returns how many log keys there are
    /// now. After an error the bot has to be read again.
    pub(super) async fn write(
        &mut self,
        bot: &str,
        records: &[Record],
        whole: bool,
    ) -> Result<usize, JournalError> {
        // Only what was committed is known again.
        let Some(mut known) = self.known.remove(bot) else {
            return Err(JournalError::Unread);
        };
        let head = format!("{PREFIX}{bot}/head");
        let mut txn = Txn::new().if_unchanged(&head, known.head);
        if whole {
            for number in std::mem::take(&mut known.keys) {
                txn = txn.delete(key_of(bot, number));
            }
        }
        let a_key = if whole { RECORDS_A_KEY } else { usize::MAX };
        for chunk in records.chunks(a_key) {
            known.newest += 1;
            known.keys.insert(known.newest);
            let value: Vec<u8> = chunk.iter().flat_map(Record::encode).collect();
            txn = txn.put(key_of(bot, known.newest), value);
        }
        txn = txn.put(&head, known.newest.to_string());
        match within(COMMIT_WITHIN, self.store.commit(txn)).await? {
            Outcome::Committed { revision } => known.head = revision,
            Outcome::Conflict { .. } => return Err(JournalError::Overtaken),
        }
        let keys = known.keys.len();
        self.known.insert(bot.to_owned(), known);
        Ok(keys)
    }
}

fn key_of(bot: &str, number: u64) -> String {
    format!("{PREFIX}{bot}/log/{number:016x}")
}

fn number_of(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, JournalError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(JournalError::Late(limit)),
    }
}
