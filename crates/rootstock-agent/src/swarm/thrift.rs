//! What a machine spares.

use std::path::Path;

use rootstock_api::swarm::{Metered, SwarmOrder};

use crate::metered::Line;
use crate::power::Power;

/// Whether the machine takes and gives nothing: on its battery, and over a line that is
/// paid for by the byte.
pub(super) struct Thrift {
    power: Power,
    line: Line,
}

impl Thrift {
    pub(super) fn new(run: &Path) -> Self {
        Self {
            power: Power::new(),
            line: Line::new(run),
        }
    }

    pub(super) fn abstains(&mut self, order: &SwarmOrder) -> bool {
        let is_metered = match order.metered {
            Metered::Yes => true,
            Metered::No => false,
            Metered::Auto => self.line.is_metered(),
        };
        is_metered || self.power.is_battery()
    }

    pub(super) fn is_on_battery(&mut self) -> bool {
        self.power.is_battery()
    }
}
