//! The `key=value` pairs of login and text PDUs (section 6.1).

use thiserror::Error;

/// A key's name (section 6.1).
pub const KEY_BYTES_MAX: usize = 63;
/// A value: CHAP's may be long binaries, everything else is at most 255.
pub const VALUE_BYTES_MAX: usize = 8192;
/// Pairs in one negotiation step; initiators send about twenty.
pub const PAIRS_MAX: usize = 64;

/// Why text is not pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TextError {
    /// Not ended by a zero byte, without `=`, or not UTF-8.
    #[error("text that is not pairs of a key and a value")]
    Malformed,
    /// Beyond one of this module's limits.
    #[error("a key, a value or the number of pairs is beyond its limit")]
    TooLong,
}

/// Splits text into its pairs.
///
/// # Errors
/// On the first pair that is none, and beyond the limits.
pub fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let mut found = Vec::new();
    let Some(text) = text.strip_suffix(&[0]) else {
        return if text.is_empty() {
            Ok(found)
        } else {
            Err(TextError::Malformed)
        };
    };
    // Some initiators end their text with more than one zero byte.
    for pair in text
        .split(|byte| *byte == 0)
        .filter(|pair| !pair.is_empty())
    {
        if found.len() == PAIRS_MAX {
            return Err(TextError::TooLong);
        }
        found.push(split(pair)?);
    }
    Ok(found)
}

fn split(pair: &[u8]) -> Result<(&str, &str), TextError> {
    let pair = str::from_utf8(pair).map_err(|_| TextError::Malformed)?;
    let (key, value) = pair.split_once('=').ok_or(TextError::Malformed)?;
    if key.is_empty() {
        return Err(TextError::Malformed);
    }
    if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
        return Err(TextError::TooLong);
    }
    Ok((key, value))
}

/// A decimal or hexadecimal constant (section 6.1).
#[must_use]
pub fn number(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    // The library's own parser also takes a sign.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// Collects the pairs of an answer.
#[derive(Debug, Default)]
pub struct TextWriter {
    bytes: Vec<u8>,
}

impl TextWriter {
    /// Appends one pair.
    pub fn push(&mut self, key: &str, value: &str) {
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The text as it goes into a PDU.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_read_or_refused() {
        type Expected = Result<Vec<(&'static str, &'static str)>, TextError>;
        let long_key = [&[b'k'; 64][..], b"=v\0"].concat();
        let cases: [(&[u8], Expected); 8] = [
            (b"", Ok(vec![])),
            (b"A=b\0C=d=e\0", Ok(vec![("A", "b"), ("C", "d=e")])),
            (b"A=\0\0", Ok(vec![("A", "")])),
            (b"A=b", Err(TextError::Malformed)),
            (b"A\0", Err(TextError::Malformed)),
            (b"=b\0", Err(TextError::Malformed)),
            (b"A=\xff\0", Err(TextError::Malformed)),
            (&long_key, Err(TextError::TooLong)),
        ];
        for (text, expected) in cases {
            assert_eq!(pairs(text), expected, "{text:?}");
        }
        assert_eq!(
            pairs(&b"a=b\0".repeat(PAIRS_MAX + 1)),
            Err(TextError::TooLong)
        );
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal_without_signs() {
        let cases = [
            ("512", Some(512)),
            ("0x200", Some(512)),
            ("+1", None),
            ("0x+1", None),
            ("-1", None),
            ("", None),
            ("0x", None),
            ("4294967296", None),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = pairs(&bytes);
        }
    }
}
