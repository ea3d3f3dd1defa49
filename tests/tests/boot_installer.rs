//! Machines that are started with a distribution's installer once: Debian's own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rootstock_tests::boots::{self, noted, reach, shell};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan, SERVER};
use rootstock_tests::pxe::Firmware;
use rootstock_tests::{tool, wait};

/// Where Debian's package has it.
const DEBIAN: &str = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";

/// What it does in the place of an installation, which would take an hour here.
const PRESEED: &str = "\
d-i preseed/early_command string \
    set -e; \
    test \"$(hostname)\" = '{{ node.name }}'; \
    ip addr show | grep -q 'inet {{ network.address }}/'; \
    wget -q -O /dev/null '{{ say }}?text=its+name+is+{{ node.name }}'; \
    wget -q -O /dev/null '{{ done }}'; \
    reboot
d-i debian-installer/locale string en_US.UTF-8
d-i keyboard-configuration/xkb-keymap select us
";

fn installer(directory: &Path) -> Result<()> {
    let folder = directory.join("debian-12");
    fs::create_dir_all(&folder)?;
    let definition = format!(
        "title = \"Debian 12\"\nkernel = \"{DEBIAN}/linux\"\ninitrd = [\"{DEBIAN}/initrd.gz\"]\n\
         arguments = \"auto=true priority=critical url={{{{ url }}}}/preseed.cfg \
         hostname={{{{ node.name }}}} domain=lab \
         {{% if not network.gateway %}}netcfg/no_default_route=true{{% endif %}} \
         {{% if not network.name_servers %}}netcfg/get_nameservers={{% endif %}}\"\nstarts = 2\n"
    );
    fs::write(folder.join("installer.toml"), definition)?;
    fs::write(folder.join("preseed.cfg"), PRESEED)?;
    Ok(())
}

/// The installer runs with answers made for its machine, calls home, and starts the machine
/// anew; then it boots its image, from the same network.
#[test]
fn debians_installer_runs_once_and_then_the_image_boots() -> Result<()> {
    let directory = tempfile::tempdir()?;
    installer(directory.path())?;
    let more = format!("installers = {:?}", directory.path());
    let mut lan = Lan::new("dhcp", &more)?;
    lan.import("lab", &boots::image(Golden::Debian)?)?;
    let listed = lan.daemon.json(["installer", "list"])?;
    assert_eq!(listed["installers"][0]["problem"], serde_json::Value::Null);
    for (name, number, firmware) in [("pc", 1, Firmware::Bios), ("uefi", 2, Firmware::UefiPxe)] {
        lan.add_node(name, number, "lab")?;
        lan.daemon
            .run(["node", "install", name, "--installer", "debian-12"])?;
        let mut machine = lan.power_on(name, number, firmware)?;
        installed(&lan, name)?;
        lan.log_in(&mut machine, name)?;
        reach(&lan, name, "up")?;
        let shown = lan.daemon.json(["node", "show", name])?;
        assert_eq!(shown["installer"]["state"], "done");
        assert_eq!(shown["installer"]["starts"], 1);
        shell(&mut machine, "grep -q rootstock.token /proc/cmdline")?;
        boots::power_off(machine)?;
    }
    lan.daemon.stop()
}

/// Waits until a node's installer has called home, while the daemon starts anew.
fn installed(lan: &Lan, node: &str) -> Result<()> {
    reach(lan, node, "installer")?;
    let said = format!("its name is {node}");
    wait::until("the installer is done", BOOT_LIMIT, || {
        let shown = lan.daemon.json(["node", "show", node])?;
        Ok((shown["installer"]["state"] == "done").then_some(()))
    })
    .or_else(|error| noted(lan, node, &[&said]).context(error))
}

/// An installer that never calls home is started as often as its folder says, and then the
/// machine waits and says so.
#[test]
fn an_installer_that_does_not_call_home_is_given_up() -> Result<()> {
    let directory = tempfile::tempdir()?;
    installer(directory.path())?;
    let silent = "d-i preseed/early_command string reboot\n\
                  d-i debian-installer/locale string en_US.UTF-8\n\
                  d-i keyboard-configuration/xkb-keymap select us\n";
    fs::write(directory.path().join("debian-12/preseed.cfg"), silent)?;
    let more = format!("installers = {:?}", directory.path());
    let mut lan = Lan::new("dhcp", &more)?;
    lan.import("lab", &boots::image(Golden::Debian)?)?;
    lan.add_node("pc", 1, "lab")?;
    lan.daemon
        .run(["node", "install", "pc", "--installer", "debian-12"])?;
    let machine = lan.power_on("pc", 1, Firmware::Bios)?;
    let shown = wait::until("it is given up", BOOT_LIMIT, || {
        let shown = lan.daemon.json(["node", "show", "pc"])?;
        let run = shown["installer"].clone();
        Ok((run["state"] == "failed").then_some(run))
    })?;
    assert_eq!(shown["starts"], 2);
    assert_eq!(shown["reason"], "was started 2 times and did not call home");
    let script = format!("http://{SERVER}:8480/boot/ipxe/{}", Lan::mac(1));
    let mut curl = lan.namespace.command("curl");
    let said = tool::run_command(curl.args(["-s", &script]))?;
    assert!(
        said.contains("rootstock node install pc --cancel"),
        "{said}"
    );
    lan.daemon.run(["node", "install", "pc", "--cancel"])?;
    // The machine asks again by itself.
    reach(&lan, "pc", "up")?;
    drop(machine);
    lan.daemon.stop()
}

/// Debian's installer with a disk over iSCSI: what firmware left of that in memory is there.
/// Its component that logs in is not in the package.
const DISK_PRESEED: &str = "\
d-i preseed/early_command string \
    if dmesg | grep -q 'iBFT' || grep -q '{{ disk.target }}' /sys/firmware/acpi/tables/iBFT; \
    then wget -q -O /dev/null '{{ done }}'; \
    else wget -q -O /dev/null '{{ failed }}?reason=no+iBFT'; fi; \
    poweroff
d-i debian-installer/locale string en_US.UTF-8
d-i keyboard-configuration/xkb-keymap select us
";

/// A node without an image is installed on a volume that is made for it, which iPXE hooks and
/// the installer is told of, and which the node boots from then on.
#[test]
fn an_installer_finds_the_volume_that_was_made_for_its_machine() -> Result<()> {
    let directory = tempfile::tempdir()?;
    installer(directory.path())?;
    fs::write(directory.path().join("debian-12/preseed.cfg"), DISK_PRESEED)?;
    let more = format!(
        "installers = {:?}\n[iscsi]\nlisten = [\"0.0.0.0:3260\"]",
        directory.path()
    );
    let mut lan = Lan::new("dhcp", &more)?;
    for (name, number, firmware) in [("pc", 1, Firmware::Bios), ("uefi", 2, Firmware::UefiPxe)] {
        let mac = Lan::mac(number);
        let add = ["node", "add", name, "--mac", &mac, "--mode", "iscsi"];
        lan.daemon
            .run(add.into_iter().chain(["--console", "ttyS0"]))?;
        let install = ["node", "install", name, "--installer", "debian-12"];
        let refused = lan.daemon.run(install).expect_err("has no volume");
        assert!(format!("{refused:#}").contains("--size 20G"), "{refused:#}");
        lan.daemon
            .run(install.into_iter().chain(["--size", "1G"]))?;
        let mut machine = lan.power_on(name, number, firmware)?;
        reach(&lan, name, "installed")?;
        let names = boots::steps(&lan, name)?.into_iter().map(|step| step.0);
        let names: Vec<_> = names
            .filter(|step| step == "iscsi" || step == "installer")
            .collect();
        assert_eq!(names, ["iscsi", "installer"]);
        machine.process().wait(BOOT_LIMIT)?;
        let script = format!("http://{SERVER}:8480/boot/ipxe/{mac}");
        let mut curl = lan.namespace.command("curl");
        let said = tool::run_command(curl.args(["-s", &script]))?;
        assert!(
            said.contains("sanboot iscsi:10.77.0.1::3260:0:iqn."),
            "{said}"
        );
        assert!(said.contains(&format!(":volume.{name}")), "{said}");
    }
    lan.daemon.stop()
}
