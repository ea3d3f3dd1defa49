//! The network card that the machine booted from: found, up, with its address.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rootstock_core::MacAddress;

use crate::cmdline::Ipv4Config;
use crate::console;
use crate::netlink::{ACK, CREATE, Message, REPLACE, REQUEST, Socket};

/// Spanning tree keeps a port silent for 30 s, and some links train for 10.
pub(crate) const CARRIER_LIMIT: Duration = Duration::from_secs(60);
/// When the console is told what is waited for.
const CARRIER_SILENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

// `rtnetlink(7)`, `include/uapi/linux/rtnetlink.h` and `if_addr.h`.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const FAMILY_INET: u8 = 2;
const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_BROADCAST: u16 = 4;
const ROUTE_OUT: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
/// `RTPROT_BOOT`: a route that was there before any routing program.
const ROUTE_BY_BOOT: u8 = 3;
const ROUTE_UNICAST: u8 = 1;
const FLAG_UP: u32 = 1;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// The kernel's name.
    pub(crate) name: String,
    /// The kernel's number.
    pub(crate) index: u32,
    /// Its address.
    pub(crate) mac: MacAddress,
}

/// Every wired card below `/sys/class/net`.
pub(crate) fn list(class: &Path) -> Vec<Nic> {
    let mut nics: Vec<Nic> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| nic(&entry.path()))
        .collect();
    nics.sort_by_key(|nic| nic.index);
    nics
}

/// A card with hardware behind it: no loopback, bridge, bond or tunnel.
fn nic(path: &Path) -> Option<Nic> {
    let read = |name: &str| Some(fs::read_to_string(path.join(name)).ok()?.trim().to_owned());
    // ARPHRD_ETHER.
    if read("type")? != "1" || !path.join("device").exists() || path.join("wireless").exists() {
        return None;
    }
    Some(Nic {
        name: path.file_name()?.to_str()?.to_owned(),
        index: read("ifindex")?.parse().ok()?,
        mac: read("address")?.parse().ok()?,
    })
}

/// The card with this address, or the only one.
pub(crate) fn choose(nics: &[Nic], wanted: Option<MacAddress>) -> Option<&Nic> {
    match (wanted, nics) {
        (Some(wanted), _) => nics.iter().find(|nic| nic.mac == wanted),
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

impl Nic {
    /// Brings it up and waits for its link; says so when that takes long.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no link in time.
    pub(crate) fn bring_up(&self, limit: Duration) -> io::Result<()> {
        let mut netlink = Socket::open(None, 0)?;
        netlink.request(Message::new(NEW_LINK, REQUEST | ACK).raw(&link_up(self.index)))?;
        let carrier = Path::new("/sys/class/net").join(&self.name).join("carrier");
        let began = Instant::now();
        let mut told = false;
        while fs::read_to_string(&carrier).is_ok_and(|text| text.trim() != "1") {
            if began.elapsed() > limit {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} has no link: check its cable and switch", self.name),
                ));
            }
            if !told && began.elapsed() > CARRIER_SILENCE {
                told = true;
                console::warn(format_args!("waiting for the link of {}", self.name));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Gives it its address and the default route.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn configure(&self, config: &Ipv4Config) -> io::Result<()> {
        let mut netlink = Socket::open(None, 0)?;
        let flags = REQUEST | ACK | CREATE | REPLACE;
        let host = u32::MAX
            .checked_shr(u32::from(config.prefix_bits))
            .unwrap_or(0);
        let broadcast = Ipv4Addr::from(u32::from(config.address) | host);
        let mut address = vec![FAMILY_INET, config.prefix_bits, 0, 0];
        address.extend(self.index.to_ne_bytes());
        let message = Message::new(NEW_ADDRESS, flags)
            .raw(&address)
            .attribute(ADDRESS_LOCAL, &config.address.octets())
            .attribute(ADDRESS_PEER, &config.address.octets())
            .attribute(ADDRESS_BROADCAST, &broadcast.octets());
        netlink.request(message)?;
        let Some(gateway) = config.gateway else {
            return Ok(());
        };
        let mut route = vec![FAMILY_INET, 0, 0, 0, TABLE_MAIN, ROUTE_BY_BOOT, 0];
        route.push(ROUTE_UNICAST);
        route.extend([0; 4]);
        let message = Message::new(NEW_ROUTE, flags)
            .raw(&route)
            .attribute(ROUTE_GATEWAY, &gateway.octets())
            .number32(ROUTE_OUT, self.index);
        netlink.request(message).map(|_| ())
    }
}

/// `struct ifinfomsg` that sets the up flag and nothing else.
fn link_up(index: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(FLAG_UP.to_ne_bytes());
    bytes.extend(FLAG_UP.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_from_what_only_looks_like_one() {
        let sys = tempfile::tempdir().expect("a directory");
        let add = |name: &str, kind: &str, mac: &str, hardware: bool, index: &str| {
            let path = sys.path().join(name);
            fs::create_dir(&path).expect("made");
            for (file, text) in [("type", kind), ("address", mac), ("ifindex", index)] {
                fs::write(path.join(file), format!("{text}\n")).expect("written");
            }
            if hardware {
                fs::create_dir(path.join("device")).expect("made");
            }
        };
        add("eth1", "1", "52:54:00:00:00:02", true, "3");
        add("eth0", "1", "52:54:00:00:00:01", true, "2");
        add("lo", "772", "00:00:00:00:00:00", false, "1");
        add("br0", "1", "52:54:00:00:00:01", false, "4");
        let nics = list(sys.path());
        let names: Vec<&str> = nics.iter().map(|nic| nic.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        let wanted = "52-54-00-00-00-02".parse().ok();
        assert_eq!(choose(&nics, wanted).map(|nic| nic.index), Some(3));
        assert_eq!(choose(&nics, "52-54-00-00-00-09".parse().ok()), None);
        assert_eq!(choose(&nics, None), None);
        assert_eq!(choose(&nics[..1], None), nics.first());
    }
}
