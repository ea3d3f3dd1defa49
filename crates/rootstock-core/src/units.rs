//! Sizes that formats and protocols are built on, and how people read them.

use std::fmt;

/// A disk sector in bytes: the unit of partition tables.
pub const SECTOR_BYTES: u64 = 512;

/// A block in bytes: the unit of overlays and recipes.
pub const BLOCK_BYTES: u64 = 4096;

/// A chunk in bytes of raw data: the unit of storage, identity and transfer.
pub const CHUNK_BYTES: u64 = 256 * 1024;

/// The largest disk an image or a volume may have, in bytes (64 TiB).
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Prints a byte count for people: decimal units, three significant digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 1000 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in UNITS {
            // 999.5 would print as "1000": move to the next unit before that.
            if value < 999.5 {
                break;
            }
            value /= 1000.0;
            unit = next;
        }
        let text = if value < 9.995 {
            format!("{value:.2} {unit}")
        } else if value < 99.95 {
            format!("{value:.1} {unit}")
        } else {
            format!("{value:.0} {unit}")
        };
        f.pad(&text)
    }
}

/// A byte count that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a size: write bytes or a number with K, M, G, T (powers of 1024), such as 20G"
)]
pub struct SizeError {
    /// What was written.
    pub text: String,
}

/// Reads a size as people write it: `4096`, `20G`, `1.5T`, `512MiB`, `10GB`.
///
/// `K`, `M`, `G`, `T` and `KiB`… are powers of 1024, as in `qemu-img`;
/// `kB`, `MB`, `GB`, `TB` are powers of 1000.
///
/// # Errors
/// [`SizeError`] for anything else, and for sizes above [`DISK_BYTES_MAX`].
pub fn parse_size_bytes(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError {
        text: text.chars().take(64).collect(),
    };
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(error()),
    };
    let bytes = if let Ok(whole) = number.parse::<u64>() {
        whole.checked_mul(factor).ok_or_else(error)?
    } else {
        let value: f64 = number.parse().map_err(|_| error())?;
        (value * factor as f64) as u64
    };
    if bytes > DISK_BYTES_MAX {
        return Err(error());
    }
    Ok(bytes)
}

/// Whether every byte is zero. Compiles to wide vector compares.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(128);
    blocks.all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
        && bytes
            .chunks_exact(128)
            .remainder()
            .iter()
            .all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (68_700_000, "68.7 MB"),
            (999_499, "999 kB"),
            (999_600, "1.00 MB"),
            (8 << 30, "8.59 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(HumanBytes(bytes).to_string(), expected, "{bytes}");
        }
    }

    #[test]
    fn sizes_are_read_as_written() {
        let cases = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("20G", Some(20 << 30)),
            ("1.5T", Some(3 << 39)),
            ("10GB", Some(10_000_000_000)),
            ("512 MiB", Some(512 << 20)),
            ("65T", None),
            ("-1", None),
            ("", None),
            ("G", None),
            ("20Q", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn zero_is_told_from_nonzero_at_every_place() {
        for len in [0, 1, 127, 128, 129, 300] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{len} {at}");
                bytes[at] = 0;
            }
        }
    }
}
