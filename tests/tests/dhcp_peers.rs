//! The DHCP server held against real clients and beside a real server, in namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rootstock_tests::{Process, namespace::Namespace, tool, wait};
use tempfile::TempDir;

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const SERVER_MAC: &str = "02:00:00:00:00:01";

/// A server's namespace with a bridge, two clients' namespaces plugged into it.
struct Lab {
    server: Namespace,
    clients: [Namespace; 2],
    dir: TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let server = Namespace::new("dhcp")?;
        server.bridge("br0", "10.99.0.1/16")?;
        server.ip(&format!("link set br0 address {SERVER_MAC}"))?;
        let clients = [Namespace::new("client")?, Namespace::new("client")?];
        for (client, port) in clients.iter().zip(["port0", "port1"]) {
            server.cable(port, client, "eth0")?;
            server.ip(&format!("link set {port} master br0"))?;
        }
        Ok(Self {
            server,
            clients,
            dir: tempfile::tempdir()?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the server with a pool `10.99.FIRST` to `10.99.LAST`.
    fn serve(&self, mode: &str, first: &str, last: &str) -> Result<Server> {
        let mut command = self
            .server
            .command(program()?.to_str().context("a path in UTF-8")?);
        command.args(["br0", mode, SERVER_MAC, "10.99.0.1", "16"]);
        command.args([format!("10.99.{first}"), format!("10.99.{last}")]);
        command.arg(self.path("book"));
        let mut process = Process::start_piped("dhcp_memory", &mut command, &self.path("log"))?;
        let output = process.child().stdout.take().context("it has no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        });
        let mut server = Server { process, lines };
        server.says("ready")?;
        Ok(server)
    }

    /// A client's hook: writes what it was given into `file`, and sets the address.
    fn hook(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(&format!("{file}-hook"));
        let out = self.path(file);
        fs::write(
            &path,
            format!(
                "#!/bin/sh\n{}\n",
                text.replace("OUT", out.to_str().context("UTF-8")?)
            ),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Gets an address by `udhcpc`, with more `options`.
    fn udhcpc(&self, client: &Namespace, options: &[&str]) -> Result<Ipv4Addr> {
        let hook = self.hook(
            "udhcpc",
            "[ \"$1\" = bound ] || exit 0\nip address add \"$ip/$mask\" dev eth0\n\
             echo \"$ip $mask $router $dns $domain $lease\" > OUT",
        )?;
        let mut command = client.command("busybox");
        command.args([
            "udhcpc", "-f", "-q", "-n", "-t", "10", "-T", "2", "-i", "eth0", "-s",
        ]);
        tool::run_command(command.arg(hook).args(options))?;
        let text = fs::read_to_string(self.path("udhcpc"))?;
        let mut words = text.split_whitespace();
        let address = words.next().context("no address")?.parse()?;
        let rest: Vec<_> = words.collect();
        ensure!(
            rest == ["16", "10.99.0.1", "10.99.0.1", "lab", "3600"],
            "{text}"
        );
        Ok(address)
    }
}

struct Server {
    process: Process,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Waits until it says a line that begins so, and gives it.
    fn says(&mut self, what: &str) -> Result<String> {
        let lines = Arc::clone(&self.lines);
        let process = &mut self.process;
        wait::until(&format!("'{what}' of the server"), LIMIT, || {
            let found = {
                let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.iter().find(|line| line.starts_with(what)).cloned()
            };
            if found.is_none() {
                process.check_runs()?;
            }
            Ok(found)
        })
    }

    /// Ends it in good order.
    fn finish(mut self) -> Result<()> {
        drop(self.process.child().stdin.take());
        let status = self.process.wait(LIMIT)?;
        ensure!(status.success(), "the server ended with {status}");
        let log = self.process.log_end();
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }
}

/// The server's program, which is an example of its crate.
fn program() -> Result<PathBuf> {
    // This test is in PROFILE/deps, the example in PROFILE/examples.
    let this = env::current_exe()?;
    let profile = this.parent().and_then(Path::parent);
    let program = profile
        .context("a test lies two directories deep")?
        .join("examples/dhcp_memory");
    ensure!(
        program.exists(),
        "{} does not exist: build it with `cargo build --package rootstock-server --example dhcp_memory`, or run `cargo xtask test`",
        program.display()
    );
    Ok(program)
}

/// Its address is its own, and goes back.
#[test]
fn dhclient_gets_an_address_and_gives_it_back() {
    let lab = Lab::new().unwrap();
    let mut server = lab.serve("dhcp", "1.10", "1.20").unwrap();
    let hook = lab
        .hook(
            "dhclient",
            "case \"$reason\" in\nPREINIT) ip link set \"$interface\" up ;;\n\
             BOUND) ip address add \"$new_ip_address/16\" dev \"$interface\"\n\
             echo \"$new_ip_address $new_routers $new_domain_name $new_dhcp_lease_time\" > OUT ;;\nesac",
        )
        .unwrap();
    let dhclient = |word: &str| {
        let mut command = lab.clients[0].command("dhclient");
        command
            .args([word, "-4", "-cf", "/dev/null", "-sf"])
            .arg(&hook);
        command.arg("-lf").arg(lab.path("dhclient.leases"));
        command.arg("-pf").arg(lab.path("dhclient.pid")).arg("eth0");
        tool::run_command(&mut command)
    };
    dhclient("-1").unwrap();
    let text = fs::read_to_string(lab.path("dhclient")).unwrap();
    let address = text.split(' ').next().unwrap().to_owned();
    assert!(address.starts_with("10.99.1."), "{text}");
    assert_eq!(text.trim(), format!("{address} 10.99.0.1 lab 3600"));
    // Also ends the client, which went to the background.
    dhclient("-r").unwrap();
    server.says(&format!("released {address}")).unwrap();
    server.finish().unwrap();
}

/// A restart forgets nothing: the second client does not get the first one's.
#[test]
fn udhcpc_keeps_its_address_across_a_restart() {
    let lab = Lab::new().unwrap();
    let mut server = lab.serve("dhcp", "1.10", "1.11").unwrap();
    let first = lab.udhcpc(&lab.clients[0], &[]).unwrap();
    server.process.kill().unwrap();
    let server = lab.serve("dhcp", "1.10", "1.11").unwrap();
    let second = lab.udhcpc(&lab.clients[1], &[]).unwrap();
    assert_ne!(first, second);
    lab.clients[0].ip("address flush dev eth0").unwrap();
    let again = lab.udhcpc(&lab.clients[0], &[]).unwrap();
    assert_eq!(again, first);
    server.finish().unwrap();
}

/// RFC 2131, section 2.2: an address that answers ARP is not offered.
#[test]
fn an_address_in_use_is_not_given() {
    let lab = Lab::new().unwrap();
    lab.clients[1]
        .ip("address add 10.99.1.10/16 dev eth0")
        .unwrap();
    let mut server = lab.serve("dhcp", "1.10", "1.11").unwrap();
    // It asks for this very address.
    let address = lab.udhcpc(&lab.clients[0], &["-r", "10.99.1.10"]).unwrap();
    assert_eq!(address, Ipv4Addr::new(10, 99, 1, 11));
    server.says("conflict 10.99.1.10").unwrap();
    server.finish().unwrap();
}

#[test]
fn dhcpcd_gets_an_address() {
    let lab = Lab::new().unwrap();
    let server = lab.serve("dhcp", "1.10", "1.20").unwrap();
    let hook = lab
        .hook(
            "dhcpcd",
            "[ \"$reason\" = BOUND ] || exit 0\necho \"$new_ip_address\" > OUT",
        )
        .unwrap();
    // Not for it: leases of an earlier run, and the socket of one that runs on this
    // machine, to which it would leave the work.
    let script =
        "mount -t tmpfs leases /var/lib/dhcpcd && mount -t tmpfs run /run && exec dhcpcd \"$@\"";
    let mut command = lab.clients[0].command("sh");
    command
        .args(["-c", script, "dhcpcd"])
        .args(["-4", "-1", "-B", "-t", "60", "-f", "/dev/null", "-c"])
        .arg(hook);
    tool::run_command(command.arg("eth0")).unwrap();
    let text = fs::read_to_string(lab.path("dhcpcd")).unwrap();
    assert!(text.starts_with("10.99.1."), "{text}");
    server.finish().unwrap();
}

#[test]
fn nmap_sees_the_server() {
    let lab = Lab::new().unwrap();
    let server = lab.serve("dhcp", "1.10", "1.20").unwrap();
    // It looks at interfaces that have an address.
    lab.clients[0]
        .ip("address add 10.99.200.1/16 dev eth0")
        .unwrap();
    let mut command = lab.clients[0].command("nmap");
    command.args(["--script", "broadcast-dhcp-discover", "-e", "eth0"]);
    let text = tool::run_command(&mut command).unwrap();
    for expected in [
        "DHCP Message Type: DHCPOFFER",
        "Server Identifier: 10.99.0.1",
        "Router: 10.99.0.1",
        "IP Offered: 10.99.1.",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    server.finish().unwrap();
}

/// Kea's load generator: every client has an address, and each another.
#[test]
fn perfdhcp_gets_an_address_for_each_client() {
    const CLIENTS: usize = 400;
    let lab = Lab::new().unwrap();
    let server = lab.serve("dhcp", "1.0", "9.255").unwrap();
    lab.clients[0]
        .ip("address add 10.99.200.1/16 dev eth0")
        .unwrap();
    let mut command = lab.clients[0].command("perfdhcp");
    command.args(["-4", "-B", "-l", "eth0", "-r", "100", "-d", "60"]);
    command.args([
        "-R",
        &CLIENTS.to_string(),
        "-n",
        &CLIENTS.to_string(),
        "-W",
        "2000000",
    ]);
    let text = tool::run_command(&mut command).unwrap();
    let book = fs::read_to_string(lab.path("book")).unwrap();
    let column = |place: usize| -> HashSet<&str> {
        book.lines()
            .filter_map(|line| line.split(' ').nth(place))
            .collect()
    };
    assert_eq!(column(0).len(), CLIENTS, "{text}");
    assert_eq!(column(1).len(), CLIENTS, "{text}");
    assert!(text.contains("drops: 0"), "{text}");
    server.finish().unwrap();
}

/// Mode `auto` listens first: alone it serves, beside dnsmasq it does not.
#[test]
fn beside_dnsmasq_it_is_a_proxy() {
    let lab = Lab::new().unwrap();
    let mut alone = lab.serve("auto", "1.10", "1.20").unwrap();
    assert_eq!(alone.says("decided").unwrap(), "decided Dhcp");
    alone.finish().unwrap();

    lab.clients[1]
        .ip("address add 10.99.0.2/16 dev eth0")
        .unwrap();
    let mut command: Command = lab.clients[1].command("dnsmasq");
    command.args([
        "-k",
        "-C",
        "/dev/null",
        "-p",
        "0",
        "-i",
        "eth0",
        "--bind-interfaces",
    ]);
    command.args([
        "--user=root",
        "--dhcp-range=10.99.5.1,10.99.5.9",
        "--dhcp-authoritative",
    ]);
    command.arg(format!(
        "--dhcp-leasefile={}",
        lab.path("dnsmasq.leases").display()
    ));
    command.arg(format!("--pid-file={}", lab.path("dnsmasq.pid").display()));
    command.arg("--log-facility=-");
    let log = lab.path("dnsmasq.log");
    let mut dnsmasq = Process::start("dnsmasq", &mut command, &log).unwrap();
    wait::until("dnsmasq's start", LIMIT, || {
        dnsmasq.check_runs()?;
        Ok(fs::read_to_string(&log)?
            .contains("DHCP, IP range")
            .then_some(()))
    })
    .unwrap();
    let mut beside = lab.serve("auto", "1.10", "1.20").unwrap();
    assert_eq!(beside.says("rival").unwrap(), "rival 10.99.0.2");
    assert_eq!(beside.says("decided").unwrap(), "decided Proxy");
    // A system gets its address from dnsmasq alone.
    let hook = lab
        .hook(
            "lease",
            "[ \"$1\" = bound ] && echo \"$ip $serverid\" > OUT\nexit 0",
        )
        .unwrap();
    let mut udhcpc = lab.clients[0].command("busybox");
    udhcpc.args([
        "udhcpc", "-f", "-q", "-n", "-t", "10", "-T", "2", "-i", "eth0", "-s",
    ]);
    tool::run_command(udhcpc.arg(hook)).unwrap();
    let text = fs::read_to_string(lab.path("lease")).unwrap();
    assert!(text.starts_with("10.99.5."), "{text}");
    assert!(text.ends_with(" 10.99.0.2\n"), "{text}");
    beside.finish().unwrap();
    dnsmasq.kill().unwrap();
}
