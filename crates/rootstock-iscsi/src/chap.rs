//! CHAP in both directions (section 12.1.3, RFC 1994), and binary values as text (section 6.1).
//!
//! The crate draws no randomness: identifiers and challenges come from outside.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// A challenge or a response, decoded (section 12.1.3).
pub const BINARY_BYTES_MAX: usize = 1024;

/// What responses are made with; the numbers of `CHAP_A` (section 12.1.3) are
/// those of IANA's registry of PPP authentication algorithms, as open-iscsi and the
/// kernel's target have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 5, which every initiator has.
    Md5,
    /// 7.
    Sha256,
}

impl Algorithm {
    /// The first of the initiator's list that is known here, as section 6.2.1 says of lists.
    #[must_use]
    pub fn choose(list: &str) -> Option<Self> {
        list.split(',').find_map(|number| match number {
            "5" => Some(Self::Md5),
            "7" => Some(Self::Sha256),
            _ => None,
        })
    }

    /// Its number in `CHAP_A`.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha256 => 7,
        }
    }

    /// The response: a hash over identifier, secret and challenge (RFC 1994, section 4.1).
    fn response(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let parts = [&[identifier], secret, challenge];
        match self {
            Self::Md5 => hash::<Md5>(parts),
            Self::Sha256 => hash::<Sha256>(parts),
        }
    }
}

fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().to_vec()
}

/// The initiator sent our own challenge back, to have us compute its answer:
/// the login is to fail (section 12.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the initiator's challenge is the one that it was sent")]
pub struct Reflected;

/// One exchange, from the challenge that the target has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What both sides hash with.
    pub algorithm: Algorithm,
    /// `CHAP_I` of the target.
    pub identifier: u8,
    /// `CHAP_C` of the target: new for every login, and never to be guessed.
    pub challenge: Vec<u8>,
}

impl Exchange {
    /// Whether the initiator knows the secret; takes as long wherever a wrong response differs.
    #[must_use]
    pub fn verify(&self, secret: &[u8], response: &[u8]) -> bool {
        let expected = self
            .algorithm
            .response(self.identifier, secret, &self.challenge);
        let differs = expected
            .iter()
            .zip(response)
            .fold(0, |differs, (one, other)| differs | (one ^ other));
        expected.len() == response.len() && differs == 0
    }

    /// The initiator's response to the target's challenge.
    #[must_use]
    pub fn respond(&self, secret: &[u8]) -> Vec<u8> {
        self.algorithm
            .response(self.identifier, secret, &self.challenge)
    }

    /// The target's answer to the initiator's own challenge, for mutual CHAP.
    ///
    /// # Errors
    /// When the challenge is the one that this exchange began with.
    pub fn answer(
        &self,
        secret: &[u8],
        identifier: u8,
        challenge: &[u8],
    ) -> Result<Vec<u8>, Reflected> {
        if challenge == self.challenge {
            return Err(Reflected);
        }
        Ok(self.algorithm.response(identifier, secret, challenge))
    }
}

/// Reads a binary value, `0x` and hexadecimal digits or `0b` and base64
/// (section 6.1); `None` when it is neither, or longer than [`BINARY_BYTES_MAX`].
#[must_use]
pub fn binary(value: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    let bytes = match prefix {
        "0x" | "0X" => from_hex(digits)?,
        "0b" | "0B" => STANDARD.decode(digits).ok()?,
        _ => return None,
    };
    (bytes.len() <= BINARY_BYTES_MAX).then_some(bytes)
}

/// Writes a binary value in hexadecimal, which is all that iPXE reads.
#[must_use]
pub fn to_text(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
    }
    text
}

/// With an odd number of digits the first stands alone.
fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if digits.is_empty() || digits.len() > BINARY_BYTES_MAX * 2 {
        return None;
    }
    let mut bytes = vec![0; digits.len().div_ceil(2)];
    for (from_end, digit) in digits.chars().rev().enumerate() {
        let nibble = u8::try_from(digit.to_digit(16)?).ok()?;
        let at = bytes.len().checked_sub(1 + from_end / 2)?;
        *bytes.get_mut(at)? |= nibble << (from_end % 2 * 4);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"a secret of sixteen";

    fn exchange(algorithm: Algorithm) -> Exchange {
        Exchange {
            algorithm,
            identifier: 0x27,
            challenge: (0..16).collect(),
        }
    }

    /// The responses were computed with Python's `hashlib`.
    #[test]
    fn responses_are_those_of_another_implementation() {
        for (list, response) in [
            ("5", "0x97b9916e0ba5145fef9141e0412e5d25"),
            (
                "7,5",
                "0x28441db5adb2c15d8f2daac85831d09b4297ac97cbde157ba866df09af5719e5",
            ),
        ] {
            let exchange = exchange(Algorithm::choose(list).unwrap());
            let mut response = binary(response).unwrap();
            assert!(exchange.verify(SECRET, &response), "{list}");
            assert!(!exchange.verify(b"another", &response), "{list}");
            assert!(!exchange.verify(SECRET, &response[1..]), "{list}");
            assert!(!exchange.verify(SECRET, &[]), "{list}");
            response[15] ^= 1;
            assert!(!exchange.verify(SECRET, &response), "{list}");
        }
        assert_eq!(Algorithm::choose("6,8"), None);
    }

    #[test]
    fn a_challenge_is_not_answered_with_itself() {
        let exchange = exchange(Algorithm::Md5);
        assert_eq!(
            exchange.answer(SECRET, 1, &exchange.challenge),
            Err(Reflected)
        );
        let other = Exchange {
            identifier: 1,
            challenge: vec![9; 16],
            ..exchange.clone()
        };
        let answer = exchange.answer(SECRET, 1, &[9; 16]).unwrap();
        assert!(other.verify(SECRET, &answer));
    }

    #[test]
    fn binary_values_are_read_in_both_forms() {
        for (value, expected) in [
            ("0x0aFf", Some(vec![10, 255])),
            ("0xaff", Some(vec![10, 255])),
            ("0bCv8=", Some(vec![10, 255])),
            ("0x", None),
            ("0xg0", None),
            ("0xé", None),
            ("0b!", None),
            ("10", None),
            ("é", None),
            ("0", None),
        ] {
            assert_eq!(binary(value), expected, "{value}");
        }
        assert_eq!(binary(&to_text(&[0; BINARY_BYTES_MAX + 1])), None);
    }

    proptest! {
        #[test]
        fn binary_values_come_back(bytes in prop::collection::vec(any::<u8>(), 1..BINARY_BYTES_MAX)) {
            prop_assert_eq!(binary(&to_text(&bytes)), Some(bytes.clone()));
            let base64 = format!("0b{}", STANDARD.encode(&bytes));
            prop_assert_eq!(binary(&base64), Some(bytes));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(0[xb])?\\PC{0,40}") {
            let _ = binary(&text);
        }
    }
}
