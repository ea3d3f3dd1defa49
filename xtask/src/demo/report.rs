//! What the machines' boots cost, in seconds and bytes.

use std::time::Duration;

use anyhow::{Context, Result};
use rootstock_api::boot::BootStep;
use rootstock_core::units::HumanBytes;

use crate::demo::machines::Machine;
use crate::demo::progress::note;
use crate::demo::table::{self, Column};

const COLUMNS: [Column; 7] = [
    Column::left("machine", 7),
    Column::left("firmware", 8),
    Column::right("to kernel", 9),
    Column::right("to root", 8),
    Column::right("to login", 8),
    Column::right("kernel, 1st stage", 17),
    Column::right("image data", 10),
];

/// Prints a row for each machine and what the server sent to all of them, beside
/// an image of which `used_bytes` are used.
///
/// # Errors
/// When a machine's transcript lacks a step.
pub(crate) fn print(machines: &[Machine], sent_bytes: u64, used_bytes: u64) -> Result<()> {
    let rows = machines.iter().map(row).collect::<Result<Vec<_>>>()?;
    table::print(&COLUMNS, &rows);
    note(&format!(
        "the server sent {} to all {}: {:.2} copies of the {} that the image uses",
        HumanBytes(sent_bytes),
        machines.len(),
        sent_bytes as f64 / used_bytes.max(1) as f64,
        HumanBytes(used_bytes),
    ));
    Ok(())
}

fn row(machine: &Machine) -> Result<Vec<String>> {
    let reached = |step: BootStep| {
        let after = machine.reached(step);
        after.with_context(|| format!("the transcript of {} lacks {step:?}", machine.name))
    };
    let prompt = machine.prompt.context("a machine has no prompt")?;
    reached(BootStep::InitrdServed)?;
    Ok(vec![
        machine.name.to_owned(),
        machine.firmware().to_owned(),
        seconds(reached(BootStep::KernelServed)?),
        seconds(reached(BootStep::RootMounted)?),
        seconds(prompt.after),
        HumanBytes(machine.first_stage_bytes()).to_string(),
        HumanBytes(machine.image_bytes(prompt)).to_string(),
    ])
}

/// A time as tables show it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}
