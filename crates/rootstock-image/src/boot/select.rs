//! Which modules a first stage takes, as data.

use std::collections::BTreeSet;

use super::modules::ModuleIndex;

/// Directories that are taken whole: wired network cards and what they stand on.
const DIRS: [&str; 8] = [
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/net/pcs/",
    "kernel/drivers/net/usb/",
    "kernel/drivers/net/vmxnet3/",
    "kernel/drivers/net/hyperv/",
    "kernel/drivers/virtio/",
];

/// Drivers below those directories of what no machine boots through: the chips
/// of Ethernet switches.
const DIRS_LEFT_OUT: [&str; 5] = [
    "kernel/drivers/net/ethernet/mellanox/mlxsw/",
    "kernel/drivers/net/ethernet/marvell/prestera/",
    "kernel/drivers/net/ethernet/mscc/",
    "kernel/drivers/net/ethernet/microchip/lan966x/",
    "kernel/drivers/net/ethernet/microchip/sparx5/",
];

/// The same, by name: modems and telephones on USB, and memory for guests.
const LEFT_OUT: [&str; 13] = [
    "cdc_mbim",
    "cdc_phonet",
    "hso",
    "huawei_cdc_ncm",
    "ipheth",
    "kalmia",
    "lg_vl600",
    "qmi_wwan",
    "rndis_wlan",
    "sierra_net",
    "virtio_mem",
    "virtio_vdpa",
    "virtio_balloon",
];

/// Modules that are taken by name, where the kernel has them.
const NAMES: [&str; 68] = [
    // The network.
    "af_packet",
    "virtio_net",
    "net_failover",
    "xen_netfront",
    "mii",
    "mdio",
    // The root.
    "nbd",
    "loop",
    "dm_mod",
    "dm_snapshot",
    "dm_zero",
    "dm_crypt",
    "overlay",
    // What writes to the machine's own disk are encrypted by.
    "ecb",
    "xts",
    "aesni_intel",
    "aes_ce_blk",
    "aes_neon_blk",
    // Memory that is compressed, and with what.
    "zram",
    "lzo",
    "lzo_rle",
    "lz4",
    "zstd",
    // Disks.
    "virtio_blk",
    "virtio_scsi",
    "xen_blkfront",
    "vmw_pvscsi",
    "mptspi",
    "hv_storvsc",
    "ahci",
    "ahci_platform",
    "ata_piix",
    "ata_generic",
    "nvme",
    "vmd",
    "scsi_mod",
    "sd_mod",
    "usb_storage",
    "uas",
    "mmc_core",
    "mmc_block",
    "sdhci",
    "sdhci_pci",
    "sdhci_acpi",
    // The bus of Hyper-V.
    "hv_vmbus",
    "hv_utils",
    "pci_hyperv",
    // USB and keyboards.
    "xhci_hcd",
    "xhci_pci",
    "ehci_hcd",
    "ehci_pci",
    "ohci_hcd",
    "ohci_pci",
    "uhci_hcd",
    "hid",
    "hid_generic",
    "usbhid",
    "hid_hyperv",
    "hyperv_keyboard",
    "i8042",
    "atkbd",
    "evdev",
    // Random numbers, and what the firmware says.
    "virtio_rng",
    "rng_core",
    "efivarfs",
    "qemu_fw_cfg",
    "dmi_sysfs",
    "crc32c_generic",
];

/// What is always loaded, in this order, after the variants of checksums and
/// before the root's file system: nothing asks for these by an alias.
const LOADED: [&str; 16] = [
    "af_packet",
    "lzo",
    "lzo_rle",
    "zram",
    "loop",
    "dm_mod",
    "dm_snapshot",
    "dm_zero",
    "ecb",
    "xts",
    "aesni_intel",
    "aes_ce_blk",
    "aes_neon_blk",
    "dm_crypt",
    "nbd",
    "overlay",
];

/// Without this there is no root.
const REQUIRED: [&str; 1] = ["nbd"];

/// Without these there is no disk over iSCSI: the table that firmware left, the initiator, and
/// the disk's driver.
const INITIATOR: [&str; 3] = ["iscsi_ibft", "iscsi_tcp", "sd_mod"];

/// The checksum of its connections, which the kernel would ask modprobe for.
const CHECKSUMS: [&str; 2] = ["crc32c_generic", "crc32c_intel"];

/// What cards may stand on beside what their directories have.
const INITIATOR_BESIDES: [&str; 14] = [
    "virtio_net",
    "net_failover",
    "xen_netfront",
    "mii",
    "mdio",
    "hv_vmbus",
    "pci_hyperv",
    "xhci_hcd",
    "xhci_pci",
    "ehci_hcd",
    "ehci_pci",
    "ohci_hcd",
    "ohci_pci",
    "uhci_hcd",
];

/// The modules of a first stage.
#[derive(Debug)]
pub(super) struct Selection {
    /// By name; closed over what each needs.
    pub(super) modules: BTreeSet<String>,
    /// Names to be loaded in order, whatever the machine is.
    pub(super) load: Vec<String>,
    /// Drivers that are wanted and built in.
    pub(super) builtin: BTreeSet<String>,
    /// What is needed and the kernel has not.
    pub(super) lacking: Vec<String>,
}

/// Chooses for a root of this file system.
pub(super) fn select(index: &ModuleIndex, root_fs: &str) -> Selection {
    let wanted: Vec<String> = index
        .modules()
        .filter(|(name, module)| *name == root_fs || is_wanted(name, &module.path))
        .map(|(name, _)| name.to_owned())
        .collect();
    let modules = index.closed(wanted);
    let required = REQUIRED.iter().copied().chain([root_fs]);
    Selection {
        load: load_list(index, &modules, root_fs),
        builtin: index
            .builtin()
            .filter(|(name, path)| is_wanted(name, path))
            .map(|(name, _)| name.to_owned())
            .collect(),
        lacking: required
            .filter(|name| !index.has(name))
            .map(ToOwned::to_owned)
            .collect(),
        modules,
    }
}

/// Chooses what a disk over iSCSI takes.
pub(super) fn select_initiator(index: &ModuleIndex) -> Selection {
    let is_taken = |name: &str, path: &str| {
        let lists: [&[&str]; 3] = [&INITIATOR, &CHECKSUMS, &INITIATOR_BESIDES];
        lists.iter().any(|list| list.contains(&name)) || is_network(name, path)
    };
    let wanted = index.modules();
    let wanted = wanted.filter(|(name, module)| is_taken(name, &module.path));
    let modules = index.closed(wanted.map(|(name, _)| name.to_owned()).collect::<Vec<_>>());
    let builtin = index.builtin().filter(|(name, path)| is_taken(name, path));
    let lacking = INITIATOR.iter().filter(|name| !index.has(name));
    Selection {
        load: in_order(index, &modules, &[&CHECKSUMS[..], &INITIATOR[..]].concat()),
        builtin: builtin.map(|(name, _)| name.to_owned()).collect(),
        lacking: lacking.map(|name| (*name).to_owned()).collect(),
        modules,
    }
}

fn is_wanted(name: &str, path: &str) -> bool {
    NAMES.contains(&name) || is_network(name, path)
}

/// Whether it is a wired network card's, or of what such a card stands on.
fn is_network(name: &str, path: &str) -> bool {
    let below = |dirs: &[&str]| dirs.iter().any(|dir| path.starts_with(dir));
    below(&DIRS) && !below(&DIRS_LEFT_OUT) && !LEFT_OUT.contains(&name)
}

fn load_list(index: &ModuleIndex, modules: &BTreeSet<String>, root_fs: &str) -> Vec<String> {
    let always: Vec<&str> = LOADED.into_iter().chain([root_fs]).collect();
    in_order(index, modules, &always)
}

/// What is loaded whatever the machine is: variants of checksums, and these in their order.
fn in_order(index: &ModuleIndex, modules: &BTreeSet<String>, always: &[&str]) -> Vec<String> {
    let mut load: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if modules.contains(name) && !load.iter().any(|known| known == name) {
            load.push(name.to_owned());
        }
    };
    // The kernel would ask modprobe for these while another module starts, and
    // a first stage has no modprobe.
    for module in modules {
        for variant in index.variants(module) {
            add(variant);
        }
    }
    for name in always {
        add(name);
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_without_doubles() {
        let names: BTreeSet<_> = NAMES.iter().chain(&LEFT_OUT).collect();
        assert_eq!(names.len(), NAMES.len() + LEFT_OUT.len());
        for name in NAMES.iter().chain(&LEFT_OUT).chain(&LOADED) {
            assert!(!name.contains('-'), "{name}: modules are known by `_`");
        }
        for name in LOADED {
            assert!(NAMES.contains(&name), "{name} is loaded and not taken");
        }
    }

    #[test]
    fn drivers_are_told_by_their_place() {
        for (path, expected) in [
            ("kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko", true),
            (
                "kernel/drivers/net/ethernet/mellanox/mlxsw/mlxsw_core.ko",
                false,
            ),
            ("kernel/drivers/net/usb/r8152.ko", true),
            ("kernel/drivers/net/usb/qmi_wwan.ko", false),
            (
                "kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko",
                false,
            ),
            ("kernel/drivers/block/nbd.ko.xz", true),
            ("kernel/drivers/gpu/drm/i915/i915.ko", false),
        ] {
            let name = super::super::modules::name_of(path);
            assert_eq!(is_wanted(&name, path), expected, "{path}");
        }
    }
}
