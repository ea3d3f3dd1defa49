//! What of the test programs a stage runs, in which order, and what it runs side by side.
//!
//! Most end-to-end tests wait for one emulated machine with one processor: one
//! program after the other would leave the other processors idle.

use std::num::NonZeroUsize;
use std::thread;

use crate::stages::Stage;
use crate::stages::build::{Program, Selection, TESTS_PACKAGE};
use crate::stages::libtest;
use crate::stages::report::{Outcome, Tally};
use crate::stages::side_by_side;

/// The programs that run at once at most, however many processors there are: each
/// may boot guests of a GiB in several of its tests.
const AT_ONCE_MAX: usize = 4;

/// The end-to-end tests that take minutes, the longest first. They begin first, so
/// that none of them is left over at the end with nothing beside it. A name that is
/// lacking here costs time and nothing else.
const LONG: [&str; 19] = [
    "crash_node",
    "crash_cache",
    "heads_gone",
    "swarm",
    "boot_machines",
    "boot_iscsi",
    "boot_installer",
    "boot_nfs",
    "install",
    "disk_cache",
    "fleet",
    "native",
    "local_boot",
    "personal",
    "boot_guard",
    "boot_modes",
    "boot_traces",
    "agent_guest",
    "keep",
];

/// The end-to-end tests that need the machine for themselves.
const ALONE: [&str; 1] = [
    // It measures what a daemon holds while 200 clients leave their answers lying:
    // that follows how fast both get on.
    "e2e_memory",
];

/// A stage's work.
#[derive(Debug, Default)]
pub(crate) struct Queue<'a> {
    /// What may run beside others, in this order.
    together: Vec<Job<'a>>,
    /// What runs after that, each by itself.
    alone: Vec<Job<'a>>,
}

/// What ends with one line in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job<'a> {
    /// What is selected of a program.
    Tests(&'a Program, Selection),
    /// The examples in the documentation of all crates.
    Examples,
}

impl<'a> Queue<'a> {
    /// What `stage` runs of all `programs`.
    pub(crate) fn of(stage: Stage, programs: &'a [Program]) -> Self {
        let selected = programs
            .iter()
            .filter_map(|program| Some(Job::Tests(program, program.selection(stage)?)));
        let examples = (stage == Stage::Unit).then_some(Job::Examples);
        // The crates' own programs run their tests on all processors by themselves.
        let is_alone = |job: &Job<'a>| stage == Stage::Unit || job.is_alone();
        let (alone, mut together): (Vec<_>, Vec<_>) = selected.chain(examples).partition(is_alone);
        // Stable: what is not named keeps the order in which it came.
        together.sort_by_key(Job::turn);
        Self { together, alone }
    }

    /// Runs all of it, and shows each program's result when it ends.
    pub(crate) fn run(&self) -> Tally {
        let mut tally = Tally::default();
        side_by_side::run(&self.together, at_once(), Job::run, |outcome| {
            tally.record(&outcome);
        });
        side_by_side::run(&self.alone, NonZeroUsize::MIN, Job::run, |outcome| {
            tally.record(&outcome);
        });
        tally
    }
}

impl Job<'_> {
    fn run(&self) -> Outcome {
        match *self {
            Self::Tests(program, selection) => libtest::run_program(program, selection),
            Self::Examples => libtest::run_examples(),
        }
    }

    fn is_alone(&self) -> bool {
        self.end_to_end().is_some_and(|name| ALONE.contains(&name))
    }

    /// Its place among those that may run beside others.
    fn turn(&self) -> usize {
        let long = self
            .end_to_end()
            .and_then(|name| LONG.iter().position(|long| *long == name));
        long.unwrap_or(LONG.len())
    }

    /// The name of its file, if it is one of the end-to-end tests.
    fn end_to_end(&self) -> Option<&str> {
        match self {
            Self::Tests(program, _) if program.integration && program.package == TESTS_PACKAGE => {
                Some(&program.target)
            }
            Self::Tests(..) | Self::Examples => None,
        }
    }
}

/// How many programs run at once here.
fn at_once() -> NonZeroUsize {
    let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    processors.min(const { NonZeroUsize::new(AT_ONCE_MAX).expect("more than none") })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::command;

    fn program(package: &str, target: &str) -> Program {
        Program {
            package: package.to_owned(),
            target: target.to_owned(),
            integration: true,
            path: PathBuf::new(),
            directory: PathBuf::new(),
        }
    }

    fn names<'a>(jobs: &'a [Job<'_>]) -> Vec<&'a str> {
        let name = |job: &'a Job<'_>| match job {
            Job::Tests(program, _) => program.target.as_str(),
            Job::Examples => "examples",
        };
        jobs.iter().map(name).collect()
    }

    #[test]
    fn long_programs_begin_first_and_some_run_alone() {
        let mut programs = vec![program(TESTS_PACKAGE, "cli_commands")];
        let mut named: Vec<&str> = LONG.iter().chain(&ALONE).copied().collect();
        named.sort_unstable();
        programs.extend(named.iter().map(|name| program(TESTS_PACKAGE, name)));
        programs.push(program(TESTS_PACKAGE, "keep"));
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        for stage in [Stage::Protocol, Stage::Crash, Stage::EndToEnd] {
            let queue = Queue::of(stage, &programs);
            let found = names(&queue.together);
            let long = found.iter().filter(|name| LONG.contains(name)).count();
            assert!(found[..long].iter().is_sorted_by_key(|name| {
                let place = LONG.iter().position(|long| long == name);
                place.expect("the long ones are in front")
            }));
            together.extend(found.iter().map(|name| (*name).to_owned()));
            alone.extend(names(&queue.alone).iter().map(|name| (*name).to_owned()));
        }
        together.sort_unstable();
        alone.sort_unstable();
        let mut expected = [&LONG[..], &["cli_commands", "keep"]].concat();
        expected.sort_unstable();
        assert_eq!(together, expected);
        let mut expected = ALONE.to_vec();
        expected.sort_unstable();
        assert_eq!(alone, expected);
    }

    #[test]
    fn only_the_end_to_end_tests_have_places_of_their_own() {
        let programs = [
            program("rootstock-core", "a"),
            program("rootstock-store", ALONE[0]),
        ];
        let unit = Queue::of(Stage::Unit, &programs);
        assert_eq!(names(&unit.together), [""; 0]);
        assert_eq!(names(&unit.alone), ["a", ALONE[0], "examples"]);
        let crash = Queue::of(Stage::Crash, &programs);
        assert_eq!(names(&crash.together), ["a", ALONE[0]]);
        assert_eq!(names(&crash.alone), [""; 0]);
    }

    #[test]
    fn what_is_named_here_is_there() {
        for name in LONG.iter().chain(&ALONE) {
            let file = command::root().join(format!("tests/tests/{name}.rs"));
            assert!(file.exists(), "{name} has gone");
        }
    }
}
