//! Manifests held against a plain list of chunk ids.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
};

use proptest::prelude::*;
use rootstock_core::{ChunkId, units::CHUNK_BYTES};

use super::*;
use crate::grid::tests::grid_of;

/// Pages in memory; counts what is read.
#[derive(Default)]
struct Pages {
    pages: RefCell<HashMap<ChunkId, Vec<u8>>>,
    reads: RefCell<Vec<ChunkId>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no such page")]
struct Missing;

impl PageSource for Pages {
    type Error = Missing;
    type Bytes = Vec<u8>;

    fn page(&self, id: ChunkId) -> Result<Vec<u8>, Missing> {
        self.reads.borrow_mut().push(id);
        self.pages.borrow().get(&id).cloned().ok_or(Missing)
    }
}

impl Pages {
    fn finish<P: PageSource>(&self, builder: ManifestBuilder<P>) -> (Manifest, usize) {
        let mut written = 0;
        let manifest = builder
            .finish(|id, bytes| {
                assert_eq!(id, ChunkId::of(bytes));
                assert!(bytes.len() as u64 <= CHUNK_BYTES);
                written += 1;
                self.pages.borrow_mut().insert(id, bytes.to_vec());
                Ok::<(), Infallible>(())
            })
            .expect("the parent's pages are all there");
        (manifest, written)
    }

    fn walk(&self, manifest: &Manifest) -> (BTreeSet<ChunkId>, BTreeMap<u64, ChunkId>) {
        let (mut pages, mut chunks) = (BTreeSet::new(), BTreeMap::new());
        manifest
            .walk(self, |visit| {
                match visit {
                    Visit::Page { id, .. } => drop(pages.insert(id)),
                    Visit::Chunk { index, id } => drop(chunks.insert(index, id)),
                }
                Descend::Into
            })
            .expect("walks");
        (pages, chunks)
    }

    fn diff(&self, older: &Manifest, newer: &Manifest) -> (Vec<ChunkId>, Vec<Difference>) {
        let (mut pages, mut chunks) = (Vec::new(), Vec::new());
        diff(older, newer, self, |change| match change {
            Change::Page { id } => pages.push(id),
            Change::Chunk { index, old, new } => chunks.push((index, old, new)),
        })
        .expect("compares");
        (pages, chunks)
    }
}

type Difference = (u64, Option<ChunkId>, ChunkId);

fn id(seed: u8) -> ChunkId {
    match seed {
        0 => ChunkId::ZERO,
        seed => ChunkId::of(&[seed]),
    }
}

/// A table, a region of one chunk, one of three pages, one that ends early.
fn grid() -> Grid {
    grid_of(&[
        3 * CHUNK_BYTES,
        1000,
        (2 * PAGE_ENTRIES + 5) * CHUNK_BYTES,
        100 * CHUNK_BYTES - 1,
    ])
}

fn check(pages: &Pages, manifest: &Manifest, model: &[ChunkId]) {
    assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(manifest));
    let mut index = 0;
    while index < model.len() as u64 {
        let leaf = manifest.leaf(pages, index).expect("a leaf");
        assert_eq!(leaf.chunks().start, index);
        for index in leaf.chunks() {
            assert_eq!(leaf.chunk(index), Some(model[index as usize]), "{index}");
        }
        assert_eq!(leaf.chunk(leaf.chunks().end), None);
        index = leaf.chunks().end;
    }
    let past = manifest.chunk(pages, model.len() as u64);
    assert!(matches!(past, Err(LookupError::NoChunk { .. })));
    let expected: BTreeMap<u64, ChunkId> = (0..)
        .zip(model.iter().copied())
        .filter(|(_, id)| !id.is_zero())
        .collect();
    assert_eq!(pages.walk(manifest).1, expected);
}

/// Steps that gather around pages' edges.
fn edits() -> impl Strategy<Value = Vec<(u64, u8)>> {
    let chunk_count = grid().chunk_count();
    let index = prop_oneof![
        0..8_u64,
        PAGE_ENTRIES - 2..PAGE_ENTRIES + 8,
        2 * PAGE_ENTRIES..2 * PAGE_ENTRIES + 20,
        0..chunk_count,
    ];
    prop::collection::vec((index, 0..4_u8), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn versions_are_lists_of_chunks(versions in prop::collection::vec(edits(), 1..5)) {
        let pages = Pages::default();
        let grid = grid();
        let mut model = vec![ChunkId::ZERO; grid.chunk_count() as usize];
        let mut parent = Manifest::zero(grid.clone());
        check(&pages, &parent, &model);
        for edits in versions {
            let older_model = model.clone();
            let mut builder = ManifestBuilder::from_parent(parent.clone(), &pages);
            for (index, seed) in edits {
                builder.set(index, id(seed));
                model[index as usize] = id(seed);
            }
            let (manifest, _) = pages.finish(builder);
            check(&pages, &manifest, &model);

            // The same disk has the same manifest however it came to be.
            let mut anew = ManifestBuilder::new(grid.clone());
            for (index, id) in model.iter().enumerate().rev() {
                anew.set(index as u64, *id);
            }
            let (anew, _) = pages.finish(anew);
            prop_assert_eq!(anew.id(), manifest.id());

            let changed: Vec<_> = (0..).zip(older_model.iter().zip(&model))
                .filter(|(_, (old, new))| old != new)
                .map(|(index, (old, new))| (index, Some(*old), *new))
                .collect();
            let (new_pages, new_chunks) = pages.diff(&parent, &manifest);
            prop_assert_eq!(&new_chunks, &changed);
            let known = pages.walk(&parent).0;
            let expected: BTreeSet<_> = pages.walk(&manifest).0.difference(&known).copied().collect();
            let reported: BTreeSet<_> = new_pages.into_iter().collect();
            prop_assert!(expected.is_subset(&reported));
            parent = manifest;
        }
    }

    #[test]
    fn damaged_roots_never_panic(edits in edits(), at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<prop::sample::Index>()) {
        let pages = Pages::default();
        let mut builder = ManifestBuilder::new(grid());
        for (index, seed) in edits {
            builder.set(index, id(seed));
        }
        let (manifest, _) = pages.finish(builder);
        let mut bytes = manifest.encode();
        prop_assert!(Manifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = Manifest::decode(&bytes) {
            // What still is a manifest is another one.
            prop_assert_ne!(other.id(), manifest.id());
            prop_assert_eq!(other.encode(), bytes);
            let _ = other.walk(&pages, |_| Descend::Into);
            let _ = diff(&manifest, &other, &pages, drop);
        }
    }

    #[test]
    fn damaged_pages_never_panic(edits in edits(), victim in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let pages = Pages::default();
        let mut builder = ManifestBuilder::new(grid());
        for (index, seed) in edits {
            builder.set(index, id(seed));
        }
        // After the edits, one of which may make a hole of it: there is a page to damage.
        builder.set(0, id(1));
        let (manifest, _) = pages.finish(builder);
        {
            let mut pages = pages.pages.borrow_mut();
            let key = *victim.get(&pages.keys().copied().collect::<Vec<_>>());
            let bytes = pages.get_mut(&key).expect("it is there");
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(page) = Page::decode(bytes) {
                prop_assert_eq!(&page.encode(), bytes);
            }
        }
        let _ = manifest.walk(&pages, |_| Descend::Into);
        for index in [0, 3, 4, PAGE_ENTRIES + 4, manifest.grid().chunk_count() - 1] {
            let _ = manifest.chunk(&pages, index);
        }
        let mut builder = ManifestBuilder::from_parent(manifest, &pages);
        builder.set(7, id(9));
        let _ = builder.finish(|_, _| Ok::<(), Infallible>(()));
    }
}

#[test]
fn a_huge_sparse_disk_costs_its_few_pages() {
    let pages = Pages::default();
    let grid = grid_of(&[1 << 20, 8 << 40]);
    let mut builder = ManifestBuilder::new(grid.clone());
    let far = grid.chunk_count() - 1;
    builder.set(far, id(1));
    builder.set(4, id(2));
    let (manifest, written) = pages.finish(builder);
    // Three levels; the two chunks share the top page only.
    assert_eq!(manifest.depth(1), 3);
    assert_eq!(written, 5);
    assert_eq!(pages.walk(&manifest).1.len(), 2);
    assert_eq!(manifest.chunk(&pages, far).ok(), Some(id(1)));
    assert_eq!(manifest.chunk(&pages, far - 1).ok(), Some(ChunkId::ZERO));

    // An edit reads and writes one path, and a diff reads both paths only.
    pages.reads.borrow_mut().clear();
    let mut builder = ManifestBuilder::from_parent(manifest.clone(), &pages);
    builder.set(far, id(3));
    let (edited, written) = pages.finish(builder);
    assert_eq!((written, pages.reads.borrow().len()), (3, 3));
    let (changed_pages, changed) = pages.diff(&manifest, &edited);
    assert_eq!(changed, [(far, Some(id(1)), id(3))]);
    assert_eq!(changed_pages.len(), 3);
    assert_eq!(pages.reads.borrow().len(), 9);

    // Taking the last chunk out leaves nothing, not a page of zeros.
    let mut builder = ManifestBuilder::from_parent(edited, &pages);
    builder.set(far, ChunkId::ZERO);
    builder.set(4, ChunkId::ZERO);
    let (empty, _) = pages.finish(builder);
    assert_eq!(empty, Manifest::zero(grid));
}

#[test]
fn a_page_comes_after_those_it_holds() {
    let mut builder = ManifestBuilder::new(grid());
    for index in 0..grid().chunk_count() {
        builder.set(index, id(1 + (index % 3) as u8));
    }
    let mut seen = BTreeSet::new();
    let check = |id, bytes: &[u8]| {
        let page = Page::decode(bytes).expect("a page");
        if page.level() > 1 {
            assert!(page.ids().iter().all(|id| seen.contains(id)));
        }
        seen.insert(id);
        Ok::<(), Infallible>(())
    };
    builder.finish(check).expect("builds");
}

#[test]
fn a_sink_that_fails_ends_it() {
    let mut builder = ManifestBuilder::new(grid());
    builder.set(0, id(1));
    let result = builder.finish(|_, _| Err(std::io::Error::other("full")));
    assert!(matches!(result, Err(BuildError::Sink(_))));
}

#[test]
fn a_larger_disk_keeps_its_trees() {
    let pages = Pages::default();
    let mut builder = ManifestBuilder::new(grid());
    builder.set(1, id(1));
    builder.set(PAGE_ENTRIES + 9, id(2));
    let (small, _) = pages.finish(builder);
    let grown = small.grid().grown(small.grid().disk_bytes() + (1 << 30));
    let grown = grown.expect("grows");
    let last = grown.chunk_count() - 1;
    let mut builder = ManifestBuilder::from_parent_regions(&small, grown, &pages);
    builder.set(last, id(3));
    let (large, written) = pages.finish(builder);
    assert_eq!(written, 1);
    let chunks = pages.walk(&large).1;
    let expected = [(1, id(1)), (PAGE_ENTRIES + 9, id(2)), (last, id(3))];
    assert_eq!(chunks, expected.into());
    // The new region starts where the older disk ends: nothing to compare with.
    assert_eq!(pages.diff(&small, &large).1, [(last, None, id(3))]);
}

#[test]
fn regions_that_changed_are_compared_by_place_or_by_content() {
    let pages = Pages::default();
    let chunk = CHUNK_BYTES;
    let mut builder = ManifestBuilder::new(grid_of(&[4 * chunk, 10 * chunk]));
    for index in 0..14 {
        builder.set(index, id(1 + index as u8));
    }
    let (older, _) = pages.finish(builder);

    // The second region is longer by three levels' worth: compared by place.
    let long = grid_of(&[4 * chunk, (PAGE_ENTRIES + 10) * chunk]);
    let mut builder = ManifestBuilder::new(long);
    for index in 0..14 {
        builder.set(index, id(1 + index as u8));
    }
    builder.set(9, id(77));
    builder.set(PAGE_ENTRIES + 9, id(78));
    let (longer, _) = pages.finish(builder);
    let expected = [
        (9, Some(id(10)), id(77)),
        (PAGE_ENTRIES + 9, Some(ChunkId::ZERO), id(78)),
    ];
    assert_eq!(pages.diff(&older, &longer).1, expected);
    let back: Vec<_> = pages.diff(&longer, &older).1;
    assert_eq!(back, [(9, Some(id(77)), id(10))]);

    // It has moved: what it holds is known all the same.
    let mut builder = ManifestBuilder::new(grid_of(&[5 * chunk, 10 * chunk]));
    for index in 0..10 {
        builder.set(5 + index, id(5 + index as u8));
    }
    builder.set(8, id(79));
    let (moved, _) = pages.finish(builder);
    let changed = pages.diff(&older, &moved).1;
    let in_second: Vec<_> = changed.into_iter().filter(|c| c.0 >= 5).collect();
    assert_eq!(in_second, [(8, None, id(79))]);
}

#[test]
fn known_pages_can_be_passed_over() {
    let pages = Pages::default();
    let mut builder = ManifestBuilder::new(grid());
    builder.set(0, id(1));
    builder.set(100, id(2));
    let (manifest, _) = pages.finish(builder);
    pages.reads.borrow_mut().clear();
    let pass = |visit| match visit {
        Visit::Page { .. } => Descend::Past,
        Visit::Chunk { .. } => panic!("it is below a page"),
    };
    manifest.walk(&pages, pass).expect("walks");
    assert!(pages.reads.borrow().is_empty());
}

#[test]
fn what_is_not_a_manifest() {
    let good = Manifest::zero(grid()).encode();
    let error = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Manifest::decode(&bytes).expect_err("refused").to_string()
    };
    let cases = [
        (
            0,
            0,
            "these bytes are not a manifest: they do not begin with its magic",
        ),
        (
            8,
            2,
            "manifest format 2 is not known here: a newer release wrote it",
        ),
        (14, 8, "the manifest's chunk size cannot be 524288"),
        (17, 32, "the manifest's page size cannot be 8192"),
        (21, 9, "the manifest's number of regions cannot be 2308"),
        (20, 3, "a manifest of 256 bytes was expected to have 200"),
        (24, 1, "the manifest's regions do not cover its disk"),
        (32 + 16, 9, "the manifest's region kind cannot be 9"),
        (32 + 17, 2, "the manifest's tree depth cannot be 2"),
        (32 + 18, 1, "the manifest's reserved bytes cannot be 1"),
    ];
    for (at, byte, expected) in cases {
        assert_eq!(error(at, byte), expected, "byte {at}");
    }
}
