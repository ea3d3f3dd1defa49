//! PERSISTENT RESERVE OUT (SPC-4 6.16 and 5.12).

use super::{Kind, OutAction, REGISTRATIONS_MAX, Registration, Reservation, Reservations};
use crate::{
    cdb::PersistentOut, logical_unit::Attention, nexus::NexusId, refusal::Refusal, sense::Sense,
};

const LIST_BYTES: usize = 24;

/// The parameter list (SPC-4 6.16.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutParameters {
    /// RESERVATION KEY.
    pub(crate) key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub(crate) action_key: u64,
    /// APTPL.
    pub(crate) through_power_loss: bool,
}

impl OutParameters {
    /// Reads a list.
    ///
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR for any other length than 24, INVALID FIELD
    /// IN PARAMETER LIST for SPEC_I_PT and ALL_TG_PT, which our capabilities
    /// say are not there.
    pub(crate) fn parse(list: &[u8], action: OutAction) -> Result<Self, Sense> {
        let list: &[u8; LIST_BYTES] = list.try_into().map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        let number = |at: usize| {
            let bytes = list.iter().skip(at).take(8);
            bytes.fold(0, |all, byte| (all << 8) | u64::from(*byte))
        };
        let registers = matches!(action, OutAction::Register | OutAction::RegisterAndIgnore);
        if registers && list[20] & 0x0c != 0 {
            return Err(Sense::parameter_byte(20));
        }
        Ok(Self {
            key: number(0),
            action_key: number(8),
            through_power_loss: registers && list[20] & 0x01 != 0,
        })
    }
}

/// What a change brings with it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Who is told what.
    pub(crate) attentions: Vec<(NexusId, Attention)>,
    /// Whose registrations or reservation were taken away by another nexus.
    pub(crate) preempted: Vec<NexusId>,
    /// Whether there is a new state to keep.
    pub(crate) changed: bool,
}

/// Carries out PERSISTENT RESERVE OUT for a nexus.
///
/// # Errors
/// RESERVATION CONFLICT, or sense data; then nothing has changed.
pub(crate) fn apply(
    state: &mut Reservations,
    nexus: &NexusId,
    out: PersistentOut,
    list: OutParameters,
) -> Result<Effects, Refusal> {
    let mut change = Change {
        state: state.clone(),
        nexus,
        effects: Effects::default(),
    };
    change.run(out, list)?;
    let Change {
        state: mut after,
        mut effects,
        ..
    } = change;
    effects.changed = after != *state;
    if effects.changed {
        after.revision = after.revision.wrapping_add(1);
        *state = after;
    }
    Ok(effects)
}

struct Change<'a> {
    state: Reservations,
    nexus: &'a NexusId,
    effects: Effects,
}

impl Change<'_> {
    fn run(&mut self, out: PersistentOut, list: OutParameters) -> Result<(), Refusal> {
        let own = self.state.key_of(self.nexus);
        match out.action {
            // Registering: the key has to be the registered one, and zero
            // where none is.
            OutAction::Register if own.unwrap_or(0) != list.key => Err(Refusal::Conflict),
            OutAction::Register | OutAction::RegisterAndIgnore => self.register(list),
            // All else is for registered nexuses with their keys.
            _ if own != Some(list.key) => Err(Refusal::Conflict),
            OutAction::Reserve => self.reserve(kind_of(out)?),
            OutAction::Release => self.release(kind_of(out)?),
            OutAction::Clear => {
                self.clear();
                Ok(())
            }
            OutAction::Preempt | OutAction::PreemptAndAbort => self.preempt(list.action_key, out),
        }
    }

    /// SPC-4 5.12, registering and unregistering.
    fn register(&mut self, list: OutParameters) -> Result<(), Refusal> {
        let own = self.place(self.nexus);
        match (own, list.action_key) {
            // Nothing to take back.
            (None, 0) => return Ok(()),
            (Some(_), 0) => self.unregister(),
            (Some(at), key) => self.state.registrations[at].key = key,
            (None, _) if self.state.registrations.len() >= REGISTRATIONS_MAX => {
                return Err(Sense::TOO_MANY_REGISTRATIONS.into());
            }
            (None, key) => self.state.registrations.push(Registration {
                nexus: self.nexus.clone(),
                key,
            }),
        }
        self.state.through_power_loss = list.through_power_loss;
        self.next_generation();
        Ok(())
    }

    /// SPC-4 5.12, unregistering: with its registration, a holder's reservation ends,
    /// and that of all registrants with the last of them.
    fn unregister(&mut self) {
        let held = self.state.is_holder(self.nexus);
        self.state
            .registrations
            .retain(|one| one.nexus != *self.nexus);
        let Some(reservation) = &mut self.state.reservation else {
            return;
        };
        let kind = reservation.kind;
        if kind.is_of_all()
            && let Some(other) = self.state.registrations.first()
        {
            reservation.holder = other.nexus.clone();
        } else if held {
            self.state.reservation = None;
            if kind.concerns_registered() {
                self.tell_registered(Attention::ReservationsReleased);
            }
        }
    }

    /// SPC-4 5.12, reserving.
    fn reserve(&mut self, kind: Kind) -> Result<(), Refusal> {
        match &self.state.reservation {
            Some(there) if there.kind == kind && self.state.is_holder(self.nexus) => Ok(()),
            Some(_) => Err(Refusal::Conflict),
            None => {
                self.take(kind);
                Ok(())
            }
        }
    }

    /// SPC-4 5.12, releasing.
    fn release(&mut self, kind: Kind) -> Result<(), Refusal> {
        match &self.state.reservation {
            Some(there) if self.state.is_holder(self.nexus) => {
                if there.kind != kind {
                    return Err(Sense::INVALID_RELEASE.into());
                }
            }
            // Another's, or none: nothing changes.
            _ => return Ok(()),
        }
        self.state.reservation = None;
        if kind.concerns_registered() {
            self.tell_registered(Attention::ReservationsReleased);
        }
        Ok(())
    }

    /// SPC-4 5.12, clearing.
    fn clear(&mut self) {
        self.tell_registered(Attention::ReservationsPreempted);
        self.state.reservation = None;
        self.state.registrations.clear();
        self.next_generation();
    }

    /// SPC-4 5.12, preempting.
    fn preempt(&mut self, action_key: u64, out: PersistentOut) -> Result<(), Refusal> {
        let there = self.state.reservation.clone();
        let of_all = there.as_ref().is_some_and(|there| there.kind.is_of_all());
        let holder_key = there
            .as_ref()
            .filter(|there| !there.kind.is_of_all())
            .and_then(|there| self.state.key_of(&there.holder));
        if (of_all && action_key == 0) || (holder_key == Some(action_key)) {
            return self.preempt_reservation(action_key, of_all, kind_of(out)?);
        }
        if action_key == 0 {
            // SARK, at byte 8 of the list.
            return Err(Sense::parameter_byte(8).into());
        }
        self.preempt_registrations(action_key)
    }

    /// Takes the reservation over, with the registrations of its holders.
    fn preempt_reservation(
        &mut self,
        action_key: u64,
        of_all: bool,
        kind: Kind,
    ) -> Result<(), Refusal> {
        let before = self.state.reservation.take();
        let nexus = self.nexus;
        self.remove(|one| one.nexus != *nexus && (of_all || one.key == action_key));
        self.take(kind);
        if before.is_some_and(|before| before.kind != kind) {
            self.tell_registered(Attention::ReservationsReleased);
        }
        self.next_generation();
        Ok(())
    }

    /// Takes registrations away; the reservation is not concerned, unless it
    /// was held by nobody but them.
    fn preempt_registrations(&mut self, action_key: u64) -> Result<(), Refusal> {
        if !self
            .state
            .registrations
            .iter()
            .any(|one| one.key == action_key)
        {
            return Err(Refusal::Conflict);
        }
        self.remove(|one| one.key == action_key);
        self.mend_holder();
        self.next_generation();
        Ok(())
    }

    /// A reservation of all registrants belongs to those who are left.
    fn mend_holder(&mut self) {
        let Some(there) = &mut self.state.reservation else {
            return;
        };
        let mut left = self.state.registrations.iter();
        if left.clone().any(|one| one.nexus == there.holder) {
            return;
        }
        match left.next() {
            Some(one) if there.kind.is_of_all() => there.holder = one.nexus.clone(),
            _ => self.state.reservation = None,
        }
    }

    fn remove(&mut self, which: impl Fn(&Registration) -> bool) {
        let removed = self.state.registrations.extract_if(.., |one| which(one));
        for one in removed {
            if one.nexus == *self.nexus {
                continue;
            }
            self.effects
                .attentions
                .push((one.nexus.clone(), Attention::RegistrationsPreempted));
            self.effects.preempted.push(one.nexus);
        }
    }

    fn take(&mut self, kind: Kind) {
        self.state.reservation = Some(Reservation {
            kind,
            holder: self.nexus.clone(),
        });
    }

    fn tell_registered(&mut self, attention: Attention) {
        for one in &self.state.registrations {
            if one.nexus != *self.nexus {
                self.effects.attentions.push((one.nexus.clone(), attention));
            }
        }
    }

    fn place(&self, nexus: &NexusId) -> Option<usize> {
        let mut all = self.state.registrations.iter();
        all.position(|one| one.nexus == *nexus)
    }

    fn next_generation(&mut self) {
        self.state.generation = self.state.generation.wrapping_add(1);
    }
}

/// SCOPE has to be the whole unit, TYPE one of the six (SPC-4 6.15.3).
fn kind_of(out: PersistentOut) -> Result<Kind, Refusal> {
    if out.scope_and_type >> 4 != 0 {
        return Err(Sense::command_bit(2, 7).into());
    }
    Kind::from_code(out.scope_and_type).ok_or(Sense::command_bit(2, 3).into())
}
