//! Every head is gone: machines that start from their own disks find each other, others
//! boot through them, and all are known again when a head is back.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use rootstock_tests::boots::{self, Peer};
use rootstock_tests::desk::shell;
use rootstock_tests::golden::Golden;
use rootstock_tests::holder::{Holder, LIMIT};
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{agent, tool, wait};

/// Room for the image.
const DISK_BYTES: u64 = 3 << 30;

/// A link over which the image takes most of a minute.
const LINK_MBIT: u32 = 50;

/// The machine with a disk, which is prepared at first.
fn boot(lan: &Lan, with: &std::path::Path) -> Result<PoweredOn> {
    let mut machine = lan.power_on_with_own_disk("desk", 5, Firmware::Bios, with)?;
    lan.log_in(&mut machine, "desk")?;
    Ok(machine)
}

/// Waits until the kernel's log has these words.
fn told(machine: &mut PoweredOn, words: &str) -> Result<()> {
    let found = wait::until(words, BOOT_LIMIT, || {
        let count = boots::shell(machine, &format!("dmesg | grep -c '{words}' || true"))?;
        Ok((count != "0").then_some(()))
    });
    found.map_err(|error| {
        let all = boots::shell(machine, "dmesg | grep rootstock || true");
        error.context(all.unwrap_or_default())
    })
}

#[test]
fn a_machine_that_starts_alone_gives_others_what_it_has() {
    let mut lan = Lan::new("proxy", "").expect("a lab");
    let site = Peer::new(&lan, 2).expect("the site's server");
    let dhcp = boots::dnsmasq(&lan, &site).expect("dnsmasq");
    lan.import("debian", &boots::image(Golden::Debian).expect("an image"))
        .expect("imported");
    let program = agent::program().expect("is built");
    let own = lan.path("desk.disk");
    let made = fs::File::create(&own).and_then(|file| file.set_len(DISK_BYTES));
    made.expect("a disk");
    let mut create = Command::new(&program);
    create.args(["cache", "create", "--boot"]).arg(&own);
    tool::run_command(&mut create).expect("prepared");
    lan.add_node("desk", 5, "debian").expect("a node");
    let words = ["node", "set", "desk", "--swarm", "tls", "--yes"];
    lan.daemon.run(words).expect("set");
    let site_file = lan.path("site.json");
    let known = lan.daemon.run(["boot", "site"]).expect("told");
    fs::write(&site_file, known).expect("written");
    let mut machine = boot(&lan, &own).expect("logged in");
    told(&mut machine, "starts from /dev/vda when no server").expect("kept");
    told(&mut machine, "kept for a start without a server").expect("kept");

    // Another one is half-way when everything else goes at once.
    let mut holder = Holder::new(&lan, 11, "debian", LINK_MBIT).expect("a holder");
    holder.start(&program, &site_file).expect("starts");
    wait::until("a part of the image", LIMIT, || {
        Ok((holder.came(&lan)? > 20 << 20).then_some(()))
    })
    .expect("it is at it");
    lan.daemon.kill().expect("killed");
    machine.pull_plug().expect("off");
    assert!(
        !holder.is_complete("debian:1").expect("it runs"),
        "too fast"
    );
    let mut machine = boot(&lan, &own).expect("logged in without a server");
    told(&mut machine, "debian:1 from its own disk").expect("alone");
    told(
        &mut machine,
        "others of the swarm are reached without a server",
    )
    .expect("joined");
    holder
        .completes("debian:1")
        .expect("nobody else has the rest");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");

    // A head on the same data at the same address: nobody has to do anything.
    lan.daemon.restart().expect("restarted");
    let since = Instant::now();
    let known = wait::until("all are known again", LIMIT, || {
        let shown = lan.daemon.json(["image", "show", "debian:1"])?;
        let count = |of: &str| shown["live_copies"][of].as_u64();
        let all = [count("rarest_count"), count("machine_count")];
        Ok((all == [Some(2); 2]).then_some(()))
    });
    known.expect("they say what they hold");
    println!("known again after {:.1} s", since.elapsed().as_secs_f64());
    boots::reach(&lan, "desk", "up").expect("it is a machine like all others");
    let log = shell(&mut machine, "dmesg | grep rootstock");
    println!("{log}");
    drop((dhcp, holder));
}

#[test]
fn a_machine_without_a_disk_boots_through_another() {
    let mut lan = Lan::new("proxy", "").expect("a lab");
    lan.import("debian", &boots::image(Golden::Debian).expect("an image"))
        .expect("imported");
    let program = agent::program().expect("is built");
    lan.add_node("late", 5, "debian").expect("a node");
    let words = ["node", "set", "late", "--swarm", "tls", "--yes"];
    lan.daemon.run(words).expect("set");
    let site_file = lan.path("site.json");
    let known = lan.daemon.run(["boot", "site"]).expect("told");
    fs::write(&site_file, known).expect("written");
    let mut holders = Vec::new();
    for number in [11, 12] {
        let mut holder = Holder::new(&lan, number, "debian", 1000).expect("a holder");
        let name = format!("h{number}");
        let words = ["node", "set", &name, "--boots-others", "yes", "--yes"];
        lan.daemon.run(words).expect("set");
        holder.start(&program, &site_file).expect("starts");
        holders.push(holder);
    }
    for holder in &holders {
        holder.completes("debian:1").expect("has all");
        let script = || holder.peer.curl(&["http://127.0.0.1:8487/boot.ipxe"]);
        let ready = wait::until("a script", LIMIT, || {
            Ok((script()?.status == 200).then_some(()))
        });
        ready.expect("it boots others");
    }
    let script = holders[1].peer.curl(&["http://10.77.0.11:8487/boot.ipxe"]);
    println!("{}", script.expect("answers").body);
    lan.daemon.kill().expect("killed");

    // The site's DHCP names one of them, for good.
    let site = Peer::new(&lan, 2).expect("the site's server");
    let url = "http://10.77.0.11:8487/boot.ipxe";
    let dhcp = boots::dnsmasq_with(&lan, &site, &[&format!("--dhcp-boot={url}")]);
    let dhcp = dhcp.expect("dnsmasq");
    let mut machine = lan.power_on("guest", 5, Firmware::Bios).expect("on");
    lan.log_in(&mut machine, "guest-52-54-00-77-00-05")
        .expect("logged in");
    told(&mut machine, "boots debian:1 as a guest").expect("told");
    boots::begin_to_read(&mut machine, "/usr/bin /usr/sbin /etc").expect("begun");
    machine
        .console
        .expect(boots::ALL_READ, BOOT_LIMIT)
        .expect("all of it is there");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");

    // A head comes to know it without anybody's hand.
    lan.daemon.restart().expect("restarted");
    boots::reach(&lan, "late", "up").expect("it is known again");
    println!("{}", shell(&mut machine, "dmesg | grep rootstock"));
    drop((dhcp, holders));
}
