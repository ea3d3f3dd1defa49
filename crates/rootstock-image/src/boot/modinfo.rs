//! What a kernel module says of itself: the strings of its `.modinfo` section.
//!
//! A module is an ELF object (System V ABI, "Object Files"); the section holds
//! `key=value` strings that end with NUL.

/// The most strings that are taken from one module.
const STRINGS_MAX: usize = 8192;

/// The most sections that are looked at.
const SECTIONS_MAX: usize = 4096;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;

/// The values of a key, such as `firmware`; none when the module is no 64-bit
/// little-endian ELF object or is damaged.
pub(super) fn values<'a>(module: &'a [u8], key: &str) -> Vec<&'a str> {
    section(module, b".modinfo").map_or_else(Vec::new, |strings| values_in(strings, key))
}

/// The values of a key among NUL-terminated `key=value` strings.
pub(super) fn values_in<'a>(strings: &'a [u8], key: &str) -> Vec<&'a str> {
    strings
        .split(|byte| *byte == 0)
        .take(STRINGS_MAX)
        .filter_map(|string| std::str::from_utf8(string).ok())
        .filter_map(|string| string.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

/// Whether it is an object that this reads.
pub(super) fn is_module(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES
        && bytes.starts_with(b"\x7fELF")
        && bytes[4] == CLASS_64
        && bytes[5] == LITTLE_ENDIAN
}

fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !is_module(elf) {
        return None;
    }
    let table = usize::try_from(u64_at(elf, 40)?).ok()?;
    let count = usize::from(u16_at(elf, 60)?);
    let names_index = usize::from(u16_at(elf, 62)?);
    if usize::from(u16_at(elf, 58)?) != SECTION_BYTES {
        return None;
    }
    let contents = |index: usize| {
        let at = table.checked_add(index.checked_mul(SECTION_BYTES)?)?;
        let start = usize::try_from(u64_at(elf, at.checked_add(24)?)?).ok()?;
        let len = usize::try_from(u64_at(elf, at.checked_add(32)?)?).ok()?;
        elf.get(start..start.checked_add(len)?)
    };
    let names = contents(names_index)?;
    (0..count.min(SECTIONS_MAX)).find_map(|index| {
        let at = table.checked_add(index * SECTION_BYTES)?;
        let own = usize::try_from(u32_at(elf, at)?).ok()?;
        let rest = names.get(own..)?;
        let found = rest.starts_with(name) && rest.get(name.len()) == Some(&0);
        if found { contents(index) } else { None }
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest module with these strings.
    pub(in crate::boot) fn module(strings: &[&str]) -> Vec<u8> {
        let mut modinfo = Vec::new();
        for string in strings {
            modinfo.extend_from_slice(string.as_bytes());
            modinfo.push(0);
        }
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut elf = vec![0; HEADER_BYTES];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names);
        let modinfo_at = elf.len() as u64;
        elf.extend_from_slice(&modinfo);
        let table_at = elf.len() as u64;
        let sections = [
            (0_u32, 0, 0),
            (1, names_at, names.len() as u64),
            (11, modinfo_at, modinfo.len() as u64),
        ];
        for (name, at, len) in sections {
            let mut section = [0; SECTION_BYTES];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&at.to_le_bytes());
            section[32..40].copy_from_slice(&len.to_le_bytes());
            elf.extend_from_slice(&section);
        }
        elf[40..48].copy_from_slice(&table_at.to_le_bytes());
        elf[58..60].copy_from_slice(&64_u16.to_le_bytes());
        elf[60..62].copy_from_slice(&3_u16.to_le_bytes());
        elf[62..64].copy_from_slice(&1_u16.to_le_bytes());
        elf
    }

    #[test]
    fn firmware_is_among_the_strings() {
        let elf = module(&["license=GPL", "firmware=a/b.bin", "firmware=c.fw", "firm=x"]);
        assert_eq!(values(&elf, "firmware"), ["a/b.bin", "c.fw"]);
        assert_eq!(values(&elf, "license"), ["GPL"]);
        assert!(values(b"\x7fELF", "license").is_empty());
    }

    proptest! {
        #[test]
        fn damage_does_no_harm(at in any::<prop::sample::Index>(), bytes in any::<[u8; 8]>(), cut in any::<prop::sample::Index>()) {
            let mut elf = module(&["firmware=a/b.bin"]);
            let at = at.index(elf.len() - 8);
            elf[at..at + 8].copy_from_slice(&bytes);
            elf.truncate(cut.index(elf.len()) + 1);
            let _ = values(&elf, "firmware");
        }
    }
}
