//! The installers of a site: a folder for each, with a kernel, an initrd and templates of
//! the files that answer an installer's questions.
//!
//! They are read each time: an administrator edits them while the daemon runs.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use rootstock_api::{Installer, InstallerEnd, ProblemCode};
use rootstock_core::InstallerName;
use serde::{Deserialize, Serialize};

use crate::http::ApiError;

/// What describes an installer, in its folder.
const DEFINITION: &str = "installer.toml";

/// The most installers.
const INSTALLERS_MAX: usize = 256;

/// The most templates of one.
const TEMPLATES_MAX: usize = 64;

/// The longest template, and the longest file that is made of one, in bytes.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// How much a template may compute: a loop that never ends stops here.
const FUEL: u64 = 1_000_000;

/// How often an installer is started when nobody says.
const STARTS: u32 = 3;

/// The most that it can be.
const STARTS_MAX: u32 = 100;

/// The name that the template of the kernel's arguments has in messages.
const ARGUMENTS: &str = "arguments";

/// What a path under an installer's token can be besides a template's name.
pub(crate) const RESERVED: [&str; 5] = ["kernel", "initrd", "done", "failed", "say"];

/// Why an installer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallerError {
    /// There is none.
    #[error("there is no installer '{name}' in {}", directory.display())]
    Missing {
        /// Its name.
        name: InstallerName,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A file of it cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of it cannot be used.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A template does not work out.
    #[error("the template {name} of the installer {installer} does not work out: {reason}")]
    Template {
        /// The installer.
        installer: InstallerName,
        /// The template.
        name: String,
        /// Where, and why.
        reason: String,
    },
}

impl From<InstallerError> for ApiError {
    fn from(error: InstallerError) -> Self {
        let code = match error {
            InstallerError::Missing { .. } => ProblemCode::InstallerNotFound,
            _ => ProblemCode::BadValue,
        };
        Self::new(code, crate::http::chain(&error)).with_hint(
            "`rootstock installer list` shows the installers, and what is wrong with them",
        )
    }
}

/// What `installer.toml` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    #[serde(default)]
    title: String,
    kernel: PathBuf,
    #[serde(default)]
    initrd: Vec<PathBuf>,
    #[serde(default)]
    arguments: String,
    #[serde(default)]
    ends: InstallerEnd,
    #[serde(default = "starts")]
    starts: u32,
    #[serde(default)]
    values: toml::Table,
}

const fn starts() -> u32 {
    STARTS
}

/// An installer with its templates.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    name: InstallerName,
    path: PathBuf,
    definition: Definition,
    templates: BTreeMap<String, String>,
}

/// What a template sees: the values that its administrator gave, as `values`, beside what
/// is known of the machine.
#[derive(Serialize)]
struct Seen<'a, T> {
    #[serde(flatten)]
    machine: &'a T,
    values: &'a toml::Table,
}

impl Folder {
    /// Reads an installer of a directory.
    pub(crate) fn read(directory: &Path, name: &InstallerName) -> Result<Self, InstallerError> {
        let path = directory.join(name.as_str());
        let text = match read(&path.join(DEFINITION)) {
            Err(InstallerError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Err(InstallerError::Missing {
                    name: name.clone(),
                    directory: directory.to_owned(),
                });
            }
            text => text?,
        };
        let wrong = |reason: String| InstallerError::File {
            path: path.join(DEFINITION),
            reason,
        };
        let definition: Definition =
            toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if !(1..=STARTS_MAX).contains(&definition.starts) {
            let reason = format!(
                "starts is {}, and can be 1 to {STARTS_MAX}",
                definition.starts
            );
            return Err(wrong(reason));
        }
        Ok(Self {
            name: name.clone(),
            templates: templates(&path)?,
            path,
            definition,
        })
    }

    /// What tells that it is done.
    pub(crate) const fn ends(&self) -> InstallerEnd {
        self.definition.ends
    }

    /// How often it is started until it is given up.
    pub(crate) const fn starts_max(&self) -> u32 {
        self.definition.starts
    }

    /// Its kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.path.join(&self.definition.kernel)
    }

    /// The parts of its initrd.
    pub(crate) fn initrd(&self) -> Vec<PathBuf> {
        let parts = self.definition.initrd.iter();
        parts.map(|part| self.path.join(part)).collect()
    }

    /// The names of the files that are made of templates.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.templates.keys().map(String::as_str)
    }

    /// Its kernel's arguments on a machine.
    pub(crate) fn arguments<T: Serialize>(&self, machine: &T) -> Result<String, InstallerError> {
        self.render(ARGUMENTS, &self.definition.arguments, machine)
    }

    /// A file as a machine gets it, if there is a template of this name.
    pub(crate) fn file<T: Serialize>(
        &self,
        name: &str,
        machine: &T,
    ) -> Result<Option<String>, InstallerError> {
        let text = self.templates.get(name);
        text.map(|text| self.render(name, text, machine))
            .transpose()
    }

    fn render<T: Serialize>(
        &self,
        name: &str,
        text: &str,
        machine: &T,
    ) -> Result<String, InstallerError> {
        let wrong = |error: minijinja::Error| InstallerError::Template {
            installer: self.name.clone(),
            name: name.to_owned(),
            reason: explained(&error),
        };
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_syntax(syntax());
        environment.set_fuel(Some(FUEL));
        for (name, text) in &self.templates {
            // Templates may include each other; one that is wrong is said where it is used.
            let _ = environment.add_template(name, text);
        }
        let seen = Seen {
            machine,
            values: &self.definition.values,
        };
        let made = environment
            .render_named_str(name, text, Serde(&seen))
            .map_err(wrong)?;
        if made.len() as u64 > TEMPLATE_BYTES_MAX {
            let (path, len) = (self.path.join(name), made.len());
            let reason = format!("it becomes {len} bytes, and the limit is {TEMPLATE_BYTES_MAX}");
            return Err(InstallerError::File { path, reason });
        }
        Ok(made)
    }

    fn describe(&self) -> Installer {
        let unreadable = std::iter::once(self.kernel()).chain(self.initrd());
        let unreadable = unreadable.filter_map(|path| match fs::File::open(&path) {
            Ok(_) => None,
            Err(source) => Some(InstallerError::Read { path, source }),
        });
        let problem = unreadable.map(|error| crate::http::chain(&error)).next();
        Installer {
            name: self.name.clone(),
            title: self.definition.title.clone(),
            kernel: self.kernel().display().to_string(),
            initrd: self
                .initrd()
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            files: self.files().map(str::to_owned).collect(),
            ends: self.ends(),
            starts_max: self.starts_max(),
            problem,
        }
    }
}

/// The installers of a directory, by name; none when there is no directory.
pub(crate) fn list(directory: &Path) -> Result<Vec<Installer>, InstallerError> {
    let failed = |source| InstallerError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_str().and_then(|name| name.parse().ok());
        names.extend(name);
    }
    names.sort_unstable();
    names.truncate(INSTALLERS_MAX);
    let described = names
        .into_iter()
        .filter_map(|name| described(directory, name));
    Ok(described.collect())
}

/// One installer.
pub(crate) fn describe(directory: &Path, name: InstallerName) -> Result<Installer, InstallerError> {
    let missing = InstallerError::Missing {
        name: name.clone(),
        directory: directory.to_owned(),
    };
    described(directory, name).ok_or(missing)
}

/// What is known of an installer, also when it cannot be used; nothing of a folder that
/// is none.
fn described(directory: &Path, name: InstallerName) -> Option<Installer> {
    match Folder::read(directory, &name) {
        Ok(folder) => Some(folder.describe()),
        Err(InstallerError::Missing { .. }) => None,
        Err(InstallerError::Read { source, .. })
            if source.kind() == io::ErrorKind::NotADirectory =>
        {
            None
        }
        Err(error) => Some(Installer {
            name,
            title: String::new(),
            kernel: String::new(),
            initrd: Vec::new(),
            files: Vec::new(),
            ends: InstallerEnd::default(),
            starts_max: 0,
            problem: Some(crate::http::chain(&error)),
        }),
    }
}

fn templates(path: &Path) -> Result<BTreeMap<String, String>, InstallerError> {
    let failed = |source| InstallerError::Read {
        path: path.to_owned(),
        source,
    };
    let mut templates = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Editors leave such behind.
        let is_other = name.starts_with('.') || name.ends_with('~') || name == DEFINITION;
        if is_other || !file.is_file() || is_large(&file) {
            continue;
        }
        let wrong = |reason: String| InstallerError::File {
            path: file.clone(),
            reason,
        };
        if RESERVED.contains(&name.as_ref()) {
            return Err(wrong(
                "this name is taken, call it something else".to_owned(),
            ));
        }
        if templates.len() == TEMPLATES_MAX {
            return Err(wrong(format!("there are more than {TEMPLATES_MAX} files")));
        }
        templates.insert(name.into_owned(), read(&file)?);
    }
    Ok(templates)
}

/// Kernels and initrds may lie in the folder, too.
fn is_large(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.len() > TEMPLATE_BYTES_MAX)
}

fn read(path: &Path) -> Result<String, InstallerError> {
    let read = || {
        let mut text = String::new();
        let file = fs::File::open(path)?;
        file.take(TEMPLATE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| InstallerError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Tags stand on lines of their own and leave no lines behind, as with Ansible.
fn syntax() -> SyntaxConfig {
    let mut syntax = SyntaxConfig::builder();
    syntax
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true);
    syntax.build().unwrap_or_default()
}

/// An error of a template with its line, and what caused it.
fn explained(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Folder, InstallerError>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("debian-12");
        fs::create_dir(&path).expect("makes it");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("writes");
        }
        let folder = Folder::read(dir.path(), &"debian-12".parse().expect("a name"));
        (dir, folder)
    }

    const PLAIN: (&str, &str) = ("installer.toml", "kernel = \"linux\"\n");

    #[test]
    fn templates_see_the_machine_and_the_values() {
        let definition = "\
kernel = \"linux\"
initrd = [\"/usr/initrd.gz\"]
arguments = \"auto=true url={{ url }}/preseed.cfg hostname={{ node.name }}\"
ends = \"restart\"
[values]
packages = [\"vim\", \"less\"]
";
        let preseed = "\
# {{ node.name | upper }}
{% for package in values.packages %}
d-i {{ package }}
{% endfor %}
{% include 'common' %}
";
        let (dir, folder) = folder(&[
            ("installer.toml", definition),
            ("preseed.cfg", preseed),
            ("common", "a & b: {{ node.name | tojson }}\n"),
            ("common~", "{{ broken"),
        ]);
        let folder = folder.expect("is one");
        let machine = json!({ "node": { "name": "n7" }, "url": "http://h/boot/i/t" });
        assert_eq!(
            folder.arguments(&machine).expect("works out"),
            "auto=true url=http://h/boot/i/t/preseed.cfg hostname=n7"
        );
        let file = folder.file("preseed.cfg", &machine).expect("works out");
        assert_eq!(
            file.as_deref(),
            Some("# N7\nd-i vim\nd-i less\na & b: \"n7\"\n")
        );
        assert_eq!(folder.file("passwd", &machine).expect("is none"), None);
        assert_eq!(folder.ends(), InstallerEnd::Restart);
        assert_eq!(folder.starts_max(), 3);
        assert_eq!(folder.kernel(), dir.path().join("debian-12/linux"));
        assert_eq!(folder.initrd(), [PathBuf::from("/usr/initrd.gz")]);
        assert_eq!(
            folder.files().collect::<Vec<_>>(),
            ["common", "preseed.cfg"]
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, expected) in [
            ("one\n{{ node.nmae }}\n", "preseed.cfg:2"),
            ("one\n{% if %}\n", "preseed.cfg:2"),
            (
                "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{% include 'none' %}", "none"),
        ] {
            let (_dir, folder) = folder(&[PLAIN, ("preseed.cfg", text)]);
            let folder = folder.expect("is one");
            let machine = json!({ "node": { "name": "n7" } });
            let error = folder.file("preseed.cfg", &machine).expect_err(text);
            let message = error.to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("debian-12"), "{message}");
        }
    }

    #[test]
    fn what_is_no_installer_is_said_or_left_out() {
        let names = ["debian-12".to_owned()];
        for (files, expected) in [
            (&[][..], None),
            (&[("installer.toml", "kernel = 3")], Some("kernel")),
            (
                &[("installer.toml", "kernel = \"k\"\nkernal = 1")],
                Some("kernal"),
            ),
            (
                &[("installer.toml", "kernel = \"k\"\nstarts = 0")],
                Some("starts is 0"),
            ),
            (&[PLAIN], Some("linux")),
            (&[PLAIN, ("done", "x")], Some("taken")),
        ] {
            let (dir, _) = folder(files);
            fs::write(dir.path().join("README"), "x").expect("writes");
            let listed = list(dir.path()).expect("lists");
            let named: Vec<_> = listed.iter().map(|one| one.name.to_string()).collect();
            assert_eq!(named, names[..usize::from(expected.is_some())]);
            if let Some(expected) = expected {
                let problem = listed[0].problem.as_deref().expect("has a problem");
                assert!(problem.contains(expected), "{problem}");
            }
        }
        let none = list(Path::new("/nonexistent/installers")).expect("is empty");
        assert!(none.is_empty());
    }

    #[test]
    fn the_examples_work_out_for_any_machine() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/installers");
        let listed = list(&examples).expect("lists");
        assert_eq!(listed.len(), 3);
        let disk = json!({
            "target": "iqn.2026-11.example:volume.n7", "address": "10.0.0.1", "port": 3260, "lun": 0,
            "initiator": "iqn.2026-11.example:node.n7", "user": null, "password": null,
        });
        let bare = json!({ "gateway": null, "name_servers": [], "domain": null });
        let full = json!({
            "gateway": "10.0.0.1", "name_servers": ["10.0.0.1"], "domain": "lab.example",
        });
        for one in listed {
            let folder = Folder::read(&examples, &one.name).expect("is one");
            for (network, disk) in [(&bare, &json!(null)), (&full, &disk)] {
                let machine = json!({
                    "node": { "name": "n7" }, "network": network, "disk": disk, "url": "U",
                    "console": "ttyS0",
                    "done": "U/done", "failed": "U/failed", "say": "U/say",
                });
                let arguments = folder.arguments(&machine).expect("work out");
                let words: Vec<_> = arguments.split_whitespace().collect();
                let is_bare = network == &bare;
                if one.name.as_str() == "debian-12" {
                    assert_eq!(words.contains(&"netcfg/no_default_route=true"), is_bare);
                    assert_eq!(words.contains(&"netcfg/get_nameservers="), is_bare);
                }
                let mut calls = 0;
                // Without a disk over iSCSI nobody asks for the one that logs in.
                let asked = |name: &&str| !is_bare || *name != "disk.sh";
                for name in folder.files().filter(asked) {
                    let file = folder.file(name, &machine).expect("works out");
                    let file = file.expect("is there");
                    calls += usize::from(file.contains("U/done"));
                    if one.name.as_str() == "debian-12" {
                        let logs_in = ["U/disk.sh", "iscsiadm"];
                        let logs_in = logs_in.iter().any(|words| file.contains(words));
                        let is_its = ["preseed.cfg", "disk.sh"].contains(&name);
                        assert_eq!(logs_in, !is_bare && is_its, "{name}");
                    }
                }
                assert_eq!(calls, 1, "{}", one.name);
            }
        }
    }
}
