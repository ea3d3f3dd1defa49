//! Prints the seconds that the compressor alone needs for the chunks of a file,
//! on all cores and from memory: the bound that `cargo xtask bench` holds
//! imports against.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use rootstock_core::{
    ChunkId,
    units::{CHUNK_BYTES, is_zero},
};
use rootstock_image::frame::Encoder;

fn main() -> io::Result<()> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let disk = std::fs::File::open(path)?;
    let mut chunks = Vec::new();
    let mut seen = HashSet::new();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let chunk_count = disk.metadata()?.len() / CHUNK_BYTES;
    for index in 0..chunk_count {
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut chunk, index * CHUNK_BYTES)?;
        // As in an import, what is there twice is compressed once.
        if !is_zero(&chunk) && seen.insert(ChunkId::of(&chunk)) {
            chunks.push(chunk.clone());
        }
    }
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut encoder = Encoder::new();
                let mut frame = vec![0; CHUNK_BYTES as usize];
                while let Some(raw) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::hint::black_box(encoder.encode_to(raw, &mut frame));
                }
            });
        }
    });
    println!("{:.3}", start.elapsed().as_secs_f64());
    Ok(())
}
