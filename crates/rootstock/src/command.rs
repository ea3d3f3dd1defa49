//! The commands, each in its own file.

pub mod completions;
pub mod gc;
pub mod image;
pub mod import;
pub mod scrub;
pub mod serve;
pub mod status;
pub mod token;
pub mod volume;
