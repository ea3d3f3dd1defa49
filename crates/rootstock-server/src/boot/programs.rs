//! Boot programs: which there are, where they are found, and what brings them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::body::Content;

/// The most files of one directory that are offered.
const DIRECTORY_FILES_MAX: usize = 1024;

/// A boot program by the name that firmware asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    /// The name.
    pub(crate) name: &'static str,
    /// The processor.
    pub(crate) arch: &'static str,
    /// `bios` or `uefi`.
    pub(crate) firmware: &'static str,
    /// What it does.
    pub(crate) role: &'static str,
    /// Where distributions put it.
    pub(crate) places: &'static [&'static str],
    /// The package that brings it.
    pub(crate) package: &'static str,
    /// Whether machines boot without it.
    pub(crate) need: Need,
}

/// Whether machines boot without a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// No machine of its kind boots without it.
    Needed,
    /// Some do better with it.
    Useful,
}

const IPXE: &str = "ipxe";

/// Every program that is known by name. A shim asks for what comes after it by a
/// name of its own: `snponly-shimx64.efi` for `snponly.efi`, `shimx64.efi` for
/// `grubx64.efi`, from the same directory.
pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "undionly.kpxe",
        arch: "x86_64",
        firmware: "bios",
        role: "iPXE over the ROM's own driver",
        places: &[
            "/usr/lib/ipxe/undionly.kpxe",
            "/usr/share/ipxe/undionly.kpxe",
        ],
        package: IPXE,
        need: Need::Needed,
    },
    Program {
        name: "ipxe.pxe",
        arch: "x86_64",
        firmware: "bios",
        role: "iPXE with its own drivers, for ROMs whose driver is broken",
        places: &["/usr/lib/ipxe/ipxe.pxe", "/usr/share/ipxe/ipxe.pxe"],
        package: IPXE,
        need: Need::Useful,
    },
    Program {
        name: "snponly.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "iPXE over the firmware's own driver",
        places: &[
            "/usr/lib/ipxe/snponly.efi",
            "/usr/share/ipxe/ipxe-snponly-x86_64.efi",
            "/usr/share/ipxe/snponly.efi",
        ],
        package: IPXE,
        need: Need::Needed,
    },
    Program {
        name: "ipxe.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "iPXE with its own drivers, for firmware whose driver is broken",
        places: &["/usr/lib/ipxe/ipxe.efi", "/usr/share/ipxe/ipxe-x86_64.efi"],
        package: IPXE,
        need: Need::Useful,
    },
    Program {
        name: "snponly-shimx64.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "shim of the signed iPXE 2.0, for Secure Boot",
        places: &["/usr/lib/ipxe/snponly-shimx64.efi"],
        package: "the signed iPXE of ipxe.org, in a directory of boot.files",
        need: Need::Useful,
    },
    Program {
        name: "shimx64.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "the distribution's shim, for Secure Boot",
        places: &[
            "/usr/lib/shim/shimx64.efi.signed",
            "/boot/efi/EFI/BOOT/BOOTX64.EFI",
        ],
        package: "shim-signed",
        need: Need::Useful,
    },
    Program {
        name: "grubx64.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "the distribution's signed network GRUB, for Secure Boot",
        places: &["/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"],
        package: "grub-efi-amd64-signed",
        need: Need::Useful,
    },
    Program {
        name: "mmx64.efi",
        arch: "x86_64",
        firmware: "uefi",
        role: "shim's key manager",
        places: &["/usr/lib/shim/mmx64.efi.signed", "/usr/lib/shim/mmx64.efi"],
        package: "shim-helpers-amd64-signed",
        need: Need::Useful,
    },
    Program {
        name: "snponly-arm64.efi",
        arch: "aarch64",
        firmware: "uefi",
        role: "iPXE over the firmware's own driver",
        places: &[
            "/usr/lib/ipxe/snponly-arm64.efi",
            "/usr/lib/ipxe/arm64-efi/snponly.efi",
            "/usr/share/ipxe/arm64-efi/snponly.efi",
        ],
        package: IPXE,
        need: Need::Needed,
    },
    Program {
        name: "ipxe-arm64.efi",
        arch: "aarch64",
        firmware: "uefi",
        role: "iPXE with its own drivers",
        places: &[
            "/usr/lib/ipxe/ipxe-arm64.efi",
            "/usr/lib/ipxe/arm64-efi/ipxe.efi",
            "/usr/share/ipxe/arm64-efi/ipxe.efi",
        ],
        package: IPXE,
        need: Need::Useful,
    },
    Program {
        name: "snponly-shimaa64.efi",
        arch: "aarch64",
        firmware: "uefi",
        role: "shim of the signed iPXE 2.0, for Secure Boot",
        places: &["/usr/lib/ipxe/snponly-shimaa64.efi"],
        package: "the signed iPXE of ipxe.org, in a directory of boot.files",
        need: Need::Useful,
    },
    Program {
        name: "snponly-ia32.efi",
        arch: "i386",
        firmware: "uefi",
        role: "iPXE over the firmware's own driver, for 32-bit UEFI",
        places: &[
            "/usr/lib/ipxe/snponly-ia32.efi",
            "/usr/share/ipxe/ipxe-snponly-i386.efi",
        ],
        package: IPXE,
        need: Need::Useful,
    },
    Program {
        name: "ipxe-ia32.efi",
        arch: "i386",
        firmware: "uefi",
        role: "iPXE with its own drivers, for 32-bit UEFI",
        places: &[
            "/usr/lib/ipxe/ipxe-ia32.efi",
            "/usr/share/ipxe/ipxe-i386.efi",
        ],
        package: IPXE,
        need: Need::Useful,
    },
    Program {
        name: "shimaa64.efi",
        arch: "aarch64",
        firmware: "uefi",
        role: "the distribution's shim, for Secure Boot",
        places: &["/usr/lib/shim/shimaa64.efi.signed"],
        package: "shim-signed (arm64)",
        need: Need::Useful,
    },
    Program {
        name: "grubaa64.efi",
        arch: "aarch64",
        firmware: "uefi",
        role: "the distribution's signed network GRUB, for Secure Boot",
        places: &["/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"],
        package: "grub-efi-arm64-signed",
        need: Need::Useful,
    },
];

/// What GRUB is made of that machines start with from their own disk. Firmware does
/// not ask for these.
pub(crate) const LOCAL_PROGRAMS: [Program; 3] = [
    Program {
        name: "boot.img",
        arch: "x86_64",
        firmware: "bios",
        role: "GRUB's boot sector, for machines that start from their own disk",
        places: &["/usr/lib/grub/i386-pc/boot.img"],
        package: "grub-pc-bin",
        need: Need::Useful,
    },
    Program {
        name: "grub-mkimage",
        arch: "x86_64",
        firmware: "bios",
        role: "puts GRUB together, for machines that start from their own disk",
        places: &["/usr/bin/grub-mkimage", "/usr/bin/grub2-mkimage"],
        package: "grub-common",
        need: Need::Useful,
    },
    Program {
        name: "grubx64.efi.signed",
        arch: "x86_64",
        firmware: "uefi",
        role: "the distribution's signed GRUB, for machines that start from their own disk",
        places: &["/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"],
        package: "grub-efi-amd64-signed",
        need: Need::Useful,
    },
];

impl Program {
    /// Where the distribution put it, if it is there.
    pub(crate) fn place(&self) -> Option<PathBuf> {
        let places = self.places.iter().map(Path::new);
        places
            .filter(|path| path.is_file())
            .map(Path::to_owned)
            .next()
    }
}

/// The boot programs of a server.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// Programs are looked for in these directories first.
    pub(crate) fn new(directories: &[PathBuf]) -> Self {
        Self {
            directories: directories.to_vec(),
        }
    }

    /// Where a program is: in the administrator's directories under the name that
    /// was asked for, whatever that is, or where the distribution puts one that is
    /// known. The name is compared and never made a path of.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        for directory in &self.directories {
            let entries = fs::read_dir(directory).ok();
            let entries = entries.into_iter().flatten().take(DIRECTORY_FILES_MAX);
            let found = entries
                .flatten()
                .find(|entry| entry.file_name().to_str() == Some(name))
                .map(|entry| entry.path());
            if let Some(path) = found.filter(|path| path.is_file()) {
                return Some(path);
            }
        }
        let program = PROGRAMS.iter().find(|program| program.name == name)?;
        program.place()
    }

    /// A program's contents. Waits for the disk.
    pub(crate) fn open(&self, name: &str) -> Option<Content> {
        let path = self.find(name)?;
        match Content::open(&path) {
            Ok(content) => Some(content),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "boot program not readable");
                None
            }
        }
    }
}

/// The media type of a file (RFC 9110, section 8.3): UEFI wants to know what it
/// is given.
pub(crate) fn media_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "efi" | "EFI" => "application/efi",
        "ipxe" | "cfg" | "txt" => "text/plain",
        "iso" => "application/vnd.efi-iso",
        "img" => "application/vnd.efi-img",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_go_first_and_no_name_is_a_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let boot = dir.path().join("boot");
        fs::create_dir_all(boot.join("deep")).expect("makes");
        fs::write(boot.join("snponly.efi"), "own").expect("writes");
        fs::write(boot.join("deep/x.efi"), "deep").expect("writes");
        fs::write(dir.path().join("secret"), "secret").expect("writes");
        let programs = Programs::new(std::slice::from_ref(&boot));
        assert_eq!(programs.find("snponly.efi"), Some(boot.join("snponly.efi")));
        for name in [
            "../secret",
            "deep/x.efi",
            "deep",
            "",
            ".",
            "..",
            "/etc/passwd",
            "nothing.efi",
        ] {
            assert_eq!(programs.find(name), None, "{name}");
        }
    }

    #[test]
    fn every_program_has_one_name_and_a_place() {
        for (at, program) in PROGRAMS.iter().enumerate() {
            assert!(!program.places.is_empty(), "{}", program.name);
            assert!(
                PROGRAMS[..at]
                    .iter()
                    .all(|other| other.name != program.name)
            );
        }
    }
}
