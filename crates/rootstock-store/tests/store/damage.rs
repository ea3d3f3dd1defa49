//! Bit rot and lost pieces: found, named, never served, and mended.

use std::{collections::HashSet, sync::Arc};

use rootstock_store::{
    ChunkStore, DamageKind, Origin, PackId, PutError, PutOutcome, ReadError,
    disk::SimDisk,
    objects::{FaultyObjects, MemoryObjects, Objects},
};

use crate::support::{assert_reads, collect, frame, id, live, open, open_on, put, put_all, raw};

struct Setup {
    faulty: Arc<FaultyObjects>,
    objects: Arc<dyn Objects>,
    store: ChunkStore,
}

fn setup() -> Setup {
    let faulty = Arc::new(FaultyObjects::new(Arc::new(MemoryObjects::new())));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put_all(&store, 0..4);
    assert_eq!(store.stats().packs, 1);
    Setup {
        faulty,
        objects,
        store,
    }
}

fn pack(store: &ChunkStore) -> PackId {
    store.packs()[0]
}

#[test]
fn no_flipped_bit_is_served() {
    let Setup {
        faulty,
        objects,
        store,
    } = setup();
    let key = pack(&store).key();
    let len_bits = 8 * objects.size(&key).unwrap();
    let mut kinds = HashSet::new();
    for bit in (0..len_bits).step_by(37) {
        faulty.flip_bit(&key, bit);
        for store in [store.clone(), open(&objects)] {
            for number in 0..4 {
                match store.read(id(number)) {
                    Ok(bytes) => assert_eq!(bytes, raw(number)),
                    Err(ReadError::Damaged(damage)) => {
                        kinds.insert(damage.kind);
                        assert_eq!(store.damage(), [damage]);
                        assert!(!store.contains(id(number)));
                        assert!((damage.offset_bytes..len_bits / 8).contains(&(bit / 8)));
                    }
                    // A damaged index and a damaged record do not coincide.
                    Err(error) => panic!("{error}"),
                }
            }
            let scrub = store.scrub_pack(pack(&store)).unwrap();
            assert!(scrub.ends_damaged || scrub.damage.len() == 1 || bit / 8 >= 10 && bit / 8 < 16);
        }
        faulty.mend();
    }
    assert_reads(&store, 0..4);
    assert_eq!(store.damage(), [], "what reads well again is well");
    assert_eq!(
        kinds,
        HashSet::from([DamageKind::Header, DamageKind::Frame])
    );
}

#[test]
fn a_scrub_finds_it_first() {
    let Setup { faulty, store, .. } = setup();
    let clean = store.scrub_pack(pack(&store)).unwrap();
    assert_eq!((clean.chunks, clean.damage.len()), (4, 0));
    faulty.flip_bit(&pack(&store).key(), 8 * 300);
    let report = store.scrub_pack(pack(&store)).unwrap();
    assert_eq!(report.damage.len(), 1);
    assert_eq!(report.damage, store.damage());
    let text = report.damage[0].to_string();
    assert!(
        text.contains("is damaged: its frame's bytes changed (pack "),
        "{text}"
    );
    assert!(text.ends_with("byte 137)"), "{text}");
    assert_eq!(store.stats().damaged, 1);
}

#[test]
fn a_put_heals_for_good() {
    let Setup {
        faulty,
        objects,
        store,
    } = setup();
    faulty.flip_bit(&pack(&store).key(), 8 * 200);
    let damage = store.scrub_pack(pack(&store)).unwrap().damage;
    let number = (0..4).find(|n| id(*n) == damage[0].chunk).unwrap();
    assert_eq!(put(&store, number).unwrap(), PutOutcome::Stored);
    store.flush().unwrap();
    assert_eq!(store.damage(), []);
    assert_reads(&store, 0..4);

    // After a restart both places are known, and the good one is found,
    // whichever comes first, also by a collection.
    assert_reads(&open(&objects), 0..4);
    let store = open(&objects);
    collect(&store, &live(0..4)).unwrap();
    assert_reads(&store, 0..4);
    assert_reads(&open(&objects), 0..4);
    let store = open(&objects);
    let scrubs = store.packs().into_iter().map(|pack| store.scrub_pack(pack));
    assert!(scrubs.flatten().all(|report| report.damage.is_empty()));
}

#[test]
fn what_the_same_user_got_wrong_is_never_served_and_healed() {
    let Setup { store, .. } = setup();
    let mut wrong = frame(5);
    wrong.chunk = id(4);
    let refused = store.put_from(&wrong, Origin::Foreign);
    assert!(matches!(refused, Err(PutError::Frame { .. })));
    let taken = store.put_from(&wrong, Origin::SameUser);
    assert_eq!(taken.unwrap(), PutOutcome::Stored);
    assert!(store.read(id(4)).is_err());
    store.flush().unwrap();
    let read = store.read(id(4));
    assert!(matches!(read, Err(ReadError::Damaged(_))));
    assert_eq!(put(&store, 4).unwrap(), PutOutcome::Stored);
    assert_reads(&store, 0..5);
    let mut endless = frame(6);
    endless.raw_bytes = u32::MAX;
    assert!(store.put_from(&endless, Origin::SameUser).is_err());
}

#[test]
fn the_same_pack_again_mends_the_pack() {
    let faulty = Arc::new(FaultyObjects::new(Arc::new(MemoryObjects::new())));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put_all(&store, [1]);
    let before = pack(&store);
    faulty.flip_bit(&before.key(), 8 * 200);
    assert!(store.read(id(1)).is_err());
    put_all(&store, [1]);
    assert_eq!(store.packs(), [before]);
    assert_reads(&store, [1]);
    // The collection finds the pack twice, and must not delete its one object.
    collect(&store, &live([1])).unwrap();
    assert_reads(&store, [1]);
    assert_reads(&open(&objects), [1]);
}

#[test]
fn a_damaged_index_is_rebuilt_and_then_written_anew() {
    let Setup {
        faulty,
        objects,
        store,
    } = setup();
    let key = pack(&store).key();
    let len_bytes = objects.size(&key).unwrap();
    // The footer, the index, and both gone.
    for damage in [len_bytes - 1, len_bytes - 100] {
        faulty.flip_bit(&key, 8 * damage);
        assert_reads(&open(&objects), 0..4);
        faulty.mend();
    }
    faulty.cut(&key, len_bytes - 64 - 4 * 80);
    assert_reads(&open(&objects), 0..4);
    faulty.cut(&key, len_bytes - 64 - 4 * 80 - 1);
    let store = open(&objects);
    assert_eq!((0..4).filter(|n| store.contains(id(*n))).count(), 3);
    let kept: Vec<u64> = (0..4).filter(|n| store.contains(id(*n))).collect();
    collect(&store, &live(0..4)).unwrap();
    assert_reads(&store, kept.clone());
    let scrub = store.scrub_pack(pack(&store)).unwrap();
    assert!(!scrub.ends_damaged);
    assert_reads(&open(&objects), kept);
}

#[test]
fn a_damaged_record_does_not_hide_the_next() {
    let Setup {
        faulty,
        objects,
        store,
    } = setup();
    let key = pack(&store).key();
    let len_bytes = objects.size(&key).unwrap();
    faulty.flip_bit(&key, 8 * (len_bytes - 1));
    faulty.flip_bit(&key, 8 * 20);
    let store = open(&objects);
    assert_eq!(store.stats().chunks, 3);
    let kept: Vec<u64> = (0..4).filter(|n| store.contains(id(*n))).collect();
    assert_reads(&store, kept);
}

#[test]
fn a_lost_pack_is_damage_and_is_healed() {
    let Setup { objects, store, .. } = setup();
    objects.delete(&pack(&store).key()).unwrap();
    let Err(ReadError::Damaged(damage)) = store.read(id(0)) else {
        panic!("a chunk of a lost pack");
    };
    assert_eq!(damage.kind, DamageKind::Lost);
    assert!(store.scrub_pack(pack(&store)).unwrap().ends_damaged);
    assert_eq!(store.stats().damaged, 4);
    put_all(&store, 0..4);
    assert_reads(&store, 0..4);
    assert_eq!(store.stats().damaged, 0);
}

#[test]
fn a_collection_keeps_what_is_damaged() {
    let Setup { faulty, store, .. } = setup();
    put_all(&store, 10..14);
    let packs = store.packs().len();
    let hurt = store.pack_of(id(0)).unwrap();
    faulty.flip_bit(&hurt.key(), 8 * 200);
    assert_eq!(store.scrub_pack(hurt).unwrap().damage.len(), 1);
    collect(&store, &live((0..1).chain(10..14))).unwrap();
    assert_eq!(store.packs().len(), packs);
    // Once the disk gives it again, it reads.
    faulty.mend();
    assert_reads(&store, [0]);
}

#[test]
fn a_mended_file_is_read_anew() {
    let disk = SimDisk::new();
    let store = open_on(&disk);
    put_all(&store, [1]);
    disk.flip_bit(&disk.files()[0], 8 * 200).unwrap();
    assert!(store.read(id(1)).is_err());
    put_all(&store, [1]);
    assert_eq!(disk.files().len(), 1);
    assert_reads(&store, [1]);
}
