//! A Debian kernel and a small first file system, for guests that need nothing more.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guest::Kernel;
use crate::initrd::Initrd;
use crate::tool;

/// The package that names the newest kernel for guests.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What the guest runs as its first process, before the caller's part.
const INIT_HEAD: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
";

/// What a guest with its own small user space consists of.
pub struct SmallGuest<'a> {
    /// Kernel modules, loaded in this order with what they need.
    pub modules: &'a [&'a str],
    /// Programs of this machine that are taken along with their libraries.
    pub programs: &'a [&'a str],
    /// Shell lines run after the modules; a shell on the console follows.
    pub script: &'a str,
}

impl SmallGuest<'_> {
    /// Makes the initrd in `directory` and gives what QEMU needs to boot it.
    ///
    /// # Errors
    /// When the kernel cannot be fetched or a program is lacking.
    pub fn build(&self, directory: &Path) -> Result<Kernel> {
        let tree = fetched_kernel()?;
        let release = release(&tree)?;
        let modules = tree.join("lib/modules").join(&release);
        let mut initrd = Initrd::new();
        add_program(&mut initrd, Path::new("/bin/busybox"))?;
        for path in ["proc", "sys", "dev", "mnt", "tmp"] {
            initrd.directory(path);
        }
        let mut init = INIT_HEAD.to_owned();
        for path in with_dependencies(&modules, self.modules)? {
            let name = format!("modules/{}", path.rsplit('/').next().unwrap_or(&path));
            initrd.copy(&name, 0o644, &modules.join(&path))?;
            init.push_str(&format!("insmod /{name}\n"));
        }
        for program in self.programs {
            add_program(&mut initrd, Path::new(program))?;
        }
        init.push_str(self.script);
        // A shell with job control needs a terminal of its own.
        init.push_str("\nexport PS1='guest# '\nexec setsid cttyhack sh\n");
        initrd.file("init", 0o755, init.as_bytes());
        let path = directory.join("initrd");
        fs::write(&path, initrd.finish())?;
        Ok(Kernel {
            image: tree.join(format!("boot/vmlinuz-{release}")),
            initrd: path,
            arguments: "console=ttyS0 quiet panic=-1".to_owned(),
        })
    }
}

/// Debian's newest kernel for guests, unpacked; fetched once and kept beside the build.
/// Tests beside this one wait.
///
/// # Errors
/// When apt cannot fetch it.
pub fn fetched_kernel() -> Result<PathBuf> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    // apt refuses to fetch its lists twice at the same time.
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let package = newest_kernel()?;
    let tree = cache.join(&package);
    if tree.exists() {
        return Ok(tree);
    }
    let unfinished = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(&cache)?;
    let mut download = Command::new("apt-get");
    // The sandbox user of apt may not write into a private directory.
    download
        .args(["-o", "APT::Sandbox::User=root", "download", &package])
        .current_dir(&unfinished);
    tool::run_command(&mut download)?;
    let file = find(unfinished.path(), |name| name.ends_with(".deb"))?;
    let unpacked = unfinished.path().join("tree");
    let mut extract = Command::new("dpkg-deb");
    tool::run_command(extract.arg("--extract").arg(&file).arg(&unpacked))?;
    fs::rename(&unpacked, &tree).context("keep the fetched kernel")?;
    Ok(tree)
}

fn newest_kernel() -> Result<String> {
    let mut newest = newest_known_kernel()?;
    if newest.is_none() {
        // A machine where nothing was ever installed has no lists.
        tool::run("apt-get", ["update", "--quiet=2"])?;
        newest = newest_known_kernel()?;
    }
    newest.with_context(|| format!("apt knows no {KERNEL_PACKAGE}"))
}

fn newest_known_kernel() -> Result<Option<String>> {
    let output = tool::output(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|rest| format!("linux-image-{rest}")))
}

/// `target/guest-kernels`, found from the running test's own place.
fn cache() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists());
    Ok(target
        .context("the test runs outside cargo's target directory")?
        .join("guest-kernels"))
}

/// The release of an unpacked kernel.
///
/// # Errors
/// When it has no modules.
pub fn release(tree: &Path) -> Result<String> {
    let path = find(&tree.join("lib/modules"), |_| true)?;
    let name = path.file_name().context("a module directory has a name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn find(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            return Ok(entry.path());
        }
    }
    bail!("{} does not hold what was expected", directory.display());
}

/// The files of `names` and of all they need, in the order to load them.
///
/// The package's own modules.dep is written when it is installed, so what a
/// module needs is asked of the module.
fn with_dependencies(modules: &Path, names: &[&str]) -> Result<Vec<String>> {
    let mut known = Vec::new();
    list_modules(&modules.join("kernel"), "kernel", &mut known)?;
    let mut order = Vec::new();
    for name in names {
        add_module(modules, &known, name, &mut order)?;
    }
    Ok(order)
}

fn add_module(modules: &Path, known: &[String], name: &str, order: &mut Vec<String>) -> Result<()> {
    let wanted = module_name(name);
    let Some(path) = known.iter().find(|path| module_name(path) == wanted) else {
        bail!("the kernel has no module {name}");
    };
    if order.contains(path) {
        return Ok(());
    }
    let needs = tool::run_command(
        Command::new("modinfo")
            .args(["-F", "depends"])
            .arg(modules.join(path)),
    )?;
    for need in needs.trim().split(',').filter(|need| !need.is_empty()) {
        add_module(modules, known, need, order)?;
    }
    order.push(path.clone());
    Ok(())
}

fn list_modules(directory: &Path, prefix: &str, into: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list_modules(&entry.path(), &path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

/// `kernel/drivers/block/virtio-blk.ko` is the module `virtio_blk`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

/// Adds a program and the libraries that the loader would find for it.
fn add_program(initrd: &mut Initrd, program: &Path) -> Result<()> {
    initrd.copy(&relative(program), 0o755, program)?;
    // It fails for a static program, which needs nothing.
    let libraries = tool::output(Command::new("ldd").arg(program))?.stdout;
    for line in String::from_utf8_lossy(&libraries).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            initrd.copy(&relative(Path::new(path)), 0o755, Path::new(path))?;
        }
    }
    Ok(())
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_one_spelling() {
        for (path, name) in [
            ("kernel/drivers/block/nbd.ko", "nbd"),
            ("kernel/net/virtio-net.ko.xz", "virtio_net"),
            ("virtio_pci", "virtio_pci"),
        ] {
            assert_eq!(module_name(path), name);
        }
    }
}
