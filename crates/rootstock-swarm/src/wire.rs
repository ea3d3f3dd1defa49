//! What members say to each other, and how it is written: docs/formats/peer.md.
//!
//! A message is its length, its kind and its members, little-endian. A kind that is not
//! known is passed over, so that a newer neighbour may say more; a known one that makes
//! no sense ends the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf as _, Bytes, BytesMut};
use rootstock_core::{ChunkId, Digest, PeerId};

#[cfg(test)]
mod tests;

/// How a connection begins, in both directions.
pub const MAGIC: [u8; 8] = *b"RSpeer\r\n";

/// The version of what follows.
pub const VERSION: u16 = 1;

/// The longest message after its length, in bytes.
pub const MESSAGE_BYTES_MAX: usize = (64 << 10) + 64;

/// The longest piece of a chunk, in bytes.
pub const PIECE_BYTES_MAX: usize = 64 << 10;

/// The most numbers in one message.
pub const NUMBERS_MAX: usize = 4096;

/// The most bytes of a bitmap in one message.
pub const BITS_BYTES_MAX: usize = 32 << 10;

/// The most members in one message.
pub const PEERS_MAX: usize = 64;

/// The longest label of a rack, in bytes.
pub const RACK_BYTES_MAX: usize = 64;

/// The largest chunk, raw or as a frame, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;

/// How much a chunk is waited for; a greater one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nobody waits: a disk is filled, copies are repaired.
    Bulk,
    /// A boot is about to read it.
    Boot,
    /// Somebody's program waits for it.
    User,
}

/// Why a chunk is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not here.
    Lacking,
    /// Too much was asked for already.
    Busy,
    /// It was on its way, and what came was not it.
    Broken,
    /// Others near the one who asks have it.
    Elsewhere,
}

/// Who begins to talk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Who it is.
    pub id: PeerId,
    /// Its rack.
    pub rack: String,
    /// The port at which it serves others; 0 when it does not.
    pub port: u16,
    /// Whether it is a head.
    pub is_head: bool,
}

/// A member that somebody knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub id: PeerId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its rack.
    pub rack: String,
    /// Whether it is a head.
    pub is_head: bool,
    /// Seconds since it gave a sign of life.
    pub age_seconds: u16,
}

/// A message; `P` is bytes of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<P = Bytes> {
    /// The first one.
    Hello(Hello),
    /// From now on `slot` stands for this version.
    Version {
        /// A number of the sender's.
        slot: u8,
        /// The manifest's id.
        version: Digest,
        /// Chunks and pages of it.
        chunks: u32,
    },
    /// The sender holds those of a version whose bits are set.
    Held {
        /// The version.
        slot: u8,
        /// The number of the first bit, a multiple of eight.
        first: u32,
        /// A bit for each chunk, least first.
        bits: Vec<u8>,
    },
    /// It holds these now, or has begun to receive them.
    Gained {
        /// The version.
        slot: u8,
        /// Numbers of chunks.
        numbers: Vec<u32>,
    },
    /// It holds these no more.
    Lost {
        /// The version.
        slot: u8,
        /// Numbers of chunks.
        numbers: Vec<u32>,
    },
    /// Asks for a chunk.
    Ask {
        /// The number of this question.
        request: u32,
        /// Which.
        chunk: ChunkId,
        /// How much it is waited for.
        class: Class,
        /// Whether to be sent elsewhere is no answer.
        insists: bool,
    },
    /// A question is over.
    Cancel {
        /// Its number.
        request: u32,
    },
    /// The answer begins.
    Begin {
        /// To this question.
        request: u32,
        /// How it is encoded: the codec of docs/formats/frame.md.
        codec: u8,
        /// Bytes of the chunk.
        raw_bytes: u32,
        /// Bytes that come.
        wire_bytes: u32,
    },
    /// The next bytes of an answer.
    Piece {
        /// To this question.
        request: u32,
        /// They.
        data: P,
    },
    /// There is no answer.
    Refuse {
        /// To this question.
        request: u32,
        /// Why.
        why: Refusal,
        /// Who may have it.
        hint: Option<PeerId>,
    },
    /// How long a chunk that nobody waits for would wait here by now.
    Load {
        /// In milliseconds.
        delay_ms: u32,
    },
    /// Members that the sender knows of.
    Peers(Vec<Known>),
}

/// What came makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It does not begin as it must.
    #[error("it does not speak the peers' protocol")]
    Magic,
    /// It speaks another version.
    #[error("it speaks version {version} of the peers' protocol, not {VERSION}")]
    Version {
        /// Which.
        version: u16,
    },
    /// A message is longer than any may be.
    #[error("a message of {len} bytes: there is none over {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A message of a known kind makes no sense.
    #[error("a message of kind {kind} is malformed")]
    Malformed {
        /// Its kind.
        kind: u8,
    },
}

const HELLO: u8 = 1;
const OF_VERSION: u8 = 2;
const HELD: u8 = 3;
const GAINED: u8 = 4;
const LOST: u8 = 5;
const ASK: u8 = 6;
const CANCEL: u8 = 8;
const BEGIN: u8 = 9;
const PIECE: u8 = 10;
const REFUSE: u8 = 11;
const LOAD: u8 = 12;
const PEERS: u8 = 13;

/// Bytes of the length and the kind.
const HEADER_BYTES: usize = 5;

/// What a connection begins with.
#[must_use]
pub fn preface() -> [u8; 10] {
    let mut preface = [0; 10];
    preface[..8].copy_from_slice(&MAGIC);
    preface[8..].copy_from_slice(&VERSION.to_le_bytes());
    preface
}

/// Takes the preface from what came; whether it was all there.
///
/// # Errors
/// When it is not the preface, or of another version.
pub fn take_preface(input: &mut BytesMut) -> Result<bool, WireError> {
    let magic = input.len().min(MAGIC.len());
    if input[..magic] != MAGIC[..magic] {
        return Err(WireError::Magic);
    }
    if input.len() < 10 {
        return Ok(false);
    }
    input.advance(MAGIC.len());
    match input.get_u16_le() {
        VERSION => Ok(true),
        version => Err(WireError::Version { version }),
    }
}

impl Message<Bytes> {
    /// Appends the message; the bytes of a piece are given back, to follow it.
    #[must_use = "the bytes of a piece have to follow"]
    pub fn encode(&self, out: &mut Vec<u8>) -> Option<Bytes> {
        let at = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let (kind, data) = self.write(out);
        let more = data.as_ref().map_or(0, Bytes::len);
        let len = (out.len() - at - 4 + more) as u32;
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
        out[at + 4] = kind;
        data
    }

    fn write(&self, out: &mut Vec<u8>) -> (u8, Option<Bytes>) {
        let kind = match self {
            Self::Hello(hello) => {
                put_u64(out, hello.id.0);
                out.extend_from_slice(&hello.port.to_le_bytes());
                out.push(u8::from(hello.is_head));
                put_text(out, &hello.rack);
                HELLO
            }
            Self::Version {
                slot,
                version,
                chunks,
            } => {
                out.push(*slot);
                out.extend_from_slice(version.as_bytes());
                put_u32(out, *chunks);
                OF_VERSION
            }
            Self::Held { slot, first, bits } => {
                out.push(*slot);
                put_u32(out, *first);
                out.extend_from_slice(bits);
                HELD
            }
            Self::Gained { slot, numbers } => {
                put_numbers(out, *slot, numbers);
                GAINED
            }
            Self::Lost { slot, numbers } => {
                put_numbers(out, *slot, numbers);
                LOST
            }
            Self::Ask {
                request,
                chunk,
                class,
                insists,
            } => {
                put_u32(out, *request);
                out.push(*class as u8);
                out.push(u8::from(*insists));
                out.extend_from_slice(chunk.as_bytes());
                ASK
            }
            Self::Cancel { request } => {
                put_u32(out, *request);
                CANCEL
            }
            Self::Begin {
                request,
                codec,
                raw_bytes,
                wire_bytes,
            } => {
                put_u32(out, *request);
                out.push(*codec);
                put_u32(out, *raw_bytes);
                put_u32(out, *wire_bytes);
                BEGIN
            }
            Self::Piece { request, data } => {
                put_u32(out, *request);
                return (PIECE, Some(data.clone()));
            }
            Self::Refuse { request, why, hint } => {
                put_u32(out, *request);
                out.push(*why as u8);
                put_u64(out, hint.map_or(0, |peer| peer.0));
                REFUSE
            }
            Self::Load { delay_ms } => {
                put_u32(out, *delay_ms);
                LOAD
            }
            Self::Peers(peers) => {
                peers.iter().for_each(|peer| put_known(out, peer));
                PEERS
            }
        };
        (kind, None)
    }

    /// Takes the next message from what came, once all of it is there. Kinds that are
    /// not known are passed over.
    ///
    /// # Errors
    /// When it makes no sense: nothing more can be read then.
    pub fn take(input: &mut BytesMut) -> Result<Option<Self>, WireError> {
        loop {
            let Some(length) = input.first_chunk::<4>() else {
                return Ok(None);
            };
            let len = u32::from_le_bytes(*length) as usize;
            if len > MESSAGE_BYTES_MAX {
                return Err(WireError::TooLong { len });
            }
            if input.len() < 4 + len {
                input.reserve(4 + len - input.len());
                return Ok(None);
            }
            input.advance(4);
            let mut body = input.split_to(len).freeze();
            if body.is_empty() {
                return Err(WireError::Malformed { kind: 0 });
            }
            let kind = body.get_u8();
            if (HELLO..=PEERS).contains(&kind) {
                let message = read(kind, body).ok_or(WireError::Malformed { kind })?;
                return Ok(Some(message));
            }
        }
    }
}

fn read(kind: u8, mut body: Bytes) -> Option<Message> {
    let input = &mut body;
    let message = match kind {
        HELLO => Message::Hello(Hello {
            id: PeerId(input.try_get_u64_le().ok()?),
            port: input.try_get_u16_le().ok()?,
            is_head: flag(input)?,
            rack: text(input)?,
        }),
        OF_VERSION => Message::Version {
            slot: input.try_get_u8().ok()?,
            version: Digest::from_bytes(array(input)?),
            chunks: input.try_get_u32_le().ok()?,
        },
        HELD => {
            let (slot, first) = (input.try_get_u8().ok()?, input.try_get_u32_le().ok()?);
            let bits = input.split_off(0).to_vec();
            let is_right = first.is_multiple_of(8) && bits.len() <= BITS_BYTES_MAX;
            return is_right.then_some(Message::Held { slot, first, bits });
        }
        GAINED => {
            let (slot, numbers) = numbers(input)?;
            Message::Gained { slot, numbers }
        }
        LOST => {
            let (slot, numbers) = numbers(input)?;
            Message::Lost { slot, numbers }
        }
        ASK => Message::Ask {
            request: input.try_get_u32_le().ok()?,
            class: class(input)?,
            insists: flag(input)?,
            chunk: ChunkId::from_bytes(array(input)?),
        },
        CANCEL => Message::Cancel {
            request: input.try_get_u32_le().ok()?,
        },
        BEGIN => Message::Begin {
            request: input.try_get_u32_le().ok()?,
            codec: input.try_get_u8().ok()?,
            raw_bytes: input.try_get_u32_le().ok()?,
            wire_bytes: input.try_get_u32_le().ok()?,
        },
        PIECE => {
            let request = input.try_get_u32_le().ok()?;
            let data = body;
            let is_right = !data.is_empty() && data.len() <= PIECE_BYTES_MAX;
            return is_right.then_some(Message::Piece { request, data });
        }
        REFUSE => Message::Refuse {
            request: input.try_get_u32_le().ok()?,
            why: refusal(input)?,
            hint: match input.try_get_u64_le().ok()? {
                0 => None,
                id => Some(PeerId(id)),
            },
        },
        LOAD => Message::Load {
            delay_ms: input.try_get_u32_le().ok()?,
        },
        PEERS => {
            let mut peers = Vec::new();
            while !input.is_empty() {
                peers.push(known(input)?);
            }
            (peers.len() <= PEERS_MAX).then_some(Message::Peers(peers))?
        }
        _ => return None,
    };
    // A newer neighbour may append members to what is known.
    Some(message)
}

fn array<const N: usize>(input: &mut Bytes) -> Option<[u8; N]> {
    let mut array = [0; N];
    input.try_copy_to_slice(&mut array).ok()?;
    Some(array)
}

fn flag(input: &mut Bytes) -> Option<bool> {
    match input.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn class(input: &mut Bytes) -> Option<Class> {
    [Class::Bulk, Class::Boot, Class::User]
        .get(usize::from(input.try_get_u8().ok()?))
        .copied()
}

fn refusal(input: &mut Bytes) -> Option<Refusal> {
    [
        Refusal::Lacking,
        Refusal::Busy,
        Refusal::Broken,
        Refusal::Elsewhere,
    ]
    .get(usize::from(input.try_get_u8().ok()?))
    .copied()
}

fn text(input: &mut Bytes) -> Option<String> {
    let len = usize::from(input.try_get_u8().ok()?);
    if len > RACK_BYTES_MAX || input.len() < len {
        return None;
    }
    String::from_utf8(input.split_to(len).to_vec()).ok()
}

fn numbers(input: &mut Bytes) -> Option<(u8, Vec<u32>)> {
    let slot = input.try_get_u8().ok()?;
    if !input.len().is_multiple_of(4) || input.len() / 4 > NUMBERS_MAX {
        return None;
    }
    let mut numbers = Vec::with_capacity(input.len() / 4);
    while !input.is_empty() {
        numbers.push(input.get_u32_le());
    }
    Some((slot, numbers))
}

fn known(input: &mut Bytes) -> Option<Known> {
    let id = PeerId(input.try_get_u64_le().ok()?);
    let is_head = flag(input)?;
    let age_seconds = input.try_get_u16_le().ok()?;
    let address = IpAddr::from(Ipv6Addr::from(array::<16>(input)?)).to_canonical();
    let port = input.try_get_u16_le().ok()?;
    let rack = text(input)?;
    Some(Known {
        id,
        address: SocketAddr::new(address, port),
        rack,
        is_head,
        age_seconds,
    })
}

fn put_known(out: &mut Vec<u8>, known: &Known) {
    put_u64(out, known.id.0);
    out.push(u8::from(known.is_head));
    out.extend_from_slice(&known.age_seconds.to_le_bytes());
    let address = match known.address.ip() {
        IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address),
        IpAddr::V6(address) => address,
    };
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&known.address.port().to_le_bytes());
    put_text(out, &known.rack);
}

fn put_numbers(out: &mut Vec<u8>, slot: u8, numbers: &[u32]) {
    out.push(slot);
    numbers.iter().for_each(|number| put_u32(out, *number));
}

/// Texts are checked where they come from: what is longer is cut.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(RACK_BYTES_MAX)];
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
