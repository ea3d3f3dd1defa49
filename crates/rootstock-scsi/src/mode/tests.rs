//! Which modes are told, and which may be changed.

use super::*;
use crate::testing::unit;

fn asked(page: u8) -> ModeSense {
    ModeSense {
        form: Form::Short,
        descriptor: BlockDescriptor::Short,
        control: PageControl::Current,
        page,
        subpage: 0,
        allocation: 255,
    }
}

fn data(unit: &Unit, mode: Mode, asked: ModeSense) -> Vec<u8> {
    sense(unit, mode, asked).expect("it is there").data_in
}

#[test]
fn headers_and_descriptors() {
    let unit = unit();
    let mode = Mode::default();
    let none = BlockDescriptor::None;
    let long = BlockDescriptor::Long;
    let form = Form::Long;
    #[rustfmt::skip]
    let cases: [(ModeSense, &[u8]); 4] = [
        (asked(CONTROL), &[23, 0, 0x10, 8, 0, 16, 0, 0, 0, 0, 2, 0]),
        (ModeSense { descriptor: none, ..asked(CONTROL) }, &[15, 0, 0x10, 0]),
        (ModeSense { form, ..asked(CONTROL) }, &[0, 26, 0, 0x10, 0, 0, 0, 8, 0, 16, 0, 0, 0, 0, 2, 0]),
        (
            ModeSense { form, descriptor: long, ..asked(CONTROL) },
            &[0, 34, 0, 0x10, 1, 0, 0, 16, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
        ),
    ];
    for (asked, header) in cases {
        let mut expected = header.to_vec();
        expected.extend_from_slice(&[CONTROL, 10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data(&unit, mode, asked), expected, "{asked:?}");
    }
}

#[test]
fn pages_are_found() {
    let unit = unit();
    let mode = Mode::default();
    let all = data(&unit, mode, asked(ALL_PAGES));
    assert_eq!(all.len(), 12 + 20 + 12 + 12);
    assert_eq!(usize::from(all[0]), all.len() - 1);
    let with = |page, subpage| {
        let asked = ModeSense {
            subpage,
            ..asked(page)
        };
        sense(&unit, mode, asked).err()
    };
    assert_eq!(with(ALL_PAGES, ALL_SUBPAGES), None);
    assert_eq!(with(CACHING, ALL_SUBPAGES), None);
    assert_eq!(with(CACHING, 1), Some(Sense::command_byte(3)));
    assert_eq!(with(ALL_PAGES, 1), Some(Sense::command_byte(3)));
    assert_eq!(with(0x02, 0), Some(Sense::command_bit(2, 5)));
    let saved = ModeSense {
        control: PageControl::Saved,
        ..asked(ALL_PAGES)
    };
    assert_eq!(sense(&unit, mode, saved), Err(Sense::SAVING_NOT_SUPPORTED));
}

#[test]
fn protection_is_told() {
    let read_only = Unit {
        access: Access::ReadOnly,
        ..unit()
    };
    let software = Mode {
        software_access: Access::ReadOnly,
        ..Mode::default()
    };
    assert_eq!(data(&read_only, Mode::default(), asked(CACHING))[2], 0x90);
    assert_eq!(data(&unit(), software, asked(CACHING))[2], 0x90);
    assert_eq!(data(&unit(), Mode::default(), asked(CACHING))[2], 0x10);
}

#[test]
fn lists_change_what_may_be_changed() {
    let descriptor = Mode {
        sense_format: SenseFormat::Descriptor,
        ..Mode::default()
    };
    let both = Mode {
        software_access: Access::ReadOnly,
        ..descriptor
    };
    let header = [0, 0, 0, 0];
    let block = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0];
    let wrong_block = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0];
    let control = |d_sense, third, swp| [CONTROL, 10, d_sense, third, swp, 0, 0, 0, 0, 0, 0, 0];
    let caching = |wce| {
        let mut page = page(CACHING, Mode::default());
        page[2] = wce;
        page
    };
    let length = Err(Sense::PARAMETER_LIST_LENGTH);
    #[rustfmt::skip]
    let cases: [(Vec<u8>, Result<Mode, Sense>); 13] = [
        (Vec::new(), Ok(Mode::default())),
        (header.to_vec(), Ok(Mode::default())),
        ([&header, &control(4, 0x10, 0)[..]].concat(), Ok(descriptor)),
        ([&block, &control(4, 0x10, 8)[..]].concat(), Ok(both)),
        ([&header, &control(4, 0x10, 8)[..], &caching(4)].concat(), Ok(both)),
        ([&wrong_block, &control(4, 0x10, 8)[..]].concat(), Err(Sense::parameter_byte(4))),
        ([&header, &control(4, 0x00, 0)[..]].concat(), Err(Sense::parameter_byte(7))),
        ([&header, &caching(0)[..]].concat(), Err(Sense::parameter_byte(6))),
        ([&header, &[0x02, 10][..]].concat(), Err(Sense::parameter_byte(4))),
        ([&header, &[CONTROL, 9][..]].concat(), Err(Sense::parameter_byte(5))),
        ([&header, &control(4, 0x10, 0)[..11]].concat(), length),
        ([&header, &[CONTROL][..]].concat(), length),
        (vec![0; 3], length),
    ];
    for (list, expected) in cases {
        let after = select(&unit(), Mode::default(), Form::Short, &list);
        assert_eq!(after, expected, "{list:x?}");
    }
}

#[test]
fn what_is_told_may_be_sent_back() {
    let unit = unit();
    for (form, descriptor) in [
        (Form::Short, BlockDescriptor::Short),
        (Form::Long, BlockDescriptor::Short),
        (Form::Long, BlockDescriptor::Long),
        (Form::Long, BlockDescriptor::None),
    ] {
        let asked = ModeSense {
            form,
            descriptor,
            ..asked(ALL_PAGES)
        };
        let list = data(&unit, Mode::default(), asked);
        let after = select(&unit, Mode::default(), form, &list);
        assert_eq!(after, Ok(Mode::default()), "{asked:?}");
    }
}
