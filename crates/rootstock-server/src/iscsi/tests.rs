//! A target on real sockets, and an initiator made by hand.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::nbd::tests::device::{GATE_OFFSET, Gated, PANIC_OFFSET};

const TARGET: &str = "iqn.2026-11.example:disk";
const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

// What bytes 1 of a command say of it: the last PDU, whether it reads or writes,
// and its task attribute (RFC 7143, section 11.3.1).
const READS: u8 = 0x80 | 0x40;
const WRITES: u8 = 0x80 | 0x20;
const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;

const GATE_BLOCK: u32 = (GATE_OFFSET / 512) as u32;
const PANIC_BLOCK: u32 = (PANIC_OFFSET / 512) as u32;

struct One {
    device: Arc<Gated>,
    /// How often it is offered.
    offers: AtomicU64,
}

impl Targets for One {
    fn offered(&self, _initiator: &str, _address: IpAddr) -> Vec<Offer> {
        let one_less = |left: u64| left.checked_sub(1);
        let order = Ordering::SeqCst;
        let left = self.offers.fetch_update(order, order, one_less);
        let offer = left.map(|_| Offer {
            target: TARGET.to_owned(),
            account: None,
            redirect: None,
        });
        offer.into_iter().collect()
    }

    fn units(&self, _target: &str, _client: &Client<'_>) -> Vec<OpenUnit> {
        vec![OpenUnit {
            lun: 0,
            name: "it".to_owned(),
            device: Arc::clone(&self.device) as Arc<dyn BlockDevice>,
            identity: 7,
            block_bytes: 512,
            lease: Box::new(()),
        }]
    }

    fn presence(&self, _target: &str, _client: &Client<'_>) -> Box<dyn Any + Send> {
        Box::new(())
    }

    fn reservations(&self, _target: &str) -> Option<String> {
        None
    }

    fn keep_reservations(&self, _target: &str, _state: &str) -> bool {
        true
    }
}

fn target() -> (Arc<Gated>, Handle) {
    offered(u64::MAX)
}

fn offered(offers: u64) -> (Arc<Gated>, Handle) {
    let device = Arc::new(Gated::new(SIZE));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = Arc::new(One {
        device: Arc::clone(&device),
        offers: AtomicU64::new(offers),
    });
    let handle = start(vec![listener], Limits::default(), targets).unwrap();
    (device, handle)
}

/// The kinds of PDUs that come back.
const RESPONSE: u8 = 0x21;
const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
const DATA_IN: u8 = 0x25;
const LOGOUT_RESPONSE: u8 = 0x26;
const R2T: u8 = 0x31;
const ASYNC: u8 = 0x32;

struct Initiator {
    stream: TcpStream,
    number: u32,
}

impl Initiator {
    /// Logs in as one of several, and takes the first command's unit attention.
    fn new(address: SocketAddr, which: u8) -> Self {
        let (mut it, status) = Self::log_in(address, which);
        assert_eq!(status, [0, 0]);
        it.command(1, SIMPLE, &[0; 6], 0, &[]);
        assert_eq!(it.heard(), (RESPONSE, 1, 2));
        it
    }

    /// Logs in, and what became of that (section 11.13.5).
    fn log_in(address: SocketAddr, which: u8) -> (Self, [u8; 2]) {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut it = Self { stream, number: 1 };
        let text = format!(
            "InitiatorName=IQN.2026-11.example:i{which}\0TargetName={TARGET}\0SessionType=Normal\0"
        );
        let mut header = [0; 48];
        header[..2].copy_from_slice(&[0x43, 0x87]);
        header[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, which]);
        header[27] = 1;
        it.send(header, text.as_bytes());
        let (header, _) = it.receive();
        (it, [header[36], header[37]])
    }

    fn send(&mut self, mut header: [u8; 48], data: &[u8]) {
        let len = (data.len() as u32).to_be_bytes();
        header[5..8].copy_from_slice(&len[1..]);
        let mut pdu = header.to_vec();
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        self.stream.write_all(&pdu).unwrap();
    }

    fn receive(&mut self) -> ([u8; 48], Vec<u8>) {
        let mut header = [0; 48];
        self.stream.read_exact(&mut header).unwrap();
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data).unwrap();
        data.truncate(len);
        (header, data)
    }

    /// What comes next, of which task, with which status.
    fn heard(&mut self) -> (u8, u32, u8) {
        let (header, _) = self.receive();
        let tag = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
        (header[0], tag, header[3])
    }

    fn command(&mut self, tag: u32, flags: u8, cdb: &[u8], expected: u32, data: &[u8]) {
        let mut header = [0; 48];
        header[..2].copy_from_slice(&[0x01, flags | 0x80]);
        header[16..20].copy_from_slice(&tag.to_be_bytes());
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[24..28].copy_from_slice(&self.number.to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.number += 1;
        self.send(header, data);
    }

    fn read(&mut self, tag: u32, attribute: u8, block: u32) {
        let cdb = transfer(0x28, block);
        self.command(tag, READS | attribute, &cdb, 512, &[]);
    }

    fn write(&mut self, tag: u32, attribute: u8, block: u32) {
        let cdb = transfer(0x2a, block);
        self.command(tag, WRITES | attribute, &cdb, 512, &[7; 512]);
    }

    /// An immediate request of a function (section 11.5) or a logout (section 11.14).
    fn immediate(&mut self, opcode: u8, tag: u32, what: u8, referenced: u32) {
        let mut header = [0; 48];
        header[..2].copy_from_slice(&[0x40 | opcode, 0x80 | what]);
        header[16..20].copy_from_slice(&tag.to_be_bytes());
        header[20..24].copy_from_slice(&referenced.to_be_bytes());
        header[24..28].copy_from_slice(&self.number.to_be_bytes());
        self.send(header, &[]);
    }

    fn hears_end(&mut self) -> bool {
        self.stream.read(&mut [0]).unwrap() == 0
    }
}

/// READ (10) or WRITE (10) of a block.
fn transfer(opcode: u8, block: u32) -> [u8; 10] {
    transfer_many(opcode, block, 1)
}

fn transfer_many(opcode: u8, block: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (block.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

const PART: u32 = 64 << 10;

/// A write of four parts from block 0 on, and what it is asked for: the tag by which it is
/// answered.
fn begin_long_write(it: &mut Initiator, tag: u32) -> u32 {
    let blocks = (4 * PART / 512) as u16;
    it.command(
        tag,
        WRITES | SIMPLE,
        &transfer_many(0x2a, 0, blocks),
        4 * PART,
        &[],
    );
    let (header, _) = it.receive();
    let word = |at| u32::from_be_bytes(*header[at..].first_chunk().unwrap());
    assert_eq!((header[0], word(16), word(40)), (R2T, tag, 0));
    assert_eq!(word(44), 4 * PART);
    word(20)
}

/// Part `number` of what an R2T asked for.
fn send_part(it: &mut Initiator, tag: u32, transfer_tag: u32, number: u32) {
    let mut header = [0; 48];
    header[..2].copy_from_slice(&[0x05, if number == 3 { 0x80 } else { 0 }]);
    for (at, word) in [
        (16, tag),
        (20, transfer_tag),
        (36, number),
        (40, number * PART),
    ] {
        header[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
    }
    it.send(header, &vec![number as u8 + 1; PART as usize]);
}

/// The first bytes of the parts, as they are on the disk.
fn parts(it: &mut Initiator) -> [u8; 4] {
    [0, 1, 2, 3].map(|number| {
        it.read(90 + number, SIMPLE, number * (PART / 512));
        let (header, data) = it.receive();
        assert_eq!(header[0], DATA_IN);
        assert!(data.iter().all(|byte| *byte == data[0]));
        data[0]
    })
}

#[test]
fn a_long_write_is_written_as_it_comes_and_answered_at_its_end() {
    let (_, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    let asked = begin_long_write(&mut it, 2);
    for number in 0..4 {
        if number == 2 {
            assert_eq!(parts(&mut it), [1, 2, 0, 0]);
        }
        send_part(&mut it, 2, asked, number);
    }
    assert_eq!(it.heard(), (RESPONSE, 2, 0));
    assert_eq!(parts(&mut it), [1, 2, 3, 4]);
    handle.shutdown(Duration::ZERO);
}

#[test]
fn nothing_of_a_long_write_is_written_after_anothers_reset() {
    let (_, handle) = target();
    let address = handle.addresses()[0];
    let (mut it, mut other) = (Initiator::new(address, 1), Initiator::new(address, 2));
    let asked = begin_long_write(&mut it, 2);
    send_part(&mut it, 2, asked, 0);
    assert_eq!(parts(&mut it), [1, 0, 0, 0]);
    // LOGICAL UNIT RESET.
    other.immediate(0x02, 9, 5, u32::MAX);
    assert_eq!(other.heard(), (TASK_MANAGEMENT_RESPONSE, 9, 0));
    for number in 1..4 {
        send_part(&mut it, 2, asked, number);
    }
    // The reset's unit attention, and nothing of the write.
    it.command(3, SIMPLE, &[0; 6], 0, &[]);
    assert_eq!(it.heard(), (RESPONSE, 3, 2));
    assert_eq!(parts(&mut it), [1, 0, 0, 0]);
    handle.shutdown(Duration::ZERO);
}

#[test]
fn a_cold_read_does_not_hold_up_others() {
    let (device, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    it.write(3, SIMPLE, 0);
    it.read(4, SIMPLE, 0);
    it.read(5, SIMPLE, GATE_BLOCK + 1);
    assert_eq!(it.heard(), (RESPONSE, 3, 0));
    assert_eq!(it.heard(), (DATA_IN, 4, 0));
    assert_eq!(it.heard(), (DATA_IN, 5, 0));
    device.open_gate();
    assert_eq!(it.heard(), (DATA_IN, 2, 0));
    handle.shutdown(Duration::ZERO);
}

#[test]
fn an_ordered_command_waits_and_is_waited_for() {
    let (device, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    it.write(3, ORDERED, 0);
    it.read(4, SIMPLE, 0);
    // It overtakes them, and shows that they were there.
    it.write(5, HEAD_OF_QUEUE, 1);
    assert_eq!(it.heard(), (RESPONSE, 5, 0));
    device.open_gate();
    assert_eq!(it.heard(), (DATA_IN, 2, 0));
    assert_eq!(it.heard(), (RESPONSE, 3, 0));
    assert_eq!(it.heard(), (DATA_IN, 4, 0));
    handle.shutdown(Duration::ZERO);
}

#[test]
fn an_aborted_command_is_over_when_that_is_answered() {
    let (device, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    it.write(3, ORDERED, 0);
    it.write(5, HEAD_OF_QUEUE, 1);
    assert_eq!(it.heard(), (RESPONSE, 5, 0));
    // ABORT TASK, which has arrived when the gate opens.
    it.immediate(0x02, 9, 1, 2);
    device.open_gate();
    let mut heard = it.heard();
    let was_quicker = heard == (DATA_IN, 2, 0);
    if was_quicker {
        // The gate was quicker than the request.
        heard = it.heard();
    }
    // Of the read nothing; what waited for it goes on.
    assert_eq!(heard, (RESPONSE, 3, 0));
    // Function complete, or no such task.
    let code = u8::from(was_quicker);
    let (header, _) = it.receive();
    assert_eq!((header[0], header[2]), (TASK_MANAGEMENT_RESPONSE, code));
    handle.shutdown(Duration::ZERO);
}

#[test]
fn what_anothers_reset_has_ended_is_not_answered() {
    let (device, handle) = target();
    let address = handle.addresses()[0];
    let (mut it, mut other) = (Initiator::new(address, 1), Initiator::new(address, 2));
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    // LOGICAL UNIT RESET.
    other.immediate(0x02, 9, 5, u32::MAX);
    assert_eq!(other.heard(), (TASK_MANAGEMENT_RESPONSE, 9, 0));
    device.open_gate();
    it.command(3, SIMPLE, &[0; 6], 0, &[]);
    // The reset's unit attention, and nothing of the read.
    assert_eq!(it.heard(), (RESPONSE, 3, 2));
    it.command(4, SIMPLE, &[0; 6], 0, &[]);
    assert_eq!(it.heard(), (RESPONSE, 4, 0));
    handle.shutdown(Duration::ZERO);
}

#[test]
fn what_was_held_when_anothers_reset_came_is_not_written() {
    let (device, handle) = target();
    let address = handle.addresses()[0];
    let (mut it, mut other) = (Initiator::new(address, 1), Initiator::new(address, 2));
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    it.write(3, ORDERED, 0);
    it.write(4, SIMPLE, 1);
    it.write(5, HEAD_OF_QUEUE, 2);
    assert_eq!(it.heard(), (RESPONSE, 5, 0));
    other.immediate(0x02, 9, 5, u32::MAX);
    assert_eq!(other.heard(), (TASK_MANAGEMENT_RESPONSE, 9, 0));
    device.open_gate();
    it.command(6, SIMPLE, &[0; 6], 0, &[]);
    assert_eq!(it.heard(), (RESPONSE, 6, 2));
    // Its own reset is told to it, too.
    other.command(10, SIMPLE, &[0; 6], 0, &[]);
    assert_eq!(other.heard(), (RESPONSE, 10, 2));
    for (block, byte) in [(0, 0), (1, 0), (2, 7)] {
        other.read(20 + block, SIMPLE, block);
        let (header, data) = other.receive();
        assert_eq!((header[0], data), (DATA_IN, vec![byte; 512]), "{block}");
    }
    handle.shutdown(Duration::ZERO);
}

/// Who was let in when the login began, and may not any more when it ends.
#[test]
fn a_login_does_not_outlive_what_allowed_it() {
    let (_, handle) = offered(1);
    let (mut it, status) = Initiator::log_in(handle.addresses()[0], 1);
    assert_ne!(status[0], 0);
    assert!(it.hears_end());
    handle.shutdown(Duration::ZERO);
}

#[test]
fn a_panic_in_the_device_is_one_commands_failure() {
    let (_, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    it.read(2, SIMPLE, PANIC_BLOCK);
    assert_eq!(it.heard(), (RESPONSE, 2, 2));
    it.read(3, SIMPLE, 0);
    assert_eq!(it.heard(), (DATA_IN, 3, 0));
    handle.shutdown(Duration::ZERO);
}

#[test]
fn initiators_are_asked_to_leave_when_the_target_stops() {
    let (_, handle) = target();
    let address = handle.addresses()[0];
    let (mut it, mut deaf) = (Initiator::new(address, 1), Initiator::new(address, 2));
    let stopping = std::thread::spawn(move || handle.shutdown(PATIENCE));
    for initiator in [&mut it, &mut deaf] {
        let (header, _) = initiator.receive();
        // Event 1: log out within three seconds.
        assert_eq!((header[0], header[36]), (ASYNC, 1));
        assert_eq!(header[42..44], [0, 3]);
    }
    // It still has its commands carried out.
    it.read(2, SIMPLE, 0);
    assert_eq!(it.heard(), (DATA_IN, 2, 0));
    it.immediate(0x06, 3, 0, 0);
    assert_eq!(it.heard(), (LOGOUT_RESPONSE, 3, 0));
    assert!(it.hears_end());
    // Who does not leave is left.
    assert!(deaf.hears_end());
    stopping.join().unwrap();
}

#[test]
fn a_session_that_ends_waits_for_its_commands() {
    let (device, handle) = target();
    let mut it = Initiator::new(handle.addresses()[0], 1);
    it.read(2, SIMPLE, GATE_BLOCK);
    device.wait_for_visitors(1);
    it.immediate(0x06, 3, 0, 0);
    device.open_gate();
    let mut heard = it.heard();
    if heard == (DATA_IN, 2, 0) {
        // The gate was quicker than the request.
        heard = it.heard();
    }
    assert_eq!(heard, (LOGOUT_RESPONSE, 3, 0));
    assert!(it.hears_end());
    handle.shutdown(PATIENCE);
}

#[test]
fn who_lives_is_told_from_who_is_gone() {
    let (_, handle) = target();
    let address = handle.addresses()[0];
    let (mut it, deaf) = (Initiator::new(address, 1), Initiator::new(address, 2));
    let sessions = handle.sessions();
    let names = [1, 2].map(|which| format!("iqn.2026-11.example:i{which}"));
    assert!(sessions.has(&names[0], TARGET) && !sessions.has("iqn.2026-11.example:i3", TARGET));
    let asked = std::thread::spawn({
        let (sessions, name) = (handle.sessions(), names[0].clone());
        move || sessions.is_alive(&name, TARGET, PATIENCE)
    });
    // A NOP-In that wants an answer (section 11.19).
    let (header, _) = it.receive();
    assert_eq!((header[0], header[16..20] == [0xff; 4]), (0x20, true));
    it.command(2, SIMPLE, &[0; 6], 0, &[]);
    assert!(asked.join().unwrap());
    assert!(!sessions.is_alive(&names[1], TARGET, Duration::from_millis(50)));
    assert!(sessions.end(&names[1], TARGET) && !sessions.has(&names[1], TARGET));
    drop(deaf);
    handle.shutdown(Duration::ZERO);
}
