//! How far each machine's boot is, and what it is told to boot.
//!
//! A machine that goes silent after our offers, or comes back to its firmware
//! without having fetched its script, gets the next strategy of its row.

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
};

use rootstock_core::MacAddress;

use super::{
    action::{Boot, Event, Progress},
    config::{Config, Known},
    reply::{BootFields, FILE_BYTES_MAX},
};
use crate::{
    Millis,
    client::{Asker, Client},
    strategy::{self, Announce, AskerKind, Chained, Program, Strategy},
};

/// How long a machine may take from an offer to its boot program before its strategy
/// has failed: four tries of a PXE ROM, 4, 8, 16 and 32 s apart, begin within it
/// (bootimus#77).
pub(super) const SILENCE: Millis = Millis::seconds(40);

/// How long an iPXE counts as one that was given ours.
const CHAIN: Millis = Millis::seconds(120);

/// The most machines whose boots are followed; then the oldest is forgotten.
const MACHINES_MAX: usize = 1 << 16;

/// How often a strategy that worked before may fail before the next is tried.
const FAILURES_OF_PROVEN_MAX: u32 = 2;

/// Discovery control (tag 6): no broadcast, no multicast, boot the file of this
/// offer (PXE 2.1, table 2-5).
const CONTROL_FILE: [u8; 3] = [6, 1, 8];
/// The prompt (tag 10): no wait, then this text.
const PROMPT: [u8; 6] = [10, 4, 0, 0x50, 0x58, 0x45];
/// The boot menu (tag 9): one entry, server type 0, 17 letters.
const RASPBERRY_PI: &[u8] = b"\x09\x14\x00\x00\x11Raspberry Pi Boot";

/// Who tells a machine how to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// The subnet's DHCP server.
    Dhcp,
    /// ProxyDHCP, beside it.
    Proxy,
}

/// What is known of a machine's boot.
#[derive(Debug, Default)]
struct Record {
    /// What is tried to get it from its firmware to our script: one for each way that
    /// its firmware asks, since it may ask by PXE and by HTTP in turn.
    trying: Vec<Trying>,
    /// How it asked last.
    asked: Option<AskerKind>,
    /// Programs that it fetched and did not go on from: Secure Boot refuses what is
    /// not signed.
    refused: Vec<&'static str>,
    /// What worked.
    worked: Option<&'static str>,
    /// How often that failed since.
    failures: u32,
    /// Since when its next step is awaited.
    waits: Option<Millis>,
    /// Whether it fetched a program and was not heard of since.
    fetched: bool,
    /// When its iPXE was given ours.
    chained: Option<Millis>,
    /// The exchange it was answered in, on which interface, and when.
    answered: Option<(u32, usize, Millis)>,
    address: Option<Ipv4Addr>,
}

/// A strategy that is being tried.
#[derive(Debug)]
struct Trying {
    client: Client,
    kind: AskerKind,
    voice: Voice,
    strategy: &'static str,
}

/// How a strategy failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Nothing more was heard.
    Silent,
    /// The program was fetched, and the firmware is back.
    Refused,
}

impl Record {
    fn trying(&self, kind: AskerKind) -> Option<&Trying> {
        self.trying.iter().find(|trying| trying.kind == kind)
    }

    fn last_tried(&self) -> Option<&Trying> {
        self.asked.and_then(|kind| self.trying(kind))
    }

    fn refuses(&self, strategy: &Strategy) -> bool {
        matches!(strategy.program, Program::File(file) if self.refused.contains(&file))
    }

    /// Notes the program of a strategy of `row` as refused; when all are, none is.
    fn refuse(&mut self, row: &[Strategy], name: &str) {
        let tried = row.iter().find(|strategy| strategy.name == name);
        if let Some(Program::File(file)) = tried.map(|strategy| strategy.program) {
            self.refused.push(file);
        }
        if row.iter().all(|strategy| self.refuses(strategy)) {
            self.refused.clear();
        }
    }

    /// The strategy after this one that is not refused; after the last comes the first.
    fn after(&self, row: &[Strategy], name: &'static str) -> &'static str {
        let place = row.iter().position(|strategy| strategy.name == name);
        let after = place.map_or(0, |place| place + 1);
        let mut round = row.iter().cycle().skip(after).take(row.len());
        let next = round.find(|strategy| !self.refuses(strategy));
        next.map_or(name, |strategy| strategy.name)
    }
}

/// All machines whose boots are followed.
#[derive(Debug, Default)]
pub(super) struct Machines {
    records: HashMap<MacAddress, Record>,
    order: VecDeque<MacAddress>,
    addresses: HashMap<Ipv4Addr, MacAddress>,
    known: HashMap<MacAddress, Known>,
    remembered: HashMap<MacAddress, String>,
    deadlines: VecDeque<(Millis, MacAddress)>,
}

impl Machines {
    pub(super) fn set_known(&mut self, known: Vec<Known>) {
        self.known = known.into_iter().map(|known| (known.mac, known)).collect();
    }

    pub(super) fn known(&self, mac: MacAddress) -> Option<&Known> {
        self.known.get(&mac)
    }

    pub(super) fn remember(&mut self, worked: Vec<(MacAddress, String)>) {
        self.remembered = worked.into_iter().collect();
    }

    /// Whether this exchange was answered on another interface a moment ago: two
    /// cards of ours on one wire would outbid each other (Confluent).
    pub(super) fn is_twin(
        &mut self,
        mac: MacAddress,
        xid: u32,
        interface: usize,
        now: Millis,
    ) -> bool {
        const MOMENT: Millis = Millis::seconds(2);
        let record = self.record(mac);
        if let Some((seen, place, at)) = record.answered
            && seen == xid
            && place != interface
            && now.since(at) < MOMENT
        {
            return true;
        }
        record.answered = Some((xid, interface, now));
        false
    }

    /// What a machine is told to boot; `None` when the table has nothing for it.
    pub(super) fn answer(
        &mut self,
        config: &Config,
        now: Millis,
        client: &Client,
        voice: Voice,
        server: Ipv4Addr,
    ) -> Option<(Boot, BootFields)> {
        let chained = self.chained(client.mac, now);
        let kind = strategy::kind(client.program, chained)?;
        let strategy = self.choose(config, client, kind, voice)?;
        let record = self.record(client.mac);
        match kind {
            AskerKind::IpxeLacking => record.chained = Some(now),
            // Every machine comes through its firmware again.
            AskerKind::Pxe | AskerKind::Http => record.chained = None,
            AskerKind::Ipxe => {}
        }
        if kind != AskerKind::Ipxe {
            record.trying.retain(|trying| trying.kind != kind);
            record.trying.push(Trying {
                client: client.clone(),
                kind,
                voice,
                strategy: strategy.name,
            });
            record.asked = Some(kind);
        }
        let file = file_of(config, &strategy, client, server);
        if file.len() > FILE_BYTES_MAX {
            return None;
        }
        let fields = BootFields {
            class: class_of(&strategy, client.program, voice),
            vendor: vendor_of(&strategy, voice),
            file: file.clone(),
            no_proxy: voice == Voice::Dhcp && matches!(client.program, Asker::Ipxe(_)),
        };
        Some((
            Boot {
                strategy: strategy.name,
                file,
            },
            fields,
        ))
    }

    /// The strategy for a machine: what an administrator chose, what is being tried,
    /// what worked before, the first of the row.
    fn choose(
        &mut self,
        config: &Config,
        client: &Client,
        kind: AskerKind,
        voice: Voice,
    ) -> Option<Strategy> {
        let mac = client.mac;
        let mut row = available(config, client, kind, voice);
        let known = self.known.get(&mac);
        if known.is_some_and(|known| known.wants_ipxe) {
            row.retain(|strategy| !strategy.leads_to_grub());
        }
        let named = |name: &str| row.iter().find(|strategy| strategy.name == name).copied();
        let chosen = known.and_then(|known| known.strategy.as_deref());
        if let Some(strategy) = chosen.and_then(named) {
            return Some(strategy);
        }
        let record = self.records.get(&mac);
        let trying = record.and_then(|record| record.trying(kind));
        if let Some(strategy) = trying.and_then(|trying| named(trying.strategy)) {
            return Some(strategy);
        }
        if let Some(strategy) = self.remembered.get(&mac).and_then(|name| named(name)) {
            self.record(mac).worked = Some(strategy.name);
            return Some(strategy);
        }
        let record = self.records.get(&mac);
        let refused = |strategy: &&Strategy| record.is_some_and(|record| record.refuses(strategy));
        let mut accepted = row.iter().filter(|strategy| !refused(strategy));
        accepted.next().or(row.first()).copied()
    }

    /// Firmware asks, before it is answered: when it had fetched a program and is back
    /// without having reached its script, that program is not for it.
    pub(super) fn asks(&mut self, config: &Config, client: &Client, events: &mut Vec<Event>) {
        let firmware = matches!(client.program, Asker::Pxe | Asker::Http);
        let back = self
            .records
            .get_mut(&client.mac)
            .is_some_and(|record| std::mem::take(&mut record.fetched));
        if back && firmware {
            self.failed(config, client.mac, Failure::Refused, events);
        }
    }

    /// An offer leaves: the machine is expected to fetch something soon.
    pub(super) fn offered(&mut self, now: Millis, mac: MacAddress) {
        let record = self.record(mac);
        if record.waits.is_none() {
            record.waits = Some(now);
            self.deadlines.push_back((now.after(SILENCE), mac));
        }
    }

    /// Something was heard of a machine: it gets time for its next step.
    pub(super) fn heard(&mut self, now: Millis, mac: MacAddress, address: Ipv4Addr) {
        if !address.is_unspecified() {
            self.place(mac, address);
        }
        if let Some(record) = self.records.get_mut(&mac)
            && record.waits.is_some()
        {
            record.waits = Some(now);
        }
    }

    /// Another service saw a machine.
    pub(super) fn progress(
        &mut self,
        mac: MacAddress,
        progress: Progress,
        events: &mut Vec<Event>,
    ) {
        let Some(record) = self.records.get_mut(&mac) else {
            return;
        };
        record.waits = None;
        match progress {
            Progress::File => record.fetched = true,
            Progress::Script => {
                record.fetched = false;
                record.failures = 0;
                record.refused.clear();
                let Some(strategy) = record.last_tried().map(|trying| trying.strategy) else {
                    return;
                };
                record.worked = Some(strategy);
                if self
                    .remembered
                    .get(&mac)
                    .is_none_or(|name| name != strategy)
                {
                    self.remembered.insert(mac, strategy.to_owned());
                    events.push(Event::Worked { mac, strategy });
                }
            }
        }
    }

    /// The machine that has an address.
    pub(super) fn at(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.addresses.get(&address).copied()
    }

    /// When somebody's time is over.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        self.deadlines.front().map(|deadline| deadline.0)
    }

    /// Looks after machines that went silent.
    pub(super) fn wake(&mut self, config: &Config, now: Millis, events: &mut Vec<Event>) {
        while let Some(&(deadline, mac)) = self.deadlines.front() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_front();
            let Some(since) = self.records.get(&mac).and_then(|record| record.waits) else {
                continue;
            };
            if now.since(since) < SILENCE {
                self.deadlines.push_back((since.after(SILENCE), mac));
                continue;
            }
            self.record(mac).waits = None;
            self.failed(config, mac, Failure::Silent, events);
        }
    }

    /// What is tried for a machine did not get it to its script.
    fn failed(
        &mut self,
        config: &Config,
        mac: MacAddress,
        failure: Failure,
        events: &mut Vec<Event>,
    ) {
        let Some(record) = self.records.get_mut(&mac) else {
            return;
        };
        let Some(trying) = record.last_tried() else {
            return;
        };
        let (kind, tried) = (trying.kind, trying.strategy);
        let row = available(config, &trying.client, kind, trying.voice);
        record.failures += 1;
        let proven = record.worked == Some(tried);
        let mut next = tried;
        if !proven || record.failures >= FAILURES_OF_PROVEN_MAX {
            record.failures = 0;
            if failure == Failure::Refused {
                record.refuse(&row, tried);
            }
            next = record.after(&row, tried);
        }
        for trying in &mut record.trying {
            if trying.kind == kind {
                trying.strategy = next;
            }
        }
        // The other ways it may ask begin anew, without what it refused.
        if failure == Failure::Refused {
            record.trying.retain(|trying| trying.kind == kind);
        }
        events.push(Event::Silent {
            mac,
            strategy: tried,
            next,
        });
    }

    fn chained(&self, mac: MacAddress, now: Millis) -> Chained {
        let at = self.records.get(&mac).and_then(|record| record.chained);
        match at {
            Some(at) if now.since(at) < CHAIN => Chained::Once,
            _ => Chained::No,
        }
    }

    fn place(&mut self, mac: MacAddress, address: Ipv4Addr) {
        let Some(record) = self.records.get_mut(&mac) else {
            return;
        };
        if let Some(old) = record.address.replace(address)
            && self.addresses.get(&old) == Some(&mac)
        {
            self.addresses.remove(&old);
        }
        self.addresses.insert(address, mac);
    }

    fn record(&mut self, mac: MacAddress) -> &mut Record {
        if !self.records.contains_key(&mac) {
            if self.order.len() >= MACHINES_MAX
                && let Some(oldest) = self.order.pop_front()
                && let Some(old) = self.records.remove(&oldest)
                && let Some(address) = old.address
            {
                self.addresses.remove(&address);
            }
            self.order.push_back(mac);
        }
        self.records.entry(mac).or_default()
    }
}

/// The strategies of a client's row whose programs are there. Beside another DHCP
/// server, PXE comes to shim last: it takes that server for its TFTP server
/// (rhboot/shim#165, #137).
fn available(config: &Config, client: &Client, kind: AskerKind, voice: Voice) -> Vec<Strategy> {
    let there = |strategy: &&Strategy| match (strategy.program, &config.programs) {
        (Program::File(file), Some(programs)) => {
            strategy.announce == Announce::RaspberryPi || programs.contains(file)
        }
        _ => true,
    };
    let row = strategy::of(config.rules, client, kind);
    let mut row: Vec<_> = row.iter().filter(there).copied().collect();
    if voice == Voice::Proxy && kind == AskerKind::Pxe {
        row.sort_by_key(Strategy::asks_the_dhcp_server);
    }
    row
}

/// What to fetch. PXE gets a plain name, for TFTP from `siaddr`; HTTP boot needs a
/// whole URL; and so does iPXE, since builds differ in how they join a name with the
/// next server.
fn file_of(config: &Config, strategy: &Strategy, client: &Client, server: Ipv4Addr) -> String {
    let port = config.http_port;
    match (strategy.program, client.program) {
        (Program::Script, _) => {
            format!("http://{server}:{port}/boot/ipxe/{}", client.mac.dashed())
        }
        (Program::File(file), Asker::Http) => format!("http://{server}:{port}/boot/file/{file}"),
        (Program::File(file), Asker::Ipxe(_)) => format!("tftp://{server}/{file}"),
        (Program::File(file), _) => file.to_owned(),
    }
}

/// Option 60. Beside another server an offer without it is not looked at; from the
/// subnet's own it makes UEFI ask for a proxy and forget the file (Confluent, LTSP).
fn class_of(strategy: &Strategy, asker: Asker, voice: Voice) -> Option<&'static [u8]> {
    match (asker, voice) {
        (Asker::Http, _) => Some(b"HTTPClient"),
        (_, Voice::Proxy) => Some(b"PXEClient"),
        (_, Voice::Dhcp) if strategy.announce == Announce::RaspberryPi => Some(b"PXEClient"),
        (_, Voice::Dhcp) => None,
    }
}

/// Option 43. The subnet's own server needs it for a Raspberry Pi only.
fn vendor_of(strategy: &Strategy, voice: Voice) -> Option<Vec<u8>> {
    let parts: &[&[u8]] = match (strategy.announce, voice) {
        (Announce::RaspberryPi, _) => &[&CONTROL_FILE, RASPBERRY_PI, &PROMPT],
        (Announce::File, Voice::Proxy) => &[&CONTROL_FILE],
        (Announce::FileWithPrompt, Voice::Proxy) => &[&CONTROL_FILE, &PROMPT],
        _ => return None,
    };
    let mut bytes = parts.concat();
    bytes.push(0xff);
    Some(bytes)
}
