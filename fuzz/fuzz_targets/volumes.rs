//! Hostile volumes: descriptions of LVM2's groups, and superblocks of md.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_fuzz::{
    disks,
    volumes::{array, physical},
};

// The first byte says which of the two the rest is; their checksums are right.
fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let disk = match which % 3 {
        0 => physical(data),
        1 => array(data, 0),
        _ => array(data, 4096),
    };
    if let Some(disk) = disk {
        disks::check(&disk);
    }
});
