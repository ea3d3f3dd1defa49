//! What exists: images, versions, tags, volumes, imports and tokens.
//!
//! The one crate that knows SQL. It keeps rows and their rules: version numbers
//! are never used twice, a version that a tag or a volume needs is not deleted,
//! a commit is one transaction. It knows nothing of chunks: a manifest is an id
//! to it, facts are text, a pack is a name. Statements keep to what SQLite and
//! PostgreSQL share. Time comes from the caller.

mod error;
mod images;
mod imports;
mod schema;
mod tokens;
mod versions;
mod volumes;

pub use error::{CatalogError, Holder, OpenError};
pub use images::{HISTORY_LIST_MAX, HistoryRow, ImageRow, TagRow};
pub use imports::{IMPORTS_MAX, ImportRow, NewImport};
pub use schema::{Catalog, SCHEMA_VERSION};
pub use tokens::{Role, TOKENS_MAX, TokenRow};
pub use versions::{AddedVersion, NewVersion, VERSIONS_MAX, VersionRow};
pub use volumes::{NewVolume, VOLUMES_MAX, VolumeRow, VolumeState};
