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
        format!("{:02x}: {:47} |{text}|", at * 16, hex.join(" "))
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
    insta::assert_snapshot!(page(None), @r"
    00: 00 00 06 02 5b 10 00 02 52 4f 4f 54 53 54 43 4b |....[...ROOTSTCK|
    10: 56 6f 6c 75 6d 65 20 20 20 20 20 20 20 20 20 20 |Volume          |
    20: 31 2e 30 20 00 00 00 00 00 00 00 00 00 00 00 00 |1.0 ............|
    30: 00 00 00 00 00 00 00 00 00 00 00 a0 04 60 04 c0 |.............`..|
    40: 09 60 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |.`..............|
    50: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    ");
}

#[test]
fn vital_product_data() {
    insta::assert_snapshot!(page(Some(0x00)), @"00: 00 00 00 06 00 80 83 b0 b1 b2                   |..........|");
    insta::assert_snapshot!(page(Some(0x80)), @"00: 00 80 00 06 76 2d 31 32 33 34                   |....v-1234|");
    insta::assert_snapshot!(page(Some(0x83)), @r"
    00: 00 83 00 76 01 03 00 08 30 00 00 00 00 00 12 34 |...v....0......4|
    10: 02 01 00 0e 52 4f 4f 54 53 54 43 4b 76 2d 31 32 |....ROOTSTCKv-12|
    20: 33 34 51 94 00 04 00 00 00 01 51 95 00 04 00 00 |34Q.......Q.....|
    30: 00 01 53 98 00 24 69 71 6e 2e 32 30 32 36 2d 31 |..S..$iqn.2026-1|
    40: 31 2e 65 78 61 6d 70 6c 65 3a 64 69 73 6b 2c 74 |1.example:disk,t|
    50: 2c 30 78 30 30 30 31 00 00 00 53 a8 00 1c 69 71 |,0x0001...S...iq|
    60: 6e 2e 32 30 32 36 2d 31 31 2e 65 78 61 6d 70 6c |n.2026-11.exampl|
    70: 65 3a 64 69 73 6b 00 00 00 00                   |e:disk....|
    ");
    insta::assert_snapshot!(page(Some(0xb0)), @r"
    00: 00 b0 00 3c 01 ff 00 08 00 00 08 00 00 00 08 00 |...<............|
    10: 00 00 00 00 00 10 00 00 00 00 01 00 00 00 00 08 |................|
    20: 80 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    30: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    ");
    insta::assert_snapshot!(page(Some(0xb1)), @r"
    00: 00 b1 00 3c 00 01 00 00 00 00 00 00 00 00 00 00 |...<............|
    10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    20: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    30: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 |................|
    ");
    insta::assert_snapshot!(page(Some(0xb2)), @"00: 00 b2 00 04 00 e4 02 00                         |........|");
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
