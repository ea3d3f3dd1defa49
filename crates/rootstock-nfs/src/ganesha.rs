//! nfs-ganesha: its configuration, its life, and what its log says of both.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead as _, BufReader},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::Sender,
    thread,
};

use rootstock_api::nfs::NfsRoot;
use rustix::process::{Pid, Signal, kill_process};

/// The longest line of its log that is looked at, in characters.
const LINE_CHARS_MAX: usize = 400;

/// What its log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// It answers clients.
    Serves,
    /// It read its configuration anew.
    Reread,
    /// What is wrong with its configuration, or with it.
    Trouble(String),
    /// It ended.
    Ended,
}

/// Where an export's files are, and what it is.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) root: &'a NfsRoot,
    pub(crate) directory: &'a Path,
    pub(crate) port: u16,
}

impl Site<'_> {
    /// Where the version is mounted.
    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn config_path(&self) -> PathBuf {
        self.directory.join("ganesha.conf")
    }

    fn recovery(&self) -> PathBuf {
        self.directory.join("recovery")
    }

    /// Writes the configuration; nobody reads half of it.
    pub(crate) fn write(&self, clients: &[IpAddr]) -> io::Result<()> {
        let fresh = self.directory.join("ganesha.conf.new");
        fs::write(&fresh, self.config(clients))?;
        fs::rename(fresh, self.config_path())
    }

    /// The configuration. File handles of clients hold the export's id and the file
    /// system's UUID: the first is of the manifest, so that a handle of one version means
    /// nothing to another one of its image that has the port after it.
    fn config(&self, clients: &[IpAddr]) -> String {
        let bytes = self.root.manifest.as_bytes();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (id, major, minor) = (half(0).max(1), half(2), half(4));
        let mut text = format!(
            "# Written by `rootstock nfs serve`; what is changed here is lost.\n\
             NFS_CORE_PARAM {{\n  Protocols = 4;\n  NFS_Port = {port};\n  Enable_NLM = false;\n  \
             Enable_RQUOTA = false;\n  Enable_UDP = false;\n  \
             TCP_KEEPIDLE = 60;\n  TCP_KEEPINTVL = 15;\n  TCP_KEEPCNT = 4;\n}}\n\
             NFS_KRB5 {{\n  Active_krb5 = false;\n}}\n\
             # Nothing is locked or written: nobody has to take back what he held.\n\
             NFSV4 {{\n  Graceless = true;\n  Only_Numeric_Owners = true;\n  \
             Minor_Versions = 1, 2;\n  RecoveryRoot = \"{recovery}\";\n}}\n\
             EXPORT {{\n  Export_Id = {id};\n  Filesystem_Id = {major}.{minor};\n  \
             Path = \"{tree}\";\n  Pseudo = \"{pseudo}\";\n  Protocols = 4;\n  \
             Transports = TCP;\n  SecType = sys;\n  Access_Type = None;\n  \
             Squash = No_Root_Squash;\n  Disable_ACL = true;\n  FSAL {{\n    Name = VFS;\n  }}\n",
            port = self.port,
            recovery = self.recovery().display(),
            tree = self.tree().display(),
            pseudo = self.root.path(),
        );
        if !clients.is_empty() {
            let clients: Vec<_> = clients.iter().map(ToString::to_string).collect();
            let _ = write!(
                text,
                "  CLIENT {{\n    Clients = {};\n    Access_Type = RO;\n    \
                 Protocols = 4;\n  }}\n",
                clients.join(", ")
            );
        }
        text.push_str("}\n");
        text
    }

    /// Starts it; its log goes to `news`.
    pub(crate) fn start(&self, news: Sender<crate::export::Event>) -> io::Result<Ganesha> {
        fs::create_dir_all(self.recovery())?;
        // It must not outlive what its files come from.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "ganesha.nfsd", "-F"])
            .args(["-N", "EVENT", "-L", "STDOUT", "-f"])
            .arg(self.config_path())
            .arg("-p")
            .arg(self.directory.join("ganesha.pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let log = child.stdout.take();
        thread::Builder::new()
            .name("ganesha-log".to_owned())
            .spawn(move || {
                let lines = log.into_iter().flat_map(|log| BufReader::new(log).lines());
                for line in lines.map_while(Result::ok) {
                    if let Some(said) = read(&line)
                        && news.send(crate::export::Event::Ganesha(said)).is_err()
                    {
                        return;
                    }
                }
                let _ = news.send(crate::export::Event::Ganesha(News::Ended));
            })?;
        Ok(Ganesha { child })
    }
}

/// A server that runs.
pub(crate) struct Ganesha {
    child: Child,
}

impl Ganesha {
    /// Has it read its configuration anew. Clients that may still read go on.
    pub(crate) fn reload(&self) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
        Ok(kill_process(pid, Signal::HUP)?)
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line of its log tells: `... :COMPONENT :LEVEL :words`.
fn read(line: &str) -> Option<News> {
    if line.contains("NFS SERVER INITIALIZED") {
        return Some(News::Serves);
    }
    if line.contains("Reread exports complete") {
        return Some(News::Reread);
    }
    let counts = [
        ":CONFIG :CRIT :",
        ":FSAL :CRIT :",
        ":EXPORT :CRIT :",
        ":FATAL :",
    ];
    let mark = counts
        .iter()
        .find_map(|mark| Some(line.find(mark)? + mark.len()))?;
    let words = line[mark..].chars().take(LINE_CHARS_MAX).collect();
    Some(News::Trouble(words))
}

#[cfg(test)]
mod tests {
    use rootstock_core::{Digest, VersionNumber};

    use super::*;

    #[test]
    fn the_configuration_lets_in_whom_it_names() {
        let root = NfsRoot {
            image: "lab".parse().unwrap(),
            version: VersionNumber(3),
            manifest: Digest::of(b"lab:3"),
            partition: 1,
            fs: "ext4".to_owned(),
            options: String::new(),
        };
        let site = Site {
            root: &root,
            directory: Path::new("/run/rootstock-nfs/lab-3"),
            port: 2050,
        };
        let clients = ["10.0.0.7", "fd00::7"].map(|text| text.parse().unwrap());
        let text = site.config(&clients);
        insta::assert_snapshot!(text, @r#"
        # Written by `rootstock nfs serve`; what is changed here is lost.
        NFS_CORE_PARAM {
          Protocols = 4;
          NFS_Port = 2050;
          Enable_NLM = false;
          Enable_RQUOTA = false;
          Enable_UDP = false;
          TCP_KEEPIDLE = 60;
          TCP_KEEPINTVL = 15;
          TCP_KEEPCNT = 4;
        }
        NFS_KRB5 {
          Active_krb5 = false;
        }
        # Nothing is locked or written: nobody has to take back what he held.
        NFSV4 {
          Graceless = true;
          Only_Numeric_Owners = true;
          Minor_Versions = 1, 2;
          RecoveryRoot = "/run/rootstock-nfs/lab-3/recovery";
        }
        EXPORT {
          Export_Id = 4779;
          Filesystem_Id = 64927.39620;
          Path = "/run/rootstock-nfs/lab-3/root";
          Pseudo = "/lab/3";
          Protocols = 4;
          Transports = TCP;
          SecType = sys;
          Access_Type = None;
          Squash = No_Root_Squash;
          Disable_ACL = true;
          FSAL {
            Name = VFS;
          }
          CLIENT {
            Clients = 10.0.0.7, fd00::7;
            Access_Type = RO;
            Protocols = 4;
          }
        }
        "#);
        assert!(!site.config(&[]).contains("CLIENT"));
    }

    #[test]
    fn its_log_is_understood() {
        let line = |words: &str| {
            format!("23/11/2026 09:41:43 : epoch 6b04 : vm : nfs-ganesha-2[main] f {words}")
        };
        for (words, expected) in [
            (
                ":NFS STARTUP :EVENT :             NFS SERVER INITIALIZED",
                Some(News::Serves),
            ),
            (
                ":CONFIG :EVENT :Reread exports complete",
                Some(News::Reread),
            ),
            (
                ":FSAL :CRIT :resolve_posix_filesystem(/x) returned No such file or directory (2)",
                Some(News::Trouble(
                    "resolve_posix_filesystem(/x) returned No such file or directory (2)"
                        .to_owned(),
                )),
            ),
            (":DBUS :CRIT :dbus_bus_get failed", None),
            (
                ":DISP :FATAL :Cannot bind",
                Some(News::Trouble("Cannot bind".to_owned())),
            ),
            ("", None),
        ] {
            assert_eq!(read(&line(words)), expected, "{words}");
        }
    }
}
