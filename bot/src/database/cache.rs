//! A bounded cache whose entries expire.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Holds at most `capacity` values, each for at most `ttl`. When full, what was used longest ago among a
/// few sampled entries makes room: close to LRU, without a list through the entries.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    keys: Vec<K>,
    capacity: usize,
    ttl: Duration,
    uses: u64,
    hits: u64,
    misses: u64,
    generation: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    until: Instant,
    used: u64,
    at: usize,
}

/// Entries looked at for the one to evict.
const SAMPLE: usize = 8;

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            keys: Vec::new(),
            capacity: capacity.max(1),
            ttl,
            uses: 0,
            hits: 0,
            misses: 0,
            generation: 0,
        }
    }

    /// A value that has not expired.
    pub fn get(&mut self, key: K, now: Instant) -> Option<V> {
        self.uses += 1;
        match self.entries.get_mut(&key) {
            Some(entry) if now < entry.until => {
                entry.used = self.uses;
                self.hits += 1;
                Some(entry.value.clone())
            }
            Some(_) => {
                self.remove(key);
                self.misses += 1;
                None
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// Take this before reading the source, and give it to [`Self::fill`].
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Stores what was read from the source, unless anything was invalidated since: the value read may be
    /// older than the write that invalidated.
    pub fn fill(
        &mut self,
        generation: u64,
        key: K,
        value: V,
        now: Instant,
        random: impl FnMut(usize) -> usize,
    ) {
        if generation == self.generation {
            self.insert(key, value, now, random);
        }
    }

    fn insert(&mut self, key: K, value: V, now: Instant, mut random: impl FnMut(usize) -> usize) {
        self.uses += 1;
        let (until, used) = (now + self.ttl, self.uses);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.value = value;
            entry.until = until;
            entry.used = used;
            return;
        }
        if self.keys.len() >= self.capacity {
            let victim = (0..SAMPLE)
                .map(|_| self.keys[random(self.keys.len()) % self.keys.len()])
                .min_by_key(|key| self.entries.get(key).map_or(0, |entry| entry.used));
            if let Some(victim) = victim {
                self.remove(victim);
            }
        }
        self.entries.insert(
            key,
            Entry {
                value,
                until,
                used,
                at: self.keys.len(),
            },
        );
        self.keys.push(key);
    }

    /// Forgets a value, since it was written or is not needed any more.
    pub fn invalidate(&mut self, key: K) {
        self.generation += 1;
        self.remove(key);
    }

    fn remove(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.keys.swap_remove(entry.at);
            if let Some(moved) = self.keys.get(entry.at)
                && let Some(moved) = self.entries.get_mut(moved)
            {
                moved.at = entry.at;
            }
        }
    }

    /// Hits among all reads, 0 to 1; 0 before the first.
    pub fn hit_ratio(&self) -> f64 {
        let reads = self.hits + self.misses;
        if reads == 0 {
            0.0
        } else {
            self.hits as f64 / reads as f64
        }
    }

    /// Values held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Input {
        Get(u8),
        Fill(u8, u32),
        StaleFill(u8, u32),
        Invalidate(u8),
        Wait(u64),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            (0..30u8).prop_map(Input::Get),
            (0..30u8, any::<u32>()).prop_map(|(key, value)| Input::Fill(key, value)),
            (0..30u8, any::<u32>()).prop_map(|(key, value)| Input::StaleFill(key, value)),
            (0..30u8).prop_map(Input::Invalidate),
            (0..50u64).prop_map(Input::Wait),
        ]
    }

    proptest! {
        /// Never more than it may hold, never an expired or invalidated value, never a value from before
        /// an invalidation.
        #[test]
        fn against_a_model(inputs in prop::collection::vec(input(), 0..200), capacity in 1..12usize) {
            let ttl = Duration::from_secs(60);
            let mut now = Instant::now();
            let mut cache = Cache::new(capacity, ttl);
            let mut model: HashMap<u8, (u32, Instant)> = HashMap::new();
            let mut seed = 1usize;
            for input in inputs {
                let mut random = |n: usize| { seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1); (seed >> 33) % n };
                match input {
                    Input::Get(key) => if let Some(value) = cache.get(key, now) {
                        let (expected, until) = model[&key];
                        prop_assert_eq!(value, expected);
                        prop_assert!(now < until);
                    },
                    Input::Fill(key, value) => {
                        cache.fill(cache.generation(), key, value, now, &mut random);
                        model.insert(key, (value, now + ttl));
                        prop_assert_eq!(cache.get(key, now), Some(value));
                    }
                    Input::StaleFill(key, value) => {
                        let generation = cache.generation();
                        cache.invalidate(key);
                        model.remove(&key);
                        cache.fill(generation, key, value, now, &mut random);
                        prop_assert_eq!(cache.get(key, now), None);
                    }
                    Input::Invalidate(key) => { cache.invalidate(key); model.remove(&key); prop_assert_eq!(cache.get(key, now), None); }
                    Input::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                prop_assert!(cache.len() <= capacity);
                prop_assert_eq!(cache.entries.len(), cache.keys.len());
                for (at, key) in cache.keys.iter().enumerate() { prop_assert_eq!(cache.entries[key].at, at); }
            }
        }
    }

    #[test]
    fn what_is_used_stays() {
        let now = Instant::now();
        let mut cache = Cache::new(100, Duration::from_secs(60));
        let mut rng = fastrand::Rng::with_seed(7);
        for key in 0..1000u32 {
            cache.fill(0, key, key, now, |n| rng.usize(..n));
            assert_eq!(cache.get(0, now), Some(0), "after {key}");
        }
        assert!(cache.hit_ratio() > 0.99);
    }
}
