//! The agent's program and a first stage made of it by hand, for tests of the agent alone.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest::Kernel;
use crate::initrd::Initrd;
use crate::{kernel, tool};

/// What a virtual machine with a network root needs.
const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_net",
    "virtio_rng",
    "nbd",
    "ext4",
    "zram",
    "crc32c_generic",
];

/// Names a static agent that is there already.
const PROGRAM: &str = "ROOTSTOCK_AGENT";

/// The static agent: what `ROOTSTOCK_AGENT` names, or what `cargo xtask agent` builds.
///
/// # Errors
/// When the build fails.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os(PROGRAM) {
        return Ok(PathBuf::from(path));
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = tool::run_command(Command::new(cargo).current_dir(own).args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--",
        "agent",
    ]))?;
    Ok(PathBuf::from(path.trim()))
}

/// A kernel with a first stage in `directory`: the agent, the site's file, and
/// the modules of [`MODULES`] but for those in `without`.
///
/// # Errors
/// When the kernel cannot be fetched or a tool is lacking.
pub fn first_stage(
    directory: &Path,
    agent: &Path,
    site: &str,
    without: &[&str],
    arguments: &str,
) -> Result<Kernel> {
    let tree = kernel::fetched_kernel()?;
    let release = kernel::release(&tree)?;
    let modules = tree.join("lib/modules").join(&release);
    // The package has no lists: they are written when it is installed. Each is
    // renamed into its place, so that tests may do this at the same time.
    tool::run_command(
        Command::new("depmod")
            .arg("--basedir")
            .arg(&tree)
            .arg(&release),
    )?;
    let dep = fs::read_to_string(modules.join("modules.dep"))?;
    let alias = fs::read_to_string(modules.join("modules.alias"))?;
    let names: Vec<&str> = MODULES
        .into_iter()
        .filter(|name| !without.contains(name))
        .collect();
    let paths = closure(&dep, &names);

    let mut initrd = Initrd::new();
    initrd.copy("init", 0o755, agent)?;
    initrd.file("rootstock/site.json", 0o644, site.as_bytes());
    initrd.file("rootstock/modules.load", 0o644, names.join("\n").as_bytes());
    let place = format!("lib/modules/{release}");
    let mut own_dep = String::new();
    let mut own_names = BTreeSet::new();
    for line in dep.lines() {
        let path = line.split(':').next().unwrap_or_default();
        if paths.contains(path) {
            own_dep.push_str(line);
            own_dep.push('\n');
            own_names.insert(name_of(path));
            initrd.copy(&format!("{place}/{path}"), 0o644, &modules.join(path))?;
        }
    }
    let known = |line: &&str| {
        line.rsplit(' ')
            .next()
            .is_some_and(|name| own_names.contains(&name.replace('-', "_")))
    };
    let own_alias: Vec<&str> = alias.lines().filter(known).collect();
    initrd.file(&format!("{place}/modules.dep"), 0o644, own_dep.as_bytes());
    initrd.file(
        &format!("{place}/modules.alias"),
        0o644,
        own_alias.join("\n").as_bytes(),
    );
    let path = directory.join("first-stage");
    fs::write(&path, initrd.finish())?;
    Ok(Kernel {
        image: tree.join(format!("boot/vmlinuz-{release}")),
        initrd: path,
        arguments: arguments.to_owned(),
    })
}

/// The files of these modules and of what they need, as modules.dep lists it.
fn closure(dep: &str, names: &[&str]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for line in dep.lines() {
        let Some((path, needs)) = line.split_once(':') else {
            continue;
        };
        if names.contains(&name_of(path).as_str()) {
            paths.insert(path.to_owned());
            paths.extend(needs.split_whitespace().map(str::to_owned));
        }
    }
    paths
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

/// A directory tree whose `/sbin/init` is busybox with this script.
///
/// # Errors
/// When busybox is not there or the tree cannot be written.
pub fn small_root(tree: &Path, script: &str) -> Result<()> {
    for path in ["bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(tree.join(path))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy busybox")?;
    // It is linked statically in Debian's busybox-static, and dynamically in busybox.
    let libraries = tool::output(Command::new("ldd").arg("/bin/busybox"))?.stdout;
    for line in String::from_utf8_lossy(&libraries).lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let to = tree.join(path.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(path, to)?;
    }
    let init = format!("#!/bin/busybox sh\n/bin/busybox --install -s /bin\n{script}\n");
    let path = tree.join("sbin/init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
