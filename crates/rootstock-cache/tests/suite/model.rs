//! The cache against a plain map.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rootstock_cache::Put;
use rootstock_store::disk::SimDisk;

use crate::bench::{FILE, chunk, id, open, prepared, put};

const SLOTS: u64 = 24;
const CHUNKS: u32 = 40;

#[derive(Debug, Clone)]
enum Step {
    Put(u32),
    Need(BTreeSet<u32>),
    MakeRoom(u64),
    Bound(u64),
    Checkpoint,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..CHUNKS).prop_map(Step::Put),
        1 => prop::collection::btree_set(0..CHUNKS, 0..20).prop_map(Step::Need),
        1 => (0..8_u64).prop_map(Step::MakeRoom),
        1 => (0..=SLOTS).prop_map(Step::Bound),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn behaves_as_a_map_with_a_bound(steps in prop::collection::vec(step(), 0..80)) {
        let disk: SimDisk = prepared(SLOTS);
        let mut cache = open(&disk).expect("opens");
        // Each chunk with whether it is needed.
        let mut model: BTreeMap<u32, bool> = BTreeMap::new();
        // Forgotten, and not free before the next checkpoint.
        let mut leaving = 0;
        let mut bound = SLOTS;
        for step in steps {
            match step {
                Step::Put(number) => {
                    let expected_full = model.len() as u64 >= bound || model.len() as u64 + leaving >= SLOTS;
                    match put(&cache, number) {
                        Put::Present => prop_assert!(model.contains_key(&number)),
                        Put::Full => prop_assert!(expected_full && !model.contains_key(&number)),
                        Put::Stored { slot } => {
                            prop_assert!(!expected_full && u64::from(slot) < SLOTS);
                            prop_assert_eq!(model.insert(number, true), None);
                        }
                    }
                }
                Step::Need(needed) => {
                    cache.set_needed(needed.iter().copied().map(id));
                    for (number, is_needed) in &mut model {
                        *is_needed = needed.contains(number);
                    }
                }
                Step::MakeRoom(count) => {
                    let spare = model.values().filter(|needed| !**needed).count() as u64;
                    prop_assert_eq!(cache.make_room(count).expect("the disk works"), spare.min(count));
                    model.retain(|number, _| cache.has(id(*number)));
                    leaving = 0;
                }
                Step::Bound(slots) => {
                    bound = slots;
                    cache.set_bytes_max(slots * 4096);
                }
                Step::Checkpoint => {
                    cache.checkpoint().expect("the disk works");
                    leaving = 0;
                    for number in model.keys() {
                        let chunk = id(*number);
                        if cache.is_unseen(chunk) {
                            // What is not pinned may be given up later, as here.
                            prop_assert_eq!(cache.pin(chunk), None);
                            prop_assert!(cache.read(chunk).expect("the disk works").is_some());
                        }
                        prop_assert!(!cache.is_unseen(chunk));
                    }
                }
                Step::Reopen => {
                    cache.checkpoint().expect("the disk works");
                    (leaving, bound) = (0, SLOTS);
                    cache = open(&disk).expect("opens");
                    // What is needed is said again by whoever opens it.
                    model.values_mut().for_each(|needed| *needed = false);
                }
            }
            prop_assert_eq!(cache.usage().slots_used, model.len() as u64);
            for number in 0..CHUNKS {
                prop_assert_eq!(cache.has(id(number)), model.contains_key(&number));
            }
        }
        for number in model.keys() {
            let read = cache.read(id(*number)).expect("the disk works");
            prop_assert_eq!(read.expect("there"), chunk(*number));
        }
    }
}

#[test]
fn what_an_earlier_opening_wrote_is_checked_before_it_is_relied_on() {
    let disk = prepared(SLOTS);
    let cache = open(&disk).expect("opens");
    put(&cache, 4);
    cache.checkpoint().expect("kept");
    let extent = cache.pin(id(4)).expect("it was written now");
    for is_altered in [false, true] {
        if is_altered {
            disk.flip_bit(FILE, extent.start_bytes * 8).expect("inside");
        }
        let cache = open(&disk).expect("opens");
        assert!(cache.has(id(4)) && cache.is_unseen(id(4)));
        assert_eq!(cache.pin(id(4)), None);
        let read = cache.read(id(4)).expect("reads");
        assert_eq!(read.is_some(), !is_altered);
        assert_eq!(cache.pin(id(4)), (!is_altered).then_some(extent));
    }
}

#[test]
fn what_was_checked_may_be_relied_on() {
    let disk = prepared(SLOTS);
    let cache = open(&disk).expect("opens");
    for number in 0..10 {
        put(&cache, number);
    }
    assert_eq!(cache.pin(id(4)), None, "not kept yet");
    cache.checkpoint().expect("kept");
    assert!(cache.pin(id(4)).is_some());
    let cache = open(&disk.crash(0)).expect("opens");
    for number in 0..10 {
        assert_eq!(cache.pin(id(number)), None);
        assert!(cache.read(id(number)).expect("reads").is_some());
        assert!(cache.pin(id(number)).is_some());
    }
}

#[test]
fn chunks_lie_where_they_are_wanted() {
    let cache = open(&prepared(SLOTS)).expect("opens");
    for number in [3, 1, 2] {
        assert_eq!(put(&cache, number), Put::Stored { slot: number });
    }
    // The place is taken: the next free one.
    let other = cache.put(id(30), &chunk(30), 1).expect("put");
    assert_eq!(other, Put::Stored { slot: 4 });
    assert_eq!(cache.slot(id(30)), Some(4));
}
