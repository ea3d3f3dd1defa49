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
    let shown = wait::until("all are known again", LIMIT, || {
        let shown = hall.lan.daemon.json(["image", "show", "lab:1"])?;
        let count = |of: &str| shown["live_copies"][of].as_u64();
        let all = [count("rarest_count"), count("machine_count")];
        Ok((all == [Some(6); 2]).then_some(()))
    });
    shown.expect("they say what they hold");
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
fn half_of_them_may_die() {
    let mut hall = Hall::new(11..19).expect("a hall");
    hall.start(0..8).expect("all start");
    hall.wait_for(0..8, 30).expect("they are at it");
    for holder in &mut hall.holders[2..6] {
        holder.process.take().expect("runs").kill().expect("killed");
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
