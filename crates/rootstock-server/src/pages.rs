//! Manifests in the store: root documents and pages are chunks like any other.

use bytes::Bytes;
use rootstock_api::ProblemCode;
use rootstock_core::{ChunkId, Digest};
use rootstock_image::manifest::{LookupError, Manifest, PageSource};
use rootstock_store::{ChunkStore, ReadError};

use crate::http::{ApiError, chain};

/// The store as the source of a manifest's pages.
pub(crate) struct StorePages<'a>(pub(crate) &'a ChunkStore);

impl PageSource for StorePages<'_> {
    type Error = ReadError;
    type Bytes = Bytes;

    fn page(&self, id: ChunkId) -> Result<Bytes, ReadError> {
        self.0.read(id)
    }
}

/// The manifest of a version.
pub(crate) fn manifest(store: &ChunkStore, id: Digest) -> Result<Manifest, ApiError> {
    let bytes = store.read(ChunkId(id)).map_err(|error| match error {
        // A version's own manifest was there when the version was made.
        ReadError::Missing { .. } => ApiError::damaged(format!("manifest {id} is lost")),
        error => error.into(),
    })?;
    Manifest::decode(&bytes).map_err(|error| {
        let detail = format!("manifest {id} cannot be used: {}", chain(&error));
        ApiError::new(ProblemCode::BadManifest, detail)
    })
}

impl From<LookupError<ReadError>> for ApiError {
    fn from(error: LookupError<ReadError>) -> Self {
        match error {
            LookupError::Source { source, .. } => source.into(),
            error => Self::new(ProblemCode::BadManifest, chain(&error)),
        }
    }
}
