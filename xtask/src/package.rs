//! `cargo xtask package`: a Debian package, laid out in a directory and packed by `dpkg-deb`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rootstock_tests::tool;

use crate::agent;
use crate::command::{self, root};
use crate::tidy::files::collect;

/// Debian's revision of our version.
const REVISION: u32 = 1;
const PROGRAM: u32 = 0o755;
const FILE: u32 = 0o644;

/// Files of the repository and where the package puts them.
const FILES: [(&str, &str); 6] = [
    (
        "packaging/rootstock-nfs.service",
        "usr/lib/systemd/system/rootstock-nfs.service",
    ),
    (
        "packaging/rootstock.service",
        "usr/lib/systemd/system/rootstock.service",
    ),
    (
        "packaging/rootstock.sysusers",
        "usr/lib/sysusers.d/rootstock.conf",
    ),
    ("packaging/rootstock.toml", "etc/rootstock/rootstock.toml"),
    (
        "packaging/debian/copyright",
        "usr/share/doc/rootstock/copyright",
    ),
    ("README.md", "usr/share/doc/rootstock/README.md"),
];

/// Examples of installers, and their templates.
const INSTALLERS: &[&str] = &[
    "debian-12/installer.toml",
    "debian-12/preseed.cfg",
    "rocky-9/installer.toml",
    "rocky-9/kickstart.cfg",
    "ubuntu-24.04/installer.toml",
    "ubuntu-24.04/meta-data",
    "ubuntu-24.04/user-data",
];

/// The first stage's program, where the daemon looks for it.
const AGENT: &str = "usr/lib/rootstock/rootstock-agent";
/// Plug-ins as examples: to be copied to, or linked from, the directory that runs them.
const PLUGINS: [&str; 2] = ["distcc", "known-hosts"];

/// Files that an administrator may change and an upgrade keeps.
const CONFFILES: &str = "/etc/rootstock/rootstock.toml\n";
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// A shell's name, and where its completions belong.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/rootstock"),
    ("zsh", "usr/share/zsh/vendor-completions/_rootstock"),
    ("fish", "usr/share/fish/vendor_completions.d/rootstock.fish"),
];

/// What is packed, where it is not to be built.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Programs<'a> {
    /// `rootstock`.
    pub(crate) binary: Option<&'a Path>,
    /// `rootstock-agent`, linked statically.
    pub(crate) agent: Option<&'a Path>,
}

/// Packs `programs`, or the release build, and gives the package's path below `output`.
///
/// # Errors
/// When the build or a tool fails.
pub(crate) fn run(programs: Programs<'_>, output: Option<&Path>) -> Result<PathBuf> {
    let output = output.map_or_else(|| command::target().join("debian"), Path::to_owned);
    let binary = match programs.binary {
        Some(binary) => binary.to_owned(),
        None => build()?,
    };
    let agent = match programs.agent {
        Some(agent) => agent.to_owned(),
        None => agent::run()?,
    };
    let tree = output.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    lay_out(&tree, &binary, &agent)?;
    let architecture = tool::run("dpkg", ["--print-architecture"])?;
    let version = format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"));
    control(&tree, &version, architecture.trim())?;
    let package = output.join(format!("rootstock_{version}_{}.deb", architecture.trim()));
    let mut pack = Command::new("dpkg-deb");
    tool::run_command(
        pack.args(["--root-owner-group", "--build"])
            .arg(&tree)
            .arg(&package),
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

fn build() -> Result<PathBuf> {
    let mut build = command::cargo();
    command::show(build.args(["build", "--release", "--locked", "--package", "rootstock"]))?;
    Ok(command::target().join("release/rootstock"))
}

fn lay_out(tree: &Path, binary: &Path, agent: &Path) -> Result<()> {
    let program = tree.join("usr/bin/rootstock");
    place(binary, &program, PROGRAM)?;
    tool::run_command(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
    place(agent, &tree.join(AGENT), PROGRAM)?;
    for name in PLUGINS {
        let from = root().join("packaging/plugins").join(name);
        let to = tree.join("usr/share/rootstock/plugins").join(name);
        place(&from, &to, PROGRAM)?;
    }
    for name in INSTALLERS {
        let from = root().join("packaging/installers").join(name);
        let to = tree.join("usr/share/rootstock/installers").join(name);
        place(&from, &to, FILE)?;
    }
    for (from, to) in FILES {
        place(&root().join(from), &tree.join(to), FILE)?;
    }
    let book = root().join("docs");
    let mut pages = Vec::new();
    collect(&root(), &book, "md", &mut pages)?;
    for page in pages {
        let name = page.strip_prefix(&book)?;
        place(
            &page,
            &tree.join("usr/share/doc/rootstock").join(name),
            FILE,
        )?;
    }
    for (shell, to) in COMPLETIONS {
        let text = tool::run_command(Command::new(&program).args(["completions", shell]))?;
        write(&tree.join(to), &text, FILE)?;
    }
    Ok(())
}

fn control(tree: &Path, version: &str, architecture: &str) -> Result<()> {
    let directory = tree.join("DEBIAN");
    let sources = root().join("packaging/debian");
    let template = fs::read_to_string(sources.join("control"))?;
    let text = template
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@INSTALLED_KIB@", &installed_kib(tree)?)
        .replace("@LIBC@", &libc_version()?);
    write(&directory.join("control"), &text, FILE)?;
    write(&directory.join("conffiles"), CONFFILES, FILE)?;
    for script in SCRIPTS {
        place(&sources.join(script), &directory.join(script), PROGRAM)?;
    }
    Ok(())
}

fn installed_kib(tree: &Path) -> Result<String> {
    let text = tool::run_command(
        Command::new("du")
            .args(["-sk", "--apparent-size"])
            .arg(tree),
    )?;
    let number = text.split_whitespace().next().context("du said nothing")?;
    Ok(number.to_owned())
}

/// The C library that it was linked with here is the oldest that it may meet.
fn libc_version() -> Result<String> {
    let text = tool::run("getconf", ["GNU_LIBC_VERSION"])?;
    let version = text
        .trim()
        .rsplit(' ')
        .next()
        .context("getconf said nothing")?;
    Ok(version.to_owned())
}

fn place(from: &Path, to: &Path, permissions: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(permissions))?;
    Ok(())
}

fn write(to: &Path, text: &str, permissions: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::write(to, text).with_context(|| format!("write {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(permissions))?;
    Ok(())
}
