//! How a node that runs does, by its last report, for people.

use rootstock_api::{
    Installation, Node, NodeState,
    boot::{DiskCacheReport, NodeReport},
    install::{InstallReport, InstallState},
};

use crate::output;

/// What a node that runs said of itself: what it read and from where, how long it
/// waited for that, and how its own disk does.
pub(super) fn fields(node: &Node) -> Vec<(&'static str, String)> {
    let Some(report) = &node.report else {
        return Vec::new();
    };
    let mut fields = vec![
        ("read", output::bytes(report.read_bytes)),
        ("from disk", output::bytes(report.local_bytes)),
        (
            "from server",
            format!("{} as sent", output::bytes(report.fetched_bytes)),
        ),
        (
            "stalls",
            format!(
                "{} together, {} at worst",
                lasting(report.stall_ms),
                lasting(report.stall_worst_ms)
            ),
        ),
        (
            "overlay",
            format!(
                "{} of {}",
                output::bytes(report.overlay_used_bytes),
                output::bytes(report.overlay_bytes_max)
            ),
        ),
    ];
    fields.extend(report.install.as_ref().map(installing));
    match &report.disk_cache {
        None => fields.push(("disk", "none".to_owned())),
        Some(disk) => fields.extend(disk_fields(disk, node.fill_paused.as_deref())),
    }
    fields
}

fn disk_fields(disk: &DiskCacheReport, paused: Option<&str>) -> Vec<(&'static str, String)> {
    if let Some(reason) = &disk.off {
        let text = format!("{}, out of use: {reason}", disk.device);
        return vec![("disk", text)];
    }
    let used = format!(
        "{}, {} of {} used",
        disk.device,
        output::bytes(disk.used_bytes),
        output::bytes(disk.bytes_max)
    );
    let mut fields = vec![("disk", used)];
    let Some(percent) = percent(disk) else {
        fields.push(("version", "not looked at yet".to_owned()));
        return fields;
    };
    if percent == 100 {
        let text = format!("complete, {}", output::bytes(disk.version_bytes));
        fields.push(("version", text));
        fields.extend(native(disk));
        fields.extend(next(disk));
        fields.extend(start(disk));
        return fields;
    }
    let text = format!(
        "{percent} % on disk, {} of {}",
        output::bytes(disk.version_local_bytes),
        output::bytes(disk.version_bytes)
    );
    fields.push(("version", text));
    fields.extend(native(disk));
    fields.push(("filling", filling(disk, paused)));
    fields.extend(next(disk));
    fields.extend(start(disk));
    fields
}

/// How a node takes part in the swarm.
pub(super) fn swarm(node: &Node) -> Vec<(&'static str, String)> {
    let Some(swarm) = &node.swarm else {
        return Vec::new();
    };
    let mut fields = vec![
        ("in rack", swarm.rack.clone()),
        (
            "to nodes",
            format!("{} as sent", output::bytes(swarm.sent_bytes)),
        ),
        (
            "from nodes",
            format!("{} as sent", output::bytes(swarm.received_bytes)),
        ),
    ];
    if let Some(seconds) = swarm.left_out_seconds {
        let rest = lasting(seconds.saturating_mul(1000));
        let text = format!("other nodes got wrong chunks from it: not told of it for {rest}");
        fields.push(("left out", text));
    }
    fields
}

/// How far an installation is.
fn installing(report: &InstallReport) -> (&'static str, String) {
    let reason = report.reason.as_deref().unwrap_or("the system is not up");
    let done = match report.bytes {
        0 => 0,
        bytes => report.done_bytes.min(bytes).saturating_mul(100) / bytes,
    };
    let text = match (report.state, &report.reason, report.seconds_to_complete) {
        (InstallState::Installed, ..) => format!(
            "done, {} of {} were written",
            output::bytes(report.written_bytes),
            output::bytes(report.bytes)
        ),
        (InstallState::Failed, ..) => format!("no: {reason}"),
        (InstallState::Laying, Some(reason), _) => {
            format!("{done} % on {}, paused: {reason}", report.device)
        }
        (InstallState::Laying, None, Some(seconds)) => {
            let left = lasting(seconds.saturating_mul(1000));
            format!("{done} % on {}, done in {left}", report.device)
        }
        (InstallState::Laying, None, None) => format!("{done} % on {}", report.device),
        (InstallState::Waiting | InstallState::Unknown, ..) => format!("not yet: {reason}"),
    };
    ("installing", text)
}

/// What a node has on a disk of its own.
pub(super) fn installed(node: &Node) -> Option<(&'static str, String)> {
    let Installation {
        version,
        device,
        at,
    } = node.installed.as_ref()?;
    let control = match node.state {
        NodeState::OwnDisk => ", not under control until its next boot from the network",
        _ => "",
    };
    let at = output::time(at);
    Some((
        "installed",
        format!("{version} on {device} at {at}{control}"),
    ))
}

/// How far the version is that it is to run next.
fn next(disk: &DiskCacheReport) -> Option<(&'static str, String)> {
    let next = disk.next.as_ref()?;
    let fetched = output::bytes(next.fetched_bytes);
    let how = match &next.trouble {
        _ if next.complete => format!("on disk, {fetched} were fetched"),
        Some(why) => format!("{fetched} fetched: {why}"),
        None => format!("{fetched} fetched"),
    };
    Some(("next", format!("{}, {how}", next.version)))
}

/// What the machine starts when no server answers.
fn start(disk: &DiskCacheReport) -> Option<(&'static str, String)> {
    let start = disk.start.as_ref()?;
    let text = match (&start.version, &start.trouble) {
        (Some(version), None) => format!("{version} from this disk, when no server answers"),
        (Some(version), Some(why)) => format!("{version} from this disk, and not {why}"),
        (None, Some(why)) => format!("not from this disk: {why}"),
        (None, None) => return None,
    };
    Some(("starts", text))
}

/// What the machine's kernel reads without the agent.
fn native(disk: &DiskCacheReport) -> Option<(&'static str, String)> {
    let text = || format!("{} of the root", output::bytes(disk.native_bytes));
    (disk.native_bytes > 0).then(|| ("native", text()))
}

fn filling(disk: &DiskCacheReport, paused: Option<&str>) -> String {
    if let Some(reason) = paused {
        return format!("paused: {reason}");
    }
    let rate = format!("{}/s", output::bytes(disk.fill_bytes_per_second));
    match disk.seconds_to_complete {
        Some(seconds) => {
            let left = lasting(seconds.saturating_mul(1000));
            format!("{rate}, complete in {left}")
        }
        None => rate,
    }
}

/// A node's disk in a word or two: `73 %`, `complete`, `off`, `no disk`. Nothing
/// while that is not known.
pub(super) fn disk(report: &NodeReport) -> Option<String> {
    let Some(disk) = &report.disk_cache else {
        return Some("no disk".to_owned());
    };
    if disk.off.is_some() {
        return Some("off".to_owned());
    }
    percent(disk).map(|percent| match percent {
        100 => "complete".to_owned(),
        percent => format!("{percent} %"),
    })
}

/// What is news of a disk where each line stays: not every percent.
pub(super) fn news(report: &NodeReport) -> Option<String> {
    let disk = report.disk_cache.as_ref()?;
    match &disk.off {
        Some(reason) => Some(format!("its disk is out of use: {reason}")),
        None => (percent(disk)? == 100).then(|| "all of its version is on its disk".to_owned()),
    }
}

/// How much of the version is on the disk; 100 only when all of it is.
fn percent(disk: &DiskCacheReport) -> Option<u64> {
    let local = disk.version_local_bytes.min(disk.version_bytes);
    local.saturating_mul(100).checked_div(disk.version_bytes)
}

/// A time for people: `340 ms`, `1.2 s`, `4 min 10 s`, `2 h 5 min`.
fn lasting(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    if ms < 1000 {
        format!("{ms} ms")
    } else if minutes == 0 {
        format!("{seconds}.{} s", ms % 1000 / 100)
    } else if hours == 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{hours} h {} min", minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use rootstock_api::{Settings, boot::StartReport, swarm::NodeSwarm};

    use super::*;

    fn node(report: Option<NodeReport>) -> Node {
        Node {
            name: "n1".parse().expect("a name"),
            state: NodeState::Up,
            profile: None,
            macs: Vec::new(),
            uuid: None,
            address: None,
            settings: Settings::default(),
            effective: Settings::default(),
            origins: std::collections::BTreeMap::new(),
            inventory: None,
            created: String::new(),
            approved: None,
            seen: None,
            boot: None,
            report,
            abandoned: None,
            installed: None,
            installer: None,
            fill_paused: None,
            swarm: None,
        }
    }

    fn report(disk_cache: Option<DiskCacheReport>) -> NodeReport {
        NodeReport {
            read_bytes: 1_200_000_000,
            fetched_bytes: 300_000_000,
            local_bytes: 900_000_000,
            stall_ms: 1240,
            stall_worst_ms: 340,
            overlay_used_bytes: 12_000_000,
            overlay_bytes_max: 1 << 30,
            disk_cache,
            ..NodeReport::default()
        }
    }

    fn filled(version_local_bytes: u64) -> DiskCacheReport {
        DiskCacheReport {
            device: "/dev/sda3".to_owned(),
            off: None,
            bytes_max: 100_000_000_000,
            used_bytes: 12_300_000_000,
            version_bytes: 11_100_000_000,
            version_local_bytes,
            native_bytes: 0,
            fill_bytes_per_second: 11_200_000,
            seconds_to_complete: Some(268),
            next: None,
            start: None,
        }
    }

    fn shown(node: &Node) -> String {
        output::fields(&fields(node))
    }

    #[test]
    fn a_node_that_fills_its_disk() {
        let disk = DiskCacheReport {
            native_bytes: 6_200_000_000,
            ..filled(8_110_000_000)
        };
        let mut node = node(Some(report(Some(disk))));
        assert_snapshot!(shown(&node), @r"
        read         1.20 GB
        from disk    900 MB
        from server  300 MB as sent
        stalls       1.2 s together, 340 ms at worst
        overlay      12.0 MB of 1.07 GB
        disk         /dev/sda3, 12.3 GB of 100 GB used
        version      73 % on disk, 8.11 GB of 11.1 GB
        native       6.20 GB of the root
        filling      11.2 MB/s, complete in 4 min 28 s
        ");
        node.fill_paused = Some("outside 22:00-06:00".to_owned());
        assert!(shown(&node).ends_with("filling      paused: outside 22:00-06:00"));
        node.report = None;
        assert_eq!(shown(&node), "");
    }

    #[test]
    fn a_node_of_the_swarm() {
        let mut node = node(None);
        assert_eq!(swarm(&node), []);
        node.swarm = Some(NodeSwarm {
            rack: "10.0.3.0/24".to_owned(),
            sent_bytes: 1_200_000_000,
            received_bytes: 3000,
            left_out_seconds: None,
        });
        assert_snapshot!(output::fields(&swarm(&node)), @r"
        in rack     10.0.3.0/24
        to nodes    1.20 GB as sent
        from nodes  3.00 kB as sent
        ");
        if let Some(swarm) = &mut node.swarm {
            swarm.left_out_seconds = Some(250);
        }
        let (name, text) = swarm(&node).pop().expect("is left out");
        let said = "other nodes got wrong chunks from it: not told of it for 4 min 10 s";
        assert_eq!((name, text.as_str()), ("left out", said));
    }

    #[test]
    fn an_installation_from_its_beginning_to_its_end() {
        let report = |state, done_bytes, reason: Option<&str>, seconds| InstallReport {
            state,
            device: "/dev/sda".to_owned(),
            reason: reason.map(str::to_owned),
            bytes: 2_000_000_000,
            done_bytes,
            written_bytes: 600_000_000,
            fetched_bytes: 200_000_000,
            seconds_to_complete: seconds,
        };
        use InstallState::{Failed, Installed, Laying, Waiting};
        for (report, expected) in [
            (
                report(Waiting, 0, None, None),
                "not yet: the system is not up",
            ),
            (report(Laying, 0, None, None), "0 % on /dev/sda"),
            (
                report(Laying, 500_000_000, None, Some(90)),
                "25 % on /dev/sda, done in 1 min 30 s",
            ),
            (
                report(Laying, 500_000_000, Some("exam mode"), None),
                "25 % on /dev/sda, paused: exam mode",
            ),
            (report(Failed, 0, Some("no disk"), None), "no: no disk"),
            (
                report(Installed, 2_000_000_000, None, None),
                "done, 600 MB of 2.00 GB were written",
            ),
        ] {
            assert_eq!(installing(&report).1, expected);
        }
        let mut node = node(None);
        assert_eq!(installed(&node), None);
        node.installed = Some(Installation {
            version: "lab:7".parse().expect("a version"),
            device: "/dev/sda".to_owned(),
            at: "2026-11-21T12:35:07Z".to_owned(),
        });
        let here = "lab:7 on /dev/sda at 2026-11-21 12:35";
        assert_eq!(installed(&node), Some(("installed", here.to_owned())));
        node.state = NodeState::OwnDisk;
        let (_, text) = installed(&node).expect("is");
        let more = ", not under control until its next boot from the network";
        assert_eq!(text.strip_prefix(here), Some(more));
    }

    #[test]
    fn what_starts_without_a_server() {
        let disk = |version: Option<&str>, trouble: Option<&str>| {
            let start = StartReport {
                version: version.map(|version| version.parse().expect("a version")),
                trouble: trouble.map(str::to_owned),
            };
            let disk = DiskCacheReport {
                start: Some(start),
                ..filled(11_100_000_000)
            };
            let shown = shown(&node(Some(report(Some(disk)))));
            shown.lines().next_back().map(str::to_owned)
        };
        for (version, trouble, expected) in [
            (
                Some("lab:3"),
                None,
                "starts       lab:3 from this disk, when no server answers",
            ),
            (
                Some("lab:3"),
                Some("lab:4: no boot loader"),
                "starts       lab:3 from this disk, and not lab:4: no boot loader",
            ),
            (
                None,
                Some("lab:4: no boot loader"),
                "starts       not from this disk: lab:4: no boot loader",
            ),
            (None, None, "version      complete, 11.1 GB"),
        ] {
            assert_eq!(disk(version, trouble).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_disk_in_full_and_in_a_word() {
        let off = DiskCacheReport {
            off: Some("read error at slot 17".to_owned()),
            ..filled(0)
        };
        let unknown = DiskCacheReport {
            version_bytes: 0,
            ..filled(0)
        };
        for (disk_cache, word, last, told) in [
            (None, Some("no disk"), "disk         none", None),
            (
                Some(off),
                Some("off"),
                "disk         /dev/sda3, out of use: read error at slot 17",
                Some("its disk is out of use: read error at slot 17"),
            ),
            (Some(unknown), None, "version      not looked at yet", None),
            (
                Some(filled(11_100_000_000)),
                Some("complete"),
                "version      complete, 11.1 GB",
                Some("all of its version is on its disk"),
            ),
            (
                Some(filled(11_099_999_999)),
                Some("99 %"),
                "filling      11.2 MB/s, complete in 4 min 28 s",
                None,
            ),
        ] {
            let report = report(disk_cache);
            assert_eq!(disk(&report).as_deref(), word);
            assert_eq!(news(&report).as_deref(), told);
            let shown = shown(&node(Some(report)));
            assert_eq!(shown.lines().next_back(), Some(last));
        }
    }

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min 0 s"),
            (7_500_000, "2 h 5 min"),
        ] {
            assert_eq!(lasting(ms), text);
        }
    }
}
