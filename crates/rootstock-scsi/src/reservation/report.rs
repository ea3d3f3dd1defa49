//! PERSISTENT RESERVE IN (SPC-4 6.15).

use super::{InAction, Reservations};
use crate::{reply::Reply, report::cut};

/// Answers PERSISTENT RESERVE IN.
pub(crate) fn reply(state: &Reservations, action: InAction, allocation: u32) -> Reply {
    let data = match action {
        InAction::ReadKeys => list(state, keys(state)),
        InAction::ReadReservation => list(state, reservation(state)),
        InAction::ReportCapabilities => capabilities(state),
        InAction::ReadFullStatus => list(state, full_status(state)),
    };
    cut(data, allocation)
}

/// PRGENERATION and ADDITIONAL LENGTH, which is that of the whole list.
fn list(state: &Reservations, mut body: Vec<u8>) -> Vec<u8> {
    let mut data = state.generation.to_be_bytes().to_vec();
    data.extend_from_slice(&(body.len() as u32).to_be_bytes());
    data.append(&mut body);
    data
}

// SPC-4 6.15.2.
fn keys(state: &Reservations) -> Vec<u8> {
    let keys = state.registrations.iter();
    keys.flat_map(|one| one.key.to_be_bytes()).collect()
}

// SPC-4 6.15.3. The key is zero where all registrants hold it.
fn reservation(state: &Reservations) -> Vec<u8> {
    let Some(reservation) = &state.reservation else {
        return Vec::new();
    };
    let key = if reservation.kind.is_of_all() {
        0
    } else {
        state.key_of(&reservation.holder).unwrap_or(0)
    };
    let mut data = key.to_be_bytes().to_vec();
    data.extend_from_slice(&[0, 0, 0, 0, 0, reservation.kind.code(), 0, 0]);
    data
}

// SPC-4 6.15.4: PTPL_C; TMV, PTPL_A; all six types.
fn capabilities(state: &Reservations) -> Vec<u8> {
    let active = u8::from(state.through_power_loss);
    vec![0, 8, 0x01, 0x80 | active, 0xea, 0x01, 0, 0]
}

// SPC-4 6.15.5.
fn full_status(state: &Reservations) -> Vec<u8> {
    let mut data = Vec::new();
    for one in &state.registrations {
        let kind = state
            .reservation
            .as_ref()
            .filter(|_| state.is_holder(&one.nexus))
            .map(|reservation| reservation.kind.code());
        let id = one.nexus.initiator.transport_id();
        data.extend_from_slice(&one.key.to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&[u8::from(kind.is_some()), kind.unwrap_or(0), 0, 0, 0, 0]);
        data.extend_from_slice(&one.nexus.relative_port.to_be_bytes());
        data.extend_from_slice(&(id.len() as u32).to_be_bytes());
        data.extend_from_slice(&id);
    }
    data
}
