//! Processor and firmware, as option 93 numbers them.

/// A processor, and the firmware that runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// The processor.
    pub machine: Machine,
    /// The firmware.
    pub firmware: Firmware,
}

/// A processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Machine {
    /// 32-bit x86, or a BIOS that does not say.
    X86,
    /// 64-bit x86.
    X64,
    /// 32-bit ARM.
    Arm32,
    /// 64-bit ARM.
    Arm64,
    /// 32-bit RISC-V.
    Riscv32,
    /// 64-bit RISC-V.
    Riscv64,
    /// 32-bit `LoongArch`.
    Loong32,
    /// 64-bit `LoongArch`.
    Loong64,
}

/// What starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// A PC BIOS.
    Bios,
    /// UEFI.
    Efi,
    /// A Raspberry Pi's boot ROM.
    RaspberryPi,
}

impl Architecture {
    /// A Raspberry Pi, whatever it says.
    pub const RASPBERRY_PI: Self = Self::new(Machine::Arm64, Firmware::RaspberryPi);

    const fn new(machine: Machine, firmware: Firmware) -> Self {
        Self { machine, firmware }
    }

    /// What a number of IANA's "Processor Architecture Types" means.
    #[must_use]
    pub const fn of(number: u16) -> Option<Self> {
        use Firmware::{Bios, Efi};
        Some(match number {
            // 20 is a BIOS that boots by HTTP.
            0 | 20 => Self::new(Machine::X86, Bios),
            6 | 15 => Self::new(Machine::X86, Efi),
            // RFC 4578 says that 7 is EFI byte code and 9 is x64; its erratum 4625
            // has them the other way round, and firmware sends either for x64.
            7 | 9 | 16 => Self::new(Machine::X64, Efi),
            10 | 18 => Self::new(Machine::Arm32, Efi),
            11 | 19 => Self::new(Machine::Arm64, Efi),
            25 | 26 => Self::new(Machine::Riscv32, Efi),
            27 | 28 => Self::new(Machine::Riscv64, Efi),
            37 | 38 => Self::new(Machine::Loong32, Efi),
            39 | 40 => Self::new(Machine::Loong64, Efi),
            41 => Self::RASPBERRY_PI,
            _ => return None,
        })
    }
}
