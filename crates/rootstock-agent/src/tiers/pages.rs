//! Pages of a manifest, from wherever chunks come from.

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_image::manifest::PageSource;
use rootstock_store::ReadError;
use rootstock_volume::ChunkSource;

/// A source of pages.
pub(crate) struct Pages<'a, S>(pub(crate) &'a S);

impl<S: ChunkSource> PageSource for Pages<'_, S> {
    type Error = ReadError;
    type Bytes = Bytes;

    fn page(&self, id: ChunkId) -> Result<Bytes, ReadError> {
        self.0.read(id)
    }
}
