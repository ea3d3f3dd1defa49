//! What has to hold of whatever is found on a disk.

use std::{panic, sync::Once, thread};

use rootstock_image::{
    ReadAt as _,
    inspect::{FreeSpace, inspect},
};

use crate::sparse::SparseDisk;

/// The thread that another project's reader runs in; its panics are expected,
/// since the search is given up then and nothing else happens.
const FACTS_THREAD: &str = "image-facts";

/// Looks at a disk.
///
/// # Panics
/// When what is found cannot be right.
pub fn check(disk: &SparseDisk) {
    bear_with_facts();
    let report = inspect(disk, FreeSpace::Drop).expect("the source never fails");
    let grid = &report.grid;
    assert_eq!(grid.disk_bytes(), disk.len_bytes());
    for free in report.free.iter() {
        assert!(free.len > 0 && free.end() <= disk.len_bytes());
        let inside = report.partitions.iter().any(|partition| {
            let end = partition.start_bytes + partition.len_bytes;
            let kept = partition
                .fs
                .as_ref()
                .is_none_or(|fs| fs.kept_whole_because.is_some());
            !kept && partition.start_bytes <= free.start && free.end() <= end
        });
        assert!(
            inside,
            "free space lies in a partition that is not kept whole"
        );
    }
    for partition in &report.partitions {
        assert!(partition.start_bytes + partition.len_bytes <= disk.len_bytes());
    }
}

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
