//! What the machine is made of, from `/sys` and `/proc` alone: no disk is opened.

use std::fs;
use std::path::{Path, PathBuf};

use rootstock_api::boot::{DiskFacts, Inventory, NicFacts, SessionCreate};
use rootstock_core::MacAddress;

use crate::server::meminfo;

/// The most of each kind that is told.
const ENTRIES_MAX: usize = 64;
/// The longest text of any field, in bytes.
const TEXT_BYTES_MAX: usize = 128;

/// Base class 3 of PCI: display controllers.
const PCI_DISPLAY: &str = "0x03";

/// What this machine says when it asks for a session.
pub(crate) fn session_create(token: String, mac: MacAddress) -> SessionCreate {
    let root = Path::new("/");
    SessionCreate {
        token,
        mac: mac.to_string(),
        uuid: uuid(root),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        inventory: look(root),
    }
}

/// Looks below `root`, which is `/` except in tests.
pub(crate) fn look(root: &Path) -> Inventory {
    let dmi = |name: &str| text(&root.join("sys/class/dmi/id").join(name));
    let cpu = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let memory = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let efi = root.join("sys/firmware/efi");
    let firmware = if efi.exists() { "uefi" } else { "bios" };
    Inventory {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        serial: dmi("product_serial"),
        firmware: firmware.to_owned(),
        secure_boot: secure_boot(&efi),
        cpu: cpu_name(&cpu),
        cpu_count: cpu
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count() as u32,
        memory_bytes: meminfo(&memory, "MemTotal:"),
        disks: disks(root),
        nics: nics(root),
        graphics: graphics(root),
    }
}

/// The SMBIOS UUID.
pub(crate) fn uuid(root: &Path) -> Option<String> {
    let uuid = text(&root.join("sys/class/dmi/id/product_uuid"));
    (!uuid.is_empty()).then(|| uuid.to_ascii_lowercase())
}

/// The last byte of the variable: 1 when it is on (UEFI 2.10, section 3.3).
fn secure_boot(efi: &Path) -> Option<bool> {
    let name = "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let value = fs::read(efi.join(name)).ok()?;
    value.last().map(|on| *on == 1)
}

fn cpu_name(cpuinfo: &str) -> String {
    let name = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'));
    name.map_or_else(String::new, |(_, name)| short(name.trim()))
}

fn disks(root: &Path) -> Vec<DiskFacts> {
    let disk = |path: PathBuf| {
        // What has no device behind it is of the kernel's own making.
        if !path.join("device").exists() {
            return None;
        }
        let sectors: u64 = text(&path.join("size")).parse().ok()?;
        let serial = text(&path.join("device/serial"));
        Some(DiskFacts {
            name: name(&path),
            model: text(&path.join("device/model")),
            serial: if serial.is_empty() {
                text(&path.join("serial"))
            } else {
                serial
            },
            // Always of 512 bytes here, whatever the disk's own.
            size_bytes: sectors.saturating_mul(512),
        })
    };
    list(&root.join("sys/block"), disk)
}

fn nics(root: &Path) -> Vec<NicFacts> {
    let nic = |path: PathBuf| {
        if !path.join("device").exists() {
            return None;
        }
        let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
        Some(NicFacts {
            name: name(&path),
            mac: text(&path.join("address")),
            driver: name(&driver),
            // -1 without a link.
            speed_mbit: text(&path.join("speed")).parse().ok(),
        })
    };
    list(&root.join("sys/class/net"), nic)
}

fn graphics(root: &Path) -> Vec<String> {
    let card = |path: PathBuf| {
        if !text(&path.join("class")).starts_with(PCI_DISPLAY) {
            return None;
        }
        let id = |name: &str| text(&path.join(name)).trim_start_matches("0x").to_owned();
        Some(format!("{}:{}", id("vendor"), id("device")))
    };
    list(&root.join("sys/bus/pci/devices"), card)
}

fn list<T>(directory: &Path, each: impl Fn(PathBuf) -> Option<T>) -> Vec<T> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
        .into_iter()
        .filter_map(each)
        .take(ENTRIES_MAX)
        .collect()
}

fn text(path: &Path) -> String {
    short(fs::read_to_string(path).unwrap_or_default().trim())
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

fn name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described() {
        let root = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        put("sys/class/dmi/id/sys_vendor", "QEMU\n");
        put("sys/class/dmi/id/product_uuid", "ABCD-12\n");
        put(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Fast One\nprocessor\t: 1\n",
        );
        put("proc/meminfo", "MemTotal:  2048 kB\n");
        put("sys/block/sda/size", "2048\n");
        put("sys/block/sda/device/model", "Disk  \n");
        put("sys/block/loop0/size", "0\n");
        put("sys/class/net/eth0/address", "52:54:00:12:34:56\n");
        put("sys/class/net/eth0/device/x", "");
        put("sys/class/net/eth0/speed", "-1\n");
        put("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        put("sys/bus/pci/devices/a/class", "0x030000\n");
        put("sys/bus/pci/devices/a/vendor", "0x1234\n");
        put("sys/bus/pci/devices/a/device", "0x1111\n");
        put("sys/bus/pci/devices/b/class", "0x020000\n");
        let found = look(root.path());
        assert_eq!(
            (found.vendor.as_str(), found.firmware.as_str()),
            ("QEMU", "bios")
        );
        assert_eq!((found.cpu.as_str(), found.cpu_count), ("Fast One", 2));
        assert_eq!(found.memory_bytes, 2 << 20);
        let [disk] = &found.disks[..] else {
            panic!("{:?}", found.disks);
        };
        assert_eq!((disk.name.as_str(), disk.model.as_str()), ("sda", "Disk"));
        assert_eq!(disk.size_bytes, 1 << 20);
        let [nic] = &found.nics[..] else {
            panic!("{:?}", found.nics);
        };
        assert_eq!(
            (nic.mac.as_str(), nic.speed_mbit),
            ("52:54:00:12:34:56", None)
        );
        assert_eq!(found.graphics, ["1234:1111"]);
        assert_eq!(uuid(root.path()).as_deref(), Some("abcd-12"));
    }
}
