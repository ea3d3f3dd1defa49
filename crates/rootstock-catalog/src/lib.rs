//! What exists: images, versions, tags, volumes, nodes, boots, imports and tokens.
//!
//! The one crate that knows SQL. It keeps rows and their rules: version numbers
//! are never used twice, a version that a tag or a volume needs is not deleted,
//! a commit is one transaction. It knows nothing of chunks: a manifest is an id
//! to it, facts are text, a trace is bytes, a pack is a name. Statements keep to what SQLite and
//! PostgreSQL share. Time comes from the caller.

mod assignments;
mod boots;
mod error;
mod health;
mod images;
mod imports;
mod installations;
mod installers;
mod leases;
mod nodes;
mod personal;
mod profiles;
mod reboots;
mod recipes;
mod rollouts;
mod schema;
mod shares;
mod strategies;
mod tokens;
mod traces;
mod versions;
mod volumes;

pub use assignments::ASSIGNMENTS_MAX;
pub use boots::{
    BOOTS_PER_NODE_MAX, BootRow, NewBoot, NewToken, Redeemed, STEPS_PER_BOOT_MAX, StepRow,
};
pub use error::{CatalogError, Holder, OpenError};
pub use health::{BootFacts, Verdict, VersionHealthRow};
pub use images::{HISTORY_LIST_MAX, HistoryRow, ImageRow, TagRow};
pub use imports::{IMPORTS_MAX, ImportRow, NewImport};
pub use installations::InstallationRow;
pub use installers::{InstallerRunRow, InstallerStart};
pub use leases::{LeaseRow, LeaseState, Taken};
pub use nodes::{
    HELD_MAX, MACS_PER_NODE_MAX, NODES_MAX, NewNode, NodeChange, NodeRow, NodeSettingsRow,
    NodeState, Pass, Registered, Registration,
};
pub use profiles::{NewProfile, PROFILE_DEPTH_MAX, PROFILES_MAX, ProfileRow};
pub use reboots::RebootKind;
pub use recipes::{RECIPE_VERSIONS_MAX, RecipeRow};
pub use rollouts::{
    NewRollout, ROLLOUTS_ENDED_MAX, ROLLOUTS_OPEN_MAX, RolloutNodeRow, RolloutNodeState,
    RolloutReboot, RolloutRow, RolloutState, RolloutTerms,
};
pub use schema::{Catalog, SCHEMA_VERSION};
pub use shares::{SHARES_PER_DISK_MAX, Secret, ShareRow, Shareable};
pub use strategies::STRATEGIES_MAX;
pub use tokens::{Role, TOKENS_MAX, TokenRow};
pub use traces::{
    TRACE_BOOTS_MAX, TRACE_CLASS_ALL, TRACE_CLASS_BYTES_MAX, TRACE_CLASSES_MAX, TraceRow,
};
pub use versions::{AddedVersion, NewVersion, VERSIONS_MAX, VersionRow};
pub use volumes::{NewVolume, VOLUMES_MAX, VolumeRow, VolumeState};
