//! Which version the machine starts from its own disk, as versions come and go.

use rootstock_api::boot::{NextVersion, StartReport};

use crate::console;
use crate::local::keep::Starter;
use crate::local::write::Written;

/// What the machine starts from its disk.
pub(crate) struct Starts {
    /// What writes it there, if the disk was divided for it.
    starter: Option<Starter>,
    /// What it starts by now, or never will.
    settled: Option<NextVersion>,
    /// The same for the site, once something is known.
    report: Option<StartReport>,
}

impl Starts {
    /// Nothing yet.
    pub(crate) fn new(starter: Option<Starter>) -> Self {
        Self {
            starter,
            settled: None,
            report: None,
        }
    }

    /// How it does; nothing on a disk that no machine starts from.
    pub(crate) fn report(&self) -> Option<StartReport> {
        self.report.clone()
    }

    /// Has the machine start this version when no server answers, unless it does. All
    /// of it is on the disk. What fails now is tried at the next call.
    pub(crate) fn tend(&mut self, version: &NextVersion) {
        let Some(starter) = &self.starter else {
            return;
        };
        if self.settled.as_ref() == Some(version) {
            return;
        }
        let spec = version.spec();
        let disk = starter.disk();
        let kept = starter.keep(version);
        if kept
            .as_ref()
            .map_or_else(|error| !error.may_pass(), |_| true)
        {
            self.settled = Some(version.clone());
        }
        let report = self.report.get_or_insert_default();
        match kept {
            Ok(written) => {
                if written == Written::Now {
                    console::info(format_args!(
                        "{spec} starts from {disk} when no server answers"
                    ));
                }
                *report = StartReport {
                    version: Some(spec),
                    trouble: None,
                };
            }
            Err(error) => {
                let why = format!("{spec}: {}", console::chain(&error));
                if report.trouble.as_ref() != Some(&why) {
                    console::warn(format_args!("{disk} does not start {why}"));
                    report.trouble = Some(why);
                }
            }
        }
    }
}
