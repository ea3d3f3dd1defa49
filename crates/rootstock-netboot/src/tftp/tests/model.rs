//! A client by the standards' letter, on a network that loses, doubles and delays.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{super::*, MTU, START};
use crate::Millis;

/// Losses without progress between them, at most: one fewer than the tries, so that
/// each transfer can end well.
const LOSSES_MAX: u32 = TRIES_MAX - 2;

/// How long the client waits before it repeats its last packet.
const CLIENT_TIMEOUT: Millis = Millis(1700);

/// What the network does with a packet.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Deliver,
    Lose,
    Double,
    Delay(u64),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Deliver),
        2 => Just(Fate::Lose),
        2 => Just(Fate::Double),
        1 => (1..5000_u64).prop_map(Fate::Delay),
    ]
}

struct Client {
    window: u64,
    block_bytes: usize,
    file: Vec<u8>,
    /// The last block that came in order, and that was acknowledged.
    got: u64,
    acked: u64,
    saw_gap: bool,
    is_complete: bool,
    last_packet: Vec<u8>,
    deadline: Millis,
}

impl Client {
    fn ack(&mut self, now: Millis) -> Option<Vec<u8>> {
        self.acked = self.got;
        let block = self.got as u16;
        self.last_packet = Packet::Ack { block }.encode();
        self.deadline = now.after(CLIENT_TIMEOUT);
        Some(self.last_packet.clone())
    }

    fn take(&mut self, now: Millis, packet: &[u8]) -> Option<Vec<u8>> {
        match Packet::parse(packet).expect("the server sends packets") {
            Packet::OptionsAck(pairs) => {
                for (name, value) in pairs {
                    let value: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
                    match name {
                        b"blksize" => self.block_bytes = value as usize,
                        b"windowsize" => self.window = value,
                        _ => {}
                    }
                }
                (self.got == 0).then(|| self.ack(now)).flatten()
            }
            Packet::Data { block, bytes } => self.data(now, block, bytes),
            other => panic!("{other:?}"),
        }
    }

    fn data(&mut self, now: Millis, block: u16, bytes: &[u8]) -> Option<Vec<u8>> {
        let ahead = block.wrapping_sub(self.got as u16) as i16;
        if ahead == 1 && !self.is_complete {
            self.file.extend(bytes);
            self.got += 1;
            self.saw_gap = false;
            self.is_complete = bytes.len() < self.block_bytes;
            let full = self.got - self.acked >= self.window;
            return (full || self.is_complete).then(|| self.ack(now)).flatten();
        }
        if ahead > 1 && !self.saw_gap {
            self.saw_gap = true;
            return self.ack(now);
        }
        // RFC 1350: what comes twice is acknowledged twice.
        (ahead == 0 && self.got == self.acked)
            .then(|| self.ack(now))
            .flatten()
    }
}

/// What went over the network.
#[derive(Debug, Default)]
struct Counts {
    data: u64,
    timeouts: u64,
    advances: u64,
}

/// An end of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

struct Network {
    fates: Vec<Fate>,
    at: usize,
    losses: u32,
    queue: BTreeMap<(u64, u64), (End, Vec<u8>)>,
    order: u64,
}

impl Network {
    fn put(&mut self, now: Millis, to: End, packet: &[u8]) {
        let mut fate = Fate::Deliver;
        if !self.fates.is_empty() {
            fate = self.fates[self.at % self.fates.len()];
            self.at += 1;
        }
        if matches!(fate, Fate::Lose) {
            self.losses += 1;
            if self.losses <= LOSSES_MAX {
                return;
            }
        }
        let delays = match fate {
            Fate::Double => vec![1, 1],
            Fate::Delay(millis) => {
                // What comes too late is as good as lost.
                self.losses += 1;
                vec![if self.losses <= LOSSES_MAX { millis } else { 1 }]
            }
            _ => vec![1],
        };
        for delay in delays {
            self.order += 1;
            let key = (now.0 + delay, self.order);
            self.queue.insert(key, (to, packet.to_vec()));
        }
    }
}

/// Sends a file and gives what the client has.
fn run(file: &[u8], fields: &str, fates: &[Fate]) -> (Vec<u8>, Outcome, Counts, Transfer) {
    let request = super::asked(fields);
    let mut now = START;
    let mut counts = Counts::default();
    let mut network = Network {
        fates: fates.to_vec(),
        at: 0,
        losses: 0,
        queue: BTreeMap::new(),
        order: 0,
    };
    let mut client = Client {
        window: 1,
        block_bytes: 512,
        file: Vec::new(),
        got: 0,
        acked: 0,
        saw_gap: false,
        is_complete: false,
        last_packet: Vec::new(),
        deadline: Millis(u64::MAX),
    };
    let len = file.len() as u64;
    let (mut transfer, mut action) = Transfer::new(&request, len, MTU, now).expect("is sent");
    loop {
        match std::mem::replace(&mut action, Action::Nothing) {
            Action::Nothing => {}
            Action::Send(packet) => network.put(now, End::Client, &packet),
            Action::SendWindow { first, count } => {
                for block in first..first + u64::from(count) {
                    let range = transfer.block_range(block);
                    let range = range.start as usize..range.end as usize;
                    let packet = [&Transfer::data_header(block), &file[range]].concat();
                    counts.data += 1;
                    network.put(now, End::Client, &packet);
                }
            }
            Action::End(outcome) => return (client.file, outcome, counts, transfer),
        }
        let next = network.queue.first_key_value();
        let arrival = next.map_or(u64::MAX, |((time, _), _)| *time);
        let timer = transfer.deadline().0.min(client.deadline.0);
        now = Millis(arrival.min(timer).max(now.0));
        if arrival <= timer {
            let (_, (to, packet)) = network.queue.pop_first().expect("is there");
            if to == End::Client {
                if let Some(answer) = client.take(now, &packet) {
                    network.put(now, End::Server, &answer);
                }
            } else {
                let before = transfer.acked_bytes();
                action = transfer.handle(now, &packet);
                if transfer.acked_bytes() > before || matches!(action, Action::SendWindow { .. }) {
                    counts.advances += 1;
                    network.losses = 0;
                }
            }
        } else if client.deadline <= now {
            client.deadline = now.after(CLIENT_TIMEOUT);
            let again = client.last_packet.clone();
            // A client that has everything waits a while and repeats nothing.
            if !client.is_complete {
                network.put(now, End::Server, &again);
            }
        } else {
            action = transfer.poll(now);
            counts.timeouts += 1;
        }
    }
}

fn content(len: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn numbers_wrap_for_those_who_ask_options() {
    let file = content(70_000 * 8 + 3);
    let (got, outcome, counts, transfer) = run(&file, "x|octet|blksize|8|windowsize|61", &[]);
    assert_eq!((outcome, got == file), (Outcome::Complete, true));
    assert_eq!((counts.data, transfer.blocks_resent()), (70_001, 0));
}

proptest! {
    /// The file arrives whole over any network that lets something through, and what
    /// is sent stays in proportion to what was acknowledged and timed out.
    #[test]
    fn a_file_arrives_over_a_bad_network(
        len in 0..20_000_usize,
        block in 8..2000_u32,
        window in 1..20_u64,
        fates in prop::collection::vec(fate(), 1..200),
    ) {
        let file = content(len);
        let fields = format!("x|octet|blksize|{block}|windowsize|{window}|tsize|0");
        let (got, outcome, counts, transfer) = run(&file, &fields, &fates);
        prop_assert_eq!(outcome, Outcome::Complete);
        prop_assert!(got == file);
        let blocks = file.len() as u64 / u64::from(transfer.block_bytes()) + 1;
        prop_assert!(counts.advances <= blocks + 1, "{:?}", counts);
        prop_assert!(counts.data <= (counts.advances + counts.timeouts) * window, "{:?}", counts);
    }

    /// On a network that doubles everything, nothing is sent twice.
    #[test]
    fn no_apprentice_is_at_work(len in 0..20_000_usize, window in 1..20_u64) {
        let file = content(len);
        for fields in ["x|octet".to_owned(), format!("x|octet|windowsize|{window}")] {
            let (got, outcome, counts, _) = run(&file, &fields, &[Fate::Double]);
            prop_assert_eq!(outcome, Outcome::Complete);
            prop_assert!(got == file);
            prop_assert_eq!(counts.data, len as u64 / 512 + 1);
            prop_assert_eq!(counts.timeouts, 0);
        }
    }

    /// Any bytes are a packet or none, and a packet is its own bytes.
    #[test]
    fn parsing_is_total(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..8_u8) {
        let mut packet = vec![0, kind];
        packet.extend(bytes);
        let _ = First::of(&packet);
        if let Ok(parsed) = Packet::parse(&packet) {
            let again = parsed.encode();
            prop_assert_eq!(Packet::parse(&again), Ok(parsed));
        }
        for fields in ["x|octet", "x|octet|windowsize|9"] {
            let request = super::asked(fields);
            let (mut transfer, _) = Transfer::new(&request, 5000, MTU, START).expect("fits");
            transfer.handle(START, &packet);
            prop_assert!(transfer.acked_bytes() <= 5000);
        }
    }
}
