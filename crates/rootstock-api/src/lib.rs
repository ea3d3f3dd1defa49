//! The HTTP API: its paths, its documents and its binary bodies, without logic.
//!
//! The server and the client share these types, so neither can drift. Times are
//! RFC 3339 text in UTC, sizes are bytes and say so in their names, ids are hex.
//! Readers ignore members they do not know, and every member added after the
//! first release is optional: a neighbour one release older or newer works.

pub mod admin;
pub mod boot;
pub mod doctor;
pub mod guest;
pub mod image;
pub mod import;
pub mod install;
pub mod installer;
mod iscsi_start;
pub mod local;
pub mod nfs;
pub mod node;
pub mod paths;
pub mod personal;
pub mod problem;
pub mod recipe;
pub mod record;
pub mod rollout;
pub mod settings;
pub mod share;
pub mod swarm;
pub mod volume;

pub use admin::{
    Client, ClientList, CollectEvent, CollectReport, Damage, Export, ExportList, Health,
    ScrubStatus, Site, StoreReport, Token, TokenCreate, TokenCreated, TokenList, TokenRole,
    VerifyEvent, VerifyReport,
};
pub use image::{
    BootSet, DiffReport, FsFacts, HistoryEntry, HistoryEvent, HistoryList, ImageBootFacts,
    ImageDetail, ImageFacts, ImageList, ImageSummary, PartitionFacts, Tag, TagSet, TagTarget,
    VersionDetail, VersionSize, VersionSummary, VolumeFacts,
};
pub use import::{
    Import, ImportCommit, ImportCommitted, ImportCreate, ImportList, ImportReceipt, Outcome,
};
pub use install::Installation;
pub use installer::{
    InstallTarget, Installer, InstallerEnd, InstallerList, InstallerRender, InstallerRendered,
    InstallerRun, InstallerRunState, NodesInstall, NodesInstalling,
};
pub use iscsi_start::IscsiStart;
pub use nfs::{NfsExport, NfsPlace, NfsRoot, NfsSet, NfsState, NfsWant, NfsWanted};
pub use node::{
    Abandoned, BootEvent, BootList, BootSummary, BootTranscript, Change, ChangeReport, FieldChange,
    NamedChange, Node, NodeCreate, NodeDelete, NodeEvent, NodeFormat, NodeImport, NodeList,
    NodeNames, NodeReboot, NodeReplace, NodeRollback, NodeSet, NodeSpec, NodeState, NodeStatus,
    NodeText, NodesDone, NodesTold, Origin, Profile, ProfileCreate, ProfileList, ProfileRollback,
    ProfileSet,
};
pub use personal::{NodeCommit, NodeCommitState, OtherWrites, PersonalPlace};
pub use problem::{Holder, HolderKind, Problem, ProblemCode};
pub use recipe::{RecipeDiff, RecipeList, RecipeProgress, RecipeSummary};
pub use record::{Bitmap, Record, RecordError, Records};
pub use rollout::{
    Rollout, RolloutCounts, RolloutDetail, RolloutForecast, RolloutLeft, RolloutList, RolloutNode,
    RolloutReboot, RolloutStart, RolloutStarted, RolloutState,
};
pub use settings::{FillSwitch, Setting, SettingError, Settings};
pub use share::{ChapMode, Share, ShareEnd, ShareSet, SharedTarget};
pub use swarm::{Metered, Rack, SwarmCopies, SwarmMode};
pub use volume::{
    Volume, VolumeCommit, VolumeCommitted, VolumeCreate, VolumeList, VolumeResize, VolumeSnapshot,
};

/// The media type of problem documents (RFC 9457, section 3).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// The media type of ids, records and manifests.
pub const BINARY_MEDIA_TYPE: &str = "application/octet-stream";

/// The media type of progress: one JSON document a line.
pub const PROGRESS_MEDIA_TYPE: &str = "application/x-ndjson";

/// The header in which a manifest's seal comes, in hex.
pub const SEAL_HEADER: &str = "rootstock-seal";

/// The header in which the number of a manifest's version comes.
pub const VERSION_HEADER: &str = "rootstock-version";

/// The largest JSON request, in bytes.
pub const JSON_BYTES_MAX: usize = 1 << 20;

/// The longest free text (a source, a message), in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
