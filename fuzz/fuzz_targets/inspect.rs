//! Arbitrary disks: partition tables, file systems and their free space.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_fuzz::{disks, sparse::SparseDisk};

// The first byte says whether the checksums of the GPT are set right.
fuzz_target!(|data: &[u8]| {
    let Some((mend, data)) = data.split_first() else {
        return;
    };
    let Some(mut disk) = SparseDisk::from_input(data) else {
        return;
    };
    if mend % 2 == 1 {
        disk.mend_gpt();
    }
    disks::check(&disk);
});
