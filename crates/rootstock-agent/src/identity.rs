//! What makes a root that many machines share this machine's own.

use std::fs;
use std::io;
use std::path::Path;

use rootstock_api::boot::{BootOrder, Identity, NodeMode};
use serde_json::json;

use crate::cmdline::Ipv4Config;
use crate::confined::Root;
use crate::console;
use crate::nic::Nic;

/// Where scripts of the image find what their machine is told.
const RUN: &str = "/run/rootstock";
const FILE: u32 = 0o644;

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path} of the root cannot be written")]
pub(crate) struct IdentityError {
    path: String,
    #[source]
    source: io::Error,
}

/// The card that the machine booted from, and its settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link<'a> {
    /// The card.
    pub(crate) nic: &'a Nic,
    /// Its settings.
    pub(crate) address: &'a Ipv4Config,
}

/// Writes the machine's identity into its root, and the boot card's settings to
/// where network programs look for them. A machine that has no address, since it
/// started from its own disk, leaves its cards to the image.
pub(crate) fn apply(
    order: &BootOrder,
    link: Option<Link<'_>>,
    root: &Root,
) -> Result<(), IdentityError> {
    apply_own(&order.identity, root)?;
    if let Some(text) = resolv_conf(order, link.map(|link| link.address)) {
        // Mostly a link to what some program would write; that program is told
        // below to leave the boot card alone, so it would write nothing.
        let path = "/etc/resolv.conf";
        root.write_over_link(path, FILE, text.as_bytes())
            .map_err(|source| IdentityError {
                path: path.to_owned(),
                source,
            })?;
    }
    for (path, text) in in_root(order, link.map(|link| link.nic), root) {
        write(root, &path, FILE, &text)?;
    }
    for (path, text) in in_run(order, link) {
        let made = Path::new(&path).parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| fs::write(&path, text))
            .map_err(|source| IdentityError { path, source })?;
    }
    Ok(())
}

/// Writes who the machine is into a root: what holds however the root is booted.
pub(crate) fn apply_own(identity: &Identity, root: &Root) -> Result<(), IdentityError> {
    if !identity.host_name.is_empty() {
        let name = format!("{}\n", identity.host_name);
        write(root, "/etc/hostname", FILE, &name)?;
        let hosts = hosts(&root.read("/etc/hosts").unwrap_or_default(), identity);
        write(root, "/etc/hosts", FILE, &hosts)?;
    }
    if !identity.machine_id.is_empty() {
        // Read-only, as systemd makes it (`machine-id(5)`).
        let text = format!("{}\n", identity.machine_id);
        write(root, "/etc/machine-id", 0o444, &text)?;
    }
    for file in &identity.files {
        write(root, &file.path, file.mode, &file.text)?;
    }
    Ok(())
}

fn write(root: &Root, path: &str, mode: u32, text: &str) -> Result<(), IdentityError> {
    let written = root.write(path, mode, text.as_bytes());
    written.map_err(|source| IdentityError {
        path: path.to_owned(),
        source,
    })
}

/// The image's hosts with this machine's own name and the lines it is given.
fn hosts(image: &str, identity: &Identity) -> String {
    let name = &identity.host_name;
    let own = match &identity.domain {
        Some(domain) => format!("127.0.1.1 {name}.{domain} {name}"),
        None => format!("127.0.1.1 {name}"),
    };
    let mut lines: Vec<&str> = image
        .lines()
        .filter(|line| line.split_ascii_whitespace().next() != Some("127.0.1.1"))
        .collect();
    if !lines.iter().any(|line| line.contains("localhost")) {
        lines.insert(0, "127.0.0.1 localhost");
    }
    lines.push(&own);
    lines.extend(
        identity
            .hosts
            .iter()
            .map(String::as_str)
            .filter(|line| !image.lines().any(|had| had == *line)),
    );
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn resolv_conf(order: &BootOrder, address: Option<&Ipv4Config>) -> Option<String> {
    let identity = &order.identity;
    let mut servers: Vec<String> = identity.name_servers.clone();
    if servers.is_empty() {
        let known = address
            .into_iter()
            .flat_map(|address| &address.name_servers);
        servers = known.map(ToString::to_string).collect();
    }
    if servers.is_empty() {
        return None;
    }
    let mut text = String::new();
    if let Some(domain) = &identity.domain {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    Some(text)
}

/// Changes to the image's own files; they go where all writes of the machine go.
fn in_root(order: &BootOrder, nic: Option<&Nic>, root: &Root) -> Vec<(String, String)> {
    let mut files = Vec::new();
    // ifupdown's `ifdown -a` at shutdown would take the root's card down.
    let path = "/etc/network/interfaces";
    if let (Some(nic), Some(text)) = (nic, root.read(path)) {
        let line = format!("no-auto-down {}", nic.name);
        if !text.lines().any(|had| had == line) {
            files.push((path.to_owned(), format!("{}\n{line}\n", text.trim_end())));
        }
    }
    // cloud-init would write a network of its own for a machine it takes as new.
    if nic.is_some() && root.has("/etc/cloud/cloud.cfg.d") {
        files.push((
            "/etc/cloud/cloud.cfg.d/99-rootstock-network.cfg".to_owned(),
            "network: {config: disabled}\n".to_owned(),
        ));
    }
    let path = "/etc/fstab";
    if (order.mode != NodeMode::Personal || order.volume.is_none())
        && let Some(image) = root.read(path)
    {
        let mut text = without_swap(&image);
        if order.mode == NodeMode::Nfs {
            text = without_disk(text.as_deref().unwrap_or(&image)).or(text);
        }
        files.extend(text.map(|text| (path.to_owned(), text)));
    }
    files
}

/// An fstab whose swap is commented out: swap on this disk would be kept in the
/// very memory it is to save, and swap on a disk that is missing holds the boot
/// up for systemd's 90 s.
fn without_swap(fstab: &str) -> Option<String> {
    without(fstab, "no swap on a diskless machine", |fields| {
        fields.get(2) == Some(&"swap")
    })
}

/// An fstab without what is on the image's disk, where the machine has files of its root
/// alone: a disk that does not come holds the boot up. What may fail may stay.
fn without_disk(fstab: &str) -> Option<String> {
    const SOURCES: [&str; 6] = ["/dev/", "ID=", "LABEL=", "PARTLABEL=", "PARTUUID=", "UUID="];
    without(fstab, "not there over NFS", |fields| {
        let is_on_disk = |source: &&str| SOURCES.iter().any(|start| source.starts_with(start));
        let may_fail = |options: &&str| options.split(',').any(|option| option == "nofail");
        fields.get(1) == Some(&"/")
            || fields.first().is_some_and(is_on_disk) && !fields.get(3).is_some_and(may_fail)
    })
}

/// An fstab in which some lines are commented out, unless there are none.
fn without(fstab: &str, why: &str, is_out: impl Fn(&[&str]) -> bool) -> Option<String> {
    let is_out = |line: &&str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        !line.trim_start().starts_with('#') && is_out(&fields)
    };
    fstab.lines().find(is_out)?;
    let line = |line: &str| {
        if is_out(&line) {
            format!("# {why}: {line}\n")
        } else {
            format!("{line}\n")
        }
    };
    Some(fstab.lines().map(line).collect())
}

/// Names of disks are first of all of the root's device (`udev(7)`, `link_priority`).
const NAMES: &str = r#"SUBSYSTEM=="block", KERNEL=="nbd0*", OPTIONS+="link_priority=100"
SUBSYSTEM=="block", ATTR{dm/name}=="rootstock-root", OPTIONS+="link_priority=200"
"#;

/// Files of this boot alone.
fn in_run(order: &BootOrder, link: Option<Link<'_>>) -> Vec<(String, String)> {
    let mut files = vec![
        (
            format!("{RUN}/settings.json"),
            json!(order.identity.settings).to_string(),
        ),
        (format!("{RUN}/order.json"), public(order).to_string()),
    ];
    if order.mode == NodeMode::Install {
        // The image is on another disk of this machine, too, with the same labels and
        // UUIDs: those names are of what the machine booted.
        files.push((
            "/run/udev/rules.d/60-rootstock.rules".to_owned(),
            NAMES.to_owned(),
        ));
    }
    if let Some(Link { nic, address }) = link {
        // NetworkManager: the card is the boot's, and stays as it is.
        files.push((
            "/run/NetworkManager/conf.d/00-rootstock.conf".to_owned(),
            network_manager(nic),
        ));
        // systemd-networkd: the same address, set by nobody's lease, kept when the
        // daemon stops; so its wait for the network ends at once.
        files.push((
            "/run/systemd/network/00-rootstock.network".to_owned(),
            networkd(nic, address),
        ));
    }
    files
}

fn network_manager(nic: &Nic) -> String {
    format!(
        "[main]\nrc-manager=unmanaged\n\n[device-rootstock]\nmatch-device=mac:{}\nmanaged=0\n",
        nic.mac
    )
}

fn networkd(nic: &Nic, address: &Ipv4Config) -> String {
    let mut text = format!(
        "[Match]\nMACAddress={}\n\n[Network]\nDHCP=no\nKeepConfiguration=yes\nAddress={}/{}\n",
        nic.mac, address.address, address.prefix_bits
    );
    if let Some(gateway) = address.gateway {
        text.push_str(&format!("Gateway={gateway}\n"));
    }
    for server in &address.name_servers {
        text.push_str(&format!("DNS={server}\n"));
    }
    text
}

/// The order without what is secret: whose files it holds, and how the volume is
/// reached.
fn public(order: &BootOrder) -> serde_json::Value {
    let mut value = serde_json::to_value(order).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.remove("boot");
        object.remove("volume");
        if let Some(identity) = object.get_mut("identity").and_then(|it| it.as_object_mut()) {
            identity.remove("files");
        }
    } else {
        console::warn("the order has no form that can be shown");
    }
    value
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rootstock_api::boot::{NodeFile, RootPlace, VolumePlace};
    use rootstock_core::Digest;

    use super::*;

    fn order() -> BootOrder {
        BootOrder {
            boot: "secret session".to_owned(),
            node: "n1".to_owned(),
            mode: NodeMode::Diskless,
            image: "lab".parse().expect("a name"),
            version: rootstock_core::VersionNumber(3),
            manifest: Digest::of(b"m"),
            disk_bytes: 1 << 20,
            root: RootPlace {
                partition: 1,
                fs: "ext4".to_owned(),
                options: String::new(),
                init: "/sbin/init".to_owned(),
            },
            volume: Some(VolumePlace {
                address: "10.0.0.1:10809".to_owned(),
                export: "secret export".to_owned(),
                tls: false,
            }),
            personal: None,
            nfs: None,
            chunk_urls: Vec::new(),
            overlay_bytes_max: None,
            cache_bytes: 1,
            cache: Default::default(),
            cache_disk_bytes_max: None,
            install: None,
            fill: Default::default(),
            swarm: None,
            report_seconds: 30,
            check: None,
            keep: Vec::new(),
            rescue_shell: false,
            identity: Identity {
                host_name: "n1".to_owned(),
                domain: Some("lab.example".to_owned()),
                machine_id: "0".repeat(32),
                hosts: vec!["10.0.0.2 n2".to_owned()],
                files: vec![NodeFile {
                    path: "/etc/ssh/key".to_owned(),
                    mode: 0o600,
                    text: "secret key".to_owned(),
                }],
                ..Identity::default()
            },
        }
    }

    fn address() -> Ipv4Config {
        Ipv4Config {
            address: Ipv4Addr::new(10, 0, 0, 7),
            prefix_bits: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            name_servers: vec![Ipv4Addr::new(10, 0, 0, 53)],
        }
    }

    fn nic() -> Nic {
        Nic {
            name: "eth0".to_owned(),
            index: 2,
            mac: "52:54:00:12:34:56".parse().expect("an address"),
        }
    }

    #[test]
    fn what_all_may_read_holds_no_secret() {
        for (path, text) in in_run(
            &order(),
            Some(Link {
                nic: &nic(),
                address: &address(),
            }),
        ) {
            assert!(!text.contains("secret"), "{path}: {text}");
        }
        assert!(public(&order()).to_string().contains("\"node\":\"n1\""));
    }

    #[test]
    fn hosts_know_the_machine_once() {
        let image = "127.0.0.1 localhost golden\n127.0.1.1 golden\n::1 ip6-localhost\n";
        let expected = "127.0.0.1 localhost golden\n::1 ip6-localhost\n\
                        127.0.1.1 n1.lab.example n1\n10.0.0.2 n2\n";
        assert_eq!(hosts(image, &order().identity), expected);
        // A volume keeps its root: the second boot changes nothing.
        assert_eq!(hosts(expected, &order().identity).matches("n2").count(), 1);
        assert!(hosts("", &order().identity).starts_with("127.0.0.1 localhost\n"));
    }

    #[test]
    fn swap_is_taken_out_of_an_fstab() {
        let fstab = "UUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n# UUID=3 none swap sw\n";
        let text = without_swap(fstab).expect("it had swap");
        assert!(text.contains("\n# no swap on a diskless machine: UUID=2 none swap"));
        assert!(text.starts_with("UUID=1 / ext4"));
        assert_eq!(without_swap(&text), None);
    }

    #[test]
    fn over_nfs_nothing_waits_for_a_disk() {
        let fstab = "UUID=1 / ext4 defaults 0 1\n/dev/sda2 /home ext4 nofail 0 2\n\
                     LABEL=efi /boot/efi vfat umask=0077 0 1\ntmpfs /tmp tmpfs size=1G 0 0\n";
        let text = without_disk(fstab).expect("it had disks");
        let left: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            left,
            [
                "/dev/sda2 /home ext4 nofail 0 2",
                "tmpfs /tmp tmpfs size=1G 0 0"
            ]
        );
        assert_eq!(without_disk(&text), None);
    }

    #[test]
    fn name_servers_come_from_the_order_first() {
        let mut order = order();
        let text = resolv_conf(&order, Some(&address())).expect("servers");
        assert_eq!(text, "search lab.example\nnameserver 10.0.0.53\n");
        order.identity.name_servers = vec!["9.9.9.9".to_owned()];
        let text = resolv_conf(&order, Some(&address())).expect("servers");
        assert!(text.ends_with("nameserver 9.9.9.9\n"));
    }

    #[test]
    fn a_root_becomes_the_machines_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let put = |path: &str, text: &str| root.write(path, FILE, text.as_bytes());
        put("/etc/network/interfaces", "auto eth0\n").expect("written");
        fs::create_dir_all(directory.path().join("etc/cloud/cloud.cfg.d")).expect("made");
        for (path, text) in in_root(&order(), Some(&nic()), &root) {
            put(&path, &text).expect("written");
        }
        let interfaces = root.read("/etc/network/interfaces").expect("there");
        assert_eq!(interfaces, "auto eth0\nno-auto-down eth0\n");
        // The second boot of a volume adds nothing.
        assert_eq!(in_root(&order(), Some(&nic()), &root).len(), 1);
    }
}
