//! Writing into a root that is not ours: no path and no symbolic link leads out of it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Links that are followed in one path, as in the kernel (`path_resolution(7)`).
const LINKS_MAX: usize = 40;

/// A root file system, seen from outside.
pub(crate) struct Root {
    path: PathBuf,
}

impl Root {
    /// The root mounted here.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where an absolute path of the root is, its links followed inside the root.
    /// The last part need not be there; what leads to it is made.
    ///
    /// # Errors
    /// For a path with `..`, too many links, or something in the way.
    pub(crate) fn place(&self, path: &str) -> io::Result<PathBuf> {
        let bad = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: {what}", path.escape_debug()),
            )
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(bad("not an absolute path of a file"));
        }
        if Path::new(path)
            .components()
            .any(|part| part == Component::ParentDir)
        {
            return Err(bad("'..' is not allowed"));
        }
        let mut left: VecDeque<OsString> = parts(Path::new(path));
        // Below the root, without links.
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                // From a link: at the root it stays there, as in a chroot.
                done.pop();
                continue;
            }
            let next = done.join(&part);
            let real = self.path.join(&next);
            match fs::symlink_metadata(&real) {
                Ok(facts) if facts.is_symlink() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(bad("too many symbolic links"));
                    }
                    let target = fs::read_link(&real)?;
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    for part in parts(&target).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                Ok(_) => done = next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !left.is_empty() {
                        fs::create_dir(&real)?;
                    }
                    done = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.path.join(done))
    }

    /// Writes a file; one that is there is replaced.
    ///
    /// # Errors
    /// As [`Root::place`], and when the file system refuses.
    pub(crate) fn write(&self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let place = self.place(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode & 0o7777)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&place)?;
        // Also for one that was there, and whatever the mask says; before the
        // content, which may be secret.
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        file.write_all(content)
    }

    /// Writes a file in place of whatever has its name, a link too.
    ///
    /// # Errors
    /// As [`Root::write`].
    pub(crate) fn write_over_link(&self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = match parent {
            "" => self.path.clone(),
            parent => self.place(parent)?,
        };
        let place = parent.join(name);
        if fs::symlink_metadata(&place).is_ok_and(|facts| facts.is_symlink()) {
            fs::remove_file(&place)?;
        }
        self.write(path, mode, content)
    }

    /// A file's text, if it is there and is text.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let place = self.place(path).ok()?;
        io::read_to_string(File::open(place).ok()?).ok()
    }

    /// Whether something is there, its own links not followed.
    pub(crate) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path.join(path.trim_start_matches('/'))).is_ok()
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leads_out() {
        let outside = tempfile::tempdir().expect("a directory");
        let path = outside.path().join("root");
        fs::create_dir_all(path.join("etc")).expect("made");
        fs::create_dir_all(path.join("run/systemd")).expect("made");
        let link = |target: &str, name: &str| symlink(target, path.join(name)).expect("linked");
        link("/", "etc/up");
        link("../../../../../..", "etc/far");
        link("../run/systemd/resolv.conf", "etc/resolv.conf");
        link("/etc/loop", "etc/loop");
        link(outside.path().to_str().expect("text"), "etc/abs");
        let root = Root::new(&path);
        for (asked, expected) in [
            ("/etc/hostname", Some("etc/hostname")),
            ("/etc/new/deep/file", Some("etc/new/deep/file")),
            ("/etc/up/x", Some("x")),
            ("/etc/far/x", Some("x")),
            ("/etc/resolv.conf", Some("run/systemd/resolv.conf")),
            ("/etc/loop", None),
            ("/etc/../x", None),
            ("etc/x", None),
            ("/etc/", None),
            ("/", None),
        ] {
            let place = root.place(asked).ok();
            assert_eq!(place, expected.map(|at| path.join(at)), "{asked}");
        }
        let place = root.place("/etc/abs/x").expect("inside");
        assert!(place.starts_with(&path), "{place:?}");
    }

    #[test]
    fn files_have_their_mode_and_replace_links() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let file = |name: &str| directory.path().join(name);
        fs::create_dir(file("etc")).expect("made");
        fs::write(file("etc/key"), "old and longer").expect("written");
        root.write("/etc/key", 0o600, b"new").expect("written");
        let mode = fs::metadata(file("etc/key")).expect("there").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        assert_eq!(root.read("/etc/key").as_deref(), Some("new"));
        symlink("../elsewhere", file("etc/resolv.conf")).expect("linked");
        root.write_over_link("/etc/resolv.conf", 0o644, b"x")
            .expect("written");
        assert!(!file("elsewhere").exists());
        assert!(root.has("/etc/resolv.conf") && !root.has("/etc/none"));
    }
}
