//! A node that is to run an installer first: what it is told, what its installer gets, and
//! that it does not run for ever.

use jiff::SignedDuration;
use rootstock_catalog::InstallerRunRow;
use rootstock_core::{InstallerName, NodeName};

use super::*;

const DEFINITION: &str = "\
kernel = \"linux\"
initrd = [\"initrd\", \"more\"]
arguments = \"auto=true url={{ url }}/preseed.cfg\"
starts = 2
";

const PRESEED: &str = "d-i hostname {{ node.name }} {{ values | length }} at {{ network.address }} \
                       then {{ done }}\n";

fn n001() -> NodeName {
    "n001".parse().expect("a name")
}

/// A node that boots `lab`, and an installer that is to run there before.
async fn site(definition: &str) -> Site {
    let site = Site::with(|app| app.config.boot.installers = app.config.data.join("i")).await;
    let folder = site.app.config.boot.installers.join("debian");
    std::fs::create_dir_all(&folder).expect("makes it");
    for (name, text) in [
        ("installer.toml", definition),
        ("linux.txt", "a template, too"),
        ("preseed.cfg", PRESEED),
        ("more", "x"),
    ] {
        std::fs::write(folder.join(name), text).expect("writes");
    }
    for (name, bytes) in [("linux", b"a kernel"), ("../initrd", b"5 bytes.")] {
        std::fs::write(folder.join(name), bytes).expect("writes");
    }
    site.image().await;
    site.node(r#"{"image":"lab","console":"ttyS0"}"#).await;
    ask(&site).await;
    site
}

async fn ask(site: &Site) {
    let debian: InstallerName = "debian".parse().expect("a name");
    let names = [n001()];
    let catalog = &site.app.catalog;
    let asked = catalog.ask_for_installer(&names, &debian, Timestamp::now());
    asked.await.expect("is asked for");
}

async fn run(site: &Site) -> InstallerRunRow {
    let run = site.app.catalog.installer_run(&n001()).await;
    run.expect("reads").expect("is there")
}

/// The machine is switched off and on, and asks for its script.
async fn boots(site: &Site) -> String {
    let mac: MacAddress = MAC.parse().expect("a MAC");
    let transcripts = &site.app.boot.transcripts;
    transcripts.step(mac, Told::new(BootStep::KernelServed, ""));
    transcripts.dhcp(
        mac,
        DhcpStage::Firmware,
        Told::new(BootStep::Discovered, ""),
    );
    site.script().await
}

fn path_of(script: &str) -> String {
    let (_, rest) = script
        .split_once("kernel http://10.0.0.1:8480")
        .expect("has a kernel");
    let (path, _) = rest.split_once("kernel ").expect("has a path");
    path.to_owned()
}

const NOT_INITRD: &str = "initrd = [\"initrd\", \"more\"]";

#[tokio::test]
async fn an_installer_gets_files_made_for_its_machine_and_calls_home() {
    let definition = DEFINITION.replace(NOT_INITRD, "initrd = [\"../initrd\", \"linux\"]");
    let site = site(&definition).await;
    std::fs::write(site.app.config.boot.installers.join("initrd"), b"12345").expect("writes");
    let first = path_of(&boots(&site).await);
    // What a machine fetches again before it has an installer is the same start.
    let script = site.script().await;
    assert_eq!(run(&site).await.starts, 1);
    let (status, _) = site.get(&format!("{first}kernel")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "there is a new token");
    let path = path_of(&script);
    assert!(
        script.contains("n001 runs the installer debian"),
        "{script}"
    );
    let arguments =
        format!("initrd=initrd auto=true url=http://10.0.0.1:8480{path}preseed.cfg console=ttyS0 ");
    assert!(script.contains(&arguments), "{script}");
    assert!(!script.contains("sanhook"), "{script}");

    let ok = |text: &str| (StatusCode::OK, text.to_owned());
    assert_eq!(site.get(&format!("{path}kernel")).await, ok("a kernel"));
    let initrd = site.get(&format!("{path}initrd")).await;
    assert_eq!(initrd, ok("12345\0\0\0a kernel"));
    let preseed = site.get(&format!("{path}preseed.cfg")).await;
    let expected = format!("d-i hostname n001 0 at 10.0.0.7 then http://10.0.0.1:8480{path}done\n");
    assert_eq!(preseed, ok(&expected));
    for name in ["passwd", "installer.toml", "..", "", "x/y"] {
        let (status, _) = site.get(&format!("{path}{name}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{name}");
    }
    for name in ["preseed.cfg", "kernel", "done", "failed"] {
        let request = Request::get(format!("{path}{name}")).body(Body::empty());
        let answer = site
            .send(OTHER, Transport::Plain, request.expect("a request"))
            .await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}");
    }
    let (status, _) = site.get(&format!("{path}say?text=halfway+there%0a")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(run(&site).await.ended, None);

    let done = format!("{path}done");
    for _ in 0..2 {
        let request = Request::post(&done)
            .body("all is well".into())
            .expect("a request");
        let answer = site.send(OWN, Transport::Plain, request).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let row = run(&site).await;
    assert!(row.ended.is_some() && row.failed.is_none(), "{row:?}");
    let (status, _) = site.get(&format!("{path}preseed.cfg")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "it is over");
    let script = boots(&site).await;
    assert!(script.contains("n001 boots lab:1"), "{script}");
    let request = Request::post(format!("/boot/ipxe/{MAC}")).body(Body::empty());
    let answer = site
        .send(OWN, Transport::Plain, request.expect("a request"))
        .await;
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_installer_that_never_calls_home_is_given_up() {
    let site = site(DEFINITION).await;
    for start in 1..=2 {
        let script = boots(&site).await;
        assert!(script.contains("runs the installer"), "{script}");
        assert_eq!(run(&site).await.starts, start);
    }
    for _ in 0..2 {
        let script = boots(&site).await;
        assert!(
            script.contains("debian was started 2 times and did not call home"),
            "{script}"
        );
        assert!(
            script.contains("rootstock node install n001 --installer debian"),
            "{script}"
        );
    }
    ask(&site).await;
    assert!(boots(&site).await.contains("runs the installer"));
    let forgotten = site.app.catalog.forget_installers(&[n001()]).await;
    forgotten.expect("is forgotten");
    assert!(boots(&site).await.contains("n001 boots lab:1"));
}

#[tokio::test]
async fn an_installer_that_gives_up_says_why() {
    let site = site(DEFINITION).await;
    let path = path_of(&boots(&site).await);
    let (status, _) = site.get(&format!("{path}failed?reason=no+disk%1b")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(run(&site).await.failed.as_deref(), Some("gave up: no disk"));
    let script = boots(&site).await;
    assert!(script.contains("debian gave up: no disk."), "{script}");
}

#[tokio::test]
async fn an_installer_without_a_call_is_done_when_its_machine_starts_again() {
    let site = site(&format!("{DEFINITION}ends = \"restart\"\n")).await;
    boots(&site).await;
    // It was not sent yet, or a moment ago.
    assert!(boots(&site).await.contains("runs the installer"));
    let now = Timestamp::now();
    site.says("installer", now - SignedDuration::from_secs(61), None, "")
        .await;
    let script = boots(&site).await;
    assert!(script.contains("n001 boots lab:1"), "{script}");
    assert!(run(&site).await.failed.is_none());
}

#[tokio::test]
async fn what_is_wrong_with_an_installer_is_on_the_screen() {
    let site = site("kernel = 7").await;
    let script = boots(&site).await;
    assert!(
        script.contains("The server could not start the installer"),
        "{script}"
    );
    let folder = site.app.config.boot.installers.join("debian");
    std::fs::remove_dir_all(folder).expect("removes it");
    let script = boots(&site).await;
    assert!(
        script.contains("there is no installer .debian."),
        "{script}"
    );
}

#[tokio::test]
async fn a_disk_over_iscsi_that_is_not_there_is_said() {
    let site = site(DEFINITION).await;
    let names = [n001()];
    for (mode, expected) in [("iscsi", "volume"), ("iscsi-frozen", "would be gone")] {
        let edit = |row: &mut rootstock_catalog::NodeRow| {
            row.settings = format!("{{\"mode\":\"{mode}\"}}");
        };
        let pass = rootstock_catalog::Pass::Keep;
        let changed = site.app.catalog.update_nodes(&names, pass, edit).await;
        changed.expect("is changed");
        let script = boots(&site).await;
        assert!(script.contains("could not make its disk ready"), "{script}");
        assert!(script.contains(expected), "{script}");
    }
}
