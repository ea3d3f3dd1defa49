//! The chunk store as its users see it, on memory, on disks that fail, and on a
//! real one.

mod behaviour;
mod collection;
mod concurrency;
mod crash;
mod damage;
mod model;
mod support;
