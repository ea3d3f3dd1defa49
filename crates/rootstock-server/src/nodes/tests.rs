//! Tests of what holds for a node.

use super::*;

fn profile(name: &str, parent: Option<&str>, settings: &str) -> ProfileRow {
    ProfileRow {
        name: name.parse().expect("a name"),
        parent: parent.map(|parent| parent.parse().expect("a name")),
        settings: settings.to_owned(),
        image: None,
        created: Timestamp::UNIX_EPOCH,
    }
}

fn node(profile: Option<&str>, settings: &str) -> NodeRow {
    NodeRow {
        name: "n1".parse().expect("a name"),
        profile: profile.map(|profile| profile.parse().expect("a name")),
        state: rootstock_catalog::NodeState::Ready,
        macs: Vec::new(),
        uuid: None,
        address: None,
        settings: settings.to_owned(),
        image: None,
        inventory: None,
        created: Timestamp::UNIX_EPOCH,
        approved: None,
        seen: None,
    }
}

#[test]
fn the_nearest_setting_holds() {
    let profiles = Profiles::new(&[
        profile(
            "site",
            None,
            r#"{"image":"lab","mode":"ram","console":"tty0"}"#,
        ),
        profile("gpu", Some("site"), r#"{"mode":"personal"}"#),
        profile(
            "net",
            None,
            r#"{"console":"ttyS0","kernel_arguments":"quiet"}"#,
        ),
    ])
    .expect("reads");
    let net: ProfileName = "net".parse().expect("a name");
    let row = node(Some("gpu"), r#"{"image":"lab:3"}"#);
    let effective = profiles.of_node(&row, Some(&net)).expect("resolves");
    let said = |setting| {
        let value = effective.settings.text(setting).expect("is set");
        let origin = serde_json::to_string(&effective.origins[&setting]).expect("serializes");
        format!("{value} {origin}")
    };
    assert_eq!(said(Setting::Image), r#"lab:3 {"kind":"node"}"#);
    assert_eq!(
        said(Setting::Mode),
        r#"personal {"kind":"profile","name":"gpu"}"#
    );
    assert_eq!(
        said(Setting::Console),
        r#"tty0 {"kind":"profile","name":"site"}"#
    );
    assert_eq!(
        said(Setting::KernelArguments),
        r#"quiet {"kind":"network","profile":"net"}"#
    );
    assert_eq!(said(Setting::RescueShell), r#"no {"kind":"default"}"#);
    assert_eq!(said(Setting::Cache), r#"auto {"kind":"default"}"#);
    assert_eq!(said(Setting::Fill), r#"on {"kind":"default"}"#);
    assert!(effective.settings.network.is_none());
}

#[test]
fn a_damaged_chain_ends() {
    let profiles = Profiles::new(&[
        profile("a", Some("b"), "{}"),
        profile("b", Some("a"), r#"{"console":"tty1"}"#),
    ])
    .expect("reads");
    let effective = profiles.effective(&"a".parse().expect("a name"));
    assert_eq!(effective.settings.console.as_deref(), Some("tty1"));
}

#[test]
fn what_cannot_work_is_refused() {
    let of = |setting: Setting, value: &str| {
        let mut settings = Settings::default();
        settings.set_text(setting, value).expect("reads");
        check_settings(&settings).is_ok()
    };
    for (setting, value, good) in [
        (Setting::Kernel, "/boot/vmlinuz-6.1", true),
        (Setting::Kernel, "boot/vmlinuz", false),
        (Setting::Initrd, "/boot/../../etc/shadow", false),
        (Setting::KernelArguments, "quiet splash", true),
        (Setting::KernelArguments, "quiet\nboot", false),
        (Setting::Console, "ttyS0 quiet", false),
        (Setting::CacheDiskBytesMax, "64G", true),
        (Setting::CacheDiskBytesMax, "255K", false),
        (Setting::Tags, "room-1 gpu", true),
        (Setting::Tags, "room/1", false),
    ] {
        assert_eq!(of(setting, value), good, "{setting} {value}");
    }
    assert!(!of(
        Setting::KernelArguments,
        &"x".repeat(TEXT_BYTES_MAX + 1)
    ));
    let many: Vec<String> = (0..=TAGS_MAX).map(|tag| format!("t{tag}")).collect();
    assert!(!of(Setting::Tags, &many.join(" ")));
}

#[test]
fn uuids_that_many_share_are_no_ids() {
    for (text, usable) in [
        ("4C4C4544-0039-3510-8052-B4C04F4A4D32", true),
        ("00000000-0000-0000-0000-000000000000", false),
        ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", false),
        ("03000200-0400-0500-0006-000700080009", false),
        ("4c4c45440039351080 52b4c04f4a4d32", false),
        ("", false),
    ] {
        assert_eq!(usable_uuid(text).is_some(), usable, "{text}");
    }
}

#[test]
fn a_state_is_read_from_the_last_step() {
    let boot = |ended: bool| BootRow {
        id: "b".to_owned(),
        node: "n1".parse().expect("a name"),
        started: Timestamp::UNIX_EPOCH,
        source: None,
        redeemed: None,
        order: None,
        image: None,
        ended: ended.then_some(Timestamp::UNIX_EPOCH),
    };
    let step = |step: BootStep| StepRow {
        step: step_name(step),
        time: Timestamp::UNIX_EPOCH,
        uptime_ms: None,
        bytes: 0,
        detail: String::new(),
    };
    for (ended, last, expected) in [
        (false, None, NodeState::Booting),
        (false, Some(BootStep::RootMounted), NodeState::Booting),
        (false, Some(BootStep::Up), NodeState::Up),
        (true, Some(BootStep::Up), NodeState::Gone),
        (true, Some(BootStep::Failed), NodeState::Failed),
        (false, Some(BootStep::Gone), NodeState::Gone),
        (false, Some(BootStep::OwnDisk), NodeState::OwnDisk),
    ] {
        let boot = (boot(ended), last.map(step));
        assert_eq!(state(&node(None, "{}"), Some(&boot)), expected, "{last:?}");
    }
    assert_eq!(state(&node(None, "{}"), None), NodeState::Ready);
}
