//! Rollouts: a version brought to many nodes, a few at first.
//!
//! What is under way is in the catalog's rows alone. The worker reads them whole,
//! asks the planner what comes next, and does it; each step may be done twice.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    NodeState as MachineState, Rollout, RolloutCounts, RolloutDetail, RolloutNode, boot::NodeReport,
};
use rootstock_catalog::{
    BootRow, CatalogError, NodeRow, Pass, RebootKind, RolloutNodeRow, RolloutNodeState,
    RolloutReboot, RolloutRow, RolloutState, StepRow, VersionHealthRow,
};
use rootstock_core::{NodeName, VersionSpec};

use crate::{
    app::App,
    boot::{health, wake},
    http::ApiError,
    nodes::{self, Profiles},
    stop::Stop,
};

mod plan;
mod start;

use plan::{Facts, Fetch, Power, Step};
pub(crate) use start::start;

/// Between two looks at rollouts that go on.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How machines do, read once for all of a rollout's nodes.
struct Fleet {
    rows: HashMap<NodeName, NodeRow>,
    profiles: Profiles,
    boots: HashMap<NodeName, (BootRow, Option<StepRow>)>,
    reports: HashMap<String, NodeReport>,
    health: HashMap<NodeName, Vec<VersionHealthRow>>,
}

impl Fleet {
    async fn read(app: &App) -> Result<Self, ApiError> {
        let boots = app.catalog.last_boots().await?.into_iter();
        let rows = app.catalog.nodes().await?.into_iter();
        Ok(Self {
            rows: rows.map(|row| (row.name.clone(), row)).collect(),
            profiles: Profiles::read(app).await?,
            boots: boots.map(|boot| (boot.0.node.clone(), boot)).collect(),
            reports: app.boot.sessions.reports(),
            health: health::by_node(app).await?,
        })
    }

    fn report(&self, node: &NodeName) -> Option<&NodeReport> {
        self.reports.get(&self.boots.get(node)?.0.id)
    }

    fn state(&self, row: &NodeRow) -> MachineState {
        nodes::status(row, self.boots.get(&row.name), None).state
    }

    /// How many are logged in. Machines with an agent that does not tell may be in use.
    fn users(&self, node: &NodeName) -> u32 {
        self.report(node)
            .map_or(1, |report| report.users.unwrap_or(1))
    }

    fn power(&self, row: &NodeRow) -> Power {
        match self.state(row) {
            MachineState::Up => Power::Up {
                users: self.users(&row.name),
            },
            MachineState::Booting => Power::Booting,
            MachineState::OwnDisk | MachineState::Installing => Power::OwnDisk,
            _ => Power::Off,
        }
    }

    fn fetch(&self, node: &NodeName, version: &VersionSpec) -> Fetch {
        let Some(report) = self.report(node) else {
            return Fetch::UnderWay;
        };
        let disk = report.disk_cache.as_ref().filter(|disk| disk.off.is_none());
        // An agent that does not tell of users does not tell of this either.
        let (Some(disk), Some(_)) = (disk, report.users) else {
            return Fetch::Done;
        };
        match &disk.next {
            Some(next) if next.version == *version => match &next.trouble {
                _ if next.complete => Fetch::Done,
                Some(why) => Fetch::Trouble(why.clone()),
                None => Fetch::UnderWay,
            },
            _ => Fetch::UnderWay,
        }
    }

    fn facts(&self, app: &App, row: &NodeRow, version: &VersionSpec) -> Result<Facts, ApiError> {
        let network = nodes::network_of(app, row)?;
        let settings = self.profiles.of_node(row, network.as_ref())?.settings;
        let running = self.boots.get(&row.name);
        let running = running.and_then(|(boot, _)| nodes::running(boot));
        let health = self.health.get(&row.name).into_iter().flatten();
        let mut health = health.filter(|health| health.version == *version);
        let limit = health::limit(&settings).duration();
        Ok(Facts {
            image: row.image.clone(),
            power: self.power(row),
            runs_it: running.as_ref() == Some(version),
            failed: health.find_map(|health| health.failed.clone()),
            fetch: self.fetch(&row.name, version),
            boot_limit: SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX),
        })
    }
}

/// Brings rollouts on until the stop.
pub(crate) async fn work(app: Arc<App>, mut stop: Stop) {
    while !stop.rest(LOOK_EVERY).await {
        if let Err(error) = look(&app).await {
            tracing::warn!(detail = error.0.detail, "rollouts do not go on");
        }
    }
}

/// Looks once at all rollouts that go on.
pub(crate) async fn look(app: &Arc<App>) -> Result<(), ApiError> {
    let now = Timestamp::now();
    let open = |row: &RolloutRow| !row.state.is_over() && row.starts <= now;
    let rollouts = app.catalog.rollouts().await?.into_iter();
    let rollouts: Vec<RolloutRow> = rollouts.filter(open).collect();
    if rollouts.is_empty() {
        return Ok(());
    }
    let fleet = Fleet::read(app).await?;
    for rollout in rollouts {
        let _turn = app.rollouts.lock().await;
        let (rollout, rows) = app.catalog.rollout(rollout.id).await?;
        let mut nodes = Vec::with_capacity(rows.len());
        for row in rows {
            if let Some(node) = fleet.rows.get(&row.node) {
                let facts = fleet.facts(app, node, &rollout.version)?;
                nodes.push((row, facts));
            }
        }
        for step in plan::plan(&rollout, &nodes, now) {
            if let Err(error) = take(app, &rollout, &nodes, &step, now).await {
                let detail = error.0.detail;
                tracing::warn!(
                    rollout = rollout.id,
                    ?step,
                    detail,
                    "step of a rollout failed"
                );
            }
        }
    }
    Ok(())
}

async fn take(
    app: &Arc<App>,
    rollout: &RolloutRow,
    nodes: &[(RolloutNodeRow, Facts)],
    step: &Step,
    now: Timestamp,
) -> Result<(), ApiError> {
    let id = rollout.id;
    let restarting = RolloutNodeState::Restarting;
    match step {
        Step::Assign(node) => {
            let names = std::slice::from_ref(node);
            let before = nodes.iter().find(|(row, _)| row.node == *node);
            let before = before.and_then(|(row, _)| row.before.as_ref());
            set_image(app, names, before, Some(&rollout.version)).await?;
            let assigned = RolloutNodeState::Assigned;
            app.catalog
                .set_rollout_node(id, node, assigned, "", now)
                .await?;
            tracing::info!(rollout = id, %node, version = %rollout.version, "version assigned");
        }
        Step::Reboot(node) => {
            let names = std::slice::from_ref(node);
            let kind = match rollout.terms.reboot {
                RolloutReboot::Now => RebootKind::Orderly,
                // The machine looks itself: what it told last is some seconds old.
                RolloutReboot::Idle | RolloutReboot::No => RebootKind::Idle,
            };
            let told = app.catalog.order_reboots(names, kind);
            if !told.await?.is_empty() {
                app.nodes.note_version_change();
                app.catalog
                    .set_rollout_node(id, node, restarting, "starting anew", now)
                    .await?;
                tracing::info!(rollout = id, %node, "machine is told to start anew");
            }
        }
        Step::Wake(node) => {
            // One that cannot be woken is waited for like one that does not wake.
            let woken = wake::wake_nodes(app, std::slice::from_ref(node)).await;
            app.catalog
                .set_rollout_node(id, node, RolloutNodeState::Waking, "waking up", now)
                .await?;
            woken?;
        }
        Step::Withdraw(node) => {
            app.catalog
                .withdraw_reboots(std::slice::from_ref(node))
                .await?;
            app.nodes.note_version_change();
        }
        Step::Note(node, state, detail) => {
            app.catalog
                .set_rollout_node(id, node, *state, detail, now)
                .await?;
        }
        Step::Stop(reason) => {
            let stopped = RolloutState::Stopped;
            app.catalog
                .set_rollout_state(id, stopped, Some(reason), now)
                .await?;
            tracing::warn!(rollout = id, reason, "rollout stopped");
        }
        Step::Finish => finish(app, rollout, nodes, now).await?,
    }
    Ok(())
}

/// Sets the image of nodes that have another one, and has it tried. What somebody set
/// in the meantime stays.
async fn set_image(
    app: &App,
    names: &[NodeName],
    before: Option<&VersionSpec>,
    image: Option<&VersionSpec>,
) -> Result<(), ApiError> {
    let set = app.catalog.update_nodes(names, Pass::Keep, |row| {
        if row.image.as_ref() == before {
            nodes::assign(&mut row.settings, image);
            row.image = image.cloned();
        }
    });
    set.await?;
    app.catalog.forget_failures(names).await?;
    app.nodes.note_change();
    Ok(())
}

/// The profile has the version now, and its nodes inherit it again.
async fn finish(
    app: &App,
    rollout: &RolloutRow,
    nodes: &[(RolloutNodeRow, Facts)],
    now: Timestamp,
) -> Result<(), ApiError> {
    if let Some(profile) = &rollout.profile {
        let version = Some(&rollout.version);
        let set = app.catalog.update_profile(profile, Pass::Keep, |row| {
            nodes::assign(&mut row.settings, version);
            row.image = version.cloned();
        });
        match set.await {
            Err(CatalogError::ProfileNotFound { .. }) => {
                let (done, why) = (RolloutState::Done, "the profile was deleted meanwhile");
                app.catalog
                    .set_rollout_state(rollout.id, done, Some(why), now)
                    .await?;
                return Ok(());
            }
            set => drop(set?),
        }
        // Which versions failed stays known: the profile names none anew.
        let has_it = |(_, facts): &&(RolloutNodeRow, Facts)| facts.image.as_ref() == version;
        let names: Vec<NodeName> = nodes
            .iter()
            .filter(has_it)
            .map(|(row, _)| row.node.clone())
            .collect();
        let inherit = app.catalog.update_nodes(&names, Pass::Keep, |row| {
            if row.image.as_ref() == version {
                nodes::assign(&mut row.settings, None);
                row.image = None;
            }
        });
        inherit.await?;
        app.nodes.note_change();
    }
    let done = RolloutState::Done;
    app.catalog
        .set_rollout_state(rollout.id, done, None, now)
        .await?;
    tracing::info!(rollout = rollout.id, version = %rollout.version, "rollout done");
    Ok(())
}

/// Halts a rollout.
pub(crate) async fn pause(app: &App, id: u64, actor: &str) -> Result<(), ApiError> {
    let _turn = app.rollouts.lock().await;
    let reason = format!("by {actor}");
    let paused = RolloutState::Paused;
    let set = app
        .catalog
        .set_rollout_state(id, paused, Some(&reason), Timestamp::now());
    Ok(set.await?)
}

/// Has a rollout go on.
pub(crate) async fn resume(app: &App, id: u64) -> Result<(), ApiError> {
    let _turn = app.rollouts.lock().await;
    Ok(app.catalog.resume_rollout(id, Timestamp::now()).await?)
}

/// Ends a rollout. Nodes that did not come up with the version get back what was set
/// on them before; those that did keep it.
pub(crate) async fn abort(app: &App, id: u64, actor: &str) -> Result<(), ApiError> {
    let _turn = app.rollouts.lock().await;
    let now = Timestamp::now();
    let reason = format!("by {actor}");
    // Whoever dies midway has it halted, and ends it the second time.
    let paused = RolloutState::Paused;
    app.catalog
        .set_rollout_state(id, paused, Some(&reason), now)
        .await?;
    let (rollout, rows) = app.catalog.rollout(id).await?;
    let mut back: BTreeMap<Option<String>, (Option<VersionSpec>, Vec<NodeName>)> = BTreeMap::new();
    for row in rows {
        let is_good = row.state == RolloutNodeState::Good;
        let node = app.catalog.node(&row.node).await?;
        if !is_good && node.image.as_ref() == Some(&rollout.version) {
            let key = row.before.as_ref().map(ToString::to_string);
            let entry = back.entry(key).or_insert((row.before, Vec::new()));
            entry.1.push(row.node);
        }
    }
    for (image, names) in back.into_values() {
        app.catalog.withdraw_reboots(&names).await?;
        set_image(app, &names, Some(&rollout.version), image.as_ref()).await?;
        for node in names {
            let (left, detail) = (RolloutNodeState::Left, "has what it had before");
            app.catalog
                .set_rollout_node(id, &node, left, detail, now)
                .await?;
        }
    }
    let aborted = RolloutState::Aborted;
    app.catalog
        .set_rollout_state(id, aborted, Some(&reason), now)
        .await?;
    Ok(())
}

/// All rollouts, as the API shows them.
pub(crate) async fn list(app: &App) -> Result<Vec<Rollout>, ApiError> {
    let mut counts: HashMap<u64, RolloutCounts> = HashMap::new();
    for (id, state, count) in app.catalog.rollout_counts().await? {
        *of(counts.entry(id).or_default(), state) += count;
    }
    let rows = app.catalog.rollouts().await?.into_iter();
    let shown = |row: RolloutRow| {
        let counts = counts.get(&row.id).copied().unwrap_or_default();
        describe(row, counts)
    };
    Ok(rows.map(shown).collect())
}

/// One of them, with its nodes.
pub(crate) async fn detail(app: &App, id: u64) -> Result<RolloutDetail, ApiError> {
    let (row, nodes) = app.catalog.rollout(id).await?;
    let mut counts = RolloutCounts::default();
    for node in &nodes {
        *of(&mut counts, node.state) += 1;
    }
    let shown = |node: RolloutNodeRow| RolloutNode {
        node: node.node,
        state: node.state.as_str().to_owned(),
        since: node.since.to_string(),
        detail: node.detail,
    };
    Ok(RolloutDetail {
        rollout: describe(row, counts),
        nodes: nodes.into_iter().map(shown).collect(),
    })
}

fn of(counts: &mut RolloutCounts, state: RolloutNodeState) -> &mut u64 {
    match state {
        RolloutNodeState::Waiting => &mut counts.waiting,
        RolloutNodeState::Assigned => &mut counts.assigned,
        RolloutNodeState::Restarting => &mut counts.restarting,
        RolloutNodeState::Waking => &mut counts.waking,
        RolloutNodeState::Good => &mut counts.good,
        RolloutNodeState::Failed => &mut counts.failed,
        RolloutNodeState::Later => &mut counts.later,
        RolloutNodeState::Left => &mut counts.left,
    }
}

fn describe(row: RolloutRow, counts: RolloutCounts) -> Rollout {
    use rootstock_api::{RolloutReboot as Reboot, RolloutState as State};
    Rollout {
        rollout: row.id,
        version: row.version,
        profile: row.profile,
        canary_count: row.terms.canary_count,
        batch_count: row.terms.batch_count,
        failures_max: row.terms.failures_max,
        reboot: match row.terms.reboot {
            RolloutReboot::Idle => Reboot::Idle,
            RolloutReboot::Now => Reboot::Now,
            RolloutReboot::No => Reboot::No,
        },
        wake: row.terms.wake,
        actor: row.actor,
        created: row.created.to_string(),
        starts: row.starts.to_string(),
        ended: row.ended.map(|time| time.to_string()),
        state: match row.state {
            RolloutState::Open if Timestamp::now() < row.starts => State::Scheduled,
            RolloutState::Open => State::Running,
            RolloutState::Paused => State::Paused,
            RolloutState::Stopped => State::Stopped,
            RolloutState::Done => State::Done,
            RolloutState::Aborted => State::Aborted,
        },
        reason: row.reason,
        counts,
    }
}
