//! The firmware that drivers of a first stage ask for.

use std::collections::BTreeSet;

use super::{
    modules::is_inside,
    root_fs::{FsError, RootFs},
    unpack::unpack,
};

/// The most firmware in one first stage, in bytes, decompressed.
pub const FIRMWARE_BYTES_MAX: u64 = 24 << 20;
/// The most files of it.
const FILES_MAX: usize = 2048;
/// The most names that drivers may ask for.
const NAMES_MAX: usize = 16_384;
/// The largest single file, in bytes, decompressed.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Where the kernel looks, in its order (its firmware_class): `KERNEL` is the
/// running version.
const DIRS: [&str; 4] = [
    "/lib/firmware/updates/KERNEL",
    "/lib/firmware/updates",
    "/lib/firmware/KERNEL",
    "/lib/firmware",
];
const ENDINGS: [&str; 3] = ["", ".zst", ".xz"];

/// Firmware that was asked for.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Adds what a driver asks for, unless the name leads elsewhere.
    pub(super) fn add(&mut self, name: &str) {
        if is_inside(name) && self.0.len() < NAMES_MAX {
            self.0.insert(name.to_owned());
        }
    }
}

/// The files that the image has, and those that were left out for their size.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// Names below `/lib/firmware` and contents, by name.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// Names.
    pub(super) left_out: Vec<String>,
}

/// Takes what is there. When there is too much, the smallest files come in: so
/// most machines have what they need.
pub(super) fn gather(fs: &dyn RootFs, version: &str, names: &Names) -> Result<Firmware, FsError> {
    let mut found = Vec::new();
    for name in &names.0 {
        if let Some((path, len_bytes)) = place(fs, version, name)? {
            found.push((len_bytes, name, path));
        }
    }
    found.sort_unstable();
    let mut firmware = Firmware::default();
    let mut room_bytes = FIRMWARE_BYTES_MAX;
    for (_, name, path) in found {
        let bytes = fs.read(&path, FILE_BYTES_MAX);
        let plain = match bytes {
            Ok(bytes) => unpack(bytes, room_bytes.min(FILE_BYTES_MAX)).ok(),
            Err(FsError::TooLong { .. }) => None,
            Err(error) => return Err(error),
        };
        match plain.filter(|_| firmware.files.len() < FILES_MAX) {
            Some(plain) => {
                room_bytes -= plain.len() as u64;
                firmware.files.push((name.clone(), plain));
            }
            None => firmware.left_out.push(name.clone()),
        }
    }
    firmware.files.sort_unstable();
    firmware.left_out.sort_unstable();
    Ok(firmware)
}

fn place(fs: &dyn RootFs, version: &str, name: &str) -> Result<Option<(String, u64)>, FsError> {
    for dir in DIRS {
        let dir = dir.replace("KERNEL", version);
        for ending in ENDINGS {
            let path = format!("{dir}/{name}{ending}");
            if let Some(stat) = fs.stat(&path)?
                && stat.kind == super::FileKind::File
            {
                return Ok(Some((path, stat.len_bytes)));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryFs;
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_not_looked_for() {
        let mut names = Names::default();
        for name in [
            "../../etc/shadow",
            "/etc/shadow",
            "a//b",
            "",
            "rtl_nic/rtl8168h-2.fw",
        ] {
            names.add(name);
        }
        assert_eq!(names.0.len(), 1);
    }

    #[test]
    fn the_place_with_precedence_wins_and_compression_goes() {
        let packed = zstd::encode_all(b"new".as_slice(), 1).expect("compresses");
        let fs = MemoryFs::new(&[
            ("/lib/firmware/a.fw", b"old"),
            ("/lib/firmware/updates/a.fw.zst", &packed),
            ("/lib/firmware/6.1/b.fw", b"of this kernel"),
        ]);
        let mut names = Names::default();
        for name in ["a.fw", "b.fw", "absent.fw"] {
            names.add(name);
        }
        let firmware = gather(&fs, "6.1", &names).expect("gathers");
        let expected = [
            ("a.fw", b"new".to_vec()),
            ("b.fw", b"of this kernel".to_vec()),
        ];
        assert_eq!(
            firmware.files,
            expected.map(|(name, bytes)| (name.to_owned(), bytes))
        );
        assert!(firmware.left_out.is_empty());
    }

    #[test]
    fn too_much_is_left_out_largest_first() {
        let large = vec![0; FILE_BYTES_MAX as usize];
        let fs = MemoryFs::new(&[
            ("/lib/firmware/a.fw", &large),
            ("/lib/firmware/b.fw", &large),
            ("/lib/firmware/c.fw", b"small"),
        ]);
        let mut names = Names::default();
        for name in ["a.fw", "b.fw", "c.fw"] {
            names.add(name);
        }
        let firmware = gather(&fs, "6.1", &names).expect("gathers");
        let taken: Vec<_> = firmware
            .files
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(taken, ["a.fw", "c.fw"]);
        assert_eq!(firmware.left_out, ["b.fw"]);
    }
}
