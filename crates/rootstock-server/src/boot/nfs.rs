//! Roots over NFS: what machines want, and what `rootstock nfs serve` says of it.
//!
//! Mounting takes rights that the daemon has not, so a process of its own does it and
//! asks here what is wanted. What that is stands in the catalog, with the boots that are
//! not over: a daemon that starts anew wants the same. What is exported is remembered
//! in memory alone; it is told again with every question.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rootstock_api::{
    ProblemCode,
    boot::RootPlace,
    nfs::{
        NFS_EXPORTS_MAX, NFS_HOLD_SECONDS, NfsExport, NfsPlace, NfsRoot, NfsState, NfsWant,
        NfsWanted,
    },
    settings::Settings,
};
use rootstock_catalog::{NodeRow, NodeState, VersionRow};
use rootstock_core::Digest;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    decide::{Step, failed},
    health,
};
use crate::{
    app::App,
    http::{ApiError, stopping},
};

/// How long a machine's request for its order is held until its root can be mounted. The
/// machine gives up after 30 s, and asks again.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// Who has not asked for so long does not run.
const SILENCE_MAX: Duration = Duration::from_secs(NFS_HOLD_SECONDS as u64 * 3);

/// The most clients of one export that are listened to.
const CLIENTS_MAX: usize = 1 << 16;

/// What the catalog keeps of a boot whose root is mounted over NFS.
#[derive(Serialize, Deserialize)]
struct Note {
    nfs: NfsRoot,
}

/// What is exported, and who waits for it.
pub(crate) struct Nfs {
    told: Mutex<Told>,
    /// Turns when more may be wanted.
    wants: watch::Sender<()>,
    /// Turns when something was told.
    tells: watch::Sender<()>,
}

#[derive(Default)]
struct Told {
    exports: Vec<NfsExport>,
    at: Option<Instant>,
}

/// How it is with a machine's root.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It can be mounted from this port.
    Ready(u16),
    /// It cannot be exported, and why.
    Trouble(String),
    /// It is not there yet.
    NotYet,
    /// Nobody exports anything.
    Nobody,
}

impl Default for Nfs {
    fn default() -> Self {
        Self {
            told: Mutex::default(),
            wants: watch::Sender::new(()),
            tells: watch::Sender::new(()),
        }
    }
}

impl Nfs {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, exports: Vec<NfsExport>) {
        *self.told() = Told {
            exports,
            at: Some(Instant::now()),
        };
        self.tells.send_replace(());
    }

    fn find(&self, root: &NfsRoot, client: IpAddr) -> Found {
        let told = self.told();
        if told.at.is_none_or(|at| at.elapsed() > SILENCE_MAX) {
            return Found::Nobody;
        }
        match told.exports.iter().find(|export| export.root == *root) {
            None => Found::NotYet,
            Some(export) => match &export.trouble {
                Some(why) => Found::Trouble(why.clone()),
                None if export.clients.contains(&client) => Found::Ready(export.port),
                None => Found::NotYet,
            },
        }
    }

    /// What is exported now; nothing when nobody says so.
    pub(crate) fn exports(&self) -> Option<Vec<NfsExport>> {
        let told = self.told();
        let is_fresh = told.at.is_some_and(|at| at.elapsed() <= SILENCE_MAX);
        is_fresh.then(|| told.exports.clone())
    }
}

/// Takes what a head exports, or answers what it is to export: at once when that is
/// another than it knows, else when it becomes one, or after [`NFS_HOLD_SECONDS`].
pub(crate) async fn exchange(app: &App, state: NfsState) -> Result<NfsWanted, ApiError> {
    let mut wants = app.boot.nfs.wants.subscribe();
    // It ends when the daemon does.
    let mut turns = app.nodes.turns().ok_or_else(stopping)?;
    if let Some(exports) = state.exports {
        let is_long = |export: &NfsExport| export.clients.len() > CLIENTS_MAX;
        if exports.len() > NFS_EXPORTS_MAX || exports.iter().any(is_long) {
            let detail = format!("no head exports more than {NFS_EXPORTS_MAX} versions");
            return Err(ApiError::new(ProblemCode::TooLarge, detail));
        }
        app.boot.nfs.tell(exports);
        return wanted(app).await;
    }
    let until = Instant::now() + Duration::from_secs(NFS_HOLD_SECONDS.into());
    loop {
        let wanted = wanted(app).await?;
        if wanted.number != state.after || Instant::now() >= until {
            return Ok(wanted);
        }
        tokio::select! {
            _ = wants.changed() => {}
            turned = turns.changed() => if turned.is_err() {
                return Ok(wanted);
            },
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// What boots that are not over want.
async fn wanted(app: &App) -> Result<NfsWanted, ApiError> {
    let mut wants: BTreeMap<NfsRoot, BTreeSet<IpAddr>> = BTreeMap::new();
    for boot in app.catalog.open_boots().await? {
        let note = boot.order.as_deref().and_then(noted);
        if let (Some(root), Some(source)) = (note, boot.source) {
            wants.entry(root).or_default().insert(source);
        }
    }
    let exports: Vec<_> = wants
        .into_iter()
        .map(|(root, clients)| NfsWant {
            root,
            clients: clients.into_iter().collect(),
        })
        .collect();
    // The same has the same number, also from the next daemon.
    let text = serde_json::to_vec(&exports);
    let text = text.map_err(|error| ApiError::internal("write what is wanted", &error))?;
    let digest = Digest::of(&text);
    let mut number = [0; 8];
    number.copy_from_slice(&digest.as_bytes()[..8]);
    Ok(NfsWanted {
        number: u64::from_le_bytes(number) >> 12 | 1,
        exports,
    })
}

fn noted(order: &str) -> Option<NfsRoot> {
    let note: Note = serde_json::from_str(order).ok()?;
    Some(note.nfs)
}

fn root_of(version: &VersionRow, place: &RootPlace) -> NfsRoot {
    NfsRoot {
        image: version.image.clone(),
        version: version.number,
        manifest: version.manifest,
        partition: place.partition,
        fs: place.fs.clone(),
        options: place.options.clone(),
    }
}

/// Refuses an image whose administrator does not let the head mount it.
async fn must_be_allowed(app: &App, version: &VersionRow) -> Result<(), ApiError> {
    let image = &version.image;
    if app.catalog.image(image).await?.nfs {
        return Ok(());
    }
    let detail = format!(
        "the administrator of {image} did not allow that the head mounts it: `rootstock image \
         set {image} --nfs yes` does"
    );
    Err(ApiError::new(ProblemCode::Forbidden, detail))
}

/// Notes that a boot's root is to be exported, and has that begun with.
async fn want(
    app: &App,
    boot: &str,
    settings: &Settings,
    version: &VersionRow,
    root: &NfsRoot,
) -> Result<(), ApiError> {
    must_be_allowed(app, version).await?;
    let note = Note { nfs: root.clone() };
    let note = serde_json::to_string(&note);
    let note = note.map_err(|error| ApiError::internal("note what is exported", &error))?;
    let limit = health::limit(settings).duration();
    let kept = app
        .catalog
        .set_boot_order(boot, &note, &version.image, version.number, limit);
    kept.await?;
    app.boot.nfs.wants.send_replace(());
    Ok(())
}

/// Has a root exported by the time that its machine asks for it; not before the machine
/// was approved.
pub(super) async fn prepare(
    app: &App,
    node: &NodeRow,
    boot: &str,
    settings: &Settings,
    version: &VersionRow,
    place: &RootPlace,
) -> Step<()> {
    if !settings.is_nfs() || node.state == NodeState::Held {
        return Ok(());
    }
    let wanted = want(app, boot, settings, version, &root_of(version, place)).await;
    wanted.map_err(|error| failed("export the image over NFS", error.0.detail))
}

/// Where a machine mounts its root, once it can.
pub(super) async fn place(
    app: &Arc<App>,
    boot: &str,
    settings: &Settings,
    version: &VersionRow,
    place: &RootPlace,
    [client, server]: [IpAddr; 2],
) -> Result<NfsPlace, ApiError> {
    let root = root_of(version, place);
    let mut tells = app.boot.nfs.tells.subscribe();
    want(app, boot, settings, version, &root).await?;
    let until = Instant::now() + READY_LIMIT;
    loop {
        let found = app.boot.nfs.find(&root, client);
        if let Found::Ready(port) = found {
            return Ok(NfsPlace {
                server,
                port,
                path: root.path(),
            });
        }
        if matches!(found, Found::Trouble(_))
            || tokio::time::timeout_at(until, tells.changed())
                .await
                .is_err()
        {
            return Err(unready(&root, found));
        }
    }
}

fn unready(root: &NfsRoot, found: Found) -> ApiError {
    let spec = root.spec();
    let (detail, hint) = match found {
        Found::Trouble(why) => (
            format!("{spec} is not exported over NFS: {why}"),
            "the log of `rootstock nfs serve` on the head says more",
        ),
        Found::Nobody => (
            format!("{spec} is not exported over NFS: nothing on the head does that"),
            "start rootstock-nfs.service (`rootstock nfs serve`) on the head",
        ),
        Found::NotYet | Found::Ready(_) => (
            format!("{spec} is not exported to this machine over NFS yet"),
            "the log of `rootstock nfs serve` on the head says why, when that lasts",
        ),
    };
    ApiError::new(ProblemCode::Unavailable, detail).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(version: u32) -> NfsRoot {
        NfsRoot {
            image: "lab".parse().unwrap(),
            version: rootstock_core::VersionNumber(version),
            manifest: Digest::of(b"lab"),
            partition: 1,
            fs: "ext4".to_owned(),
            options: String::new(),
        }
    }

    #[tokio::test]
    async fn a_root_is_ready_for_whom_it_is_exported_to() {
        let nfs = Nfs::default();
        let [pc, other]: [IpAddr; 2] = ["10.0.0.7", "10.0.0.8"].map(|text| text.parse().unwrap());
        assert_eq!(nfs.find(&root(1), pc), Found::Nobody);
        let export = |version, trouble: Option<&str>| NfsExport {
            root: root(version),
            port: 2049,
            clients: vec![pc],
            trouble: trouble.map(str::to_owned),
        };
        nfs.tell(vec![export(1, None), export(2, Some("no loop device"))]);
        assert_eq!(nfs.find(&root(1), pc), Found::Ready(2049));
        assert_eq!(nfs.find(&root(1), other), Found::NotYet);
        assert_eq!(nfs.find(&root(3), pc), Found::NotYet);
        let trouble = Found::Trouble("no loop device".to_owned());
        assert_eq!(nfs.find(&root(2), pc), trouble);
    }

    #[test]
    fn a_note_is_told_from_other_orders() {
        let note = serde_json::to_string(&Note { nfs: root(3) }).unwrap();
        assert_eq!(noted(&note), Some(root(3)));
        assert_eq!(noted("{}"), None);
        assert_eq!(noted("none"), None);
    }
}
