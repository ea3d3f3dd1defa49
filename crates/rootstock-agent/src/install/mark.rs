//! The mark on a disk that an image was laid out on for this machine: docs/formats/install-mark.md.

use rootstock_core::Digest;
use serde::{Deserialize, Serialize};

/// Where it is: the last block before the first partition of most images.
pub(crate) const AT_BYTES: u64 = (1 << 20) - BYTES as u64;
/// Its length, and the most that is read of one.
pub(crate) const BYTES: usize = 4096;

const MAGIC: [u8; 12] = *b"ROOTSTOCKINS";
const FORMAT: u32 = 1;
/// Magic, format, length, digest.
const HEADER_BYTES: usize = 12 + 4 + 4 + 32;

/// Whose installation it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The public key of the site, in hex.
    pub(crate) site: String,
    /// The node.
    pub(crate) node: String,
    /// What the image's partition table is called, if it has a name of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<String>,
}

/// What a partition table is called: the disk GUID of a GPT (UEFI 2.10, table 5-5), or
/// the disk signature of an MBR (5.2.1).
pub(crate) fn table_of(front: &[u8]) -> Option<String> {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    if front.get(512..520)? == b"EFI PART" {
        return front.get(568..584).map(|guid| format!("gpt {}", hex(guid)));
    }
    let signature = front.get(440..444).filter(|bytes| **bytes != [0; 4])?;
    Some(format!("mbr {}", hex(signature)))
}

impl Mark {
    /// Its block; nothing when that has no room for it.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let text = serde_json::to_vec(self).ok()?;
        if text.len() > BYTES - HEADER_BYTES {
            return None;
        }
        let mut block = Vec::with_capacity(BYTES);
        block.extend(MAGIC);
        block.extend(FORMAT.to_le_bytes());
        block.extend((text.len() as u32).to_le_bytes());
        block.extend(Digest::of(&text).as_bytes());
        block.extend(text);
        block.resize(BYTES, 0);
        Some(block)
    }

    /// Whether it is of the same node of the same site.
    pub(crate) fn is_for(&self, other: &Self) -> bool {
        (&self.site, &self.node) == (&other.site, &other.node)
    }

    /// Whether the disk that begins so still is what was installed, or is on its way
    /// there: then it has no table.
    pub(crate) fn is_on(&self, front: &[u8]) -> bool {
        let is_on_its_way = front.iter().all(|byte| *byte == 0);
        is_on_its_way || (self.table.is_some() && self.table == table_of(front))
    }

    /// The mark in this block, if there is one that holds.
    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        let rest = block.strip_prefix(&MAGIC)?;
        let (format, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let text = rest.get(..u32::from_le_bytes(*len) as usize)?;
        let holds = u32::from_le_bytes(*format) == FORMAT && Digest::of(text).as_bytes() == digest;
        holds.then(|| serde_json::from_slice(text).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_never_otherwise() {
        let mark = Mark {
            site: "ab".repeat(32),
            node: "n1".to_owned(),
            table: Some("mbr 01020304".to_owned()),
        };
        let block = mark.encode().expect("has room");
        assert_eq!(block.len(), BYTES);
        assert_eq!(Mark::decode(&block), Some(mark.clone()));
        let used = HEADER_BYTES + block[16] as usize;
        for at in 0..used {
            let mut changed = block.clone();
            changed[at] ^= 1;
            assert_eq!(Mark::decode(&changed), None, "byte {at}");
            assert_eq!(Mark::decode(&block[..at]), None, "length {at}");
        }
        assert_eq!(Mark::decode(&[0; BYTES]), None);
        let mut front = [0; 4096];
        assert!(mark.is_on(&front));
        front[440..444].copy_from_slice(&[1, 2, 3, 4]);
        assert!(mark.is_on(&front));
        front[443] = 5;
        assert!(!mark.is_on(&front));
        let long = Mark {
            node: "n".repeat(BYTES),
            ..mark
        };
        assert_eq!(long.encode(), None);
    }
}
