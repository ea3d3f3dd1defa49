//! A network of two namespaces and a cable, the servers that are measured in the one
//! and the clients in the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rootstock_tests::namespace::Namespace;
use rootstock_tests::{Daemon, DaemonOptions, Process, tool, wait};

use super::Bench;

/// The server's address.
pub(crate) const SERVER: &str = "10.77.0.1";
/// The client's address.
const CLIENT: &str = "10.77.0.2";
/// The server's interface.
pub(crate) const SERVER_LINK: &str = "boot";
/// The client's interface.
pub(crate) const CLIENT_LINK: &str = "card";

/// How long a server may take until it listens.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A port that a server listens at, in the form of `/proc/net`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port {
    Udp(u16),
    Tcp(u16),
    /// TCP, taken for IPv6 and IPv4 together.
    Tcp6(u16),
}

/// A server and a client with a cable between them.
pub(crate) struct Lab {
    pub(crate) server: Namespace,
    pub(crate) client: Namespace,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let (server, client) = (Namespace::new("server")?, Namespace::new("client")?);
        server.cable(SERVER_LINK, &client, CLIENT_LINK)?;
        server.ip(&format!("addr add {SERVER}/16 dev {SERVER_LINK}"))?;
        client.ip(&format!("addr add {CLIENT}/16 dev {CLIENT_LINK}"))?;
        Ok(Self { server, client })
    }

    /// Runs a shell line at the client and gives what it printed.
    pub(crate) fn at_client(&self, line: &str) -> Result<String> {
        tool::run_command(self.client.command("sh").args(["-ec", line]))
    }
}

/// Starts a server in a namespace and waits until it listens.
pub(crate) fn serve(
    namespace: &Namespace,
    name: &str,
    command: &mut Command,
    port: Port,
    log: &Path,
) -> Result<Process> {
    // The one before it may still hold the port while it ends.
    wait::until("a free port", READY_LIMIT, || {
        Ok((!listens(namespace, port)?).then_some(()))
    })?;
    let mut process = Process::start(name, command, log)?;
    wait::until(&format!("{name} to listen"), READY_LIMIT, || {
        process.check_runs()?;
        Ok(listens(namespace, port)?.then_some(()))
    })?;
    Ok(process)
}

/// Ends a server as its administrator would.
pub(crate) fn end(mut process: Process) -> Result<()> {
    process.ask_to_end()?;
    process.wait(END_LIMIT)?;
    Ok(())
}

/// Whether something in the namespace listens there.
pub(crate) fn listens(namespace: &Namespace, port: Port) -> Result<bool> {
    let (file, wanted) = match port {
        Port::Udp(port) => ("udp", format!(":{port:04X} 00000000:0000")),
        Port::Tcp(port) => ("tcp", format!(":{port:04X} 00000000:0000 0A")),
        Port::Tcp6(port) => ("tcp6", format!(":{port:04X} {:032}:0000 0A", 0)),
    };
    let mut list = namespace.command("cat");
    let list = tool::run_command(list.arg(format!("/proc/net/{file}")))?;
    Ok(list.contains(&wanted))
}

/// Rootstock in a namespace, with its data on the disk.
///
/// `boot` is its configuration.
pub(crate) fn rootstock(
    bench: &Bench,
    namespace: &Namespace,
    directory: &Path,
    boot: String,
    port: Port,
) -> Result<Daemon> {
    fs::create_dir_all(directory)?;
    let daemon = Daemon::start_with(DaemonOptions {
        binary: bench.rootstock.clone(),
        directory: directory.to_owned(),
        data: directory.join("data"),
        config: boot,
        boot: None,
        namespace: Some(namespace.name().to_owned()),
    })?;
    wait::until("Rootstock to listen", READY_LIMIT, || {
        Ok(listens(namespace, port)?.then_some(()))
    })?;
    Ok(daemon)
}

/// A directory of this part's own, empty.
pub(crate) fn fresh(bench: &Bench, name: &str) -> Result<PathBuf> {
    let path = bench.scratch(name);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// dnsmasq on an interface, as a program in the foreground that reads no file of the
/// machine; what it serves is for the caller to add.
pub(crate) fn dnsmasq(namespace: &Namespace, interface: &str) -> Command {
    let mut command = namespace.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--bind-interfaces",
        "--user=root",
        "--log-facility=-",
        "--pid-file=",
    ]);
    command.arg(format!("--interface={interface}"));
    command
}

/// nginx with the settings of Debian's package, on these files.
pub(crate) fn nginx(
    namespace: &Namespace,
    directory: &Path,
    files: &Path,
    port: u16,
) -> Result<Process> {
    let config = directory.join("nginx.conf");
    let at = directory.display();
    fs::write(
        &config,
        format!(
            "user root;\nworker_processes auto;\ndaemon off;\npid {at}/nginx.pid;\n\
             error_log {at}/nginx.error;\nevents {{ worker_connections 768; }}\n\
             http {{\n  sendfile on;\n  tcp_nopush on;\n  types_hash_max_size 2048;\n\
             \x20 access_log {at}/nginx.access;\n  default_type application/octet-stream;\n\
             \x20 server {{ listen {SERVER}:{port}; root {}; }}\n}}\n",
            files.display()
        ),
    )?;
    let mut command = namespace.command("nginx");
    command.arg("-c").arg(&config).arg("-e").arg("stderr");
    serve(
        namespace,
        "nginx",
        &mut command,
        Port::Tcp(port),
        &directory.join("nginx.log"),
    )
}
