//! A unit as those see it who use it.

use proptest::prelude::*;

use super::*;
use crate::{
    Status,
    opcode::OPCODES,
    testing::{BLOCKS, Bench, nexus, sense_of, unit},
};

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const CONFLICT: Status = Status::ReservationConflict;

const POWER_ON: (u8, u8) = (0x29, 0x00);
const RESET: (u8, u8) = (0x29, 0x03);

/// PERSISTENT RESERVE OUT of a nexus whose key is `number + 1`.
fn out(bench: &mut Bench, number: u8, action: u8, kind: u8, action_key: u8, flags: u8) -> Action {
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [0; 24];
    (list[7], list[15], list[20]) = (number + 1, action_key, flags);
    bench.send(number, &cdb, &list)
}

fn register(bench: &mut Bench, number: u8, flags: u8) -> Action {
    out(bench, number, 6, 0, number + 1, flags)
}

fn select_control(bench: &mut Bench, number: u8, d_sense: u8, swp: u8) -> Action {
    let list = [
        0, 0, 0, 0, 0x0a, 10, d_sense, 0x10, swp, 0, 0, 0, 0, 0, 0, 0,
    ];
    bench.send(number, &[0x15, 0x10, 0, 0, 16, 0], &list)
}

#[test]
fn a_new_nexus_hears_of_power_on_once() {
    let mut bench = Bench::new(unit(), 0);
    bench.handles.push(bench.lu.attach(nexus(0)).unwrap());
    // These do not wait for it.
    assert_eq!(bench.status(0, &[0x12, 0, 0, 0, 36, 0]), Status::Good);
    assert_eq!(
        bench.status(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0]),
        Status::Good
    );
    assert_eq!(bench.attentions(0), [POWER_ON]);
    assert_eq!(bench.status(0, &READ), Status::Good);
}

#[test]
fn request_sense_takes_an_attention() {
    let mut bench = Bench::new(unit(), 1);
    bench.lu.resize(5);
    let mut sense = |desc| bench.reply(0, &[0x03, desc, 0, 0, 252, 0]).data_in;
    assert_eq!(sense(1), [0x72, 6, 0x2a, 0x09, 0, 0, 0, 0]);
    assert_eq!(sense(1), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sense(0).len(), 18);
    assert_eq!(bench.reply(0, &[0x03, 0, 0, 0, 4, 0]).data_in.len(), 4);
    assert_eq!(bench.attentions(0), []);
}

#[test]
fn everybody_hears_of_what_changes() {
    let mut bench = Bench::new(unit(), 2);
    bench.lu.resize(BLOCKS);
    assert_eq!(bench.attentions(0), []);
    bench.lu.resize(9);
    for number in [0, 1, 1] {
        bench.lu.luns_changed(bench.handles[number]);
    }
    for number in 0..2 {
        assert_eq!(bench.attentions(number), [(0x2a, 0x09), (0x3f, 0x0e)]);
    }
    // Who has asked which units there are need not be told.
    for number in 0..2 {
        bench.lu.luns_changed(bench.handles[number]);
    }
    bench.start(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0]);
    assert_eq!(bench.attentions(0), []);
    assert_eq!(bench.attentions(1), [(0x3f, 0x0e)]);
    // Nor who has asked another unit.
    bench.lu.luns_changed(bench.handles[1]);
    bench.lu.luns_told(bench.handles[1]);
    assert_eq!(bench.attentions(1), []);
    let beyond = bench.start(0, &[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0]);
    assert_eq!(sense_of(&beyond), Some(Sense::LBA_OUT_OF_RANGE));
    let capacity = bench.reply(0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(capacity.data_in, [0, 0, 0, 8, 0, 0, 2, 0]);
    // The one who clears the others' commands knows.
    bench.lu.commands_cleared(bench.handles[0]);
    assert_eq!(bench.attentions(0), []);
    assert_eq!(bench.attentions(1), [(0x2f, 0x00)]);
}

#[test]
fn a_large_unit_says_so() {
    let large = Unit {
        blocks: 1 << 33,
        ..unit()
    };
    let mut bench = Bench::new(large, 1);
    let short = bench.reply(0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(short.data_in, [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
    let mut long = |allocation| {
        let cdb = [
            0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, allocation, 0, 0,
        ];
        bench.reply(0, &cdb).data_in
    };
    assert_eq!(
        long(16),
        [
            0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0
        ]
    );
    assert_eq!(long(255).len(), 32);
}

#[test]
fn impossible_sizes_become_possible() {
    let mut bench = Bench::new(
        Unit {
            blocks: 0,
            ..unit()
        },
        1,
    );
    assert_eq!(bench.status(0, &READ), Status::Good);
    bench.lu.resize(u64::MAX);
    assert_eq!(bench.lu.unit().blocks, Unit::BLOCKS_MAX);
    bench.lu.resize(0);
    assert_eq!(bench.lu.unit().blocks, 1);
}

#[test]
fn a_unit_that_is_read_only_refuses_every_write() {
    let read_only = Unit {
        access: Access::ReadOnly,
        ..unit()
    };
    let mut bench = Bench::new(read_only, 1);
    for row in &OPCODES {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (row.code, row.service_action.unwrap_or(0));
        // One block, or whatever else is at these places.
        (cdb[8], cdb[13]) = (row.usage.get(8).map_or(0, |used| used & 1), 1);
        if row.usage.len() == 16 {
            cdb[8] = 0;
        }
        let sense = sense_of(&bench.start(0, &cdb));
        let refused = sense == Some(Sense::WRITE_PROTECTED);
        assert_eq!(refused, row.medium == Medium::Changed, "{:#x}", row.code);
    }
}

#[test]
fn software_write_protection_lasts_until_a_reset() {
    let mut bench = Bench::new(unit(), 2);
    assert_eq!(
        select_control(&mut bench, 0, 0, 8),
        Action::Done(Reply::good())
    );
    assert_eq!(bench.attentions(0), []);
    assert_eq!(bench.attentions(1), [(0x2a, 0x01)]);
    let refused = bench.start(1, &WRITE);
    assert_eq!(sense_of(&refused), Some(Sense::WRITE_PROTECTED));
    assert_eq!(bench.status(1, &READ), Status::Good);
    bench.lu.reset();
    for number in 0..2 {
        assert_eq!(bench.attentions(number), [RESET]);
        assert_eq!(bench.status(number, &WRITE), Status::Good);
    }
}

#[test]
fn the_format_of_sense_data_is_chosen() {
    let mut bench = Bench::new(unit(), 1);
    assert_eq!(bench.lu.sense_format(), SenseFormat::Fixed);
    select_control(&mut bench, 0, 4, 0);
    assert_eq!(bench.lu.sense_format(), SenseFormat::Descriptor);
    // Too short a list changes nothing.
    let short = bench.send(0, &[0x15, 0x10, 0, 0, 16, 0], &[0; 15]);
    assert_eq!(sense_of(&short), Some(Sense::PARAMETER_LIST_LENGTH));
    let saved = bench.start(0, &[0x15, 0x11, 0, 0, 16, 0]);
    assert_eq!(sense_of(&saved), Some(Sense::command_bit(1, 0)));
}

#[test]
fn reserve_keeps_others_out() {
    let mut bench = Bench::new(unit(), 2);
    assert_eq!(bench.status(0, &RESERVE), Status::Good);
    assert_eq!(bench.status(0, &RESERVE), Status::Good);
    let out = [0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0];
    for cdb in [&RESERVE[..], &READ, &WRITE, &[0; 6], &out] {
        assert_eq!(bench.status(1, cdb), CONFLICT, "{cdb:x?}");
    }
    // Neither kind beside the other, also of the same nexus.
    assert_eq!(bench.status(0, &out), CONFLICT);
    let capacity = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let start = [0x1b, 0, 0, 0, 1, 0];
    for cdb in [
        &[0x12, 0, 0, 0, 36, 0],
        &[0x03, 0, 0, 0, 18, 0],
        &RELEASE,
        &capacity[..],
        &start,
    ] {
        assert_eq!(bench.status(1, cdb), Status::Good, "{cdb:x?}");
    }
    assert_eq!(bench.status(1, &READ), CONFLICT);
    assert_eq!(bench.status(0, &RELEASE), Status::Good);
    assert_eq!(bench.status(1, &READ), Status::Good);
}

#[test]
fn reserve_ends_with_its_nexus_and_with_a_reset() {
    let mut bench = Bench::new(unit(), 2);
    bench.status(0, &RESERVE);
    bench.lu.detach(bench.handles[0]);
    assert_eq!(bench.status(1, &RESERVE), Status::Good);
    bench.handles[0] = bench.lu.attach(nexus(0)).unwrap();
    assert_eq!(bench.attentions(0), [POWER_ON]);
    assert_eq!(bench.status(0, &READ), CONFLICT);
    bench.lu.reset();
    assert_eq!(bench.attentions(0), [RESET]);
    assert_eq!(bench.status(0, &READ), Status::Good);
}

#[test]
fn a_handle_is_of_one_nexus() {
    let mut bench = Bench::new(unit(), 1);
    bench.lu.detach(bench.handles[0]);
    let gone = bench.start(0, &READ);
    assert_eq!(sense_of(&gone), Some(Sense::INTERNAL_FAILURE));
    bench.lu.attach(nexus(0)).unwrap();
    let gone = bench.start(0, &READ);
    assert_eq!(sense_of(&gone), Some(Sense::INTERNAL_FAILURE));
}

#[test]
fn nexuses_are_limited() {
    let mut bench = Bench::new(unit(), 0);
    for _ in 0..NEXUSES_MAX {
        bench.handles.push(bench.lu.attach(nexus(0)).unwrap());
    }
    assert_eq!(bench.lu.attach(nexus(0)), Err(TooManyNexuses));
    bench.lu.detach(bench.handles[7]);
    assert!(bench.lu.attach(nexus(0)).is_ok());
}

#[test]
fn a_reservation_holds_for_every_command() {
    let mut bench = Bench::new(unit(), 2);
    register(&mut bench, 0, 0);
    // Exclusive access.
    out(&mut bench, 0, 1, 3, 0, 0);
    for row in &OPCODES {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (row.code, row.service_action.unwrap_or(0));
        let conflict = bench.status(1, &cdb) == CONFLICT;
        let expected = matches!(row.reach, Reach::Reads | Reach::Writes | Reach::Reserve);
        // Allowing removal is free.
        assert_eq!(conflict, expected && row.code != 0x1e, "{:#x}", row.code);
    }
    for (cdb, expected) in [
        ([0x1b, 0, 0, 0, 1, 0], Status::Good),
        ([0x1b, 0, 0, 0, 0, 0], CONFLICT),
        ([0x1e, 0, 0, 0, 1, 0], CONFLICT),
    ] {
        assert_eq!(bench.status(1, &cdb), expected, "{cdb:x?}");
    }
    assert_eq!(bench.status(0, &WRITE), Status::Good);
}

#[test]
fn reservations_survive_if_they_are_asked_to() {
    let mut bench = Bench::new(unit(), 2);
    assert_eq!(register(&mut bench, 1, 0), Action::Done(Reply::good()));
    let Action::Persist { state, abort, .. } = register(&mut bench, 0, 1) else {
        panic!("APTPL is kept");
    };
    assert_eq!((abort, &*state), (Vec::new(), bench.lu.reservations()));
    let Action::Persist { state, .. } = out(&mut bench, 0, 1, 1, 0, 0) else {
        panic!("a reservation is kept");
    };

    let mut again = Bench::new(unit(), 0);
    again.lu = LogicalUnit::new(unit(), Some(*state));
    for number in 0..2 {
        again.handles.push(again.lu.attach(nexus(number)).unwrap());
        again.test_ready(number);
    }
    assert_eq!(again.status(0, &WRITE), Status::Good);
    assert_eq!(again.status(1, &WRITE), CONFLICT);
    assert_eq!(again.status(1, &READ), Status::Good);
    // A reset leaves them.
    again.lu.reset();
    again.test_ready(1);
    assert_eq!(again.status(1, &WRITE), CONFLICT);

    // Without APTPL the value that is kept is emptied by the next restart.
    let Action::Persist { state, .. } = register(&mut bench, 1, 0) else {
        panic!("that it is not kept any more has to be kept");
    };
    assert!(
        LogicalUnit::new(unit(), Some(*state))
            .reservations()
            .is_empty()
    );
}

#[test]
fn the_preempted_are_told_and_their_commands_aborted() {
    let mut bench = Bench::new(unit(), 3);
    for number in 0..3 {
        register(&mut bench, number, 0);
    }
    out(&mut bench, 0, 1, 5, 0, 0);
    // PREEMPT by 1, which needs no abort.
    assert_eq!(out(&mut bench, 1, 4, 5, 1, 0), Action::Done(Reply::good()));
    assert_eq!(bench.attentions(0), [(0x2a, 0x05)]);
    // PREEMPT AND ABORT by 2.
    let Action::Persist { abort, .. } = out(&mut bench, 2, 5, 7, 2, 0) else {
        panic!("there is something to abort");
    };
    assert_eq!(abort, [nexus(1)]);
    assert_eq!(bench.attentions(1), [(0x2a, 0x05)]);
    assert_eq!(bench.attentions(2), []);
    // CLEAR by 0, which registers again, tells 2.
    register(&mut bench, 0, 0);
    out(&mut bench, 0, 3, 0, 0, 0);
    assert_eq!(bench.attentions(2), [(0x2a, 0x03)]);
}

#[test]
fn a_persistent_list_of_another_length_is_refused() {
    let mut bench = Bench::new(unit(), 1);
    let refused = bench.start(0, &[0x5f, 6, 0, 0, 0, 0, 0, 0, 25, 0]);
    assert_eq!(sense_of(&refused), Some(Sense::PARAMETER_LIST_LENGTH));
    let short = bench.send(0, &[0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0], &[0; 23]);
    assert_eq!(sense_of(&short), Some(Sense::PARAMETER_LIST_LENGTH));
}

proptest! {
    #[test]
    fn any_commands_of_any_nexus(
        commands in prop::collection::vec(
            (
                0..3_u8,
                prop::sample::select(OPCODES.iter().map(|row| row.code).collect::<Vec<_>>()),
                prop::collection::vec(prop_oneof![Just(0), 0..9_u8, any::<u8>()], 0..16),
                prop::collection::vec(prop_oneof![Just(0), 0..9_u8, any::<u8>()], 0..64),
            ),
            0..40,
        ),
    ) {
        let mut bench = Bench::new(unit(), 3);
        for (number, code, rest, data) in commands {
            let mut cdb = vec![code];
            cdb.extend(rest);
            let action = bench.send(number, &cdb, &data);
            prop_assert!(!matches!(action, Action::Parameters(_)));
            if let Action::Done(reply) = action {
                let refused = reply.status == Status::CheckCondition;
                prop_assert_eq!(reply.sense.is_some(), refused);
            }
        }
    }
}
