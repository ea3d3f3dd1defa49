//! The command line against a real daemon: what it prints and how it ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use rootstock_tests::{Daemon, daemon, disk, tool};
use serde_json::Value;

fn started() -> (tempfile::TempDir, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    (dir, daemon)
}

fn imported(dir: &Path, daemon: &Daemon, seed: u64, more: &[&str]) -> Value {
    let path = dir.join("disk.img");
    disk::noise(&path, 1 << 20, seed).unwrap();
    let mut words = vec!["image", "import", "lab", path.to_str().unwrap()];
    words.extend(more);
    daemon.json(words).unwrap()
}

/// The exit code and what was said.
fn ended(command: &mut Command) -> (i32, String) {
    let output = tool::output(command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

#[test]
fn an_image_lives_and_goes() {
    let (dir, daemon) = started();
    imported(dir.path(), &daemon, 1, &["--tag", "test", "-m", "first"]);
    let second = imported(dir.path(), &daemon, 2, &[]);
    assert_eq!(second["version"], 2);
    assert_eq!(second["parent"], "lab:1");
    let table = daemon.run(["image", "list"]).unwrap();
    assert!(
        table.starts_with("IMAGE") && table.contains("test=1"),
        "{table}"
    );
    let shown = daemon.run(["image", "show", "lab"]).unwrap();
    assert!(
        shown.contains("lab:1") && shown.contains("first"),
        "{shown}"
    );
    let one = daemon.run(["image", "show", "lab@test"]).unwrap();
    assert!(one.starts_with("version   lab:1"), "{one}");
    let moved = daemon.run(["image", "tag", "lab:2", "test"]).unwrap();
    assert_eq!(moved, "lab@test is lab:2 (before: lab:1)\n");
    let diff = daemon.json(["image", "diff", "lab:1", "lab:2"]).unwrap();
    assert_eq!(diff["fetch_chunk_count"], 4, "{diff}");
    let whole = daemon.run(["image", "verify", "lab:2"]).unwrap();
    assert!(whole.contains("is whole"), "{whole}");
    let held = daemon.refused(["image", "delete", "lab:2"]).unwrap();
    assert!(held.contains("test") && held.contains("hint:"), "{held}");
    daemon.run(["image", "untag", "lab", "test"]).unwrap();
    daemon.run(["image", "delete", "lab:1"]).unwrap();
    let unsaid = daemon.refused(["image", "delete", "lab"]).unwrap();
    assert!(unsaid.contains("--all"), "{unsaid}");
    daemon.run(["image", "delete", "lab", "--all"]).unwrap();
    let freed = daemon.json(["gc"]).unwrap();
    assert!(freed["freed_chunk_count"].as_u64().unwrap() >= 8, "{freed}");
    let empty = daemon.run(["image", "list"]).unwrap();
    assert!(empty.contains("no images yet"), "{empty}");
}

#[test]
fn volumes_come_and_go() {
    let (dir, daemon) = started();
    imported(dir.path(), &daemon, 1, &["--tag", "live"]);
    let made = daemon
        .json(["volume", "create", "seat", "--from", "lab@live"])
        .unwrap();
    assert_eq!(made["base"], "lab:1", "{made}");
    assert_eq!(made["export"], "volume/seat");
    daemon
        .run([
            "volume",
            "create",
            "big",
            "--from",
            "lab",
            "--size",
            "2M",
            "--ephemeral",
        ])
        .unwrap();
    let table = daemon.run(["volume", "list"]).unwrap();
    assert!(
        table.contains("seat") && table.contains("ephemeral"),
        "{table}"
    );
    daemon.run(["volume", "resize", "seat", "4M"]).unwrap();
    let shown = daemon.json(["volume", "show", "seat"]).unwrap();
    assert_eq!(shown["size_bytes"], 4 << 20);
    daemon.run(["volume", "snapshot", "seat", "copy"]).unwrap();
    daemon.run(["volume", "reset", "seat"]).unwrap();
    let committed = daemon
        .json(["volume", "commit", "copy", "lab", "--tag", "new"])
        .unwrap();
    assert_eq!(committed["version"], 2, "{committed}");
    let held = daemon.refused(["image", "delete", "lab:1"]).unwrap();
    assert!(held.contains("seat"), "{held}");
    for name in ["seat", "big", "copy"] {
        daemon.run(["volume", "delete", name]).unwrap();
    }
    let none = daemon.refused(["volume", "show", "seat"]).unwrap();
    assert!(none.contains("volume list"), "{none}");
}

#[test]
fn mistakes_have_their_exit_codes() {
    let (_dir, daemon) = started();
    let cases: [(&[&str], i32); 7] = [
        (&["image", "list"], 0),
        (&["image", "show", "absent"], 1),
        (&["image", "show", "a/b"], 2),
        (&["image", "show", &"x".repeat(10_000)], 2),
        (&["image", "import", "🌱", "x"], 2),
        (&["image", "frobnicate"], 2),
        (&["volume", "create", "v", "--from", "absent"], 1),
    ];
    for (words, expected) in cases {
        let (code, said) = ended(daemon.command().args(words));
        assert_eq!(code, expected, "{said}");
        assert_eq!(said.is_empty(), code == 0, "{said}");
        assert!(said.len() < 2000, "{said}");
    }
    let (_, said) = ended(daemon.command().args(["image", "show", "absent", "--json"]));
    let problem: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(problem["code"], "image-not-found", "{said}");
}

#[test]
fn a_missing_daemon_is_said() {
    let mut command = Command::new(daemon::binary().unwrap());
    command.args(["image", "list", "--api", "unix:/nonexistent/api.sock"]);
    let (code, said) = ended(&mut command);
    assert_eq!(code, 1);
    assert!(
        said.contains("no daemon answers at unix:/nonexistent/api.sock"),
        "{said}"
    );
    assert!(said.contains("rootstock serve"), "{said}");
    let (code, said) = ended(command.args(["--api", "tcp:1"]));
    assert_eq!(code, 2, "{said}");
}

#[test]
fn tokens_are_shown_once() {
    let (_dir, daemon) = started();
    let secret = daemon
        .run(["token", "create", "ci", "--role", "admin"])
        .unwrap();
    assert!(secret.trim().len() >= 32, "{secret}");
    let listed = daemon.run(["token", "list"]).unwrap();
    assert!(
        listed.contains("ci") && !listed.contains(secret.trim()),
        "{listed}"
    );
    daemon.run(["token", "revoke", "ci"]).unwrap();
    daemon.run(["scrub", "status"]).unwrap();
    let status = daemon.run(["status"]).unwrap();
    assert!(status.starts_with("daemon"), "{status}");
}

#[test]
fn completions_and_config_need_no_daemon() {
    let binary = daemon::binary().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = tool::run_command(Command::new(&binary).args(["completions", shell]));
        assert!(script.unwrap().contains("rootstock"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rootstock.toml");
    fs::write(&file, "[nbd]\nlisten = []\n").unwrap();
    let mut command = Command::new(&binary);
    command
        .args(["serve", "--show-config", "--data", "/srv/r", "--config"])
        .arg(&file);
    let shown = tool::run_command(&mut command).unwrap();
    assert!(
        shown.contains("data = \"/srv/r\"  # flag --data"),
        "{shown}"
    );
    assert!(shown.contains("nbd.listen = []  # file"), "{shown}");
    fs::write(&file, "[nbd]\nlisen = []\n").unwrap();
    let (code, said) = ended(&mut command);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("lisen"), "{said}");
}

#[test]
fn a_storm_is_planned_with_and_without_an_image() {
    let (dir, daemon) = started();
    imported(dir.path(), &daemon, 1, &[]);
    let unknown = ["plan", "storm", "--nodes", "3", "--image", "lab:1"];
    let said = daemon.refused(unknown).unwrap();
    assert!(
        said.contains("no machine has booted it") && said.contains("--boot-set"),
        "{said}"
    );
    let none = ["plan", "storm", "--nodes", "3", "--image", "cafe:1"];
    let said = daemon.refused(none).unwrap();
    assert!(said.contains("cafe") && said.contains("hint:"), "{said}");
    let more = ["--boot-set", "300K", "--spread", "0"];
    let plan = daemon.json([&unknown[..], &more[..]].concat()).unwrap();
    assert_eq!(plan["version"], "lab:1");
    let chunks = plan["chunk_count"].as_u64().unwrap();
    assert!(chunks >= 4, "{plan}");
    for stage in ["login", "complete"] {
        let stage = &plan[stage];
        assert_eq!(stage["finished_count"], 3, "{plan}");
        let bound = stage["bound_seconds"].as_f64().unwrap();
        assert!(stage["last_seconds"].as_f64().unwrap() >= bound, "{plan}");
    }
    // Nobody has to be there for what is not an image yet.
    let mut alone = Command::new(daemon::binary().unwrap());
    alone.args(["--api", "unix:/nowhere", "plan", "storm", "--nodes", "2"]);
    alone.args(["--bytes", "20M", "--boot-set", "2M", "--from", "boot"]);
    let output = tool::output(&mut alone).unwrap();
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && table.contains("complete"),
        "{table}"
    );
    assert!(!table.contains("login "), "{table}");
    for words in [
        "--nodes 2 --bytes 1M --boot-set 2M",
        "--nodes 2 --bytes 2M --boot-set 1M --racks 9",
    ] {
        let mut wrong = Command::new(daemon::binary().unwrap());
        wrong.args(["plan", "storm"]).args(words.split(' '));
        let (code, said) = ended(&mut wrong);
        assert!(code == 2 && said.contains("hint:"), "{code} {said}");
    }
}
