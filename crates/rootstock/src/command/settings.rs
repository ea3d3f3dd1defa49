//! Settings on the command line, and changes that are shown before they are made.

use std::{collections::BTreeMap, io::IsTerminal as _, num::NonZeroU32};

use clap::Args;
use rootstock_api::{
    ChangeReport, FillSwitch, IscsiStart, NamedChange, Origin, OtherWrites, PersonalPlace, Setting,
    Settings,
    boot::{CacheChoice, KeptPath, NodeMode},
    install::InstallDisk,
    swarm::{Metered, Rack, SwarmCopies, SwarmMode},
};
use rootstock_core::{
    DailyHours, NodeName, TimeLimit, VersionSpec, VolumeName, fold, units::parse_size_bytes,
};

use crate::{error::Failure, output, session::Session};

/// Settings of a node or profile.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingArgs {
    /// What it runs: NAME, NAME:3 or NAME@tag
    #[arg(long, value_name = "VERSION")]
    image: Option<VersionSpec>,
    /// How it treats its root: diskless (or frozen: every boot is fresh), ram (all of
    /// the image in memory), personal (what it writes stays), install (diskless,
    /// while the image is laid out on its disk, which it boots from then on), iscsi
    /// (any system: its disk is a volume, and what it writes stays), iscsi-frozen (the
    /// same, fresh at every boot)
    #[arg(long)]
    mode: Option<NodeMode>,
    /// The volume that is its disk, in the modes iscsi, iscsi-frozen and personal, in
    /// the place of one that is called like it
    #[arg(long, value_name = "NAME")]
    volume: Option<VolumeName>,
    /// Whether it has to prove a secret to its disk over iSCSI, a new one for each boot:
    /// yes only for images whose initiator computes CHAP without reading its disk
    #[arg(long, value_name = "yes|no", value_parser = parse_yes_no)]
    chap: Option<bool>,
    /// What starts from its disk over iSCSI: loader (the boot loader on it), kernel (its
    /// kernel and initrd, with an initiator added to the initrd), or auto (kernel, where
    /// the initrd has no initiator)
    #[arg(long, value_name = "auto|loader|kernel")]
    iscsi_start: Option<IscsiStart>,
    /// Where the writes of the mode personal are: server (a volume of its own there), or
    /// disk (its own file system labelled `rootstock`)
    #[arg(long, value_name = "server|disk")]
    personal: Option<PersonalPlace>,
    /// What becomes of what a personal node wrote to its disk over another version: keep
    /// (it is there again when the node goes back to that), or drop
    #[arg(long, value_name = "keep|drop")]
    other_writes: Option<OtherWrites>,
    /// The network it boots in, by the server's interface
    #[arg(long, value_name = "IFACE")]
    network: Option<String>,
    /// Arguments for its kernel, after the image's own
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    kernel_arguments: Option<String>,
    /// Its console, such as ttyS0,115200n8
    #[arg(long)]
    console: Option<String>,
    /// How its firmware is booted, when not the way found by trying
    #[arg(long, value_name = "NAME")]
    boot_strategy: Option<String>,
    /// A word to find it by; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A path that outlives each boot, on the node's file system labelled
    /// `rootstock`; several with commas, or repeated
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    keep: Vec<KeptPath>,
    /// The kernel, as a path inside the image
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// An initrd inside the image, in the place of Rootstock's first stage
    #[arg(long, value_name = "PATH")]
    initrd: Option<String>,
    /// The partition of the root file system; 0 is the whole disk
    #[arg(long, value_name = "PARTITION")]
    root: Option<u32>,
    /// What its writes may take of its memory: 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    overlay_bytes_max: Option<u64>,
    /// Its memory for chunks of the image: 128M
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    cache_bytes: Option<u64>,
    /// The disk of its own that it keeps the image on: auto (one that was prepared for
    /// it), none, or a device that was, such as /dev/sda3
    #[arg(long, value_name = "DISK")]
    cache: Option<CacheChoice>,
    /// What it may take of that disk: 100G
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    cache_disk_bytes_max: Option<u64>,
    /// The disk that the mode install lays the image out on, all of which is lost:
    /// /dev/sda, or better /dev/disk/by-id/...; without one, only a disk that is empty or
    /// was installed for this node
    #[arg(long, value_name = "DISK")]
    install_disk: Option<InstallDisk>,
    /// Whether it fetches the rest of the image in the background: on or paused; holds
    /// at once, as the three below do
    #[arg(long, value_name = "on|paused")]
    fill: Option<FillSwitch>,
    /// The most that this may take of the network, in Mbit/s
    #[arg(long, value_name = "MBIT", value_parser = parse_mbit)]
    fill_mbit_max: Option<NonZeroU32>,
    /// When it does so, by the daemon's clock: 22:00-06:00, or several with commas
    #[arg(long, value_name = "HOURS")]
    fill_hours: Option<DailyHours>,
    /// Whether there is an exam, during which nothing runs in the background
    #[arg(long, value_name = "yes|no", value_parser = parse_yes_no)]
    exam: Option<bool>,
    /// Whether it fetches from other nodes and serves them: off, tls, or plain (without
    /// encryption, for networks that are trusted); holds at once, as the five below do
    #[arg(long, value_name = "off|tls|plain")]
    swarm: Option<SwarmMode>,
    /// Which nodes it reaches without a slower link: those with the same label; those of
    /// its subnet when nobody says
    #[arg(long, value_name = "LABEL")]
    rack: Option<Rack>,
    /// The most that it may send other nodes, in Mbit/s
    #[arg(long, value_name = "MBIT", value_parser = parse_upload_mbit)]
    upload_mbit_max: Option<NonZeroU32>,
    /// Whether its line is paid for by the byte: then it sends other nodes nothing; auto is
    /// as the machine itself knows it
    #[arg(long, value_name = "auto|yes|no")]
    metered: Option<Metered>,
    /// Memory in which it holds chunks for others, when it has no disk for them: 1G
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    swarm_memory: Option<u64>,
    /// How many nodes of its rack own each chunk: 1 to 8
    #[arg(long, value_name = "COUNT")]
    swarm_copies: Option<SwarmCopies>,
    /// Whether it boots machines of its subnet when no server does; it is in the swarm
    #[arg(long, value_name = "yes|no", value_parser = parse_yes_no)]
    boots_others: Option<bool>,
    /// How long a boot of a version that is new to it may take, or the node goes back to
    /// the one before: 10m
    #[arg(long, value_name = "TIME")]
    boot_limit: Option<TimeLimit>,
    /// A command of the image that must end with 0 before a boot counts as up, within
    /// --boot-limit: 'systemctl is-active gdm'
    #[arg(long, value_name = "COMMAND")]
    check: Option<String>,
    /// Whether a boot that fails offers a shell on the console
    #[arg(long, value_name = "true|false")]
    rescue_shell: Option<bool>,
}

fn parse_mbit(text: &str) -> Result<NonZeroU32, &'static str> {
    let mbit = text.parse();
    mbit.map_err(|_| "write Mbit/s, at least 1; '--fill paused' stops it")
}

fn parse_upload_mbit(text: &str) -> Result<NonZeroU32, &'static str> {
    let mbit = text.parse();
    mbit.map_err(|_| "write Mbit/s, at least 1; '--swarm off' stops it")
}

fn parse_yes_no(text: &str) -> Result<bool, &'static str> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("write yes or no"),
    }
}

impl SettingArgs {
    /// The settings that were written.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            image: self.image.clone(),
            mode: self.mode,
            personal: self.personal,
            volume: self.volume.clone(),
            chap: self.chap,
            iscsi_start: self.iscsi_start,
            other_writes: self.other_writes,
            network: self.network.clone(),
            kernel_arguments: self.kernel_arguments.clone(),
            console: self.console.clone(),
            boot_strategy: self.boot_strategy.clone(),
            tags: (!self.tags.is_empty()).then(|| self.tags.clone()),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            root: self.root,
            overlay_bytes_max: self.overlay_bytes_max,
            cache_bytes: self.cache_bytes,
            keep: (!self.keep.is_empty()).then(|| self.keep.clone()),
            cache: self.cache.clone(),
            cache_disk_bytes_max: self.cache_disk_bytes_max,
            install_disk: self.install_disk.clone(),
            fill: self.fill,
            fill_mbit_max: self.fill_mbit_max,
            fill_hours: self.fill_hours.clone(),
            exam: self.exam,
            swarm: self.swarm,
            rack: self.rack.clone(),
            upload_mbit_max: self.upload_mbit_max,
            metered: self.metered,
            swarm_memory: self.swarm_memory,
            swarm_copies: self.swarm_copies,
            boots_others: self.boots_others,
            boot_limit: self.boot_limit,
            check: self.check.clone(),
            rescue_shell: self.rescue_shell,
        }
    }
}

/// Whether a change is made without asking, or not at all.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Only show what would change
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
}

/// Shows what a change would do, asks when there is somebody to ask, and makes it.
/// `change` is first called for a dry run.
///
/// # Errors
/// Those of `change`, and when the answer is no.
pub(crate) fn change(
    session: &Session,
    confirm: ConfirmArgs,
    change: impl Fn(DryRun) -> anyhow::Result<ChangeReport>,
) -> anyhow::Result<()> {
    let planned = change(DryRun::Yes)?;
    if confirm.dry_run || planned.changes.is_empty() {
        return show(session, &planned);
    }
    if asks(confirm) {
        eprintln!("{}", text(&planned));
        if !agreed("change this?")? {
            return Err(Failure {
                message: "nothing was changed".to_owned(),
                hint: "say yes, or give --yes".to_owned(),
            }
            .into());
        }
    }
    let done = change(DryRun::No)?;
    show(session, &done)
}

/// Whether there is somebody to ask, who did not say yes before.
pub(crate) fn asks(confirm: ConfirmArgs) -> bool {
    !confirm.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether a change is only worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DryRun {
    /// It is.
    Yes,
    /// It is made.
    No,
}

/// Asks a person.
///
/// # Errors
/// When the terminal cannot be read.
pub(crate) fn agreed(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn show(session: &Session, report: &ChangeReport) -> anyhow::Result<()> {
    if session.json() {
        return output::json(report);
    }
    output::line(&text(report))
}

/// A change for people: what changes alike is said once.
pub(crate) fn text(report: &ChangeReport) -> String {
    if report.changes.is_empty() {
        return "nothing changes".to_owned();
    }
    let mut groups: Vec<(&NamedChange, Vec<String>)> = Vec::new();
    for change in &report.changes {
        let alike = |(first, _): &&mut (&NamedChange, Vec<String>)| {
            first.fields == change.fields && first.is_new == change.is_new
        };
        match groups.iter_mut().find(alike) {
            Some((_, names)) => names.push(change.name.clone()),
            None => groups.push((change, vec![change.name.clone()])),
        }
    }
    let mut lines = Vec::new();
    for (change, names) in groups {
        let is_new = if change.is_new { " (new)" } else { "" };
        lines.push(format!("{}{is_new}", folded(&names)));
        let width = change.fields.iter().map(|field| field.field.len()).max();
        for field in &change.fields {
            let width = width.unwrap_or(0);
            let value = |value: &Option<String>| output::or_dash(value.clone());
            let (before, after) = (value(&field.before), value(&field.after));
            lines.push(format!("  {:width$}  {before} -> {after}", field.field));
        }
    }
    if !report.running.is_empty() {
        let names: Vec<String> = report.running.iter().map(NodeName::to_string).collect();
        lines.push(format!(
            "running now, and changed by the next boot: {}",
            folded(&names)
        ));
    }
    if !report.applied {
        lines.push("nothing is changed yet".to_owned());
    }
    lines.join("\n")
}

fn folded(names: &[String]) -> String {
    let nodes: Result<Vec<NodeName>, _> = names.iter().map(|name| name.parse()).collect();
    nodes.map_or_else(|_| names.join(","), |nodes| fold(&nodes))
}

/// Settings with where they come from.
pub(crate) fn effective(
    settings: &Settings,
    origins: &BTreeMap<String, Origin>,
) -> Vec<(&'static str, String)> {
    let line = |setting: &Setting| {
        let value = settings.text(*setting)?;
        let origin = match origins.get(setting.as_str()) {
            None | Some(Origin::Node) => String::new(),
            Some(Origin::Profile { name }) => format!("  (profile {name})"),
            Some(Origin::Network { profile }) => format!("  (network's profile {profile})"),
            Some(Origin::Default) => "  (default)".to_owned(),
        };
        Some((setting.as_str(), format!("{value}{origin}")))
    };
    Setting::ALL.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use rootstock_api::FieldChange;

    #[test]
    fn what_changes_alike_is_said_once() {
        let change = |name: &str, before: Option<&str>| NamedChange {
            name: name.to_owned(),
            is_new: false,
            fields: vec![
                FieldChange {
                    field: "image".to_owned(),
                    before: before.map(str::to_owned),
                    after: Some("lab@production".to_owned()),
                },
                FieldChange {
                    field: "kernel_arguments".to_owned(),
                    before: Some("quiet".to_owned()),
                    after: None,
                },
            ],
        };
        let report = ChangeReport {
            changes: vec![
                change("n01", None),
                change("n02", None),
                change("n03", Some("lab:1")),
                change("n04", None),
            ],
            applied: false,
            running: vec!["n02".parse().expect("a name")],
        };
        assert_snapshot!(text(&report), @r"
        n[01-02,04]
          image             - -> lab@production
          kernel_arguments  quiet -> -
        n03
          image             lab:1 -> lab@production
          kernel_arguments  quiet -> -
        running now, and changed by the next boot: n02
        nothing is changed yet
        ");
    }
}
