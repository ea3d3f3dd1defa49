//! Sends chunks that the daemon lacks.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rootstock_api::{
    Record,
    record::{IDS_MAX, RECORD_HEADER_BYTES, RECORDS_BYTES_MAX},
};
use rootstock_core::{CHUNK_BYTES, ChunkId};
use rootstock_image::frame::Encoder;

use super::turns::Turns;
use crate::{Client, ClientError};

/// Room that a record may need: a chunk that does not shrink, and its header.
const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + CHUNK_BYTES as usize;

/// Bytes of a body at most: a batch of chunks that do not shrink.
const BODY_BYTES_MAX: usize = super::BATCH_BYTES_MAX as usize + (1 << 20);
const _: () = assert!(BODY_BYTES_MAX <= RECORDS_BYTES_MAX);

/// A chunk to be offered to the daemon.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) id: ChunkId,
    /// Where it is in the batch's raw bytes.
    pub(super) place: Range<usize>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    /// Raw bytes of chunks that the daemon had.
    pub(super) known_bytes: u64,
    /// Bytes of the frames sent.
    pub(super) frame_bytes: u64,
}

/// Sends to one import; one for each thread.
pub(super) struct Sender<'a> {
    client: &'a Client,
    import: &'a str,
    turns: &'a Turns,
    encoder: Encoder,
    body: Body,
}

impl<'a> Sender<'a> {
    pub(super) fn new(client: &'a Client, import: &'a str, turns: &'a Turns) -> Self {
        Self {
            client,
            import,
            turns,
            encoder: Encoder::new(),
            body: Body::default(),
        }
    }

    /// Offers chunks of `raw`, and sends those that are lacking.
    pub(super) fn send(&mut self, raw: &[u8], offers: &[Offer]) -> Result<Sent, ClientError> {
        let mut sent = Sent::default();
        for offers in offers.chunks(IDS_MAX) {
            let ids: Vec<ChunkId> = offers.iter().map(|offer| offer.id).collect();
            let lacking = self.client.import_lacking(self.import, &ids)?;
            let mut turn = self.turns.take();
            for (bit, offer) in offers.iter().enumerate() {
                let raw = &raw[offer.place.clone()];
                if !lacking.get(bit) {
                    sent.known_bytes += raw.len() as u64;
                    continue;
                }
                if self.body.room().len() < RECORD_BYTES_MAX {
                    drop(turn);
                    self.flush()?;
                    turn = self.turns.take();
                }
                sent.frame_bytes += self.body.push(&mut self.encoder, offer.id, raw);
            }
        }
        self.flush()?;
        Ok(sent)
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let Some((whole, records)) = self.body.take() else {
            return Ok(());
        };
        self.client.import_chunks(self.import, &records)?;
        self.body.give_back(whole);
        Ok(())
    }
}

/// Records that are written where they are sent from. Its memory is used again
/// and again: fresh pages cost as much as copying them does.
#[derive(Default)]
struct Body {
    memory: BytesMut,
    len_bytes: usize,
}

impl Body {
    fn room(&mut self) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = BytesMut::zeroed(BODY_BYTES_MAX);
        }
        &mut self.memory[self.len_bytes..]
    }

    /// Appends the record of a chunk; answers its frame's length.
    fn push(&mut self, encoder: &mut Encoder, id: ChunkId, raw: &[u8]) -> u64 {
        let (header, frame) = self.room().split_at_mut(RECORD_HEADER_BYTES);
        let (codec, frame_bytes) = encoder.encode_to(raw, frame);
        let record = Record {
            chunk: id,
            raw_bytes: raw.len() as u32,
            codec: codec.to_byte(),
            frame: &frame[..frame_bytes],
        };
        header.copy_from_slice(&record.header());
        self.len_bytes += record.len_bytes();
        frame_bytes as u64
    }

    /// All memory, and the records in it; `None` when there are none.
    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        let len_bytes = std::mem::take(&mut self.len_bytes);
        if len_bytes == 0 {
            return None;
        }
        let whole = std::mem::take(&mut self.memory).freeze();
        let records = whole.slice(..len_bytes);
        Some((whole, records))
    }

    /// Takes the memory back once it is sent, if nobody holds it any more.
    fn give_back(&mut self, whole: Bytes) {
        if let Ok(memory) = whole.try_into_mut() {
            self.memory = memory;
        }
    }
}
