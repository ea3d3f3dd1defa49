//! The demo's machines that boot from the network, and how they are watched.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use rootstock_api::boot::BootStep;
use rootstock_api::{BootEvent, BootList};
use rootstock_core::units::HumanBytes;
use rootstock_tests::golden::PASSWORD;
use rootstock_tests::lan::{Lan, Sent};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{http, undo, wait};
use serde_json::Value;

use crate::demo::programs::Programs;
use crate::demo::store::WRITTEN;
use crate::demo::table::{Column, LiveTable, Row};
use crate::demo::work::Work;

/// Names, numbers on the network, and firmware.
const MACHINES: [(&str, u8, Firmware); 4] = [
    ("bios1", 1, Firmware::Bios),
    ("bios2", 2, Firmware::Bios),
    ("uefi1", 3, Firmware::UefiPxe),
    ("uefi2", 4, Firmware::UefiPxe),
];
/// Four emulated machines on two cores take a minute and a half to their prompts.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const SHELL_LIMIT: Duration = Duration::from_secs(120);
/// How often consoles and the server are looked at while machines boot.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What is shown of the console of a machine that does not come up.
const LAST_LINES: usize = 12;

const COLUMNS: [Column; 5] = [
    Column::left("machine", 7),
    Column::left("firmware", 8),
    Column::left("step", 28),
    Column::right("seconds", 7),
    Column::right("bytes", 8),
];

/// A machine on its way.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    number: u8,
    firmware: Firmware,
    on: PoweredOn,
    since: Instant,
    since_time: Timestamp,
    steps: Vec<BootEvent>,
    /// What was sent to it before it was powered on.
    before_bytes: u64,
    /// What was sent to it since.
    received_bytes: u64,
    /// When the login prompt stood on the serial line, once it was seen.
    pub(crate) prompt: Option<Moment>,
}

/// How far a machine had come at a moment.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// From power-on.
    pub(crate) after: Duration,
    /// All that was sent to the machine by then.
    received_bytes: u64,
}

/// Starts the daemon again on the data it has, as all there is on a network of its own.
///
/// # Errors
/// When it does not come up.
pub(crate) fn open_lan(work: &Work, programs: &Programs) -> Result<Lan> {
    let lan = Lan::around(work.daemon(programs), &programs.agent, "dhcp", "")?;
    for (name, number, _) in MACHINES {
        lan.add_node(name, number, "debian")?;
        lan.plug_in(number)?;
    }
    Ok(lan)
}

/// Powers all on, and shows how they come up until each is.
///
/// # Errors
/// When one does not; the message says how far it came.
pub(crate) fn boot(lan: &Lan) -> Result<Vec<Machine>> {
    let machines = MACHINES
        .iter()
        .map(|(name, number, firmware)| {
            let on = lan.power_on(name, *number, *firmware)?;
            Machine::new(lan, name, *number, *firmware, on)
        })
        .collect::<Result<Vec<Machine>>>()?;
    come_up(lan, machines)
}

/// Powers a machine on that has a disk of its own, and shows how it comes up.
///
/// # Errors
/// As for [`boot`].
pub(crate) fn boot_beside_disk(
    lan: &Lan,
    name: &'static str,
    number: u8,
    disk: &Path,
) -> Result<Machine> {
    let on = lan.power_on_beside_disk(name, number, disk)?;
    let machine = Machine::new(lan, name, number, Firmware::Bios, on)?;
    let mut machines = come_up(lan, vec![machine])?;
    machines.pop().context("one machine was powered on")
}

fn come_up(lan: &Lan, mut machines: Vec<Machine>) -> Result<Vec<Machine>> {
    let mut table = LiveTable::new(&COLUMNS);
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        undo::stop_if_leaving();
        let sent = lan.sent()?;
        for machine in &mut machines {
            machine.look(lan, &sent)?;
        }
        table.show(machines.iter().map(Machine::row).collect())?;
        if machines.iter().all(Machine::has_come_up) {
            return Ok(machines);
        }
        if Instant::now() >= deadline {
            bail!("{}", late(&machines));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Logs in to each with the password; each must have its own name and `text` in [`WRITTEN`].
///
/// # Errors
/// When one lets nobody in or has something else.
pub(crate) fn log_in(machines: &mut [Machine], text: &str) -> Result<()> {
    for machine in machines {
        let name = machine.name;
        machine.log_in()?;
        let own = machine.ask("hostname")?;
        ensure!(own == name, "{name} calls itself {own:?}");
        let read = machine.ask(&format!("cat {WRITTEN}"))?;
        ensure!(
            read == text,
            "on {name} the file should say {text:?}, but says {read:?}"
        );
    }
    Ok(())
}

/// Pulls the plug of each.
///
/// # Errors
/// When one is off already.
pub(crate) fn pull_plugs(machines: Vec<Machine>) -> Result<()> {
    machines.into_iter().try_for_each(Machine::pull_plug)
}

impl Machine {
    fn new(
        lan: &Lan,
        name: &'static str,
        number: u8,
        firmware: Firmware,
        on: PoweredOn,
    ) -> Result<Self> {
        Ok(Self {
            name,
            number,
            firmware,
            on,
            since: Instant::now(),
            since_time: Timestamp::now(),
            steps: Vec::new(),
            before_bytes: lan.sent()?.to_machine(number),
            received_bytes: 0,
            prompt: None,
        })
    }

    /// Logs in with the password. From then on the kernel's mere remarks do not get into
    /// the shell's answers.
    ///
    /// # Errors
    /// When it lets nobody in.
    pub(crate) fn log_in(&mut self) -> Result<()> {
        self.on.console.log_in(PASSWORD, SHELL_LIMIT)?;
        self.ask("dmesg -n 4")?;
        Ok(())
    }

    /// What `command` prints in the shell of who is logged in.
    ///
    /// # Errors
    /// When it fails there.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        let said = self.on.console.shell(command, SHELL_LIMIT)?;
        Ok(said.trim().to_owned())
    }

    /// Waits until its console has said `words`, at any time since it was powered on.
    ///
    /// # Errors
    /// When it does not in time; the message holds what it said last.
    pub(crate) fn hear(&mut self, words: &str) -> Result<()> {
        let heard = wait::until(words, BOOT_LIMIT, || {
            self.on.process().check_runs()?;
            Ok(self.on.console.text().contains(words).then_some(()))
        });
        let last = || format!("it said last:\n{}", last_lines(&self.on.console.text()));
        heard.with_context(last)
    }

    /// Pulls its plug.
    ///
    /// # Errors
    /// When it is off already.
    pub(crate) fn pull_plug(self) -> Result<()> {
        self.on.pull_plug()
    }

    /// The kernel and the first stage, as they were sent.
    pub(crate) fn first_stage_bytes(&self) -> u64 {
        self.bytes(BootStep::KernelServed) + self.bytes(BootStep::InitrdServed)
    }

    /// How far it has come by now.
    ///
    /// # Errors
    /// When the network does not tell.
    pub(crate) fn moment(&self, lan: &Lan) -> Result<Moment> {
        Ok(Moment {
            after: self.since.elapsed(),
            received_bytes: lan.sent()?.to_machine(self.number) - self.before_bytes,
        })
    }

    /// What was sent to it until then, but for the boot files: chunks, and the headers
    /// and answers around them.
    pub(crate) fn image_bytes(&self, until: Moment) -> u64 {
        let files_bytes = self.first_stage_bytes() + self.bytes(BootStep::FileServed);
        until.received_bytes.saturating_sub(files_bytes)
    }

    /// From power-on until the server knew of this step; `None` when it did not happen.
    pub(crate) fn reached(&self, step: BootStep) -> Option<Duration> {
        let at: Timestamp = self.event(step)?.at.parse().ok()?;
        Some(at.duration_since(self.since_time).unsigned_abs())
    }

    /// The bytes of a step, however often it happened.
    fn bytes(&self, step: BootStep) -> u64 {
        let of = self.steps.iter().filter(|event| event.step == step);
        of.map(|event| event.bytes).sum()
    }

    /// What it has instead of a BIOS, in words.
    pub(crate) fn firmware(&self) -> &'static str {
        match self.firmware {
            Firmware::Bios => "BIOS",
            Firmware::UefiPxe | Firmware::UefiHttp | Firmware::UefiSecure => "UEFI",
        }
    }

    fn event(&self, step: BootStep) -> Option<&BootEvent> {
        self.steps.iter().rev().find(|event| event.step == step)
    }

    fn look(&mut self, lan: &Lan, sent: &Sent) -> Result<()> {
        self.on.process().check_runs()?;
        self.received_bytes = sent.to_machine(self.number) - self.before_bytes;
        let wanted = format!("{} login: ", self.name);
        if self.prompt.is_none() && self.on.console.text().contains(&wanted) {
            self.prompt = Some(Moment {
                after: self.since.elapsed(),
                received_bytes: self.received_bytes,
            });
        }
        let socket = lan.daemon.socket();
        let answer = http::get(&socket, &format!("/v1/nodes/{}/boots?limit=1", self.name))?;
        let boots: BootList = serde_json::from_str(&answer.body)
            .with_context(|| format!("the daemon said: {}", answer.body))?;
        // The last one may be that of a boot before this one.
        if let Some(boot) = boots.boots.into_iter().next()
            && let Some(first) = boot.steps.first()
            && first.at.parse::<Timestamp>()? >= self.since_time
        {
            self.steps = boot.steps;
        }
        Ok(())
    }

    /// Its prompt was seen, and the server knows that its root is mounted.
    fn has_come_up(&self) -> bool {
        self.prompt.is_some() && self.event(BootStep::RootMounted).is_some()
    }

    fn row(&self) -> Row {
        let step = self.step_text();
        let (seconds, bytes) = match self.prompt {
            Some(prompt) => (prompt.after, prompt.received_bytes),
            None => (self.since.elapsed(), self.received_bytes),
        };
        Row {
            cells: vec![
                self.name.to_owned(),
                self.firmware().to_owned(),
                step.clone(),
                format!("{:.1}", seconds.as_secs_f32()),
                HumanBytes(bytes).to_string(),
            ],
            news: step,
        }
    }

    fn step_text(&self) -> String {
        let last = self.steps.last();
        let step = last.map_or_else(|| "powered on".to_owned(), |event| words(event.step));
        match (self.prompt, last) {
            (_, Some(event)) if event.step == BootStep::Failed => {
                format!("failed: {}", event.detail)
            }
            (Some(_), _) => "login prompt".to_owned(),
            (None, _) => step,
        }
    }
}

/// A step's name as people read it.
fn words(step: BootStep) -> String {
    match serde_json::to_value(step) {
        Ok(Value::String(name)) => name.replace('-', " "),
        _ => format!("{step:?}"),
    }
}

/// What is known of the machines that are not up in time.
fn late(machines: &[Machine]) -> String {
    let mut text = format!("after {} s:", BOOT_LIMIT.as_secs());
    for machine in machines.iter().filter(|machine| !machine.has_come_up()) {
        let console = machine.on.console.text();
        text.push_str(&format!(
            "\n{} is at '{}'; its console said last:\n{}",
            machine.name,
            machine.step_text(),
            last_lines(&console)
        ));
    }
    text
}

/// The end of a console, without what a terminal would obey.
fn last_lines(console: &str) -> String {
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).collect();
    let lines: Vec<String> = console.lines().map(plain).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
