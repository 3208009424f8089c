//! The writes of one group commit in the making, readable on top of the engine.
//!
//! Each job sees what the jobs before it wrote, although nothing is on disk yet. A job that fails
//! is undone alone ([`Overlay::rollback`]); the others of its group are not touched.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use crate::engine::{Batch, EngineError, Space, Stored, View, Visit};
use crate::read::counter_key;
use crate::schema::TABLES;

type Key = (Space, Vec<u8>);

/// What the overlay held for a key before a write.
enum Before {
    /// Nothing: the key was as below.
    Untouched,
    /// A put or a removal of an earlier job.
    Written(Option<Stored>),
}

/// See the module's documentation.
pub struct Overlay<'e> {
    below: &'e dyn View,
    writes: BTreeMap<Key, Option<Stored>>,
    undo: Vec<(Key, Before)>,
    rows: RowCounts,
    rows_before: RowCounts,
    bytes: usize,
}

/// Rows more or fewer than before, by position of the table in [`TABLES`].
pub type RowCounts = [i64; TABLES_MAX];

/// Room for the tables' counters.
pub const TABLES_MAX: usize = 16;

impl<'e> Overlay<'e> {
    /// Nothing written yet.
    pub fn new(below: &'e dyn View) -> Self {
        assert!(
            TABLES.len() <= TABLES_MAX,
            "invariant: every table has a counter"
        );
        Self {
            below,
            writes: BTreeMap::new(),
            undo: Vec::new(),
            rows: [0; TABLES_MAX],
            rows_before: [0; TABLES_MAX],
            bytes: 0,
        }
    }

    /// Stores a value.
    pub fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        self.write(space, key, Some(value.into()));
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: Vec<u8>) {
        self.write(space, key, None);
    }

    /// Counts rows of a table that were added or removed.
    pub fn count(&mut self, table: u8, change: i64) {
        if let Some(at) = TABLES.iter().position(|candidate| candidate.id == table) {
            self.rows[at] += change;
        }
    }

    /// How the number of rows of each table changes.
    pub fn row_changes(&self) -> RowCounts {
        self.rows
    }

    /// Bytes waiting to be written, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anything is to be written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Keeps what the current job wrote.
    pub fn keep(&mut self) {
        self.undo.clear();
        self.rows_before = self.rows;
    }

    /// Undoes what was written since the last [`Overlay::keep`].
    pub fn rollback(&mut self) {
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Before::Written(value) => self.writes.insert(key, value),
                Before::Untouched => self.writes.remove(&key),
            };
        }
        self.rows = self.rows_before;
    }

    /// The batch for the engine.
    pub fn into_batch(self) -> Batch {
        self.writes
            .into_iter()
            .map(|((space, key), value)| (space, key, value.map(|value| value.to_vec())))
            .collect()
    }

    fn write(&mut self, space: Space, key: Vec<u8>, value: Option<Stored>) {
        self.bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
        let key = (space, key);
        let before = self.writes.insert(key.clone(), value);
        self.undo
            .push((key, before.map_or(Before::Untouched, Before::Written)));
    }
}

impl View for Overlay<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>, EngineError> {
        if !self.writes.is_empty()
            && let Some(written) = self.writes.get(&(space, key.to_vec()))
        {
            return Ok(written.clone());
        }
        if space == Space::Meta
            && let Some(at) = TABLES.iter().position(|table| counter_key(table) == key)
        {
            // The counters are written when the group is complete; until then they are sums.
            let before = self.below.get(space, key)?;
            let before = before
                .and_then(|bytes| bytes[..].try_into().ok())
                .map_or(0, i64::from_le_bytes);
            return Ok(Some((before + self.rows[at]).to_le_bytes().to_vec().into()));
        }
        self.below.get(space, key)
    }

    fn scan(&self, space: Space, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let start = (space, prefix.to_vec());
        let mut written = self
            .writes
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|((in_space, key), _)| *in_space == space && key.starts_with(prefix))
            .map(|((_, key), value)| (key.as_slice(), value.as_ref()))
            .peekable();
        if written.peek().is_none() {
            return self.below.scan(space, prefix, visit);
        }
        let mut stopped = false;
        self.below.scan(space, prefix, &mut |key, value| {
            while let Some((written_key, written_value)) =
                written.next_if(|(written_key, _)| *written_key < key)
            {
                if let Some(value) = written_value
                    && visit(written_key, value).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match written.next_if(|(written_key, _)| *written_key == key) {
                Some((_, Some(value))) => visit(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (key, value) in written {
                if let Some(value) = value
                    && visit(key, value).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Embedded, Engine, Sizes};
    use proptest::prelude::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn scanned(view: &dyn View, prefix: &[u8]) -> Model {
        let mut found = Model::new();
        view.scan(Space::Rows, prefix, &mut |key, value| {
            assert!(
                found.insert(key.to_vec(), value.to_vec()).is_none(),
                "visited once"
            );
            ControlFlow::Continue(())
        })
        .expect("scans");
        found
    }

    fn write(overlay: &mut Overlay<'_>, model: &mut Model, writes: &[(u8, Option<u8>)]) {
        for (key, value) in writes {
            let key = vec![key / 4, key % 4];
            if let Some(value) = value {
                overlay.put(Space::Rows, key.clone(), vec![*value]);
                model.insert(key, vec![*value]);
            } else {
                overlay.remove(Space::Rows, key.clone());
                model.remove(&key);
            }
        }
    }

    fn writes() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        proptest::collection::vec((0..16u8, proptest::option::of(any::<u8>())), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn an_overlay_reads_as_if_it_were_written_and_undoes_single_jobs(
            below in writes(), jobs in proptest::collection::vec((writes(), any::<bool>()), 0..5),
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let engine = Embedded::open(directory.path(), Sizes::default()).expect("opens");
            let mut model = Model::new();
            let mut first = Overlay::new(&engine);
            write(&mut first, &mut model, &below);
            engine.commit(first.into_batch()).expect("commits");
            let mut overlay = Overlay::new(&engine);
            for (writes, keep) in jobs {
                let before = model.clone();
                write(&mut overlay, &mut model, &writes);
                if keep {
                    overlay.keep();
                } else {
                    overlay.rollback();
                    model = before;
                }
                prop_assert_eq!(scanned(&overlay, &[]), model.clone());
                for prefix in 0..4u8 {
                    let expected: Model =
                        model.iter().filter(|(key, _)| key[0] == prefix).map(|(k, v)| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(scanned(&overlay, &[prefix]), expected);
                }
            }
            engine.commit(overlay.into_batch()).expect("commits");
            prop_assert_eq!(scanned(&engine, &[]), model);
        }
    }
}
