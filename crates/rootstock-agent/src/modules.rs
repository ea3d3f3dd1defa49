//! Kernel modules: what needs what, which alias means which, and loading them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::console;

pub(crate) mod glob;

/// The modules of the first stage.
pub(crate) struct Modules {
    directory: PathBuf,
    index: Index,
    /// Loaded, or tried and refused: not tried again.
    done: HashSet<String>,
}

impl Modules {
    /// Reads the lists in `directory`; there are none for a kernel with all built in.
    pub(crate) fn open(directory: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        Self {
            directory: directory.to_owned(),
            index: Index::parse(&read("modules.dep"), &read("modules.alias")),
            done: HashSet::new(),
        }
    }

    /// Loads a module with what it needs; whether it came with the first stage.
    pub(crate) fn load(&mut self, name: &str) -> bool {
        let order = self.index.order(name);
        for name in &order {
            if self.done.insert(name.clone())
                && let Some(path) = self.index.paths.get(name)
                && let Err(error) = insert(&self.directory.join(path))
            {
                console::warn(format_args!("module {name} was refused: {error}"));
            }
        }
        !order.is_empty()
    }

    /// Loads the modules for a device's alias.
    pub(crate) fn load_alias(&mut self, alias: &str) {
        for name in self.index.matching(alias) {
            self.load(&name);
        }
    }
}

fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // It is there already, or its device is not.
        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What `modules.dep` and `modules.alias` say.
#[derive(Debug, Default)]
struct Index {
    /// A module's file, below the modules' directory.
    paths: HashMap<String, String>,
    /// What a module needs.
    needs: HashMap<String, Vec<String>>,
    /// Patterns with their modules; most begin with the bus, which sorts them.
    aliases: HashMap<String, Vec<(String, String)>>,
}

impl Index {
    fn parse(dep: &str, alias: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((path, needs)) = line.split_once(':') else {
                continue;
            };
            let name = module_name(path);
            let needs = needs.split_ascii_whitespace().map(module_name).collect();
            index.needs.insert(name.clone(), needs);
            index.paths.insert(name, path.trim().to_owned());
        }
        for line in alias.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("alias"), Some(pattern), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let pair = (pattern.to_owned(), module_name(name));
            index.aliases.entry(bus(pattern)).or_default().push(pair);
        }
        index
    }

    /// A module and what it needs, in the order to load them; empty when it is
    /// not here.
    fn order(&self, name: &str) -> Vec<String> {
        let mut order = Vec::new();
        self.add(&module_name(name), &mut HashSet::new(), &mut order);
        order
    }

    fn add<'a>(&'a self, name: &str, seen: &mut HashSet<&'a str>, order: &mut Vec<String>) {
        let Some((name, needs)) = self.needs.get_key_value(name) else {
            return;
        };
        if !seen.insert(name) {
            return;
        }
        // The nearest need is listed first and may itself need those after it.
        for need in needs.iter().rev() {
            self.add(need, seen, order);
        }
        order.push(name.clone());
    }

    fn matching(&self, alias: &str) -> Vec<String> {
        let bus = bus(alias);
        let sorted = self.aliases.get(&bus).into_iter().flatten();
        let odd = self.aliases.get("").into_iter().flatten();
        sorted
            .chain(odd.filter(|_| !bus.is_empty()))
            .filter(|(pattern, _)| glob::matches(pattern, alias))
            .map(|(_, name)| name.clone())
            .collect()
    }
}

/// `pci` of `pci:v00008086d*`; empty when a pattern begins with a wild card.
fn bus(alias: &str) -> String {
    let end = alias.find(':').unwrap_or(alias.len());
    let bus = &alias[..end];
    if bus.contains(['*', '?', '[']) {
        return String::new();
    }
    bus.to_owned()
}

/// `kernel/drivers/block/virtio-blk.ko` and `virtio-blk` are `virtio_blk`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio-ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio-ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/net/core/failover.ko:
a.ko: b.ko
b.ko: a.ko
";
    const ALIAS: &str = "\
# a comment
alias virtio:d00000001v* virtio_net
alias pci:v00008086d0000100[EF]sv*sd*bc*sc*i* e1000
alias pci:v00008086d* quirks
alias *:odd odd
alias fs-ext4 ext4
";

    #[test]
    fn needs_come_first_and_once() {
        let index = Index::parse(DEP, ALIAS);
        for (name, expected) in [
            (
                "virtio-net",
                &["virtio", "virtio_ring", "failover", "virtio_net"][..],
            ),
            ("virtio", &["virtio"]),
            ("a", &["b", "a"]),
            ("absent", &[]),
        ] {
            assert_eq!(index.order(name), expected, "{name}");
        }
    }

    #[test]
    fn aliases_find_their_modules() {
        let index = Index::parse(DEP, ALIAS);
        for (alias, expected) in [
            ("virtio:d00000001v00001AF4", &["virtio_net"][..]),
            (
                "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
                &["e1000", "quirks"],
            ),
            ("usb:odd", &["odd"]),
            ("fs-ext4", &["ext4"]),
            ("pci:v00001234", &[]),
        ] {
            assert_eq!(index.matching(alias), expected, "{alias}");
        }
    }
}
