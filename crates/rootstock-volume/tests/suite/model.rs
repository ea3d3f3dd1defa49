//! Random histories, with crashes and faults, against a `Vec<u8>`.

use std::sync::Arc;

use proptest::prelude::*;
use rootstock_store::disk::{Disk, Fault, SimDisk};
use rootstock_volume::{BlockDevice, OpenError, OverlayOptions, SnapshotView, Volume};

use crate::bench_disk::{BLOCK, Setup, Step, arc, read, read_all};

#[derive(Debug, Clone)]
enum Event {
    Do(Step),
    /// Opens it again; what was not flushed is gone.
    Reopen,
    /// Cuts the power and opens what is left.
    Crash {
        seed: u64,
    },
    /// The power goes during one of the next operations of the disk.
    CutSoon {
        operations: u64,
    },
    FailSoon {
        operations: u64,
        full: bool,
    },
    TakeView,
    CheckViews,
    DropView,
    CopyView,
    Read {
        offset: usize,
        len: usize,
    },
}

const BASE_BYTES: usize = 21 * BLOCK + 1536;
const SIZE_BYTES: usize = 40 * BLOCK + 512;

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![(0..42_usize).prop_map(|block| block * BLOCK), 0..SIZE_BYTES,];
    let len = prop_oneof![(0..9_usize).prop_map(|blocks| blocks * BLOCK), 0..3 * BLOCK];
    let place = (offset, len);
    prop_oneof![
        6 => (place.clone(), any::<u64>())
            .prop_map(|((offset, len), seed)| Step::Write { offset, len, seed }),
        1 => (place.clone(), any::<bool>())
            .prop_map(|((offset, len), allocate)| Step::Zero { offset, len, allocate }),
        2 => place.prop_map(|(offset, len)| Step::Discard { offset, len: len * 2 }),
        3 => Just(Step::Flush),
        1 => Just(Step::Reset),
        1 => (1..3 * BLOCK as u64).prop_map(|bytes| Step::Grow { bytes }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => step().prop_map(Event::Do),
        1 => Just(Event::Reopen),
        2 => any::<u64>().prop_map(|seed| Event::Crash { seed }),
        2 => (0..8_u64).prop_map(|operations| Event::CutSoon { operations }),
        2 => (0..8_u64, any::<bool>())
            .prop_map(|(operations, full)| Event::FailSoon { operations, full }),
        2 => Just(Event::TakeView),
        1 => Just(Event::CheckViews),
        1 => Just(Event::DropView),
        1 => Just(Event::CopyView),
        4 => (0..SIZE_BYTES, 0..5 * BLOCK).prop_map(|(offset, len)| Event::Read { offset, len }),
    ]
}

struct Run {
    setup: Setup,
    disk: SimDisk,
    volume: Volume,
    now: Vec<u8>,
    /// What a crash may leave: the last state known to be durable, and those that
    /// may have become so since.
    durable: Vec<Vec<u8>>,
    views: Vec<(SnapshotView, Vec<u8>)>,
    /// No fault was ever planned.
    is_well: bool,
}

impl Run {
    fn new(options: OverlayOptions) -> Self {
        let setup = Setup {
            base: crate::bench_disk::pattern(99, BASE_BYTES),
            size_bytes: SIZE_BYTES as u64,
            options,
        };
        let disk = SimDisk::new();
        let volume = setup.create(Arc::new(disk.clone())).expect("a new volume");
        let now = setup.first();
        Self {
            setup,
            disk,
            volume,
            durable: vec![now.clone()],
            now,
            views: Vec::new(),
            is_well: true,
        }
    }

    fn step(&mut self, step: Step) {
        let step = step.within(self.now.len());
        let after = step.apply(&self.setup.base, &self.now);
        match step.run(&self.volume) {
            Ok(()) => {
                self.now = after;
                if step.is_durable() {
                    self.durable = vec![self.now.clone()];
                } else if self.setup.options.checkpoint_bytes < 1 << 20 {
                    self.durable.push(self.now.clone());
                }
            }
            Err(_) if step.is_durable() => {
                // It is in effect, and may be durable.
                self.now = after.clone();
                self.durable.push(after);
            }
            Err(_) => {
                // Reading may need power that is gone; what counts then is `durable`.
                self.durable.push(after.clone());
                if !self.is_cut() {
                    let found = read_all(&self.volume);
                    assert_eq!(found.len(), self.now.len());
                    for (index, block) in found.chunks(BLOCK).enumerate() {
                        let at = index * BLOCK..index * BLOCK + block.len();
                        assert!(
                            block == &self.now[at.clone()] || block == &after[at],
                            "block {index} is a mix after a failed {step:?}"
                        );
                    }
                    self.durable.pop();
                    self.durable.push(found.clone());
                    self.now = found;
                }
            }
        }
    }

    fn is_cut(&self) -> bool {
        self.disk.list("").is_err()
    }

    fn restart(&mut self, disk: SimDisk) {
        self.views.clear();
        self.disk = disk;
        let opened = self.setup.open(&arc(self.disk.clone()));
        self.volume = opened.unwrap_or_else(|error| {
            assert!(matches!(error, OpenError::Io { .. }), "{error}");
            // A planned fault came while it was opened.
            self.disk = self.disk.crash(11);
            let opened = self.setup.open(&arc(self.disk.clone()));
            opened.expect("the volume opens after whatever happened")
        });
        if self.is_cut() {
            // The cut came in the clearing up after it was opened.
            self.disk = self.disk.crash(12);
            let opened = self.setup.open(&arc(self.disk.clone()));
            self.volume = opened.expect("the volume opens after whatever happened");
        }
        let found = read_all(&self.volume);
        assert!(
            self.durable.contains(&found),
            "what is found is none of the {} states it may be in",
            self.durable.len()
        );
        self.now = found;
        self.durable = vec![self.now.clone()];
    }

    fn event(&mut self, event: Event) {
        if self.is_cut() {
            let disk = self.disk.crash(7);
            self.restart(disk);
        }
        match event {
            Event::Do(step) => self.step(step),
            // Without power to lose, what was written to the disk is on it.
            Event::Reopen => {
                // Nor is what was answered lost, unless it could not be noted; flushed
                // it is not.
                let flushed = self.durable.clone();
                if self.is_well {
                    self.durable.clear();
                }
                self.durable.push(self.now.clone());
                self.restart(self.disk.clone());
                self.durable.extend(flushed);
            }
            Event::Crash { seed } => {
                let disk = self.disk.crash(seed);
                self.restart(disk);
            }
            Event::CutSoon { operations } => {
                self.is_well = false;
                let nth = self.disk.operations() + operations;
                self.disk.fail_at(nth, Fault::PowerCut);
            }
            Event::FailSoon { operations, full } => {
                self.is_well = false;
                let fault = if full { Fault::NoSpace } else { Fault::Io };
                self.disk
                    .fail_at(self.disk.operations() + operations, fault);
            }
            Event::TakeView => match self.volume.snapshot_view() {
                Ok(view) => {
                    self.durable = vec![self.now.clone()];
                    self.views.push((view, self.now.clone()));
                }
                Err(_) => self.durable.push(self.now.clone()),
            },
            Event::CheckViews => {
                for (view, expected) in &self.views {
                    assert_eq!(&read_all(view), expected, "a view never changes");
                }
            }
            Event::DropView => {
                self.views.pop();
            }
            Event::CopyView => self.copy_view(),
            Event::Read { offset, len } => {
                let offset = offset % self.now.len();
                let len = len.min(self.now.len() - offset);
                let found = read(&self.volume, offset as u64, len);
                assert_eq!(found, &self.now[offset..offset + len]);
            }
        }
    }

    fn copy_view(&mut self) {
        let Some((view, expected)) = self.views.last() else {
            return;
        };
        let disk = SimDisk::new();
        view.copy_to(Arc::new(disk.clone()), "v", self.setup.options)
            .expect("a copy on a healthy disk");
        let copy = self
            .setup
            .open(&arc(disk.crash(3)))
            .expect("the copy is durable");
        assert_eq!(&read_all(&copy), expected);
    }

    fn finish(mut self) {
        if self.is_cut() {
            let disk = self.disk.crash(1);
            self.restart(disk);
        }
        assert_eq!(read_all(&self.volume), self.now);
        for (view, expected) in &self.views {
            assert_eq!(&read_all(view), expected, "a view never changes");
        }
        let status = self
            .volume
            .status(0, self.now.len() as u64, 1000)
            .expect("status");
        let mut at = 0;
        for extent in status {
            let end = at + extent.len_bytes as usize;
            if extent.zero {
                assert!(self.now[at..end].iter().all(|byte| *byte == 0));
            }
            at = end;
        }
        assert_eq!(at, self.now.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_is_a_vector_of_bytes(
        events in prop::collection::vec(event(), 1..60),
        compact_early in any::<bool>(),
        checkpoints in any::<bool>(),
    ) {
        let mut run = Run::new(OverlayOptions {
            checkpoint_bytes: if checkpoints { 10 * BLOCK as u64 } else { 1 << 30 },
            log_bytes_min: if compact_early { 400 } else { 1 << 20 },
        });
        for event in events {
            run.event(event);
        }
        run.finish();
    }
}
