//! `rootstock image verify`.

use clap::Args;
use rootstock_api::{Damage, VerifyEvent};
use rootstock_core::VersionSpec;

use crate::{error::Failure, output, progress, session::Session};

/// What to verify.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The version: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
}

/// Reads a version anew and names what is damaged.
pub(crate) fn run(args: &VerifyArgs, session: &Session) -> anyhow::Result<()> {
    let bar = progress::bytes(session, "verifying", 0);
    let mut printed = Ok(());
    let report = session
        .client()?
        .verify(&args.version, |event| match event {
            VerifyEvent::Progress {
                done_bytes,
                total_bytes,
            } => {
                bar.set_length(*total_bytes);
                bar.set_position(*done_bytes);
            }
            VerifyEvent::Damage(damage) => {
                let line = bar.suspend(|| {
                    if session.json() {
                        output::json_line(event)
                    } else {
                        output::line(&damage_text(damage))
                    }
                });
                printed = line;
            }
            VerifyEvent::Done(_) | VerifyEvent::Failed(_) => {}
        });
    bar.finish_and_clear();
    let report = report?;
    printed?;
    if session.json() {
        output::json_line(&VerifyEvent::Done(report))?;
    }
    if report.damage_count > 0 {
        return Err(Failure {
            message: format!(
                "{} is damaged in {}",
                args.version,
                output::count(report.damage_count, "place")
            ),
            hint: "import the image again from its source: damaged chunks are stored anew; \
                   and look after the disk under the daemon's data"
                .to_owned(),
        }
        .into());
    }
    if session.json() {
        return Ok(());
    }
    output::line(&format!(
        "{} is whole: {} in {} read and checked",
        args.version,
        output::bytes(report.checked_bytes),
        output::count(report.chunk_count, "chunk")
    ))
}

fn damage_text(damage: &Damage) -> String {
    format!(
        "damaged: {}:{} at byte {} ({}): {}",
        damage.image,
        damage.version,
        damage.offset_bytes,
        output::bytes(damage.len_bytes),
        damage.reason
    )
}
