//! What the kernel's command line tells the first stage.

use std::net::Ipv4Addr;

use rootstock_core::MacAddress;

use crate::local::is_file_name;

/// The most URLs that are taken from a command line.
const URLS_MAX: usize = 16;

/// The parts of a command line that concern us; the rest is the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Base URLs of node services, in order (`rootstock.url=`).
    pub(crate) urls: Vec<String>,
    /// The boot token (`rootstock.token=`); none when it starts from its own disk.
    pub(crate) token: String,
    /// The document of a start from its own disk (`rootstock.local=`).
    pub(crate) local: Option<String>,
    /// The machine of the swarm that boots it (`rootstock.guest=`).
    pub(crate) guest: Option<String>,
    /// The card it booted from (`BOOTIF=`).
    pub(crate) boot_mac: Option<MacAddress>,
    /// Its address, when the boot loader's is to be kept (`rootstock.ip=`).
    pub(crate) address: Option<Ipv4Config>,
}

/// A card's IPv4 settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipv4Config {
    /// The address.
    pub(crate) address: Ipv4Addr,
    /// Bits of the subnet's prefix.
    pub(crate) prefix_bits: u8,
    /// The router.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub(crate) name_servers: Vec<Ipv4Addr>,
}

/// What a command line lacks or has wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandLineError {
    /// A parameter that must be there.
    #[error("the kernel's command line has no {name}: the server's boot script sets it")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A parameter that says nothing.
    #[error("the kernel's command line has {name}{value}, which is not {expected}")]
    Bad {
        /// Its name.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
}

impl CommandLine {
    /// Reads the text of `/proc/cmdline`.
    pub(crate) fn parse(text: &str) -> Result<Self, CommandLineError> {
        let mut line = Self::default();
        for word in text.split_ascii_whitespace() {
            if let Some(url) = word.strip_prefix("rootstock.url=") {
                line.add_url(url)?;
            } else if let Some(token) = word.strip_prefix("rootstock.token=") {
                token.clone_into(&mut line.token);
            } else if let Some(name) = word.strip_prefix("rootstock.local=") {
                if !is_file_name(name) {
                    return Err(CommandLineError::Bad {
                        name: "rootstock.local=",
                        value: name.to_owned(),
                        expected: "a file's name such as 0123abcd.ef0",
                    });
                }
                line.local = Some(name.to_owned());
            } else if let Some(url) = word.strip_prefix("rootstock.guest=") {
                if !url.starts_with("http://") {
                    return Err(CommandLineError::Bad {
                        name: "rootstock.guest=",
                        value: url.to_owned(),
                        expected: "an http URL",
                    });
                }
                line.guest = Some(url.trim_end_matches('/').to_owned());
            } else if let Some(value) = word.strip_prefix("BOOTIF=") {
                line.boot_mac = Some(boot_mac(value).ok_or_else(|| CommandLineError::Bad {
                    name: "BOOTIF=",
                    value: value.to_owned(),
                    expected: "a card's address such as 01-52-54-00-12-34-56",
                })?);
            } else if let Some(value) = word.strip_prefix("rootstock.ip=") {
                line.address = Some(ipv4(value).ok_or_else(|| CommandLineError::Bad {
                    name: "rootstock.ip=",
                    value: value.to_owned(),
                    expected: "ADDRESS/NETMASK,GATEWAY,NAMESERVER",
                })?);
            }
        }
        if line.urls.is_empty() {
            return Err(CommandLineError::Missing {
                name: "rootstock.url=",
            });
        }
        if line.token.is_empty() && line.local.is_none() && line.guest.is_none() {
            return Err(CommandLineError::Missing {
                name: "rootstock.token=",
            });
        }
        Ok(line)
    }

    fn add_url(&mut self, url: &str) -> Result<(), CommandLineError> {
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(CommandLineError::Bad {
                name: "rootstock.url=",
                value: url.to_owned(),
                expected: "an http or https URL",
            });
        }
        if self.urls.len() < URLS_MAX {
            self.urls.push(url.trim_end_matches('/').to_owned());
        }
        Ok(())
    }
}

/// `01-52-54-00-12-34-56`: PXELINUX puts the hardware type (RFC 1700: 1 is
/// Ethernet) before the address; GRUB and people leave it out.
fn boot_mac(value: &str) -> Option<MacAddress> {
    let address = match value.len() {
        20 => value.get(3..)?,
        _ => value,
    };
    address.parse().ok()
}

fn ipv4(value: &str) -> Option<Ipv4Config> {
    let mut parts = value.split(',');
    let (address, mask) = parts.next()?.split_once('/')?;
    let mut others = parts.map(|part| match part {
        "" => Some(None),
        address => address.parse().ok().map(Some),
    });
    let gateway = others.next().unwrap_or(Some(None))?;
    let mut name_servers = Vec::new();
    for server in others {
        name_servers.extend(server?);
    }
    Some(Ipv4Config {
        address: address.parse().ok()?,
        prefix_bits: prefix_bits(mask)?,
        gateway,
        name_servers,
    })
}

/// A netmask or a number of bits.
fn prefix_bits(mask: &str) -> Option<u8> {
    if let Ok(bits) = mask.parse::<u8>() {
        return (bits <= 32).then_some(bits);
    }
    mask_bits(mask.parse().ok()?)
}

/// The bits of a netmask without gaps.
pub(crate) fn mask_bits(mask: Ipv4Addr) -> Option<u8> {
    let mask = u32::from(mask);
    (mask.leading_ones() + mask.trailing_zeros().min(32) >= 32).then_some(mask.leading_ones() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_is_read() {
        let line = CommandLine::parse(
            "BOOT_IMAGE=/x ro rootstock.url=https://10.0.0.1:8481/ rootstock.url=http://10.0.0.2:8480 \
             rootstock.token=abc BOOTIF=01-52-54-00-12-34-56 \
             rootstock.ip=10.0.0.7/255.255.255.0,10.0.0.1,10.0.0.53 console=ttyS0\n",
        )
        .expect("a good line");
        assert_eq!(line.urls, ["https://10.0.0.1:8481", "http://10.0.0.2:8480"]);
        assert_eq!(line.token, "abc");
        let mac = line.boot_mac.expect("an address").to_string();
        assert_eq!(mac, "52:54:00:12:34:56");
        let address = line.address.expect("an address");
        assert_eq!(address.address, Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(address.prefix_bits, 24);
        assert_eq!(address.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(address.name_servers, [Ipv4Addr::new(10, 0, 0, 53)]);
    }

    #[test]
    fn addresses_in_all_forms() {
        for (value, expected) in [
            ("10.0.0.7/24", Some((24, false, 0))),
            ("10.0.0.7/255.255.254.0,,", Some((23, false, 0))),
            ("10.0.0.7/24,10.0.0.1", Some((24, true, 0))),
            ("10.0.0.7/24,,1.1.1.1,9.9.9.9", Some((24, false, 2))),
            ("10.0.0.7/0", Some((0, false, 0))),
            ("10.0.0.7", None),
            ("10.0.0.7/33", None),
            ("10.0.0.7/255.0.255.0", None),
            ("10.0.0.7/24,router", None),
            ("", None),
        ] {
            let found = ipv4(value).map(|config| {
                (
                    config.prefix_bits,
                    config.gateway.is_some(),
                    config.name_servers.len(),
                )
            });
            assert_eq!(found, expected, "{value}");
        }
        for mac in ["52-54-00-12-34-56", "52:54:00:12:34:56"] {
            assert!(boot_mac(mac).is_some(), "{mac}");
        }
        assert!(boot_mac("01-52-54-00-12").is_none());
    }

    #[test]
    fn what_lacks_is_named() {
        for (text, expected) in [
            ("quiet", "rootstock.url="),
            ("rootstock.url=https://a", "rootstock.token="),
            ("rootstock.url=ftp://a", "http or https"),
            (
                "rootstock.url=https://a rootstock.local=../x",
                "a file's name",
            ),
            ("rootstock.url=https://a rootstock.guest=b", "an http URL"),
            ("BOOTIF=eth0", "BOOTIF="),
            ("rootstock.ip=dhcp", "ADDRESS/NETMASK"),
        ] {
            let error = CommandLine::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
