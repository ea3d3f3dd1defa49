//! Tests of how a machine fetches ahead at a given time.

use jiff::{civil, tz::TimeZone};
use rootstock_api::Setting;

use super::*;

impl Controls {
    /// When the catalog was read last.
    pub(in crate::boot) fn read_at(&self) -> Option<Instant> {
        self.read().as_ref().map(|read| read.since)
    }

    /// Requests that are held.
    pub(in crate::boot) fn held(&self) -> usize {
        WAITING_MAX - self.places.available_permits()
    }
}

/// Central Europe, whether or not this machine knows the world's time zones.
pub(in crate::boot) fn central_europe() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("is a time zone")
}

/// Settings, a time in Central Europe, why nothing is fetched, and the seconds until that
/// may change.
type Case = (
    &'static [(Setting, &'static str)],
    &'static str,
    Option<&'static str>,
    Option<u64>,
);

const NIGHT: (Setting, &str) = (Setting::FillHours, "22:00-06:00");

fn at(time: &str) -> Zoned {
    let time: civil::DateTime = time.parse().expect("a time");
    time.to_zoned(central_europe()).expect("is a time there")
}

fn settings(set: &[(Setting, &str)]) -> Settings {
    let mut settings = Settings::default();
    for (setting, value) in set {
        settings.set_text(*setting, value).expect(value);
    }
    settings
}

#[test]
fn what_holds_depends_on_settings_and_the_time() {
    let cases: &[Case] = &[
        (&[], "2026-03-01T12:00:00", None, None),
        (
            &[NIGHT],
            "2026-03-01T12:00:00",
            Some("outside 22:00-06:00"),
            Some(36_000),
        ),
        (
            &[NIGHT],
            "2026-03-01T21:59:59",
            Some("outside 22:00-06:00"),
            Some(1),
        ),
        (&[NIGHT], "2026-03-01T22:00:00", None, Some(8 * 3600)),
        (&[NIGHT], "2026-03-02T05:59:30", None, Some(30)),
        (
            &[NIGHT],
            "2026-03-02T06:00:00",
            Some("outside 22:00-06:00"),
            Some(16 * 3600),
        ),
        (
            &[(Setting::FillHours, "00:00-24:00")],
            "2026-03-02T06:00:00",
            None,
            None,
        ),
        (
            &[(Setting::Fill, "paused")],
            "2026-03-01T12:00:00",
            Some("paused by the administrator"),
            None,
        ),
        (&[(Setting::Fill, "on")], "2026-03-01T12:00:00", None, None),
        (
            &[(Setting::Exam, "yes"), (Setting::Fill, "paused"), NIGHT],
            "2026-03-01T23:00:00",
            Some("exam mode"),
            Some(7 * 3600),
        ),
        (&[(Setting::Exam, "no")], "2026-03-01T12:00:00", None, None),
    ];
    for (set, time, paused, changes_in) in cases {
        let fill = fill(&settings(set), &at(time));
        assert_eq!(fill.order.paused.as_deref(), *paused, "{set:?} at {time}");
        let seconds = fill.changes_in.map(|time| time.as_secs());
        assert_eq!(seconds, *changes_in, "{set:?} at {time}");
    }
    let fast = settings(&[(Setting::FillMbitMax, "200")]);
    let order = fill(&fast, &at("2026-03-01T12:00:00")).order;
    assert_eq!(order.mbit_max, Some(200));
}

#[test]
fn a_part_of_a_second_is_not_waited_for_twice() {
    let time = at("2026-03-01T21:59:59.25");
    let fill = fill(&settings(&[NIGHT]), &time);
    assert_eq!(fill.changes_in, Some(Duration::from_millis(750)));
}

#[test]
fn hours_are_the_wall_clocks_when_summer_begins() {
    // 02:30 does not exist that night: 03:30 is an hour and a half after 01:00.
    let early = settings(&[(Setting::FillHours, "02:15-02:45")]);
    let before = fill(&early, &at("2026-03-29T01:59:00"));
    assert!(before.order.paused.is_some());
    let after = at("2026-03-29T01:59:00") + jiff::SignedDuration::from_mins(1);
    assert_eq!(after.hour(), 3);
    assert!(fill(&early, &after).order.paused.is_some());
    let night = settings(&[NIGHT]);
    assert_eq!(fill(&night, &after).order.paused, None);
}

#[test]
fn what_is_the_same_has_the_same_number() {
    let paused = FillOrder {
        paused: Some("exam mode".to_owned()),
        mbit_max: None,
    };
    let next = NextVersion {
        image: "lab".parse().expect("a name"),
        version: rootstock_core::VersionNumber(2),
        manifest: Digest::of(b"manifest"),
    };
    let number = |fill: &FillOrder, next: Option<&NextVersion>| {
        let control = NodeControl {
            fill: fill.clone(),
            next: next.cloned(),
            ..NodeControl::default()
        };
        let control = numbered(control).expect("is numbered");
        control.number
    };
    let numbers = [
        number(&FillOrder::default(), None),
        number(&paused, None),
        number(&FillOrder::default(), Some(&next)),
        number(&paused, Some(&next)),
    ];
    for (at, one) in numbers.iter().enumerate() {
        assert!(*one > 0 && *one < 1 << NUMBER_BITS);
        assert!(!numbers[..at].contains(one));
    }
    // The same in every release and on every machine.
    assert_eq!(number(&FillOrder::default(), None), 7_339_919_446_140_657);
}
