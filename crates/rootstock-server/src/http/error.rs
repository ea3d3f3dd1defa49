//! Every error as a problem document (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use rootstock_api::{Holder, HolderKind, PROBLEM_MEDIA_TYPE, Problem, ProblemCode};
use rootstock_catalog::CatalogError;
use rootstock_core::chain;
use rootstock_store::{CollectError, PutError, ReadError};

/// A problem on its way to the client.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Box<Problem>);

impl ApiError {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// A failure of the daemon itself: the client learns that it happened, the
    /// log says why.
    pub(crate) fn internal(doing: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(doing, error = chain(error), "request failed");
        Self::new(
            ProblemCode::Internal,
            format!("the daemon failed to {doing}"),
        )
        .with_hint("look into the daemon's log")
    }

    /// What is stored cannot be read any more.
    pub(crate) fn damaged(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Damaged, detail)
            .with_hint("import the image again from its source: damaged chunks are stored anew")
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        (*self.0).with_hint(hint).into()
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(*self.0)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(PROBLEM_MEDIA_TYPE),
        );
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 11.6.1: a 401 says how to do better.
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let detail = error.to_string();
        let (code, hint) = match &error {
            CatalogError::ImageNotFound { .. } => (
                ProblemCode::ImageNotFound,
                "`rootstock image list` shows the images",
            ),
            CatalogError::NoVersions { .. } | CatalogError::VersionNotFound { .. } => (
                ProblemCode::VersionNotFound,
                "`rootstock image show` shows the versions",
            ),
            CatalogError::TagNotFound { .. } => (
                ProblemCode::TagNotFound,
                "`rootstock image show` shows the tags",
            ),
            CatalogError::VolumeNotFound { .. } => (
                ProblemCode::VolumeNotFound,
                "`rootstock volume list` shows the volumes",
            ),
            CatalogError::NodeNotFound { .. } => (
                ProblemCode::NodeNotFound,
                "`rootstock node list` shows the nodes",
            ),
            CatalogError::ProfileNotFound { .. } => (
                ProblemCode::ProfileNotFound,
                "`rootstock profile list` shows the profiles",
            ),
            CatalogError::BootNotFound { .. } => (
                ProblemCode::BootNotFound,
                "`rootstock node log` shows a node's last boots",
            ),
            CatalogError::RolloutNotFound { .. } => (
                ProblemCode::RolloutNotFound,
                "`rootstock rollout list` shows the rollouts",
            ),
            CatalogError::RolloutOver { .. } => (
                ProblemCode::BadValue,
                "`rootstock rollout start` begins another one",
            ),
            CatalogError::InRollout { .. } => (
                ProblemCode::Busy,
                "wait for its end, or end it with `rootstock rollout abort`",
            ),
            CatalogError::NothingBefore { .. } => (ProblemCode::BadValue, "set what it is to have"),
            CatalogError::MacTaken { .. } | CatalogError::Taken { .. } => {
                (ProblemCode::Exists, "`rootstock node show` shows that node")
            }
            CatalogError::NoNameLeft { .. } => (
                ProblemCode::BadValue,
                "delete nodes that are gone, or give the network a longer `names`",
            ),
            CatalogError::Cycle { .. } => (ProblemCode::BadValue, "choose another parent"),
            CatalogError::TooDeep { .. } => (ProblemCode::BadValue, "inherit through fewer"),
            CatalogError::ImportNotFound { .. } => {
                (ProblemCode::ImportNotFound, "start the import again")
            }
            CatalogError::TokenNotFound { .. } => (
                ProblemCode::TokenNotFound,
                "`rootstock token list` shows the tokens",
            ),
            CatalogError::Exists { .. } => (ProblemCode::Exists, "choose another name"),
            CatalogError::Full { .. } => (ProblemCode::BadValue, "delete some first"),
            CatalogError::InUse { holders, .. }
            | CatalogError::ImageInUse { holders, .. }
            | CatalogError::TagInUse { holders, .. }
            | CatalogError::ProfileInUse { holders, .. } => {
                let hint = in_use_hint(holders);
                let holders = holders.iter().map(holder).collect();
                return Problem::new(ProblemCode::InUse, detail)
                    .with_hint(hint)
                    .with_holders(holders)
                    .into();
            }
            CatalogError::Corrupt { .. } => return Self::internal("read the catalog", &error),
            CatalogError::Database { source, .. } if is_full(source) => (
                ProblemCode::NoSpace,
                "free space on the disk of the data directory, then try again",
            ),
            CatalogError::Database { .. } => return Self::internal("use the catalog", &error),
        };
        Self::new(code, detail).with_hint(hint)
    }
}

fn in_use_hint(holders: &[rootstock_catalog::Holder]) -> &'static str {
    use rootstock_catalog::Holder::{Node, Profile, Rollout, Tag, Volume};
    let of_nodes = |holder: &_| matches!(holder, Node(_) | Profile(_));
    let of_images = |holder: &_| matches!(holder, Tag(_) | Volume(_));
    if holders.iter().any(|holder| matches!(holder, Rollout(_))) {
        "wait until the rollout is over, or end it with `rootstock rollout abort`"
    } else if holders.iter().all(of_images) {
        "remove the tags and delete the volumes that need it first"
    } else if holders.iter().all(of_nodes) {
        "set the nodes and profiles that need it to something else first, and let running nodes boot anew"
    } else {
        "remove the tags, delete the volumes, and set the nodes and profiles that need it to something else first"
    }
}

fn holder(holder: &rootstock_catalog::Holder) -> Holder {
    match holder {
        rootstock_catalog::Holder::Node(node) => Holder {
            kind: HolderKind::Node,
            name: node.to_string(),
        },
        rootstock_catalog::Holder::Profile(profile) => Holder {
            kind: HolderKind::Profile,
            name: profile.to_string(),
        },
        rootstock_catalog::Holder::Rollout(rollout) => Holder {
            kind: HolderKind::Rollout,
            name: rollout.to_string(),
        },
        rootstock_catalog::Holder::Initiator(initiator) => Holder {
            kind: HolderKind::Initiator,
            name: initiator.clone(),
        },
        rootstock_catalog::Holder::Tag(tag) => Holder {
            kind: HolderKind::Tag,
            name: tag.to_string(),
        },
        rootstock_catalog::Holder::Volume(volume) => Holder {
            kind: HolderKind::Volume,
            name: volume.to_string(),
        },
    }
}

/// SQLite says it in words only (SQLITE_FULL).
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    error.to_string().contains("disk is full")
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        let code = match &error {
            PutError::Frame { .. } => ProblemCode::BadChunk,
            PutError::NoSpace { .. } => ProblemCode::NoSpace,
            PutError::Io { .. } => ProblemCode::Internal,
        };
        if code == ProblemCode::BadChunk {
            return Self::new(code, chain(&error)).with_hint("send the chunk again");
        }
        tracing::error!(error = chain(&error), "store refused a chunk");
        Self::new(code, error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let code = match &error {
            ReadError::Missing { .. } => ProblemCode::ChunkNotFound,
            ReadError::Damaged(_) => ProblemCode::Damaged,
            ReadError::Io { .. } => ProblemCode::Internal,
        };
        if code != ProblemCode::ChunkNotFound {
            tracing::error!(error = chain(&error), "store cannot read a chunk");
        }
        if code == ProblemCode::Damaged {
            return Self::damaged(error.to_string());
        }
        let problem = Self::new(code, error.to_string());
        if code == ProblemCode::ChunkNotFound {
            return problem.with_hint("if a version needs it, import its image again");
        }
        problem
    }
}

impl From<CollectError> for ApiError {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Busy => Self::new(ProblemCode::Busy, error.to_string()),
            CollectError::Put(error) => error.into(),
        }
    }
}
