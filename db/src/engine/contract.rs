//! The one suite that every engine must pass: it behaves like a sorted map, its snapshots do not
//! move, and what it has acknowledged is there when it is opened again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;

use super::{Batch, Embedded, Engine, Sizes, Space, View};

type Model = BTreeMap<(Space, Vec<u8>), Vec<u8>>;

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(Space, Vec<u8>, Option<Vec<u8>>)>),
    Reopen,
    Vacuum,
    Snapshot,
}

fn space() -> impl Strategy<Value = Space> {
    prop_oneof![Just(Space::Rows), Just(Space::Index), Just(Space::Meta)]
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few and short, so that they meet, with bytes at both ends of the order.
    proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff)], 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    prop_oneof![
        8 => proptest::collection::vec((space(), key(), value), 0..12).prop_map(Step::Commit),
        1 => Just(Step::Reopen),
        1 => Just(Step::Vacuum),
        2 => Just(Step::Snapshot),
    ]
}

fn check(view: &dyn View, model: &Model, prefix: &[u8]) {
    for space in [Space::Rows, Space::Index, Space::Meta] {
        let expected: Vec<_> = model
            .iter()
            .filter(|((in_space, key), _)| *in_space == space && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        let mut found = Vec::new();
        view.scan(space, prefix, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("scans");
        assert_eq!(found, expected, "{space:?} {prefix:?}");
        let mut first = Vec::new();
        view.scan(space, prefix, &mut |key, _| {
            first.push(key.to_vec());
            ControlFlow::Break(())
        })
        .expect("scans");
        assert_eq!(
            first.first(),
            expected.first().map(|(key, _)| key),
            "a scan can be ended"
        );
        assert!(first.len() <= 1);
        for (key, value) in &expected {
            assert_eq!(
                view.get(space, key).expect("reads").as_deref(),
                Some(value.as_slice())
            );
        }
        assert_eq!(
            view.get(space, b"never stored").expect("reads").as_deref(),
            None
        );
    }
}

fn suite<E: Engine>(open: impl Fn(&Path) -> E, steps: Vec<Step>) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut engine = open(directory.path());
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Commit(writes) => {
                let mut batch: BTreeMap<(Space, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
                for (space, key, value) in writes {
                    batch.insert((space, key), value);
                }
                let frozen = engine.snapshot();
                let before = model.clone();
                for (at, value) in &batch {
                    match value {
                        Some(value) => model.insert(at.clone(), value.clone()),
                        None => model.remove(at),
                    };
                }
                let batch: Batch = batch
                    .into_iter()
                    .map(|((space, key), value)| (space, key, value))
                    .collect();
                engine.commit(batch).expect("commits");
                check(&*frozen, &before, &[]);
            }
            Step::Reopen => {
                drop(engine);
                engine = open(directory.path());
            }
            Step::Vacuum => engine.vacuum().expect("vacuums"),
            Step::Snapshot => check(&*engine.snapshot(), &model, &[0xff]),
        }
        check(&engine, &model, &[]);
        check(&engine, &model, &[0]);
    }
    assert!(model.is_empty() || engine.disk_bytes() > 0);
    drop(engine);
    check(&open(directory.path()), &model, &[]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_engine_keeps_the_contract(steps in proptest::collection::vec(step(), 1..12)) {
        let sizes = Sizes { cache_bytes: 1 << 20, memtable_bytes: 1 << 20 };
        suite(|path| Embedded::open(path, sizes).expect("opens"), steps);
    }
}

#[test]
fn a_second_opening_of_the_same_store_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let _first = Embedded::open(directory.path(), Sizes::default()).expect("opens");
    let Err(error) = Embedded::open(directory.path(), Sizes::default()) else {
        panic!("opened twice");
    };
    assert!(error.to_string().contains("in use"), "{error}");
}
