//! Profiles.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use rootstock_api::{
    ChangeReport, NamedChange, Problem, ProblemCode, Profile, ProfileCreate, ProfileList,
    ProfileRollback, ProfileSet, Setting, paths,
};
use rootstock_catalog::{NewProfile, Pass, ProfileRow};
use rootstock_core::ProfileName;

use super::nodes::{apply, push_change, settings_difference};
use crate::{
    app::App,
    http::{
        ApiError,
        extract::{ApiJson, ApiPath},
    },
    nodes::{self, Profiles},
};

/// All profiles
#[utoipa::path(get, path = paths::PROFILES, tag = "profiles", operation_id = "profile_list", responses(
    (status = 200, body = ProfileList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<ProfileList>, ApiError> {
    let rows = app.catalog.profiles().await?;
    Ok(ApiJson(ProfileList {
        profiles: describe(&app, rows).await?,
    }))
}

/// Makes a profile
#[utoipa::path(post, path = paths::PROFILES, tag = "profiles", operation_id = "profile_create",
    request_body = ProfileCreate,
    responses((status = 201, body = Profile), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<ProfileCreate>,
) -> Result<(StatusCode, ApiJson<Profile>), ApiError> {
    nodes::check_settings(&request.settings)?;
    let new = NewProfile {
        name: request.name.clone(),
        parent: request.parent,
        settings: nodes::write_settings(&request.settings)?,
        image: request.settings.image,
    };
    app.catalog.add_profile(&new, Timestamp::now()).await?;
    app.nodes.note_change();
    let shown = show(State(app), ApiPath(request.name)).await?;
    Ok((StatusCode::CREATED, shown))
}

/// A profile
#[utoipa::path(get, path = paths::PROFILE, tag = "profiles", operation_id = "profile_show",
    params(("profile" = String, Path, description = "The profile's name")),
    responses((status = 200, body = Profile), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(profile): ApiPath<ProfileName>,
) -> Result<ApiJson<Profile>, ApiError> {
    let row = app.catalog.profile(&profile).await?;
    let mut described = describe(&app, vec![row]).await?;
    let profile = described.pop();
    profile.map(ApiJson).ok_or_else(|| {
        ApiError::new(
            ProblemCode::ProfileNotFound,
            "the profile was deleted meanwhile",
        )
    })
}

/// Changes a profile, or works out what a change would do
#[utoipa::path(patch, path = paths::PROFILE, tag = "profiles", operation_id = "profile_set",
    params(("profile" = String, Path, description = "The profile's name")),
    request_body = ProfileSet,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    ApiPath(profile): ApiPath<ProfileName>,
    ApiJson(request): ApiJson<ProfileSet>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    nodes::check_settings(&request.set)?;
    let pass = if request.dry_run {
        Pass::DryRun
    } else {
        Pass::Keep
    };
    let changed = app.catalog.update_profile(&profile, pass, |row| {
        apply(&mut row.parent, &request.parent);
        nodes::edit_settings(&mut row.settings, &request.set, &request.unset);
        if request.set.image.is_some() || request.unset.contains(&Setting::Image) {
            row.image.clone_from(&request.set.image);
        }
    });
    let (before, after) = changed.await?;
    if pass == Pass::Keep {
        app.nodes.note_change();
    }
    changed_as(&before, &after, pass)
}

/// Brings a profile back to the image that was set on it before, or works out what
/// that would do
#[utoipa::path(post, path = paths::PROFILE_ROLLBACK, tag = "profiles",
    operation_id = "profile_rollback",
    params(("profile" = String, Path, description = "The profile's name")),
    request_body = ProfileRollback,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn rollback(
    State(app): State<Arc<App>>,
    ApiPath(profile): ApiPath<ProfileName>,
    ApiJson(request): ApiJson<ProfileRollback>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let pass = if request.dry_run {
        Pass::DryRun
    } else {
        Pass::Keep
    };
    let rolled = app.catalog.roll_profile_back(&profile, pass, |row, image| {
        nodes::assign(&mut row.settings, image.as_ref());
        row.image = image;
    });
    let (before, after) = rolled.await?;
    if pass == Pass::Keep {
        app.nodes.note_change();
    }
    changed_as(&before, &after, pass)
}

fn changed_as(
    before: &ProfileRow,
    after: &ProfileRow,
    pass: Pass,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let mut fields = Vec::new();
    let parent = |row: &ProfileRow| row.parent.as_ref().map(ProfileName::to_string);
    push_change(&mut fields, "parent", parent(before), parent(after));
    settings_difference(&mut fields, &before.settings, &after.settings)?;
    let change = NamedChange {
        name: after.name.to_string(),
        is_new: false,
        fields,
    };
    Ok(ApiJson(ChangeReport {
        changes: Some(change)
            .filter(|change| !change.fields.is_empty())
            .into_iter()
            .collect(),
        applied: pass == Pass::Keep,
        running: Vec::new(),
    }))
}

/// Deletes a profile that nothing inherits from
#[utoipa::path(delete, path = paths::PROFILE, tag = "profiles", operation_id = "profile_delete",
    params(("profile" = String, Path, description = "The profile's name")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    ApiPath(profile): ApiPath<ProfileName>,
) -> Result<StatusCode, ApiError> {
    app.catalog.delete_profile(&profile).await?;
    app.nodes.note_change();
    Ok(StatusCode::NO_CONTENT)
}

async fn describe(app: &App, rows: Vec<ProfileRow>) -> Result<Vec<Profile>, ApiError> {
    let profiles = Profiles::read(app).await?;
    let nodes = app.catalog.nodes().await?;
    let row = |row: ProfileRow| {
        let effective = profiles.effective(&row.name);
        let heirs = nodes
            .iter()
            .filter(|node| node.profile.as_ref() == Some(&row.name));
        Ok(Profile {
            settings: nodes::read_settings(&row.settings)?,
            origins: effective.named_origins(),
            effective: effective.settings,
            node_count: heirs.count() as u64,
            created: row.created.to_string(),
            name: row.name,
            parent: row.parent,
        })
    };
    rows.into_iter().map(row).collect()
}
