//! Which kernel of an image boots.

use std::cmp::Ordering;

use super::root_fs::{FileKind, FsError, RootFs};

/// The largest kernel, in bytes.
pub const KERNEL_BYTES_MAX: u64 = 256 << 20;

/// The most kernels that are looked at.
const KERNELS_MAX: usize = 64;
/// The longest version, in bytes: `UTS_RELEASE` is shorter than 64.
const VERSION_BYTES_MAX: usize = 128;
/// How much of a kernel holds its version, in bytes: the boot sector with the
/// setup code has up to 64 sectors.
const HEAD_BYTES: u64 = 33 << 10;

/// Where modules are, below the root; `lib` may be a link to `usr/lib`.
const MODULE_ROOTS: [&str; 2] = ["/lib/modules", "/usr/lib/modules"];
/// How the names of kernels in `/boot` begin, by distribution.
const KERNEL_NAMES: [&str; 5] = ["vmlinuz", "vmlinux", "kernel-", "bzImage", "Image"];

/// A kernel that can boot: its file and its modules are both there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` says.
    pub version: String,
    /// Its file in the image.
    pub path: String,
    /// The directory of its modules.
    pub modules: String,
}

/// Why none boots.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is neither a kernel nor modules.
    #[error(
        "the image has no Linux kernel: neither /boot nor /lib/modules has one; \
         install the distribution's kernel package in it"
    )]
    None,
    /// Kernels without modules, or modules without a kernel.
    #[error(
        "no kernel of the image can boot: {}; \
         install the kernel's packages again, or run `depmod VERSION` in the image",
        why.join("; ")
    )]
    Incomplete {
        /// What each lacks.
        why: Vec<String>,
    },
    /// The one that was asked for is not there.
    #[error("the image has no kernel {wanted}; it has {}", list_of(there))]
    NotThere {
        /// What was asked for.
        wanted: String,
        /// The versions that can boot.
        there: Vec<String>,
    },
    /// The image cannot be read.
    #[error("the image's kernels cannot be looked for")]
    Fs(#[from] FsError),
}

/// The kernels that can boot, the preferred one first.
///
/// # Errors
/// When there is none; the error says what is missing.
pub fn kernels(fs: &dyn RootFs) -> Result<Vec<Kernel>, KernelError> {
    let modules = module_dirs(fs)?;
    let files = kernel_files(fs, &modules)?;
    let mut found = Vec::new();
    let mut why = Vec::new();
    for dir in &modules {
        let file = files.iter().find(|file| file.version == dir.version);
        match (file, dir.has_dependencies) {
            (Some(file), true) => found.push(Kernel {
                version: dir.version.clone(),
                path: file.path.clone(),
                modules: dir.path.clone(),
            }),
            (Some(_), false) => why.push(format!("{}/modules.dep is missing", dir.path)),
            (None, _) => why.push(format!("{} has no kernel in /boot", dir.path)),
        }
    }
    for file in &files {
        if !modules.iter().any(|dir| dir.version == file.version) {
            why.push(format!(
                "{} has no /lib/modules/{}",
                file.path, file.version
            ));
        }
    }
    if !found.is_empty() {
        found.sort_by(|a, b| newer(&a.version, &b.version));
        return Ok(found);
    }
    if why.is_empty() {
        return Err(KernelError::None);
    }
    Err(KernelError::Incomplete { why })
}

/// The kernel that boots: the newest, or the one that is asked for by its
/// version or by its path in the image.
///
/// # Errors
/// When there is none, or not the one that is asked for.
pub fn choose_kernel(fs: &dyn RootFs, wanted: Option<&str>) -> Result<Kernel, KernelError> {
    let all = kernels(fs)?;
    let Some(wanted) = wanted else {
        return all.into_iter().next().ok_or(KernelError::None);
    };
    if let Some(kernel) = all
        .iter()
        .find(|kernel| kernel.version == wanted || kernel.path == wanted)
    {
        return Ok(kernel.clone());
    }
    if wanted.starts_with('/')
        && fs.is_file(wanted)?
        && let Some(version) = version_of(fs, wanted, "")?
        && let Some(kernel) = all.iter().find(|kernel| kernel.version == version)
    {
        return Ok(Kernel {
            path: wanted.to_owned(),
            ..kernel.clone()
        });
    }
    Err(KernelError::NotThere {
        wanted: wanted.to_owned(),
        there: all.into_iter().map(|kernel| kernel.version).collect(),
    })
}

/// Orders versions of kernels, the preferred one first: by number, then the
/// kernel for all machines before those for debugging or for clouds alone.
#[must_use]
pub fn newer(a: &str, b: &str) -> Ordering {
    let ((a_base, a_flavour), (b_base, b_flavour)) = (flavour(a), flavour(b));
    compare(b_base, a_base)
        .then_with(|| drawback(a_flavour).cmp(&drawback(b_flavour)))
        .then_with(|| compare(b, a))
        .then_with(|| a.cmp(b))
}

struct ModuleDir {
    version: String,
    path: String,
    has_dependencies: bool,
}

struct KernelFile {
    version: String,
    path: String,
}

fn module_dirs(fs: &dyn RootFs) -> Result<Vec<ModuleDir>, FsError> {
    let mut dirs: Vec<ModuleDir> = Vec::new();
    for root in MODULE_ROOTS {
        for version in fs.list(root)?.into_iter().filter(|name| is_version(name)) {
            // `lib` is often a link to `usr/lib`: the same directory again.
            if dirs.len() >= KERNELS_MAX || dirs.iter().any(|dir| dir.version == version) {
                continue;
            }
            let path = format!("{root}/{version}");
            let is_dir = fs
                .stat(&path)?
                .is_some_and(|stat| stat.kind == FileKind::Dir);
            if is_dir {
                let has_dependencies = fs.is_file(&format!("{path}/modules.dep"))?;
                dirs.push(ModuleDir {
                    version,
                    path,
                    has_dependencies,
                });
            }
        }
    }
    Ok(dirs)
}

/// Kernels by preference of their place: what the boot loader takes comes first.
fn kernel_files(fs: &dyn RootFs, modules: &[ModuleDir]) -> Result<Vec<KernelFile>, FsError> {
    let mut files: Vec<KernelFile> = Vec::new();
    let named = |name: &str| KERNEL_NAMES.iter().any(|kernel| name.starts_with(kernel));
    let mut names = fs.list("/boot")?;
    names.retain(|name| named(name));
    // A name with the version in it stands for itself; others, such as the
    // rescue kernel that is a copy, come after.
    names.sort_by_key(|name| !modules.iter().any(|dir| name.ends_with(&dir.version)));
    for name in names.into_iter().take(KERNELS_MAX) {
        let path = format!("/boot/{name}");
        if !fs.is_file(&path)? {
            continue;
        }
        let suffix = name.split_once('-').map_or("", |(_, suffix)| suffix);
        let by_name = modules.iter().find(|dir| dir.version == suffix);
        let version = match by_name {
            Some(dir) => Some(dir.version.clone()),
            None => version_of(fs, &path, suffix)?,
        };
        files.extend(version.map(|version| KernelFile { version, path }));
    }
    // RPM distributions and Arch Linux keep the kernel beside its modules.
    for dir in modules {
        let path = format!("{}/vmlinuz", dir.path);
        if fs.is_file(&path)? {
            let version = dir.version.clone();
            files.push(KernelFile { version, path });
        }
    }
    Ok(files)
}

/// The version in a kernel's own header, as the kernel's
/// Documentation/arch/x86/boot.rst has it; without such a header, by its name.
fn version_of(fs: &dyn RootFs, path: &str, by_name: &str) -> Result<Option<String>, FsError> {
    let head = fs.read_head(path, HEAD_BYTES)?;
    let in_header = || {
        if head.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let offset = head.get(0x20e..0x210)?;
        let start = usize::from(u16::from_le_bytes([offset[0], offset[1]])) + 0x200;
        let text = head.get(start..)?;
        let end = text
            .iter()
            .take(VERSION_BYTES_MAX)
            .position(|byte| matches!(byte, b' ' | 0))?;
        let version = std::str::from_utf8(&text[..end]).ok()?;
        is_version(version).then(|| version.to_owned())
    };
    let by_name = || is_version(by_name).then(|| by_name.to_owned());
    Ok(in_header().or_else(by_name))
}

/// Whether it can be a version, and nothing else when it is part of a path.
fn is_version(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_digit())
        && name.len() <= VERSION_BYTES_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte))
}

/// A version's number, and what tells kernels of one number apart:
/// `6.1.0-18` and `cloud-amd64`.
fn flavour(version: &str) -> (&str, &str) {
    let bytes = version.as_bytes();
    let at = (1..bytes.len()).find(|at| {
        bytes[at - 1] == b'+' || bytes[at - 1] == b'-' && bytes[*at].is_ascii_alphabetic()
    });
    at.map_or((version, ""), |at| (&version[..at - 1], &version[at..]))
}

/// How much less a flavour fits any machine.
fn drawback(flavour: &str) -> u8 {
    let mut words = flavour.split(['-', '_', '.', '+']);
    let worst = |word| match word {
        "debug" | "dbg" => 2,
        "cloud" | "kvm" | "virt" | "virtual" | "azure" | "aws" | "gcp" => 1,
        _ => 0,
    };
    words.by_ref().map(worst).max().unwrap_or(0)
}

/// Runs of digits by their number, other runs by their bytes.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (number(&mut a), number(&mut b));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (Some(x), Some(y)) => {
                (a, b) = (&a[1..], &b[1..]);
                x.cmp(y)
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the leading digits, without leading zeros.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit());
    let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    let first = digits.iter().position(|byte| *byte != b'0');
    &digits[first.unwrap_or(digits.len())..]
}

fn list_of(versions: &[String]) -> String {
    versions.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Files, MemoryFs};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_for_all_machines_comes_first() {
        for (first, second) in [
            ("6.1.0-18-amd64", "6.1.0-9-amd64"),
            ("6.10.1-1-default", "6.9.12-1-default"),
            ("6.1.0-18-amd64", "6.1.0-18-cloud-amd64"),
            ("6.1.0-20-cloud-amd64", "6.1.0-18-amd64"),
            ("6.12.48+deb13-amd64", "6.12.48+deb13-cloud-amd64"),
            ("5.14.0-503.el9.x86_64", "5.14.0-503.el9.x86_64+debug"),
            ("6.8.0-45-generic", "6.8.0-45-azure"),
            ("6.6.54-0-lts", "6.6.54-0-virt"),
        ] {
            assert_eq!(newer(first, second), Ordering::Less, "{first} {second}");
            assert_eq!(newer(second, first), Ordering::Greater, "{second} {first}");
        }
    }

    proptest! {
        #[test]
        fn it_is_an_order(mut versions in prop::collection::vec("[0-9]{1,2}(\\.[0-9]{1,3}){0,2}[-+]?[a-z0-9]{0,3}", 3)) {
            versions.sort_by(|a, b| newer(a, b));
            for pair in versions.windows(2) {
                prop_assert_ne!(newer(&pair[0], &pair[1]), Ordering::Greater);
            }
            prop_assert_ne!(newer(&versions[0], &versions[2]), Ordering::Greater);
        }

        #[test]
        fn a_hostile_header_does_no_harm(offset in any::<u16>(), len in 0_usize..2048) {
            let mut kernel = vec![b'7'; len];
            if len > 0x210 {
                kernel[0x202..0x206].copy_from_slice(b"HdrS");
                kernel[0x20e..0x210].copy_from_slice(&offset.to_le_bytes());
            }
            let fs = MemoryFs::new(&[("/boot/vmlinuz", &kernel)]);
            prop_assert!(kernels(&fs).is_err());
        }
    }

    fn header(version: &str) -> Vec<u8> {
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        kernel[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        kernel
    }

    #[test]
    fn kernels_of_all_distributions_are_found() {
        let alpine = header("6.6.54-0-lts (buildozer@build) #1");
        let table: [(&str, Files<'_>, &str, &str); 4] = [
            (
                "Debian",
                &[
                    ("/boot/vmlinuz-6.1.0-18-amd64", b""),
                    ("/boot/vmlinuz-6.1.0-9-amd64", b""),
                    ("/lib/modules/6.1.0-18-amd64/modules.dep", b""),
                    ("/lib/modules/6.1.0-9-amd64/modules.dep", b""),
                ],
                "6.1.0-18-amd64",
                "/boot/vmlinuz-6.1.0-18-amd64",
            ),
            (
                "the newer one has no modules",
                &[
                    ("/boot/vmlinuz-6.1.0-18-amd64", b""),
                    ("/boot/vmlinuz-6.1.0-9-amd64", b""),
                    ("/lib/modules/6.1.0-9-amd64/modules.dep", b""),
                ],
                "6.1.0-9-amd64",
                "/boot/vmlinuz-6.1.0-9-amd64",
            ),
            (
                "Arch Linux",
                &[
                    ("/usr/lib/modules/6.11.1-arch1-1/modules.dep", b""),
                    ("/usr/lib/modules/6.11.1-arch1-1/vmlinuz", b""),
                ],
                "6.11.1-arch1-1",
                "/usr/lib/modules/6.11.1-arch1-1/vmlinuz",
            ),
            (
                "Alpine Linux",
                &[
                    ("/boot/vmlinuz-lts", &alpine),
                    ("/lib/modules/6.6.54-0-lts/modules.dep", b""),
                ],
                "6.6.54-0-lts",
                "/boot/vmlinuz-lts",
            ),
        ];
        for (name, files, version, path) in table {
            let kernel = choose_kernel(&MemoryFs::new(files), None).expect(name);
            assert_eq!(
                (kernel.version.as_str(), kernel.path.as_str()),
                (version, path)
            );
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let table: [(Files<'_>, Option<&str>, &str); 4] = [
            (&[], None, "the image has no Linux kernel"),
            (
                &[("/boot/vmlinuz-6.1.0-9-amd64", b"")],
                None,
                "/boot/vmlinuz-6.1.0-9-amd64 has no /lib/modules/6.1.0-9-amd64",
            ),
            (
                &[
                    ("/boot/vmlinuz-6.1", b""),
                    ("/lib/modules/6.1/kernel/a.ko", b""),
                ],
                None,
                "/lib/modules/6.1/modules.dep is missing",
            ),
            (
                &[
                    ("/boot/vmlinuz-6.1", b""),
                    ("/lib/modules/6.1/modules.dep", b""),
                ],
                Some("6.2"),
                "the image has no kernel 6.2; it has 6.1",
            ),
        ];
        for (files, wanted, expected) in table {
            let error = choose_kernel(&MemoryFs::new(files), wanted).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
