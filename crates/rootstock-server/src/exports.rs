//! What NBD clients can open: versions and volumes, each with its lease.

use std::{any::Any, sync::Arc};

use rootstock_api::HolderKind;
use rootstock_core::{VersionSelector, VersionSpec, VolumeName};
use tokio::runtime::Handle;

use crate::{
    app::App,
    http::{ApiError, lease},
    leases::{Key, Lease},
    nbd::{ExportError, Exports, OpenExport},
    volumes::{self, InUse},
};

/// The most exports in a list.
pub(crate) const LIST_MAX: usize = 4096;

/// The daemon's exports. NBD connections have threads of their own, so that they
/// may wait here for the catalog.
pub(crate) struct DaemonExports {
    pub(crate) app: Arc<App>,
    pub(crate) runtime: Handle,
}

/// What an export's name means.
enum Target {
    Version(VersionSpec),
    Volume(VolumeName),
}

/// What a connection to a volume holds: dropped in this order, so that the volume
/// is closed before somebody may delete it.
struct VolumeLease {
    _open: InUse,
    _lease: Lease,
}

impl Exports for DaemonExports {
    fn list(&self) -> Vec<String> {
        match self.runtime.block_on(names(&self.app)) {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(detail = error.0.detail, "exports not listed");
                Vec::new()
            }
        }
    }

    fn open(&self, name: &str, client: &str) -> Result<OpenExport, ExportError> {
        let Some(target) = parse(name) else {
            return Err(ExportError::Unknown {
                name: name.chars().take(200).collect(),
            });
        };
        let opened = match target {
            Target::Version(spec) => self.version(&spec, client),
            Target::Volume(volume) => self.volume(&volume, client),
        };
        opened.map_err(|error| ExportError::Refused {
            reason: error.0.to_string(),
        })
    }
}

impl DaemonExports {
    /// Opens a version for a client, whatever the name it asked for.
    pub(crate) fn version(&self, spec: &VersionSpec, client: &str) -> Result<OpenExport, ApiError> {
        let leased = lease(&self.app, spec, HolderKind::Client, client);
        let (row, lease) = self.runtime.block_on(leased)?;
        let device = self.app.volumes.version_disk(row.manifest)?;
        Ok(OpenExport {
            device,
            description: format!("version {}, read-only", row.spec()),
            lease: Box::new(lease) as Box<dyn Any + Send>,
        })
    }

    /// Opens a volume for a client, whatever the name it asked for.
    pub(crate) fn volume(&self, name: &VolumeName, client: &str) -> Result<OpenExport, ApiError> {
        let key = Key::Volume(name.clone());
        let lease = self.app.leases.take(key, HolderKind::Client, client)?;
        let open = self.runtime.block_on(volumes::open(&self.app, name))?;
        Ok(OpenExport {
            device: Arc::clone(&open.volume) as Arc<_>,
            description: format!("volume {name}"),
            lease: Box::new(VolumeLease {
                _open: open,
                _lease: lease,
            }),
        })
    }
}

/// All names, as they are listed: versions by number, then volumes.
pub(crate) async fn names(app: &App) -> Result<Vec<String>, ApiError> {
    let versions = app.catalog.all_versions().await?;
    let volumes = app.catalog.volumes().await?;
    let versions = versions.iter().map(|row| format!("image/{}", row.spec()));
    let volumes = volumes.iter().map(|row| volume_name(&row.name));
    Ok(volumes.chain(versions).take(LIST_MAX).collect())
}

/// The name under which a volume is exported.
pub(crate) fn volume_name(volume: &VolumeName) -> String {
    format!("volume/{volume}")
}

fn parse(name: &str) -> Option<Target> {
    if let Some(volume) = name.strip_prefix("volume/") {
        return volume.parse().ok().map(Target::Volume);
    }
    let version = name.strip_prefix("image/")?;
    if let Some(image) = version.strip_suffix(":latest") {
        return Some(Target::Version(VersionSpec {
            image: image.parse().ok()?,
            selector: VersionSelector::Latest,
        }));
    }
    version.parse().ok().map(Target::Version)
}

/// The export that a lease is about.
pub(crate) fn export_of(key: &Key) -> String {
    match key {
        Key::Version(image, version) => format!("image/{image}:{version}"),
        Key::Volume(volume) => volume_name(volume),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_versions_and_volumes() {
        for (name, expected) in [
            ("volume/seat-1", Some("volume seat-1")),
            ("image/lab", Some("version lab")),
            ("image/lab:latest", Some("version lab")),
            ("image/lab:3", Some("version lab:3")),
            ("image/lab@production", Some("version lab@production")),
            ("image/lab:@production", Some("version lab@production")),
            ("", None),
            ("lab", None),
            ("image/", None),
            ("image/a/b", None),
            ("image/lab:0", None),
            ("volume/", None),
            ("volume/../etc", None),
        ] {
            let meant = parse(name).map(|target| match target {
                Target::Version(spec) => format!("version {spec}"),
                Target::Volume(volume) => format!("volume {volume}"),
            });
            assert_eq!(meant.as_deref(), expected, "{name}");
        }
    }
}
