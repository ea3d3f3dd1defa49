//! Which commands are accepted, and what they ask of a volume.

use proptest::prelude::*;

use super::*;
use crate::{
    opcode::OPCODES,
    testing::{BLOCKS, unit},
    unit::{BlockSize, Limits},
};

fn block(start: u64, blocks: u64) -> ByteRange {
    ByteRange::new(start * 512, blocks * 512)
}

fn medium(cdb: &[u8]) -> Result<Action, Sense> {
    match Command::parse(cdb, &unit()) {
        Ok(Command::Medium(action)) => Ok(action),
        Ok(other) => panic!("{other:?} does not concern the medium"),
        Err(sense) => Err(sense),
    }
}

fn done() -> Result<Action, Sense> {
    Ok(Action::Done(Reply::good()))
}

#[test]
fn reads_and_writes_of_every_length() {
    use Durability::{Cached, Forced};
    let read = |range| Ok(Action::Read { range });
    let write = |range, durability| Ok(Action::Write { range, durability });
    #[rustfmt::skip]
    let cases: [(&[u8], Result<Action, Sense>); 17] = [
        // READ(6): 21 bits of address, no length is 256.
        (&[0x08, 0x01, 0x02, 0x03, 4, 0], read(block(0x1_0203, 4))),
        (&[0x08, 0, 0, 0, 0, 0], read(block(0, 256))),
        (&[0x08, 0x0f, 0xff, 0xff, 1, 0], read(block(BLOCKS - 1, 1))),
        (&[0x08, 0x0f, 0xff, 0xff, 2, 0], Err(Sense::LBA_OUT_OF_RANGE)),
        (&[0x28, 0, 0, 0, 1, 0, 0, 0, 8, 0], read(block(256, 8))),
        (&[0x28, 0x18, 0, 0, 1, 0, 0, 0, 8, 0], read(block(256, 8))),
        (&[0x28, 0, 0, 0, 1, 0, 0, 0, 0, 0], done()),
        (&[0xa8, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0], read(block(256, 8))),
        (&[0x88, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0], read(block(256, 8))),
        (&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Err(Sense::LBA_OUT_OF_RANGE)),
        // More than MAXIMUM TRANSFER LENGTH.
        (&[0xa8, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0], Err(Sense::command_byte(6))),
        (&[0x0a, 0x08, 0, 0, 1, 0], write(block(0x8_0000, 1), Cached)),
        (&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], write(block(1, 1), Cached)),
        (&[0x2a, 0x18, 0, 0, 0, 1, 0, 0, 1, 0], write(block(1, 1), Forced)),
        (&[0xaa, 0x08, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], write(block(1, 1), Forced)),
        (&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], write(block(1, 1), Cached)),
        // WRPROTECT
        (&[0x2a, 0x20, 0, 0, 0, 1, 0, 0, 1, 0], Err(Sense::command_bit(1, 5))),
    ];
    for (cdb, expected) in cases {
        assert_eq!(medium(cdb), expected, "{cdb:x?}");
    }
}

#[test]
fn no_blocks_beyond_the_end_are_still_beyond_it() {
    let end = (BLOCKS as u32).to_be_bytes();
    for code in [0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35, 0x41] {
        let mut cdb = [0; 10];
        cdb[0] = code;
        cdb[2..6].copy_from_slice(&end);
        assert_eq!(medium(&cdb), Err(Sense::LBA_OUT_OF_RANGE), "{code:#x}");
    }
}

#[test]
fn what_else_is_done_with_blocks() {
    use Durability::{Cached, Forced};
    let range = block(2, 3);
    let rest = block(2, BLOCKS - 2);
    let whole = Comparison::Whole;
    let one = Comparison::OneBlock { block_bytes: 512 };
    let same = |range| {
        Ok(Action::Parameters(Parameters {
            of: ParametersOf::WriteSame {
                range,
                block_bytes: 512,
            },
        }))
    };
    #[rustfmt::skip]
    let cases: [(&[u8], Result<Action, Sense>); 22] = [
        (&[0x2e, 0x12, 0, 0, 0, 2, 0, 0, 3, 0], Ok(Action::WriteAndVerify { range })),
        (&[0xae, 0x00, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::WriteAndVerify { range })),
        (&[0x2f, 0x10, 0, 0, 0, 2, 0, 0, 3, 0], Ok(Action::Verify { range })),
        (&[0x2f, 0x02, 0, 0, 0, 2, 0, 0, 3, 0], Ok(Action::Compare { range, comparison: whole })),
        (&[0xaf, 0x06, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::Compare { range, comparison: one })),
        (&[0x2f, 0x04, 0, 0, 0, 2, 0, 0, 3, 0], Err(Sense::command_bit(1, 2))),
        (&[0x2f, 0x02, 0, 0, 0, 2, 0, 0, 0, 0], done()),
        (&[0x34, 0x02, 0, 0, 0, 2, 0, 0, 3, 0], Ok(Action::Prefetch { range })),
        (&[0x34, 0x00, 0, 0, 0, 2, 0, 0, 0, 0], Ok(Action::Prefetch { range: rest })),
        (&[0x35, 0x02, 0, 0, 0, 2, 0, 0, 0, 0], Ok(Action::Flush)),
        (&[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Ok(Action::Flush)),
        (&[0x41, 0x08, 0, 0, 0, 2, 0, 0, 3, 0], same(range)),
        (&[0x41, 0x00, 0, 0, 0, 2, 0, 0, 0, 0], Err(Sense::command_byte(7))),
        // ANCHOR, and NDOB where it is not known
        (&[0x41, 0x18, 0, 0, 0, 2, 0, 0, 3, 0], Err(Sense::command_bit(1, 4))),
        (&[0x41, 0x01, 0, 0, 0, 2, 0, 0, 3, 0], Err(Sense::command_bit(1, 0))),
        (&[0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::Zero { range })),
        (&[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::Zero { range })),
        (&[0x89, 0x08, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::CompareAndWrite { range, durability: Forced })),
        (&[0x8b, 0x00, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0], Ok(Action::OrWrite { range, durability: Cached })),
        (&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], done()),
        // Starting, and stopping, which flushes.
        (&[0x1b, 1, 0, 0, 1, 0], done()),
        (&[0x1b, 0, 0, 0, 0, 0], Ok(Action::Flush)),
    ];
    for (cdb, expected) in cases {
        assert_eq!(medium(cdb), expected, "{cdb:x?}");
    }
}

#[test]
fn medium_is_not_ejected_and_power_is_not_managed() {
    assert_eq!(
        medium(&[0x1b, 0, 0, 0, 0x02, 0]),
        Err(Sense::command_bit(4, 1))
    );
    assert_eq!(
        medium(&[0x1b, 0, 0, 0, 0x30, 0]),
        Err(Sense::command_bit(4, 5))
    );
    // NO_FLUSH
    assert_eq!(medium(&[0x1b, 0, 0, 0, 0x04, 0]), done());
    assert_eq!(medium(&[0x1e, 0, 0, 0, 0x01, 0]), done());
}

#[test]
fn data_out_has_its_length() {
    let range = block(0, 4);
    let durability = Durability::Cached;
    let cases = [
        (Action::Read { range }, DataOut::None),
        (Action::Write { range, durability }, DataOut::UpTo(2048)),
        (Action::WriteAndVerify { range }, DataOut::UpTo(2048)),
        (
            Action::OrWrite { range, durability },
            DataOut::Exactly(2048),
        ),
        (
            Action::CompareAndWrite { range, durability },
            DataOut::Exactly(4096),
        ),
        (
            Action::Compare {
                range,
                comparison: Comparison::OneBlock { block_bytes: 512 },
            },
            DataOut::Exactly(512),
        ),
        (
            medium(&[0x41, 0, 0, 0, 0, 0, 0, 0, 4, 0]).unwrap(),
            DataOut::Exactly(512),
        ),
        (
            medium(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).unwrap(),
            DataOut::List(24),
        ),
    ];
    for (action, expected) in cases {
        assert_eq!(action.data_out(), expected, "{action:?}");
    }
}

#[test]
fn write_same_is_limited_if_its_limit_is_not_zero() {
    let mut unit = unit();
    unit.limits.write_same_blocks_max = 8;
    let parse = |blocks| Command::parse(&[0x41, 0, 0, 0, 0, 0, 0, 0, blocks, 0], &unit);
    assert!(parse(8).is_ok());
    assert_eq!(parse(9).err(), Some(Sense::command_byte(7)));
}

#[test]
fn inquiry_asks_for_a_page_only_with_evpd() {
    let parse = |byte1, page| Command::parse(&[0x12, byte1, page, 1, 4, 0], &unit());
    let page = |page| {
        Ok(Command::Inquiry {
            page,
            allocation: 260,
        })
    };
    assert_eq!(parse(0, 0), page(None));
    assert_eq!(parse(1, 0), page(Some(0)));
    assert_eq!(parse(1, 0x83), page(Some(0x83)));
    assert_eq!(parse(0, 0x83), Err(Sense::command_byte(2)));
    assert_eq!(parse(2, 0), Err(Sense::command_bit(1, 1)));
}

/// What an action touches lies inside of the unit, and is not empty.
fn check(action: &Action, size_bytes: u64, block_bytes: u64) {
    let range = match action {
        Action::Read { range }
        | Action::Write { range, .. }
        | Action::WriteAndVerify { range }
        | Action::Verify { range }
        | Action::Compare { range, .. }
        | Action::CompareAndWrite { range, .. }
        | Action::OrWrite { range, .. }
        | Action::Zero { range }
        | Action::Prefetch { range } => range,
        Action::LbaStatus(status) => &status.range,
        Action::Parameters(Parameters {
            of: ParametersOf::WriteSame { range, .. },
        }) => range,
        _ => return,
    };
    assert!(range.len > 0);
    assert!(range.start.is_multiple_of(block_bytes) && range.len.is_multiple_of(block_bytes));
    assert!(range.start < size_bytes && range.len <= size_bytes - range.start);
}

proptest! {
    #[test]
    fn any_bytes_are_read(
        code in prop::sample::select(OPCODES.iter().map(|row| row.code).collect::<Vec<_>>()),
        rest in prop::collection::vec(any::<u8>(), 0..20),
        mask in prop_oneof![Just(0xff), Just(0x0f), Just(0x01)],
        blocks in prop_oneof![1..20_u64, Just(1 << 32), Just(Unit::BLOCKS_MAX)],
        block_size in prop_oneof![Just(BlockSize::B512), Just(BlockSize::B4096)],
    ) {
        let unit = Unit {
            block_size,
            blocks,
            limits: Limits::for_transfers(1 << 20, block_size),
            ..unit()
        };
        let mut cdb = vec![code];
        cdb.extend(rest.iter().map(|byte| byte & mask));
        if let Ok(Command::Medium(action)) = Command::parse(&cdb, &unit) {
            check(&action, unit.size_bytes(), block_size.bytes().into());
            prop_assert!(action.data_out().bytes() <= 2 << 20);
        }
    }

    #[test]
    fn any_code_is_read(cdb in prop::collection::vec(any::<u8>(), 0..20)) {
        let _ = Command::parse(&cdb, &unit());
    }
}
