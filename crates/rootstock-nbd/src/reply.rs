//! Replies of the transmission phase, written into a buffer the caller reuses.
//!
//! A writer here writes everything of a message but the bytes read: those the
//! caller sends from where they lie, behind the header, in one `writev`.

use crate::proto::{Command, ErrorCode, ReplyStyle, STRING_BYTES_MAX, allocation, chunk, magic};

/// What a reply repeats of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The client's own mark.
    pub cookie: u64,
    /// Where the request began; extended replies repeat it.
    pub offset: u64,
}

/// Whether more chunks follow in the same reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// More chunks follow.
    More,
    /// This is the last one.
    Done,
}

/// One extent of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes, not 0.
    pub len: u64,
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

impl Extent {
    fn flags(&self) -> u32 {
        u32::from(self.hole) * allocation::STATE_HOLE
            + u32::from(self.zero) * allocation::STATE_ZERO
    }
}

/// The largest header this module writes in one go, in bytes: an extended
/// header and the offset of a data chunk.
pub const HEADER_BYTES_MAX: usize = 40;

/// Success of a request whose reply carries no bytes.
pub fn done(out: &mut Vec<u8>, style: ReplyStyle, tag: Tag) {
    match style {
        // "Simple reply message": allowed beside structured ones when there is
        // no payload, and shorter.
        ReplyStyle::Simple | ReplyStyle::Structured => simple(out, 0, tag.cookie),
        ReplyStyle::Extended => chunk_header(out, style, tag, Last::Done, chunk::NONE, 0),
    }
}

/// Success of a read of no bytes, or the end of a read whose chunks were sent.
pub fn read_done(out: &mut Vec<u8>, style: ReplyStyle, tag: Tag) {
    match style {
        ReplyStyle::Simple => simple(out, 0, tag.cookie),
        ReplyStyle::Structured | ReplyStyle::Extended => {
            chunk_header(out, style, tag, Last::Done, chunk::NONE, 0);
        }
    }
}

/// A failure, with a text for people where the style allows one.
pub fn error(
    out: &mut Vec<u8>,
    style: ReplyStyle,
    tag: Tag,
    command: Command,
    code: ErrorCode,
    text: &str,
) {
    // "Simple reply message": never for a read once replies are structured, so
    // that the stream can be divided without knowing the requests.
    if style == ReplyStyle::Simple
        || (style == ReplyStyle::Structured && text.is_empty() && command != Command::Read)
    {
        return simple(out, code.number(), tag.cookie);
    }
    let text = truncated(text);
    let len = 6 + text.len() as u32;
    chunk_header(out, style, tag, Last::Done, chunk::ERROR, len);
    out.extend_from_slice(&code.number().to_be_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The header of a whole read's bytes in a simple reply; the bytes follow.
pub fn read_simple(out: &mut Vec<u8>, tag: Tag) {
    simple(out, 0, tag.cookie);
}

/// The header of `len` bytes at `offset` (`NBD_REPLY_TYPE_OFFSET_DATA`); the
/// bytes follow.
pub fn data(out: &mut Vec<u8>, style: ReplyStyle, tag: Tag, last: Last, offset: u64, len: u32) {
    debug_assert!(len > 0, "a content chunk describes at least one byte");
    chunk_header(out, style, tag, last, chunk::OFFSET_DATA, len + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// `len` zeros at `offset` (`NBD_REPLY_TYPE_OFFSET_HOLE`).
pub fn hole(out: &mut Vec<u8>, style: ReplyStyle, tag: Tag, last: Last, offset: u64, len: u32) {
    debug_assert!(len > 0, "a hole is not empty");
    chunk_header(out, style, tag, last, chunk::OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// The extents from the request's offset on (`NBD_REPLY_TYPE_BLOCK_STATUS`, or
/// its 64-bit form with extended headers).
///
/// An extent too long for 32 bits is cut in the compact form, and the reply
/// ends there: a reply may always say less than was asked.
pub fn block_status(out: &mut Vec<u8>, style: ReplyStyle, tag: Tag, extents: &[Extent]) {
    debug_assert!(!extents.is_empty(), "at least one extent is said");
    if style == ReplyStyle::Extended {
        let len = 8 + 16 * extents.len() as u32;
        chunk_header(out, style, tag, Last::Done, chunk::BLOCK_STATUS_EXT, len);
        out.extend_from_slice(&allocation::CONTEXT_ID.to_be_bytes());
        out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.len.to_be_bytes());
            out.extend_from_slice(&u64::from(extent.flags()).to_be_bytes());
        }
        return;
    }
    let whole = extents
        .iter()
        .take_while(|extent| extent.len <= COMPACT_EXTENT_BYTES_MAX)
        .count();
    let said = &extents[..(whole + 1).min(extents.len())];
    let len = 4 + 8 * said.len() as u32;
    chunk_header(out, style, tag, Last::Done, chunk::BLOCK_STATUS, len);
    out.extend_from_slice(&allocation::CONTEXT_ID.to_be_bytes());
    for extent in said {
        let len = extent.len.min(COMPACT_EXTENT_BYTES_MAX) as u32;
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&extent.flags().to_be_bytes());
    }
}

/// The longest extent of a compact block status reply, in bytes: the largest
/// multiple of 4 KiB that 32 bits hold.
pub const COMPACT_EXTENT_BYTES_MAX: u64 = 0xffff_f000;

fn simple(out: &mut Vec<u8>, code: u32, cookie: u64) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&magic::SIMPLE_REPLY.to_be_bytes());
    header[4..8].copy_from_slice(&code.to_be_bytes());
    header[8..].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&header);
}

fn chunk_header(
    out: &mut Vec<u8>,
    style: ReplyStyle,
    tag: Tag,
    last: Last,
    kind: u16,
    payload_bytes: u32,
) {
    let flags = match last {
        Last::More => 0,
        Last::Done => chunk::FLAG_DONE,
    };
    let mut header = [0; 32];
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&tag.cookie.to_be_bytes());
    if style == ReplyStyle::Extended {
        header[..4].copy_from_slice(&magic::EXTENDED_REPLY.to_be_bytes());
        header[16..24].copy_from_slice(&tag.offset.to_be_bytes());
        header[24..].copy_from_slice(&u64::from(payload_bytes).to_be_bytes());
        out.extend_from_slice(&header);
    } else {
        header[..4].copy_from_slice(&magic::STRUCTURED_REPLY.to_be_bytes());
        header[16..20].copy_from_slice(&payload_bytes.to_be_bytes());
        out.extend_from_slice(&header[..20]);
    }
}

/// The text, cut at a character where the protocol's limit on strings needs it.
pub(crate) fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag {
        cookie: 0x1122_3344_5566_7788,
        offset: 0x1000,
    };

    fn hex(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        out.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn messages_are_laid_out_as_the_protocol_says() {
        use ReplyStyle::{Extended, Simple, Structured};
        let cookie = "1122334455667788";
        let cases = [
            (
                hex(|out| done(out, Simple, TAG)),
                format!("6744669800000000{cookie}"),
            ),
            (
                hex(|out| done(out, Structured, TAG)),
                format!("6744669800000000{cookie}"),
            ),
            (
                hex(|out| done(out, Extended, TAG)),
                format!("6e8a278c00010000{cookie}00000000000010000000000000000000"),
            ),
            (
                hex(|out| error(out, Simple, TAG, Command::Read, ErrorCode::Inval, "no")),
                format!("6744669800000016{cookie}"),
            ),
            (
                hex(|out| error(out, Structured, TAG, Command::Read, ErrorCode::Inval, "no")),
                format!("668e33ef00018001{cookie}000000080000001600026e6f"),
            ),
            (
                hex(|out| error(out, Structured, TAG, Command::Trim, ErrorCode::Perm, "")),
                format!("6744669800000001{cookie}"),
            ),
            (
                hex(|out| data(out, Structured, TAG, Last::Done, 0x1000, 512)),
                format!("668e33ef00010001{cookie}000002080000000000001000"),
            ),
            (
                hex(|out| hole(out, Structured, TAG, Last::More, 0x1200, 512)),
                format!("668e33ef00000002{cookie}0000000c000000000000120000000200"),
            ),
            (
                hex(|out| data(out, Extended, TAG, Last::Done, 0x1200, 512)),
                format!("6e8a278c00010001{cookie}000000000000100000000000000002080000000000001200"),
            ),
        ];
        for (got, expected) in cases {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn block_status_comes_in_both_widths() {
        let extents = [
            Extent {
                len: 0x2000,
                hole: false,
                zero: false,
            },
            Extent {
                len: 1 << 33,
                hole: true,
                zero: true,
            },
            Extent {
                len: 1,
                hole: false,
                zero: true,
            },
        ];
        let compact = hex(|out| block_status(out, ReplyStyle::Structured, TAG, &extents));
        assert_eq!(
            compact,
            "668e33ef00010005112233445566778800000014\
             000000010000200000000000fffff00000000003"
        );
        let extended = hex(|out| block_status(out, ReplyStyle::Extended, TAG, &extents));
        assert_eq!(
            extended,
            "6e8a278c00010006112233445566778800000000000010000000000000000038\
             00000001000000030000000000002000000000000000000000000002000000000000000000000003\
             00000000000000010000000000000002"
        );
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let text = "é".repeat(3000);
        let mut out = Vec::new();
        error(
            &mut out,
            ReplyStyle::Extended,
            TAG,
            Command::Read,
            ErrorCode::Io,
            &text,
        );
        assert_eq!(out.len(), 32 + 6 + STRING_BYTES_MAX);
    }
}
