//! What is understood, and what is printed.

use clap::Parser;
use insta::assert_snapshot;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: StormArgs,
}

fn parsed(line: &str) -> Result<StormArgs, String> {
    let words = std::iter::once("storm").chain(line.split_whitespace());
    let line = Line::try_parse_from(words).map_err(|error| error.to_string());
    line.map(|line| line.args)
}

fn stage(bytes: u64, finished: usize) -> Stage {
    Stage {
        bytes,
        first: Span::millis(1_040),
        median: Span::seconds(75),
        last: Span::seconds(1234),
        finished,
        machines: 300,
        bound: Span::millis(64_000),
        head_bytes: bytes * 5 / 4,
        simulated: 333,
        chunks: 7900,
    }
}

fn known() -> Image {
    Image {
        name: Some("lab:8".to_owned()),
        bytes: 790_000_000,
        chunks: chunks(7900),
        boot_bytes: 37_500_000,
    }
}

#[test]
fn rates_are_bits() {
    for (text, bits) in [
        ("10G", Some(10_000_000_000)),
        ("2.5g", Some(2_500_000_000)),
        ("100Mbit", Some(100_000_000)),
        ("1000000", Some(1_000_000)),
        ("0", None),
        ("0G", None),
        ("1T", None),
        ("2000G", None),
        ("-1G", None),
        ("G", None),
        ("1.2.3G", None),
        ("", None),
    ] {
        let rate = text.parse::<LinkRate>().ok();
        assert_eq!(rate.map(|rate| rate.bits), bits, "{text}");
    }
}

#[test]
fn a_storm_with_an_end() {
    let args = parsed("--nodes 300 --racks 6 --image lab:8 --head 10G").expect("a line");
    let forecast = Forecast {
        login: Some(stage(37_500_000, 300)),
        complete: stage(790_000_000, 300),
    };
    assert_snapshot!(text(&args, &known(), &forecast), @r"
    version   lab:8, 790 MB in 7900 chunks, 37.5 MB for a boot
    machines  300 in 6 racks, switched on within 10 s
    links     10 Gbit/s of the head, 1 Gbit/s of each machine

    UNTIL     FIRST  MEDIAN    LAST   BOUND  FROM HEAD  COPIES
    login     1.1 s  75.0 s  21 min  64.0 s    46.9 MB    1.25
    complete  1.1 s  75.0 s  21 min  64.0 s     988 MB    1.25

    This is an estimate. What was simulated, with seed 1: chunks 333 of 7900 for login, 333 of 7900 for complete.
    ");
}

#[test]
fn one_that_has_booted_and_does_not_end() {
    let args = parsed("--nodes 1 --bytes 8G --boot-set 200M --from boot --head 100M");
    let forecast = Forecast {
        login: None,
        complete: stage(8 << 30, 0),
    };
    let image = Image {
        name: None,
        ..known()
    };
    assert_snapshot!(text(&args.expect("a line"), &image, &forecast), @r"
    version   790 MB in 7900 chunks, 37.5 MB for a boot
    machines  1 in 1 rack, booted, they begin to fill within 10 s
    links     100 Mbit/s of the head, 1 Gbit/s of each machine

    UNTIL     FIRST  MEDIAN            LAST   BOUND  FROM HEAD  COPIES
    complete  1.1 s  75.0 s  never (1 late)  64.0 s    10.7 GB    1.25

    This is an estimate. What was simulated, with seed 1: chunks 333 of 7900 for complete.
    ");
}

#[test]
fn mistakes_are_explained() {
    let told: Vec<String> = [
        "--image lab",
        "--nodes 0 --image lab",
        "--nodes 5001 --image lab",
        "--nodes 3",
        "--nodes 3 --bytes 8G",
        "--nodes 3 --bytes 0 --boot-set 1M",
        "--nodes 3 --image lab --head 0",
        "--nodes 3 --image lab --racks 0",
        "--nodes 3 --image lab --from bed",
    ]
    .iter()
    .map(|line| {
        let error = parsed(line).err().unwrap_or_default();
        let lines: Vec<&str> = error
            .lines()
            .take_while(|line| !line.starts_with("Usage") && !line.starts_with("For more"))
            .filter(|line| !line.is_empty())
            .collect();
        lines.join("\n")
    })
    .collect();
    assert_snapshot!(told.join("\n---\n"), @r"
    error: the following required arguments were not provided:
      --nodes <COUNT>
    ---
    error: invalid value '0' for '--nodes <COUNT>': 0 is not in 1..=5000
    ---
    error: invalid value '5001' for '--nodes <COUNT>': 5001 is not in 1..=5000
    ---
    error: the following required arguments were not provided:
      --image <VERSION>
    ---
    error: the following required arguments were not provided:
      --boot-set <SIZE>
    ---
    error: invalid value '0' for '--bytes <SIZE>': nothing has to be sent of that
    ---
    error: invalid value '0' for '--head <RATE>': '0' is not the rate of a link: write bits a second from 1M to 1000G, such as 100M, 1G or 2.5G
    ---
    error: invalid value '0' for '--racks <COUNT>': 0 is not in 1..=5000
    ---
    error: invalid value 'bed' for '--from <FROM>'
      [possible values: off, boot]
    ");
}

#[test]
fn a_small_storm_is_simulated() {
    let args = parsed("--nodes 1 --bytes 20M --boot-set 2M --spread 0").expect("a line");
    let image = Image {
        name: None,
        bytes: 20 << 20,
        chunks: chunks(80),
        boot_bytes: 2 << 20,
    };
    let forecast = plan(&args, &image).forecast(&mut |_| {});
    assert_eq!(forecast.complete.finished, 1);
    assert!(forecast.complete.last >= forecast.complete.bound);
    let document = document(&args, &image, &forecast);
    assert_eq!(document["complete"]["head_copies"], 1.0, "{document}");
    assert_eq!(document["login"]["bytes"], 2 << 20);
}
