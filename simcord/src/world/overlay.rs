//! What differs from the generated world: kept per guild, only where something changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Messages kept over all channels; the oldest fall out.
const MESSAGES_MAX: usize = 20_000;

/// Changes within one guild.
#[derive(Debug, Default, Clone)]
pub(crate) struct Overlay {
    /// Members who joined since the start.
    pub joined: u32,
    /// Members who left since the start, oldest members first.
    pub left: u32,
    /// Members that were changed or kicked.
    pub members: HashMap<u64, MemberPatch>,
    /// Bans by user.
    pub bans: BTreeMap<u64, Ban>,
    /// Roles made or changed since, whole objects by id.
    pub roles: BTreeMap<u64, Value>,
    /// Roles deleted since.
    pub roles_deleted: Vec<u64>,
    /// Channels made or changed since, whole objects by id.
    pub channels: BTreeMap<u64, Value>,
    /// Channels deleted since.
    pub channels_deleted: Vec<u64>,
}

/// What was changed about a member.
#[derive(Debug, Default, Clone)]
pub(crate) struct MemberPatch {
    /// Kicked or banned: no member any more.
    pub gone: bool,
    pub nick: Option<String>,
    /// The roles, when they were set.
    pub roles: Option<Vec<u64>>,
    /// End of the timeout, as the client wrote it.
    pub timeout_until: Option<String>,
}

/// One ban.
#[derive(Debug, Clone)]
pub(crate) struct Ban {
    pub reason: Option<String>,
}

/// The newest messages that were made through REST.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    by_id: HashMap<u64, Value>,
    order: VecDeque<u64>,
    /// Messages of the bot whose nonce was to be unique.
    by_nonce: HashMap<String, u64>,
    nonces: VecDeque<(Instant, String)>,
}

/// How long a nonce is remembered; Discord says "the past few minutes".
const NONCE_LIVES: Duration = Duration::from_secs(300);
/// Nonces remembered; with more than that in five minutes the oldest are forgotten early.
const NONCES_MAX: usize = 20_000;

impl Messages {
    /// The message that was sent with this nonce within the past few minutes.
    pub(crate) fn of_nonce(&mut self, now: Instant, nonce: &str) -> Option<&Value> {
        while self
            .nonces
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > NONCE_LIVES)
            || self.nonces.len() > NONCES_MAX
        {
            if let Some((_, old)) = self.nonces.pop_front() {
                self.by_nonce.remove(&old);
            }
        }
        self.by_id.get(self.by_nonce.get(nonce)?)
    }

    /// Remembers the nonce of a message.
    pub(crate) fn note_nonce(&mut self, now: Instant, nonce: String, id: u64) {
        if self.by_nonce.insert(nonce.clone(), id).is_none() {
            self.nonces.push_back((now, nonce));
        }
    }

    pub(crate) fn insert(&mut self, id: u64, message: Value) {
        if self.by_id.insert(id, message).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > MESSAGES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Value> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Value> {
        self.by_id.get_mut(&id)
    }

    /// Removes a message. Its place in the order stays until it is the oldest.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Value> {
        self.by_id.remove(&id)
    }

    /// The newest messages of a channel, newest first.
    pub(crate) fn of_channel(
        &self,
        channel: u64,
        before: u64,
        after: u64,
        limit: usize,
    ) -> Vec<&Value> {
        let channel = channel.to_string();
        self.order
            .iter()
            .rev()
            .filter(|id| **id < before && **id > after)
            .filter_map(|id| self.by_id.get(id))
            .filter(|message| message["channel_id"] == channel)
            .take(limit)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_bounded() {
        let mut messages = Messages::default();
        for id in 0..MESSAGES_MAX as u64 + 10 {
            messages.insert(id, json!({ "channel_id": "5" }));
        }
        assert!(messages.get(9).is_none());
        assert!(messages.get(10).is_some());
        assert_eq!(messages.by_id.len(), MESSAGES_MAX);
        assert_eq!(messages.of_channel(5, u64::MAX, 0, 3).len(), 3);
        assert!(messages.of_channel(6, u64::MAX, 0, 3).is_empty());
    }

    #[test]
    fn nonces_are_remembered_for_minutes() {
        let (mut messages, now) = (Messages::default(), Instant::now());
        messages.insert(1, json!({}));
        messages.note_nonce(now, "a".to_owned(), 1);
        assert!(messages.of_nonce(now + NONCE_LIVES, "a").is_some());
        assert!(messages.of_nonce(now, "b").is_none());
        let later = now + NONCE_LIVES + Duration::from_millis(1);
        assert!(messages.of_nonce(later, "a").is_none());
        assert!(messages.by_nonce.is_empty() && messages.nonces.is_empty());
    }
}
