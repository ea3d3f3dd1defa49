//! Arbitrary bytes as an overlay's map log.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rootstock_core::BLOCK_BYTES;
use rootstock_fuzz::overlay::{DIR, base, create, mend};
use rootstock_store::disk::{Disk, SimDisk};
use rootstock_volume::{BlockDevice as _, OverlayOptions, Segments, Volume};

// The first byte says whether the checksums are set right.
fuzz_target!(|data: &[u8]| {
    let Some((mended, log)) = data.split_first() else {
        return;
    };
    let mut log = log.to_vec();
    if mended % 2 == 1 {
        mend(&mut log);
    }
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (volume, path) = create(&disk).expect("a volume");
    drop(volume);
    let file = disk.open(&path).expect("its log");
    file.set_len(0).expect("cut");
    file.write_at(0, &log).expect("written");
    drop(file);
    let options = OverlayOptions::default();
    let Ok(volume) = Volume::open(&disk, DIR, base(), options) else {
        return;
    };
    let blocks = volume.size_bytes() / BLOCK_BYTES;
    for block in [0, 1, blocks / 2, blocks.saturating_sub(1)] {
        let mut out = Segments::new();
        let _ = volume.read(block * BLOCK_BYTES, BLOCK_BYTES as u32, &mut out);
    }
    let _ = volume.write(0, &[7; BLOCK_BYTES as usize]);
    let _ = volume.flush();
});
