//! The format does not change unnoticed, and no bytes make its reader panic.

use std::{io::IoSlice, sync::Arc};

use proptest::prelude::*;

use super::{buffer::PackBuffer, read::contents, *};
use crate::objects::{MemoryObjects, Objects};

fn entry(raw: &[u8]) -> Entry {
    Entry {
        chunk: ChunkId::of(raw),
        frame: FrameId::of(raw),
        offset_bytes: 0,
        frame_bytes: raw.len() as u32,
        raw_bytes: raw.len() as u32,
        codec: Codec::Raw,
    }
}

/// A pack of these raw frames: its id and bytes.
fn pack(frames: &[&[u8]]) -> (PackId, Vec<u8>) {
    let buffer = PackBuffer::new(64, &Arc::default());
    for frame in frames {
        buffer.push(entry(frame), frame);
    }
    let trailer = buffer.trailer();
    let objects = MemoryObjects::new();
    buffer.put(&objects, trailer.id, &trailer.bytes).unwrap();
    let key = trailer.id.key();
    let len = objects.size(&key).unwrap() as usize;
    (
        trailer.id,
        objects.get_range(&key, 0, len).unwrap().to_vec(),
    )
}

fn read(id: PackId, bytes: &[u8]) -> Result<Vec<Entry>, crate::store::OpenError> {
    let objects = Arc::new(MemoryObjects::new());
    objects.put(&id.key(), &[IoSlice::new(bytes)]).unwrap();
    Ok(contents(&*objects, id, bytes.len() as u64)?.entries)
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let (id, bytes) = pack(&[b"first", b"second frame"]);
    assert_eq!(bytes.len(), 16 + (88 + 5) + (88 + 12) + 2 * 80 + 64);
    let record = &bytes[16..16 + 93];
    assert_eq!(&bytes[..16], b"RSTKPACK\x01\0\0\0\0\0\0\0");
    assert_eq!(&record[..4], b"RSTK");
    assert_eq!(&record[4..36], ChunkId::of(b"first").as_bytes());
    assert_eq!(&record[36..68], FrameId::of(b"first").as_bytes());
    assert_eq!(&record[68..80], &[5, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&record[80..88], &Digest::of(&record[..80]).as_bytes()[..8]);
    assert_eq!(&record[88..], b"first");
    let index = &bytes[209..209 + 160];
    assert_eq!(&index[..32], ChunkId::of(b"first").as_bytes());
    assert_eq!(
        &index[80 + 32..80 + 64],
        FrameId::of(b"second frame").as_bytes()
    );
    assert_eq!(
        &index[80 + 64..],
        &[109, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0]
    );
    let footer = &bytes[369..];
    assert_eq!(id.0, Digest::of(index));
    assert_eq!(&footer[..32], id.0.as_bytes());
    assert_eq!(
        &footer[32..48],
        &[209, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(&footer[48..56], &Digest::of(&footer[..48]).as_bytes()[..8]);
    assert_eq!(&footer[56..], b"RSTKPEND");
    assert_eq!(id.key(), format!("packs/{}/{id}", &id.to_string()[..2]));
    assert_eq!(PackId::from_key(&id.key()), Some(id));
    assert_eq!(PackId::from_key(&format!("packs/zz/{id}")), None);
}

#[test]
fn a_newer_format_is_refused_by_its_footer() {
    let (id, mut bytes) = pack(&[b"first"]);
    let footer = bytes.len() - FOOTER_BYTES;
    bytes[footer + 44] = 2;
    let checksum = checksum(&bytes[footer..footer + 48]);
    bytes[footer + 48..footer + 56].copy_from_slice(&checksum);
    let error = read(id, &bytes).unwrap_err().to_string();
    assert!(error.contains("has format 2"), "{error}");
}

#[test]
fn an_index_longer_than_the_first_read_is_read_whole() {
    let frames: Vec<[u8; 4]> = (0..1000_u32).map(u32::to_le_bytes).collect();
    let frames: Vec<&[u8]> = frames.iter().map(<[u8; 4]>::as_slice).collect();
    let (id, bytes) = pack(&frames);
    let entries = read(id, &bytes).unwrap();
    assert_eq!(entries.len(), 1000);
    assert_eq!(entries[999].chunk, ChunkId::of(frames[999]));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (id, mut bytes) = pack(&[b"first", b"second frame", b"RSTKRSTK"]);
        bytes.truncate(cut.index(bytes.len() + 1));
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes.extend(tail);
        for entry in read(id, &bytes).into_iter().flatten() {
            prop_assert!((entry.offset_bytes + entry.record_bytes()) as usize <= bytes.len());
        }
    }
}
