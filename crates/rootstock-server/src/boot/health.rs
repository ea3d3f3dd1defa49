//! Boot health: a version that a node does not come up with is abandoned there, and
//! the node goes back to the last one that it came up with.
//!
//! What became of a boot is judged from its rows in the catalog: when its node asks
//! for the next script, and now and then for all. So it is the same after a restart,
//! and a limit that passed while no daemon ran has passed.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use rootstock_api::{Abandoned, boot::BootStep, settings::Settings};
use rootstock_catalog::{BootFacts, StepRow, Verdict, VersionHealthRow, VersionRow};
use rootstock_core::{NodeName, TimeLimit, VersionSpec};

use super::transcript::name_of;
use crate::{
    app::App,
    http::{ApiError, chain},
    nodes, recipes,
};

/// Whether a boot's node begins another one now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Followed {
    /// It does.
    Now,
    /// The rows say.
    ByRows,
}

/// What became of a boot, as far as that is certain.
fn verdict(facts: &BootFacts, followed: Followed, now: Timestamp) -> Option<Verdict> {
    // Late is better than never: it runs.
    if let Some(up) = facts.up {
        return Some(Verdict::Good { up });
    }
    if facts.has_failed {
        return None;
    }
    if let Some(detail) = &facts.failed {
        return failed(match detail.as_str() {
            "" => "it failed".to_owned(),
            detail => format!("it failed: {detail}"),
        });
    }
    let is_followed = facts.is_followed || followed == Followed::Now;
    // Whoever waits for approval is not late, and a boot that was not sent all of its
    // first stage says nothing of the version.
    let sent = facts.sent.filter(|_| !facts.was_held);
    let Some(since) = facts.redeemed.or(sent) else {
        return is_followed.then_some(Verdict::Void);
    };
    let limit = SignedDuration::try_from(facts.limit).unwrap_or(SignedDuration::MAX);
    if now.duration_since(since) > limit {
        return failed(format!("it was not up within {} s", facts.limit.as_secs()));
    }
    if is_followed {
        return failed("the machine started anew before it was up".to_owned());
    }
    None
}

fn failed(reason: String) -> Option<Verdict> {
    Some(Verdict::Failed { reason })
}

/// Judges all boots that can be judged, and tells machines that wait when that
/// changes what they are to run next.
pub(super) async fn judge_all(app: &App) {
    judge(app, None, |_| Followed::ByRows).await;
}

/// Judges the boots of a node that asks for a script, but for the one that goes on.
pub(super) async fn judge_earlier(app: &App, node: &NodeName, goes_on: Option<&str>) {
    judge(app, Some(node), |facts| match goes_on {
        Some(boot) if boot == facts.boot => Followed::ByRows,
        _ => Followed::Now,
    })
    .await;
}

async fn judge(app: &App, node: Option<&NodeName>, followed: impl Fn(&BootFacts) -> Followed) {
    let boots = match app.catalog.boots_to_judge(node).await {
        Ok(boots) => boots,
        Err(error) => {
            tracing::warn!(error = chain(&error), "boots not judged");
            return;
        }
    };
    let now = Timestamp::now();
    let mut is_changed = false;
    for facts in boots {
        let Some(verdict) = verdict(&facts, followed(&facts), now) else {
            continue;
        };
        match app.catalog.judge_boot(&facts.boot, &verdict, now).await {
            Ok(()) => {
                is_changed = true;
                note(app, &facts, &verdict, now).await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "boot not judged"),
        }
    }
    if is_changed {
        app.nodes.note_version_change();
    }
}

/// Writes a failure that the machine did not tell of itself into its transcript.
async fn note(app: &App, facts: &BootFacts, verdict: &Verdict, now: Timestamp) {
    let Verdict::Failed { reason } = verdict else {
        return;
    };
    tracing::warn!(
        node = %facts.node,
        boot = facts.boot,
        version = %facts.version,
        reason,
        "boot failed"
    );
    if facts.failed.is_some() {
        return;
    }
    let row = StepRow {
        step: name_of(BootStep::Failed),
        time: now,
        uptime_ms: None,
        bytes: 0,
        detail: reason.clone(),
    };
    if let Err(error) = app.catalog.add_steps(&facts.boot, &[row]).await {
        tracing::warn!(
            boot = facts.boot,
            error = chain(&error),
            "failure not noted"
        );
    }
    if let Err(error) = nodes::tell_status(app, &facts.node).await {
        tracing::debug!(node = %facts.node, detail = error.0.detail, "no status of a node");
    }
}

/// How long boots with these settings have.
pub(crate) fn limit(settings: &Settings) -> TimeLimit {
    settings.boot_limit.unwrap_or(nodes::BOOT_LIMIT)
}

/// What a node is to boot instead of a version that it does not come up with. `rows`
/// are the node's, what it came up with last first. A personal volume stays what it
/// is, whatever becomes of it.
pub(crate) fn abandoned(
    rows: &[VersionHealthRow],
    settings: &Settings,
    assigned: &VersionRow,
) -> Option<Abandoned> {
    if settings.has_volume() {
        return None;
    }
    let is_assigned = |row: &&VersionHealthRow| row.is_of(&assigned.image, assigned.number);
    let (at, reason) = rows.iter().find(is_assigned)?.failed.clone()?;
    let good = rows.iter().find(|row| row.good.is_some());
    Some(Abandoned {
        version: assigned.spec(),
        at: at.to_string(),
        reason,
        instead: good.map(|row| row.version.clone()),
    })
}

/// What a node boots: the version that is assigned to it, or what it goes back to.
pub(super) struct Chosen {
    pub(super) version: VersionRow,
    /// Why it is not the one that is assigned.
    pub(super) abandoned: Option<Abandoned>,
}

/// Chooses what a node boots.
pub(super) async fn choose(
    app: &App,
    node: &NodeName,
    settings: &Settings,
    assigned: VersionRow,
) -> Result<Chosen, ApiError> {
    let rows = app.catalog.version_health(node).await?;
    let abandoned = abandoned(&rows, settings, &assigned);
    let instead = abandoned.as_ref().and_then(|it| it.instead.as_ref());
    let instead = match instead {
        Some(spec) => recipes::version_if_any(app, spec).await?,
        None => None,
    };
    Ok(match instead {
        Some(version) => Chosen { version, abandoned },
        None => Chosen {
            version: assigned,
            abandoned: None,
        },
    })
}

/// What became of versions, by node.
pub(crate) async fn by_node(
    app: &App,
) -> Result<HashMap<NodeName, Vec<VersionHealthRow>>, ApiError> {
    let mut by_node: HashMap<_, Vec<_>> = HashMap::new();
    for row in app.catalog.all_version_health().await? {
        by_node.entry(row.node.clone()).or_default().push(row);
    }
    Ok(by_node)
}

/// Why a node boots what it boots, for its transcript.
pub(super) fn says(
    version: &VersionSpec,
    node: &NodeName,
    abandoned: Option<&Abandoned>,
) -> String {
    match abandoned {
        None => version.to_string(),
        Some(Abandoned {
            version: other,
            reason,
            ..
        }) => format!(
            "{version}, since {other} is abandoned here ({reason}): set another image, or try \
             it again with `rootstock node retry {node}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn facts() -> BootFacts {
        BootFacts {
            boot: "b".to_owned(),
            node: "n1".parse().expect("a name"),
            version: "lab:2".parse().expect("a version"),
            limit: Duration::from_secs(600),
            has_failed: false,
            up: None,
            failed: None,
            sent: Some(at(0)),
            redeemed: None,
            was_held: false,
            is_followed: false,
        }
    }

    #[test]
    fn boots_are_judged_by_what_is_certain() {
        use Followed::{ByRows, Now};
        let good = Some(Verdict::Good { up: at(9) });
        let late = failed("it was not up within 600 s".to_owned());
        let anew = failed("the machine started anew before it was up".to_owned());
        let said = failed("it failed: no root".to_owned());
        let held = BootFacts {
            was_held: true,
            ..facts()
        };
        let unsent = BootFacts {
            sent: None,
            ..facts()
        };
        let redeemed = |facts: BootFacts| BootFacts {
            redeemed: Some(at(500)),
            ..facts
        };
        let followed = |facts: BootFacts| BootFacts {
            is_followed: true,
            ..facts
        };
        let up = BootFacts {
            up: Some(at(9)),
            failed: Some("x".to_owned()),
            has_failed: true,
            ..facts()
        };
        let tells = BootFacts {
            failed: Some("no root".to_owned()),
            ..facts()
        };
        let judged = BootFacts {
            has_failed: true,
            ..facts()
        };
        for (index, (facts, how, second, expected)) in [
            (facts(), ByRows, 600, None),
            (facts(), ByRows, 601, late.clone()),
            (facts(), Now, 20, anew.clone()),
            (followed(facts()), ByRows, 20, anew.clone()),
            (redeemed(facts()), ByRows, 1100, None),
            (redeemed(facts()), ByRows, 1101, late.clone()),
            (held.clone(), ByRows, 90_000, None),
            (followed(held.clone()), ByRows, 20, Some(Verdict::Void)),
            (redeemed(held), ByRows, 1101, late),
            (unsent.clone(), ByRows, 90_000, None),
            (unsent, Now, 20, Some(Verdict::Void)),
            (tells, ByRows, 20, said),
            (judged, Now, 90_000, None),
            (followed(up), Now, 90_000, good),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(verdict(&facts, how, at(second)), expected, "{index}");
        }
    }
}
