//! `rootstock scrub`: the check of all stored data.

use clap::Subcommand;
use rootstock_api::ScrubStatus;

use crate::{output, session::Session};

/// What can be asked of the scrub.
#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Show how far the background check is and what it found
    Status,
    /// Begin a check of everything that is stored, now
    Start,
}

/// Does what the command says.
pub(crate) fn run(command: &ScrubCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ScrubCommand::Status => print(session, &session.client()?.scrub()?),
        ScrubCommand::Start => {
            print(session, &session.client()?.scrub_start()?)?;
            if session.chatty() {
                eprintln!("note:  'rootstock scrub status' shows how far it is");
            }
            Ok(())
        }
    }
}

fn print(session: &Session, status: &ScrubStatus) -> anyhow::Result<()> {
    if session.json() {
        return output::json(status);
    }
    output::line(&text(status))
}

fn text(status: &ScrubStatus) -> String {
    let pace = match status.rate_bytes {
        0 => "only when started".to_owned(),
        rate => format!("{}/s", output::bytes(rate)),
    };
    let now = if status.running {
        format!(
            "{} of {}",
            status.done_pack_count,
            output::count(status.total_pack_count, "pack")
        )
    } else {
        "resting".to_owned()
    };
    let mut text = output::fields(&[
        ("pace", pace),
        ("this pass", now),
        (
            "last pass",
            output::or_dash(status.last_pass.as_deref().map(output::time)),
        ),
        ("damage", output::count(status.damage.len() as u64, "place")),
        (
            "unused damage",
            output::count(status.unused_damage_count, "chunk"),
        ),
    ]);
    for damage in &status.damage {
        text.push_str(&format!(
            "\n  {}:{} at byte {}: {}",
            damage.image, damage.version, damage.offset_bytes, damage.reason
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resting_scrub() {
        insta::assert_snapshot!(text(&ScrubStatus::default()), @r"
        pace           only when started
        this pass      resting
        last pass      -
        damage         0 places
        unused damage  0 chunks
        ");
    }
}
