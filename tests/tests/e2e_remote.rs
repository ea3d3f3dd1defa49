//! The daemon over the network: HTTPS with tokens for the API, TLS for NBD.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rootstock_tests::{Daemon, DaemonOptions, Process, daemon, disk, http, peer, tool, wait};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A daemon that listens on a Unix socket and on HTTPS.
struct Site {
    process: Process,
    port: u16,
    directory: TempDir,
}

impl Site {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(daemon::binary().unwrap());
        let at = |name: &str| directory.path().join(name);
        fs::write(at("rootstock.toml"), "").unwrap();
        command
            .args(["serve", "--log", "debug", "--nbd", "127.0.0.1:0"])
            .args(["--boot", daemon::BOOT_OFF])
            .args(["--api", &format!("unix:{}", at("api.sock").display())])
            .args(["--api", "https://127.0.0.1:0"])
            .arg("--config")
            .arg(at("rootstock.toml"))
            .arg("--data")
            .arg(at("data"));
        let mut process = Process::start("the daemon", &mut command, &at("daemon.log")).unwrap();
        let socket = at("api.sock");
        let port = wait::until("an answer from /healthz and the port", START_LIMIT, || {
            process.check_runs()?;
            let answer = http::get(&socket, "/healthz").ok();
            let log = fs::read_to_string(at("daemon.log"))?;
            Ok(answer
                .filter(|answer| answer.status == 200)
                .and_then(|_| https_port(&log)))
        })
        .unwrap();
        Self {
            process,
            port,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command on the daemon's own machine.
    fn local(&self, words: &[&str]) -> String {
        let api = format!("unix:{}", self.path("api.sock").display());
        let mut command = Command::new(daemon::binary().unwrap());
        tool::run_command(command.args(words).args(["--api", &api])).unwrap()
    }

    /// Makes a token and its file; gives the secret.
    fn token(&self, name: &str, role: &str) -> String {
        let secret = self.local(&["token", "create", name, "--role", role]);
        fs::write(self.path(name), &secret).unwrap();
        secret.trim().to_owned()
    }

    /// A command from elsewhere, with a token's file and an authority.
    fn remote(&self, words: &[&str], token: Option<&str>, authority: &Path) -> Output {
        let mut command = Command::new(daemon::binary().unwrap());
        command
            .args(words)
            .args(["--api", &format!("https://127.0.0.1:{}", self.port)])
            .arg("--ca")
            .arg(authority)
            .env_remove("ROOTSTOCK_TOKEN");
        if let Some(token) = token {
            command.arg("--token-file").arg(self.path(token));
        }
        tool::output(&mut command).unwrap()
    }

    fn done(&self, words: &[&str], token: &str) -> String {
        let output = self.remote(words, Some(token), &self.authority());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &[&str], token: Option<&str>, authority: &Path) -> String {
        let output = self.remote(words, token, authority);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("hint:"), "{words:?}: {said}");
        said
    }

    fn authority(&self) -> PathBuf {
        self.path("data/keys/ca.pem")
    }
}

/// The port that the system chose, as the daemon's log tells it.
fn https_port(log: &str) -> Option<u16> {
    let (_, port) = log.split_once("https=[127.0.0.1:")?;
    port.split_once(']')?.0.parse().ok()
}

#[test]
fn tokens_decide_what_may_be_done_from_elsewhere() {
    let mut site = Site::start();
    let secrets = [
        site.token("owner", "admin"),
        site.token("watcher", "reader"),
    ];
    let source = site.path("disk.img");
    disk::noise(&source, 2 * MIB, 3).unwrap();
    let source = source.to_str().unwrap();

    let import = ["image", "import", "lab", source];
    let said = site.refused(&import, Some("watcher"), &site.authority());
    assert!(said.contains("watcher") && said.contains("admin"), "{said}");
    site.done(&import, "owner");
    for token in ["owner", "watcher"] {
        let listed = site.done(&["image", "list"], token);
        assert!(listed.contains("lab"), "{listed}");
        let copy = site.path("copy.img");
        let export = [
            "image",
            "export",
            "lab:1",
            copy.to_str().unwrap(),
            "--force",
        ];
        site.done(&export, token);
        let copied = disk::sha256(&copy).unwrap();
        assert_eq!(copied, disk::sha256(Path::new(source)).unwrap());
    }
    let writes: [&[&str]; 7] = [
        &["image", "tag", "lab:1", "x"],
        &["image", "delete", "lab", "--all"],
        &["volume", "create", "v", "--from", "lab"],
        &["gc"],
        &["token", "create", "mine", "--role", "admin"],
        &["token", "list"],
        &["token", "revoke", "owner"],
    ];
    for words in writes {
        let said = site.refused(words, Some("watcher"), &site.authority());
        assert!(said.contains("watcher"), "{words:?}: {said}");
    }

    let said = site.refused(&["image", "list"], None, &site.authority());
    assert!(said.contains("token"), "{said}");
    fs::write(site.path("forged"), "rst_0000000000000000").unwrap();
    for forged in ["forged", "rootstock.toml"] {
        site.refused(&["image", "list"], Some(forged), &site.authority());
    }
    // The authority of another site is not this one's.
    let other = Site::start();
    let said = site.refused(&["image", "list"], Some("owner"), &other.authority());
    assert!(said.contains("certificate"), "{said}");

    site.done(&["token", "revoke", "watcher"], "owner");
    let said = site.refused(&["image", "list"], Some("watcher"), &site.authority());
    assert!(said.contains("token"), "{said}");
    let history = site.done(&["image", "history", "lab"], "owner");
    assert!(history.contains("owner"), "{history}");

    site.process.ask_to_end().unwrap();
    assert!(site.process.wait(STOP_LIMIT).unwrap().success());
    for secret in &secrets {
        let mut grep = Command::new("grep");
        grep.args(["-r", "-l", "-a", "-F", secret])
            .arg(site.path("data"))
            .arg(site.path("daemon.log"));
        let found = tool::output(&mut grep).unwrap();
        assert_eq!(found.status.code(), Some(1), "{found:?}");
    }
    let log = fs::read_to_string(site.path("daemon.log")).unwrap();
    assert!(
        log.contains("DEBUG"),
        "the log was not at its most talkative"
    );
}

#[test]
fn plain_http_on_the_tls_port_is_not_an_answer() {
    let site = Site::start();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "20"])
        .arg(format!("http://127.0.0.1:{}/healthz", site.port));
    assert!(!tool::output(&mut curl).unwrap().status.success());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "20", "--cacert"])
        .arg(site.authority())
        .arg(format!("https://localhost:{}/healthz", site.port));
    assert!(tool::run_command(&mut curl).unwrap().contains("ok"));
}

/// A daemon with `nbd.tls` and the version `lab:1`.
fn with_nbd_tls(directory: &Path, tls: &str) -> Daemon {
    let mut options = DaemonOptions::new(&directory.join("run")).unwrap();
    options.config = format!("[nbd]\ntls = \"{tls}\"\n");
    let daemon = Daemon::start_with(options).unwrap();
    let source = directory.join("disk.img");
    disk::noise(&source, 4 * MIB, 9).unwrap();
    daemon
        .run(["image", "import", "lab", source.to_str().unwrap()])
        .unwrap();
    daemon
        .run(["volume", "create", "seat", "--from", "lab"])
        .unwrap();
    daemon
}

/// An address for a client that trusts what is in `certificates`.
fn nbds_uri(daemon: &Daemon, export: &str, certificates: &Path) -> String {
    let uri = daemon.nbd_uri(export).replacen("nbd:", "nbds:", 1);
    format!("{uri}?tls-certificates={}", certificates.display())
}

/// A directory as libnbd wants it, with the site's authority.
fn certificates(directory: &Path, daemon: &Daemon) -> PathBuf {
    let certificates = directory.join("certificates");
    fs::create_dir_all(&certificates).unwrap();
    let authority = daemon.data().join("keys/ca.pem");
    fs::copy(authority, certificates.join("ca-cert.pem")).unwrap();
    certificates
}

#[test]
fn nbd_with_tls_required_lets_only_that_in() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = with_nbd_tls(directory.path(), "required");
    let certificates = certificates(directory.path(), &daemon);
    let uri = nbds_uri(&daemon, "image/lab:1", &certificates);
    let info = tool::run("nbdinfo", ["--json", &uri]).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["TLS"], true, "{info}");
    assert_eq!(info["exports"][0]["export-size"], 4 * MIB, "{info}");
    check_copy(directory.path(), &uri);
    // Written through TLS, read back by another connection.
    let source = directory.path().join("other.img");
    disk::noise(&source, 4 * MIB, 10).unwrap();
    let volume = nbds_uri(&daemon, "volume/seat", &certificates);
    tool::run("nbdcopy", ["--flush", source.to_str().unwrap(), &volume]).unwrap();
    let copy = directory.path().join("volume.img");
    tool::run("nbdcopy", [&volume, copy.to_str().unwrap()]).unwrap();
    let written = disk::sha256(&source).unwrap();
    assert_eq!(disk::sha256(&copy).unwrap(), written);

    // A client without TLS sees no export, not even the list.
    let plain = daemon.nbd_uri("image/lab:1");
    assert!(peer::libnbd(&plain, "").is_err());
    assert!(tool::run("nbdinfo", ["--list", &daemon.nbd_uri("")]).is_err());
    // A client that trusts another authority goes away.
    let other = tempfile::tempdir().unwrap();
    let stranger = with_nbd_tls(other.path(), "required");
    let strange = self::certificates(other.path(), &stranger);
    let uri = nbds_uri(&daemon, "image/lab:1", &strange);
    assert!(tool::run("nbdinfo", [&uri]).is_err());
    daemon.run(["image", "verify", "lab:1"]).unwrap();
    daemon.stop().unwrap();
}

#[test]
fn nbd_with_tls_optional_lets_both_in() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = with_nbd_tls(directory.path(), "optional");
    let certificates = certificates(directory.path(), &daemon);
    check_copy(
        directory.path(),
        &nbds_uri(&daemon, "image/lab:1", &certificates),
    );
    check_copy(directory.path(), &daemon.nbd_uri("image/lab:1"));
    let list = tool::run("nbdinfo", ["--list", "--json", &daemon.nbd_uri("")]).unwrap();
    assert!(list.contains("volume/seat"), "{list}");
    daemon.stop().unwrap();
}

/// The export is what `with_nbd_tls` imported.
fn check_copy(directory: &Path, uri: &str) {
    let copy = directory.join("copy.img");
    tool::run("nbdcopy", [uri, copy.to_str().unwrap()]).unwrap();
    let source = disk::sha256(&directory.join("disk.img")).unwrap();
    assert_eq!(disk::sha256(&copy).unwrap(), source);
}
