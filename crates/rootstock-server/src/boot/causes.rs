//! How long each step of a boot may take, and what it usually is when it takes longer.

use std::time::Duration;

use rootstock_api::boot::BootStep;

/// How long nothing may follow this step; never when it is an end.
pub(crate) fn patience(step: BootStep) -> Option<Duration> {
    let seconds = match step {
        // Some firmware never combines two offers; it gives up within this time.
        BootStep::Discovered | BootStep::Offered => 40,
        BootStep::Acknowledged | BootStep::ScriptServed => 60,
        // shim and slow firmware fetch in blocks of 512 bytes.
        BootStep::FileServed | BootStep::KernelServed => 180,
        // Kernels on large machines take their time before they run an init.
        BootStep::InitrdServed | BootStep::Iscsi => 300,
        BootStep::FirstStage | BootStep::Network | BootStep::Session => 120,
        BootStep::DeviceUp | BootStep::RootMounted => 180,
        BootStep::Switched => 900,
        // Most of that time it says nothing.
        BootStep::Installer => 7200,
        BootStep::Held
        | BootStep::Up
        | BootStep::OwnDisk
        | BootStep::Installed
        | BootStep::Gone
        | BootStep::Failed => {
            return None;
        }
    };
    Some(Duration::from_secs(seconds))
}

/// What it usually is when nothing follows this step.
pub(crate) fn usual(step: BootStep) -> &'static str {
    match step {
        BootStep::Discovered => {
            "no answer was sent. The network's policy ignores unknown machines, or another DHCP \
             server was to answer (`rootstock boot doctor`)"
        }
        BootStep::Offered => {
            "the firmware did not take the offer. Another DHCP server's won, or the firmware \
             cannot combine two offers: give the node another boot-strategy"
        }
        BootStep::Acknowledged => {
            "the machine has an address and fetched no boot program. A firewall drops UDP port 69 \
             or TCP port 8480, or the file name was cut: give the node another boot-strategy"
        }
        BootStep::FileServed => {
            "the boot program asked for no script. Secure Boot refused it (use the shim's chain), \
             it is for another architecture, or it has no driver for this card (try ipxe.efi \
             instead of snponly.efi)"
        }
        BootStep::ScriptServed => {
            "the kernel was not fetched. The boot program lost its network, or cannot fetch by \
             HTTP: look at the machine's screen"
        }
        BootStep::KernelServed => {
            "the first stage was not fetched whole. The machine has too little memory, or lost \
             its network"
        }
        BootStep::InitrdServed => {
            "the first stage did not report. The kernel panicked or was refused by Secure Boot, \
             the image has no driver for the card, or port 8481 is blocked: look at the machine's \
             screen, with console= set if it is a serial line"
        }
        BootStep::FirstStage => {
            "the first stage got no session. The clock, a firewall on port 8481, or another \
             site's first stage"
        }
        BootStep::Held => "an administrator has to approve it (`rootstock node approve`)",
        BootStep::Session => "the first stage has no order or no network for chunks",
        BootStep::Network => "the device did not come up: the image's kernel has no nbd module",
        BootStep::Iscsi => {
            "its system did not log in to its disk, as its firmware did. Does its initrd have an \
             iSCSI initiator? Look at the machine's screen"
        }
        BootStep::DeviceUp => {
            "the root was not mounted. It is on another partition (`rootstock node set NAME \
             --root …`), or its file system's module is not in the image"
        }
        BootStep::RootMounted => "the image's init was not started: is /sbin/init in the image?",
        BootStep::Switched => {
            "the system runs and does not say that it is up. A unit of it waits or failed: look \
             at the machine's screen"
        }
        BootStep::Installer => {
            "the installer did not call home. It asks a question on its screen, or its files do \
             not call `done` at the end"
        }
        BootStep::Up
        | BootStep::OwnDisk
        | BootStep::Installed
        | BootStep::Gone
        | BootStep::Failed => "nothing is to follow",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_has_a_cause() {
        for step in [
            BootStep::Discovered,
            BootStep::Offered,
            BootStep::Acknowledged,
            BootStep::FileServed,
            BootStep::ScriptServed,
            BootStep::KernelServed,
            BootStep::InitrdServed,
            BootStep::Iscsi,
            BootStep::FirstStage,
            BootStep::Session,
            BootStep::Network,
            BootStep::DeviceUp,
            BootStep::RootMounted,
            BootStep::Switched,
            BootStep::Installer,
        ] {
            assert!(patience(step).is_some_and(|patience| patience >= Duration::from_secs(40)));
            assert!(usual(step).len() > 20, "{step:?}");
        }
        assert_eq!(patience(BootStep::Up), None);
        assert_eq!(patience(BootStep::Held), None);
    }
}
