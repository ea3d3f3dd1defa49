//! One image to many nodes that ask at the same moment, over links of 100 Mbit/s.
//!
//! The head and each node are a namespace at one switch. Their links are shaped at both
//! ends, so that each sends and receives at most so much. The figure is the time until
//! the last node has all bytes.

mod clients;
mod figure;
mod load;
mod net;
mod rivals;
mod rootstock;
mod speed;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use rootstock_tests::namespace::Namespace;
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::{disk, tool};

use super::Bench;
use super::lab;
use super::report::{Better, ROOTSTOCK, Report, median};
use clients::{Clients, Done, Outcome};
use figure::Line;
use net::Net;
use speed::Speeds;

use crate::agent;

/// What each link lets through in each direction.
const LINK_MBIT: u32 = 100;
/// The most nodes at once.
const NODES_MAX: u32 = 64;
/// The image's name, below the directory that the head serves.
const FILE: &str = "image";
const BOUND: &str = "bound";
const PLAIN: &str = "rootstock, plain";
/// A measurement is given up after so many times what one server alone takes.
const PATIENCE: f64 = 3.0;
const PATIENCE_MIN: Duration = Duration::from_secs(120);

/// What `cargo xtask bench swarm` can be told.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of swarm")]
pub(crate) struct Options {
    /// How many nodes fetch at the same moment, one figure after the other.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [2, 4, 8, 16, 32],
        value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX))
    )]
    nodes: Vec<u32>,
    /// The image that they fetch, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..=4096))]
    image_mib: u64,
    /// Who takes part; all of them when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    candidates: Vec<Candidate>,
    /// Draws nodes against MB/s for each of them into this SVG file.
    #[arg(long)]
    figure: Option<PathBuf>,
}

/// One way to have the image everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Candidate {
    /// Rootstock's swarm, with TLS.
    Rootstock,
    /// Rootstock's swarm without TLS.
    Plain,
    /// BitTorrent, by aria2.
    Aria2,
    /// BitTorrent, by libtorrent.
    Libtorrent,
    /// Multicast, by udpcast.
    Udpcast,
    /// nginx and curl.
    Http,
    /// nbd-server and nbdcopy.
    Nbd,
}

impl Candidate {
    fn name(self) -> &'static str {
        match self {
            Self::Rootstock => ROOTSTOCK,
            Self::Plain => PLAIN,
            Self::Aria2 => "BitTorrent, aria2",
            Self::Libtorrent => "BitTorrent, libtorrent",
            Self::Udpcast => "multicast, udpcast",
            Self::Http => "HTTP, nginx",
            Self::Nbd => "NBD, nbd-server",
        }
    }

    /// Whether all comes from one server: that takes minutes, each time the same, and its
    /// link is busy long before a processor is.
    fn is_from_one(self) -> bool {
        matches!(self, Self::Http | Self::Nbd)
    }

    fn is_rootstock(self) -> bool {
        matches!(self, Self::Rootstock | Self::Plain)
    }

    fn measure(self, site: &Site<'_>, net: &Net) -> Result<Outcome> {
        match self {
            Self::Rootstock => rootstock::tls(site, net),
            Self::Plain => rootstock::plain(site, net),
            Self::Aria2 => rivals::aria2(site, net),
            Self::Libtorrent => rivals::libtorrent(site, net),
            Self::Udpcast => rivals::udpcast(site, net),
            Self::Http => rivals::http(site, net),
            Self::Nbd => rivals::nbd(site, net),
        }
    }
}

/// What one measurement came to.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Until the last node had all.
    seconds: f64,
    /// How much of the machine's processors was busy meanwhile, in percent.
    busy_percent: Option<f64>,
    /// What the head sent, headers and all else with it, in images.
    head_copies: f64,
}

/// Figures of all rounds, by the number of nodes and the candidate.
type Outcomes = BTreeMap<u32, BTreeMap<&'static str, Vec<Figures>>>;

/// All that was measured.
#[derive(Default)]
struct Results {
    outcomes: Outcomes,
    speeds: Speeds,
    /// Without a figure.
    failed: Vec<String>,
}

impl Results {
    fn enter(&mut self, count: u32, name: &'static str, figures: Figures) {
        let row = self.outcomes.entry(count).or_default();
        row.entry(name).or_default().push(figures);
    }

    fn fail(&mut self, what: &str, error: &anyhow::Error) {
        println!("  {what}: {error:#}");
        self.failed.push(what.to_owned());
    }
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut options = bench.args.swarm.clone();
    if options.candidates.is_empty() {
        options.candidates = Candidate::value_variants().to_vec();
    }
    if options.candidates.iter().any(|one| one.is_rootstock()) {
        agent::run()?;
    }
    let mut results = Results::default();
    let site = Site::new(bench, &options)?;
    site.measure_all(&options, &mut results)?;
    let image_bytes = site.image_bytes;
    drop(site);
    report(&mut bench.report, &results.outcomes, image_bytes);
    speed::report(&mut bench.report, &results.speeds);
    if let Some(path) = &options.figure {
        let lines = lines(&results.outcomes, image_bytes);
        fs::write(path, figure::draw(&lines, LINK_MBIT))
            .with_context(|| format!("write {}", path.display()))?;
    }
    // Also those that came before a failure.
    bench.report.write(&bench.args.output)?;
    let failed = results.failed;
    ensure!(failed.is_empty(), "without a figure: {}", failed.join("; "));
    Ok(())
}

/// The least that theory allows (Kumar and Ross, HotWeb 2006), in seconds: the head sends
/// each byte once, each node receives each byte, and all copies are sent by somebody.
fn bound_seconds(bytes: u64, node_count: u32, links: Links) -> f64 {
    let bits = bytes as f64 * 8.0;
    let rate = |mbit: u32| f64::from(mbit) * 1e6;
    let count = f64::from(node_count);
    let senders = rate(links.head_up_mbit) + count * rate(links.node_up_mbit);
    let down = rate(links.node_down_mbit);
    let head = rate(links.head_up_mbit);
    (bits / head).max(bits / down).max(count * bits / senders)
}

/// What links let through.
#[derive(Debug, Clone, Copy)]
struct Links {
    head_up_mbit: u32,
    node_up_mbit: u32,
    node_down_mbit: u32,
}

/// The links of all measurements here.
const LINKS: Links = Links {
    head_up_mbit: LINK_MBIT,
    node_up_mbit: LINK_MBIT,
    node_down_mbit: LINK_MBIT,
};

/// Where all candidates find the image.
#[derive(Clone)]
struct Site<'a> {
    bench: &'a Bench,
    directory: PathBuf,
    /// What the head serves.
    files: PathBuf,
    /// Memory for clients that must write.
    memory: PathBuf,
    image_bytes: u64,
    rounds: u32,
    _mounted: Arc<Undo>,
}

impl<'a> Site<'a> {
    fn new(bench: &'a Bench, options: &Options) -> Result<Self> {
        let directory = lab::fresh(bench, "swarm")?;
        let [files, memory] = ["files", "memory"].map(|name| directory.join(name));
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&memory)?;
        let image_bytes = options.image_mib << 20;
        let copies = options.nodes.iter().max().copied().unwrap_or_default();
        check_memory(image_bytes * u64::from(copies))?;
        println!("swarm: making the image");
        disk::noise(&files.join(FILE), image_bytes, 14)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=90%", "tmpfs"]);
        tool::run_command(mount.arg(&memory))?;
        let mounted = Undo::new(Action::Unmount(memory.clone()));
        Ok(Self {
            bench,
            directory,
            files,
            memory,
            image_bytes,
            rounds: bench.args.rounds,
            _mounted: Arc::new(mounted),
        })
    }

    /// Goes on after a candidate that fails: the figures before it took many minutes.
    fn measure_all(&self, options: &Options, results: &mut Results) -> Result<()> {
        for round in 1..=self.rounds {
            for &count in &options.nodes {
                println!("swarm, round {round} of {}, {count} nodes", self.rounds);
                let net = Net::new(count, Some(LINK_MBIT))?;
                let candidates = options.candidates.iter();
                for candidate in candidates.filter(|one| !one.is_from_one()) {
                    let outcome = self.measure(*candidate, &net);
                    self.enter(*candidate, count, outcome, results);
                }
            }
        }
        if options.candidates.contains(&Candidate::Rootstock) {
            match speed::measure(self) {
                Ok(speeds) => results.speeds = speeds,
                Err(error) => results.fail("links as they are", &error),
            }
        }
        self.measure_from_one(options, results)
    }

    /// All that come from one server at once, each in a network of its own.
    fn measure_from_one(&self, options: &Options, results: &mut Results) -> Result<()> {
        let candidates = options.candidates.iter();
        let mut jobs = Vec::new();
        for &candidate in candidates.filter(|one| one.is_from_one()) {
            for &count in &options.nodes {
                jobs.push((self.apart(candidate, count)?, candidate, count));
            }
        }
        if !jobs.is_empty() {
            println!("swarm, from one server alone, all at once");
        }
        let outcomes: Vec<Result<Figures>> = thread::scope(|scope| {
            let run = |(site, candidate, count): &(Self, Candidate, u32)| {
                let net = Net::new(*count, Some(LINK_MBIT))?;
                let figures = site.measure(*candidate, &net)?;
                Ok(Figures {
                    // Of this one alone it is not known.
                    busy_percent: None,
                    ..figures
                })
            };
            let jobs: Vec<_> = jobs
                .iter()
                .map(|job| scope.spawn(move || run(job)))
                .collect();
            let joined = jobs.into_iter().map(|job| {
                let panicked = |_| Err(anyhow::anyhow!("its thread panicked"));
                job.join().unwrap_or_else(panicked)
            });
            joined.collect()
        });
        for ((_, candidate, count), outcome) in jobs.iter().zip(outcomes) {
            self.enter(*candidate, *count, outcome, results);
        }
        Ok(())
    }

    /// The same with a directory of its own for what servers and clients write.
    fn apart(&self, candidate: Candidate, count: u32) -> Result<Self> {
        let mut site = self.clone();
        site.directory = self.directory.join(format!("{candidate:?}-{count}"));
        fs::create_dir_all(&site.directory)?;
        Ok(site)
    }

    fn enter(
        &self,
        candidate: Candidate,
        count: u32,
        outcome: Result<Figures>,
        results: &mut Results,
    ) {
        let name = candidate.name();
        match outcome {
            Ok(figures) => {
                self.tell(name, count, figures);
                results.enter(count, name, figures);
            }
            Err(error) => results.fail(&format!("{name} with {count} nodes"), &error),
        }
    }

    fn measure(&self, candidate: Candidate, net: &Net) -> Result<Figures> {
        let before = net.head_sent_bytes()?;
        let outcome = candidate.measure(self, net)?;
        let sent = net.head_sent_bytes()? - before;
        Ok(Figures {
            seconds: outcome.seconds,
            busy_percent: Some(outcome.busy_percent),
            head_copies: sent as f64 / self.image_bytes as f64,
        })
    }

    fn tell(&self, name: &str, count: u32, figures: Figures) {
        let Figures {
            seconds,
            busy_percent,
            head_copies,
        } = figures;
        let times = seconds / bound_seconds(self.image_bytes, count, LINKS);
        let busy =
            busy_percent.map_or_else(String::new, |busy| format!("; processors {busy:.0} % busy"));
        println!(
            "  {name}, {count} nodes: {seconds:.1} s, {times:.2} times the bound; the head sent \
             {head_copies:.2} copies{busy}"
        );
    }

    fn image(&self) -> PathBuf {
        self.files.join(FILE)
    }

    /// How long a measurement may take.
    fn limit(&self, net: &Net) -> Duration {
        let count = net.nodes.len() as f64;
        let alone = self.image_bytes as f64 * 8.0 * count / (f64::from(LINK_MBIT) * 1e6);
        PATIENCE_MIN.max(Duration::from_secs_f64(alone * PATIENCE))
    }

    /// A directory for the logs of the next clients.
    fn logs(&self) -> Result<PathBuf> {
        let logs = self.directory.join("logs");
        if logs.exists() {
            fs::remove_dir_all(&logs)?;
        }
        fs::create_dir(&logs)?;
        Ok(logs)
    }

    /// Lets clients fetch, one on each node, and ends those that stay.
    fn fetch(
        &self,
        net: &Net,
        done: Done,
        command: impl Fn(usize, &Namespace) -> Command,
    ) -> Result<Outcome> {
        let mut clients = Clients::at_gate(&net.nodes, &self.logs()?, done, command)?;
        let outcome = clients.run(self.limit(net))?;
        clients.end()?;
        Ok(outcome)
    }

    /// The memory that the node with this number writes to, from 0.
    fn memory_of(&self, number: usize) -> PathBuf {
        self.memory.join(number.to_string())
    }

    fn make_memory(&self, count: usize) -> Result<()> {
        self.drop_memory()?;
        for number in 0..count {
            fs::create_dir(self.memory_of(number))?;
        }
        Ok(())
    }

    fn drop_memory(&self) -> Result<()> {
        for entry in fs::read_dir(&self.memory)? {
            fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }
}

/// Each node holds a copy, and there has to be room for what else runs.
fn check_memory(copies_bytes: u64) -> Result<()> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    let available_bytes = kib
        .context("/proc/meminfo tells what is there")?
        .parse::<u64>()?
        << 10;
    ensure!(
        copies_bytes + copies_bytes / 2 < available_bytes,
        "the nodes' copies take {copies_bytes} bytes, and {available_bytes} bytes of memory are there: \
         use fewer --nodes or a smaller --image-mib"
    );
    Ok(())
}

/// Brings a file, or all below a directory, into the page cache.
fn warm(path: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "find \"$1\" -type f -exec cat {} + > /dev/null", "sh"]);
    tool::run_command(command.arg(path))?;
    Ok(())
}

/// Adds the rows.
fn report(report: &mut Report, outcomes: &Outcomes, image_bytes: u64) {
    for (&count, candidates) in outcomes {
        let bound = bound_seconds(image_bytes, count, LINKS);
        let row = |of: fn(&Figures, f64) -> f64| -> BTreeMap<String, Vec<f64>> {
            let each = candidates.iter().map(|(name, rounds)| {
                let figures = rounds.iter().map(|outcome| of(outcome, bound)).collect();
                ((*name).to_owned(), figures)
            });
            each.collect()
        };
        let mut seconds = row(|outcome, _| outcome.seconds);
        seconds.insert(BOUND.to_owned(), vec![bound]);
        let name = format!("swarm, {count} nodes at {LINK_MBIT} Mbit/s");
        report.add(&name, "seconds", Better::Less, seconds);
        let times = row(|outcome, bound| outcome.seconds / bound);
        let what = format!("{name}, over the bound");
        report.add(&what, "times", Better::Less, times);
        let copies = row(|outcome, _| outcome.head_copies);
        let what = format!("{name}, what the head sent");
        report.add(&what, "copies", Better::Less, copies);
        let busy = candidates.iter().filter_map(|(name, rounds)| {
            let figures: Option<Vec<f64>> = rounds.iter().map(|one| one.busy_percent).collect();
            Some(((*name).to_owned(), figures?))
        });
        let busy = busy.collect();
        let what = format!("{name}, all processors");
        report.add(&what, "% busy", Better::Less, busy);
    }
}

/// What the figure shows: for each candidate the nodes, and MB/s for each of them.
fn lines(outcomes: &Outcomes, image_bytes: u64) -> Vec<Line> {
    let rate = |seconds: f64| image_bytes as f64 / 1e6 / seconds;
    let mut points: BTreeMap<&str, Vec<(u32, f64)>> = BTreeMap::new();
    for (&count, candidates) in outcomes {
        for (name, rounds) in candidates {
            let seconds: Vec<f64> = rounds.iter().map(|outcome| outcome.seconds).collect();
            let point = (count, rate(median(&seconds)));
            points.entry(name).or_default().push(point);
        }
        let bound = bound_seconds(image_bytes, count, LINKS);
        points.entry(BOUND).or_default().push((count, rate(bound)));
    }
    let lines = points.into_iter().map(|(name, points)| Line {
        name: name.to_owned(),
        points,
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_narrowest_of_three() {
        for (count, head, up, down, expected) in [
            // 1 Gbit over the head's link, over a node's, and as ten copies over what
            // all send together.
            (32, 100, 100, 100, 10.0),
            (2, 1000, 100, 100, 10.0),
            (10, 1000, 1000, 20, 50.0),
            (10, 100, 10, 1000, 50.0),
        ] {
            let links = Links {
                head_up_mbit: head,
                node_up_mbit: up,
                node_down_mbit: down,
            };
            let found = bound_seconds(125_000_000, count, links);
            assert!(
                (found - expected).abs() < 1e-6,
                "{count} {links:?}: {found}"
            );
        }
    }
}
