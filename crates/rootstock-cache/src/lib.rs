//! A machine's own disk: chunks in slots, and the table that says which are there.
//!
//! A slot holds one chunk, whatever version needs it, so that versions share what
//! they have in common and going back to an older one moves nothing. What a slot
//! holds is entered in the table only after it is durable, and a slot is written
//! again only after the table has durably forgotten it: whatever moment the power
//! is cut at, the table never names a chunk that is not there, whole.
//! docs/formats/cache.md has the bytes.
//!
//! Nothing here knows versions, servers or networks, nor which disk it is.

mod cache;
mod label;
mod slots;
mod table;

pub use cache::{Cache, CacheError, Extent, FormatError, OpenError, Put, PutError, Usage};
pub use label::{LABEL_BYTES, Label, LabelError, STATE_BYTES_MAX};
