//! Beginning a rollout: whose nodes they are, and what it means to each.

use std::{collections::HashMap, sync::Arc};

use jiff::{Timestamp, ToSpan as _, Zoned, civil::Time};
use rootstock_api::{
    HolderKind, NodeState as MachineState, Origin, ProblemCode, RolloutForecast, RolloutLeft,
    RolloutReboot as Reboot, RolloutStart, RolloutStarted, Setting, Settings,
};
use rootstock_catalog::{NewRollout, NodeRow, RolloutReboot, RolloutTerms, VersionRow};
use rootstock_core::{NodeName, ProfileName, VersionSpec};

use super::Fleet;
use crate::{
    app::App,
    http::{ApiError, lease},
    nodes::{self, Profiles},
    recipes, sizes,
};

/// Begins a rollout, or works out what it would do.
pub(crate) async fn start(
    app: &Arc<App>,
    request: &RolloutStart,
    actor: &str,
) -> Result<RolloutStarted, ApiError> {
    let (version, _lease) = lease(app, &request.version, HolderKind::Operation, "rollout").await?;
    let terms = terms(request)?;
    let starts = match &request.at {
        Some(at) => next_time(at, &app.boot.clock.now())?,
        None => Timestamp::now(),
    };
    let fleet = Fleet::read(app).await?;
    let (chosen, left) = choose(app, &fleet, request, &version.spec()).await?;
    if chosen.is_empty() {
        let detail = "there is no node whose image the rollout would set".to_owned();
        let problem = ApiError::new(ProblemCode::BadValue, detail);
        let hint = match left.first() {
            Some(left) => format!("{} is left alone: {}", left.node, left.reason),
            None => "`rootstock node list` shows the nodes and their profiles".to_owned(),
        };
        return Err(problem.with_hint(hint));
    }
    let forecast = forecast(app, &fleet, &chosen, &version).await?;
    let rollout = match request.dry_run {
        true => None,
        false => {
            let new = NewRollout {
                version: version.spec(),
                profile: request.profile.clone(),
                terms,
                actor: actor.to_owned(),
                starts,
                nodes: chosen
                    .iter()
                    .map(|row| (row.name.clone(), row.image.clone()))
                    .collect(),
            };
            let id = app.catalog.add_rollout(&new, Timestamp::now()).await?;
            tracing::info!(
                rollout = id,
                version = %new.version,
                nodes = new.nodes.len(),
                actor,
                "rollout begins"
            );
            Some(id)
        }
    };
    Ok(RolloutStarted {
        rollout,
        version: version.spec(),
        starts: starts.to_string(),
        nodes: forecast,
        left,
    })
}

fn terms(request: &RolloutStart) -> Result<RolloutTerms, ApiError> {
    if request.batch_count == 0 {
        let detail = "a batch of 0 nodes would never end".to_owned();
        return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint("write at least 1"));
    }
    Ok(RolloutTerms {
        canary_count: request.canary_count,
        batch_count: request.batch_count,
        failures_max: request.failures_max,
        reboot: match request.reboot {
            Reboot::Idle => RolloutReboot::Idle,
            Reboot::Now => RolloutReboot::Now,
            Reboot::No => RolloutReboot::No,
        },
        wake: request.wake,
    })
}

/// The next time that the site's clock shows this.
fn next_time(at: &str, now: &Zoned) -> Result<Timestamp, ApiError> {
    let parsed = at.split_once(':').and_then(|(hour, minute)| {
        let is_plain = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let both = is_plain(hour) && is_plain(minute);
        both.then(|| Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok())?
    });
    let Some(time) = parsed else {
        let shown: String = at.chars().take(20).collect();
        let detail = format!("'{}' is no time of the day", shown.escape_debug());
        return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint("write it as 02:00"));
    };
    let on = |day: jiff::civil::Date| day.to_datetime(time).to_zoned(now.time_zone().clone());
    let next = on(now.date()).and_then(|today| match today.timestamp() > now.timestamp() {
        true => Ok(today),
        false => on(now.date().checked_add(1.day())?),
    });
    let next = next.map_err(|error| ApiError::internal("find the next night", &error))?;
    Ok(next.timestamp())
}

/// The nodes whose image the rollout sets, and those of the profile that it leaves
/// alone.
async fn choose(
    app: &App,
    fleet: &Fleet,
    request: &RolloutStart,
    version: &VersionSpec,
) -> Result<(Vec<NodeRow>, Vec<RolloutLeft>), ApiError> {
    let (mut chosen, mut left) = (Vec::new(), Vec::new());
    match (&request.profile, &request.nodes) {
        (Some(profile), None) => {
            let heirs = Heirs::of(app, profile, version).await?;
            let mut rows: Vec<&NodeRow> = fleet.rows.values().collect();
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            for row in rows {
                match heirs.look(row, nodes::network_of(app, row)?.as_ref())? {
                    Verdict::Other => {}
                    Verdict::Takes(settings) => match personal(&settings) {
                        Some(reason) => left.push(leave(&row.name, reason)),
                        None => chosen.push(row.clone()),
                    },
                    Verdict::Leaves(reason) => left.push(leave(&row.name, reason)),
                }
            }
        }
        (None, Some(nodes)) => {
            for name in nodes.names() {
                let row = app.catalog.node(name).await?;
                let network = nodes::network_of(app, &row)?;
                let settings = fleet.profiles.of_node(&row, network.as_ref())?.settings;
                match personal(&settings) {
                    Some(reason) => left.push(leave(name, reason)),
                    None => chosen.push(row),
                }
            }
        }
        _ => {
            let detail = "a rollout is of the nodes of a profile, or of named ones".to_owned();
            return Err(ApiError::new(ProblemCode::BadValue, detail)
                .with_hint("give one of the two: a profile or nodes"));
        }
    }
    Ok((chosen, left))
}

fn leave(node: &NodeName, reason: &str) -> RolloutLeft {
    RolloutLeft {
        node: node.clone(),
        reason: reason.to_owned(),
    }
}

fn personal(settings: &Settings) -> Option<&'static str> {
    let has_volume = settings.has_volume();
    has_volume.then_some("it is personal: its volume stays what it is")
}

/// What a node has to do with a profile.
enum Verdict {
    /// Nothing.
    Other,
    /// It would have the image that the profile gets; what holds for it.
    Takes(Box<Settings>),
    /// It inherits from the profile, and its image from elsewhere.
    Leaves(&'static str),
}

/// The profiles as they would be.
struct Heirs {
    profile: ProfileName,
    profiles: Profiles,
    parents: HashMap<ProfileName, Option<ProfileName>>,
}

impl Heirs {
    async fn of(app: &App, profile: &ProfileName, image: &VersionSpec) -> Result<Self, ApiError> {
        // One that is not there is an error of its own.
        app.catalog.profile(profile).await?;
        let mut rows = app.catalog.profiles().await?;
        for row in rows.iter_mut().filter(|row| row.name == *profile) {
            nodes::assign(&mut row.settings, Some(image));
        }
        let parents = rows
            .iter()
            .map(|row| (row.name.clone(), row.parent.clone()));
        Ok(Self {
            profile: profile.clone(),
            parents: parents.collect(),
            profiles: Profiles::new(&rows)?,
        })
    }

    /// Whether a profile is this one, or inherits from it.
    fn is_heir(&self, profile: Option<&ProfileName>) -> bool {
        let mut next = profile;
        // The catalog lets no cycle in; a damaged one must end too.
        for _ in 0..=self.parents.len() {
            match next {
                Some(name) if *name == self.profile => return true,
                Some(name) => next = self.parents.get(name).and_then(Option::as_ref),
                None => return false,
            }
        }
        false
    }

    /// What a node has to do with the profile, by itself or by its network.
    fn look(&self, row: &NodeRow, network: Option<&ProfileName>) -> Result<Verdict, ApiError> {
        if !self.is_heir(row.profile.as_ref()) && !self.is_heir(network) {
            return Ok(Verdict::Other);
        }
        let effective = self.profiles.of_node(row, network)?;
        Ok(match effective.origins.get(&Setting::Image) {
            Some(Origin::Profile { name: from } | Origin::Network { profile: from })
                if *from == self.profile =>
            {
                Verdict::Takes(Box::new(effective.settings))
            }
            Some(Origin::Node) => Verdict::Leaves("it has an image of its own"),
            _ => Verdict::Leaves("it inherits its image from another profile"),
        })
    }
}

/// What the rollout means to each node. What lies between two versions is worked out
/// once for all that have the older one.
async fn forecast(
    app: &Arc<App>,
    fleet: &Fleet,
    chosen: &[NodeRow],
    version: &VersionRow,
) -> Result<Vec<RolloutForecast>, ApiError> {
    let mut between: HashMap<VersionSpec, Option<u64>> = HashMap::new();
    let mut nodes = Vec::with_capacity(chosen.len());
    for row in chosen {
        let state = fleet.state(row);
        let from = from(fleet, row);
        let report = fleet.report(&row.name);
        let keeps = report.is_none_or(|report| report.disk_cache.is_some());
        let bytes = match &from {
            _ if !keeps => Some(0),
            Some(from) => match between.get(from) {
                Some(bytes) => *bytes,
                None => {
                    let bytes = fetched(app, from, version).await?;
                    between.insert(from.clone(), bytes);
                    bytes
                }
            },
            None => None,
        };
        nodes.push(RolloutForecast {
            node: row.name.clone(),
            state,
            from,
            bytes,
            users: match state {
                MachineState::Up => report.and_then(|report| report.users).unwrap_or(0),
                _ => 0,
            },
        });
    }
    Ok(nodes)
}

/// What a node runs, or came up with last.
fn from(fleet: &Fleet, row: &NodeRow) -> Option<VersionSpec> {
    let boot = fleet.boots.get(&row.name);
    let running = boot.and_then(|(boot, _)| nodes::running(boot));
    running.or_else(|| {
        let health = fleet.health.get(&row.name)?;
        let last = health.iter().find(|health| health.good.is_some())?;
        Some(last.version.clone())
    })
}

/// The bytes that a holder of one version fetches for another.
async fn fetched(
    app: &Arc<App>,
    from: &VersionSpec,
    to: &VersionRow,
) -> Result<Option<u64>, ApiError> {
    let Some(from) = recipes::version_if_any(app, from).await? else {
        return Ok(None);
    };
    let recipe = recipes::find(app, &from, to).await?;
    if recipe.is_none() {
        // The machines are to have one when they come.
        recipes::miss(app, &from, to);
    }
    let to = to.clone();
    let compare = move |app: &App| sizes::compare(&app.store, &from, &to, recipe.as_deref());
    let report = app.blocking(compare).await?;
    let by_recipe = report.recipe.as_ref().map(|recipe| recipe.wire_bytes);
    Ok(Some(by_recipe.unwrap_or(report.wire_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_of_the_sites_clock() {
        let now: Zoned = "2026-11-22T01:30:00+01:00[Europe/Berlin]"
            .parse()
            .expect("a time");
        for (at, expected) in [
            ("02:00", "2026-11-22T01:00:00Z"),
            ("01:30", "2026-11-23T00:30:00Z"),
            ("00:00", "2026-11-22T23:00:00Z"),
            ("23:59", "2026-11-22T22:59:00Z"),
        ] {
            let next = next_time(at, &now).map_err(|error| error.0.detail);
            assert_eq!(
                next.map(|time| time.to_string()),
                Ok(expected.to_owned()),
                "{at}"
            );
        }
        // The hour that does not exist when summer begins.
        let now: Zoned = "2026-03-29T01:00:00+01:00[Europe/Berlin]"
            .parse()
            .expect("a time");
        let next = next_time("02:30", &now).map_err(|error| error.0.detail);
        assert_eq!(
            next.map(|t| t.to_string()),
            Ok("2026-03-29T01:30:00Z".to_owned())
        );
        for bad in [
            "", "2:00", "24:00", "02:60", "02:00:00", "+2:00", "aa:bb", "noon",
        ] {
            assert!(next_time(bad, &now).is_err(), "{bad}");
        }
    }
}
