//! Which versions a machine may read: the one it runs, and the one it is to run next.

use std::sync::Arc;

use rootstock_api::ProblemCode;
use rootstock_catalog::VersionRow;
use rootstock_core::{ChunkId, Digest, VersionSpec};

use super::Machine;
use crate::{
    app::App,
    boot::{health, orders, sessions::Session, swarm, version_ids::short},
    http::ApiError,
    recipes,
};

/// The version that is meant, by number, if the machine may read it.
pub(in crate::boot) async fn readable(
    app: &Arc<App>,
    machine: &Machine,
    spec: &VersionSpec,
) -> Result<VersionRow, ApiError> {
    let session = &machine.session;
    if session.version.spec() == *spec {
        return Ok(session.version.clone());
    }
    let is_meant = |row: &VersionRow| row.spec() == *spec;
    if let Some(next) = session.next_version().filter(is_meant) {
        return Ok(next);
    }
    let next = find_next(app, machine).await?;
    if let Some(next) = &next {
        swarm::may_read_next(app, session, next.manifest).await?;
    }
    next.filter(is_meant).ok_or_else(|| {
        let runs = session.version.spec();
        let detail = format!("{spec} is neither {runs}, which this boot runs, nor what comes next");
        ApiError::new(ProblemCode::Forbidden, detail)
            .with_hint("`rootstock node show` says which image the node is to run")
    })
}

/// The manifests of the versions that the machine may read: first of the one it runs.
pub(in crate::boot) async fn allowed(
    app: &Arc<App>,
    machine: &Machine,
) -> Result<Vec<Digest>, ApiError> {
    let runs = machine.session.version.manifest;
    let next = match machine.session.next_version() {
        Some(next) => Some(next),
        None => find_next(app, machine).await?,
    };
    let next = next.map(|next| next.manifest).filter(|next| *next != runs);
    Ok([runs].into_iter().chain(next).collect())
}

async fn find_next(app: &Arc<App>, machine: &Machine) -> Result<Option<VersionRow>, ApiError> {
    let next = assigned(app, machine).await?;
    if let Some(next) = &next {
        machine.session.set_next_version(next.clone());
    }
    Ok(next)
}

/// The version that the machine is to boot by what is set now.
async fn assigned(app: &Arc<App>, machine: &Machine) -> Result<Option<VersionRow>, ApiError> {
    let node = app.catalog.node(&machine.session.node).await?;
    let peer = machine.arrival.peer.ip().to_canonical();
    let local = machine.arrival.local.ip().to_canonical();
    let network = app.boot.networks.of(peer, local);
    let settings = orders::settings(app, &node, &network).await?;
    let assigned = match &settings.image {
        Some(spec) => recipes::version_if_any(app, spec).await?,
        None => None,
    };
    match assigned {
        Some(assigned) => {
            let chosen = health::choose(app, &node.name, &settings, assigned).await?;
            Ok(Some(chosen.version))
        }
        None => Ok(None),
    }
}

/// The first of these chunks that is none of a version's.
pub(super) fn foreign(
    app: &App,
    session: &Session,
    version: &VersionRow,
    ids: &[ChunkId],
) -> Result<Option<ChunkId>, ApiError> {
    if version.manifest != session.version.manifest {
        let known = app.boot.version_ids.of(&app.store, version.manifest)?;
        return Ok(ids.iter().copied().find(|id| !known.contains(&short(*id))));
    }
    for id in ids {
        if !session.has(&app.store, *id)? {
            return Ok(Some(*id));
        }
    }
    Ok(None)
}
