//! Arbitrary bytes as frames.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use rootstock_core::ChunkId;
use rootstock_image::frame::{Codec, Decoder, Encoder, FRAME_BYTES_MAX, Frame};

thread_local! {
    static CODERS: RefCell<(Encoder, Decoder)> = RefCell::new((Encoder::new(), Decoder::new()));
}

// The first five bytes are the codec and the claimed length.
fuzz_target!(|data: &[u8]| {
    let Some((head, bytes)) = data.split_first_chunk::<5>() else {
        return;
    };
    let [codec, len @ ..] = *head;
    let raw_bytes = u32::from_le_bytes(len);
    CODERS.with_borrow_mut(|(encoder, decoder)| {
        if let Some(codec) = Codec::from_byte(codec) {
            let chunk = ChunkId::of(bytes);
            let frame = Frame {
                chunk,
                raw_bytes,
                codec,
                bytes: bytes.to_vec(),
            };
            let bounds = frame.check_bounds();
            if let Ok(raw) = decoder.decode(chunk, raw_bytes, codec, bytes) {
                assert!(bounds.is_ok());
                assert_eq!(raw.len(), raw_bytes as usize);
                assert_eq!(ChunkId::of(&raw), chunk);
            }
        }
        if (1..=FRAME_BYTES_MAX).contains(&bytes.len()) {
            let frame = encoder.encode(ChunkId::of(bytes), bytes);
            let back = decoder.decode(frame.chunk, frame.raw_bytes, frame.codec, &frame.bytes);
            assert_eq!(back.as_deref(), Ok(bytes));
        }
    });
});
