//! Walks through the archives of an initrd, one after the other, as the kernel
//! does (Documentation/driver-api/early-userspace/buffer-format.rst): `newc` cpio,
//! plain or compressed, with zeros between them. An archive that goes on behind the
//! end of what was compressed at once, as pzstd makes it, is refused.

use std::io::{self, BufRead, Read};

use super::lz4::Lz4Legacy;

/// What all archives of an initrd may have, in bytes, decompressed.
const UNPACKED_BYTES_MAX: u64 = 2 << 30;
/// The most files.
const FILES_MAX: u32 = 200_000;
/// The most archives, one after the other.
const ARCHIVES_MAX: u32 = 16;
/// The longest name of a file, in bytes (the kernel's `PATH_MAX`).
const NAME_BYTES_MAX: u64 = 4096;
/// What xz may take while it decompresses, in bytes.
const DECODER_BYTES_MAX: u64 = 128 << 20;
/// The same for zstd, as the logarithm of its window.
const WINDOW_LOG_MAX: u32 = 27;

const HEADER_BYTES: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// How an archive begins that is not compressed.
const PLAIN: &[u8] = b"0707";

/// Why an initrd cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// It cannot be decompressed, or ends too early.
    #[error("the initrd is damaged")]
    Damaged(#[source] io::Error),
    /// What is in it is no archive.
    #[error("the initrd is no cpio archive, nor one that is compressed with gzip, xz, zstd or lz4")]
    NotArchive,
    /// It has more than it may.
    #[error(
        "the initrd has more than {bytes_max} bytes or {files_max} files, or a name that is too long"
    )]
    TooMuch {
        /// What it may have when decompressed.
        bytes_max: u64,
        /// The most files.
        files_max: u32,
    },
}

/// What may still be read.
struct Room {
    bytes: u64,
    files: u32,
}

impl Room {
    fn take(&mut self, bytes: u64) -> Result<(), InitrdError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(too_much)?;
        Ok(())
    }

    fn take_file(&mut self) -> Result<(), InitrdError> {
        self.files = self.files.checked_sub(1).ok_or_else(too_much)?;
        Ok(())
    }
}

fn too_much() -> InitrdError {
    InitrdError::TooMuch {
        bytes_max: UNPACKED_BYTES_MAX,
        files_max: FILES_MAX,
    }
}

/// Shows `note` the path of every file of every archive, and says how long those are
/// together that come before anything compressed.
pub(super) fn walk(bytes: &[u8], note: &mut dyn FnMut(&str)) -> Result<usize, InitrdError> {
    let mut room = Room {
        bytes: UNPACKED_BYTES_MAX,
        files: FILES_MAX,
    };
    let mut rest = bytes;
    let mut archives = 0;
    let mut is_early = true;
    let mut early_bytes = 0;
    loop {
        rest = without_zeros(rest);
        if rest.is_empty() {
            // Nothing at all is no initrd.
            return if archives == 0 {
                Err(InitrdError::NotArchive)
            } else {
                Ok(early_bytes)
            };
        }
        archives += 1;
        if archives > ARCHIVES_MAX {
            return Err(too_much());
        }
        let is_plain = rest.starts_with(PLAIN);
        rest = walk_member(rest, &mut room, note)?;
        is_early &= is_plain;
        if is_early {
            early_bytes = bytes.len() - rest.len();
        }
    }
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// Walks through what is first, and gives what comes after it.
fn walk_member<'a>(
    source: &'a [u8],
    room: &mut Room,
    note: &mut dyn FnMut(&str),
) -> Result<&'a [u8], InitrdError> {
    match source {
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => {
            let mut rest = source;
            walk_archive(&mut rest, room, note)?;
            Ok(rest)
        }
        [0x1f, 0x8b, ..] => {
            let mut decoder = flate2::bufread::GzDecoder::new(source);
            walk_plain(&mut decoder, room, note)?;
            Ok(decoder.into_inner())
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_BYTES_MAX, 0);
            let stream = stream.map_err(|error| InitrdError::Damaged(error.into()))?;
            let mut decoder = liblzma::bufread::XzDecoder::new_stream(source, stream);
            walk_plain(&mut decoder, room, note)?;
            Ok(decoder.into_inner())
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::Decoder::with_buffer(source).map_err(InitrdError::Damaged)?;
            let mut decoder = decoder.single_frame();
            let limited = decoder.window_log_max(WINDOW_LOG_MAX);
            limited.map_err(InitrdError::Damaged)?;
            walk_plain(&mut decoder, room, note)?;
            Ok(decoder.finish())
        }
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => {
            let mut decoder = Lz4Legacy::new(rest);
            walk_plain(&mut decoder, room, note)?;
            Ok(decoder.into_rest())
        }
        _ => Err(InitrdError::NotArchive),
    }
}

/// Walks through archives that a decompressor gives, to its end.
fn walk_plain(
    decoder: &mut dyn Read,
    room: &mut Room,
    note: &mut dyn FnMut(&str),
) -> Result<(), InitrdError> {
    let mut plain = io::BufReader::new(decoder);
    loop {
        let buffer = plain.fill_buf().map_err(InitrdError::Damaged)?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeros > 0 {
            room.take(zeros as u64)?;
            plain.consume(zeros);
        } else if buffer.is_empty() {
            return Ok(());
        } else {
            walk_archive(&mut plain, room, note)?;
        }
    }
}

/// Walks through one archive, to the end of its trailer.
fn walk_archive(
    source: &mut dyn Read,
    room: &mut Room,
    note: &mut dyn FnMut(&str),
) -> Result<(), InitrdError> {
    loop {
        let mut header = [0; HEADER_BYTES];
        source
            .read_exact(&mut header)
            .map_err(InitrdError::Damaged)?;
        if !matches!(&header[..6], b"070701" | b"070702") {
            return Err(InitrdError::NotArchive);
        }
        // The seventh and the twelfth of the fields (buffer-format.rst).
        let (len, name_len) = (field(&header, 6)?, field(&header, 11)?);
        if name_len == 0 || name_len > NAME_BYTES_MAX {
            return Err(too_much());
        }
        let head = HEADER_BYTES as u64 + name_len;
        let name_padding = padding(head);
        let body = len + padding(len);
        room.take_file()?;
        room.take(head + name_padding + body)?;
        let mut name = vec![0; name_len as usize];
        source.read_exact(&mut name).map_err(InitrdError::Damaged)?;
        // It ends with a NUL.
        name.pop();
        if name == TRAILER {
            return Ok(());
        }
        if let Ok(name) = std::str::from_utf8(&name) {
            note(name);
        }
        pass(source, name_padding + body)?;
    }
}

/// A field of a header: eight hexadecimal digits.
fn field(header: &[u8; HEADER_BYTES], number: usize) -> Result<u64, InitrdError> {
    let at = 6 + number * 8;
    let digits = header.get(at..at + 8).unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(InitrdError::NotArchive);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| InitrdError::NotArchive)?;
    u64::from_str_radix(digits, 16).map_err(|_| InitrdError::NotArchive)
}

/// Zeros that follow so many bytes.
fn padding(bytes: u64) -> u64 {
    (4 - bytes % 4) % 4
}

fn pass(source: &mut dyn Read, bytes: u64) -> Result<(), InitrdError> {
    let passed = io::copy(&mut source.take(bytes), &mut io::sink());
    if passed.map_err(InitrdError::Damaged)? < bytes {
        return Err(InitrdError::Damaged(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}
