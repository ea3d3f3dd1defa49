//! The Debian package: what is in it, and whether that works.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rootstock_tests::daemon::{self, BOOT_OFF, Daemon, DaemonOptions};
use rootstock_tests::{agent, tool};
use tempfile::TempDir;

/// The worst that `systemd-analyze security` may say, in tenths.
const EXPOSURE_MAX: &str = "18";

/// The package, unpacked.
struct Package {
    directory: TempDir,
    file: PathBuf,
}

impl Package {
    /// Packs the program under test, as `cargo xtask package` packs the release build.
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binary = daemon::binary().unwrap();
        let mut pack = Command::new(binary.with_file_name("xtask"));
        pack.arg("package").arg("--binary").arg(&binary);
        pack.arg("--agent").arg(agent::program().unwrap());
        pack.arg("--output").arg(directory.path().join("out"));
        let said = tool::run_command(&mut pack).unwrap();
        let file = PathBuf::from(said.trim());
        tool::run_command(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&file)
                .arg(directory.path().join("root")),
        )
        .unwrap();
        Self { directory, file }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    fn control(&self) -> PathBuf {
        let to = self.directory.path().join("control");
        tool::run_command(
            Command::new("dpkg-deb")
                .arg("--control")
                .arg(&self.file)
                .arg(&to),
        )
        .unwrap();
        to
    }
}

#[test]
fn the_package_holds_all_that_it_should_and_it_works() {
    let package = Package::make();
    for name in [
        "usr/share/doc/rootstock/copyright",
        "usr/share/doc/rootstock/README.md",
        "usr/share/doc/rootstock/guide/install.md",
        "usr/share/bash-completion/completions/rootstock",
        "usr/share/zsh/vendor-completions/_rootstock",
        "usr/share/fish/vendor_completions.d/rootstock.fish",
        "usr/lib/sysusers.d/rootstock.conf",
        "usr/lib/systemd/system/rootstock-nfs.service",
        "usr/lib/rootstock/rootstock-agent",
        "usr/share/rootstock/plugins/distcc",
        "usr/share/rootstock/plugins/known-hosts",
    ] {
        let length = fs::metadata(package.path(name)).map(|data| data.len());
        assert!(
            length.is_ok_and(|length| length > 0),
            "{name} is lacking or empty"
        );
    }
    let version = tool::run(path_text(&package.path("usr/bin/rootstock")), ["--version"]).unwrap();
    assert_eq!(
        version.trim(),
        concat!("rootstock ", env!("CARGO_PKG_VERSION"))
    );

    for unit in ["rootstock.service", "rootstock-nfs.service"] {
        verify_unit(&package, unit);
    }
    check_security(&package);
    check_control(&package);
    check_configuration(&package);
}

/// systemd understands the unit and finds what it starts.
fn verify_unit(package: &Package, unit: &str) {
    let root = package.directory.path().join("root");
    // Units that ours names must be there to be looked at.
    let units = root.join("usr/lib/systemd/system");
    for name in [
        "network-online.target",
        "multi-user.target",
        "sysinit.target",
    ] {
        fs::write(units.join(name), "[Unit]\nDescription=stand-in\n").unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify
        .arg("verify")
        .arg("--man=no")
        .arg(format!("--root={}", root.display()));
    let output = tool::output(verify.arg(unit)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(&format!("{unit}:")), "{said}");
}

/// systemd finds the daemon well fenced in.
fn check_security(package: &Package) {
    let unit = package.path("usr/lib/systemd/system/rootstock.service");
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true"])
        .arg(format!("--threshold={EXPOSURE_MAX}"));
    tool::run_command(security.arg(&unit)).unwrap();
}

fn check_control(package: &Package) {
    let control = package.control();
    let fields = fs::read_to_string(control.join("control")).unwrap();
    for line in ["Package: rootstock\n", "Section: admin\n"] {
        assert!(fields.contains(line), "{fields}");
    }
    assert!(
        !fields.contains('@') || fields.matches('@').count() == 1,
        "{fields}"
    );
    let conffiles = fs::read_to_string(control.join("conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/rootstock/rootstock.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        tool::run("sh", ["-n", path_text(&control.join(script))]).unwrap();
    }
}

/// The packaged program starts with the packaged configuration, also with every
/// key's comment taken away: what is written there is what it understands.
fn check_configuration(package: &Package) {
    let commented = fs::read_to_string(package.path("etc/rootstock/rootstock.toml")).unwrap();
    let directory = package.directory.path().join("run");
    for config in [commented.clone(), uncommented(&commented)] {
        let mut options = DaemonOptions::new(&directory).unwrap();
        options.binary = package.path("usr/bin/rootstock");
        options.config = config;
        // It would answer on the networks of the machine that runs the tests.
        options.boot = Some(BOOT_OFF.to_owned());
        let mut daemon = Daemon::start_with(options).unwrap();
        daemon.stop().unwrap();
    }
}

/// Takes the comment of each table and key away, but for examples: a key's second line, and paths to files.
fn uncommented(text: &str) -> String {
    let mut lines = Vec::new();
    let mut keys = Vec::new();
    for line in text.lines().rev() {
        let key = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        let Some((name, value)) = key.and_then(|key| key.split_once(" = ")) else {
            let table = key.filter(|key| key.starts_with('[')).unwrap_or(line);
            if table.starts_with('[') {
                keys.clear();
            }
            lines.push(table.to_owned());
            continue;
        };
        if !keys.contains(&name) && !value.contains("tls.") {
            keys.push(name);
            lines.push(format!("{name} = {value}"));
        }
    }
    lines.reverse();
    lines.join("\n")
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}
