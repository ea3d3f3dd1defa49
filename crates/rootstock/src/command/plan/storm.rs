//! `rootstock plan storm`: the swarm's simulator with the site's numbers.

use std::num::NonZeroU64;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use rootstock_core::{
    VersionSpec,
    units::{CHUNK_BYTES, parse_size_bytes},
};
use rootstock_swarm::{
    Span,
    sim::{Begin, Forecast, Plan, Stage},
};
use serde_json::json;

use crate::{
    error::{Failure, WrongUse},
    output::{self, Column},
    progress,
    session::Session,
};

/// Machines that can be planned for.
const NODES_MAX: i64 = 5000;

/// The slowest and the fastest link, in bits a second.
const RATE_BITS_MIN: f64 = 1e6;
const RATE_BITS_MAX: f64 = 1e12;

/// The longest time to switch machines on, in seconds.
const SPREAD_SECONDS_MAX: u64 = 24 * 3600;

/// Owners of a chunk in each rack, when nobody sets it.
const COPIES: usize = 2;

/// What to plan.
#[derive(Debug, Args)]
#[command(after_help = "\
The swarm is simulated on this machine, with what runs on the nodes; all of them take
part in it, and have disks for all of the version. Of more than 300 some stand for all:
then what leaves the server is a figure from above. Times are from when the first machine
is switched on until the boot set, or all, is there. What firmware, kernel and system
take besides is not in them. A bound is what no way to distribute can be faster than.

Examples:
  rootstock plan storm --nodes 300 --image lab:8 --head 10G --nodes-link 1G
  rootstock plan storm --nodes 300 --racks 6 --image lab@production --from boot
  rootstock plan storm --nodes 40 --bytes 8G --boot-set 200M --head 1G --nodes-link 1G")]
pub(crate) struct StormArgs {
    /// How many machines there are
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=NODES_MAX))]
    nodes: u32,
    /// The version that they boot: NAME, NAME:3 or NAME@tag
    #[arg(
        long,
        value_name = "VERSION",
        required_unless_present = "bytes",
        conflicts_with = "bytes"
    )]
    image: Option<VersionSpec>,
    /// The size of a version that there is not yet, as it travels: 8G
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "boot_set")]
    bytes: Option<u64>,
    /// What a boot reads of it, as it travels; of an image, what is known of its boots
    #[arg(long, value_name = "SIZE", value_parser = size)]
    boot_set: Option<u64>,
    /// What the server's link carries, in bits a second: 10G, 2.5G, 100M
    #[arg(long, value_name = "RATE", default_value = "1G")]
    head: LinkRate,
    /// What each machine's link carries
    #[arg(long, value_name = "RATE", default_value = "1G")]
    nodes_link: LinkRate,
    /// In how many racks of about the same size they are
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=NODES_MAX))]
    racks: u32,
    /// What machines have at the beginning: nothing, or their boot set
    #[arg(long, value_enum, default_value_t = From::Off)]
    from: From,
    /// The last machine is switched on so long after the first
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=SPREAD_SECONDS_MAX))]
    spread: u64,
    /// What the simulator's choices follow from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// What machines have at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// They are off, and their disks are empty
    Off,
    /// They have booted, and lack the rest of the version
    Boot,
}

/// What a link carries, in bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LinkRate {
    bits: u64,
}

impl FromStr for LinkRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(split.unwrap_or(text.len()));
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" => Some(1.0),
            "k" | "kbit" => Some(1e3),
            "m" | "mbit" => Some(1e6),
            "g" | "gbit" => Some(1e9),
            _ => None,
        };
        let bits = factor.and_then(|factor| Some(number.parse::<f64>().ok()? * factor));
        match bits.filter(|bits| (RATE_BITS_MIN..=RATE_BITS_MAX).contains(bits)) {
            Some(bits) => Ok(Self { bits: bits as u64 }),
            None => Err(format!(
                "'{text}' is not the rate of a link: write bits a second from 1M to 1000G, \
                 such as 100M, 1G or 2.5G"
            )),
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size_bytes(text) {
        Ok(0) => Err("nothing has to be sent of that".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// What is sent.
struct Image {
    name: Option<String>,
    bytes: u64,
    chunks: NonZeroU64,
    boot_bytes: u64,
}

/// Simulates the storm and prints what it took.
pub(crate) fn run(args: &StormArgs, session: &Session) -> anyhow::Result<()> {
    if args.racks > args.nodes {
        return Err(WrongUse {
            message: format!("{} racks are more than {} machines", args.racks, args.nodes),
            hint: "give --racks the racks that have machines".to_owned(),
        }
        .into());
    }
    let image = image(args, session)?;
    if image.boot_bytes > image.bytes {
        return Err(WrongUse {
            message: format!(
                "a boot cannot read {} of {}",
                output::bytes(image.boot_bytes),
                output::bytes(image.bytes)
            ),
            hint: "--boot-set is a part of the version, as it travels".to_owned(),
        }
        .into());
    }
    let plan = plan(args, &image);
    let mut bar = progress::Late::new(session, "simulating", rootstock_swarm::sim::WHOLE);
    let forecast = plan.forecast(&mut |done| bar.set(done));
    bar.finish();
    if session.json() {
        return output::json(&document(args, &image, &forecast));
    }
    output::line(&text(args, &image, &forecast))
}

fn image(args: &StormArgs, session: &Session) -> anyhow::Result<Image> {
    let (Some(spec), None) = (&args.image, args.bytes) else {
        let bytes = args.bytes.unwrap_or_default();
        return Ok(Image {
            name: None,
            bytes,
            chunks: chunks(bytes.div_ceil(CHUNK_BYTES)),
            boot_bytes: args.boot_set.unwrap_or_default(),
        });
    };
    let version = session.client()?.version(spec)?;
    let name = format!("{}:{}", version.image, version.summary.version);
    let known = version.boot_set.as_ref().map(|set| set.frame_bytes);
    let known = known.filter(|bytes| *bytes > 0);
    let Some(boot_bytes) = args.boot_set.or(known) else {
        return Err(Failure {
            message: format!("what a boot of {name} reads is not known: no machine has booted it"),
            hint: "boot a machine from it, or say about how much with --boot-set 200M".to_owned(),
        }
        .into());
    };
    Ok(Image {
        name: Some(name),
        bytes: version.size.stored_bytes,
        chunks: chunks(version.size.chunk_count),
        boot_bytes,
    })
}

fn chunks(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN)
}

fn plan(args: &StormArgs, image: &Image) -> Plan {
    Plan {
        nodes: args.nodes as usize,
        racks: args.racks as usize,
        bytes: image.bytes,
        chunks: image.chunks,
        boot_bytes: image.boot_bytes,
        head_rate: args.head.bits / 8,
        node_rate: args.nodes_link.bits / 8,
        spread: Span::seconds(args.spread),
        begin: match args.from {
            From::Off => Begin::Off,
            From::Boot => Begin::Booted,
        },
        copies: COPIES,
        seed: args.seed,
    }
}

fn stages(forecast: &Forecast) -> Vec<(&'static str, &Stage)> {
    let login = forecast.login.iter().map(|stage| ("login", stage));
    login.chain([("complete", &forecast.complete)]).collect()
}

fn text(args: &StormArgs, image: &Image, forecast: &Forecast) -> String {
    let columns = [
        Column::Text("UNTIL"),
        Column::Number("FIRST"),
        Column::Number("MEDIAN"),
        Column::Number("LAST"),
        Column::Number("BOUND"),
        Column::Number("FROM HEAD"),
        Column::Number("COPIES"),
    ];
    let row = |(name, stage): &(&str, &Stage)| {
        vec![
            (*name).to_owned(),
            seconds(stage.first),
            seconds(stage.median),
            last(args, stage),
            seconds(stage.bound),
            output::bytes(stage.head_bytes),
            format!("{:.2}", copies(stage)),
        ]
    };
    let rows = stages(forecast).iter().map(row).collect();
    format!(
        "{}\n\n{}\n\n{}",
        output::fields(&given(args, image)),
        output::table(&columns, rows),
        remark(args, forecast)
    )
}

fn given(args: &StormArgs, image: &Image) -> Vec<(&'static str, String)> {
    let name = image.name.as_ref();
    let name = name.map_or_else(String::new, |name| format!("{name}, "));
    vec![
        (
            "version",
            format!(
                "{name}{} in {}, {} for a boot",
                output::bytes(image.bytes),
                output::count(image.chunks.get(), "chunk"),
                output::bytes(image.boot_bytes)
            ),
        ),
        (
            "machines",
            format!(
                "{} in {}, {} within {} s",
                args.nodes,
                output::count(args.racks.into(), "rack"),
                match args.from {
                    From::Off => "switched on",
                    From::Boot => "booted, they begin to fill",
                },
                args.spread
            ),
        ),
        (
            "links",
            format!(
                "{} of the head, {} of each machine",
                bits(args.head),
                bits(args.nodes_link)
            ),
        ),
    ]
}

/// What to think of it.
fn remark(args: &StormArgs, forecast: &Forecast) -> String {
    let simulated: Vec<String> = stages(forecast)
        .iter()
        .map(|(name, stage)| format!("{} of {} for {name}", stage.simulated, stage.chunks))
        .collect();
    let machines = forecast.complete.machines;
    let machines = match machines < args.nodes as usize {
        true => format!("{machines} of {} machines, ", args.nodes),
        false => String::new(),
    };
    format!(
        "This is an estimate. What was simulated, with seed {}: {machines}chunks {}.",
        args.seed,
        simulated.join(", ")
    )
}

/// The last machine's time, or that there was none in time.
fn last(args: &StormArgs, stage: &Stage) -> String {
    let late = args.nodes as usize - stage.finished.min(args.nodes as usize);
    if late == 0 {
        seconds(stage.last)
    } else {
        format!("never ({late} late)")
    }
}

/// Copies of what a machine fetches that left the head.
fn copies(stage: &Stage) -> f64 {
    stage.head_bytes as f64 / stage.bytes.max(1) as f64
}

fn seconds(span: Span) -> String {
    let tenths = span.0.div_ceil(100_000);
    if tenths < 6000 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        format!("{} min", tenths.div_ceil(600))
    }
}

fn bits(rate: LinkRate) -> String {
    if rate.bits >= 1_000_000_000 {
        format!("{} Gbit/s", rate.bits as f64 / 1e9)
    } else {
        format!("{} Mbit/s", rate.bits as f64 / 1e6)
    }
}

fn document(args: &StormArgs, image: &Image, forecast: &Forecast) -> serde_json::Value {
    json!({
        "version": image.name,
        "bytes": image.bytes,
        "chunk_count": image.chunks,
        "boot_set_bytes": image.boot_bytes,
        "node_count": args.nodes,
        "simulated_node_count": forecast.complete.machines,
        "rack_count": args.racks,
        "head_bits_per_second": args.head.bits,
        "node_bits_per_second": args.nodes_link.bits,
        "spread_seconds": args.spread,
        "from": match args.from { From::Off => "off", From::Boot => "boot" },
        "seed": args.seed,
        "login": forecast.login.as_ref().map(stage_document),
        "complete": stage_document(&forecast.complete),
    })
}

fn stage_document(stage: &Stage) -> serde_json::Value {
    let seconds = |span: Span| span.0 as f64 / 1e6;
    json!({
        "first_seconds": seconds(stage.first),
        "median_seconds": seconds(stage.median),
        "last_seconds": seconds(stage.last),
        "finished_count": stage.finished,
        "bound_seconds": seconds(stage.bound),
        "bytes": stage.bytes,
        "head_bytes": stage.head_bytes,
        "head_copies": copies(stage),
        "chunk_count": stage.chunks,
        "simulated_chunk_count": stage.simulated,
    })
}

#[cfg(test)]
mod tests;
