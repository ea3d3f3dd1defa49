//! Arbitrary commands of several initiators, with their parameters, to one SCSI
//! unit: what is asked of the volume lies inside of it, and the reservations stay
//! sound through resets and restarts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_core::ByteRange;
use rootstock_scsi::{
    Access, Action, BlockSize, DataOut, Identity, InitiatorPort, Limits, LogicalUnit, Naa,
    NexusHandle, NexusId, Provisioning, Reply, Reservations, SenseFormat, Status, Unit,
    reply_without_unit,
};

const NEXUSES: u8 = 3;
const BLOCKS: u64 = 1 << 20;
const CDB_BYTES: usize = 16;

// The first byte chooses the unit. Then come steps: a byte that says whose command
// it is, or which event; for a command its 16 bytes, the length of its data, and
// the data.
fuzz_target!(|data: &[u8]| {
    let Some((&flags, mut rest)) = data.split_first() else {
        return;
    };
    let mut bench = Bench::new(unit(flags), None);
    while let Some((&step, more)) = rest.split_first() {
        rest = if step < 0xf0 {
            bench.command(step % NEXUSES, more)
        } else {
            bench.event(step, more)
        };
    }
});

struct Bench {
    lu: LogicalUnit,
    handles: Vec<NexusHandle>,
}

impl Bench {
    fn new(unit: Unit, kept: Option<Reservations>) -> Self {
        let mut lu = LogicalUnit::new(unit, kept);
        let handles = (0..NEXUSES)
            .map(|number| lu.attach(nexus(number)).expect("there is room"))
            .collect();
        Self { lu, handles }
    }

    fn command<'a>(&mut self, number: u8, rest: &'a [u8]) -> &'a [u8] {
        let (cdb, rest) = rest.split_at(rest.len().min(CDB_BYTES));
        let Some((&len, rest)) = rest.split_first() else {
            return &[];
        };
        let (data, rest) = rest.split_at(rest.len().min(len.into()));
        let handle = self.handles[usize::from(number)];
        let action = self.lu.start(handle, cdb);
        self.check(&action);
        if let Action::Parameters(waiting) = action {
            assert!(action.data_out() != DataOut::None);
            // What is too long is cut by the transport.
            let wanted = action.data_out().bytes() as usize;
            let data = &data[..data.len().min(wanted)];
            let after = self.lu.parameters(handle, waiting, data);
            assert!(!matches!(after, Action::Parameters(_)));
            self.check(&after);
        }
        check_reply(&reply_without_unit(cdb, &[1, 300]));
        rest
    }

    fn event<'a>(&mut self, step: u8, rest: &'a [u8]) -> &'a [u8] {
        let number = usize::from(step % NEXUSES);
        match step {
            0xf0..=0xf3 => self.lu.reset(),
            0xf4..=0xf7 => self.lu.resize(BLOCKS >> (step & 3)),
            0xf8..=0xfb => {
                self.lu.detach(self.handles[number]);
                let again = self.lu.attach(nexus(number as u8));
                self.handles[number] = again.expect("there is room");
            }
            _ => self.restart(),
        }
        rest
    }

    /// What is kept is read again, and then is whole or nothing.
    fn restart(&mut self) {
        let before = self.lu.reservations().clone();
        let text = serde_json::to_string(&before).expect("it is plain");
        let kept: Reservations = serde_json::from_str(&text).expect("it was written so");
        assert_eq!(kept, before);
        *self = Self::new(self.lu.unit().clone(), Some(kept));
        let after = self.lu.reservations();
        assert_eq!(after.revision(), before.revision());
        assert!(after.is_empty() || before.clone().after_restart() == *after);
    }

    fn check(&self, action: &Action) {
        match action {
            Action::Done(reply) => check_reply(reply),
            Action::Persist { state, .. } => assert_eq!(**state, *self.lu.reservations()),
            Action::ReportLuns(report) => check_reply(&report.reply(&[0, 1, 255, 256])),
            Action::LbaStatus(status) => {
                self.check_range(status.range);
                let some = [
                    (4096, Provisioning::Mapped),
                    (777, Provisioning::Deallocated),
                ];
                let reply = status.reply(some.into_iter().cycle().take(40));
                assert!(reply.data_in.len() <= 8 + 16 * status.descriptors_max);
            }
            Action::Read { range }
            | Action::Write { range, .. }
            | Action::WriteAndVerify { range }
            | Action::Verify { range }
            | Action::Compare { range, .. }
            | Action::CompareAndWrite { range, .. }
            | Action::OrWrite { range, .. }
            | Action::Zero { range }
            | Action::Prefetch { range } => self.check_range(*range),
            Action::Fill { range, block } => {
                self.check_range(*range);
                assert_eq!(block.len(), self.lu.unit().block_size.bytes() as usize);
            }
            Action::Unmap { ranges } => {
                assert!(!ranges.is_empty());
                ranges.iter().for_each(|range| self.check_range(*range));
            }
            Action::Flush | Action::Parameters(_) => {}
        }
        assert!(action.data_out().bytes() <= 2 << 20);
    }

    fn check_range(&self, range: ByteRange) {
        let unit = self.lu.unit();
        let block = u64::from(unit.block_size.bytes());
        assert!(range.len > 0 && range.start % block == 0 && range.len % block == 0);
        assert!(range.start < unit.size_bytes() && range.len <= unit.size_bytes() - range.start);
    }
}

fn check_reply(reply: &Reply) {
    assert_eq!(
        reply.sense.is_some(),
        reply.status == Status::CheckCondition
    );
    assert!(reply.data_in.is_empty() || reply.status == Status::Good);
    if let Some(sense) = reply.sense {
        assert_eq!(sense.bytes(SenseFormat::Fixed).len(), 18);
        let bytes = sense.bytes(SenseFormat::Descriptor);
        assert_eq!(usize::from(bytes[7]), bytes.len() - 8);
    }
}

fn nexus(number: u8) -> NexusId {
    NexusId {
        initiator: InitiatorPort {
            name: format!("iqn.2026-11.example:host{number}"),
            isid: [number; 6],
        },
        relative_port: 1,
    }
}

fn unit(flags: u8) -> Unit {
    let block_size = if flags & 1 == 0 {
        BlockSize::B512
    } else {
        BlockSize::B4096
    };
    let access = if flags & 2 == 0 {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    Unit {
        block_size,
        blocks: BLOCKS,
        access,
        limits: Limits::for_transfers(1 << 20, block_size),
        identity: Identity {
            product: "Volume".into(),
            revision: "1".into(),
            serial: "1".into(),
            naa: Naa::locally_assigned(1),
            target_name: "iqn.2026-11.example:disk".into(),
            portal_group_tag: 1,
            relative_port: 1,
        },
    }
}
