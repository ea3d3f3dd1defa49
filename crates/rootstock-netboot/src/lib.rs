//! How machines are booted from the network, as state machines without I/O:
//! packets and times come in, packets and decisions go out.
//!
//! [`client`] says who sent a packet, [`strategy`] is the table of how each kind of
//! firmware is booted, [`dhcp`] answers: as the subnet's DHCP server, as ProxyDHCP
//! beside another one, or not at all. [`tftp`] sends files. Nothing here opens a socket, reads a clock or
//! draws a random number.

pub mod client;
pub mod dhcp;
pub mod script;
pub mod strategy;
pub mod tftp;

/// A time, or a span of time, in milliseconds. Times count from 1970, so that
/// several servers and the runs of one can share leases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// A span of seconds.
    #[must_use]
    pub const fn seconds(seconds: u32) -> Self {
        Self(seconds as u64 * 1000)
    }

    /// This time and a span later.
    #[must_use]
    pub const fn after(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span since an earlier time; zero when it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}
