//! The cyclic redundancy checks of GPT, ext4 and LVM2.

/// CRC-32 (IEEE 802.3), as UEFI 2.10 section 5.3.2 uses it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table(0xedb8_8320);
    !update(&TABLE, !0, bytes)
}

/// CRC-32C without the final inversion, as ext4's `metadata_csum` uses it.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table(0x82f6_3b78);
    update(&TABLE, seed, bytes)
}

/// CRC-32 as LVM2 begins it, and without an inversion (`lib/misc/crc.c`).
pub(super) fn crc_lvm(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table(0xedb8_8320);
    update(&TABLE, 0xf597_a6cf, bytes)
}

/// CRC-16 (ARC) without a final inversion, as ext4's `uninit_bg` uses it.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    const TABLE: [u32; 256] = table(0xa001);
    update(&TABLE, seed.into(), bytes) as u16
}

fn update(table: &[u32; 256], seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (crc >> 8) ^ table[((crc ^ u32::from(*byte)) & 0xff) as usize]
    })
}

const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let out = crc & 1;
            crc >>= 1;
            if out == 1 {
                crc ^= polynomial;
            }
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        // The catalogue's check input of every CRC.
        let input = b"123456789";
        assert_eq!(crc32(input), 0xcbf4_3926);
        assert_eq!(!crc32c(!0, input), 0xe306_9283);
        assert_eq!(crc16(0, input), 0xbb3d);
    }
}
