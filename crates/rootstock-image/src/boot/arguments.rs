//! Kernel arguments of an image's own boot loader that are worth keeping.
//!
//! What says where the root is, what runs first, or who the machine is belongs
//! to the first stage; the rest, such as `console=`, is the image's affair.

use super::root_fs::{FsError, RootFs, text_of};

/// The most that is kept, in bytes; x86 kernels take 2,048 in all.
pub const ARGUMENTS_BYTES_MAX: usize = 1024;

/// The largest file of settings, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The most files of a directory of settings.
const FILES_MAX: usize = 64;

/// Settings of GRUB in the order in which they hold: later ones win.
const GRUB_FILE: &str = "/etc/default/grub";
const GRUB_DIR: &str = "/etc/default/grub.d";
/// systemd's kernel-install: the arguments themselves.
const PLAIN_FILES: [&str; 2] = ["/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"];
const GRUB_NAMES: [&str; 2] = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"];

/// Arguments that are not kept, by their name before `=`.
const REFUSED: [&str; 34] = [
    "BOOTIF",
    "BOOT_IMAGE",
    "boot",
    "crashkernel",
    "cryptdevice",
    "cryptroot",
    "dyndbg",
    "emergency",
    "ima_appraise",
    "init",
    "initrd",
    "ip",
    "lsm.debug",
    "mem",
    "memmap",
    "mount",
    "netboot",
    "nfsroot",
    "noresume",
    "nolvm",
    "panic",
    "rdinit",
    "recovery",
    "rescue",
    "resume",
    "resume_offset",
    "ro",
    "root",
    "rootdelay",
    "rootflags",
    "rootfstype",
    "rootwait",
    "rw",
    "single",
];
/// The same, by how they begin.
const REFUSED_BEGINNINGS: [&str; 12] = [
    "ISCSI_",
    "iscsi_",
    "netroot",
    "rd.",
    "rd_",
    "rootstock",
    "luks",
    "zfs",
    "systemd.machine_id",
    "systemd.hostname",
    "systemd.debug",
    "ostree",
];

/// The arguments of the image that its machines get, in order and without doubles.
///
/// # Errors
/// When the image cannot be read.
pub fn kept_arguments(fs: &dyn RootFs) -> Result<Vec<String>, FsError> {
    let mut kept: Vec<String> = Vec::new();
    let mut len_bytes = 0;
    for argument in own_arguments(fs)? {
        let more = argument.len() + 1;
        if is_kept(&argument)
            && !kept.contains(&argument)
            && len_bytes + more <= ARGUMENTS_BYTES_MAX
        {
            len_bytes += more;
            kept.push(argument);
        }
    }
    Ok(kept)
}

/// All arguments of the image's boot loader.
pub(super) fn own_arguments(fs: &dyn RootFs) -> Result<Vec<String>, FsError> {
    for path in PLAIN_FILES {
        if let Some(text) = text_of(fs, path, FILE_BYTES_MAX)? {
            let words = text.lines().filter(|line| !line.starts_with('#'));
            return Ok(words
                .flat_map(str::split_whitespace)
                .map(ToOwned::to_owned)
                .collect());
        }
    }
    let mut files = vec![GRUB_FILE.to_owned()];
    let names = fs.list(GRUB_DIR)?.into_iter();
    let settings = names.filter(|name| name.ends_with(".cfg")).take(FILES_MAX);
    files.extend(settings.map(|name| format!("{GRUB_DIR}/{name}")));
    let mut values = [const { String::new() }; GRUB_NAMES.len()];
    for path in files {
        let text = text_of(fs, &path, FILE_BYTES_MAX)?.unwrap_or_default();
        for line in text.lines() {
            for (name, value) in GRUB_NAMES.iter().zip(&mut values) {
                if let Some(assigned) = assignment(line, name) {
                    // A file may add to what an earlier one said.
                    let braces = format!("${{{name}}}");
                    let plain = format!("${name}");
                    let assigned = assigned.replace(&braces, value);
                    *value = assigned.replace(&plain, value);
                    value.truncate(value.floor_char_boundary(2 * ARGUMENTS_BYTES_MAX));
                }
            }
        }
    }
    Ok(values
        .iter()
        .flat_map(|value| value.split_whitespace())
        .map(ToOwned::to_owned)
        .collect())
}

/// The value in a shell's assignment of a plain or quoted word.
fn assignment(line: &str, name: &str) -> Option<String> {
    let value = line.trim().strip_prefix(name)?.strip_prefix('=')?;
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    Some(match quote {
        Some(quote) => value[1..]
            .split(quote)
            .next()
            .unwrap_or_default()
            .to_owned(),
        None => value
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
    })
}

fn is_kept(argument: &str) -> bool {
    let name = argument.split('=').next().unwrap_or_default();
    let refused = REFUSED.contains(&name)
        || REFUSED_BEGINNINGS
            .iter()
            .any(|start| name.starts_with(start));
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'`$\\;&|<>{}".contains(&byte);
    // A number or a letter alone is a run level; `-` ends the kernel's own arguments.
    !refused
        && name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && argument.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Files, MemoryFs};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_the_images_own_is_kept() {
        let table: [(Files<'_>, &str); 5] = [
            (
                &[(
                    GRUB_FILE,
                    b"GRUB_CMDLINE_LINUX_DEFAULT=\"quiet splash\"\nGRUB_CMDLINE_LINUX=''\n",
                )],
                "quiet splash",
            ),
            (
                &[
                    (GRUB_FILE, b"GRUB_CMDLINE_LINUX=quiet\n"),
                    (
                        "/etc/default/grub.d/50-cloud.cfg",
                        b"GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n",
                    ),
                    (
                        "/etc/default/grub.d/60-more.cfg",
                        b"GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX net.ifnames=0\"\n",
                    ),
                ],
                "console=tty0 console=ttyS0,115200n8 net.ifnames=0",
            ),
            (
                &[(
                    "/etc/kernel/cmdline",
                    b"root=UUID=1 ro rd.luks=1 resume=/dev/sda2 console=ttyS0 mitigations=auto\n",
                )],
                "console=ttyS0 mitigations=auto",
            ),
            (
                &[(
                    GRUB_FILE,
                    b"GRUB_CMDLINE_LINUX=\"init=/bin/sh rootstock.url=http://evil 3 s ip=dhcp `reboot` quiet\"",
                )],
                "quiet",
            ),
            (&[], ""),
        ];
        for (files, expected) in table {
            let kept = kept_arguments(&MemoryFs::new(files)).expect("reads");
            assert_eq!(kept.join(" "), expected);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_refused_comes_through(text in "(GRUB_CMDLINE_LINUX(_DEFAULT)?=|\"|'| |root=a|ro|console=a|\\$GRUB_CMDLINE_LINUX|é|\n){0,40}") {
            let fs = MemoryFs::new(&[(GRUB_FILE, text.as_bytes())]);
            let kept = kept_arguments(&fs).expect("reads");
            prop_assert!(kept.join(" ").len() <= ARGUMENTS_BYTES_MAX);
            for argument in kept {
                prop_assert!(argument != "ro" && !argument.starts_with("root="), "{argument}");
            }
        }
    }
}
