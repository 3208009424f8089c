//! What happened, as a hash always and as lines when asked for. A failed seed runs again with lines.

use std::collections::VecDeque;

/// Lines kept.
const LINES_MAX: usize = 60;

/// See the module's documentation.
pub struct Trace {
    hash: u64,
    lines: Option<VecDeque<String>>,
    /// Every line goes to standard error at once.
    loud: bool,
}

impl Trace {
    /// `verbose`: keep the latest lines; `loud`: print all of them.
    pub fn new(verbose: bool, loud: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: verbose.then(VecDeque::new),
            loud,
        }
    }

    /// Notes that something happened.
    pub fn note(&mut self, now: u64, place: u32, numbers: &[u64], line: impl FnOnce() -> String) {
        self.mix(now);
        self.mix(u64::from(place));
        for number in numbers {
            self.mix(*number);
        }
        if let Some(lines) = &mut self.lines {
            let line = format!("{:>10.3} s  {}", now as f64 / 1000.0, line());
            if self.loud {
                eprintln!("{line}");
            }
            lines.push_back(line);
            if lines.len() > LINES_MAX {
                lines.pop_front();
            }
        }
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The latest lines.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().flatten().cloned().collect()
    }
}

/// Notes a line and the numbers that tell runs apart.
macro_rules! trace {
    ($sim:expr, [$($number:expr),* $(,)?], $($line:tt)*) => {{
        #[allow(clippy::cast_lossless, reason = "numbers of every type come here")]
        let numbers = [$($number as u64),*];
        $sim.note(line!(), &numbers, || format!($($line)*))
    }};
}
pub(super) use trace;
