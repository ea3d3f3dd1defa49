//! What is learnt from boots, and when.

use rootstock_core::ByteRange;
use rootstock_image::trace::TraceBuilder;

use super::*;

const DISK_BYTES: u64 = 1 << 30;

fn boot(hardware: &str, block: u64, coverage_permille: Option<u16>) -> Boot {
    let mut builder = TraceBuilder::new(DISK_BYTES);
    builder.read(ByteRange::new(block * 4096, 4096));
    Boot {
        hardware: hardware.to_owned(),
        trace: builder.finish(),
        coverage_permille,
    }
}

fn row(hardware: &str, boots: u64) -> TraceRow {
    TraceRow {
        hardware: hardware.to_owned(),
        boots,
        source: None,
        trace: boot(hardware, 1, None).trace.encode(),
    }
}

#[test]
fn a_class_is_maker_and_model_in_one_spelling() {
    let long = "é".repeat(200);
    let cases = [
        ("Dell Inc.", "OptiPlex  7010", "dell inc. optiplex 7010"),
        ("  LENOVO\n", "\u{7}10AX", "lenovo 10ax"),
        ("", "", "unknown"),
        (" ", "\0", "unknown"),
        (&long, "", &long[..TRACE_CLASS_BYTES_MAX]),
    ];
    for (vendor, product, expected) in cases {
        let inventory = Inventory {
            vendor: vendor.to_owned(),
            product: product.to_owned(),
            ..Inventory::default()
        };
        assert_eq!(class_of(&inventory), expected);
    }
}

#[test]
fn boots_teach_until_there_are_enough_and_when_they_were_served_badly() {
    let many: Vec<_> = (0..TRACE_CLASSES_MAX)
        .map(|n| row(&n.to_string(), 1))
        .collect();
    for (rows, hardware, coverage, expected) in [
        (vec![], "a", None, true),
        (vec![row("", 99), row("a", 7)], "a", Some(1000), true),
        (vec![row("", 99), row("a", 8)], "a", None, false),
        (vec![row("", 99), row("a", 8)], "a", Some(950), false),
        (vec![row("", 99), row("a", 8)], "a", Some(949), true),
        (vec![row("", 99), row("a", 8)], "b", None, true),
        (many.clone(), "new", None, false),
        (many, "3", None, true),
    ] {
        assert_eq!(
            is_wanted(&rows, &boot(hardware, 1, coverage)),
            expected,
            "{hardware} {coverage:?}"
        );
    }
}

#[test]
fn what_is_learnt_takes_the_place_of_what_was_carried_over() {
    let mut carried = row("a", 0);
    carried.source = Some("lab:1".parse().expect("a version"));
    let other = TraceRow {
        hardware: "b".to_owned(),
        ..carried.clone()
    };
    let all = TraceRow {
        hardware: String::new(),
        ..carried.clone()
    };
    let rows = learnt(
        DISK_BYTES,
        vec![all, carried, other],
        &[],
        &boot("a", 5, None),
    );
    let read = |row: &TraceRow| Trace::decode(&row.trace).expect("is a trace");
    let firsts = |row: &TraceRow| {
        read(row)
            .runs()
            .iter()
            .map(|run| run.first)
            .collect::<Vec<_>>()
    };
    assert_eq!((rows[1].hardware.as_str(), rows[1].boots), ("a", 1));
    assert_eq!((firsts(&rows[1]), &rows[1].source), (vec![5], &None));
    // Together: this class as it is learnt, and the other as it was carried over.
    assert_eq!((rows[0].hardware.as_str(), rows[0].boots), ("", 1));
    assert_eq!((firsts(&rows[0]), &rows[0].source), (vec![1, 5], &None));
}

#[test]
fn only_the_last_boots_count_and_unreadable_ones_do_not() {
    let mut kept: Vec<_> = (0..12).map(|_| boot("a", 3, None).trace.encode()).collect();
    kept.push(b"no trace".to_vec());
    let rows = learnt(
        DISK_BYTES,
        vec![row("a", 13)],
        &kept,
        &boot("a", 4, Some(0)),
    );
    assert_eq!(rows[1].boots, 14);
    let trace = Trace::decode(&rows[1].trace).expect("is a trace");
    // One in seven is not of the boot.
    assert_eq!(
        trace.runs().iter().map(|run| run.first).collect::<Vec<_>>(),
        [3]
    );
}
