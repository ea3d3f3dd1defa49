//! What a storm of boots would take, for people who plan one: the simulator with their
//! numbers.
//!
//! An image has tens of thousands of chunks, and a run takes as long as all machines'
//! chunks together. So fewer are simulated, of the size that they have: over links that
//! are slower, so that times stay what they are, and where links would become slower
//! than any that members are made for, over a shorter time besides, which is multiplied
//! in the end. Latencies and the timers of members stay as they are. Of more machines than
//! can be simulated some racks stand for all, with as much less of the head's link, and
//! of a larger rack some machines. What all that does to an estimate is what tests compare
//! with runs of all chunks and all machines.

use std::num::NonZeroU64;

use super::{Outcome, Rate, Scenario, Then, Work, bound};
use crate::time::{Span, Time};

/// Chunks that a machine asks for at once ahead of its boot, as the agent does.
const HANDFUL: u64 = 32;

/// Chunks that are simulated at most, of a machine and of all.
const CHUNKS_MAX: u64 = 1024;
const ALL_CHUNKS_MAX: u64 = 100_000;

/// Machines that are simulated at most.
const MACHINES_MAX: usize = 300;

/// Below that an estimate says little.
const CHUNKS_MIN: u64 = 48;

/// A simulation of what takes long lasts as long at least, in simulated time: longer than
/// any of the timers of members that matter.
const LASTS_MIN: Span = Span::seconds(10);

/// Reading boots takes less: so many times as many chunks of them.
const BOOT_CHUNKS_TIMES: u64 = 2;

/// How far a forecast is, is said in parts of this; boots are a part of it.
pub const WHOLE: u64 = 1000;
const LOGIN_PART: u64 = 4;

/// When a run is given up: after so many times the least that it can take.
const BOUNDS_MAX: u64 = 20;
const LIMIT_MIN: Span = Span::seconds(600);

/// A storm that is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many machines there are.
    pub nodes: usize,
    /// In how many racks of about the same size.
    pub racks: usize,
    /// Bytes of the version as they travel.
    pub bytes: u64,
    /// How many chunks these are.
    pub chunks: NonZeroU64,
    /// What a boot reads of them.
    pub boot_bytes: u64,
    /// What the head's link carries, each way.
    pub head_rate: Rate,
    /// What a machine's link carries, each way.
    pub node_rate: Rate,
    /// The last machine is switched on so long after the first.
    pub spread: Span,
    /// What machines have when it begins.
    pub begin: Begin,
    /// Owners of a chunk in each rack.
    pub copies: usize,
    /// What all choices follow from.
    pub seed: u64,
}

/// What machines have when a storm begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Nothing: they are off, and their disks are empty.
    Off,
    /// What their boot reads: they run.
    Booted,
}

/// What a storm is taken to cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Until all boot sets are there; nothing when they were at the beginning.
    pub login: Option<Stage>,
    /// Until everybody has all.
    pub complete: Stage,
}

/// A part of a storm, from when the first machine is switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What each machine fetches.
    pub bytes: u64,
    /// When the first machine had it, the median one and the last, of those that had it
    /// when the run ended.
    pub first: Span,
    /// The median.
    pub median: Span,
    /// The last.
    pub last: Span,
    /// How many had it.
    pub finished: usize,
    /// How many machines were simulated.
    pub machines: usize,
    /// The least that the last can take.
    pub bound: Span,
    /// Bytes of chunks that left the head.
    pub head_bytes: u64,
    /// How many chunks were simulated for each machine, of `chunks`.
    pub simulated: u64,
    /// How many chunks there are.
    pub chunks: u64,
}

/// How many chunks stand for how many, and one second for how many.
#[derive(Debug, Clone, Copy)]
struct Scale {
    simulated: u64,
    chunks: u64,
    seconds: u64,
}

impl Scale {
    /// So many chunks of all at most, which take at least `bound` to come.
    fn new(chunks: u64, max: u64, bound: Span) -> Self {
        let simulated = chunks.min(max.max(CHUNKS_MIN)).max(1);
        let seconds = (bound.0 / LASTS_MIN.0).clamp(1, (chunks / simulated).max(1));
        Self {
            simulated,
            chunks,
            seconds,
        }
    }

    /// As much less of a number of chunks, but some.
    fn chunks(self, chunks: u64) -> u64 {
        self.down(chunks).max(1)
    }

    /// As much less of a rate as makes up for the chunks and the time.
    fn rate(self, rate: Rate) -> Rate {
        self.down(rate.saturating_mul(self.seconds)).max(1)
    }

    fn down(self, number: u64) -> u64 {
        let less = u128::from(number) * u128::from(self.simulated) / u128::from(self.chunks);
        u64::try_from(less).unwrap_or(u64::MAX)
    }

    fn bytes(self, simulated: u64) -> u64 {
        let more = u128::from(simulated) * u128::from(self.chunks) / u128::from(self.simulated);
        u64::try_from(more).unwrap_or(u64::MAX)
    }

    fn time(self, simulated: Time) -> Span {
        Span(simulated.0.saturating_mul(self.seconds))
    }
}

impl Plan {
    /// Simulates it, and says now and then how far that is, of [`WHOLE`].
    #[must_use]
    pub fn forecast(&self, watch: &mut dyn FnMut(u64)) -> Forecast {
        let part = self.part(MACHINES_MAX);
        let share = (ALL_CHUNKS_MAX / part.nodes as u64).min(CHUNKS_MAX);
        self.forecast_with(&part, share, watch)
    }

    /// The same by a part of the machines, with so many chunks of each at most.
    pub(super) fn forecast_with(
        &self,
        part: &Self,
        max: u64,
        watch: &mut dyn FnMut(u64),
    ) -> Forecast {
        let boot_max = (max * BOOT_CHUNKS_TIMES).min(CHUNKS_MAX);
        let login = (self.begin == Begin::Off)
            .then(|| self.login(part, boot_max, &mut |done| watch(done / LOGIN_PART)));
        let begun = login.as_ref().map_or(0, |_| WHOLE / LOGIN_PART);
        let scale = Scale::new(self.chunks.get(), max, part.bound(self.bytes));
        let scenario = part.fill_scenario(scale);
        let outcome = run(&scenario, &mut |done| {
            watch(begun + done * (WHOLE - begun) / WHOLE);
        });
        let complete = self.stage(part, self.fill_bytes(), scale, &outcome);
        Forecast { login, complete }
    }

    /// So many machines of it at most, which fare as all do: whole racks, or some of one.
    pub(super) fn part(&self, max: usize) -> Self {
        let racks = self.racks.clamp(1, self.nodes.max(1));
        let some = (max * racks / self.nodes.max(1)).clamp(1, racks);
        Self {
            nodes: (self.nodes * some / racks).clamp(1, max),
            racks: some,
            head_rate: (self.head_rate / racks as u64 * some as u64).max(1),
            ..self.clone()
        }
    }

    /// Boots alone, of which more chunks can be simulated.
    fn login(&self, part: &Self, max: u64, watch: &mut dyn FnMut(u64)) -> Stage {
        let scale = Scale::new(self.boot_chunks(), max, part.bound(self.boot_bytes));
        let scenario = Scenario {
            chunks: scale.simulated as usize,
            work: Work::Storm {
                chunks: scale.simulated as usize,
                handful: scale.chunks(HANDFUL) as usize,
                then: Then::Stay,
            },
            ..part.scenario(scale)
        };
        let outcome = run(&scenario, watch);
        self.stage(part, self.boot_bytes, scale, &outcome)
    }

    fn fill_scenario(&self, scale: Scale) -> Scenario {
        let boot = scale.chunks(self.boot_chunks()).min(scale.simulated) as usize;
        let (holds, work) = match self.begin {
            Begin::Booted => (boot, Work::Fill),
            Begin::Off => {
                let work = Work::Storm {
                    chunks: boot,
                    handful: scale.chunks(HANDFUL) as usize,
                    then: Then::Fill,
                };
                (0, work)
            }
        };
        Scenario {
            chunks: scale.simulated as usize,
            holds,
            work,
            ..self.scenario(scale)
        }
    }

    fn scenario(&self, scale: Scale) -> Scenario {
        let racks = self.racks.clamp(1, self.nodes.max(1));
        let each = |rack| self.nodes / racks + usize::from(rack < self.nodes % racks);
        let spread = Span(self.spread.0 / scale.seconds);
        let least = self.bound(self.bytes).0 / scale.seconds;
        let limit = Span(least.saturating_mul(BOUNDS_MAX)).max(LIMIT_MIN);
        Scenario {
            seed: self.seed,
            racks: (0..racks).map(each).collect(),
            wire_bytes: self.wire_bytes(),
            head_rate: scale.rate(self.head_rate),
            node_rate: scale.rate(self.node_rate),
            copies: self.copies,
            stagger: spread,
            limit: Time(spread.0) + limit,
            ..Scenario::default()
        }
    }

    fn stage(&self, part: &Self, bytes: u64, scale: Scale, outcome: &Outcome) -> Stage {
        let racks = self.racks.clamp(1, self.nodes.max(1));
        let head_bytes = scale.bytes(outcome.head_chunk_bytes);
        let done = outcome.done.iter().flatten();
        let mut times: Vec<Span> = done.map(|time| scale.time(*time)).collect();
        times.sort_unstable();
        let at = |place: usize| times.get(place).copied().unwrap_or_default();
        Stage {
            bytes,
            first: at(0),
            median: at(times.len() / 2),
            last: at(times.len().saturating_sub(1)),
            finished: times.len() * self.nodes / part.nodes,
            machines: part.nodes,
            bound: self.bound(bytes),
            head_bytes: head_bytes.saturating_mul(racks as u64) / part.racks as u64,
            simulated: scale.simulated,
            chunks: scale.chunks,
        }
    }

    fn bound(&self, bytes: u64) -> Span {
        bound(bytes, self.nodes as u64, self.head_rate, self.node_rate)
    }

    fn wire_bytes(&self) -> u32 {
        let most = u64::from(crate::wire::CHUNK_BYTES_MAX);
        (self.bytes / self.chunks).clamp(1, most) as u32
    }

    fn boot_chunks(&self) -> u64 {
        let boot = self.boot_bytes.div_ceil(u64::from(self.wire_bytes()));
        boot.clamp(1, self.chunks.get())
    }

    fn fill_bytes(&self) -> u64 {
        match self.begin {
            Begin::Off => self.bytes,
            Begin::Booted => self.bytes.saturating_sub(self.boot_bytes),
        }
    }
}

fn run(scenario: &Scenario, watch: &mut dyn FnMut(u64)) -> Outcome {
    scenario.run_watched(&mut |got, of| watch(got * WHOLE / of.max(1)))
}
