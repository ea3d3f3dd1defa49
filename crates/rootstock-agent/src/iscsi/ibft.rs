//! The table that firmware leaves of the disk it has logged in to: the iSCSI Boot Firmware
//! Table, as the kernel's module `iscsi_ibft` shows it below `/sys/firmware/ibft`
//! (Documentation/ABI/testing/sysfs-ibft).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rootstock_core::MacAddress;

use crate::cmdline::{Ipv4Config, mask_bits};

const TABLE: &str = "/sys/firmware/ibft";

/// What `chap-type` says where nothing is to be proved.
const CHAP_NONE: &str = "0";

/// What firmware did, to be done by the kernel.
pub(super) struct Ibft {
    /// The machine's iSCSI name.
    pub(super) initiator: String,
    /// The target's.
    pub(super) target: String,
    /// Where it is.
    pub(super) portal: SocketAddr,
    /// The disk's number.
    pub(super) lun: u64,
    /// User name and secret, if it has to prove one.
    pub(super) secret: Option<(String, Vec<u8>)>,
    /// The card that was used.
    pub(super) mac: MacAddress,
    /// Its address.
    pub(super) address: Ipv4Config,
}

/// Why there is no table that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum IbftError {
    /// The firmware, or the script that it ran, left none.
    #[error("the firmware left no description of a disk (iBFT)")]
    None,
    /// An entry is missing.
    #[error("the firmware's description of the disk has no {}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry says nothing that can be used.
    #[error("the firmware's description of the disk has {what} {value:?}, which cannot be used")]
    Bad {
        /// Which.
        what: &'static str,
        /// What it says.
        value: String,
    },
}

impl Ibft {
    /// Reads the table.
    ///
    /// # Errors
    /// When there is none, or it lacks what is needed.
    pub(super) fn read() -> Result<Self, IbftError> {
        Self::read_from(Path::new(TABLE))
    }

    fn read_from(table: &Path) -> Result<Self, IbftError> {
        if !table.join("target0").is_dir() {
            return Err(IbftError::None);
        }
        let table = Table { path: table };
        let address: IpAddr = table.parsed("target0", "ip-addr", "the target's address")?;
        let port = table.parsed("target0", "port", "the target's port")?;
        let lun = table.needed("target0", "lun")?;
        let card = table.optional("target0", "nic-assoc");
        let card = format!("ethernet{}", card.as_deref().unwrap_or("0"));
        let mask: Ipv4Addr = table.parsed(&card, "subnet-mask", "the network's mask")?;
        let prefix_bits = mask_bits(mask).ok_or_else(|| IbftError::Bad {
            what: "the network's mask",
            value: mask.to_string(),
        })?;
        let server = |name: &str| {
            let address: Ipv4Addr = table.optional(&card, name)?.parse().ok()?;
            (!address.is_unspecified()).then_some(address)
        };
        Ok(Self {
            initiator: table.needed("initiator", "initiator-name")?,
            target: table.needed("target0", "target-name")?,
            portal: SocketAddr::new(address, port),
            lun: unit(&lun).ok_or(IbftError::Bad {
                what: "the disk's number",
                value: lun,
            })?,
            secret: table.secret()?,
            mac: table.parsed(&card, "mac", "the card's address")?,
            address: Ipv4Config {
                address: table.parsed(&card, "ip-addr", "the machine's address")?,
                prefix_bits,
                gateway: server("gateway"),
                name_servers: server("primary-dns").into_iter().collect(),
            },
        })
    }
}

/// Its directory.
struct Table<'a> {
    path: &'a Path,
}

impl Table<'_> {
    fn needed(&self, part: &str, name: &str) -> Result<String, IbftError> {
        let path = self.path.join(part).join(name);
        let text = fs::read_to_string(&path);
        let text = text.map_err(|source| IbftError::Missing { path, source })?;
        Ok(text.trim().to_owned())
    }

    fn optional(&self, part: &str, name: &str) -> Option<String> {
        self.needed(part, name).ok().filter(|text| !text.is_empty())
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        part: &str,
        name: &str,
        what: &'static str,
    ) -> Result<T, IbftError> {
        let value = self.needed(part, name)?;
        value.parse().map_err(|_| IbftError::Bad { what, value })
    }

    fn secret(&self) -> Result<Option<(String, Vec<u8>)>, IbftError> {
        let kind = self.optional("target0", "chap-type");
        if kind.is_none_or(|kind| kind == CHAP_NONE) {
            return Ok(None);
        }
        let name = self.needed("target0", "chap-name")?;
        let secret = self.needed("target0", "chap-secret")?;
        Ok(Some((name, secret.into_bytes())))
    }
}

/// The number in an address of a unit, eight bytes in hexadecimal, of which the first two
/// are a number without levels (SAM-5, section 4.7).
fn unit(text: &str) -> Option<u64> {
    let bytes = u64::from_str_radix(text, 16).ok()?;
    let (first, rest) = ((bytes >> 48) as u16, bytes & 0xffff_ffff_ffff);
    // Peripheral addressing, and flat addressing.
    let is_plain = rest == 0 && matches!(first >> 14, 0 | 1);
    is_plain.then_some(u64::from(first & 0x3fff))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: [(&str, &str); 15] = [
        ("initiator/initiator-name", "iqn.2026-11.example:node.n7"),
        ("target0/target-name", "iqn.2026-11.example:volume.n7"),
        ("target0/ip-addr", "10.0.0.1"),
        ("target0/port", "3260"),
        ("target0/lun", "0001000000000000"),
        ("target0/nic-assoc", "0"),
        ("target0/chap-type", "1"),
        ("target0/chap-name", "n7"),
        ("target0/chap-secret", "abcdefgh23456789"),
        ("ethernet0/mac", "52:54:00:12:34:56"),
        ("ethernet0/ip-addr", "10.0.0.7"),
        ("ethernet0/subnet-mask", "255.255.254.0"),
        ("ethernet0/gateway", "0.0.0.0"),
        ("ethernet0/primary-dns", "10.0.0.53"),
        ("ethernet0/flags", "3"),
    ];

    fn table(change: Option<(&str, Option<&str>)>) -> Result<Ibft, IbftError> {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, value) in ENTRIES {
            let value = match change {
                Some((changed, value)) if changed == name => value,
                _ => Some(value),
            };
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            if let Some(value) = value {
                fs::write(&path, format!("{value}\n")).expect("written");
            }
        }
        Ibft::read_from(dir.path())
    }

    #[test]
    fn a_whole_table_is_read() {
        let ibft = table(None).expect("a table");
        assert_eq!(ibft.portal.to_string(), "10.0.0.1:3260");
        assert_eq!(ibft.lun, 1);
        assert_eq!(ibft.address.prefix_bits, 23);
        assert_eq!(ibft.address.gateway, None);
        assert_eq!(ibft.address.name_servers.len(), 1);
        let secret = ibft.secret.expect("a secret");
        assert_eq!(secret.0, "n7");
        let without = table(Some(("target0/chap-type", Some("0")))).expect("a table");
        assert!(without.secret.is_none());
    }

    #[test]
    fn what_it_lacks_is_named() {
        for (name, value, expected) in [
            ("target0/target-name", None, "target-name"),
            ("target0/port", Some("99999"), "the target's port"),
            ("target0/lun", Some("0001000100000000"), "the disk's number"),
            ("target0/chap-secret", None, "chap-secret"),
            ("ethernet0/subnet-mask", Some("255.0.255.0"), "mask"),
            ("ethernet0/mac", Some("x"), "the card's address"),
        ] {
            let error = table(Some((name, value))).err().expect(name).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let empty = tempfile::tempdir().expect("a directory");
        assert!(matches!(
            Ibft::read_from(empty.path()),
            Err(IbftError::None)
        ));
    }
}
