//! What machines say of themselves now and then.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use jiff::Timestamp;
use rootstock_api::{
    NodeEvent,
    boot::{BootStep, NodeReport, ReportAnswer},
};

use super::{Machine, json, plain, up};
use crate::{
    app::App,
    boot::{
        installs,
        sessions::{REPORT_SECONDS, Reported, Session},
        transcript::Told,
    },
    http::{ApiError, chain},
};

/// Keeps a report with the machine's session, and tells whoever watches.
pub(super) async fn report(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Json<ReportAnswer>, ApiError> {
    let report = presentable(json(request).await?);
    let session = &machine.session;
    if let Some(install) = &report.install
        && let Some(detail) = installs::reported(&app, session, install).await?
    {
        note_once(&app, session, detail).await;
    }
    app.nodes.tell_watchers(|| NodeEvent::Report {
        node: session.node.clone(),
        report: report.clone(),
    });
    let Reported { came_up, cache_off } = session.reported(report);
    if let Some(detail) = cache_off {
        note_once(&app, session, detail).await;
    }
    if let Err(error) = app
        .catalog
        .touch_node(&session.node, Timestamp::now())
        .await
    {
        tracing::warn!(node = %session.node, error = chain(&error), "node not touched");
    }
    let last = app.boot.transcripts.last(session.mac);
    if came_up && last != Some(BootStep::Up) {
        let told = Told::new(BootStep::Up, "");
        app.boot.transcripts.step(session.mac, told);
        up(&app, session).await;
    }
    Ok(Json(ReportAnswer {
        report_seconds: REPORT_SECONDS,
    }))
}

/// What a machine says is shown on terminals.
fn presentable(mut report: NodeReport) -> NodeReport {
    if let Some(disk) = &mut report.disk_cache {
        disk.device = plain(&disk.device);
        disk.off = disk.off.as_deref().map(plain);
        if let Some(next) = &mut disk.next {
            next.trouble = next.trouble.as_deref().map(plain);
        }
        if let Some(start) = &mut disk.start {
            start.trouble = start.trouble.as_deref().map(plain);
        }
    }
    if let Some(install) = &mut report.install {
        install.device = plain(&install.device);
        install.reason = install.reason.as_deref().map(plain);
    }
    report
}

/// Notes something of a boot that an earlier daemon may have noted already.
async fn note_once(app: &App, session: &Session, detail: String) {
    let boot = &session.boot;
    let is_there = match app.catalog.boot_transcript(boot).await {
        Ok((_, steps)) => steps.iter().any(|step| step.detail == detail),
        Err(error) => {
            tracing::warn!(boot, error = chain(&error), "transcript not read");
            false
        }
    };
    if !is_there {
        tracing::warn!(node = %session.node, boot, detail, "noted of a node");
        app.boot.transcripts.note(boot, detail);
    }
}
