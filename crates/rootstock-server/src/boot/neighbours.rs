//! Which card an address on the link belongs to: the kernel's neighbour table.

use std::{fs, net::IpAddr};

use rootstock_core::MacAddress;

/// How much of the table is read, in bytes.
const TABLE_BYTES_MAX: u64 = 4 << 20;

/// The card that was last seen with an address on a link of ours.
pub(crate) fn mac_of(address: IpAddr) -> Option<MacAddress> {
    use std::io::Read as _;
    let IpAddr::V4(address) = address else {
        return None;
    };
    let mut table = String::new();
    let file = fs::File::open("/proc/self/net/arp").ok()?;
    file.take(TABLE_BYTES_MAX).read_to_string(&mut table).ok()?;
    find(&table, &address.to_string())
}

/// Columns: address, kind of hardware, flags (2 is complete), card, mask, device.
fn find(table: &str, address: &str) -> Option<MacAddress> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace();
        if columns.next() != Some(address) {
            return None;
        }
        let mac = columns.nth(2)?.parse().ok();
        mac.filter(MacAddress::is_unicast)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.7         0x1         0x2         52:54:00:12:34:56     *        br0
10.0.0.70        0x1         0x2         52:54:00:12:34:57     *        br0
10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        br0
";
        let mac = find(table, "10.0.0.7").expect("is there");
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert_eq!(find(table, "10.0.0.8"), None);
        assert_eq!(find(table, "10.0.0.9"), None);
    }
}
