//! Which address is whose: what is offered, being committed, leased, or out of use.
//!
//! The table knows what this server did and what it read at its start. Another
//! server may have given more since; that is why a lease counts only once it is
//! committed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
};

use rootstock_core::MacAddress;

use super::config::{Known, Network};
use crate::Millis;

/// A network: its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NetworkId(pub(super) usize);

/// How an address is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is being asked after.
    Probing,
    /// It is offered.
    Offered,
    /// Its lease is being written.
    Committing,
    /// It is leased.
    Bound,
    /// Somebody uses it whom we did not give it.
    Quarantined,
    /// It was leased: its client gets it again when nobody else did.
    Over,
}

/// An address's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// For or by whom.
    pub(super) mac: MacAddress,
    /// How.
    pub(super) state: State,
    /// Until when. A commit is waited for however long it takes.
    pub(super) until: Millis,
}

impl Entry {
    /// Whether nobody else may have the address.
    fn holds(&self, now: Millis) -> bool {
        match self.state {
            State::Over => false,
            State::Committing => true,
            _ => self.until > now,
        }
    }
}

/// All addresses of all networks.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<Ipv4Addr, Entry>,
    /// What a client had last in each network.
    last: HashMap<(NetworkId, MacAddress), Ipv4Addr>,
    /// When entries end.
    ends: BTreeSet<(Millis, Ipv4Addr)>,
    /// Addresses of each pool that nobody holds.
    free: Vec<BTreeSet<u32>>,
    pools: Vec<Option<(Ipv4Addr, Ipv4Addr)>>,
    /// Never given from a pool: ours, routers, name servers.
    never: HashSet<Ipv4Addr>,
    reserved: HashMap<Ipv4Addr, HashSet<MacAddress>>,
    reservations: HashMap<MacAddress, Vec<Ipv4Addr>>,
}

impl Table {
    /// A table in which all of the pools is free.
    pub(super) fn new(networks: &[Network], own: impl Iterator<Item = Ipv4Addr>) -> Self {
        let mut never: HashSet<_> = own.collect();
        for network in networks {
            never.extend(network.gateway);
            never.extend(network.name_servers.iter().copied());
        }
        let mut table = Self {
            entries: HashMap::new(),
            last: HashMap::new(),
            ends: BTreeSet::new(),
            free: vec![BTreeSet::new(); networks.len()],
            pools: networks.iter().map(|network| network.pool).collect(),
            never,
            reserved: HashMap::new(),
            reservations: HashMap::new(),
        };
        for (place, pool) in table.pools.clone().into_iter().enumerate() {
            let Some((first, last)) = pool else { continue };
            for bits in first.to_bits()..=last.to_bits() {
                if !table.never.contains(&Ipv4Addr::from_bits(bits)) {
                    table.free[place].insert(bits);
                }
            }
        }
        table
    }

    /// Addresses that are machines' own from now on.
    pub(super) fn reserve(&mut self, known: &[Known]) {
        let before: Vec<_> = self.reserved.keys().copied().collect();
        self.reserved.clear();
        self.reservations.clear();
        for known in known {
            if let Some(address) = known.address {
                self.reserved.entry(address).or_default().insert(known.mac);
                self.reservations
                    .entry(known.mac)
                    .or_default()
                    .push(address);
            }
        }
        let after: Vec<_> = self.reserved.keys().copied().collect();
        for address in before.into_iter().chain(after) {
            self.put_back(address);
        }
    }

    /// Whether an address is a machine's own, and not this one's.
    pub(super) fn is_reserved_for_another(&self, address: Ipv4Addr, mac: MacAddress) -> bool {
        let owners = self.reserved.get(&address);
        owners.is_some_and(|owners| !owners.contains(&mac))
    }

    /// The addresses that are this machine's own.
    pub(super) fn own_of(&self, mac: MacAddress) -> &[Ipv4Addr] {
        self.reservations.get(&mac).map_or(&[], Vec::as_slice)
    }

    /// The entry of an address that somebody holds.
    pub(super) fn held(&self, address: Ipv4Addr, now: Millis) -> Option<Entry> {
        self.entries
            .get(&address)
            .filter(|entry| entry.holds(now))
            .copied()
    }

    /// Whatever is known of an address.
    pub(super) fn entry(&self, address: Ipv4Addr) -> Option<Entry> {
        self.entries.get(&address).copied()
    }

    /// What a client has or had last in a network.
    pub(super) fn last_of(&self, network: NetworkId, mac: MacAddress) -> Option<Ipv4Addr> {
        self.last.get(&(network, mac)).copied()
    }

    /// Whether a client can have an address: of the pool or its own, and free or its
    /// own already.
    pub(super) fn may_have(
        &self,
        network: NetworkId,
        address: Ipv4Addr,
        mac: MacAddress,
        now: Millis,
    ) -> bool {
        let own = self.own_of(mac).contains(&address);
        if !own && (!self.in_pool(network, address) || self.is_reserved_for_another(address, mac)) {
            return false;
        }
        match self.held(address, now) {
            None => true,
            Some(entry) => entry.mac == mac && entry.state != State::Quarantined,
        }
    }

    /// A free address of the pool. Where the search starts is the client's: it gets
    /// the same again, and two servers seldom choose the same for two clients.
    pub(super) fn pick(
        &mut self,
        network: NetworkId,
        mac: MacAddress,
        now: Millis,
    ) -> Option<Ipv4Addr> {
        self.sweep(now);
        let (first, last) = self.pools.get(network.0).copied().flatten()?;
        let size = u64::from(last.to_bits() - first.to_bits()) + 1;
        let start = first.to_bits() + u32::try_from(scatter(mac) % size).unwrap_or(0);
        let free = &self.free[network.0];
        let found = free.range(start..).next().or_else(|| free.first());
        found.copied().map(Ipv4Addr::from_bits)
    }

    /// Sets what an address is used for.
    pub(super) fn set(&mut self, network: NetworkId, address: Ipv4Addr, entry: Entry) {
        if let Some(old) = self.entries.insert(address, entry) {
            self.ends.remove(&(old.until, address));
            let key = (network, old.mac);
            if old.mac != entry.mac && self.last.get(&key) == Some(&address) {
                self.last.remove(&key);
            }
        }
        self.ends.insert((entry.until, address));
        if entry.state != State::Quarantined {
            self.last.insert((network, entry.mac), address);
        }
        self.put_back(address);
    }

    /// Ends what has passed.
    pub(super) fn sweep(&mut self, now: Millis) {
        while let Some(&(until, address)) = self.ends.first() {
            if until > now {
                return;
            }
            self.ends.pop_first();
            if let Some(entry) = self.entries.get_mut(&address)
                && entry.state != State::Committing
            {
                entry.state = State::Over;
                self.put_back(address);
            }
        }
    }

    /// Puts an address among the free ones, or takes it from there.
    fn put_back(&mut self, address: Ipv4Addr) {
        let used = self
            .entries
            .get(&address)
            .is_some_and(|entry| entry.state != State::Over);
        let free = !used && !self.reserved.contains_key(&address) && !self.never.contains(&address);
        for (pool, set) in self.pools.iter().zip(&mut self.free) {
            let inside = pool.is_some_and(|(first, last)| (first..=last).contains(&address));
            if inside && free {
                set.insert(address.to_bits());
            } else if inside {
                set.remove(&address.to_bits());
            }
        }
    }

    fn in_pool(&self, network: NetworkId, address: Ipv4Addr) -> bool {
        let pool = self.pools.get(network.0).copied().flatten();
        pool.is_some_and(|(first, last)| (first..=last).contains(&address))
            && !self.never.contains(&address)
    }
}

/// Spreads addresses of cards, which one maker numbers in a row (the finalizer of
/// splitmix64).
fn scatter(mac: MacAddress) -> u64 {
    let mut bytes = [0; 8];
    bytes[..MacAddress::LEN].copy_from_slice(mac.as_bytes());
    let mut value = u64::from_le_bytes(bytes);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
