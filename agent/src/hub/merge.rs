//! Lines of many hosts in the order of their times; pure.
//!
//! Hosts are differently far away, and none says "nothing older will come". So what arrives is held for
//! a window and given out in the order of its times. What comes later than that is given out late,
//! never dropped, and the lines of one source never change places. When more is held than is allowed,
//! the oldest goes out early.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// What is held.
#[derive(Debug)]
pub struct Window<T> {
    length: Duration,
    max: usize,
    arrivals: u64,
    /// By time and arrival.
    held: BTreeMap<(i64, u64), T>,
    /// In the order of arrival: until when, and which.
    due: VecDeque<(Duration, (i64, u64))>,
    out: VecDeque<T>,
    /// The latest time of each source.
    latest: BTreeMap<String, i64>,
}

impl<T> Window<T> {
    /// Holds at most `max` for `length`.
    pub fn new(length: Duration, max: usize) -> Self {
        Self {
            length,
            max,
            arrivals: 0,
            held: BTreeMap::new(),
            due: VecDeque::new(),
            out: VecDeque::new(),
            latest: BTreeMap::new(),
        }
    }

    /// Takes in what `source` says of the time `at` (milliseconds since 1970), at `now` on a clock that
    /// never jumps. It is held for `extra` longer than the window.
    pub fn push(&mut self, now: Duration, extra: Duration, source: &str, at: i64, item: T) {
        let at = if let Some(latest) = self.latest.get_mut(source) {
            *latest = at.max(*latest);
            *latest
        } else {
            self.latest.insert(source.to_owned(), at);
            at
        };
        let key = (at, self.arrivals);
        self.arrivals += 1;
        self.held.insert(key, item);
        self.due.push_back((now + self.length + extra, key));
        while self.held.len() > self.max {
            if let Some((_, item)) = self.held.pop_first() {
                self.out.push_back(item);
            }
        }
    }

    /// The next one that need not be held any longer.
    pub fn pop(&mut self, now: Duration) -> Option<T> {
        while let Some((due, key)) = self.due.front().copied() {
            let gone = !self.held.contains_key(&key);
            if due > now && !gone {
                break;
            }
            // What is older has to go before it, however late it came.
            let later = self.held.split_off(&(key.0, key.1 + 1));
            let ready = std::mem::replace(&mut self.held, later);
            self.out.extend(ready.into_values());
            self.due.pop_front();
        }
        self.out.pop_front()
    }

    /// When [`Self::pop`] gives something; `None` = when something arrives.
    pub fn deadline(&self) -> Option<Duration> {
        if !self.out.is_empty() {
            return Some(Duration::ZERO);
        }
        self.due.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(100);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn drain(window: &mut Window<i64>, now: u64) -> Vec<i64> {
        std::iter::from_fn(|| window.pop(ms(now))).collect()
    }

    #[test]
    fn what_arrives_within_the_window_is_put_in_order() {
        let mut window = Window::new(WINDOW, 100);
        window.push(ms(0), ms(0), "a", 20, 20);
        window.push(ms(50), ms(0), "b", 10, 10);
        window.push(ms(60), ms(0), "a", 30, 30);
        assert!(drain(&mut window, 99).is_empty());
        assert_eq!(window.deadline(), Some(ms(100)));
        assert_eq!(drain(&mut window, 100), [10, 20]);
        assert_eq!(drain(&mut window, 160), [30]);
        // Too late for its place; given out all the same.
        window.push(ms(200), ms(0), "c", 5, 5);
        assert_eq!(drain(&mut window, 300), [5]);
        assert_eq!(window.deadline(), None);
    }

    #[test]
    fn no_more_is_held_than_is_allowed() {
        let mut window = Window::new(WINDOW, 2);
        for at in [3, 1, 2] {
            window.push(ms(0), ms(0), &at.to_string(), at, at);
        }
        assert_eq!(window.pop(ms(0)), Some(1), "the oldest goes early");
        assert_eq!(window.pop(ms(0)), None);
        assert_eq!(drain(&mut window, 100), [2, 3]);
    }

    proptest! {
        /// Everything comes out once; each source keeps its order; and what lies at least a window apart
        /// comes in the order of its times when hosts are never later than the window.
        #[test]
        fn nothing_is_lost_and_sources_keep_their_order(
            lines in prop::collection::vec((0..4usize, 0..80u64, 0..30u64), 1..120),
            max in 1..200usize,
        ) {
            let mut window = Window::new(WINDOW, max);
            let (mut now, mut out, mut sent) = (0, Vec::new(), Vec::new());
            let mut latest = [i64::MIN; 4];
            for (n, (source, late, pause)) in lines.into_iter().enumerate() {
                now += pause;
                let at = now as i64 - late as i64;
                // Its place is behind what its source said before.
                latest[source] = latest[source].max(at);
                let place = latest[source];
                sent.push((source, n));
                window.push(ms(now), ms(0), &source.to_string(), at, (source, n, place));
                while let Some(item) = window.pop(ms(now)) {
                    out.push(item);
                }
            }
            now += 1_000;
            while let Some(item) = window.pop(ms(now)) {
                out.push(item);
            }
            prop_assert_eq!(window.deadline(), None);
            for source in 0..4 {
                let of = |all: &[(usize, usize)]| -> Vec<usize> {
                    all.iter().filter(|(from, _)| *from == source).map(|(_, n)| *n).collect()
                };
                let shown: Vec<(usize, usize)> = out.iter().map(|(from, n, _)| (*from, *n)).collect();
                prop_assert_eq!(of(&shown), of(&sent));
            }
            if max >= 120 {
                for pair in out.windows(2) {
                    prop_assert!(pair[0].2 <= pair[1].2, "{:?} before {:?}", pair[0], pair[1]);
                }
            }
        }
    }
}
