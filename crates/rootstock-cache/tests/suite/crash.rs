//! The power cut at every change of a script: nothing wrong is ever relied on.

use std::collections::BTreeSet;

use rootstock_cache::{Cache, Put};
use rootstock_core::ChunkId;
use rootstock_store::disk::{Disk, Fault, SimDisk};

use crate::bench::{FILE, bytes, chunk, id, label, open, prepared, put};

const SLOTS: u64 = 130;
/// Chunks that scripts put; more than there are slots.
const CHUNKS: u32 = 170;

/// What must be there after a crash, whatever the disk did with what it was not
/// told to keep.
#[derive(Default, Clone)]
struct Kept {
    chunks: BTreeSet<u32>,
    /// The state documents that may be there.
    states: Vec<Vec<u8>>,
}

/// Runs a script of `rounds` until it fails, from a seed.
fn run(disk: &SimDisk, seed: u64, rounds: u32) -> Kept {
    let mut rng = Rng(seed);
    let mut kept = Kept {
        chunks: BTreeSet::new(),
        states: vec![Vec::new()],
    };
    let Ok(cache) = open(disk) else {
        return kept;
    };
    kept.states = vec![cache.state()];
    let mut put_since = BTreeSet::new();
    for round in 0..rounds {
        for _ in 0..rng.below(12) {
            let number = rng.below(u64::from(CHUNKS)) as u32;
            match cache.put(id(number), &chunk(number), number) {
                Ok(Put::Stored { .. }) => {
                    put_since.insert(number);
                }
                Ok(Put::Present) => {}
                Ok(Put::Full) => {
                    // Whatever is forgotten now need not be there any more.
                    let spare: BTreeSet<u32> = (0..4)
                        .map(|_| rng.below(u64::from(CHUNKS)) as u32)
                        .collect();
                    let needed = (0..CHUNKS).filter(|number| !spare.contains(number));
                    cache.set_needed(needed.map(id));
                    kept.chunks.retain(|number| !spare.contains(number));
                    put_since.retain(|number| !spare.contains(number));
                    if cache.make_room(4).is_err() {
                        return kept;
                    }
                    kept.chunks.append(&mut put_since);
                }
                Err(_) => return kept,
            }
        }
        match rng.below(4) {
            0 => {
                let document = vec![round as u8; 1 + rng.below(6000) as usize];
                kept.states.push(document.clone());
                if cache.set_state(&document).is_err() {
                    return kept;
                }
                kept.states = vec![document];
            }
            1 => {}
            _ => {
                if cache.checkpoint().is_err() {
                    return kept;
                }
                kept.chunks.append(&mut put_since);
            }
        }
    }
    kept
}

/// What is wrong with what a crash left.
fn judge(disk: &SimDisk, kept: &Kept) -> Result<(), String> {
    let cache = open(disk).map_err(|error| error.to_string())?;
    for number in 0..CHUNKS {
        if cache.pin(id(number)).is_some() {
            return Err(format!("chunk {number} is relied on and was not checked"));
        }
        let named = cache.has(id(number));
        let read = cache.read(id(number)).map_err(|error| error.to_string())?;
        match read {
            // This disk keeps what it says it keeps.
            None if named => return Err(format!("chunk {number} is named and not there")),
            Some(raw) if raw == chunk(number) => {}
            Some(_) => return Err(format!("chunk {number} is served wrong")),
            None if kept.chunks.contains(&number) => return Err(format!("chunk {number} is gone")),
            None => {}
        }
        relied_on_is_right(disk, &cache, number)?;
    }
    if !kept.states.contains(&cache.state()) {
        return Err("the state is a mix".to_owned());
    }
    // It goes on working.
    put(&cache, 1000);
    cache.checkpoint().map_err(|error| error.to_string())?;
    let again = open(&disk.crash(3)).map_err(|error| error.to_string())?;
    let held = again.read(id(1000)).map_err(|error| error.to_string())?;
    (held.is_some() || cache.usage().slots_used == SLOTS)
        .then_some(())
        .ok_or_else(|| "what is put after the crash is lost".to_owned())
}

/// What may be read past the cache must be the chunk.
fn relied_on_is_right(disk: &SimDisk, cache: &Cache, number: u32) -> Result<(), String> {
    match cache.pin(id(number)) {
        Some(extent)
            if ChunkId::of(&bytes(disk, extent.start_bytes, extent.len_bytes)) != id(number) =>
        {
            Err(format!("chunk {number} is relied on and is not there"))
        }
        _ => Ok(()),
    }
}

#[test]
fn every_cut_leaves_what_was_kept_and_nothing_wrong() {
    let fresh = prepared(SLOTS);
    for seed in 0..2 {
        let whole = fresh.crash(0);
        run(&whole, seed, 40);
        let operations = whole.operations();
        assert!(operations > 150, "the script does much: {operations}");
        for nth in 0..operations {
            let disk = fresh.crash(0);
            disk.fail_at(nth, Fault::PowerCut);
            let kept = run(&disk, seed, 40);
            for crash in 0..4 {
                if let Err(what) = judge(&disk.crash(crash), &kept) {
                    panic!("script {seed}, change {nth}, crash {crash}: {what}");
                }
            }
        }
    }
}

#[test]
fn a_life_of_crashes_keeps_its_word() {
    for seed in 0..25 {
        let mut rng = Rng(seed);
        let mut disk = prepared(SLOTS);
        for life in 0..12 {
            disk.fail_at(rng.below(60), Fault::PowerCut);
            let kept = run(&disk, rng.below(1 << 40), 30);
            let crashed = disk.crash(rng.below(1 << 40));
            if let Err(what) = judge(&crashed.crash(0), &kept) {
                panic!("seed {seed}, life {life}: {what}");
            }
            disk = crashed;
        }
    }
}

#[test]
fn a_disk_that_is_cut_while_it_is_prepared_is_no_cache_or_an_empty_one() {
    let label = label(SLOTS);
    let old = prepared(SLOTS);
    put(&open(&old).expect("opens"), 7);
    for nth in 0..20 {
        let disk = old.crash(0);
        disk.fail_at(nth, Fault::PowerCut);
        let file = disk.open(FILE).expect("the file");
        let done = Cache::format(&*file, &label).is_ok();
        for crash in 0..6 {
            if let Ok(cache) = open(&disk.crash(crash)) {
                assert_eq!(cache.usage().slots_used, 0, "change {nth}");
            } else {
                assert!(!done, "change {nth}");
            }
        }
    }
}

/// splitmix64: a seed is a whole history.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
