//! A machine that boots while no server answers: what a machine of the swarm gives it,
//! as far as the site signed it.

use rootstock_api::guest::GuestOrder;
use rootstock_api::swarm::{RACK_BYTES_MAX, SwarmPeer};
use rootstock_core::{MacAddress, PeerId};
use rootstock_image::manifest::Manifest;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::order::{Site, TrustError, unhex};
use crate::swarm::membership::Membership;

/// The format of a [`Document`].
const FORMAT: u32 = 1;

/// The longest, in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// The longest trace in it.
pub(crate) const TRACE_KEPT_BYTES_MAX: usize = 256 << 10;

/// The most members in it.
const MEMBERS_MAX: usize = 64;

/// What is given to a machine that boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Document {
    format: u32,
    /// The bytes of a [`GuestOrder`], as they were signed.
    order: String,
    /// The site's signature of them, in hex.
    signature: String,
    /// The manifest's bytes, in hex.
    manifest: String,
    /// Its seal, in hex.
    seal: String,
    /// What boots read, in hex; nobody signed that.
    trace: String,
    /// The rack of whoever gives it.
    rack: String,
    /// Members that it knows, itself first.
    members: Vec<SwarmPeer>,
}

/// What is booted.
pub(crate) struct Guest {
    pub(crate) order: GuestOrder,
    /// The manifest's bytes, checked.
    pub(crate) manifest: Vec<u8>,
    /// What boots read; empty when nobody knows.
    pub(crate) trace: Option<Vec<u8>>,
    rack: String,
    members: Vec<SwarmPeer>,
}

impl Document {
    /// Puts together what is given; members come when it is.
    pub(crate) fn new(
        order: Vec<u8>,
        signature: String,
        (manifest, seal): (&[u8], String),
        trace: Option<&[u8]>,
    ) -> Result<Self, TrustError> {
        let order = String::from_utf8(order).map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            format: FORMAT,
            order,
            signature,
            manifest: hex(manifest),
            seal,
            trace: trace.map_or_else(String::new, hex),
            rack: String::new(),
            members: Vec::new(),
        })
    }

    /// Says who is there.
    pub(crate) fn set_members(&mut self, (rack, mut members): (String, Vec<SwarmPeer>)) {
        members.truncate(MEMBERS_MAX);
        self.rack = rack;
        self.members = members;
    }

    /// What is booted by a document, if the site signed it and it holds by this clock.
    ///
    /// # Errors
    /// [`TrustError`].
    pub(crate) fn open(text: &[u8], site: &Site, now_seconds: i64) -> Result<Guest, TrustError> {
        let document: Self =
            serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        if document.format != FORMAT {
            return Err(bad("its format is one of another release".to_owned()));
        }
        let (order, signature) = (document.order.as_bytes(), &document.signature);
        let order = site.guest_order(order, signature, Some(now_seconds))?;
        let manifest = unhex(&document.manifest);
        let manifest = manifest.ok_or_else(|| bad("there is no manifest".to_owned()))?;
        let _: Manifest = site.manifest(&manifest, &document.seal, &order.order)?;
        let is_bounded = document.members.len() <= MEMBERS_MAX
            && document.rack.len() <= RACK_BYTES_MAX
            && document.trace.len() <= 2 * TRACE_KEPT_BYTES_MAX;
        if !is_bounded {
            return Err(bad("it is longer than it may be".to_owned()));
        }
        Ok(Guest {
            order,
            manifest,
            trace: unhex(&document.trace),
            rack: document.rack,
            members: document.members,
        })
    }
}

impl Guest {
    /// Who the machine is: its name by its card, the rest by chance.
    pub(crate) fn settle(&mut self, mac: MacAddress) -> Result<Membership, Errno> {
        let mut random = [0; 24];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let (id, machine_id) = random.split_at(8);
        let identity = &mut self.order.order.identity;
        identity.host_name = format!("guest-{}", mac.dashed());
        identity.machine_id = hex(machine_id);
        let mut number = [0; 8];
        number.copy_from_slice(id);
        let id = PeerId::guest(u64::from_le_bytes(number));
        let rack = std::mem::take(&mut self.rack);
        let members = std::mem::take(&mut self.members);
        Ok(Membership::of_guest(id, rack, &self.order, members))
    }
}

fn bad(what: String) -> TrustError {
    TrustError::Order { what }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
