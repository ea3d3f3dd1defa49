//! What a unit tells of itself and its target.

use super::*;
use crate::testing::unit;

#[test]
fn luns_are_numbers_of_two_kinds() {
    #[rustfmt::skip]
    let cases = [
        ([0, 0, 0, 0, 0, 0, 0, 0], Some(0)),
        ([0, 255, 0, 0, 0, 0, 0, 0], Some(255)),
        ([0x41, 0, 0, 0, 0, 0, 0, 0], Some(256)),
        ([0x7f, 0xff, 0, 0, 0, 0, 0, 0], Some(16_383)),
    ];
    for (bytes, number) in cases {
        assert_eq!(decode_lun(bytes), number);
        assert_eq!(number.map(encode_lun), Some(bytes));
    }
    // Flat addressing of a small number.
    assert_eq!(decode_lun([0x40, 1, 0, 0, 0, 0, 0, 0]), Some(1));
    for other in [
        [0x01, 0, 0, 0, 0, 0, 0, 0],
        [0xc1, 0x01, 0, 0, 0, 0, 0, 0],
        [0x80, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 1],
    ] {
        assert_eq!(decode_lun(other), None, "{other:x?}");
    }
}

#[test]
fn luns_are_listed() {
    let reply = |select, allocation, luns: &[u16]| {
        let report = ReportLuns::new(select, allocation)?;
        Ok(report.reply(luns).data_in)
    };
    #[rustfmt::skip]
    let two = vec![
        0, 0, 0, 16, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0x41, 0x2c, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(reply(0, 4096, &[0, 300]), Ok(two.clone()));
    assert_eq!(reply(2, 4096, &[0, 300]), Ok(two.clone()));
    assert_eq!(reply(0, 16, &[0, 300]), Ok(two[..16].to_vec()));
    assert_eq!(reply(1, 4096, &[0, 300]), Ok(vec![0; 8]));
    assert_eq!(reply(3, 4096, &[]), Err(Sense::command_byte(2)));
    assert_eq!(reply(0, 15, &[]), Err(Sense::command_byte(6)));
    let many = reply(0, u32::MAX, &[7; LUNS_MAX + 1]).map(|data| data.len());
    assert_eq!(many, Ok(8 + 8 * LUNS_MAX));
}

#[test]
fn a_unit_that_is_not_there_says_so() {
    let reply = |cdb: &[u8]| reply_without_unit(cdb, &[0]);
    let inquiry = reply(&[0x12, 0, 0, 0, 255, 0]);
    assert_eq!((inquiry.data_in[0], inquiry.data_in.len()), (0x7f, 36));
    assert_eq!(inquiry.data_in[4], 31);
    let sense = reply(&[0x03, 1, 0, 0, 255, 0]);
    assert_eq!(sense.data_in, [0x72, 5, 0x25, 0, 0, 0, 0, 0]);
    let luns = reply(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
    assert_eq!(luns.data_in.len(), 16);
    for other in [&[0x12, 1, 0, 0, 255, 0], &[0; 6], &[0x28; 6]] {
        assert_eq!(reply(other), Sense::UNIT_NOT_SUPPORTED.into());
    }
    assert_eq!(reply(&[]), Sense::UNIT_NOT_SUPPORTED.into());
}

fn asked(which: Which, timeouts: Timeouts) -> Result<Vec<u8>, Sense> {
    let reply = opcodes(SupportedOpcodes {
        which,
        timeouts,
        allocation: 65_535,
    })?;
    Ok(reply.data_in)
}

#[test]
fn every_opcode_is_listed_and_can_be_asked_for() {
    for (timeouts, len) in [(Timeouts::Omitted, 8), (Timeouts::Told, 20)] {
        let all = asked(Which::All, timeouts).unwrap();
        assert_eq!(all[..4], ((all.len() - 4) as u32).to_be_bytes());
        assert_eq!(all.len(), 4 + len * OPCODES.len());
        for one in all[4..].chunks_exact(len) {
            let (code, action) = (one[0], u16::from_be_bytes([one[2], one[3]]));
            let (plain, with_action) = (
                asked(Which::Code(code), timeouts),
                asked(Which::Action(code, action), timeouts),
            );
            let (right, wrong) = if one[5] & 1 == 0 {
                (plain, with_action)
            } else {
                (with_action, plain)
            };
            assert_eq!(wrong, Err(Sense::command_bit(2, 2)));
            let right = right.unwrap();
            assert_eq!(
                asked(Which::Either(code, action), timeouts),
                Ok(right.clone())
            );
            assert_eq!(usize::from(right[3]), right.len() - 4 - (len - 8));
            assert_eq!((right[1] & 7, right[4], right[3]), (3, code, one[7]));
        }
    }
}

#[test]
fn opcodes_one_by_one() {
    let none = Ok(vec![0, 1, 0, 0]);
    let omitted = Timeouts::Omitted;
    assert_eq!(
        asked(Which::Code(0x28), omitted),
        Ok(vec![
            0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0
        ])
    );
    // READ CAPACITY(16): its own service action stands in the map.
    let capacity = asked(Which::Action(0x9e, 0x10), omitted).unwrap();
    assert_eq!(capacity[..8], [0, 3, 0, 16, 0x9e, 0x10, 0, 0]);
    assert_eq!(
        asked(Which::Code(0x00), Timeouts::Told),
        Ok(vec![
            0, 0x83, 0, 6, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        ])
    );
    for which in [
        Which::Code(0x04),
        Which::Action(0x04, 1),
        Which::Either(0x04, 0),
        Which::Either(0x28, 1),
        Which::Action(0x9e, 0x11),
        Which::Action(0x5f, 0x100),
        Which::Either(0x5f, 7),
    ] {
        assert_eq!(asked(which, omitted), none, "{which:?}");
    }
}

#[test]
fn task_management_and_ports() {
    assert_eq!(task_management(4, 255).data_in, [0xda, 0, 0, 0]);
    let long = task_management(16, 255).data_in;
    assert_eq!((long.len(), long[0], long[3]), (16, 0xda, 12));
    let groups = |header| target_port_groups(&unit(), header, 255).data_in;
    let group = [0x80, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    assert_eq!(
        groups(GroupsHeader::LengthOnly),
        [&[0, 0, 0, 12], &group[..]].concat()
    );
    assert_eq!(
        groups(GroupsHeader::Extended),
        [&[0, 0, 0, 16, 0x10, 0, 0, 0], &group[..]].concat()
    );
}
