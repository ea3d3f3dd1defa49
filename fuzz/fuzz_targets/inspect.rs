//! Arbitrary disks: partition tables, file systems and their free space.

#![no_main]

use std::{panic, sync::Once, thread};

use libfuzzer_sys::fuzz_target;
use rootstock_fuzz::sparse::SparseDisk;
use rootstock_image::{
    ReadAt,
    inspect::{FreeSpace, inspect},
};

/// The thread that another project's reader runs in; its panics are expected,
/// since the search is given up then and nothing else happens.
const FACTS_THREAD: &str = "image-facts";

// The first byte says whether the checksums of the GPT are set right.
fuzz_target!(|data: &[u8]| {
    bear_with_facts();
    let Some((mend, data)) = data.split_first() else {
        return;
    };
    let Some(mut disk) = SparseDisk::from_input(data) else {
        return;
    };
    if mend % 2 == 1 {
        disk.mend_gpt();
    }
    let report = inspect(&disk, FreeSpace::Drop).expect("the source never fails");
    let grid = &report.grid;
    assert_eq!(grid.disk_bytes(), disk.len_bytes());
    for free in report.free.iter() {
        assert!(free.len > 0 && free.end() <= disk.len_bytes());
        let inside = report.partitions.iter().any(|partition| {
            let end = partition.start_bytes + partition.len_bytes;
            partition.start_bytes <= free.start && free.end() <= end
        });
        assert!(inside, "free space lies in a partition");
    }
    for partition in &report.partitions {
        assert!(partition.start_bytes + partition.len_bytes <= disk.len_bytes());
    }
});

fn bear_with_facts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if thread::current().name() != Some(FACTS_THREAD) {
                others(panic);
            }
        }));
    });
}
