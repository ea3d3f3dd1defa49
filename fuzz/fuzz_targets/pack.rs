//! Arbitrary bytes as a pack among the store's objects.

#![no_main]

use std::{io::IoSlice, sync::Arc};

use libfuzzer_sys::fuzz_target;
use rootstock_core::{ChunkId, Digest};
use rootstock_fuzz::pack::mend;
use rootstock_store::{
    ChunkStore, PackId, StoreOptions,
    objects::{MemoryObjects, Objects as _},
};

// The first byte says whether the checksums are set right.
fuzz_target!(|data: &[u8]| {
    let Some((mended, pack)) = data.split_first() else {
        return;
    };
    let mut pack = pack.to_vec();
    let id = PackId(if mended % 2 == 1 {
        mend(&mut pack)
    } else {
        Digest::of(&pack)
    });
    let objects = Arc::new(MemoryObjects::new());
    let stored = objects.put(&id.key(), &[IoSlice::new(&pack)]);
    stored.expect("memory takes all");
    let options = StoreOptions {
        open_threads: 1,
        ..StoreOptions::default()
    };
    let Ok(store) = ChunkStore::open(objects, options) else {
        return;
    };
    let _ = store.scrub_pack(id);
    // Every place where an id may stand, as the store itself reads them.
    for at in (0..pack.len()).step_by(4).take(4096) {
        let Some(bytes) = pack.get(at..at + Digest::LEN) else {
            break;
        };
        let mut chunk = [0; Digest::LEN];
        chunk.copy_from_slice(bytes);
        let chunk = ChunkId::from_bytes(chunk);
        if store.contains(chunk)
            && let Ok(raw) = store.read(chunk)
        {
            assert_eq!(ChunkId::of(&raw), chunk, "what is served was checked");
        }
    }
});
