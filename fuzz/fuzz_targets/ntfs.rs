//! Hostile NTFS: its file table, and what it says is free.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_fuzz::{disks, sparse::SparseDisk};

fuzz_target!(|data: &[u8]| {
    if let Some(disk) = data.get(1..).and_then(SparseDisk::from_input) {
        disks::check(&disk);
    }
});
