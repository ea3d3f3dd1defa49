//! The boot service's HTTP against curl: what firmware demands of a server.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rootstock_tests::daemon::{Daemon, DaemonOptions};
use rootstock_tests::namespace::{self, Namespace};
use rootstock_tests::tool;

const BASE: &str = "http://127.0.0.1:8480";

/// The size of the boot program, in bytes: several reads, and no round number.
const PROGRAM_BYTES: usize = 3 * (256 << 10) + 17;

/// How often curl tries until the service listens, a second apart.
const CONNECT_TRIES: &str = "30";

struct Site {
    namespace: Namespace,
    daemon: Daemon,
    program: Vec<u8>,
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let namespace = Namespace::new("http")?;
        namespace.ip("link set lo up")?;
        let files = directory.path().join("files");
        fs::create_dir(&files)?;
        let program: Vec<u8> = (0..PROGRAM_BYTES).map(|at| (at % 253) as u8).collect();
        fs::write(files.join("snponly.efi"), &program)?;
        fs::write(directory.path().join("secret"), "secret")?;
        let mut options = DaemonOptions::new(directory.path())?;
        options.namespace = Some(namespace.name().to_owned());
        options.config = format!(
            "[boot]\ninterfaces = [\"lo=proxy\"]\nfiles = [\"{}\"]\n\
             [[network]]\ninterface = \"lo\"\nunknown = \"hold\"\nnames = \"m[01-99]\"\n",
            files.display()
        );
        let daemon = Daemon::start_with(options)?;
        let site = Self {
            namespace,
            daemon,
            program,
            directory,
        };
        let wait = [
            "--retry",
            CONNECT_TRIES,
            "--retry-delay",
            "1",
            "--retry-connrefused",
        ];
        site.curl(&[&wait[..], &["-o", "/dev/null", &url("/boot/ipxe")]].concat())?;
        Ok(site)
    }

    fn curl(&self, words: &[&str]) -> Result<Vec<u8>> {
        let mut command: Command = namespace::inside(self.namespace.name(), "curl");
        command.arg("-sS").args(words);
        Ok(tool::output(&mut command)?.stdout)
    }

    fn text(&self, words: &[&str]) -> Result<String> {
        Ok(String::from_utf8(self.curl(words)?)?)
    }
}

fn url(path: &str) -> String {
    format!("{BASE}{path}")
}

#[test]
fn firmware_gets_whole_files_with_their_lengths() -> Result<()> {
    let site = Site::new()?;
    // Doubled slashes mean single ones, and a client that takes compression gets none.
    let path = url("//boot//file/snponly.efi");
    assert_eq!(site.curl(&["--compressed", &path])?, site.program);
    let head = site.text(&["-I", &path])?.to_lowercase();
    for line in [
        "http/1.1 200 ok",
        "content-type: application/efi",
        "accept-ranges: bytes",
        &format!("content-length: {PROGRAM_BYTES}"),
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    for absent in ["transfer-encoding", "location", "content-encoding"] {
        assert!(!head.contains(absent), "{head}");
    }
    let middle = site.curl(&["-r", "262100-262200", &path])?;
    assert_eq!(middle, &site.program[262_100..=262_200]);
    let code = ["-o", "/dev/null", "-w", "%{http_code} %{num_connects} "];
    let past = format!("{PROGRAM_BYTES}-");
    let beyond = site.text(&[&code[..], &["-r", &past, &path]].concat())?;
    assert!(beyond.starts_with("416 "), "{beyond}");
    // Two requests, one connection.
    let both = site.text(&[&code[..], &["-o", "/dev/null", &path, &path]].concat())?;
    assert_eq!(both, "200 1 200 0 ");
    Ok(())
}

#[test]
fn no_path_leads_out_and_unknown_machines_wait() -> Result<()> {
    let mut site = Site::new()?;
    fs::metadata(site.directory.path().join("secret"))?;
    for path in [
        "/boot/file/../secret",
        "/boot/file/..%2fsecret",
        "/boot/file/%2e%2e/secret",
        "/boot/file/",
    ] {
        let code = ["--path-as-is", "-o", "/dev/null", "-w", "%{http_code}"];
        let answer = site.text(&[&code[..], &[&url(path)]].concat())?;
        assert_eq!(answer, "404", "{path}");
    }
    let script = site.text(&[&url("/boot/ipxe/52-54-00-00-00-01")])?;
    assert!(script.contains("rootstock node approve m01"), "{script}");
    let listed = site.daemon.run(["node", "list"])?;
    if !listed.contains("52:54:00:00:00:01") {
        bail!("the machine is not listed: {listed}");
    }
    let doctor = site.daemon.json(["boot", "doctor"])?;
    let programs = doctor["programs"].as_array().context("programs")?;
    let own = programs
        .iter()
        .find(|program| program["name"] == "snponly.efi");
    let path = own.and_then(|own| own["path"].as_str()).context("a path")?;
    assert!(path.ends_with("/files/snponly.efi"), "{path}");
    site.daemon.stop()
}
