//! `rootstock node log`: a boot, step by step.

use clap::Args;
use rootstock_api::{BootEvent, BootTranscript, boot::BootStep};
use rootstock_core::NodeName;

use crate::{
    output::{self, Column},
    session::Session,
};

/// Which boots.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The node
    name: NodeName,
    /// How many boots, newest last
    #[arg(long, short = 'n', default_value_t = 1, value_name = "COUNT")]
    boots: usize,
}

/// Shows a node's last boots.
pub(crate) fn run(args: &LogArgs, session: &Session) -> anyhow::Result<()> {
    let boots = session.client()?.node_boots(&args.name, args.boots)?;
    if session.json() {
        return output::json(&boots);
    }
    if boots.boots.is_empty() {
        return output::line(&format!("{} has not booted yet", args.name));
    }
    let texts: Vec<String> = boots.boots.iter().rev().map(text).collect();
    output::line(&texts.join("\n\n"))
}

fn text(boot: &BootTranscript) -> String {
    let image = boot.image.as_ref().map(|image| format!(", {image}"));
    let over = boot
        .ended
        .as_deref()
        .map(|ended| format!(", over at {}", output::time(ended)));
    let title = format!(
        "{} boots at {}{}{}",
        boot.node,
        output::time(&boot.started),
        image.unwrap_or_default(),
        over.unwrap_or_default()
    );
    let columns = [
        Column::Number("SECONDS"),
        Column::Text("STEP"),
        Column::Number("BYTES"),
        Column::Text(""),
    ];
    let row = |event: &BootEvent| {
        vec![
            format!(
                "{}.{:03}",
                event.since_start_ms / 1000,
                event.since_start_ms % 1000
            ),
            step(event.step),
            if event.bytes == 0 {
                String::new()
            } else {
                output::bytes(event.bytes)
            },
            event.detail.clone(),
        ]
    };
    let table = output::table(&columns, boot.steps.iter().map(row).collect());
    format!("{title}\n{table}")
}

/// A step as people read it.
pub(super) fn step(step: BootStep) -> String {
    let name = match step {
        BootStep::Discovered => "asks for an address",
        BootStep::Offered => "offered",
        BootStep::Acknowledged => "acknowledged",
        BootStep::FileServed => "boot program served",
        BootStep::ScriptServed => "script served",
        BootStep::KernelServed => "kernel served",
        BootStep::InitrdServed => "first stage served",
        BootStep::FirstStage => "first stage runs",
        BootStep::Held => "waits for approval",
        BootStep::Session => "session open",
        BootStep::Network => "network up",
        BootStep::Iscsi => "reads its disk over iSCSI",
        BootStep::DeviceUp => "device up",
        BootStep::RootMounted => "root mounted",
        BootStep::Switched => "switched to the image",
        BootStep::Up => "up",
        BootStep::Installer => "installer runs",
        BootStep::Installed => "installed",
        BootStep::OwnDisk => "starts from its own disk",
        BootStep::Gone => "gone",
        BootStep::Failed => "failed",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_reads_well() {
        let event = |step, since_start_ms, bytes, detail: &str| BootEvent {
            step,
            at: "now".to_owned(),
            since_start_ms,
            uptime_ms: None,
            bytes,
            detail: detail.to_owned(),
        };
        let boot = BootTranscript {
            boot: "b".to_owned(),
            node: "n001".parse().expect("a name"),
            started: "then".to_owned(),
            ended: None,
            image: Some("lab:3".parse().expect("a version")),
            steps: vec![
                event(BootStep::Discovered, 0, 0, "UEFI x86-64, PXE"),
                event(BootStep::InitrdServed, 2_310, 9_400_000, ""),
                event(BootStep::Up, 14_002, 41_000_000, ""),
            ],
        };
        insta::assert_snapshot!(text(&boot), @r"
        n001 boots at then, lab:3
        SECONDS  STEP                   BYTES
          0.000  asks for an address           UEFI x86-64, PXE
          2.310  first stage served   9.40 MB
         14.002  up                   41.0 MB
        ");
    }
}
