//! A unit and those who use it, for tests.

use crate::{
    Access, Action, BlockSize, Identity, InitiatorPort, Limits, LogicalUnit, Naa, NexusHandle,
    NexusId, Reply, Sense, Status, Unit,
};

/// How many blocks the unit has.
pub(crate) const BLOCKS: u64 = 1 << 20;

pub(crate) fn unit() -> Unit {
    Unit {
        block_size: BlockSize::B512,
        blocks: BLOCKS,
        access: Access::ReadWrite,
        limits: Limits::for_transfers(1 << 20, BlockSize::B512),
        identity: Identity {
            product: "Volume".into(),
            revision: "1.0".into(),
            serial: "v-1234".into(),
            naa: Naa::locally_assigned(0x1234),
            target_name: "iqn.2026-11.example:disk".into(),
            portal_group_tag: 1,
            relative_port: 1,
        },
    }
}

pub(crate) fn nexus(number: u8) -> NexusId {
    NexusId {
        initiator: InitiatorPort {
            name: format!("iqn.2026-11.example:host{number}"),
            isid: [0x80, 0, 0, 0, 0, number],
        },
        relative_port: 1,
    }
}

/// A unit, with nexuses that have no attentions left.
pub(crate) struct Bench {
    pub(crate) lu: LogicalUnit,
    pub(crate) handles: Vec<NexusHandle>,
}

impl Bench {
    pub(crate) fn new(unit: Unit, nexuses: u8) -> Self {
        let mut bench = Self {
            lu: LogicalUnit::new(unit, None),
            handles: Vec::new(),
        };
        for number in 0..nexuses {
            bench
                .handles
                .push(bench.lu.attach(nexus(number)).expect("there is room"));
            bench.test_ready(number);
        }
        bench
    }

    pub(crate) fn start(&mut self, number: u8, cdb: &[u8]) -> Action {
        self.lu.start(self.handles[usize::from(number)], cdb)
    }

    pub(crate) fn reply(&mut self, number: u8, cdb: &[u8]) -> Reply {
        match self.start(number, cdb) {
            Action::Done(reply) => reply,
            other => panic!("{cdb:x?} is not over: {other:?}"),
        }
    }

    /// A command with its parameters.
    pub(crate) fn send(&mut self, number: u8, cdb: &[u8], data: &[u8]) -> Action {
        match self.start(number, cdb) {
            Action::Parameters(waiting) => {
                let handle = self.handles[usize::from(number)];
                self.lu.parameters(handle, waiting, data)
            }
            other => other,
        }
    }

    /// The first attention that waits, as code and qualifier.
    pub(crate) fn test_ready(&mut self, number: u8) -> Option<(u8, u8)> {
        let reply = self.reply(number, &[0; 6]);
        reply.sense.map(|sense| sense.code)
    }

    pub(crate) fn attentions(&mut self, number: u8) -> Vec<(u8, u8)> {
        std::iter::from_fn(|| self.test_ready(number)).collect()
    }

    pub(crate) fn status(&mut self, number: u8, cdb: &[u8]) -> Status {
        match self.start(number, cdb) {
            Action::Done(reply) => reply.status,
            _ => Status::Good,
        }
    }
}

pub(crate) fn sense_of(action: &Action) -> Option<Sense> {
    match action {
        Action::Done(reply) => reply.sense,
        _ => None,
    }
}
