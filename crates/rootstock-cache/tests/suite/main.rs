//! The cache over a disk that loses power, fails and rots.

mod bench;
mod crash;
mod faults;
mod model;
