//! Whose orders count on a host: pure.
//!
//! A message may be held up for any time, by a network or by a host that stands still, and arrive when the
//! world has moved on. Three things say that it has:
//!
//! - **the epoch**: the fencing revision of a coordinator's office. Once an order of a newer one has been
//!   carried out, none of an older one is;
//! - **the tenure** that the order is meant for, as the coordinator knew it. What belonged to a host in an
//!   earlier tenure may be another host's by now, under the same coordinator, and nothing newer need have
//!   been ordered about it here;
//! - **the number**: within an epoch an order about a process counts only if none with a higher number has
//!   been carried out: one that was held up does not undo what came after it.

use std::collections::HashMap;

use crate::process::ProcessName;

/// Processes whose last order is remembered; far more than a host holds.
const PROCESSES_MAX: usize = 100_000;

/// An order, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given<'a> {
    /// Of the coordinator that gave it.
    pub epoch: u64,
    /// Name of the tenure that it is meant for; empty = whichever.
    pub tenure: &'a str,
    /// The process that it is about, and its number.
    pub about: Option<(&'a ProcessName, u64)>,
}

/// Why an order counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Late {
    /// A coordinator of this newer epoch has given orders here.
    Epoch(u64),
    /// The host has begun another tenure.
    Tenure,
    /// A newer order about this process was carried out.
    Overtaken(ProcessName),
}

/// What a host remembers of the orders it has carried out.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    epoch: u64,
    /// Number of the last order about each process, in this epoch.
    last: HashMap<ProcessName, u64>,
}

impl Orders {
    /// One that knows this epoch to be the highest so far, and no more.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            last: HashMap::new(),
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether an order about this process was carried out in this epoch that is newer than `number`.
    pub fn is_newer(&self, process: &ProcessName, number: u64) -> bool {
        self.last.get(process).is_some_and(|last| *last > number)
    }

    /// Whether an order counts on a host in the tenure of that name; empty = it has none.
    pub fn check(&self, tenure: &str, given: &Given<'_>) -> Result<(), Late> {
        if given.epoch < self.epoch {
            return Err(Late::Epoch(self.epoch));
        }
        if !tenure.is_empty() && !given.tenure.is_empty() && tenure != given.tenure {
            return Err(Late::Tenure);
        }
        match given.about {
            Some((process, number))
                if given.epoch == self.epoch && self.is_newer(process, number) =>
            {
                Err(Late::Overtaken(process.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Remembers an order that counts. A new epoch must have been written down before.
    pub fn passed(&mut self, given: &Given<'_>) {
        if given.epoch > self.epoch {
            self.epoch = given.epoch;
            self.last.clear();
        }
        if let Some((process, number)) = given.about {
            if self.last.len() >= PROCESSES_MAX {
                self.last.clear();
            }
            self.last.insert(process.clone(), number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ProcessName {
        text.parse().expect("a good name")
    }

    /// Takes it when it counts.
    fn pass(orders: &mut Orders, own: &str, given: Given<'_>) -> Result<(), Late> {
        orders.check(own, &given)?;
        orders.passed(&given);
        Ok(())
    }

    #[test]
    fn a_late_order_does_not_undo_a_newer_one() {
        let (a, b) = (name("x/0"), name("x/1"));
        let about = |epoch, process, number| Given {
            epoch,
            tenure: "",
            about: Some((process, number)),
        };
        let mut orders = Orders::new(0);
        assert_eq!(pass(&mut orders, "", about(1, &a, 5)), Ok(()));
        assert_eq!(pass(&mut orders, "", about(1, &a, 5)), Ok(()), "again");
        assert_eq!(pass(&mut orders, "", about(1, &b, 4)), Ok(()));
        let late = pass(&mut orders, "", about(1, &a, 4));
        assert_eq!(late, Err(Late::Overtaken(a.clone())));
        assert!(orders.is_newer(&a, 4) && !orders.is_newer(&a, 5) && !orders.is_newer(&b, 4));
        // Another coordinator counts anew, and the one before counts no more.
        assert_eq!(pass(&mut orders, "", about(2, &a, 1)), Ok(()));
        let old = pass(&mut orders, "", about(1, &b, 9));
        assert_eq!(old, Err(Late::Epoch(2)));
    }

    #[test]
    fn an_order_for_an_earlier_tenure_counts_no_more() {
        let a = name("x/0");
        let order = |tenure, number| Given {
            epoch: 3,
            tenure,
            about: Some((&a, number)),
        };
        let mut orders = Orders::new(3);
        assert_eq!(pass(&mut orders, "one", order("one", 1)), Ok(()));
        // Numbers do not tell: nothing was ordered about it here since.
        assert_eq!(pass(&mut orders, "two", order("one", 2)), Err(Late::Tenure));
        assert!(!orders.is_newer(&a, 1), "what is refused is forgotten");
        assert_eq!(pass(&mut orders, "two", order("two", 3)), Ok(()));
        // Of a coordinator that does not know it, and on the one machine, which has none.
        assert_eq!(pass(&mut orders, "two", order("", 4)), Ok(()));
        assert_eq!(pass(&mut orders, "", order("one", 5)), Ok(()));
    }
}
