//! Interactions that were already taken up, so that a replay does not answer them again.

use std::collections::{HashSet, VecDeque};

/// A bounded set; the oldest entry makes room.
#[derive(Debug)]
pub struct Seen {
    ids: HashSet<u64>,
    order: VecDeque<u64>,
    capacity: usize,
}

impl Seen {
    /// Remembers the latest `capacity` ids.
    pub fn new(capacity: usize) -> Self {
        Self {
            ids: HashSet::new(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// True when this id is new.
    pub fn insert(&mut self, id: u64) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn remembers_exactly_the_latest(ids in prop::collection::vec(0..40u64, 0..300), capacity in 1..20usize) {
            let mut seen = Seen::new(capacity);
            let mut model: Vec<u64> = Vec::new();
            for id in ids {
                let new = !model.contains(&id);
                prop_assert_eq!(seen.insert(id), new);
                if new {
                    model.push(id);
                    if model.len() > capacity { model.remove(0); }
                }
                prop_assert!(seen.ids.len() <= capacity);
            }
        }
    }
}
