//! Nodes and profiles on the command line, against a real daemon.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use rootstock_tests::{Daemon, disk, tool, wait};

/// How long the daemon's workers may take to see what was set.
const SEEN_LIMIT: Duration = Duration::from_secs(60);

fn started() -> (tempfile::TempDir, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    let path = dir.path().join("disk.img");
    disk::noise(&path, 1 << 20, 1).unwrap();
    let path = path.to_str().unwrap();
    daemon
        .run(["image", "import", "lab", path, "--tag", "production"])
        .unwrap();
    (dir, daemon)
}

#[test]
fn a_hundred_nodes_are_set_at_once() {
    let (dir, daemon) = started();
    let macs: Vec<String> = (0..100)
        .map(|n| format!("52:54:00:00:01:{n:02x}"))
        .collect();
    let file = dir.path().join("macs.txt");
    fs::write(&file, macs.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let added = daemon
        .run(["node", "add", "n[001-100]", "--macs", file])
        .unwrap();
    assert_eq!(added, "added: n[001-100]\n");
    let words = [
        "node",
        "set",
        "n[001-100]",
        "--image",
        "lab@production",
        "--mode",
        "frozen",
    ];
    let planned = daemon.run(words.iter().chain(&["--dry-run"])).unwrap();
    assert!(
        planned.starts_with("n[001-100]\n") && planned.contains("-> lab@production"),
        "{planned}"
    );
    assert!(planned.contains("nothing is changed yet"), "{planned}");
    let shown = daemon.json(["node", "show", "n007"]).unwrap();
    assert!(shown["settings"].as_object().unwrap().is_empty(), "{shown}");
    daemon.run(words.iter().chain(&["--yes"])).unwrap();
    let shown = daemon.json(["node", "show", "n007"]).unwrap();
    assert_eq!(shown["effective"]["image"], "lab@production", "{shown}");
    assert_eq!(shown["effective"]["mode"], "diskless");
    assert_eq!(shown["macs"][0], "52:54:00:00:01:06");
    assert_eq!(daemon.run(words).unwrap(), "nothing changes\n");
    let table = daemon.run(["node", "list", "n[001-003]"]).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    let csv = daemon.run(["node", "export"]).unwrap();
    assert_eq!(csv.lines().count(), 101);
    let copy = dir.path().join("nodes.csv");
    fs::write(&copy, csv.replace("lab@production", "lab:1")).unwrap();
    let copy = copy.to_str().unwrap();
    let changed = daemon.run(["node", "import", copy, "--yes"]).unwrap();
    assert!(changed.contains("lab@production -> lab:1"), "{changed}");
    let deleted = daemon.run(["node", "delete", "n[001-100]"]).unwrap();
    assert_eq!(deleted, "deleted: n[001-100]\n");
    assert!(
        daemon
            .run(["node", "list"])
            .unwrap()
            .contains("no nodes yet")
    );
    daemon.run(["node", "import", copy, "--yes"]).unwrap();
    assert_eq!(
        daemon.json(["node", "list"]).unwrap()["nodes"]
            .as_array()
            .unwrap()
            .len(),
        100
    );
}

#[test]
fn nodes_inherit_from_profiles() {
    let (_dir, daemon) = started();
    daemon
        .run([
            "profile",
            "create",
            "site",
            "--image",
            "lab:1",
            "--console",
            "tty0",
        ])
        .unwrap();
    daemon
        .run([
            "profile",
            "create",
            "gpu",
            "--parent",
            "site",
            "--kernel-arguments",
            "nomodeset",
        ])
        .unwrap();
    daemon
        .run([
            "node",
            "add",
            "pc",
            "--mac",
            "52:54:00:00:00:01",
            "--profile",
            "gpu",
        ])
        .unwrap();
    let shown = daemon.run(["node", "show", "pc"]).unwrap();
    for said in [
        "lab:1  (profile site)",
        "nomodeset  (profile gpu)",
        "diskless  (default)",
    ] {
        assert!(shown.contains(said), "{shown}");
    }
    daemon.run(["image", "untag", "lab", "production"]).unwrap();
    let held = daemon.refused(["image", "delete", "lab:1"]).unwrap();
    assert!(held.contains("profile site"), "{held}");
    let cycle = daemon
        .refused(["profile", "set", "site", "--parent", "gpu"])
        .unwrap();
    assert!(cycle.contains("which inherits from it"), "{cycle}");
    let held = daemon.refused(["profile", "delete", "gpu"]).unwrap();
    assert!(held.contains("node pc"), "{held}");
    daemon
        .run(["node", "unset", "pc", "profile", "--yes"])
        .unwrap();
    daemon.run(["profile", "unset", "site", "image"]).unwrap();
    daemon
        .run(["node", "set", "pc", "--image", "lab:1"])
        .unwrap();
    let held = daemon.refused(["image", "delete", "lab:1"]).unwrap();
    assert!(held.contains("node pc"), "{held}");
    daemon.run(["profile", "delete", "gpu"]).unwrap();
}

#[test]
fn mistakes_are_refused_by_name() {
    let (dir, daemon) = started();
    daemon
        .run(["node", "add", "pc", "--mac", "52:54:00:00:00:01"])
        .unwrap();
    let two = dir.path().join("two.txt");
    fs::write(&two, "52:54:00:00:00:08\n52:54:00:00:00:09\n").unwrap();
    let two = two.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["node", "add", "pc2", "--mac", "52-54-00-00-00-01"],
            1,
            "node 'pc' has the MAC address",
        ),
        (
            &["node", "add", "pc", "--mac", "52:54:00:00:00:02"],
            1,
            "already a node 'pc'",
        ),
        (
            &["node", "add", "pc2"],
            2,
            "neither a MAC address nor a UUID",
        ),
        (
            &["node", "add", "pc2", "--mac", "01:00:5e:00:00:01"],
            2,
            "not the address of one",
        ),
        (
            &["node", "add", "watch", "--mac", "52:54:00:00:00:03"],
            2,
            "cannot be a node's name",
        ),
        (
            &["node", "add", "n[1-3]", "--macs", two],
            2,
            "2 MAC addresses, and 3 nodes",
        ),
        (
            &["node", "set", "pc", "--mode", "thawed"],
            2,
            "the modes are diskless (or frozen",
        ),
        (
            &["node", "set", "pc", "--image", "absent", "--yes"],
            1,
            "no image 'absent'",
        ),
        (&["node", "unset", "pc", "imge"], 2, "there are image, mode"),
        (&["node", "show", "pc9"], 1, "node list"),
    ];
    for (words, code, said) in cases {
        let output = tool::output(daemon.command().args(words)).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(said), "{words:?}: {text}");
    }
    assert_eq!(
        daemon.run(["node", "log", "pc"]).unwrap(),
        "pc has not booted yet\n"
    );
    assert_eq!(
        daemon.run(["node", "approve", "pc"]).unwrap(),
        "none of them was held\n"
    );
}

/// S2.4: a node that is to have a volume of its own has it before it boots.
#[test]
fn a_personal_node_has_its_volume_from_the_start() {
    let (_dir, daemon) = started();
    for (name, mac, mode) in [
        ("anna", "52:54:00:00:00:01", "personal"),
        ("ben", "52:54:00:00:00:02", "diskless"),
    ] {
        let words = ["node", "add", name, "--mac", mac, "--image", "lab"];
        daemon
            .run(words.into_iter().chain(["--mode", mode]))
            .expect("added");
    }
    let volumes = wait::until("the volume", SEEN_LIMIT, || {
        let volumes = daemon.json(["volume", "list"])?["volumes"].clone();
        let any = volumes.as_array().is_some_and(|all| !all.is_empty());
        Ok(any.then_some(volumes))
    });
    let volumes = volumes.expect("a volume");
    let names: Vec<_> = volumes.as_array().into_iter().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(
        (&names[0]["name"], &names[0]["base"]),
        (&"anna".into(), &"lab:1".into())
    );
}

#[test]
fn a_node_goes_back_to_the_image_before_and_says_when_it_does_not_run() {
    let (_dir, daemon) = started();
    let mac = ["--mac", "52:54:00:00:01:01"];
    let add = ["node", "add", "n1"];
    daemon.run(add.iter().chain(&mac)).unwrap();
    let nothing = daemon.refused(["node", "rollback", "n1"]).unwrap();
    assert!(nothing.contains("nothing else set before"), "{nothing}");
    for image in ["lab@production", "lab:1"] {
        let words = ["node", "set", "n1", "--image", image, "--yes"];
        daemon.run(words).unwrap();
    }
    let planned = daemon.run(["node", "rollback", "n1", "--dry-run"]).unwrap();
    assert!(planned.contains("lab:1 -> lab@production"), "{planned}");
    assert!(planned.contains("nothing is changed yet"), "{planned}");
    daemon.run(["node", "rollback", "n1", "--yes"]).unwrap();
    let shown = daemon.json(["node", "show", "n1"]).unwrap();
    assert_eq!(shown["settings"]["image"], "lab@production", "{shown}");

    daemon.run(["profile", "create", "room"]).unwrap();
    let words = ["profile", "set", "room", "--image", "lab", "--yes"];
    daemon.run(words).unwrap();
    let back = daemon
        .run(["profile", "rollback", "room", "--yes"])
        .unwrap();
    assert!(back.contains("lab -> -"), "{back}");

    let off = daemon.run(["node", "reboot", "n1"]).unwrap();
    assert_eq!(off, "not running: n1\n");
    let retried = daemon.run(["node", "retry", "n1"]).unwrap();
    assert_eq!(retried, "no version failed there\n");
}

/// Another machine takes a node's place, unless it is a node of its own.
#[test]
fn a_broken_machine_is_replaced() {
    let (_dir, daemon) = started();
    for (node, mac) in [("pc", "52:54:00:00:02:01"), ("other", "52:54:00:00:02:02")] {
        daemon
            .run(["node", "add", node, "--mac", mac, "--image", "lab"])
            .unwrap();
    }
    let replace = |mac: &str| daemon.run(["node", "replace", "pc", "--mac", mac]);
    let refused = replace("52:54:00:00:02:02").unwrap_err().to_string();
    assert!(
        refused.contains("a card of other") && refused.contains("node delete other"),
        "{refused}"
    );
    replace("52:54:00:00:02:03").unwrap();
    let shown = daemon.json(["node", "show", "pc"]).unwrap();
    assert_eq!(shown["macs"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["macs"][0], "52:54:00:00:02:03");
    assert_eq!(shown["effective"]["image"], "lab");
}
