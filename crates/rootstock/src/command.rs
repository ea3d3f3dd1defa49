//! The commands, each in its own file.

pub(crate) mod boot;
pub(crate) mod completions;
pub(crate) mod gc;
pub(crate) mod image;
pub(crate) mod import;
pub(crate) mod installer;
pub(crate) mod nfs;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod rollout;
pub(crate) mod scrub;
pub(crate) mod serve;
pub(crate) mod settings;
pub(crate) mod share;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod volume;
