//! Machines with systems of their own hold an image, and give it to each other.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rootstock_tests::holder::{Holder, LIMIT};
use rootstock_tests::lan::{Lan, SERVER};
use rootstock_tests::{agent, disk, tool, wait};

/// Of what the image consists: noise.
const IMAGE_BYTES: u64 = 24 << 20;

/// What each machine can send and receive.
const LINK_MBIT: u32 = 40;

/// A lab of them.
struct Hall {
    lan: Lan,
    holders: Vec<Holder>,
    site: PathBuf,
    directory: tempfile::TempDir,
}

impl Hall {
    fn new(numbers: impl IntoIterator<Item = u8>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let lan = Lan::new("dhcp", "")?;
        let image = directory.path().join("image");
        disk::noise(&image, IMAGE_BYTES, 1)?;
        lan.import("lab", &image)?;
        let site = directory.path().join("site.json");
        fs::write(&site, lan.daemon.run(["boot", "site"])?)?;
        let mut hall = Self {
            lan,
            holders: Vec::new(),
            site,
            directory,
        };
        for number in numbers {
            hall.add(number)?;
        }
        Ok(hall)
    }

    fn add(&mut self, number: u8) -> Result<()> {
        let holder = Holder::new(&self.lan, number, "lab", LINK_MBIT)?;
        self.holders.push(holder);
        Ok(())
    }

    fn start(&mut self, of: std::ops::Range<usize>) -> Result<()> {
        let (program, site) = (agent::program()?, self.site.clone());
        for holder in &mut self.holders[of] {
            holder.start(&program, &site)?;
        }
        Ok(())
    }

    /// What a command says that ends with an error.
    fn refused(&self, command: &str, holder: &Holder) -> String {
        let program = agent::program().expect("is built");
        let mut refused = holder
            .peer
            .namespace
            .command(program.to_str().expect("text"));
        refused.args([command, "--mac", &holder.peer.mac, "--site"]);
        refused.arg(&self.site);
        refused.args(["--server", &format!("https://{SERVER}:8481")]);
        let output = tool::output(&mut refused).expect("ends");
        assert!(!output.status.success(), "{command} went on");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Has a machine keep what it holds in a file of this size, from its next start on.
    fn keep(&mut self, number: usize, size: &str) {
        let holder = &mut self.holders[number];
        let file = self
            .directory
            .path()
            .join(format!("{}.file", holder.number));
        let file = file.to_str().expect("text").to_owned();
        holder.more = ["--keep", &file, "--size", size].map(str::to_owned).into();
    }

    /// What came to a machine from others that are no servers, in percent of the image.
    fn got_from_machines(&self, holder: &Holder) -> Result<u64> {
        let name = format!("h{}", holder.number);
        // It says so with its announcements.
        wait::until("what it got", LIMIT, || {
            let shown = self.lan.daemon.json(["node", "show", &name])?;
            let bytes = shown["swarm"]["received_bytes"].as_u64().unwrap_or(0);
            Ok((bytes > 0).then_some(bytes * 100 / IMAGE_BYTES))
        })
    }

    /// Waits until the server says that so many machines hold all of the image.
    fn live_copies(&self, wanted: u64) -> Result<()> {
        wait::until("the right number of copies", LIMIT, || {
            let shown = self.lan.daemon.json(["image", "show", "lab:1"])?;
            let count = |of: &str| shown["live_copies"][of].as_u64().unwrap_or(0);
            let all = [count("rarest_count"), count("machine_count")];
            Ok((all == [wanted; 2]).then_some(()))
        })
    }

    /// Waits until this much of the image came to each of these, in percent.
    fn wait_for(&self, of: std::ops::Range<usize>, percent: u64) -> Result<()> {
        wait::until("a part of the image at each machine", LIMIT, || {
            for holder in &self.holders[of.clone()] {
                if holder.came(&self.lan)? < IMAGE_BYTES * percent / 100 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }
}

#[test]
fn they_finish_without_the_head_and_hold_what_it_brings_when_it_is_back() {
    let mut hall = Hall::new(11..17).expect("a hall");
    hall.start(0..1).expect("one starts");
    hall.holders[0].completes("lab:1").expect("has all");
    hall.start(1..6).expect("the others start");
    hall.wait_for(1..6, 20).expect("they are at it");
    hall.lan.daemon.kill().expect("killed");
    for holder in &hall.holders {
        holder.completes("lab:1").expect("nobody needs the head");
    }
    hall.lan.daemon.restart().expect("it is back");
    hall.live_copies(6).expect("they say what they hold");
    let next = hall.directory.path().join("next");
    disk::noise(&next, IMAGE_BYTES / 2, 2).expect("is made");
    hall.lan.import("lab", &next).expect("a version");
    for holder in &hall.holders {
        holder
            .completes("lab:2")
            .expect("holds what it is to hold now");
    }
}

#[test]
fn what_is_on_a_disk_is_there_after_a_restart_and_served_again() {
    let mut hall = Hall::new(11..14).expect("a hall");
    hall.keep(1, "64M");
    hall.start(0..1).expect("one starts");
    hall.holders[0].completes("lab:1").expect("has all");
    hall.start(1..2).expect("one with a disk starts");
    hall.holders[1].completes("lab:1").expect("has all");
    let came = hall.got_from_machines(&hall.holders[1]).expect("is said");
    assert!(came >= 90, "{came} % came from the other machine");
    hall.live_copies(2).expect("both have it");
    hall.holders[1].kill().expect("killed");
    hall.live_copies(1).expect("one is gone");
    let before = hall.holders[1].came(&hall.lan).expect("is counted");
    hall.start(1..2).expect("starts again");
    hall.holders[1].completes("lab:1").expect("has it still");
    hall.live_copies(2).expect("both have it again");
    let again = hall.holders[1].came(&hall.lan).expect("is counted") - before;
    assert!(again < IMAGE_BYTES / 20, "{again} B came a second time");
    // Now only its disk has it, beside the server.
    hall.holders[0].kill().expect("killed");
    hall.keep(2, "16M");
    hall.start(2..3).expect("starts");
    hall.holders[2]
        .says("has room for")
        .expect("says that it is too small");
    hall.holders[2].kill().expect("killed");
    hall.holders[2].more.clear();
    hall.start(2..3).expect("starts anew");
    hall.holders[2].completes("lab:1").expect("has all");
    let came = hall.got_from_machines(&hall.holders[2]).expect("is said");
    assert!(came >= 90, "{came} % came from the disk of another machine");
}

#[test]
fn a_session_that_is_over_is_begun_anew_and_nothing_is_lost() {
    let mut hall = Hall::new(11..13).expect("a hall");
    hall.start(0..2).expect("both start");
    for holder in &hall.holders {
        holder.completes("lab:1").expect("has all");
    }
    hall.lan.daemon.stop().expect("ends");
    hall.lan.daemon.restart().expect("is back on the same data");
    hall.live_copies(2).expect("both are known again");
    // A session of the same node ends the one before.
    let peer = &hall.holders[0].peer;
    let url = format!(
        "https://{SERVER}:8481/boot/hold/{}",
        peer.mac.replace(':', "-")
    );
    let token = peer.curl(&[&url]).expect("answers");
    assert_eq!(token.status, 200, "{token:?}");
    peer.session(token.body.trim()).expect("a session");
    hall.holders[0]
        .says("goes on under another session")
        .expect("finds out");
    hall.lan.daemon.kill().expect("killed");
    hall.lan.daemon.restart().expect("is back");
    hall.live_copies(2).expect("both are known");
    let shown = hall.lan.daemon.json(["node", "show", "h11"]);
    let shown = shown.expect("is shown");
    assert!(shown["swarm"].is_object(), "{shown}");
    let log = fs::read_to_string(&hall.holders[0].log).expect("a log");
    let begun = log.matches("this machine is h11").count();
    assert_eq!(begun, 1, "what it has in memory is still there: {log}");
}

#[test]
fn who_pays_by_the_byte_asks_and_gives_nothing() {
    let mut hall = Hall::new(11..13).expect("a hall");
    let metered = |hall: &Hall, value: &str| {
        let words = ["node", "set", "h12", "--metered", value, "--yes"];
        hall.lan.daemon.run(words).expect("set");
    };
    metered(&hall, "yes");
    hall.start(0..2).expect("both start");
    for holder in &hall.holders {
        holder.completes("lab:1").expect("has all");
    }
    hall.got_from_machines(&hall.holders[1]).expect("it asks");
    let shown = hall.lan.daemon.json(["node", "show", "h12"]);
    let shown = shown.expect("is shown");
    assert_eq!(shown["swarm"]["sent_bytes"], 0, "{shown}");
    // What is not given is no copy; and it is one again as soon as that is said.
    hall.live_copies(1).expect("one gives");
    metered(&hall, "no");
    hall.live_copies(2).expect("both give");
    metered(&hall, "yes");
    hall.live_copies(1).expect("one gives again");
}

#[test]
fn half_of_them_may_die() {
    let mut hall = Hall::new(11..19).expect("a hall");
    hall.start(0..8).expect("all start");
    hall.wait_for(0..8, 30).expect("they are at it");
    for holder in &mut hall.holders[2..6] {
        holder.kill().expect("killed");
    }
    for holder in hall.holders[..2].iter().chain(&hall.holders[6..]) {
        holder.completes("lab:1").expect("enough are left");
    }
}

#[test]
fn who_is_not_to_hold_anything_is_told_why() {
    let mut hall = Hall::new(11..12).expect("a hall");
    let set = |words: &[&str]| {
        let all = ["node", "set", "h11"].iter().chain(words).chain(&["--yes"]);
        hall.lan.daemon.run(all).expect("set");
    };
    for (words, expected) in [
        (&["--swarm", "off"][..], "--swarm tls"),
        (&["--mode", "diskless"], "--mode hold"),
    ] {
        set(words);
        let said = hall.refused("hold", &hall.holders[0]);
        assert!(said.contains(expected), "{said}");
    }
    // Nor is a boot rehearsed that nobody has made.
    set(&["--swarm", "tls", "--mode", "hold"]);
    let said = hall.refused("rehearse", &hall.holders[0]);
    assert!(said.contains("no boot of lab:1 is learnt yet"), "{said}");
    hall.holders.clear();
}
