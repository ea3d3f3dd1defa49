//! PDUs as they lie in the stream: header, additional headers, data, digests (section 11.2).

use thiserror::Error;

/// The basic header segment (section 11.2.1).
pub const HEADER_BYTES: usize = 48;

/// The largest length that three bytes can say (section 11.2.1.6).
pub const DATA_BYTES_MAX: usize = 0x00ff_ffff;

/// One digest (section 13.1).
const DIGEST_BYTES: usize = 4;

/// Which parts of a PDU carry a CRC32C; both begin with the full-feature phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// Over the basic and the additional headers.
    pub header: bool,
    /// Over the data with its padding.
    pub data: bool,
}

/// One PDU, borrowed from the bytes it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The basic header.
    pub header: &'a [u8; HEADER_BYTES],
    /// The additional headers, as they came (section 11.2.2).
    pub additional: &'a [u8],
    /// The data without its padding.
    pub data: &'a [u8],
    /// False when the data does not fit its digest: the PDU is to be rejected,
    /// but the stream goes on (section 7.8).
    pub data_intact: bool,
}

impl Frame<'_> {
    /// The opcode, without the bit for immediate delivery (section 11.2.1.2).
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    /// Whether it is to be executed at once (section 11.2.1.1).
    #[must_use]
    pub fn immediate(&self) -> bool {
        self.header[0] & 0x40 != 0
    }

    /// The task that it belongs to (section 11.2.1.8).
    #[must_use]
    pub fn initiator_task_tag(&self) -> u32 {
        be32(&self.header[16..20])
    }
}

/// After any of these the connection cannot go on: where the next PDU begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// More data than this side has declared to take (section 13.12).
    #[error("a PDU of {data_bytes} bytes of data, of which {data_bytes_max} are allowed")]
    TooLong {
        /// What the header says.
        data_bytes: usize,
        /// What was declared.
        data_bytes_max: usize,
    },
    /// The header does not fit its digest: with error recovery level 0 the
    /// session ends (section 7.8).
    #[error("the header of a PDU does not fit its digest")]
    HeaderDigest,
}

/// Reads the PDU at the start of `input`, and says how many bytes it takes;
/// `None` while it is not whole.
///
/// # Errors
/// As soon as the header shows that the PDU is too long, or is damaged.
pub fn decode(
    input: &[u8],
    digests: Digests,
    data_bytes_max: usize,
) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header_bytes = HEADER_BYTES + usize::from(header[4]) * 4;
    let data_at = header_bytes + digest_bytes(digests.header);
    let Some(head) = input.get(..data_at) else {
        return Ok(None);
    };
    let (headers, header_digest) = head.split_at(header_bytes);
    // A damaged length is not believed: the digest comes first.
    if digests.header && !fits(headers, header_digest) {
        return Err(FrameError::HeaderDigest);
    }
    let data_bytes = be32(&[0, header[5], header[6], header[7]]) as usize;
    if data_bytes > data_bytes_max {
        return Err(FrameError::TooLong {
            data_bytes,
            data_bytes_max,
        });
    }
    let padded_end = data_at + data_bytes.next_multiple_of(4);
    // Without data there is no data digest (section 11.2.3).
    let end = padded_end + digest_bytes(digests.data && data_bytes > 0);
    let Some(whole) = input.get(..end) else {
        return Ok(None);
    };
    let frame = Frame {
        header,
        additional: &headers[HEADER_BYTES..],
        data: &whole[data_at..data_at + data_bytes],
        data_intact: end == padded_end || fits(&whole[data_at..padded_end], &whole[padded_end..]),
    };
    Ok(Some((frame, end)))
}

/// Appends a PDU without additional headers; the lengths in `header` are
/// written here. False, and nothing is written, when `data` is longer than a
/// PDU can say.
#[must_use]
pub fn encode(
    mut header: [u8; HEADER_BYTES],
    data: &[u8],
    digests: Digests,
    out: &mut Vec<u8>,
) -> bool {
    let length = match u32::try_from(data.len()) {
        Ok(length) if data.len() <= DATA_BYTES_MAX => length.to_be_bytes(),
        _ => return false,
    };
    header[4] = 0;
    header[5..8].copy_from_slice(&length[1..]);
    out.extend_from_slice(&header);
    if digests.header {
        out.extend_from_slice(&digest(&header));
    }
    let data_at = out.len();
    out.extend_from_slice(data);
    out.resize(data_at + data.len().next_multiple_of(4), 0);
    if digests.data && !data.is_empty() {
        let of_data = digest(&out[data_at..]);
        out.extend_from_slice(&of_data);
    }
    true
}

fn digest_bytes(present: bool) -> usize {
    if present { DIGEST_BYTES } else { 0 }
}

/// The CRC in the order in which the wire has it: least significant byte
/// first (section 13.1 and the examples of RFC 3720, appendix B.4).
fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    crc32c::crc32c(bytes).to_le_bytes()
}

fn fits(bytes: &[u8], expected: &[u8]) -> bool {
    digest(bytes) == expected
}

fn be32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    fn encoded(data: &[u8], digests: Digests) -> Vec<u8> {
        let mut header = [0; HEADER_BYTES];
        header[0] = 0x41;
        header[19] = 7;
        let mut out = Vec::new();
        assert!(encode(header, data, digests, &mut out));
        out
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn digests_are_those_of_the_standards_examples() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&ascending), [0x4e, 0x79, 0xdd, 0x46]);
    }

    #[test]
    fn a_damaged_header_ends_the_connection_and_damaged_data_does_not() {
        let mut bytes = encoded(b"hello", BOTH);
        bytes[5] ^= 1;
        assert_eq!(decode(&bytes, BOTH, 512), Err(FrameError::HeaderDigest));
        bytes[5] ^= 1;
        bytes[HEADER_BYTES + 4] ^= 1;
        let (frame, used) = decode(&bytes, BOTH, 512).unwrap().unwrap();
        assert!(!frame.data_intact);
        assert_eq!(used, bytes.len());
    }

    #[test]
    fn too_long_is_known_from_the_header_alone() {
        let bytes = encoded(&[1; 513], Digests::default());
        assert_eq!(
            decode(&bytes[..HEADER_BYTES], Digests::default(), 512),
            Err(FrameError::TooLong {
                data_bytes: 513,
                data_bytes_max: 512
            })
        );
    }

    #[test]
    fn additional_headers_are_handed_on_under_the_header_digest() {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4] = 2;
        bytes.extend_from_slice(b"addition");
        let crc = digest(&bytes);
        bytes.extend_from_slice(&crc);
        let (frame, used) = decode(&bytes, BOTH, 512).unwrap().unwrap();
        assert_eq!((frame.additional, used), (&b"addition"[..], 60));
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back_and_no_part_of_it_is_whole(
            data in prop::collection::vec(any::<u8>(), 0..600), header: bool, of_data: bool,
        ) {
            let digests = Digests { header, data: of_data };
            let bytes = encoded(&data, digests);
            let (frame, used) = decode(&bytes, digests, 600).unwrap().unwrap();
            prop_assert_eq!(frame.data, &data[..]);
            prop_assert!(frame.data_intact && frame.immediate());
            prop_assert_eq!((frame.opcode(), frame.initiator_task_tag()), (1, 7));
            prop_assert_eq!(used, bytes.len());
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut], digests, 600), Ok(None));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..1200), header: bool, data: bool,
        ) {
            if let Ok(Some((_, used))) = decode(&bytes, Digests { header, data }, 512) {
                prop_assert!(used >= HEADER_BYTES && used <= bytes.len());
            }
        }
    }
}
