//! Records on their way to a machine, as frames and as deltas.

use std::{io, sync::Arc, vec};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use rootstock_api::{
    BINARY_MEDIA_TYPE, ProblemCode, Record,
    record::{CODEC_DELTA, RECORD_HEADER_BYTES},
};
use rootstock_core::{ChunkId, Digest};

use crate::{
    app::App,
    http::ApiError,
    recipes::{self, Index, Place},
};

/// Chunks that are read together and wait for the network.
const CHUNKS_AT_ONCE: usize = 4;

/// Records that a machine may have.
pub(super) struct Answer {
    wanted: Vec<Wanted>,
    len_bytes: u64,
    delta_count: u64,
    delta_bytes: u64,
    /// The recipe that the deltas are of.
    recipe: Option<Digest>,
}

/// A chunk that goes out, and in which form.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    id: ChunkId,
    delta: Option<Place>,
}

impl Answer {
    /// Looks where everything is. Deltas are sent for chunks that the recipe has.
    pub(super) fn of(app: &App, ids: &[ChunkId], recipe: Option<&Index>) -> Result<Self, ApiError> {
        let mut answer = Self {
            wanted: Vec::with_capacity(ids.len()),
            len_bytes: 0,
            delta_count: 0,
            delta_bytes: 0,
            recipe: recipe.map(Index::root),
        };
        for id in ids {
            let delta = recipe.and_then(|recipe| recipe.place(*id));
            let body_bytes = match delta {
                Some(place) => {
                    answer.delta_count += 1;
                    answer.delta_bytes += u64::from(place.len_bytes);
                    place.len_bytes
                }
                None => app.store.frame_bytes(*id).ok_or_else(|| lost(*id))?,
            };
            answer.len_bytes += RECORD_HEADER_BYTES as u64 + u64::from(body_bytes);
            answer.wanted.push(Wanted { id: *id, delta });
        }
        Ok(answer)
    }

    /// Sends them as the packs have them; a machine that takes them slowly holds a
    /// few at a time.
    pub(super) fn send(self, app: Arc<App>) -> Response {
        let count = self.wanted.len() as u64;
        app.metrics.chunks_served(count, self.len_bytes);
        app.metrics
            .deltas_served(self.delta_count, self.delta_bytes);
        let len_bytes = self.len_bytes;
        let batches = self.wanted.chunks(CHUNKS_AT_ONCE).map(<[_]>::to_vec);
        let sender = Sender {
            app,
            batches: batches.collect::<Vec<_>>().into_iter(),
            ready: Vec::new().into_iter(),
            recipe: self.recipe,
            piece: None,
        };
        let records = stream::unfold(sender, |mut sender| async move {
            let part = sender.next().await?;
            Some((part, sender))
        });
        let mut response = Body::from_stream(records).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(BINARY_MEDIA_TYPE),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len_bytes));
        response
    }
}

fn lost(id: ChunkId) -> ApiError {
    ApiError::new(ProblemCode::ChunkNotFound, format!("chunk {id} is lost"))
}

/// Reads records as they are taken.
struct Sender {
    app: Arc<App>,
    batches: vec::IntoIter<Vec<Wanted>>,
    ready: vec::IntoIter<Bytes>,
    recipe: Option<Digest>,
    /// The piece that the last delta was in: neighbours share it.
    piece: Option<(ChunkId, Bytes)>,
}

/// What a batch came to: parts of the body, and the piece that was read last.
type Read = (Vec<Bytes>, Option<(ChunkId, Bytes)>);

/// Why a batch was not read.
enum Unread {
    Frame(ApiError),
    Delta(ApiError),
}

impl Sender {
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if let Some(part) = self.ready.next() {
                return Some(Ok(part));
            }
            let batch = self.batches.next()?;
            let piece = self.piece.take();
            let read = self.app.blocking(move |app| Ok(read(app, &batch, piece)));
            let unread = match read.await {
                Ok(Ok((parts, piece))) => {
                    self.ready = parts.into_iter();
                    self.piece = piece;
                    continue;
                }
                Ok(Err(unread)) => unread,
                Err(error) => Unread::Frame(error),
            };
            // The head has gone out: all that is left is to break off.
            return Some(Err(self.break_off(unread).await));
        }
    }

    /// A recipe that cannot be read is given up, so that the machine gets frames
    /// when it asks again.
    async fn break_off(&self, unread: Unread) -> io::Error {
        match (unread, self.recipe) {
            (Unread::Delta(error), Some(root)) => recipes::give_up(&self.app, root, &error).await,
            (Unread::Frame(error) | Unread::Delta(error), _) => {
                tracing::error!(detail = error.0.detail, "chunks of a node not read");
            }
        }
        io::Error::other("a chunk cannot be read")
    }
}

fn read(app: &App, batch: &[Wanted], mut piece: Option<(ChunkId, Bytes)>) -> Result<Read, Unread> {
    let mut parts = Vec::with_capacity(2 * batch.len());
    for wanted in batch {
        let id = wanted.id;
        let (raw_bytes, codec, bytes) = match wanted.delta {
            None => {
                let frame = app.store.frame(id);
                let frame = frame.map_err(|error| Unread::Frame(error.into()))?;
                (frame.raw_bytes, frame.codec.to_byte(), frame.bytes)
            }
            Some(place) => {
                let bytes = delta(app, place, &mut piece).map_err(Unread::Delta)?;
                let raw_bytes = app.store.raw_bytes(id);
                let raw_bytes = raw_bytes.ok_or_else(|| Unread::Frame(lost(id)))?;
                (raw_bytes, CODEC_DELTA, bytes)
            }
        };
        let record = Record {
            chunk: id,
            raw_bytes,
            codec,
            frame: &bytes,
        };
        parts.push(Bytes::copy_from_slice(&record.header()));
        parts.push(bytes);
    }
    Ok((parts, piece))
}

/// A delta out of its piece, which is read unless it is the last one's.
fn delta(app: &App, place: Place, piece: &mut Option<(ChunkId, Bytes)>) -> Result<Bytes, ApiError> {
    if let Some((id, bytes)) = piece
        && *id == place.piece
    {
        return place.of(bytes);
    }
    let bytes = app.store.read(place.piece)?;
    let (_, bytes) = piece.insert((place.piece, bytes));
    place.of(bytes)
}
