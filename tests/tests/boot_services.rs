//! Boot services without machines: looking on only, hundreds who ask at once, and behind a relay.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_tests::boots::{self, Peer, token_of};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BRIDGE, Lan, SERVER};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::{Daemon, DaemonOptions, Process, agent, tool, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// Machines that are switched on in the same second.
const ASKERS: u16 = 300;

/// What a daemon may hold while [`ASKERS`] fetch a kernel of 8 MB at once, in bytes.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// Says that it is a BIOS's PXE (RFC 4578), asks once, and prints what it was given.
fn pxe_client(namespace: &Namespace, hook: &std::path::Path) -> Result<Option<String>> {
    fs::write(
        hook,
        "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip address add \"$ip/$mask\" dev eth0\n\
         [ -z \"$router\" ] || ip route add default via \"$router\"\n\
         echo \"$ip $serverid $siaddr $boot_file\"\n",
    )?;
    fs::set_permissions(hook, Permissions::from_mode(0o755))?;
    let mut udhcpc = namespace.command("busybox");
    udhcpc.args([
        "udhcpc", "-f", "-q", "-n", "-t", "3", "-T", "1", "-i", "eth0",
    ]);
    udhcpc.args(["-V", "PXEClient:Arch:00000:UNDI:002001", "-x", "0x5d:0000"]);
    udhcpc.args(["-x", "0x5e:010201", "-O", "bootfile", "-s"]);
    let output = tool::output(udhcpc.arg(hook))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success().then_some(text))
}

/// Where it is only looked on, nobody gets anything, and what was seen is told.
#[test]
fn an_observed_network_gets_no_answer_of_any_kind() -> Result<()> {
    let lan = Lan::new("observe", "")?;
    let (site, pc) = (Peer::new(&lan, 2)?, Peer::bare(&lan, 30)?);
    let hook = lan.path("hook");
    assert_eq!(pxe_client(&pc.namespace, &hook)?, None, "alone");

    let _dnsmasq = boots::dnsmasq(&lan, &site)?;
    let given = wait::until("dnsmasq's address", LIMIT, || {
        pxe_client(&pc.namespace, &hook)
    })?;
    let mut words = given.split_whitespace();
    assert!(
        words.next().is_some_and(|ip| ip.starts_with("10.77.0.1")),
        "{given}"
    );
    assert_eq!(words.next(), Some("10.77.0.2"), "{given}");
    assert!(!given.split(' ').any(|word| word == SERVER), "{given}");
    for url in [
        format!("http://{SERVER}:8480/boot/ipxe"),
        format!("https://{SERVER}:8481/boot/ipxe"),
        format!("http://{SERVER}:8482/"),
    ] {
        let answer = pc.curl(&[&url])?;
        assert_eq!((answer.status, answer.body.as_str()), (0, ""), "{url}");
    }

    // TFTP has no refusal that arrives at once: nobody listens, on any UDP port.
    let mut ss: Command = lan.namespace.command("ss");
    let heard = tool::run_command(ss.args(["--udp", "--listening", "--numeric", "--no-header"]))?;
    assert!(!heard.contains(":69 "), "{heard}");

    wait::until("the rival in the doctor's report", LIMIT, || {
        let doctor = lan.daemon.json(["boot", "doctor"])?;
        let all = doctor["interfaces"].as_array().context("interfaces")?;
        let bridge = all.iter().find(|one| one["name"] == BRIDGE);
        let bridge = bridge.context("the bridge")?;
        ensure!(bridge["mode"] == "observe", "{bridge}");
        Ok((bridge["rivals"][0] == "10.77.0.2").then_some(()))
    })?;
    let log = fs::read_to_string(lan.path("daemon.log"))?;
    let seen = |line: &str| line.contains("discovered") && line.contains(&pc.mac);
    assert!(log.lines().any(seen), "{log}");
    Ok(())
}

/// All of a lab is switched on at once: its first stage is made once, and what is
/// sent is not kept in memory for each.
#[test]
fn three_hundred_machines_at_once_share_one_first_stage() -> Result<()> {
    let more = format!(
        "[[network]]\ninterface = \"{BRIDGE}\"\nunknown = \"register\"\nnames = \"n[001-{ASKERS}]\"\nprofile = \"lab\"\n"
    );
    let mut lan = Lan::new("dhcp", &more)?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    lan.daemon
        .run(["profile", "create", "lab", "--image", "debian"])?;
    // The import had one made already; here it is to be made while all ask.
    lan.daemon.stop()?;
    fs::remove_dir_all(lan.daemon.data().join("boot"))?;
    let log = lan.path("daemon.log");
    let before = fs::read_to_string(&log)?.len();
    lan.daemon.restart()?;
    let peer = crowd(&lan)?;

    let script = |number: u16| {
        let [high, low] = number.to_be_bytes();
        format!("ipxe/52-54-00-88-{high:02x}-{low:02x}")
    };
    ask_at_once(&lan, &peer, "script", &script)?;
    let mut tokens = Vec::new();
    for number in 0..ASKERS {
        let text = fs::read_to_string(lan.path(&format!("script{number}")))?;
        tokens.push(token_of(&text).with_context(|| format!("no token: {text}"))?);
    }
    let different: HashSet<&String> = tokens.iter().collect();
    assert_eq!(different.len(), usize::from(ASKERS));
    let said = fs::read_to_string(&log)?;
    assert_eq!(said[before..].matches("first stage made").count(), 1);

    ask_at_once(&lan, &peer, "kernel", &|number| {
        format!("s/{}/kernel", tokens[usize::from(number)])
    })?;
    let peak = lan.daemon.process().memory_peak_bytes()?;
    println!("the daemon's memory was at most {} MiB", peak >> 20);
    assert!(peak < MEMORY_BYTES_MAX, "{peak} bytes");
    Ok(())
}

/// A peer with an address for each of [`ASKERS`].
fn crowd(lan: &Lan) -> Result<Peer> {
    let peer = Peer::new(lan, 40)?;
    lan.namespace
        .ip(&format!("addr add 10.80.0.1/16 dev {BRIDGE}"))?;
    let mut batch = String::new();
    for number in 0..ASKERS {
        writeln!(batch, "addr add {}/16 dev eth0", own_address(number))?;
    }
    let mut ip = Command::new("ip");
    ip.args(["-n", peer.namespace.name(), "-batch", "-"]);
    tool::run_with_input(&mut ip, batch.as_bytes())?;
    Ok(peer)
}

fn own_address(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("10.80.{}.{low}", high + 1)
}

/// Has all of them fetch what `path` says at once; scripts are kept by their numbers.
fn ask_at_once(lan: &Lan, peer: &Peer, name: &str, path: &dyn Fn(u16) -> String) -> Result<()> {
    let mut config = String::new();
    for number in 0..ASKERS {
        let output = match name {
            "script" => lan.path(&format!("script{number}")),
            _ => "/dev/null".into(),
        };
        writeln!(
            config,
            "url = http://{SERVER}:8480/boot/{}\ninterface = {}\noutput = {}\nfail\nnext",
            path(number),
            own_address(number),
            output.display()
        )?;
    }
    let config = config.trim_end_matches("next\n");
    let file = lan.path(&format!("{name}.curl"));
    fs::write(&file, config)?;
    let mut curl: Command = peer.namespace.command("curl");
    curl.args([
        "-sS",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
    ]);
    curl.arg(ASKERS.to_string());
    tool::run_command(curl.arg("--config").arg(file)).map(drop)
}

/// Machines of a subnet that only a relay reaches: ISC's `dhcrelay` passes them on.
#[test]
fn a_machine_behind_a_relay_gets_its_address_and_its_script() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [server, relay, client] = [
        Namespace::new("server")?,
        Namespace::new("relay")?,
        Namespace::new("client")?,
    ];
    server.cable("lan0", &relay, "up0")?;
    relay.cable("down0", &client, "eth0")?;
    client.ip("link set eth0 address 52:54:00:77:00:50")?;
    server.ip("addr add 10.78.1.1/24 dev lan0")?;
    relay.ip("addr add 10.78.1.2/24 dev up0")?;
    relay.ip("addr add 10.78.2.1/24 dev down0")?;
    server.ip("route add 10.78.2.0/24 via 10.78.1.2")?;
    let mut forward = relay.command("sysctl");
    tool::run_command(forward.args(["-qw", "net.ipv4.ip_forward=1"]))?;
    let mut options = DaemonOptions::new(directory.path())?;
    options.namespace = Some(server.name().to_owned());
    options.config = format!(
        "[boot]\ninterfaces = [\"lan0=dhcp\"]\nagent = \"{}\"\n\
         [[network]]\nsubnet = \"10.78.2.0/24\"\npool = \"10.78.2.100-10.78.2.110\"\n\
         gateway = \"10.78.2.1\"\nrelays = [\"10.78.2.1\"]\nunknown = \"hold\"\nnames = \"far[1-9]\"\n",
        agent::program()?.display()
    );
    let daemon = Daemon::start_with(options)?;
    let mut dhcrelay: Command = relay.command("dhcrelay");
    dhcrelay.args(["-4", "-d", "-id", "down0", "-iu", "up0", "10.78.1.1"]);
    let log = directory.path().join("dhcrelay.log");
    let _relay = Process::start("dhcrelay", &mut dhcrelay, &log)?;

    let hook = directory.path().join("hook");
    let given = wait::until("an address through the relay", LIMIT, || {
        pxe_client(&client, &hook)
    })?;
    let words: Vec<&str> = given.split_whitespace().collect();
    let [ip, from, next, file] = words[..] else {
        anyhow::bail!("not all was given: {given}");
    };
    assert!(ip.starts_with("10.78.2.1"), "{given}");
    assert_eq!((from, next), ("10.78.1.1", "10.78.1.1"), "{given}");
    assert!(file.contains("pxe"), "{given}");
    let mut curl: Command = client.command("curl");
    let url = "http://10.78.1.1:8480/boot/ipxe/52-54-00-77-00-50";
    let script = tool::run_command(curl.args(["-sS", url]))?;
    assert!(script.contains("rootstock node approve far1"), "{script}");
    let listed = daemon.run(["node", "list"])?;
    assert!(listed.contains("52:54:00:77:00:50"), "{listed}");
    Ok(())
}
