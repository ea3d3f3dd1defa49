//! What an image is: disk layout, chunk grid, manifest, frames and free space.
//!
//! Bytes come in through [`ReadAt`] and slices; nothing here opens a file, reads
//! a clock or draws a random number.

pub mod boot;
mod fields;
pub mod frame;
pub mod grid;
pub mod inspect;
pub mod layout;
pub mod manifest;
pub mod read_at;
pub mod recipe;
pub mod seal;
pub mod trace;

pub use read_at::ReadAt;
