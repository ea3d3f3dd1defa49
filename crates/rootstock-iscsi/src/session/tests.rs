//! Sessions fed with PDUs.

use proptest::prelude::*;

use super::*;
use crate::frame::decode;
use crate::login::Question;

const LUN: [u8; 8] = [0; 8];

/// A session and the numbers that its initiator keeps.
struct Harness {
    session: Session,
    next: u32,
}

/// A PDU of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Heard {
    fn word(&self, at: usize) -> u32 {
        self.header[at..at + 4]
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }
}

impl Harness {
    fn new(operational: Operational) -> Self {
        let question = Question {
            initiator: "iqn.a".to_owned(),
            isid: [0; 6],
            tsih: 0,
            cid: 1,
            target: Some("iqn.t".to_owned()),
        };
        Self {
            session: Session::new(&Established {
                question,
                tsih: 1,
                account: None,
                operational,
                command_number: 10,
                status_number: 50,
            }),
            next: 10,
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) -> (Option<Event<'static>>, Vec<Heard>) {
        let (event, heard) = self.try_send(header, data);
        (event.unwrap(), heard)
    }

    fn try_send(
        &mut self,
        header: Header,
        data: &[u8],
    ) -> (Result<Option<Event<'static>>, SessionError>, Vec<Heard>) {
        let digests = self.session.digests();
        let mut bytes = Vec::new();
        header.write(data, digests, &mut bytes);
        // Events borrow from it.
        let (frame, _) = decode(bytes.leak(), digests, 1 << 20).unwrap().unwrap();
        let mut out = Vec::new();
        let event = self.session.receive(&frame, &mut out);
        (event, self.hear(&out))
    }

    fn hear(&self, mut out: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some((frame, used)) = decode(out, self.session.digests(), 1 << 20).unwrap() {
            assert!(frame.data_intact);
            heard.push(Heard {
                header: frame.header.to_vec(),
                data: frame.data.to_vec(),
            });
            out = &out[used..];
        }
        assert!(out.is_empty());
        heard
    }

    fn command(
        &mut self,
        tag: u32,
        flags: u8,
        expected: u32,
        data: &[u8],
    ) -> (Option<Event<'static>>, Vec<Heard>) {
        let header = Header::new(opcode::COMMAND, flags)
            .word(16, tag)
            .word(20, expected)
            .word(24, self.next);
        self.next += 1;
        self.send(header, data)
    }

    fn data_out(
        &mut self,
        tag: u32,
        transfer_tag: u32,
        number: u32,
        offset: u32,
        last: u8,
        data: &[u8],
    ) -> (Option<Event<'static>>, Vec<Heard>) {
        let header = Header::new(opcode::DATA_OUT, last)
            .word(16, tag)
            .word(20, transfer_tag)
            .word(36, number)
            .word(40, offset);
        self.send(header, data)
    }

    fn gather(&mut self, tag: u32, wanted: usize) -> (Option<Vec<u8>>, Vec<Heard>) {
        let mut out = Vec::new();
        let data = self.session.gather(tag, wanted, &mut out);
        (data, self.hear(&out))
    }
}

/// Data of a task in the order in which they were handed out.
#[derive(Default)]
struct Streamed {
    data: Vec<u8>,
    lens: Vec<usize>,
    is_whole: bool,
}

impl Streamed {
    fn add(&mut self, event: Option<Event<'static>>) {
        match event {
            None => {}
            Some(Event::Part {
                tag: 1,
                offset,
                data,
                last,
            }) => {
                assert!(!self.is_whole);
                assert_eq!(offset, self.data.len() as u64);
                self.data.extend_from_slice(&data);
                self.lens.push(data.len());
                self.is_whole = last;
            }
            event => panic!("{event:?}"),
        }
    }
}

fn terms() -> Operational {
    Operational {
        initiator_segment_bytes_max: 512,
        burst_bytes_max: 1024,
        first_burst_bytes_max: 1024,
        ..Operational::default()
    }
}

#[test]
fn data_to_the_initiator_keep_both_limits_and_end_with_the_status() {
    let mut it = Harness::new(terms());
    let (event, _) = it.command(1, FINAL | 0x40, 3000, &[]);
    assert!(matches!(event, Some(Event::Command(command)) if command.reads));
    let data: Vec<u8> = (0..2500_u32).map(|at| at as u8).collect();
    let mut out = Vec::new();
    it.session.data_in(
        1,
        2500,
        |out, at, len| {
            out.extend_from_slice(&data[at..at + len]);
            Filled::Here
        },
        &mut out,
    );
    let heard = it.hear(&out);
    let flags: Vec<u8> = heard.iter().map(|pdu| pdu.header[1]).collect();
    assert_eq!(flags, [0, FINAL, 0, FINAL, FINAL | 3]);
    assert_eq!(
        heard
            .iter()
            .flat_map(|pdu| pdu.data.clone())
            .collect::<Vec<_>>(),
        data
    );
    let last = heard.last().unwrap();
    assert_eq!(
        (last.word(24), last.word(36), last.word(40), last.word(44)),
        (50, 4, 2048, 500)
    );
    assert_eq!(last.word(28), 11);
    assert_eq!(last.word(32), 11 + WINDOW_COMMANDS - 1);
    assert_eq!(it.session.tasks(), 0);
}

#[test]
fn residuals_are_told_in_both_directions() {
    for (expected, length, flag, residual) in
        [(512, 512, 0, 0), (512, 0, 2, 512), (200, 512, 4, 312)]
    {
        let mut it = Harness::new(terms());
        it.command(1, FINAL | 0x20, expected, &[]);
        let mut out = Vec::new();
        it.session.respond(
            1,
            &Completion {
                status: 0,
                sense: &[],
                length_bytes: Some(length),
            },
            &mut out,
        );
        let heard = it.hear(&out);
        assert_eq!(
            (heard[0].header[1], heard[0].word(44)),
            (FINAL | flag, residual),
            "{expected} {length}"
        );
    }
}

/// Immediate, unsolicited and solicited data of one command, in that order.
#[test]
fn data_come_in_all_ways_at_once() {
    let mut it = Harness::new(Operational {
        initial_r2t: false,
        ..terms()
    });
    let data: Vec<u8> = (0..2600_u32).map(|at| (at / 7) as u8).collect();
    it.command(1, 0x20, 2600, &data[..300]);
    let (now, heard) = it.gather(1, 2600);
    assert_eq!((now, heard), (None, vec![]));
    let (event, heard) = it.data_out(1, NO_TAG, 0, 300, FINAL, &data[300..1000]);
    assert_eq!(event, None);
    let r2t = &heard[0];
    assert_eq!(
        (
            r2t.header[0],
            r2t.word(24),
            r2t.word(36),
            r2t.word(40),
            r2t.word(44)
        ),
        (opcode::R2T, 50, 0, 1000, 1024)
    );
    let tag = r2t.word(20);
    assert_eq!(
        it.data_out(1, tag, 0, 1000, 0, &data[1000..1500]),
        (None, vec![])
    );
    let (event, heard) = it.data_out(1, tag, 1, 1500, FINAL, &data[1500..2024]);
    assert_eq!(event, None);
    assert_eq!(
        (heard[0].word(36), heard[0].word(40), heard[0].word(44)),
        (1, 2024, 576)
    );
    let (event, _) = it.data_out(1, heard[0].word(20), 0, 2024, FINAL, &data[2024..]);
    assert_eq!(event, Some(Event::Data { tag: 1, data }));
}

/// A command that waits for others has its unasked data all the same, whether it begins
/// after them or between them.
#[test]
fn data_that_come_before_their_command_begins_are_kept() {
    let data: Vec<u8> = (0..1500_u32).map(|at| (at / 7) as u8).collect();
    for begins_between in [true, false] {
        let mut it = Harness::new(Operational {
            initial_r2t: false,
            ..terms()
        });
        it.command(1, 0x20, 1500, &data[..300]);
        let (event, heard) = it.data_out(1, NO_TAG, 0, 300, 0, &data[300..700]);
        assert_eq!((event, heard), (None, vec![]));
        let mut asked = Vec::new();
        if begins_between {
            assert_eq!(it.gather(1, 1500), (None, vec![]));
        }
        let (event, heard) = it.data_out(1, NO_TAG, 1, 700, FINAL, &data[700..1000]);
        assert_eq!(event, None);
        asked.extend(heard);
        if !begins_between {
            assert_eq!(asked, vec![]);
            let (now, heard) = it.gather(1, 1500);
            assert_eq!(now, None);
            asked.extend(heard);
        }
        assert_eq!((asked[0].word(40), asked[0].word(44)), (1000, 500));
        let tag = asked[0].word(20);
        let (event, _) = it.data_out(1, tag, 0, 1000, FINAL, &data[1000..]);
        let expected = Event::Data {
            tag: 1,
            data: data.clone(),
        };
        assert_eq!(event, Some(expected), "{begins_between}");
    }
}

#[test]
fn more_data_than_the_command_needs_are_not_kept() {
    let mut it = Harness::new(Operational {
        initial_r2t: false,
        ..terms()
    });
    it.command(1, 0x20, 1000, &[1; 300]);
    let (now, _) = it.gather(1, 200);
    assert_eq!(now, Some(vec![1; 200]));
    // What is on its way is passed over.
    assert_eq!(
        it.data_out(1, NO_TAG, 0, 300, FINAL, &[2; 700]),
        (None, vec![])
    );
}

#[test]
fn wrong_data_end_their_task_only() {
    type Bad = (u32, u32, u32, u8, usize);
    // Number, offset, wrong tag, flags, length.
    let cases: [Bad; 5] = [
        (1, 0, 0, FINAL, 512),
        (0, 512, 0, FINAL, 512),
        (0, 0, 1, FINAL, 512),
        (0, 0, 0, FINAL, 100),
        (0, 0, 0, FINAL, 513),
    ];
    for (number, offset, wrong, flags, len) in cases {
        let mut it = Harness::new(terms());
        it.command(1, FINAL | 0x20, 512, &[]);
        let (_, heard) = it.gather(1, 512);
        let tag = heard[0].word(20) + wrong;
        let (event, heard) = it.data_out(1, tag, number, offset, flags, &vec![0; len]);
        assert_eq!(event, Some(Event::Dropped(vec![1])));
        assert_eq!(
            (heard[0].header[3], heard[0].data[14], heard[0].data[15]),
            (2, 0x0c, 0x0d)
        );
        assert!(matches!(
            it.command(2, FINAL, 0, &[]).0,
            Some(Event::Command(_))
        ));
    }
}

#[test]
fn data_that_were_not_agreed_on_are_refused() {
    let mut it = Harness::new(Operational {
        immediate_data: false,
        ..terms()
    });
    let (event, heard) = it.command(1, FINAL | 0x20, 512, &[0; 4]);
    assert_eq!(event, None);
    assert_eq!(
        (heard[0].header[3], heard[0].data[14], heard[0].data[15]),
        (2, 0x0c, 0x0c)
    );
}

#[test]
fn the_window_drops_what_is_outside_and_a_gap_ends_the_session() {
    let mut it = Harness::new(terms());
    let nop = |number, immediate: u8| {
        Header::new(opcode::NOP_OUT | immediate, FINAL)
            .word(16, 9)
            .word(20, NO_TAG)
            .word(24, number)
    };
    assert_eq!(it.send(nop(9, 0), b"x"), (None, vec![]));
    assert_eq!(it.send(nop(10 + WINDOW_COMMANDS, 0), b"x"), (None, vec![]));
    let (_, heard) = it.send(nop(10, 0x40), b"ping");
    assert_eq!(
        (heard[0].data.as_slice(), heard[0].word(28)),
        (&b"ping"[..], 10)
    );
    let (_, heard) = it.send(nop(10, 0), b"ping");
    assert_eq!(heard[0].word(28), 11);
    let (outcome, _) = it.try_send(nop(13, 0), b"x");
    assert_eq!(
        outcome,
        Err(SessionError::Gap {
            number: 13,
            expected: 11
        })
    );
}

#[test]
fn the_window_closes_and_opens_with_its_tasks() {
    let mut it = Harness::new(terms());
    for tag in 0..WINDOW_COMMANDS {
        it.command(tag, FINAL | 0x20, 512, &[]);
    }
    assert_eq!(it.session.tasks(), WINDOW_COMMANDS as usize);
    assert_eq!(it.command(1000, FINAL, 0, &[]), (None, vec![]));
    let mut out = Vec::new();
    it.session.respond(
        0,
        &Completion {
            status: 0,
            sense: &[],
            length_bytes: None,
        },
        &mut out,
    );
    let heard = it.hear(&out);
    assert_eq!(heard[0].word(32), 10 + WINDOW_COMMANDS);
}

#[test]
fn one_large_transfer_waits_for_another() {
    let mut it = Harness::new(terms());
    it.command(1, FINAL | 0x20, u32::MAX, &[]);
    it.command(2, FINAL | 0x20, 1024, &[]);
    assert_eq!(it.gather(1, GATHER_BYTES_MAX).1.len(), 1);
    assert_eq!(it.gather(2, 1024).1.len(), 0);
    let mut out = Vec::new();
    it.session.abort(1, &mut out);
    let heard = it.hear(&out);
    assert_eq!((heard[0].header[0], heard[0].word(16)), (opcode::R2T, 2));
}

#[test]
fn tasks_are_managed() {
    let abort = |number, referenced| {
        Header::new(opcode::TASK_MANAGEMENT | 0x40, FINAL | 1)
            .bytes(8, &LUN)
            .word(16, 99)
            .word(20, referenced)
            .word(24, number)
            .word(32, 5)
    };
    let mut it = Harness::new(terms());
    it.command(1, FINAL | 0x20, 512, &[]);
    let (event, heard) = it.send(abort(11, 77), &[]);
    assert_eq!((event, heard[0].header[2]), (None, 1));
    let (event, _) = it.send(abort(11, 1), &[]);
    assert_eq!(
        event,
        Some(Event::TaskManagement {
            tag: 99,
            function: TaskFunction::AbortTask,
            lun: LUN,
            dropped: vec![1]
        })
    );
    let mut out = Vec::new();
    it.session.task_management_done(99, 0, &mut out);
    assert_eq!(
        it.hear(&out)[0].header[..3],
        [opcode::TASK_MANAGEMENT_RESPONSE, FINAL, 0]
    );
    let reassign = Header::new(opcode::TASK_MANAGEMENT | 0x40, FINAL | 8)
        .word(16, 99)
        .word(24, 11);
    assert_eq!(it.send(reassign, &[]).1[0].header[2], 4);
}

/// One unit may be written in two ways, and is meant by both.
#[test]
fn tasks_are_managed_by_unit() {
    let flat = [0x40, 0, 0, 0, 0, 0, 0, 0];
    let other = [0, 1, 0, 0, 0, 0, 0, 0];
    for (lun, expected) in [(LUN, true), (flat, true), (other, false)] {
        for (function, dropped) in [(2, vec![1, 2]), (1, vec![1])] {
            let mut it = Harness::new(terms());
            it.command(1, FINAL | 0x20, 512, &[]);
            it.command(2, FINAL | 0x20, 512, &[]);
            let header = Header::new(opcode::TASK_MANAGEMENT | 0x40, FINAL | function)
                .bytes(8, &lun)
                .word(16, 99)
                .word(20, 1)
                .word(24, 12)
                .word(32, 5);
            let (event, heard) = it.send(header, &[]);
            let found = match event {
                Some(Event::TaskManagement { dropped, .. }) => dropped,
                // No such task.
                _ => {
                    assert_eq!(heard[0].header[2], 1);
                    Vec::new()
                }
            };
            let expected = if expected { dropped } else { Vec::new() };
            assert_eq!(found, expected, "{lun:?} {function}");
        }
    }
}

#[test]
fn targets_are_told_in_as_many_pieces_as_it_takes() {
    let mut it = Harness::new(terms());
    let ask = |transfer_tag| {
        Header::new(opcode::TEXT | 0x40, FINAL)
            .word(16, 4)
            .word(20, transfer_tag)
            .word(24, 10)
    };
    let (event, _) = it.send(ask(NO_TAG), b"SendTargets=All\0");
    assert_eq!(
        event,
        Some(Event::SendTargets {
            tag: 4,
            target: None
        })
    );
    let targets: Vec<_> = (0..20)
        .map(|at| (format!("iqn.t:{at}"), "10.0.0.1:3260".to_owned()))
        .collect();
    let mut out = Vec::new();
    it.session.targets(4, &targets, &mut out);
    let mut heard = it.hear(&out);
    let mut text = Vec::new();
    loop {
        let last = heard.pop().unwrap();
        text.extend_from_slice(&last.data);
        if last.word(20) == NO_TAG {
            assert_eq!(last.header[1], FINAL);
            break;
        }
        heard = it.send(ask(last.word(20)), &[]).1;
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("TargetAddress=10.0.0.1:3260,1\0").count(), 20);
    assert_eq!(text.matches("TargetName=iqn.t:").count(), 20);
    assert_eq!(it.send(ask(12_345), &[]).1[0].header[0], opcode::REJECT);
}

#[test]
fn a_logout_is_answered() {
    for (reason, cid, response, leaves) in [
        (0, 9, 0, true),
        (1, 1, 0, true),
        (1, 9, 1, false),
        (2, 1, 2, false),
    ] {
        let mut it = Harness::new(terms());
        let header = Header::new(opcode::LOGOUT | 0x40, FINAL | reason)
            .word(16, 4)
            .half(20, cid)
            .word(24, 10);
        let (event, heard) = it.send(header, &[]);
        assert_eq!(
            (event == Some(Event::Logout), heard[0].header[2]),
            (leaves, response),
            "{reason}"
        );
    }
}

#[test]
fn strange_pdus_are_refused_with_their_header() {
    let mut it = Harness::new(terms());
    for (opcode, reason) in [(0x1c, 5), (opcode::SNACK, 3)] {
        let header = Header::new(opcode, FINAL).word(16, 4).word(24, 10);
        let (_, heard) = it.send(header, &[]);
        assert_eq!(
            (heard[0].header[0], heard[0].header[2]),
            (opcode::REJECT, reason)
        );
        assert_eq!(heard[0].data[..2], [opcode, FINAL]);
    }
}

proptest! {
    /// Whatever comes, what goes out is whole PDUs, and memory stays bounded.
    #[test]
    fn any_pdus_are_taken_without_a_panic(
        pdus in prop::collection::vec((any::<[u8; 16]>(), 0_usize..7, 0_u32..4, 0_u32..4, 0_u32..1100, 0_usize..600), 1..60),
    ) {
        let mut it = Harness::new(Operational { initial_r2t: false, ..terms() });
        let opcodes = [0, 1, 2, 4, 5, 6, 0x3e];
        for (noise, kind, tag, small, number, len) in pdus {
            let header = Header::new(opcodes[kind] | (noise[0] & 0x40), noise[1])
                .word(16, tag).word(20, small * 300).word(24, it.next).word(36, small).word(40, number);
            let (outcome, _) = it.try_send(header, &vec![7; len]);
            it.next = it.session.expected_number;
            let Ok(event) = outcome else { break };
            if let Some(Event::Command(command)) = event {
                let mut out = Vec::new();
                match small {
                    0 => it.session.data_in(command.tag, 700, |out, _, len| { out.resize(out.len() + len, 1); Filled::Here }, &mut out),
                    1 => {}
                    _ => drop(it.session.gather(command.tag, 900, &mut out)),
                }
                it.hear(&out);
            }
            prop_assert!(it.session.tasks() <= WINDOW_COMMANDS as usize + IMMEDIATE_COMMANDS_MAX);
        }
    }
}

const KIB: usize = 1 << 10;

fn long_terms() -> Operational {
    Operational {
        burst_bytes_max: 256 << 10,
        first_burst_bytes_max: 64 << 10,
        initial_r2t: true,
        immediate_data: true,
        ..Operational::default()
    }
}

/// Begins a write of `expected` bytes of `data`, of which the command brings `immediate`
/// and wants `wanted`; the rest is asked for, and sent in PDUs of `step` bytes.
fn stream(data: &[u8], immediate: usize, wanted: usize, step: usize) -> Streamed {
    let mut it = Harness::new(long_terms());
    it.command(1, FINAL | 0x20, data.len() as u32, &data[..immediate]);
    let mut out = Vec::new();
    let (here, whole) = it.session.stream(1, wanted, &mut out).unwrap();
    let mut streamed = Streamed {
        data: here,
        lens: Vec::new(),
        is_whole: whole,
    };
    let mut asked = it.hear(&out);
    while let Some(r2t) = asked.pop() {
        assert_eq!(r2t.header[0], opcode::R2T);
        let (tag, at, len) = (r2t.word(20), r2t.word(40) as usize, r2t.word(44) as usize);
        for (number, from) in (at..at + len).step_by(step).enumerate() {
            let to = (from + step).min(at + len);
            let last = if to == at + len { FINAL } else { 0 };
            let part = &data[from..to];
            let (event, heard) = it.data_out(1, tag, number as u32, from as u32, last, part);
            streamed.add(event);
            asked.extend(heard);
        }
    }
    assert_eq!(it.session.granted_bytes, 0);
    streamed
}

#[test]
fn streamed_data_are_handed_out_as_they_come_and_not_in_very_small_parts() {
    let data: Vec<u8> = (0..600 * KIB).map(|at| (at / 7) as u8).collect();
    let large = stream(&data, 64 * KIB, data.len(), 128 * KIB);
    assert_eq!(large.lens, [128, 128, 128, 128, 24].map(|len| len * KIB));
    assert!(large.is_whole && large.data == data);
    let small = stream(&data, 0, data.len(), 1000);
    assert!(small.is_whole && small.data == data);
    let (last, all) = small.lens.split_last().unwrap();
    assert!(all.iter().all(|len| *len >= 64 * KIB && *len < 65 * KIB) && *last > 0);
    // No more than what is wanted.
    let some = stream(&data, 64 * KIB, 100_001, 128 * KIB);
    assert!(some.is_whole && some.data == data[..100_001]);
    let none = stream(&data, 64 * KIB, 3, 128 * KIB);
    assert!(none.is_whole && none.data == data[..3] && none.lens.is_empty());
}
