//! Why the catalog did not do what it was asked.

use std::{fmt, path::PathBuf};

use rootstock_core::{
    ImageName, MacAddress, NodeName, ProfileName, TagName, VersionNumber, VolumeName,
};

/// Why the catalog did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened as a database.
    #[error("cannot open the catalog {}: is it a SQLite file, and may this user write it?", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// A newer release wrote it.
    #[error(
        "the catalog {} has schema {found}, and this release knows up to {known}: start the newer release of Rootstock that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema it has.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// A migration failed.
    #[error("cannot bring the catalog {} to schema {known}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The newest schema known here.
        known: i64,
        /// What the database said.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
}

/// Why an operation did not happen. Nothing of it did.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such image.
    #[error("there is no image '{image}'")]
    ImageNotFound {
        /// The image.
        image: ImageName,
    },
    /// The image has no version.
    #[error("image '{image}' has no version yet")]
    NoVersions {
        /// The image.
        image: ImageName,
    },
    /// The image has no such version.
    #[error("image '{image}' has no version {version}")]
    VersionNotFound {
        /// The image.
        image: ImageName,
        /// The version.
        version: VersionNumber,
    },
    /// The image has no such tag.
    #[error("image '{image}' has no tag '{tag}'")]
    TagNotFound {
        /// The image.
        image: ImageName,
        /// The tag.
        tag: TagName,
    },
    /// No such volume.
    #[error("there is no volume '{volume}'")]
    VolumeNotFound {
        /// The volume.
        volume: VolumeName,
    },
    /// No such node.
    #[error("there is no node '{node}'")]
    NodeNotFound {
        /// The node.
        node: NodeName,
    },
    /// No such profile.
    #[error("there is no profile '{profile}'")]
    ProfileNotFound {
        /// The profile.
        profile: ProfileName,
    },
    /// A node has no boot with this id.
    #[error("there is no boot '{boot}'")]
    BootNotFound {
        /// The boot.
        boot: String,
    },
    /// There is no image to go back to.
    #[error("{what} '{name}' had nothing else set before")]
    NothingBefore {
        /// What sort of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// No such rollout.
    #[error("there is no rollout {rollout}")]
    RolloutNotFound {
        /// Its number.
        rollout: u64,
    },
    /// The rollout is over.
    #[error("rollout {rollout} is {state}")]
    RolloutOver {
        /// Its number.
        rollout: u64,
        /// How it ended.
        state: &'static str,
    },
    /// A node is in one rollout at a time.
    #[error("node '{node}' is in rollout {rollout}, which is not over")]
    InRollout {
        /// The node.
        node: NodeName,
        /// The rollout that it is in.
        rollout: u64,
    },
    /// Another node has the card.
    #[error("node '{node}' has the MAC address {mac} already")]
    MacTaken {
        /// The address.
        mac: MacAddress,
        /// Whose it is.
        node: NodeName,
    },
    /// Another node has what is to be one node's.
    #[error("node '{node}' has the {what} {value} already")]
    Taken {
        /// What sort of thing.
        what: &'static str,
        /// The thing.
        value: String,
        /// Whose it is.
        node: NodeName,
    },
    /// All names of the pattern are taken.
    #[error("all {count} names of '{pattern}' are taken")]
    NoNameLeft {
        /// The pattern.
        pattern: String,
        /// How many names it has.
        count: usize,
    },
    /// A profile would inherit from itself.
    #[error("profile '{profile}' cannot inherit from '{parent}', which inherits from it")]
    Cycle {
        /// The profile.
        profile: ProfileName,
        /// The parent it was to get.
        parent: ProfileName,
    },
    /// Profiles inherit from one another through too many.
    #[error("profile '{profile}' would inherit through more than {max} profiles")]
    TooDeep {
        /// The profile.
        profile: ProfileName,
        /// The limit.
        max: usize,
    },
    /// Something inherits from the profile.
    #[error("profile '{profile}' is in use by {}", list(holders))]
    ProfileInUse {
        /// The profile.
        profile: ProfileName,
        /// What needs it.
        holders: Vec<Holder>,
    },
    /// Something names the image.
    #[error("image '{image}' is in use by {}", list(holders))]
    ImageInUse {
        /// The image.
        image: ImageName,
        /// What needs it.
        holders: Vec<Holder>,
    },
    /// The settings of nodes or profiles name the tag.
    #[error("tag '{tag}' of image '{image}' is in use by {}", list(holders))]
    TagInUse {
        /// The image.
        image: ImageName,
        /// The tag.
        tag: TagName,
        /// What needs it.
        holders: Vec<Holder>,
    },
    /// No such import.
    #[error("there is no open import '{import}': it was committed, aborted, or it expired")]
    ImportNotFound {
        /// The import.
        import: String,
    },
    /// No such token.
    #[error("there is no token '{token}'")]
    TokenNotFound {
        /// The token.
        token: String,
    },
    /// The name is taken.
    #[error("there is already a {what} '{name}'")]
    Exists {
        /// What sort of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A table is full.
    #[error("there are already {max} {what}, which is the limit")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u32,
    },
    /// Something needs the version.
    #[error("version {image}:{version} is in use by {}", list(holders))]
    InUse {
        /// The image.
        image: ImageName,
        /// The version.
        version: VersionNumber,
        /// What needs it.
        holders: Vec<Holder>,
    },
    /// A row holds what this release cannot read.
    #[error("the catalog's {column} '{value}' cannot be read")]
    Corrupt {
        /// Which column.
        column: &'static str,
        /// What it holds.
        value: String,
    },
    /// The database failed.
    #[error("the catalog failed to {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
}

/// What needs a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A tag points at it.
    Tag(TagName),
    /// A volume was made from it.
    Volume(VolumeName),
    /// A node is to run it, or runs it.
    Node(NodeName),
    /// A profile names it.
    Profile(ProfileName),
    /// A rollout that is not over brings it to nodes.
    Rollout(u64),
    /// An initiator may read it over iSCSI.
    Initiator(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Volume(volume) => write!(f, "volume {volume}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Profile(profile) => write!(f, "profile {profile}"),
            Self::Rollout(rollout) => write!(f, "rollout {rollout}"),
            Self::Initiator(initiator) => write!(f, "initiator {initiator}"),
        }
    }
}

/// How many holders a message names.
const HOLDERS_NAMED_MAX: usize = 5;

fn list(holders: &[Holder]) -> String {
    let mut names: Vec<_> = holders.iter().map(ToString::to_string).collect();
    if names.len() > HOLDERS_NAMED_MAX {
        let more = names.len() - HOLDERS_NAMED_MAX;
        names.truncate(HOLDERS_NAMED_MAX);
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// Names what failed, for `map_err`.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> CatalogError {
    move |source| CatalogError::Database { doing, source }
}

/// Reads a column that is text in the database and a type here.
pub(crate) fn parse<T: std::str::FromStr>(
    column: &'static str,
    value: &str,
) -> Result<T, CatalogError> {
    value.parse().map_err(|_| CatalogError::Corrupt {
        column,
        value: value.chars().take(80).collect(),
    })
}

/// Reads a column that is a signed number in the database and unsigned here.
pub(crate) fn unsigned<T: TryFrom<i64>>(
    column: &'static str,
    value: i64,
) -> Result<T, CatalogError> {
    T::try_from(value).map_err(|_| CatalogError::Corrupt {
        column,
        value: value.to_string(),
    })
}

/// Reads a time.
pub(crate) fn time(column: &'static str, value_ms: i64) -> Result<jiff::Timestamp, CatalogError> {
    jiff::Timestamp::from_millisecond(value_ms).map_err(|_| CatalogError::Corrupt {
        column,
        value: value_ms.to_string(),
    })
}
