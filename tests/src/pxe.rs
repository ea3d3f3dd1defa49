//! A QEMU machine without a disk, that powers on and boots from the network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::process::Process;

/// Where Debian's `ovmf` package keeps the firmware.
const OVMF: &str = "/usr/share/OVMF";

/// What a machine has instead of a BIOS, and how it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, whose card has iPXE in its ROM.
    Bios,
    /// OVMF's own PXE client over IPv4.
    UefiPxe,
    /// OVMF's own HTTP boot client over IPv4.
    UefiHttp,
    /// As [`Firmware::UefiPxe`], with Secure Boot on and Microsoft's keys enrolled.
    UefiSecure,
}

/// A machine to be.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Names it in messages and files.
    pub name: String,
    /// Its firmware.
    pub firmware: Firmware,
    /// The address of its card.
    pub mac: String,
    /// The tap device that its card is plugged into.
    pub tap: String,
    /// Its memory.
    pub memory_mib: u32,
    /// Its SMBIOS UUID.
    pub uuid: Option<String>,
}

/// A machine that is on; its plug is pulled when dropped.
pub struct PoweredOn {
    /// Its serial line: firmware, boot loader, kernel and login prompt.
    pub console: Console,
    process: Process,
}

impl Machine {
    /// Powers it on. `command` starts programs where its tap device is.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on(
        &self,
        command: impl FnOnce(&str) -> Command,
        directory: &Path,
    ) -> Result<PoweredOn> {
        self.start(command, self.arguments(directory)?, directory)
    }

    /// Powers it on with a disk of its own, which it does not boot from. What it
    /// flushed survives the end of QEMU.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_beside_disk(
        &self,
        command: impl FnOnce(&str) -> Command,
        directory: &Path,
        disk: &Path,
    ) -> Result<PoweredOn> {
        let mut words = self.arguments(directory)?;
        words.extend(own_disk(disk, ""));
        self.start(command, words, directory)
    }

    /// As [`Machine::power_on_beside_disk`], and it boots from the disk, too: a BIOS
    /// when the network has nothing for it. UEFI asks for minutes there, by PXE and
    /// HTTP, over IPv4 and IPv6, so its disk comes first, as far as it can be booted.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_with_own_disk(
        &self,
        command: impl FnOnce(&str) -> Command,
        directory: &Path,
        disk: &Path,
    ) -> Result<PoweredOn> {
        let mut words = self.arguments(directory)?;
        if self.firmware != Firmware::Bios {
            for word in &mut words {
                *word = word.replace(",bootindex=0", ",bootindex=2");
            }
        }
        words.extend(own_disk(disk, ",bootindex=1"));
        self.start(command, words, directory)
    }

    /// Powers it on with a virtio disk, from which it boots when it is restarted. What
    /// is written to the disk need not survive.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_with_disk(
        &self,
        command: impl FnOnce(&str) -> Command,
        directory: &Path,
        disk: &Path,
    ) -> Result<PoweredOn> {
        let words = self.bootable_disk(directory, disk, "order=c,once=n")?;
        self.start(command, words, directory)
    }

    /// Powers it on with a virtio disk, from which it boots. What is written to the disk
    /// need not survive.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_from_disk(
        &self,
        command: impl FnOnce(&str) -> Command,
        directory: &Path,
        disk: &Path,
    ) -> Result<PoweredOn> {
        let words = self.bootable_disk(directory, disk, "order=c")?;
        self.start(command, words, directory)
    }

    /// The arguments for a disk in an `order` of QEMU's `-boot`.
    fn bootable_disk(&self, directory: &Path, disk: &Path, order: &str) -> Result<Vec<String>> {
        let mut words = self.arguments(directory)?;
        for word in &mut words {
            // An order of devices would go before this one.
            *word = word.replace(",bootindex=0", "");
        }
        words.extend(["-boot", order, "-drive"].map(String::from));
        words.push(format!(
            "if=virtio,format=raw,cache=unsafe,discard=unmap,file={}",
            disk.display()
        ));
        Ok(words)
    }

    fn start(
        &self,
        command: impl FnOnce(&str) -> Command,
        words: Vec<String>,
        directory: &Path,
    ) -> Result<PoweredOn> {
        let mut qemu = command("qemu-system-x86_64");
        qemu.args(words);
        let log = directory.join(format!("{}.qemu.log", self.name));
        let name = format!("machine {}", self.name);
        let mut process = Process::start_piped(&name, &mut qemu, &log)?;
        let child = process.child();
        let input = child.stdin.take().context("the machine has no input")?;
        let output = child.stdout.take().context("the machine has no output")?;
        let copy = directory.join(format!("{}.console.log", self.name));
        let console = Console::new(input, output, &copy)?;
        Ok(PoweredOn { console, process })
    }

    fn arguments(&self, directory: &Path) -> Result<Vec<String>> {
        let mut words: Vec<String> = [
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            // OVMF has no network boot without random numbers (CVE-2023-45237).
            "-device",
            "virtio-rng-pci",
        ]
        .map(String::from)
        .to_vec();
        words.extend(["-m".to_owned(), format!("{}M", self.memory_mib)]);
        words.extend([
            "-netdev".to_owned(),
            format!("tap,id=net0,ifname={},script=no,downscript=no", self.tap),
        ]);
        if let Some(uuid) = &self.uuid {
            words.extend(["-uuid".to_owned(), uuid.clone()]);
        }
        let mut card = format!("virtio-net-pci,netdev=net0,mac={},bootindex=0", self.mac);
        if self.firmware != Firmware::Bios {
            // The firmware's own network stack, not iPXE's from the card's ROM.
            card.push_str(",romfile=");
            words.extend(self.uefi(directory)?);
        }
        words.extend(["-device".to_owned(), card]);
        Ok(words)
    }

    fn uefi(&self, directory: &Path) -> Result<Vec<String>> {
        let (code, variables, machine) = match self.firmware {
            Firmware::UefiSecure => (
                "OVMF_CODE_4M.secboot.fd",
                "OVMF_VARS_4M.ms.fd",
                "q35,smm=on",
            ),
            _ => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "q35"),
        };
        let own: PathBuf = directory.join(format!("{}.variables.fd", self.name));
        if !own.exists() {
            let from = Path::new(OVMF).join(variables);
            fs::copy(&from, &own).with_context(|| format!("copy {}", from.display()))?;
        }
        let mut words = vec![
            "-machine".to_owned(),
            machine.to_owned(),
            "-drive".to_owned(),
            format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/{code}"),
            "-drive".to_owned(),
            format!("if=pflash,unit=1,format=raw,file={}", own.display()),
        ];
        if self.firmware == Firmware::UefiSecure {
            words.extend(
                ["-global", "driver=cfi.pflash01,property=secure,value=on"].map(String::from),
            );
        }
        let mut off = vec!["IPv6PXESupport"];
        if self.firmware == Firmware::UefiHttp {
            off.push("IPv4PXESupport");
        }
        for feature in off {
            words.extend([
                "-fw_cfg".to_owned(),
                format!("name=opt/org.tianocore/{feature},string=n"),
            ]);
        }
        Ok(words)
    }
}

impl PoweredOn {
    /// Pulls its plug.
    ///
    /// # Errors
    /// When it is off already.
    pub fn pull_plug(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A disk of the machine's own, as QEMU is told of it.
fn own_disk(disk: &Path, more: &str) -> [String; 4] {
    [
        "-drive".to_owned(),
        format!(
            "if=none,id=own,format=raw,cache=none,file={}",
            disk.display()
        ),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive=own{more}"),
    ]
}
