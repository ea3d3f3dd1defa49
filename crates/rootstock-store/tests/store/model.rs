//! Random lives of a store against plain sets of numbers.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use rootstock_store::{ChunkStore, ReadError, disk::SimDisk};

use crate::support::{collect, id, live, objects_on, open, put, raw};

const NUMBERS: u64 = 32;

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<u64>),
    Flush,
    /// Keeps the numbers with this remainder by 4, and those above.
    Collect(u64),
    /// Begins a collection, puts, sweeps by the mark of before.
    PutWhileCollecting(u64, Vec<u64>),
    Restart,
    Crash(u64),
    /// The disk is full for one flush.
    FullFlush,
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(0..NUMBERS, 1..12);
    prop_oneof![
        6 => numbers().prop_map(Step::Put),
        3 => Just(Step::Flush),
        2 => (0_u64..5).prop_map(Step::Collect),
        2 => ((0_u64..5), numbers()).prop_map(|(keep, numbers)| Step::PutWhileCollecting(keep, numbers)),
        1 => Just(Step::Restart),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::FullFlush),
    ]
}

struct Model {
    disk: SimDisk,
    store: ChunkStore,
    /// Must be readable.
    put: BTreeSet<u64>,
    /// Must be readable after a crash.
    durable: BTreeSet<u64>,
}

impl Model {
    fn new(disk: SimDisk) -> Self {
        Self {
            store: open(&objects_on(Arc::new(disk.clone()))),
            disk,
            put: BTreeSet::new(),
            durable: BTreeSet::new(),
        }
    }

    fn reopen(&mut self, disk: SimDisk) {
        let durable = std::mem::take(&mut self.durable);
        *self = Self {
            put: durable.clone(),
            durable,
            ..Self::new(disk)
        };
    }

    fn put(&mut self, numbers: &[u64]) {
        for number in numbers {
            put(&self.store, *number).unwrap();
            self.put.insert(*number);
        }
    }

    fn keep(&mut self, keep: u64) {
        self.put.retain(|number| number % 4 <= keep);
        self.durable.retain(|number| number % 4 <= keep);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(numbers) => self.put(numbers),
            Step::Flush => {
                self.store.flush().unwrap();
                self.durable = self.put.clone();
            }
            Step::Collect(keep) => {
                self.keep(*keep);
                collect(&self.store, &live(self.put.iter().copied())).unwrap();
            }
            Step::PutWhileCollecting(keep, numbers) => {
                self.keep(*keep);
                let mark = live(self.put.iter().copied());
                let collection = self.store.begin_collection().unwrap();
                self.put(numbers);
                let go_on = &mut |_: &_| std::ops::ControlFlow::Continue(());
                collection.sweep(&mark, &[].into(), go_on).unwrap();
            }
            Step::Restart => {
                let disk = self.disk.clone();
                self.reopen(disk);
            }
            Step::Crash(seed) => {
                let disk = self.disk.crash(*seed);
                self.reopen(disk);
            }
            Step::FullFlush => {
                self.disk.set_capacity_bytes(Some(self.disk.used_bytes()));
                // All is stored already, or the disk is full.
                if self.store.flush().is_ok() {
                    self.durable = self.put.clone();
                }
                self.disk.set_capacity_bytes(None);
            }
        }
    }

    fn check(&self) {
        for number in 0..NUMBERS {
            match self.store.read(id(number)) {
                Ok(bytes) => assert_eq!(bytes, raw(number)),
                Err(ReadError::Missing { .. }) => {
                    assert!(!self.put.contains(&number), "chunk number {number} is lost");
                    assert!(!self.store.contains(id(number)));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_sets(steps in prop::collection::vec(step(), 1..24)) {
        let mut model = Model::new(SimDisk::new());
        for step in &steps {
            model.step(step);
            model.check();
        }
        // What is left at the end is exactly what is needed.
        model.step(&Step::Flush);
        collect(&model.store, &live(model.put.iter().copied())).unwrap();
        model.check();
        let stats = model.store.stats();
        let used = model.disk.used_bytes();
        prop_assert_eq!((stats.pack_bytes, stats.unstored_bytes), (used, 0));
// And it stays so: nothing is written again without a gain.
        let again = collect(&model.store, &live(model.put.iter().copied())).unwrap();
        prop_assert_eq!((again.packs_written, again.packs_deleted, again.packs_skipped), (0, 0, 0));
    }
}
