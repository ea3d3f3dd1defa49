//! Arbitrary bytes as deltas, recipes and their pages, and chunks that get deltas.

#![no_main]

use std::{cell::RefCell, convert::Infallible};

use libfuzzer_sys::fuzz_target;
use rootstock_core::ChunkId;
use rootstock_image::{
    frame::Encoder,
    recipe::{Delta, Finder, Rebuilder, Recipe, RecipePage, SOURCES_MAX},
};

thread_local! {
    static CODERS: RefCell<(Encoder, Rebuilder)> = RefCell::new((Encoder::new(), Rebuilder::new()));
}

// The first byte says what the others are, the next three how long the chunk is.
fuzz_target!(|data: &[u8]| {
    let Some(([kind, a, b, c], bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let raw_bytes = u32::from_le_bytes([*a, *b, *c, 0]);
    match kind % 4 {
        0 => delta(bytes, raw_bytes),
        1 => {
            if let Ok(recipe) = Recipe::decode(bytes) {
                assert_eq!(recipe.encode(), bytes);
            }
        }
        2 => {
            if let Ok(page) = RecipePage::decode(bytes) {
                assert_eq!(page.encode(), bytes);
            }
        }
        _ => found(bytes, raw_bytes as usize),
    }
});

/// Whatever is accepted makes a chunk of its length out of any sources, or an error.
fn delta(bytes: &[u8], raw_bytes: u32) {
    let Ok(delta) = Delta::decode(bytes, raw_bytes) else {
        return;
    };
    assert!(delta.sources().len() <= SOURCES_MAX);
    let source = vec![7; 1 << 18];
    CODERS.with_borrow_mut(|(_, rebuilder)| {
        let lookup = |_| Ok::<_, Infallible>(&source);
        assert!(rebuilder.rebuild(ChunkId::ZERO, &delta, lookup).is_err());
    });
}

/// A delta that is made rebuilds its chunk.
fn found(bytes: &[u8], at: usize) {
    let (source, raw) = bytes.split_at(at.min(bytes.len()));
    let (source, raw) = (source.repeat(64), raw.repeat(64));
    let source = &source[..source.len().min(1 << 18)];
    let raw = &raw[..raw.len().min(1 << 18)];
    let (id, chunk) = (ChunkId::of(source), ChunkId::of(raw));
    let mut finder = Finder::new();
    finder.want(raw);
    finder.search(id, source);
    CODERS.with_borrow_mut(|(encoder, rebuilder)| {
        let Some(bytes) = finder.delta(raw, encoder) else {
            return;
        };
        // One with many operations and literals may be longer than any frame.
        let Ok(delta) = Delta::decode(&bytes, raw.len() as u32) else {
            assert!(bytes.len() > 1 << 18);
            return;
        };
        assert_eq!(delta.sources(), [id]);
        let lookup = |_| Ok::<_, Infallible>(source);
        let rebuilt = rebuilder.rebuild(chunk, &delta, lookup);
        assert_eq!(rebuilt.expect("is rebuilt"), raw);
    });
}
