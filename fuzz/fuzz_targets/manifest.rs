//! Arbitrary bytes as manifests, as pages below them, and as seals.

#![no_main]

use std::cell::Cell;

use libfuzzer_sys::fuzz_target;
use rootstock_core::ChunkId;
use rootstock_image::{
    manifest::{Descend, Manifest, NoSuchPage, Page, PageSource, Visit, diff},
    seal::Seal,
};

/// The most pages that one walk is given.
const PAGES_MAX: u32 = 64;

// The first two bytes say where the manifest ends and a page begins.
fuzz_target!(|data: &[u8]| {
    if let Ok(seal) = Seal::decode(data) {
        assert_eq!(seal.encode(), data, "a seal has one encoding");
    }
    let Some((split, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let at = usize::from(u16::from_le_bytes(*split)).min(rest.len());
    let (document, page) = rest.split_at(at);
    if let Ok(page) = Page::decode(page) {
        assert_eq!(page.encode(), rest[at..], "a page has one encoding");
    }
    let Ok(manifest) = Manifest::decode(document) else {
        return;
    };
    assert_eq!(manifest.encode(), document, "a manifest has one encoding");
    let chunk_count = manifest.grid().chunk_count();
    let mut next = 0;
    let _ = manifest.walk(&Pages::new(page), |visit| {
        if let Visit::Chunk { index, .. } = visit {
            assert!((next..chunk_count).contains(&index), "chunks are in order");
            next = index + 1;
        }
        Descend::Into
    });
    for index in [0, chunk_count / 2, chunk_count - 1, chunk_count] {
        let found = manifest.leaf(&Pages::new(page), index);
        assert!(index < chunk_count || found.is_err());
        if let Ok(leaf) = found {
            assert!(leaf.chunks().contains(&index));
        }
    }
    let zero = Manifest::zero(manifest.grid().clone());
    let _ = diff(&zero, &manifest, &Pages::new(page), |_| ());
});

/// Gives the same bytes for every page, a limited number of times.
struct Pages<'a> {
    bytes: &'a [u8],
    left: Cell<u32>,
}

impl<'a> Pages<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            left: Cell::new(PAGES_MAX),
        }
    }
}

impl<'a> PageSource for Pages<'a> {
    type Error = NoSuchPage;
    type Bytes = &'a [u8];

    fn page(&self, _: ChunkId) -> Result<&'a [u8], NoSuchPage> {
        let left = self.left.get().checked_sub(1).ok_or(NoSuchPage)?;
        self.left.set(left);
        Ok(self.bytes)
    }
}
