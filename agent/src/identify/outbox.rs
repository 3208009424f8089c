//! What of a bot's records waits for the store. One transaction a bot is under way at a time; what
//! comes together meanwhile goes out as one. Pure: the task does what it is told.

use std::time::{Duration, Instant};

use tanako_fleet::identify::Record;

/// Notes wait so long for company.
const NOTES_WITHIN: Duration = Duration::from_secs(1);
/// Notes that may wait; losing the oldest does no harm.
const NOTES_MAX: usize = 4096;

/// What is to be asked of the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Send {
    /// All records of the bot.
    Read { seq: u64 },
    /// To write these; the ledger waits for `seqs`.
    Write {
        seqs: Vec<u64>,
        records: Vec<Record>,
    },
    /// To say at once that these are not written: the records must be read first.
    Fail { seqs: Vec<u64> },
}

/// The outbox of one bot.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// In order. Without a number: a note.
    waiting: Vec<(Option<u64>, Vec<Record>)>,
    oldest_note: Option<Instant>,
    read: Option<u64>,
    under_way: bool,
    /// Whether what the store holds is known, so that more may be written.
    known: bool,
    /// Log keys of the bot.
    pub(super) keys: usize,
}

impl Outbox {
    pub(super) fn persist(&mut self, seq: u64, records: Vec<Record>) {
        self.waiting.push((Some(seq), records));
    }

    pub(super) fn note(&mut self, record: Record, now: Instant) {
        self.oldest_note.get_or_insert(now);
        self.waiting.push((None, vec![record]));
        let notes = self.waiting.iter().filter(|(seq, _)| seq.is_none()).count();
        if notes > NOTES_MAX
            && let Some(oldest) = self.waiting.iter().position(|(seq, _)| seq.is_none())
        {
            self.waiting.remove(oldest);
        }
    }

    pub(super) fn read(&mut self, seq: u64) {
        self.read = Some(seq);
    }

    /// What to do now, if anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<Send> {
        if self.under_way {
            return None;
        }
        if let Some(seq) = self.read.take() {
            self.under_way = true;
            return Some(Send::Read { seq });
        }
        let permits = self.waiting.iter().any(|(seq, _)| seq.is_some());
        if !self.known {
            return permits.then(|| Send::Fail { seqs: self.fail() });
        }
        let due = self.notes_due().is_some_and(|due| now >= due);
        if !permits && !due {
            return None;
        }
        self.under_way = true;
        self.oldest_note = None;
        let (seqs, records): (Vec<_>, Vec<_>) = self.waiting.drain(..).unzip();
        Some(Send::Write {
            seqs: seqs.into_iter().flatten().collect(),
            records: records.into_iter().flatten().collect(),
        })
    }

    /// When to ask again, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.notes_due().filter(|_| self.known && !self.under_way)
    }

    fn notes_due(&self) -> Option<Instant> {
        self.oldest_note.map(|oldest| oldest + NOTES_WITHIN)
    }

    /// The records were read, or not.
    pub(super) fn was_read(&mut self, well: bool) {
        self.under_way = false;
        self.known = well;
    }

    /// They were written: so many keys there are now.
    pub(super) fn was_written(&mut self, keys: usize) {
        self.under_way = false;
        self.keys = keys;
    }

    /// They were not, or nobody knows. Returns what else the ledger waits for in vain.
    pub(super) fn was_not_written(&mut self) -> Vec<u64> {
        self.under_way = false;
        self.known = false;
        self.fail()
    }

    /// Gives up the permits that wait; their records must not be written later.
    fn fail(&mut self) -> Vec<u64> {
        self.waiting
            .extract_if(.., |(seq, _)| seq.is_some())
            .filter_map(|(seq, _)| seq)
            .collect()
    }

    /// The last word before the agent stops: the notes. Permits are not given out any more.
    pub(super) fn last(&mut self) -> Option<Vec<Record>> {
        self.fail();
        if self.under_way || !self.known || self.waiting.is_empty() {
            return None;
        }
        let notes = self.waiting.drain(..).flat_map(|(_, records)| records);
        Some(notes.collect())
    }
}
