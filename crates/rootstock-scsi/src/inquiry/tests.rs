//! What a unit says of itself, byte by byte.

use super::*;
use crate::testing::unit;

/// Sixteen bytes a line, with what can be read of them.
fn dump(data: &[u8]) -> String {
    let line = |(at, bytes): (usize, &[u8])| {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = bytes
            .iter()
            .map(|byte| match byte {
                0x20..=0x7e => char::from(*byte),
                _ => '.',
            })
            .collect();
        format!("{:02x}: {:47} {text}", at * 16, hex.join(" "))
    };
    let lines = data.chunks(16).enumerate().map(line);
    lines.collect::<Vec<_>>().join("\n")
}

fn page(page: Option<u8>) -> String {
    dump(
        &reply(&unit(), page, 4096)
            .expect("the page is there")
            .data_in,
    )
}

#[test]
fn standard_data() {
    insta::assert_snapshot!(page(None), @"");
}

#[test]
fn vital_product_data() {
    insta::assert_snapshot!(page(Some(0x00)), @"");
    insta::assert_snapshot!(page(Some(0x80)), @"");
    insta::assert_snapshot!(page(Some(0x83)), @"");
    insta::assert_snapshot!(page(Some(0xb0)), @"");
    insta::assert_snapshot!(page(Some(0xb1)), @"");
    insta::assert_snapshot!(page(Some(0xb2)), @"");
    assert_eq!(
        reply(&unit(), Some(0x86), 4096),
        Err(Sense::command_byte(2))
    );
}

#[test]
fn a_page_is_as_long_as_it_says() {
    for code in PAGES {
        let data = reply(&unit(), Some(code), 4096).unwrap().data_in;
        let len = usize::from(u16::from_be_bytes([data[2], data[3]]));
        assert_eq!(data.len(), len + 4);
        // Linux asks for four bytes first, to learn the length.
        assert_eq!(reply(&unit(), Some(code), 4).unwrap().data_in, data[..4]);
    }
    let data = reply(&unit(), None, 260).unwrap().data_in;
    assert_eq!(usize::from(data[4]), data.len() - 5);
    assert_eq!(absent()[0], 0x7f);
}

#[test]
fn names_do_not_leave_their_fields() {
    let mut unit = unit();
    unit.identity.product = "a product with a long näme".into();
    unit.identity.revision = "\n12".into();
    unit.identity.serial = "s".repeat(300);
    unit.identity.target_name = "é".repeat(150);
    let data = reply(&unit, None, 4096).unwrap().data_in;
    assert_eq!(&data[16..36], b"a product with a?12 ");
    let data = reply(&unit, Some(0x80), 4096).unwrap().data_in;
    assert_eq!(data.len(), 4 + SERIAL_BYTES_MAX);
    let data = reply(&unit, Some(0x83), 4096).unwrap().data_in;
    let mut designators = &data[4..];
    while !designators.is_empty() {
        designators = &designators[4 + usize::from(designators[3])..];
    }
}
