//! Control: what may change while a machine runs, told as soon as it does.
//!
//! A machine asks with the number of what it has, and is answered when something
//! else holds. Numbers are made of what they stand for, so that they mean the same
//! after a restart, and from any daemon. Whoever changes nodes, profiles, tags or
//! versions wakes all that wait; hours wake them by a timer. What the catalog says
//! is read once for all of them, not once for each: a change costs the same few
//! queries whether ten machines wait or thousands.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Zoned;
use rootstock_api::{
    FillSwitch, ProblemCode,
    boot::{CONTROL_HOLD_SECONDS, FillOrder, NextVersion, NodeControl, RebootOrder},
    settings::Settings,
};
use rootstock_catalog::{CatalogError, NodeSettingsRow, RebootKind, VersionHealthRow, VersionRow};
use rootstock_core::{Digest, NodeName, VersionSpec};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};

use super::{health, networks::Network, orders, sessions::Session, swarm};
use crate::{
    app::App,
    http::{ApiError, stopping},
    nodes::{self, Profiles},
    recipes,
};

/// The most machines that wait at once: three quarters of the places that the boot
/// services have, so that there is room for machines that boot.
const WAITING_MAX: usize = 6144;

/// What many changes in a row are gathered for: the catalog is read no more often.
const READ_PAUSE: Duration = Duration::from_millis(200);

/// How long what was read is believed when no change is heard of: another head may
/// have made one.
const READ_LIFE: Duration = Duration::from_secs(60);

/// The bits of a digest that make a number: programs that keep numbers as floating
/// point know as many.
const NUMBER_BITS: u32 = 53;

/// What machines that wait share.
pub(crate) struct Controls {
    /// How long a request is held when nothing changes.
    pub(super) hold: Duration,
    places: Arc<Semaphore>,
    read: Mutex<Option<Read>>,
}

/// What was read, and when.
struct Read {
    turn: u64,
    since: Instant,
    site: Arc<Site>,
}

/// What the catalog says. Each part is read by the first who needs it, while the
/// others wait.
#[derive(Default)]
struct Site {
    set: OnceCell<Set>,
    versions: Mutex<HashMap<VersionSpec, Arc<OnceCell<Option<VersionRow>>>>>,
}

/// What is set on nodes and profiles, what personal nodes' volumes are of, what
/// versions did on nodes, and which boots are to end.
struct Set {
    profiles: Profiles,
    nodes: HashMap<NodeName, NodeSettingsRow>,
    volumes: HashMap<String, VersionSpec>,
    health: HashMap<NodeName, Vec<VersionHealthRow>>,
    reboots: HashMap<String, RebootKind>,
}

/// What holds, and for how long at most.
struct Held {
    control: NodeControl,
    changes_in: Option<Duration>,
}

/// How a machine fetches ahead, and when hours change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fill {
    /// What holds now.
    pub(crate) order: FillOrder,
    /// How long it does, as far as hours go.
    pub(crate) changes_in: Option<Duration>,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(CONTROL_HOLD_SECONDS.into()),
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            read: Mutex::default(),
        }
    }
}

/// How a machine with these settings fetches ahead at this time.
pub(crate) fn fill(settings: &Settings, now: &Zoned) -> Fill {
    let minute = u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
    let hours = settings.fill_hours.as_ref();
    let outside = hours.filter(|hours| !hours.contains(minute));
    let paused = if settings.exam == Some(true) {
        Some("exam mode".to_owned())
    } else if settings.fill == Some(FillSwitch::Paused) {
        Some("paused by the administrator".to_owned())
    } else {
        outside.map(|hours| format!("outside {hours}"))
    };
    let changes_in = hours.and_then(|hours| hours.minutes_until_change(minute));
    Fill {
        order: FillOrder {
            paused,
            mbit_max: settings.fill_mbit_max.map(u32::from),
        },
        changes_in: changes_in.map(|minutes| minutes_left(minutes, now)),
    }
}

/// From now to the beginning of the minute that is so many later.
fn minutes_left(minutes: u16, now: &Zoned) -> Duration {
    let gone = Duration::new(
        now.second().unsigned_abs().into(),
        now.subsec_nanosecond().unsigned_abs(),
    );
    (Duration::from_secs(60) * u32::from(minutes)).saturating_sub(gone)
}

/// Answers when something else holds for a session's node than what has the number
/// `after`, or when the request was held long enough.
pub(super) async fn wait(
    app: &App,
    session: &Session,
    network: &Network,
    after: u64,
) -> Result<NodeControl, ApiError> {
    // Whoever listens first and looks then misses nothing.
    let mut turns = app.nodes.turns().ok_or_else(stopping)?;
    let mut relieved = std::pin::pin!(session.relieve());
    let until = Instant::now() + app.boot.controls.hold;
    let mut place = None;
    loop {
        let Held {
            control,
            changes_in,
        } = holds(app, session, network, &turns).await?;
        let rest = until.saturating_duration_since(Instant::now());
        if control.number != after || rest.is_zero() {
            return Ok(control);
        }
        if place.is_none() {
            place = Some(app.boot.controls.place()?);
        }
        let rest = changes_in.map_or(rest, |changes_in| changes_in.min(rest));
        tokio::select! {
            turned = turns.changed() => if turned.is_err() {
                return Ok(control);
            },
            () = relieved.as_mut() => return Ok(control),
            () = tokio::time::sleep(rest) => {}
        }
    }
}

async fn holds(
    app: &App,
    session: &Session,
    network: &Network,
    turns: &watch::Receiver<u64>,
) -> Result<Held, ApiError> {
    let site = app.boot.controls.site(turns).await;
    let set = site.set(app).await?;
    let settings = set.settings(app, &session.node, network)?;
    let fill = fill(&settings, &app.boot.clock.now());
    let volume = set.volumes.get(session.node.as_str()).cloned();
    let next = match orders::to_run(&settings, volume) {
        Some(spec) => site.version(app, &spec).await?,
        None => None,
    };
    // What the node would go back to is what it runs next.
    let next = match next {
        Some(assigned) => Some(
            site.chosen(app, set, &session.node, &settings, assigned)
                .await?,
        ),
        None => None,
    };
    let runs = &session.version;
    let other = |next: &VersionRow| next.image != runs.image || next.number != runs.number;
    let reboot = set.reboots.get(&session.boot).map(|kind| match kind {
        RebootKind::Orderly => RebootOrder::Orderly,
        RebootKind::Idle => RebootOrder::Idle,
        RebootKind::Forced => RebootOrder::Forced,
    });
    let next = next.filter(other).map(|next| NextVersion {
        image: next.image,
        version: next.number,
        manifest: next.manifest,
    });
    Ok(Held {
        control: numbered(NodeControl {
            number: 0,
            fill: fill.order,
            swarm: swarm::order(&settings),
            next,
            reboot,
            commit: app.boot.commits.order(session),
        })?,
        changes_in: fill.changes_in,
    })
}

/// What is set for a node that is in a network, as it is read for all machines together.
pub(super) async fn settings(
    app: &App,
    node: &NodeName,
    network: &Network,
) -> Result<Settings, ApiError> {
    let turns = app.nodes.turns().ok_or_else(stopping)?;
    let site = app.boot.controls.site(&turns).await;
    site.set(app).await?.settings(app, node, network)
}

/// What holds, with its number.
fn numbered(mut control: NodeControl) -> Result<NodeControl, ApiError> {
    let text = serde_json::to_vec(&control);
    let text = text.map_err(|error| ApiError::internal("number what holds", &error))?;
    let mut first = [0; 8];
    first.copy_from_slice(&Digest::of(&text).as_bytes()[..8]);
    let number = u64::from_be_bytes(first) >> (u64::BITS - NUMBER_BITS);
    // 0 is what a machine asks with that has nothing.
    control.number = number.max(1);
    Ok(control)
}

impl Controls {
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| {
            let detail = format!("{WAITING_MAX} machines wait already");
            ApiError::new(ProblemCode::Unavailable, detail).with_hint("ask again later")
        })
    }

    /// What the catalog says since the last change.
    async fn site(&self, turns: &watch::Receiver<u64>) -> Arc<Site> {
        loop {
            let turn = *turns.borrow();
            let pause = {
                let mut read = self.read();
                let now = Instant::now();
                match &*read {
                    Some(read) if read.turn == turn && now - read.since < READ_LIFE => {
                        return Arc::clone(&read.site);
                    }
                    Some(read) if now - read.since < READ_PAUSE => READ_PAUSE - (now - read.since),
                    _ => {
                        let site = Arc::<Site>::default();
                        *read = Some(Read {
                            turn,
                            since: now,
                            site: Arc::clone(&site),
                        });
                        return site;
                    }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn read(&self) -> MutexGuard<'_, Option<Read>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    /// What is set for a node that is in a network.
    fn settings(
        &self,
        app: &App,
        node: &NodeName,
        network: &Network,
    ) -> Result<Settings, ApiError> {
        let interface = network.config.interface.as_deref();
        let network = nodes::network_profile(&app.config.network, interface);
        let row = self.nodes.get(node);
        let row = row.ok_or_else(|| CatalogError::NodeNotFound { node: node.clone() })?;
        Ok(self.profiles.of_settings(row, network.as_ref())?.settings)
    }
}

impl Site {
    async fn set(&self, app: &App) -> Result<&Set, ApiError> {
        let read = async {
            let rows = app.catalog.node_settings().await?;
            let volumes = app.catalog.volumes().await?;
            Ok(Set {
                profiles: Profiles::read(app).await?,
                health: health::by_node(app).await?,
                reboots: app.catalog.reboots().await?,
                nodes: rows
                    .into_iter()
                    .map(|row| (row.name.clone(), row))
                    .collect(),
                volumes: volumes
                    .iter()
                    .map(|volume| (volume.name.to_string(), volume.base()))
                    .collect(),
            })
        };
        self.set.get_or_try_init(|| read).await
    }

    /// The version that a name stands for; none when it stands for none.
    async fn version(&self, app: &App, spec: &VersionSpec) -> Result<Option<VersionRow>, ApiError> {
        let cell = {
            let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(versions.entry(spec.clone()).or_default())
        };
        let found = cell.get_or_try_init(|| recipes::version_if_any(app, spec));
        Ok(found.await?.clone())
    }

    /// What a node boots that a version is assigned to.
    async fn chosen(
        &self,
        app: &App,
        set: &Set,
        node: &NodeName,
        settings: &Settings,
        assigned: VersionRow,
    ) -> Result<VersionRow, ApiError> {
        let rows = set.health.get(node).map_or(&[][..], Vec::as_slice);
        let abandoned = health::abandoned(rows, settings, &assigned);
        let instead = match abandoned.and_then(|abandoned| abandoned.instead) {
            Some(spec) => self.version(app, &spec).await?,
            None => None,
        };
        Ok(instead.unwrap_or(assigned))
    }
}

#[cfg(test)]
pub(super) mod tests;
