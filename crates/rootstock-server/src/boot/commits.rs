//! Commits: what a personal machine wrote to its own disk becomes a version.
//!
//! The machine does the work, from a point at which its file system is at rest, while
//! it runs on: it reads and hashes what changed, and sends what is lacking, as an
//! import. What is here is who may, and how far it is; it is gone with the daemon, and
//! the chunks are not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use rootstock_api::{
    Bitmap, ImportReceipt, NodeCommit, NodeCommitState, ProblemCode, VolumeCommit,
    personal::{COMMIT_BODIES_MAX, COMMIT_PASSES_MAX, CommitOrder, CommitProgress, CommitTold},
};
use rootstock_catalog::NewImport;
use rootstock_core::{CHUNK_BYTES, ChunkId, Digest, NodeName, VersionSpec};
use rootstock_store::Origin;

use super::sessions::{Session, Writes};
use crate::{
    app::{App, random_id},
    http::{ApiError, chain},
    imports::{self, Words},
    nodes, volumes,
};

/// Commits at once, over all nodes.
const GOING_MAX: usize = 8;

/// A machine that says nothing for so long does not do it any more. Its file system
/// may write out much before it is at rest.
const SILENCE: Duration = Duration::from_secs(180);

/// Ids and bytes that a commit has beyond those of its disk's chunks: pages.
const MORE_IDS: u64 = 4096;
const MORE_BYTES: u64 = 64 << 20;

/// Longest reason that is taken from a machine, in characters.
const REASON_CHARS_MAX: usize = 500;

/// The commits that were asked for, the last one of each node.
#[derive(Debug, Default)]
pub(crate) struct Commits(Mutex<BTreeMap<NodeName, Job>>);

#[derive(Debug)]
struct Job {
    /// What it is called in the machine's requests: another one each time.
    commit: String,
    boot: String,
    import: String,
    disk_bytes: u64,
    /// What came in so far, which a machine does not let grow at will.
    asked_ids: u64,
    sent_bytes: u64,
    bodies: usize,
    /// The manifest that is being made a version: nothing stops that any more.
    finishing: Option<Digest>,
    request: VolumeCommit,
    /// What the machine runs.
    parent: VersionSpec,
    actor: String,
    heard: Instant,
    shown: NodeCommit,
}

/// Where a manifest is that was sent before.
enum Known {
    Finishing,
    Done,
}

impl Job {
    fn is_open(&self) -> bool {
        let state = self.shown.state;
        matches!(state, NodeCommitState::Waiting | NodeCommitState::Going)
    }

    fn fail(&mut self, reason: String) {
        self.shown.state = NodeCommitState::Failed;
        self.shown.reason = Some(reason);
    }

    /// Notes what a request brings, unless that is more than the disk can have.
    fn takes(&mut self, ids: usize, bytes: usize) -> Result<(), ApiError> {
        self.asked_ids += ids as u64;
        self.sent_bytes += bytes as u64;
        let ids_max =
            u64::from(COMMIT_PASSES_MAX) * (self.disk_bytes / CHUNK_BYTES * 9 / 8 + MORE_IDS);
        let bytes_max = self.disk_bytes / 8 * 9 + MORE_BYTES;
        if self.asked_ids <= ids_max && self.sent_bytes <= bytes_max {
            return Ok(());
        }
        let detail = format!("{} sends more than its disk can hold", self.shown.node);
        self.fail(detail.clone());
        Err(ApiError::new(ProblemCode::TooLarge, detail))
    }

    fn look(&mut self) {
        if self.is_open() && self.finishing.is_none() && self.heard.elapsed() > SILENCE {
            self.fail(format!(
                "{} was silent for {} s: does it run?",
                self.shown.node,
                SILENCE.as_secs()
            ));
        }
    }
}

impl Commits {
    /// What a machine is to send in this boot.
    pub(crate) fn order(&self, session: &Session) -> Option<CommitOrder> {
        let mut jobs = self.lock();
        let job = jobs.get_mut(&session.node)?;
        job.look();
        let is_its = job.is_open() && job.boot == session.boot && job.finishing.is_none();
        is_its.then(|| CommitOrder {
            commit: job.commit.clone(),
        })
    }

    /// How far the last commit of a node is.
    pub(crate) fn show(&self, node: &NodeName) -> Option<NodeCommit> {
        let mut jobs = self.lock();
        let job = jobs.get_mut(node)?;
        job.look();
        Some(job.shown.clone())
    }

    fn begin(&self, job: Job) -> Result<NodeCommit, ApiError> {
        let mut jobs = self.lock();
        jobs.values_mut().for_each(Job::look);
        let node = job.shown.node.clone();
        if jobs.get(&node).is_some_and(Job::is_open) {
            let detail = format!("what {node} wrote is being made a version already");
            let hint = format!("wait for it, or `rootstock node commit {node} --abort`");
            return Err(ApiError::new(ProblemCode::Busy, detail).with_hint(hint));
        }
        if jobs.values().filter(|job| job.is_open()).count() >= GOING_MAX {
            let detail = format!("{GOING_MAX} nodes send what they wrote already");
            return Err(ApiError::new(ProblemCode::Busy, detail).with_hint("wait for one of them"));
        }
        let shown = job.shown.clone();
        jobs.insert(node, job);
        Ok(shown)
    }

    /// The job of a machine that asks in its own boot, with what it was told.
    fn with<T>(
        &self,
        session: &Session,
        commit: &str,
        with: impl FnOnce(&mut Job) -> T,
    ) -> Result<T, ApiError> {
        let mut jobs = self.lock();
        let job = jobs
            .get_mut(&session.node)
            .filter(|job| job.is_open() && job.commit == commit && job.boot == session.boot);
        let job = job.ok_or_else(|| {
            let detail = "nobody asks for what this machine wrote, or not any more";
            ApiError::new(ProblemCode::Forbidden, detail)
        })?;
        job.heard = Instant::now();
        Ok(with(job))
    }

    /// Forgets the last commit of a node that is deleted.
    pub(crate) fn forget(&self, node: &NodeName) {
        self.lock().remove(node);
    }

    /// What becomes of a manifest whose machine may not have heard the last answer.
    fn known(&self, session: &Session, commit: &str, manifest: Digest) -> Option<Known> {
        let jobs = self.lock();
        let job = jobs.get(&session.node).filter(|job| job.commit == commit)?;
        let done = job.shown.committed.as_ref();
        if done.is_some_and(|done| done.manifest == manifest) {
            return Some(Known::Done);
        }
        (job.finishing == Some(manifest)).then_some(Known::Finishing)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has what a node wrote made a version. A volume on the server is done on return.
pub(crate) async fn begin(
    app: &Arc<App>,
    node: &NodeName,
    request: VolumeCommit,
    actor: String,
) -> Result<NodeCommit, ApiError> {
    let row = app.catalog.node(node).await?;
    let network = nodes::network_of(app, &row)?;
    let profiles = nodes::Profiles::read(app).await?;
    let settings = profiles.of_node(&row, network.as_ref())?.settings;
    let shown = NodeCommit {
        node: node.clone(),
        image: request.image.clone(),
        begun: Timestamp::now().to_string(),
        state: NodeCommitState::Waiting,
        progress: CommitProgress::default(),
        committed: None,
        reason: None,
    };
    let session = app
        .boot
        .sessions
        .list()
        .into_iter()
        .find(|session| session.node == *node && app.boot.sessions.is_alive(&session.boot));
    // What a machine runs with is what held when it booted.
    let known = session.as_ref().and_then(|session| session.writes.get());
    let writes = known.copied().unwrap_or_else(|| Writes::of(&settings));
    if writes == Writes::Volume {
        let volume = super::orders::volume_of(node, &settings)?;
        let committed = volumes::commit_volume(app, &volume, request, actor).await?;
        return Ok(NodeCommit {
            state: NodeCommitState::Done,
            committed: Some(committed),
            ..shown
        });
    }
    if writes == Writes::Elsewhere {
        let detail =
            format!("{node} is not personal in this boot: what it writes becomes no version");
        let hint = format!(
            "`rootstock node set {node} --mode personal --personal disk`, boot it and write again"
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint(hint));
    }
    let session = session.ok_or_else(|| {
        let detail = format!("{node} is not heard of: what it wrote is on its own disk");
        let hint = "switch it on; if it runs, try again in a minute";
        ApiError::new(ProblemCode::Unavailable, detail).with_hint(hint)
    })?;
    let disk_bytes = session.version.disk_bytes;
    let import = import(app, node, &request, disk_bytes).await?;
    let shown = app.boot.commits.begin(Job {
        commit: random_id()?,
        boot: session.boot.clone(),
        import,
        disk_bytes,
        asked_ids: 0,
        sent_bytes: 0,
        bodies: 0,
        finishing: None,
        request,
        parent: session.version.spec(),
        actor,
        heard: Instant::now(),
        shown,
    })?;
    tracing::info!(%node, image = %shown.image, "machine is told to send what it wrote");
    app.nodes.note_change();
    Ok(shown)
}

/// One that was left open, which has chunks already, or a new one.
async fn import(
    app: &App,
    node: &NodeName,
    request: &VolumeCommit,
    disk_bytes: u64,
) -> Result<String, ApiError> {
    let source = format!("node {node}");
    let open = app.catalog.imports().await?;
    let left = open.into_iter().rfind(|import| {
        import.image == request.image && import.source == source && import.disk_bytes == disk_bytes
    });
    if let Some(import) = left {
        return Ok(import.id);
    }
    let new = NewImport {
        id: random_id()?,
        image: request.image.clone(),
        disk_bytes,
        source,
    };
    Ok(app.catalog.open_import(&new, Timestamp::now()).await?.id)
}

/// Gives a commit up. What was sent helps the next one.
pub(crate) fn abort(app: &App, node: &NodeName) -> Result<NodeCommit, ApiError> {
    let shown = {
        let mut jobs = app.boot.commits.lock();
        let job = jobs.get_mut(node).filter(|job| job.is_open());
        let job = job.ok_or_else(|| {
            let detail = format!("nothing that {node} wrote is being made a version");
            ApiError::new(ProblemCode::BadValue, detail)
        })?;
        if job.finishing.is_some() {
            let detail = format!("what {node} wrote is all here, and becomes a version now");
            return Err(ApiError::new(ProblemCode::Busy, detail));
        }
        job.fail("an administrator gave it up".to_owned());
        job.shown.clone()
    };
    app.nodes.note_change();
    Ok(shown)
}

/// Which of these chunks a machine is to send.
pub(crate) async fn lacking(
    app: &Arc<App>,
    session: &Session,
    commit: &str,
    ids: Vec<ChunkId>,
) -> Result<Bitmap, ApiError> {
    let takes = |job: &mut Job| job.takes(ids.len(), 0).map(|()| job.import.clone());
    let import = app.boot.commits.with(session, commit, takes)??;
    imports::lacking(app, &import, ids).await
}

/// A machine's right to send a body of chunks.
pub(crate) struct Place<'a> {
    app: &'a App,
    node: NodeName,
    commit: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut jobs = self.app.boot.commits.lock();
        let job = jobs.get_mut(&self.node);
        if let Some(job) = job.filter(|job| job.commit == self.commit) {
            job.bodies -= 1;
        }
    }
}

/// Whether a machine is to send anything.
pub(crate) fn place<'a>(
    app: &'a App,
    session: &Session,
    commit: &str,
) -> Result<Place<'a>, ApiError> {
    app.boot.commits.with(session, commit, |job| {
        if job.bodies >= COMMIT_BODIES_MAX {
            let detail =
                format!("{COMMIT_BODIES_MAX} bodies of this commit are on their way already");
            return Err(ApiError::new(ProblemCode::Unavailable, detail));
        }
        job.bodies += 1;
        Ok(())
    })??;
    Ok(Place {
        app,
        node: session.node.clone(),
        commit: commit.to_owned(),
    })
}

/// Takes chunks from a machine.
pub(crate) async fn chunks(
    app: &Arc<App>,
    session: &Session,
    commit: &str,
    records: Bytes,
) -> Result<ImportReceipt, ApiError> {
    let takes = |job: &mut Job| job.takes(0, records.len()).map(|()| job.import.clone());
    let import = app.boot.commits.with(session, commit, takes)??;
    imports::store_chunks(app, &import, records, Origin::Foreign).await
}

/// A machine tells how far it is. When chunks are missing at the end, it is told so,
/// and goes on.
pub(crate) async fn told(
    app: &Arc<App>,
    session: &Arc<Session>,
    commit: &str,
    told: CommitTold,
) -> Result<(), ApiError> {
    let commits = &app.boot.commits;
    match told {
        CommitTold::Going(progress) => commits.with(session, commit, |job| {
            job.shown.state = NodeCommitState::Going;
            job.shown.progress = progress;
        }),
        CommitTold::Failed { reason } => {
            let shown = |c: char| if c.is_control() { ' ' } else { c };
            let reason: String = reason.chars().take(REASON_CHARS_MAX).map(shown).collect();
            tracing::warn!(node = %session.node, reason, "what the machine wrote is no version");
            commits.with(session, commit, |job| job.fail(reason))?;
            app.nodes.note_change();
            Ok(())
        }
        CommitTold::Sent { manifest } => {
            match app.boot.commits.known(session, commit, manifest) {
                Some(Known::Done) => return Ok(()),
                Some(Known::Finishing) => {
                    let detail = "it is being made a version already";
                    return Err(ApiError::new(ProblemCode::Unavailable, detail)
                        .with_hint("ask again in a moment"));
                }
                None => {}
            }
            // A machine that hangs up must not leave it half done.
            let (app, session) = (Arc::clone(app), Arc::clone(session));
            let commit = commit.to_owned();
            let finish = async move { sent(&app, &session, &commit, manifest).await };
            tokio::spawn(finish)
                .await
                .unwrap_or_else(|error| Err(ApiError::internal("commit a version", &error)))
        }
    }
}

async fn sent(
    app: &Arc<App>,
    session: &Session,
    commit: &str,
    manifest: Digest,
) -> Result<(), ApiError> {
    let commits = &app.boot.commits;
    let (import, words, actor) = commits.with(session, commit, |job| {
        job.finishing = Some(manifest);
        let words = Words {
            tag: job.request.tag.clone(),
            message: job.request.message.clone(),
            parent: Some(job.parent.clone()),
            event: "committed",
            facts: None,
        };
        (job.import.clone(), words, job.actor.clone())
    })?;
    match imports::commit(app, &import, manifest, words, actor).await {
        Ok(committed) => {
            let committed = volumes::committed(committed);
            commits.with(session, commit, |job| {
                job.shown.state = NodeCommitState::Done;
                job.shown.committed = Some(committed);
            })?;
            app.nodes.note_change();
            Ok(())
        }
        Err(error) => {
            commits.with(session, commit, |job| {
                job.finishing = None;
                if error.0.code != ProblemCode::ChunksMissing {
                    job.fail(chain(&error.0));
                }
            })?;
            Err(error)
        }
    }
}
