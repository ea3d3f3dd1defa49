//! A kernel's modules as `depmod` listed them, and what each of them needs.

use std::collections::{BTreeMap, BTreeSet};

use super::root_fs::{FsError, PATH_BYTES_MAX, RootFs, text_of};

/// The largest of depmod's lists, in bytes.
const LIST_BYTES_MAX: u64 = 32 << 20;
/// The most modules, and the most lines that are taken from any list.
const LINES_MAX: usize = 200_000;

/// The modules of one kernel.
#[derive(Debug, Default)]
pub(super) struct ModuleIndex {
    /// By name.
    modules: BTreeMap<String, Module>,
    /// What is built in: paths by name.
    builtin: BTreeMap<String, String>,
    /// Pattern and module, in the list's order.
    aliases: Vec<(String, String)>,
    /// What is to be loaded before a module, as modules or aliases.
    softdeps: BTreeMap<String, Vec<String>>,
}

/// A module that can be loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Module {
    /// Its file, below the directory of modules.
    pub(super) path: String,
    /// The files it needs, in the order of depmod: what is needed first is last.
    needs: Vec<String>,
}

impl ModuleIndex {
    /// Reads depmod's lists in a directory of modules.
    pub(super) fn read(fs: &dyn RootFs, dir: &str) -> Result<Self, FsError> {
        let list = |name: &str| text_of(fs, &format!("{dir}/{name}"), LIST_BYTES_MAX);
        let mut index = Self::default();
        index.add_dependencies(&list("modules.dep")?.unwrap_or_default());
        index.add_builtin(&list("modules.builtin")?.unwrap_or_default());
        index.add_aliases(&list("modules.alias")?.unwrap_or_default());
        index.add_softdeps(&list("modules.softdep")?.unwrap_or_default());
        Ok(index)
    }

    fn add_dependencies(&mut self, text: &str) {
        for line in text.lines().take(LINES_MAX) {
            let Some((path, needs)) = line.split_once(':') else {
                continue;
            };
            if is_inside(path) {
                let module = Module {
                    path: path.to_owned(),
                    needs: needs.split_whitespace().map(ToOwned::to_owned).collect(),
                };
                self.modules.insert(name_of(path), module);
            }
        }
    }

    fn add_builtin(&mut self, text: &str) {
        for line in text.lines().take(LINES_MAX) {
            self.builtin.insert(name_of(line), line.to_owned());
        }
    }

    fn add_aliases(&mut self, text: &str) {
        for line in text.lines().take(LINES_MAX) {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) =
                (words.next(), words.next(), words.next())
            {
                let module = module.replace('-', "_");
                self.aliases.push((pattern.to_owned(), module));
            }
        }
    }

    fn add_softdeps(&mut self, text: &str) {
        for line in text.lines().take(LINES_MAX) {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            // modprobe.d(5): names come after `pre:` or `post:`.
            let pre = words
                .skip_while(|word| *word != "pre:")
                .skip(1)
                .take_while(|word| !word.ends_with(':') || *word == "pre:");
            let known = self.softdeps.entry(module.replace('-', "_")).or_default();
            for name in pre {
                if !known.iter().any(|known| known == name) {
                    known.push(name.to_owned());
                }
            }
        }
    }

    /// All modules that can be loaded, by name.
    pub(super) fn modules(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules
            .iter()
            .map(|(name, module)| (name.as_str(), module))
    }

    /// What is built into the kernel: names and paths.
    pub(super) fn builtin(&self) -> impl Iterator<Item = (&str, &str)> {
        self.builtin
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_str()))
    }

    /// Whether the kernel has it, built in or to be loaded.
    pub(super) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains_key(name)
    }

    pub(super) fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// The modules that are needed before `name`, in the order of depmod; those
    /// that its soft dependencies call by name among them.
    pub(super) fn needs(&self, name: &str) -> Vec<String> {
        let Some(module) = self.modules.get(name) else {
            return Vec::new();
        };
        let mut needs: Vec<String> = module.needs.iter().map(|path| name_of(path)).collect();
        for soft in self.softdeps.get(name).into_iter().flatten() {
            let soft = soft.replace('-', "_");
            if soft != name && self.modules.contains_key(&soft) && !needs.contains(&soft) {
                needs.push(soft);
            }
        }
        needs
    }

    /// The modules that stand behind the soft dependencies of `name` that are
    /// aliases: any of them may refuse to load, as they are variants for
    /// different processors.
    pub(super) fn variants(&self, name: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for soft in self.softdeps.get(name).into_iter().flatten() {
            if !self.has(&soft.replace('-', "_")) {
                found.extend(self.behind(soft));
            }
        }
        found
    }

    /// The modules that an alias stands for.
    pub(super) fn behind<'a>(&'a self, alias: &str) -> Vec<&'a str> {
        let mut found: Vec<&str> = Vec::new();
        for (pattern, module) in &self.aliases {
            if matches(pattern, alias)
                && self.modules.contains_key(module)
                && !found.contains(&module.as_str())
            {
                found.push(module);
            }
        }
        found
    }

    /// Lines of `modules.alias` that lead to these modules, in the list's order.
    pub(super) fn aliases_of<'a>(
        &'a self,
        modules: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.aliases
            .iter()
            .filter(|(_, module)| modules.contains(module))
            .map(|(pattern, module)| (pattern.as_str(), module.as_str()))
    }

    /// These modules and all that they need; what is built in needs no file.
    pub(super) fn closed(&self, wanted: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open: Vec<String> = wanted.into_iter().collect();
        while let Some(name) = open.pop() {
            if self.modules.contains_key(&name) && !all.contains(&name) {
                open.extend(self.needs(&name));
                open.extend(self.variants(&name).into_iter().map(ToOwned::to_owned));
                all.insert(name);
            }
        }
        all
    }

    /// A module and all it needs, in the order to load them.
    pub(super) fn load_order(&self, name: &str) -> Vec<String> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        // Each is visited twice: on the way down, and when all it needs is done.
        let mut open = vec![(name.to_owned(), false)];
        while let Some((name, done)) = open.pop() {
            if done {
                order.push(name);
            } else if self.modules.contains_key(&name) && seen.insert(name.clone()) {
                let needs = self.needs(&name);
                open.push((name, true));
                open.extend(needs.into_iter().map(|need| (need, false)));
            }
        }
        order
    }
}

/// `kernel/drivers/block/virtio-blk.ko.xz` is the module `virtio_blk`.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

/// Whether a path stays below the directory it is relative to.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() < PATH_BYTES_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether a name fits a pattern of `*`, `?` and `[...]`, as `fnmatch` has it; in
/// a time bounded by the product of both lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last star has to take one more.
    let mut retry = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'[') => class(&pattern[p..], name[n]),
            Some(b'?') => Some(1),
            Some(byte) if *byte == name[n] => Some(1),
            _ => None,
        };
        match (step, &mut retry) {
            (Some(step), _) => (p, n) = (p + step, n + 1),
            (None, Some((after_star, taken))) => {
                *taken += 1;
                (p, n) = (*after_star, *taken);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How long a class at the start of `pattern` is, when `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let members = &pattern[1..end];
    let mut at = 0;
    while at < members.len() {
        if members.get(at + 1) == Some(&b'-') && at + 2 < members.len() {
            if (members[at]..=members[at + 2]).contains(&byte) {
                return Some(end + 1);
            }
            at += 3;
        } else {
            if members[at] == byte {
                return Some(end + 1);
            }
            at += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryFs;
    use super::*;
    use proptest::prelude::*;

    fn index() -> ModuleIndex {
        let fs = MemoryFs::new(&[
            (
                "/m/modules.dep",
                b"kernel/a/ext4.ko: kernel/a/jbd2.ko kernel/a/mbcache.ko\n\
                  kernel/a/jbd2.ko:\nkernel/a/mbcache.ko:\n\
                  kernel/c/crc32c_generic.ko:\nkernel/c/crc32c-intel.ko.xz:\n\
                  kernel/n/r8169.ko: kernel/n/libphy.ko\nkernel/n/libphy.ko:\n\
                  kernel/n/realtek.ko: kernel/n/libphy.ko\n\
                  ../../etc/passwd:\n",
            ),
            ("/m/modules.builtin", b"kernel/b/overlay.ko\n"),
            (
                "/m/modules.alias",
                b"# comment\nalias crypto-crc32c crc32c_generic\n\
                  alias crypto-crc32c* crc32c-intel\n\
                  alias pci:v000010ECd0000816[18]sv*sd*bc*sc*i* r8169\n",
            ),
            (
                "/m/modules.softdep",
                b"softdep ext4 pre: crypto-crc32c\nsoftdep r8169 pre: realtek post: other\n",
            ),
        ]);
        ModuleIndex::read(&fs, "/m").expect("reads")
    }

    #[test]
    fn the_set_is_closed() {
        let index = index();
        let set = index.closed(["ext4".to_owned(), "r8169".to_owned(), "overlay".to_owned()]);
        let names: Vec<_> = set.iter().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "crc32c_generic",
                "crc32c_intel",
                "ext4",
                "jbd2",
                "libphy",
                "mbcache",
                "r8169",
                "realtek"
            ]
        );
        assert!(index.has("overlay") && !index.has("passwd"));
        assert_eq!(index.load_order("r8169"), ["libphy", "realtek", "r8169"]);
        assert_eq!(index.load_order("ext4"), ["mbcache", "jbd2", "ext4"]);
        assert_eq!(
            index.behind("pci:v000010ECd00008168sv00sd00bc02sc00i00"),
            ["r8169"]
        );
    }

    #[test]
    fn circles_end() {
        let mut index = ModuleIndex::default();
        index.add_dependencies("a.ko: b.ko\nb.ko: a.ko\n");
        assert_eq!(index.closed(["a".to_owned()]).len(), 2);
        assert_eq!(index.load_order("a").len(), 2);
    }

    #[test]
    fn patterns_are_those_of_fnmatch() {
        for (pattern, name, expected) in [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4", false),
            ("pci:v*d*bc02*", "pci:v1d2bc02sc", true),
            ("a[0-9]c", "a5c", true),
            ("a[0-9]c", "axc", false),
            ("a[bc", "abc", false),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// The obvious way, whose time is not bounded.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                model(&pattern[1..], name) || !name.is_empty() && model(pattern, &name[1..])
            }
            (Some(b'?'), Some(_)) => model(&pattern[1..], &name[1..]),
            (Some(a), Some(b)) if a == b => model(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn stars_agree_with_the_model(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), model(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn any_lists_do_no_harm(dep in "[a-c./: \n]{0,200}", alias in "[a-c*\\[\\]\\-: \n]{0,100}", soft in "(softdep|pre:|[a-c]| |\n){0,30}") {
            let fs = MemoryFs::new(&[
                ("/m/modules.dep", dep.as_bytes()),
                ("/m/modules.alias", alias.as_bytes()),
                ("/m/modules.softdep", soft.as_bytes()),
            ]);
            let index = ModuleIndex::read(&fs, "/m").expect("reads");
            let names: Vec<_> = index.modules().map(|(name, _)| name.to_owned()).collect();
            let closed = index.closed(names.clone());
            for name in names {
                for need in index.load_order(&name) {
                    prop_assert!(closed.contains(&need));
                }
            }
        }
    }
}
