//! Sends chunks that the daemon lacks.

use rootstock_api::{
    Record,
    record::{IDS_MAX, RECORDS_BYTES_MAX},
};
use rootstock_core::{CHUNK_BYTES, ChunkId};
use rootstock_image::frame::Encoder;

use crate::{Client, ClientError};

/// Room that a record may need: a chunk that does not shrink, and its header.
const RECORD_BYTES_MAX: usize = CHUNK_BYTES as usize + 64;

/// Chunks to be offered to the daemon.
#[derive(Default)]
pub(super) struct Batch {
    ids: Vec<ChunkId>,
    /// The end of each chunk in `raw`.
    ends: Vec<usize>,
    raw: Vec<u8>,
}

impl Batch {
    pub(super) fn push(&mut self, id: ChunkId, raw: &[u8]) {
        self.ids.push(id);
        self.raw.extend_from_slice(raw);
        self.ends.push(self.raw.len());
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.raw.len()
    }

    fn raw(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.raw[start..self.ends[place]]
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.ends.clear();
        self.raw.clear();
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    /// Raw bytes of chunks that the daemon had.
    pub(super) known_bytes: u64,
    /// Bytes of the frames sent.
    pub(super) frame_bytes: u64,
}

/// Sends to one import.
pub(super) struct Sender<'a> {
    client: &'a Client,
    import: &'a str,
}

impl<'a> Sender<'a> {
    pub(super) fn new(client: &'a Client, import: &'a str) -> Self {
        Self { client, import }
    }

    /// Offers the batch, sends what is lacking, and empties it.
    pub(super) fn send(
        &self,
        encoder: &mut Encoder,
        batch: &mut Batch,
    ) -> Result<Sent, ClientError> {
        let mut sent = Sent::default();
        let mut body = Vec::new();
        for (group, ids) in batch.ids.chunks(IDS_MAX).enumerate() {
            let lacking = self.client.import_lacking(self.import, ids)?;
            for (bit, id) in ids.iter().enumerate() {
                let raw = batch.raw(group * IDS_MAX + bit);
                if !lacking.get(bit) {
                    sent.known_bytes += raw.len() as u64;
                    continue;
                }
                let frame = encoder.encode(*id, raw);
                sent.frame_bytes += frame.bytes.len() as u64;
                Record {
                    chunk: *id,
                    raw_bytes: frame.raw_bytes,
                    codec: frame.codec.to_byte(),
                    frame: &frame.bytes,
                }
                .write(&mut body);
                if body.len() + RECORD_BYTES_MAX > RECORDS_BYTES_MAX {
                    self.flush(&mut body)?;
                }
            }
        }
        self.flush(&mut body)?;
        batch.clear();
        Ok(sent)
    }

    fn flush(&self, body: &mut Vec<u8>) -> Result<(), ClientError> {
        if !body.is_empty() {
            let records = std::mem::take(body);
            self.client.import_chunks(self.import, records)?;
        }
        Ok(())
    }
}
