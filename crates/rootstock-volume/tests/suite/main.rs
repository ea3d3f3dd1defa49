//! Volumes against a plain `Vec<u8>`, with power cuts, full disks and many threads.

mod bench_disk;
mod commit;
mod concurrent;
mod crash;
mod faults;
mod killed;
mod model;
