//! How each kind of firmware is booted: a table, tried from the top of a row to its end.
//!
//! A row is found by what asks, by architecture and by the card's prefix. Its
//! strategies are in the order in which they are tried when a machine goes silent;
//! one that worked for a machine is tried first the next time. One whose program is
//! not there is skipped.

use Announce::{Ask, File, FileWithPrompt, Plain};

use crate::client::{Asker, Client, Firmware, Machine};

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// What asks.
    pub asker: AskerKind,
    /// On what firmware; any when `None`.
    pub firmware: Option<Firmware>,
    /// On what processor; any when `None`.
    pub machine: Option<Machine>,
    /// Prefixes of cards; any when empty.
    pub mac_prefixes: &'static [[u8; 3]],
    /// What to try, best first.
    pub strategies: &'static [Strategy],
}

/// What asks, as the table tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskerKind {
    /// PXE, of a BIOS or of UEFI.
    Pxe,
    /// UEFI's HTTP boot.
    Http,
    /// An iPXE that can run our script.
    Ipxe,
    /// An iPXE that cannot.
    IpxeLacking,
}

/// A way to boot a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strategy {
    /// Its name, which is remembered.
    pub name: &'static str,
    /// How the offer leads to the program.
    pub announce: Announce,
    /// What is booted.
    pub program: Program,
}

/// How an offer leads firmware to its program, beside another DHCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announce {
    /// Option 43 with discovery control 8: boot the file in this very offer.
    File,
    /// The same, with the prompt that EDK2 wants (edk2#8149).
    FileWithPrompt,
    /// No option 43: the firmware asks again on port 4011, and gets the file in the
    /// offer as well, since some ARM firmware never asks (pixiecore, Confluent).
    Ask,
    /// The words that a Raspberry Pi looks for (smee, LTSP).
    RaspberryPi,
    /// No option 43, no second question: HTTP boot and iPXE take the file as it is.
    Plain,
}

/// What is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A boot program by this name: by TFTP, or by HTTP for HTTP boot.
    File(&'static str),
    /// Our script for this machine, by HTTP.
    Script,
}

impl Strategy {
    const fn new(name: &'static str, announce: Announce, file: &'static str) -> Self {
        Self {
            name,
            announce,
            program: Program::File(file),
        }
    }

    /// Whether its program leads to GRUB, and not to iPXE.
    #[must_use]
    pub fn leads_to_grub(&self) -> bool {
        matches!(self.program, Program::File(file) if file.starts_with("shim"))
    }

    /// Whether its program looks for its next stage on the DHCP server, whoever gave
    /// it the file (rhboot/shim#165).
    #[must_use]
    pub fn asks_the_dhcp_server(&self) -> bool {
        self.leads_to_grub()
    }
}

const SCRIPT: &[Strategy] = &[Strategy {
    name: "script",
    announce: Plain,
    program: Program::Script,
}];

const fn rule(
    asker: AskerKind,
    firmware: Firmware,
    machine: Option<Machine>,
    strategies: &'static [Strategy],
) -> Rule {
    Rule {
        asker,
        firmware: Some(firmware),
        machine,
        mac_prefixes: &[],
        strategies,
    }
}

/// The table. UEFI comes in two camps: firmware that wants no option 43 and asks on
/// port 4011, and firmware that wants it (pixiecore's README.booting; smee;
/// edk2#8149). Nothing in a packet tells which, and nothing tells whether Secure Boot
/// is on (FOG), so each row of a processor that has a signed chain begins with it: it
/// boots with Secure Boot and without. Not so by HTTP boot: there Debian's signed GRUB
/// (2.06) asks for nothing and stands at its prompt, so that only iPXE's own signed
/// shim is of use.
pub const RULES: &[Rule] = &[
    Rule {
        asker: AskerKind::Ipxe,
        firmware: None,
        machine: None,
        mac_prefixes: &[],
        strategies: SCRIPT,
    },
    rule(
        AskerKind::Pxe,
        Firmware::RaspberryPi,
        None,
        &[Strategy::new(
            "raspberry-pi",
            Announce::RaspberryPi,
            "bootcode.bin",
        )],
    ),
    rule(
        AskerKind::IpxeLacking,
        Firmware::Bios,
        None,
        &[
            Strategy::new("undionly", Plain, "undionly.kpxe"),
            Strategy::new("ipxe", Plain, "ipxe.pxe"),
        ],
    ),
    rule(
        AskerKind::IpxeLacking,
        Firmware::Efi,
        Some(Machine::X64),
        &[
            Strategy::new("snponly", Plain, "snponly.efi"),
            Strategy::new("ipxe", Plain, "ipxe.efi"),
        ],
    ),
    rule(
        AskerKind::IpxeLacking,
        Firmware::Efi,
        Some(Machine::Arm64),
        &[Strategy::new("snponly", Plain, "snponly-arm64.efi")],
    ),
    rule(
        AskerKind::Pxe,
        Firmware::Bios,
        None,
        &[
            Strategy::new("undionly", File, "undionly.kpxe"),
            Strategy::new("undionly-4011", Ask, "undionly.kpxe"),
            Strategy::new("ipxe", File, "ipxe.pxe"),
        ],
    ),
    rule(
        AskerKind::Pxe,
        Firmware::Efi,
        Some(Machine::X64),
        &[
            Strategy::new("signed-snponly", Ask, "snponly-shimx64.efi"),
            Strategy::new("shim-grub", Ask, "shimx64.efi"),
            Strategy::new("shim-grub-offer", FileWithPrompt, "shimx64.efi"),
            Strategy::new("snponly", Ask, "snponly.efi"),
            Strategy::new("snponly-offer", FileWithPrompt, "snponly.efi"),
            Strategy::new("ipxe", Ask, "ipxe.efi"),
            Strategy::new("ipxe-offer", FileWithPrompt, "ipxe.efi"),
        ],
    ),
    rule(
        AskerKind::Pxe,
        Firmware::Efi,
        Some(Machine::Arm64),
        &[
            Strategy::new("signed-snponly", Ask, "snponly-shimaa64.efi"),
            Strategy::new("shim-grub", Ask, "shimaa64.efi"),
            Strategy::new("snponly", Ask, "snponly-arm64.efi"),
            Strategy::new("snponly-offer", FileWithPrompt, "snponly-arm64.efi"),
            Strategy::new("ipxe", Ask, "ipxe-arm64.efi"),
        ],
    ),
    rule(
        AskerKind::Pxe,
        Firmware::Efi,
        Some(Machine::X86),
        &[
            Strategy::new("snponly", Ask, "snponly-ia32.efi"),
            Strategy::new("snponly-offer", FileWithPrompt, "snponly-ia32.efi"),
            Strategy::new("ipxe", Ask, "ipxe-ia32.efi"),
        ],
    ),
    rule(
        AskerKind::Http,
        Firmware::Efi,
        Some(Machine::X64),
        &[
            Strategy::new("signed-snponly", Plain, "snponly-shimx64.efi"),
            Strategy::new("snponly", Plain, "snponly.efi"),
            Strategy::new("ipxe", Plain, "ipxe.efi"),
        ],
    ),
    rule(
        AskerKind::Http,
        Firmware::Efi,
        Some(Machine::Arm64),
        &[
            Strategy::new("signed-snponly", Plain, "snponly-shimaa64.efi"),
            Strategy::new("snponly", Plain, "snponly-arm64.efi"),
            Strategy::new("ipxe", Plain, "ipxe-arm64.efi"),
        ],
    ),
    rule(
        AskerKind::Http,
        Firmware::Efi,
        Some(Machine::X86),
        &[Strategy::new("snponly", Plain, "snponly-ia32.efi")],
    ),
    rule(
        AskerKind::Http,
        Firmware::Bios,
        None,
        &[Strategy::new("undionly", Plain, "undionly.kpxe")],
    ),
];

/// What to try for a client, best first: the first row that fits it. Empty when none
/// does, as for a system that does not boot.
#[must_use]
pub fn of(rules: &[Rule], client: &Client, asker: AskerKind) -> &'static [Strategy] {
    let fits = |rule: &&Rule| {
        let architecture = client.architecture;
        let firmware = architecture.map(|architecture| architecture.firmware);
        let machine = architecture.map(|architecture| architecture.machine);
        rule.asker == asker
            && (rule.firmware.is_none() || rule.firmware == firmware)
            && (rule.machine.is_none() || rule.machine == machine)
            && (rule.mac_prefixes.is_empty()
                || rule
                    .mac_prefixes
                    .iter()
                    .any(|p| client.mac.0.starts_with(p)))
    };
    rules.iter().find(fits).map_or(&[], |rule| rule.strategies)
}

/// What asks, as the table tells it apart. An iPXE that lacks what our script needs is
/// given ours once; after that it gets the script, whatever it says.
#[must_use]
pub const fn kind(asker: Asker, chained: Chained) -> Option<AskerKind> {
    Some(match asker {
        Asker::System => return None,
        Asker::Pxe => AskerKind::Pxe,
        Asker::Http => AskerKind::Http,
        Asker::Ipxe(features) => match chained {
            Chained::No if !features.suffice() => AskerKind::IpxeLacking,
            _ => AskerKind::Ipxe,
        },
    })
}

/// Whether a machine's iPXE was given ours a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chained {
    /// Not yet.
    No,
    /// It was.
    Once,
}

#[cfg(test)]
mod tests {
    use rootstock_core::MacAddress;

    use super::*;
    use crate::client::{Architecture, Features};

    fn client(asker: Asker, number: u16) -> Client {
        Client {
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            uuid: None,
            architecture: Architecture::of(number),
            program: asker,
        }
    }

    fn names(asker: Asker, number: u16, chained: Chained) -> Vec<&'static str> {
        let kind = kind(asker, chained).expect("boots");
        let strategies = of(RULES, &client(asker, number), kind);
        strategies.iter().map(|strategy| strategy.name).collect()
    }

    #[test]
    fn each_firmware_has_its_row() {
        let lacking = Asker::Ipxe(Features {
            told: true,
            ..Features::default()
        });
        let able = Asker::Ipxe(Features {
            told: true,
            http: true,
            bzimage: true,
            ..Features::default()
        });
        for (asker, number, chained, first) in [
            (Asker::Pxe, 0, Chained::No, Some("undionly")),
            (Asker::Pxe, 6, Chained::No, Some("snponly")),
            // RFC 4578, erratum 4625: both are x64.
            (Asker::Pxe, 7, Chained::No, Some("signed-snponly")),
            (Asker::Pxe, 9, Chained::No, Some("signed-snponly")),
            (Asker::Pxe, 11, Chained::No, Some("signed-snponly")),
            (Asker::Pxe, 41, Chained::No, Some("raspberry-pi")),
            (Asker::Http, 16, Chained::No, Some("signed-snponly")),
            (Asker::Http, 20, Chained::No, Some("undionly")),
            (able, 0, Chained::No, Some("script")),
            (
                Asker::Ipxe(Features::default()),
                7,
                Chained::No,
                Some("script"),
            ),
            (lacking, 0, Chained::No, Some("undionly")),
            (lacking, 7, Chained::No, Some("snponly")),
            (lacking, 7, Chained::Once, Some("script")),
            // Nobody makes a boot program for it that we know of.
            (Asker::Pxe, 39, Chained::No, None),
        ] {
            let names = names(asker, number, chained);
            assert_eq!(
                names.first().copied(),
                first,
                "{asker:?} {number} {chained:?}"
            );
        }
        assert_eq!(kind(Asker::System, Chained::No), None);
    }

    /// Both camps of UEFI are tried, and what Secure Boot takes (pixiecore, smee, FOG).
    #[test]
    fn uefi_falls_back_to_everything_we_know() {
        let strategies = of(RULES, &client(Asker::Pxe, 7), AskerKind::Pxe);
        for announce in [Ask, FileWithPrompt] {
            assert!(
                strategies
                    .iter()
                    .any(|strategy| strategy.announce == announce)
            );
        }
        for file in [
            "snponly-shimx64.efi",
            "snponly.efi",
            "shimx64.efi",
            "ipxe.efi",
        ] {
            assert!(
                strategies.iter().any(|s| s.program == Program::File(file)),
                "{file}"
            );
        }
    }

    #[test]
    fn names_are_unique_within_a_row() {
        for rule in RULES {
            let mut names: Vec<_> = rule.strategies.iter().map(|s| s.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), rule.strategies.len(), "{rule:?}");
        }
    }
}
