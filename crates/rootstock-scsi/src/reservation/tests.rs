//! Who may do what, and against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    cdb::PersistentOut, logical_unit::Attention, refusal::Refusal, sense::Sense, testing::nexus,
};

const KINDS: [Kind; 6] = [
    Kind::WriteExclusive,
    Kind::ExclusiveAccess,
    Kind::WriteExclusiveRegistrantsOnly,
    Kind::ExclusiveAccessRegistrantsOnly,
    Kind::WriteExclusiveAllRegistrants,
    Kind::ExclusiveAccessAllRegistrants,
];

fn out(action: OutAction, kind: Kind) -> PersistentOut {
    PersistentOut {
        action,
        scope_and_type: kind.code(),
    }
}

fn keys(key: u64, action_key: u64) -> OutParameters {
    OutParameters {
        key,
        action_key,
        through_power_loss: false,
    }
}

/// Nexus `number` does something with its key, which is `number + 1`.
fn act(
    state: &mut Reservations,
    number: u8,
    action: OutAction,
    kind: Kind,
    action_key: u64,
) -> Result<out::Effects, Refusal> {
    let key = u64::from(number) + 1;
    apply(
        state,
        &nexus(number),
        out(action, kind),
        keys(key, action_key),
    )
}

/// Nexuses 0 to `registered` are registered, and 0 holds it.
fn reserved(kind: Kind, registered: u8) -> Reservations {
    let mut state = Reservations::default();
    for number in 0..registered {
        let key = u64::from(number) + 1;
        act(&mut state, number, OutAction::RegisterAndIgnore, kind, key).unwrap();
    }
    act(&mut state, 0, OutAction::Reserve, kind, 0).unwrap();
    state
}

#[test]
fn access_under_each_kind() {
    // Registered reads, registered writes, unregistered reads and writes, by
    // one that is not the holder of the first two.
    let expected = [
        (true, false, true, false),
        (false, false, false, false),
        (true, true, true, false),
        (true, true, false, false),
        (true, true, true, false),
        (true, true, false, false),
    ];
    for (kind, expected) in KINDS.into_iter().zip(expected) {
        let state = reserved(kind, 2);
        let allowed = |number, reach| state.allow(&nexus(number), reach);
        let got = (
            allowed(1, Reach::Reads),
            allowed(1, Reach::Writes),
            allowed(9, Reach::Reads),
            allowed(9, Reach::Writes),
        );
        assert_eq!(got, expected, "{kind:?}");
        assert!(allowed(0, Reach::Reads) && allowed(0, Reach::Writes));
        assert!(allowed(9, Reach::Free));
    }
}

#[test]
fn registering_needs_the_key_that_is_there() {
    use OutAction::{Register, RegisterAndIgnore};
    let kind = Kind::WriteExclusive;
    let mut state = Reservations::default();
    let mut register = |action, key, action_key| {
        let result = apply(
            &mut state,
            &nexus(0),
            out(action, kind),
            keys(key, action_key),
        );
        (result.err(), state.key_of(&nexus(0)), state.generation)
    };
    let conflict = Some(Refusal::Conflict);
    assert_eq!(register(Register, 7, 1), (conflict, None, 0));
    assert_eq!(register(Register, 0, 0), (None, None, 0));
    assert_eq!(register(Register, 0, 5), (None, Some(5), 1));
    assert_eq!(register(Register, 0, 6), (conflict, Some(5), 1));
    assert_eq!(register(Register, 5, 6), (None, Some(6), 2));
    assert_eq!(register(RegisterAndIgnore, 99, 7), (None, Some(7), 3));
    assert_eq!(register(Register, 6, 0), (conflict, Some(7), 3));
    assert_eq!(register(Register, 7, 0), (None, None, 4));
}

#[test]
fn only_registered_nexuses_do_the_rest() {
    use OutAction::{Clear, Preempt, PreemptAndAbort, Release, Reserve};
    let kind = Kind::WriteExclusive;
    for action in [Clear, Preempt, PreemptAndAbort, Release, Reserve] {
        let mut state = reserved(kind, 2);
        let before = state.clone();
        assert_eq!(
            act(&mut state, 9, action, kind, 1),
            Err(Refusal::Conflict),
            "{action:?}"
        );
        // Its key is another.
        let wrong = apply(&mut state, &nexus(1), out(action, kind), keys(1, 1));
        assert_eq!(wrong, Err(Refusal::Conflict), "{action:?}");
        assert_eq!(state, before);
    }
}

#[test]
fn reserving_again_changes_nothing() {
    use OutAction::Reserve;
    for kind in KINDS {
        let mut state = reserved(kind, 2);
        let before = state.clone();
        for other in KINDS {
            let own = act(&mut state, 0, Reserve, other, 0);
            assert_eq!(own.is_ok(), kind == other, "{kind:?} {other:?}");
            let others = act(&mut state, 1, Reserve, other, 0);
            assert_eq!(others.is_ok(), kind == other && kind.is_of_all());
        }
        assert_eq!(state, before);
    }
    let mut state = reserved(Kind::WriteExclusive, 1);
    for scope_and_type in [0x00, 0x02, 0x04, 0x09, 0x0f] {
        let out = PersistentOut {
            action: Reserve,
            scope_and_type,
        };
        let refused = apply(&mut state, &nexus(0), out, keys(1, 0));
        assert_eq!(refused, Err(Sense::command_bit(2, 3).into()));
    }
}

#[test]
fn releasing_and_unregistering_tell_those_who_lose_something() {
    use OutAction::{Register, Release};
    for kind in KINDS {
        let told = |effects: &out::Effects| effects.attentions.clone();
        let released = vec![(nexus(1), Attention::ReservationsReleased)];
        let expected = if kind.concerns_registered() {
            released.clone()
        } else {
            Vec::new()
        };
        let mut state = reserved(kind, 2);
        let effects = act(&mut state, 0, Release, kind, 0).unwrap();
        assert_eq!(told(&effects), expected, "{kind:?}");
        assert!(state.reservation.is_none());

        let mut state = reserved(kind, 2);
        let effects = act(&mut state, 0, Register, kind, 0).unwrap();
        if kind.is_of_all() {
            assert_eq!(told(&effects), []);
            assert!(state.is_holder(&nexus(1)));
            act(&mut state, 1, Register, kind, 0).unwrap();
        } else {
            assert_eq!(told(&effects), expected);
        }
        assert!(state.reservation.is_none());
    }
}

#[test]
fn releasing_what_is_not_held() {
    use OutAction::Release;
    let kind = Kind::WriteExclusive;
    let mut state = reserved(kind, 2);
    let before = state.clone();
    assert!(act(&mut state, 1, Release, kind, 0).is_ok());
    assert_eq!(
        act(&mut state, 0, Release, Kind::ExclusiveAccess, 0),
        Err(Sense::INVALID_RELEASE.into())
    );
    assert_eq!(state, before);
    assert!(act(&mut state, 0, Release, kind, 0).is_ok());
    assert!(act(&mut state, 0, Release, kind, 0).is_ok());
}

#[test]
fn clearing_tells_all_others() {
    let mut state = reserved(Kind::WriteExclusive, 3);
    let generation = state.generation;
    let effects = act(&mut state, 1, OutAction::Clear, Kind::WriteExclusive, 0).unwrap();
    let told = Attention::ReservationsPreempted;
    assert_eq!(effects.attentions, [(nexus(0), told), (nexus(2), told)]);
    assert!(state.is_empty() && state.reservation.is_none());
    assert_eq!(state.generation, generation + 1);
}

#[test]
fn preempting_takes_registrations_or_the_reservation() {
    use OutAction::Preempt;
    let preempted = Attention::RegistrationsPreempted;
    let exclusive = Kind::WriteExclusive;
    let all = Kind::ExclusiveAccessAllRegistrants;

    // The holder's key: its place is taken.
    let mut state = reserved(exclusive, 3);
    let effects = act(&mut state, 1, Preempt, exclusive, 1).unwrap();
    assert_eq!(effects.attentions, [(nexus(0), preempted)]);
    assert_eq!(effects.preempted, [nexus(0)]);
    assert!(state.is_holder(&nexus(1)) && state.key_of(&nexus(0)).is_none());

    // Another type: those who are left are told as well.
    let mut state = reserved(exclusive, 3);
    let effects = act(&mut state, 1, Preempt, all, 1).unwrap();
    let released = (nexus(2), Attention::ReservationsReleased);
    assert_eq!(effects.attentions, [(nexus(0), preempted), released]);

    // Another's key: the reservation stays.
    let mut state = reserved(exclusive, 3);
    let effects = act(&mut state, 1, Preempt, all, 3).unwrap();
    assert_eq!(effects.attentions, [(nexus(2), preempted)]);
    assert!(state.is_holder(&nexus(0)));

    // Nobody's key, and none.
    let mut state = reserved(exclusive, 3);
    assert_eq!(
        act(&mut state, 1, Preempt, exclusive, 99),
        Err(Refusal::Conflict)
    );
    assert_eq!(
        act(&mut state, 1, Preempt, exclusive, 0),
        Err(Sense::parameter_byte(8).into())
    );

    // All registrants: zero stands for all of them.
    let mut state = reserved(all, 3);
    let effects = act(&mut state, 1, Preempt, all, 0).unwrap();
    assert_eq!(effects.preempted, [nexus(0), nexus(2)]);
    assert!(state.is_holder(&nexus(1)));

    // One of all registrants: the others go on.
    let mut state = reserved(all, 3);
    act(&mut state, 1, Preempt, exclusive, 1).unwrap();
    let reservation = state.reservation.as_ref().unwrap();
    assert_eq!(reservation.kind, all);
    assert!(state.key_of(&reservation.holder).is_some());

    // Its own key: nobody is told, and it is registered no more, unless it
    // takes over what it held.
    let mut state = reserved(exclusive, 2);
    let effects = act(&mut state, 1, Preempt, exclusive, 2).unwrap();
    assert_eq!((effects.attentions.len(), effects.preempted.len()), (0, 0));
    assert_eq!(state.key_of(&nexus(1)), None);
    act(&mut state, 0, Preempt, all, 1).unwrap();
    assert_eq!(state.reservation.as_ref().unwrap().kind, all);
}

#[test]
fn registrations_are_limited() {
    let mut state = Reservations::default();
    let kind = Kind::WriteExclusive;
    let max = u8::try_from(REGISTRATIONS_MAX).unwrap();
    for number in 0..max {
        act(&mut state, number, OutAction::RegisterAndIgnore, kind, 5).unwrap();
    }
    let more = act(&mut state, max, OutAction::RegisterAndIgnore, kind, 5);
    assert_eq!(more, Err(Sense::TOO_MANY_REGISTRATIONS.into()));
    act(&mut state, 0, OutAction::RegisterAndIgnore, kind, 0).unwrap();
    act(&mut state, max, OutAction::RegisterAndIgnore, kind, 5).unwrap();
}

#[test]
fn lists_are_exactly_as_long_as_they_are() {
    let list = |flags| {
        let mut list = [0; 24];
        (list[7], list[15], list[20]) = (1, 2, flags);
        list
    };
    let parse = |list: &[u8]| OutParameters::parse(list, OutAction::Register);
    let through_power_loss = OutParameters {
        through_power_loss: true,
        ..keys(1, 2)
    };
    assert_eq!(parse(&list(0)), Ok(keys(1, 2)));
    assert_eq!(parse(&list(1)), Ok(through_power_loss));
    for flags in [0x04, 0x08] {
        assert_eq!(parse(&list(flags)), Err(Sense::parameter_byte(20)));
        // Passed over where they mean nothing.
        assert!(OutParameters::parse(&list(flags), OutAction::Reserve).is_ok());
    }
    assert_eq!(parse(&list(0)[..23]), Err(Sense::PARAMETER_LIST_LENGTH));
    assert_eq!(parse(&[0; 25]), Err(Sense::PARAMETER_LIST_LENGTH));
}

#[test]
fn reports_have_their_form() {
    let data = |state: &Reservations, action| reply(state, action, 4096).data_in;
    let empty = Reservations::default();
    assert_eq!(data(&empty, InAction::ReadKeys), [0; 8]);
    assert_eq!(data(&empty, InAction::ReadReservation), [0; 8]);
    assert_eq!(
        data(&empty, InAction::ReportCapabilities),
        [0, 8, 1, 0x80, 0xea, 1, 0, 0]
    );
    let state = reserved(Kind::WriteExclusiveRegistrantsOnly, 2);
    #[rustfmt::skip]
    assert_eq!(
        data(&state, InAction::ReadKeys),
        [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    );
    #[rustfmt::skip]
    assert_eq!(
        data(&state, InAction::ReadReservation),
        [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 5, 0, 0]
    );
    // Its length is told whole, whatever room there is.
    assert_eq!(
        reply(&state, InAction::ReadKeys, 8).data_in,
        [0, 0, 0, 2, 0, 0, 0, 16]
    );
    let all = reserved(Kind::ExclusiveAccessAllRegistrants, 2);
    assert_eq!(data(&all, InAction::ReadReservation)[8..16], [0; 8]);
    let full = data(&state, InAction::ReadFullStatus);
    let text = b"iqn.2026-11.example:host0,i,0x800000000000\0\0";
    let len = u8::try_from(text.len()).unwrap();
    #[rustfmt::skip]
    let mut first = vec![
        0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, len + 4,
        0x45, 0, 0, len,
    ];
    first.extend_from_slice(text);
    assert_eq!(full[8..8 + first.len()], first);
    assert_eq!(full.len(), 8 + 2 * first.len());
    assert_eq!(full[8 + first.len() + 12], 0);
}

#[test]
fn a_kept_value_is_as_it_was_or_nothing() {
    let mut state = reserved(Kind::WriteExclusive, 2);
    let text = serde_json::to_string(&state).unwrap();
    let again: Reservations = serde_json::from_str(&text).unwrap();
    assert_eq!(again, state);
    assert!(again.after_restart().is_empty());

    state.through_power_loss = true;
    let after = state.clone().after_restart();
    assert_eq!(after.registrations, state.registrations);
    assert_eq!(after.generation, 0);

    let broken = |change: fn(&mut Reservations)| {
        let mut state = state.clone();
        change(&mut state);
        state.after_restart().is_empty()
    };
    assert!(!broken(|_| {}));
    assert!(broken(|state| state.format = 2));
    assert!(broken(|state| state.registrations[0].key = 0));
    assert!(broken(
        |state| state.registrations[1] = state.registrations[0].clone()
    ));
    assert!(broken(|state| {
        state.registrations.remove(0);
    }));
}

#[test]
fn the_kept_form_is_stable() {
    let mut state = reserved(Kind::WriteExclusive, 1);
    state.through_power_loss = true;
    insta::assert_snapshot!(serde_json::to_string(&state).unwrap(), @r#"{"format":1,"revision":2,"generation":1,"through_power_loss":true,"registrations":[{"nexus":{"initiator":{"name":"iqn.2026-11.example:host0","isid":[128,0,0,0,0,0]},"relative_port":1},"key":1}],"reservation":{"kind":"write_exclusive","holder":{"initiator":{"name":"iqn.2026-11.example:host0","isid":[128,0,0,0,0,0]},"relative_port":1}}}"#);
}

/// The rules of SPC-4 5.12 once more, on a map.
#[derive(Debug, Default)]
struct Model {
    keys: BTreeMap<u8, u64>,
    held: Option<(Kind, u8)>,
}

impl Model {
    fn holds(&self, number: u8) -> bool {
        self.held.is_some_and(|(kind, holder)| {
            holder == number || (kind.is_of_all() && self.keys.contains_key(&number))
        })
    }

    /// Whether it is done.
    fn act(
        &mut self,
        number: u8,
        action: OutAction,
        kind: Kind,
        key: u64,
        action_key: u64,
    ) -> bool {
        use OutAction::{
            Clear, Preempt, PreemptAndAbort, Register, RegisterAndIgnore, Release, Reserve,
        };
        let own = self.keys.get(&number).copied();
        let key_fits = match action {
            RegisterAndIgnore => true,
            Register => own.unwrap_or(0) == key,
            _ => own == Some(key),
        };
        if !key_fits {
            return false;
        }
        match action {
            Register | RegisterAndIgnore if action_key == 0 => {
                self.keys.remove(&number);
                self.settle();
                true
            }
            Register | RegisterAndIgnore => {
                self.keys.insert(number, action_key);
                true
            }
            Reserve => match self.held {
                None => {
                    self.held = Some((kind, number));
                    true
                }
                Some((there, _)) => there == kind && self.holds(number),
            },
            Release => {
                if self.holds(number) {
                    let fits = self.held.is_some_and(|(there, _)| there == kind);
                    if fits {
                        self.held = None;
                    }
                    return fits;
                }
                true
            }
            Clear => {
                *self = Self::default();
                true
            }
            Preempt | PreemptAndAbort => self.preempt(number, kind, action_key),
        }
    }

    fn preempt(&mut self, number: u8, kind: Kind, action_key: u64) -> bool {
        let of_all = self.held.is_some_and(|(there, _)| there.is_of_all());
        let taken = match self.held {
            Some(_) if of_all => action_key == 0,
            Some((_, holder)) => self.keys.get(&holder) == Some(&action_key),
            None => false,
        };
        if taken {
            self.keys
                .retain(|one, key| *one == number || !(of_all || *key == action_key));
            self.held = Some((kind, number));
            return true;
        }
        if action_key == 0 || !self.keys.values().any(|key| *key == action_key) {
            return false;
        }
        self.keys.retain(|_, key| *key != action_key);
        self.settle();
        true
    }

    /// What is held by nobody who is registered is not held.
    fn settle(&mut self) {
        if let Some((kind, holder)) = self.held
            && !self.keys.contains_key(&holder)
        {
            let other = self.keys.keys().next();
            self.held = other
                .filter(|_| kind.is_of_all())
                .map(|other| (kind, *other));
        }
    }
}

const ACTIONS: [OutAction; 7] = [
    OutAction::Register,
    OutAction::Reserve,
    OutAction::Release,
    OutAction::Clear,
    OutAction::Preempt,
    OutAction::PreemptAndAbort,
    OutAction::RegisterAndIgnore,
];

proptest! {
    #[test]
    fn it_does_as_the_model(steps in prop::collection::vec(
        (0..4_u8, prop::sample::select(&ACTIONS[..]), prop::sample::select(&KINDS[..]), 0..4_u64, 0..4_u64),
        0..60,
    )) {
        let mut state = Reservations::default();
        let mut model = Model::default();
        for (number, action, kind, key, action_key) in steps {
            // Mostly the right key, so that something happens.
            let key = if key == 0 { 0 } else { model.keys.get(&number).copied().unwrap_or(0) };
            let revision = state.revision();
            let before = state.clone();
            let effects = apply(&mut state, &nexus(number), out(action, kind), keys(key, action_key));
            let done = model.act(number, action, kind, key, action_key);
            prop_assert_eq!(effects.is_ok(), done);
            prop_assert_eq!(state != before, state.revision() != revision);
            for other in 0..4 {
                prop_assert_eq!(state.key_of(&nexus(other)), model.keys.get(&other).copied());
                prop_assert_eq!(state.is_holder(&nexus(other)), model.holds(other));
            }
            prop_assert_eq!(state.reservation.as_ref().map(|one| one.kind), model.held.map(|(kind, _)| kind));
            state.through_power_loss = true;
            prop_assert!(state.is_sound());
            state.through_power_loss = false;
            for (told, _) in effects.iter().flat_map(|effects| &effects.attentions) {
                prop_assert!(*told != nexus(number));
            }
        }
    }

    #[test]
    fn any_list_is_read(list in prop::collection::vec(any::<u8>(), 20..28)) {
        for action in ACTIONS {
            let _ = OutParameters::parse(&list, action);
        }
    }
}
