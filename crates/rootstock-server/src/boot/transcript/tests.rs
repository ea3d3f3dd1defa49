//! What becomes of steps: whose boot they are, what stands still, what is stored.

use super::*;

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn told(step: BootStep) -> Told {
    Told::new(step, "")
}

fn node() -> NodeName {
    "n001".parse().expect("a name")
}

#[test]
fn names_go_and_come_back() {
    for step in [
        BootStep::Discovered,
        BootStep::RootMounted,
        BootStep::Failed,
    ] {
        assert_eq!(step_of(&name_of(step)), Some(step));
    }
    assert_eq!(name_of(BootStep::RootMounted), "root-mounted");
    assert_eq!(step_of("on-fire"), None);
}

#[test]
fn steps_before_the_script_become_the_boot_s() {
    let transcripts = Transcripts::default();
    let mut watch = transcripts.watch();
    for step in [
        BootStep::Discovered,
        BootStep::Discovered,
        BootStep::Offered,
    ] {
        transcripts.dhcp(MAC, DhcpStage::Firmware, told(step));
    }
    transcripts.step(MAC, told(BootStep::FileServed).bytes(70_000));
    transcripts.dhcp(MAC, DhcpStage::Ipxe, told(BootStep::Discovered));
    assert_eq!(transcripts.open_boot(MAC), None);
    transcripts.adopt(MAC, &node(), "b1");
    transcripts.step(MAC, told(BootStep::ScriptServed));
    assert_eq!(transcripts.open_boot(MAC).as_deref(), Some("b1"));
    let mut receiver = transcripts
        .receiver
        .lock()
        .expect("locks")
        .take()
        .expect("is there");
    let mut stored = Vec::new();
    while let Ok(queued) = receiver.try_recv() {
        assert_eq!(queued.boot, "b1");
        stored.push(queued.row.step);
    }
    let expected = [
        "discovered",
        "offered",
        "file-served",
        "discovered",
        "script-served",
    ];
    assert_eq!(stored, expected);
    let seen = std::iter::from_fn(|| watch.try_recv().ok()).count();
    assert_eq!(seen, 5);
}

#[test]
fn a_boot_begins_with_firmware_and_renewals_do_not_count() {
    for (last, stage, begins) in [
        (BootStep::Offered, DhcpStage::Firmware, false),
        (BootStep::FileServed, DhcpStage::Firmware, true),
        (BootStep::FileServed, DhcpStage::Ipxe, false),
        (BootStep::ScriptServed, DhcpStage::Ipxe, false),
        (BootStep::InitrdServed, DhcpStage::Ipxe, true),
        (BootStep::InitrdServed, DhcpStage::System, false),
        (BootStep::Up, DhcpStage::System, false),
        (BootStep::Up, DhcpStage::Firmware, true),
    ] {
        let transcripts = Transcripts::default();
        transcripts.adopt(MAC, &node(), "b1");
        transcripts.step(MAC, told(last));
        transcripts.dhcp(MAC, stage, told(BootStep::Discovered));
        let kept = transcripts.mac_of("b1").is_some();
        assert_eq!(kept, !begins, "{last:?} {stage:?}");
    }
}

#[test]
fn a_boot_that_stands_still_fails_once_with_its_cause() {
    let transcripts = Transcripts::default();
    transcripts.adopt(MAC, &node(), "b1");
    transcripts.step(MAC, told(BootStep::ScriptServed));
    let mut watch = transcripts.watch();
    let patience = causes::patience(BootStep::ScriptServed).expect("has one");
    let later = Instant::now() + patience + Duration::from_secs(60);
    transcripts.look(Instant::now());
    assert!(watch.try_recv().is_err());
    transcripts.look(later);
    let news = watch.try_recv().expect("fails");
    assert_eq!(news.step, BootStep::Failed);
    assert!(
        news.detail.contains("after script-served: the kernel"),
        "{}",
        news.detail
    );
    transcripts.look(later);
    assert!(watch.try_recv().is_err());
    // A machine that goes on is no failure any more.
    transcripts.step(MAC, told(BootStep::KernelServed));
    assert_eq!(transcripts.last(MAC), Some(BootStep::KernelServed));
}

#[test]
fn notes_are_bounded_and_leave_a_boot_where_it_is() {
    let transcripts = Transcripts::default();
    transcripts.adopt(MAC, &node(), "b1");
    transcripts.step(MAC, told(BootStep::Session));
    for _ in 0..2 * NOTES_MAX {
        transcripts.note("b1", "a token was refused");
        transcripts.note("another", "nobody's");
    }
    assert_eq!(transcripts.last(MAC), Some(BootStep::Session));
    let receiver = transcripts.receiver.lock().expect("locks").take();
    let mut receiver = receiver.expect("is there");
    let rows: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    assert_eq!(rows.len(), 1 + NOTES_MAX as usize);
    assert!(rows.iter().all(|queued| queued.row.step == "session"));
}

#[tokio::test]
async fn steps_are_stored_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = Catalog::open(&dir.path().join("c.sqlite"))
        .await
        .expect("opens");
    let now = Timestamp::now();
    let names = "n001".parse().expect("a list");
    let registration = rootstock_catalog::Registration {
        names: &names,
        macs: vec![MAC],
        uuid: None,
        profile: None,
        state: rootstock_catalog::NodeState::Ready,
        inventory: None,
    };
    catalog
        .register_node(registration, now)
        .await
        .expect("registers");
    let boot = rootstock_catalog::NewBoot {
        id: "b1".to_owned(),
        node: node(),
        token: None,
    };
    catalog.begin_boot(&boot, now).await.expect("begins");
    let transcripts = Arc::new(Transcripts::default());
    transcripts.adopt(MAC, &node(), "b1");
    for step in [
        BootStep::ScriptServed,
        BootStep::KernelServed,
        BootStep::InitrdServed,
    ] {
        transcripts.step(MAC, told(step).bytes(5));
    }
    let (stop, stopped) = Stop::new();
    stop.send_replace(true);
    let (changed, mut changes) = mpsc::channel(8);
    let work = Arc::clone(&transcripts).work(catalog.clone(), changed, stopped);
    work.await;
    assert_eq!(changes.recv().await, Some(node()));
    let (_, steps) = catalog.boot_transcript("b1").await.expect("is there");
    let steps: Vec<_> = steps.into_iter().map(|row| row.step).collect();
    assert_eq!(steps, ["script-served", "kernel-served", "initrd-served"]);
    let mut text = String::new();
    transcripts.render(&mut text);
    assert!(
        text.contains("rootstock_boot_steps_total{step=\"kernel-served\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("rootstock_boot_served_bytes_total{kind=\"initrd\"} 5"),
        "{text}"
    );
    catalog.close().await;
}
