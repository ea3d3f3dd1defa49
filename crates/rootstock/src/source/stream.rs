//! Sources that can only be read once from the beginning: they are unpacked into
//! a sparse temporary file, since a disk must be read at any place.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rootstock_core::units::is_zero;

use super::{
    SourceError,
    detect::{Compression, HEAD_BYTES},
};

/// Bytes read at a time; also the unit in which zeros become holes.
const STEP_BYTES: usize = 64 * 1024;
/// How often the free space of the spool's file system is looked at, in bytes.
const SPACE_CHECK_BYTES: u64 = 64 << 20;
/// Bytes that are left free on the spool's file system, at most a twentieth of it.
const SPOOL_RESERVE_BYTES: u64 = 512 << 20;

/// Where streams are unpacked to, and how far.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// The most bytes that may come out of a stream.
    pub(crate) stream_bytes_max: u64,
}

/// The plain bytes of a compressed stream, of which all members are read.
pub(crate) fn decompress<'a>(
    compression: Compression,
    stream: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Compression::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(stream)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(stream)?),
    })
}

/// The first bytes of a stream, and the stream with them put back.
pub(crate) fn peek<'a>(
    mut stream: impl Read + Send + 'a,
) -> io::Result<(Vec<u8>, Box<dyn Read + Send + 'a>)> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    stream
        .by_ref()
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)?;
    let whole = io::Cursor::new(head.clone()).chain(stream);
    Ok((head, Box::new(whole)))
}

impl Spool {
    /// Writes the stream into a nameless file in the directory, zeros as holes.
    ///
    /// # Errors
    /// When the stream is damaged or larger than allowed, or the file system has
    /// no room for it. The file is gone when it is closed, and after a crash.
    pub(crate) fn fill(
        &self,
        stream: &mut dyn Read,
        source: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<File, SourceError> {
        let spool_error = |cause: io::Error| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(source),
            _ => SourceError::Spool {
                dir: self.dir.clone(),
                cause,
            },
        };
        let file = tempfile::tempfile_in(&self.dir).map_err(spool_error)?;
        let mut buffer = vec![0; STEP_BYTES];
        let (mut len_bytes, mut checked_bytes) = (0, 0);
        loop {
            let got = read_full(stream, &mut buffer).map_err(|cause| SourceError::Stream {
                path: source.to_owned(),
                after_bytes: len_bytes,
                cause,
            })?;
            if got == 0 {
                break;
            }
            if len_bytes + got as u64 > self.stream_bytes_max {
                return Err(SourceError::TooLarge {
                    path: source.to_owned(),
                    disk_bytes_max: self.stream_bytes_max,
                });
            }
            if !is_zero(&buffer[..got]) {
                if checked_bytes == 0 {
                    self.check_room(&file, source)?;
                }
                file.write_all_at(&buffer[..got], len_bytes)
                    .map_err(spool_error)?;
                checked_bytes = (checked_bytes + got as u64) % SPACE_CHECK_BYTES;
            }
            len_bytes += got as u64;
            progress(len_bytes);
        }
        file.set_len(len_bytes).map_err(spool_error)?;
        Ok(file)
    }

    /// Fails before the file system is full, since others live on it too.
    fn check_room(&self, file: &File, source: &Path) -> Result<(), SourceError> {
        // A file system that cannot tell is left to its own error.
        let Ok(stat) = rustix::fs::fstatvfs(file) else {
            return Ok(());
        };
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let total_bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
        if free_bytes < SPOOL_RESERVE_BYTES.min(total_bytes / 20) {
            return Err(self.full(source));
        }
        Ok(())
    }

    fn full(&self, source: &Path) -> SourceError {
        SourceError::SpoolFull {
            dir: self.dir.clone(),
            path: source.to_owned(),
        }
    }
}

/// Fills the buffer as far as the stream reaches.
fn read_full(stream: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn spool(stream_bytes_max: u64) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().expect("temp dir");
        let spool = Spool {
            dir: dir.path().to_owned(),
            stream_bytes_max,
        };
        (dir, spool)
    }

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 300_000];
        bytes[200_000..200_100].fill(7);
        bytes
    }

    fn packed(compression: Compression) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(&sample()).expect("packs");
                encoder.finish().expect("packs")
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&sample()).expect("packs");
                encoder.finish().expect("packs")
            }
            Compression::Zstd => zstd::encode_all(&sample()[..], 1).expect("packs"),
        }
    }

    #[test]
    fn every_compression_comes_back() {
        let (_dir, spool) = spool(1 << 20);
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let bytes = packed(compression);
            let (head, mut stream) = peek(&bytes[..]).expect("peeks");
            let found = super::super::detect::detect(&head, &[]);
            assert_eq!(found, super::super::detect::Format::Compressed(compression));
            let mut stream = decompress(compression, &mut stream).expect("starts");
            let file = spool
                .fill(&mut stream, Path::new("x"), |_| ())
                .expect("fills");
            let mut back = vec![1; sample().len()];
            file.read_exact_at(&mut back, 0).expect("reads");
            assert_eq!(back, sample());
            assert_eq!(file.metadata().expect("stat").len(), back.len() as u64);
        }
    }

    #[test]
    fn a_cut_or_endless_stream_is_refused() {
        let (_dir, spool) = spool(200_000);
        let cut = &packed(Compression::Gzip)[..40];
        let mut stream = decompress(Compression::Gzip, cut).expect("starts");
        let error = spool.fill(&mut stream, Path::new("x"), |_| ());
        assert!(matches!(error, Err(SourceError::Stream { .. })));
        let error = spool.fill(&mut io::repeat(0), Path::new("x"), |_| ());
        assert!(matches!(error, Err(SourceError::TooLarge { .. })));
    }
}
