//! What is done with a medium's bytes and an initiator's, in memory.

use crate::sense::Sense;

/// Compares a piece of the medium with the initiator's data for it; the piece
/// begins `offset` bytes into the initiator's data.
///
/// # Errors
/// MISCOMPARE, with the offset of the first difference in the initiator's data
/// as its INFORMATION (SBC-3 5.2 and 5.29).
pub fn whole(medium: &[u8], data: &[u8], offset: u64) -> Result<(), Sense> {
    if medium == data {
        return Ok(());
    }
    let pairs = medium.iter().zip(data);
    // Where one of them ends, there the other differs.
    let shorter = medium.len().min(data.len());
    let at = pairs.take_while(|(left, right)| left == right).count();
    let at = at.min(shorter) as u64;
    Err(Sense::MISCOMPARE.with_information(offset.saturating_add(at)))
}

/// Compares each block of a piece of the medium with one block.
///
/// # Errors
/// MISCOMPARE, with the offset of the first difference within the block
/// (SBC-3 5.29, BYTCHK 11b).
pub fn one_block(medium: &[u8], block: &[u8]) -> Result<(), Sense> {
    if block.is_empty() {
        return Err(Sense::MISCOMPARE.with_information(0));
    }
    for piece in medium.chunks(block.len()) {
        whole(piece, &block[..piece.len()], 0)?;
    }
    Ok(())
}

/// Sets those bits of a piece of the medium that are set in the initiator's
/// data for it (SBC-3 5.5).
pub fn set_bits(medium: &mut [u8], data: &[u8]) {
    for (byte, more) in medium.iter_mut().zip(data) {
        *byte |= more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_their_offset() {
        #[rustfmt::skip]
        let cases: [(&[u8], &[u8], Option<u64>); 5] = [
            (b"", b"", None),
            (b"same", b"same", None),
            (b"same", b"sane", Some(102)),
            (b"sa", b"same", Some(102)),
            (b"same", b"", Some(100)),
        ];
        for (medium, data, expected) in cases {
            let got = whole(medium, data, 100).err();
            assert_eq!(got.and_then(|sense| sense.information), expected);
        }
    }

    #[test]
    fn each_block_is_compared_with_one() {
        assert_eq!(one_block(b"abababab", b"ab"), Ok(()));
        let sense = one_block(b"ababacab", b"ab").unwrap_err();
        assert_eq!(sense.information, Some(1));
        assert!(one_block(b"a", b"").is_err());
    }

    #[test]
    fn bits_are_only_added() {
        let mut medium = [0b0001, 0b1000, 7];
        set_bits(&mut medium, &[0b0011, 0]);
        assert_eq!(medium, [0b0011, 0b1000, 7]);
    }
}
