//! Opening a store: the index is made from the packs' trailers.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    ChunkStore, Inner, OpenError, StoreOptions, hold,
    index::{Index, Location, Pack, Place},
    write,
};
use crate::{
    objects::{ObjectInfo, Objects},
    pack::{
        PREFIX, PackId,
        read::{Contents, contents},
    },
    recycle::Recycler,
};

impl ChunkStore {
    /// Opens the store in `objects`, which may be empty. Only the ends of the
    /// packs are read. One store at a time may write into the same objects.
    ///
    /// # Errors
    /// [`OpenError`], naming the pack that cannot be used.
    pub fn open(objects: Arc<dyn Objects>, options: StoreOptions) -> Result<Self, OpenError> {
        options.check()?;
        let listed = objects
            .list(PREFIX)
            .map_err(|source| OpenError::List { source })?;
        let packs = listed
            .into_iter()
            .map(|object| match PackId::from_key(&object.key) {
                Some(id) => Ok((id, object)),
                None => Err(OpenError::NotAPack { key: object.key }),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut index = Index::default();
        let all = read_all(&*objects, &packs, options.open_threads)?;
        for ((id, object), contents) in packs.iter().zip(all) {
            add(&mut index, *id, object.len_bytes, &contents);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                objects,
                options,
                index: RwLock::new(index),
                writer: Mutex::new(write::Writer::default()),
                spare: Arc::default(),
                recycler: Recycler::default(),
                writer_changed: Condvar::new(),
                busy_packs: Mutex::new(HashSet::new()),
                busy_changed: Condvar::new(),
                gate: hold::Gate::default(),
                collecting: AtomicBool::new(false),
                touched: Mutex::new(HashSet::new()),
            }),
        })
    }
}

/// What each pack holds, in the order of `packs`.
fn read_all(
    objects: &dyn Objects,
    packs: &[(PackId, ObjectInfo)],
    threads: usize,
) -> Result<Vec<Contents>, OpenError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(HashMap::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((id, object)) = packs.get(at) else {
                break;
            };
            let read = contents(objects, *id, object.len_bytes);
            if read.is_err() {
                // The others need not go on.
                next.store(packs.len(), Ordering::Relaxed);
            }
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.insert(at, read);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, packs.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The first error, if any; without one, all are there.
    let mut found: Vec<usize> = done.keys().copied().collect();
    found.sort_unstable();
    found.iter().filter_map(|at| done.remove(at)).collect()
}

fn add(index: &mut Index, id: PackId, len_bytes: u64, contents: &Contents) {
    if contents.rebuilt {
        tracing::warn!(pack = %id, chunks = contents.entries.len(), "pack index rebuilt from its records");
    }
    let records = contents.entries.iter();
    let record_bytes = records.map(|entry| u64::from(entry.record_bytes())).sum();
    let mut pack = Pack::new(Place::Stored(id), record_bytes, len_bytes);
    pack.trailer_damaged = contents.rebuilt;
    let number = index.add_pack(pack);
    for entry in &contents.entries {
        let at = Location::new(number, entry);
        if index.chunks.get(entry.chunk).is_some() {
            // Left by a crash in a collection, or by a chunk that was healed:
            // which of them is good is known when it is read.
            index.duplicates.entry(entry.chunk).or_default().push(at);
        } else {
            index.set(entry.chunk, at);
        }
    }
}
