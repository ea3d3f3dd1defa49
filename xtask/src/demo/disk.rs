//! The demo's last part: a machine with a disk of its own, through a first and a second
//! boot, an update and the way back.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rootstock_core::units::HumanBytes;
use rootstock_tests::golden::UPGRADE;
use rootstock_tests::lan::Lan;
use rootstock_tests::{tool, wait};

use crate::demo::machines::{self, Machine, Moment};
use crate::demo::programs::Programs;
use crate::demo::progress::{Progress, note};
use crate::demo::report::seconds;
use crate::demo::table::{self, Column};
use crate::demo::work::Work;

const NAME: &str = "desk";
const NUMBER: u8 = 5;
/// The tag that the machine runs.
const TAG: &str = "production";
/// Room for both versions, twice.
const DISK_BYTES: u64 = 4 << 30;
/// The recipe was begun minutes ago, when version 2 was imported.
const RECIPE_LIMIT: Duration = Duration::from_secs(300);
/// What the first stage says when all of the version is on the disk.
const COMPLETE: &str = "the image is complete on this machine's disk";

const COLUMNS: [Column; 4] = [
    Column::left("what", 38),
    Column::right("seconds", 8),
    Column::right("kernel, 1st stage", 17),
    Column::right("image data", 10),
];

/// The machine, which is off.
pub(crate) struct Desk {
    disk: PathBuf,
}

/// What a step took and moved: a row of the table.
struct Cost {
    what: &'static str,
    took: Duration,
    first_stage_bytes: Option<u64>,
    image_bytes: u64,
}

impl Desk {
    /// Makes it a node that runs version 1, and prepares its disk with the program with
    /// which an administrator does that on the machine.
    ///
    /// # Errors
    /// When the daemon or the program refuses.
    pub(crate) fn prepare(lan: &Lan, work: &Work, programs: &Programs) -> Result<Self> {
        let disk = work.bulk.join("desk.disk");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let mut prepare = Command::new(&programs.agent);
        let said = tool::run_command(prepare.args(["cache", "create"]).arg(&disk))?;
        note(said.trim());
        point_tag(lan, 1)?;
        lan.add_node(NAME, NUMBER, &format!("debian@{TAG}"))?;
        Ok(Self { disk })
    }

    /// Does all of its steps, and prints what each took and moved.
    ///
    /// # Errors
    /// When a step does not happen, or a version is not what it should be.
    pub(crate) fn show(&self, lan: &Lan, progress: &Progress) -> Result<()> {
        let boot = || machines::boot_beside_disk(lan, NAME, NUMBER, &self.disk);

        let mut machine = progress.step("booting it from version 1, its disk being empty", boot)?;
        let first = Cost::of_boot("first boot, of version 1, to login", &machine)?;
        let fill = progress.step("waiting until all of version 1 is on its disk", || {
            machine.hear(COMPLETE)?;
            let moment = machine.moment(lan)?;
            let what = "the same, until its disk is complete";
            Ok(Cost::until(moment, what, &machine))
        })?;
        machine.pull_plug()?;

        let mut machine = progress.step("booting it again", boot)?;
        let second = Cost::of_boot("second boot, of version 1, to login", &machine)?;
        let update = progress.step("moving the tag to version 2 while version 1 runs", || {
            wait_for_recipe(lan)?;
            Cost::of(lan, "update to version 2, while 1 runs", || {
                fetch(lan, &mut machine, 2)
            })
        })?;
        machine.pull_plug()?;

        let mut machine = progress.step("booting version 2", boot)?;
        let updated = Cost::of_boot("first boot of version 2, to login", &machine)?;
        let back = progress.step("moving the tag back while version 2 runs", || {
            let cost = Cost::of(lan, "rollback to version 1, while 2 runs", || {
                fetch(lan, &mut machine, 1)
            })?;
            check_upgrade(&mut machine, Upgrade::There)?;
            Ok(cost)
        })?;
        machine.pull_plug()?;

        let machine = progress.step("booting version 1, which lacks what was new", || {
            let mut machine = boot()?;
            machine.hear(COMPLETE)?;
            check_upgrade(&mut machine, Upgrade::NotThere)?;
            Ok(machine)
        })?;
        let rolled_back = Cost::of_boot("boot of version 1 again, to login", &machine)?;
        machine.pull_plug()?;

        let costs = [first, fill, second, update, updated, back, rolled_back];
        table::print(&COLUMNS, &costs.map(Cost::row));
        Ok(())
    }
}

impl Cost {
    fn of_boot(what: &'static str, machine: &Machine) -> Result<Self> {
        let prompt = machine.prompt.context("the machine has no prompt")?;
        Ok(Self::until(prompt, what, machine))
    }

    /// From power-on.
    fn until(moment: Moment, what: &'static str, machine: &Machine) -> Self {
        Self {
            what,
            took: moment.after,
            first_stage_bytes: Some(machine.first_stage_bytes()),
            image_bytes: machine.image_bytes(moment),
        }
    }

    /// Of something that the machine does while it runs: all that is sent to it.
    fn of(lan: &Lan, what: &'static str, step: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (before_bytes, start) = (lan.sent()?.to_machine(NUMBER), Instant::now());
        step()?;
        Ok(Self {
            what,
            took: start.elapsed(),
            first_stage_bytes: None,
            image_bytes: lan.sent()?.to_machine(NUMBER) - before_bytes,
        })
    }

    fn row(self) -> Vec<String> {
        let bytes = |bytes: u64| HumanBytes(bytes).to_string();
        let first_stage = self.first_stage_bytes;
        vec![
            self.what.to_owned(),
            seconds(self.took),
            first_stage.map_or_else(|| "-".to_owned(), bytes),
            bytes(self.image_bytes),
        ]
    }
}

/// Makes this version the one that the machine is to run.
fn point_tag(lan: &Lan, version: u32) -> Result<()> {
    let version = format!("debian:{version}");
    lan.daemon.run(["image", "tag", &version, TAG])?;
    Ok(())
}

/// Has a running machine fetch what it lacks of another version.
fn fetch(lan: &Lan, machine: &mut Machine, version: u32) -> Result<()> {
    point_tag(lan, version)?;
    machine.hear(&format!("debian:{version} is on this machine's disk"))
}

fn wait_for_recipe(lan: &Lan) -> Result<()> {
    wait::until("the recipe of version 2", RECIPE_LIMIT, || {
        let diff = lan.daemon.json(["image", "diff", "debian:1", "debian:2"])?;
        Ok(diff["recipe"]["wire_bytes"].as_u64())
    })?;
    Ok(())
}

/// Whether what version 2 has more is on the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upgrade {
    There,
    NotThere,
}

fn check_upgrade(machine: &mut Machine, wanted: Upgrade) -> Result<()> {
    machine.log_in()?;
    let program = UPGRADE[1];
    let found = machine.ask(&format!("command -v {program} || echo none"))?;
    let is_there = if found == "none" {
        Upgrade::NotThere
    } else {
        Upgrade::There
    };
    ensure!(
        is_there == wanted,
        "{program} is only in version 2, but the machine says {found:?}"
    );
    note(&format!("{NAME} says where {program} is: {found}"));
    Ok(())
}
