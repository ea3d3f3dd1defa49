//! What a version boots with, and where it comes from.

use std::{future::Future, pin::Pin, sync::Arc};

use rootstock_api::{boot::RootPlace, settings::Settings};
use rootstock_catalog::VersionRow;

use super::body::Content;
use crate::app::App;

/// What a version boots with.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// Its kernel.
    pub(crate) kernel: Content,
    /// The first stage made for it.
    pub(crate) initrd: Content,
    /// The kernel's release, such as `6.1.0-30-amd64`.
    pub(crate) kernel_version: String,
    /// Where its root is.
    pub(crate) root: RootPlace,
    /// Arguments that the image itself gives its kernel.
    pub(crate) arguments: Vec<String>,
}

/// Makes stages, or has them. The error is a sentence for an administrator.
pub(crate) trait Stages: Send + Sync {
    /// The stage of a version with a node's settings.
    fn get<'a>(
        &'a self,
        app: &'a Arc<App>,
        version: &'a VersionRow,
        settings: &'a Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Stage, String>> + Send + 'a>>;
}
