//! Modules and firmware as they are stored, made plain.

use std::io::Read;

/// What xz and zstd may take while they decompress, in bytes.
const DECODER_BYTES_MAX: u64 = 128 << 20;
/// The same for zstd, as the logarithm of its window.
const WINDOW_LOG_MAX: u32 = 27;

/// Why a file cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It would be longer than it may be.
    #[error("it is longer than {bytes_max} bytes when decompressed")]
    TooLong {
        /// What it may have.
        bytes_max: u64,
    },
    /// It is damaged.
    #[error("it cannot be decompressed as {format}: {why}")]
    Damaged {
        /// What it is compressed with.
        format: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// The contents of a file that may be compressed with gzip, xz or zstd; by its
/// first bytes, not by its name.
pub(super) fn unpack(bytes: Vec<u8>, bytes_max: u64) -> Result<Vec<u8>, UnpackError> {
    let source = bytes.as_slice();
    match source {
        [0x1f, 0x8b, ..] => take(flate2::read::MultiGzDecoder::new(source), "gzip", bytes_max),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let decoder = liblzma::stream::Stream::new_stream_decoder(
                DECODER_BYTES_MAX,
                liblzma::stream::CONCATENATED,
            );
            let decoder = decoder.map_err(|error| damaged("xz", &error))?;
            let reader = liblzma::read::XzDecoder::new_stream(source, decoder);
            take(reader, "xz", bytes_max)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::Decoder::with_buffer(source);
            let mut decoder = decoder.map_err(|error| damaged("zstd", &error))?;
            let limited = decoder.window_log_max(WINDOW_LOG_MAX);
            limited.map_err(|error| damaged("zstd", &error))?;
            take(decoder, "zstd", bytes_max)
        }
        _ if bytes.len() as u64 > bytes_max => Err(UnpackError::TooLong { bytes_max }),
        _ => Ok(bytes),
    }
}

fn take(reader: impl Read, format: &'static str, bytes_max: u64) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    let read = reader
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes);
    read.map_err(|error| damaged(format, &error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(UnpackError::TooLong { bytes_max });
    }
    Ok(bytes)
}

fn damaged(format: &'static str, error: &dyn std::error::Error) -> UnpackError {
    UnpackError::Damaged {
        format,
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn packed(format: &str, bytes: &[u8]) -> Vec<u8> {
        match format {
            "gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).expect("writes");
                encoder.finish().expect("ends")
            }
            "xz" => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).expect("writes");
                encoder.finish().expect("ends")
            }
            "zstd" => zstd::encode_all(bytes, 1).expect("compresses"),
            _ => bytes.to_vec(),
        }
    }

    #[test]
    fn every_format_comes_back() {
        let bytes = b"\x7fELF and so on ".repeat(1000);
        for format in ["plain", "gzip", "xz", "zstd"] {
            let packed = packed(format, &bytes);
            let len = bytes.len() as u64;
            assert_eq!(unpack(packed.clone(), len).expect(format), bytes);
            let short = unpack(packed, len - 1);
            assert!(
                matches!(short, Err(UnpackError::TooLong { .. })),
                "{format}"
            );
        }
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_bounded(
            format in prop::sample::select(vec!["gzip", "xz", "zstd"]),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = packed(format, &b"some text of a module".repeat(100));
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(plain) = unpack(bytes, 4000) {
                prop_assert!(plain.len() <= 4000);
            }
        }
    }
}
