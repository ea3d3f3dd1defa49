//! What personal machines open over NBD: their own volume, under a name of one boot.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rootstock_api::boot::NodeMode;
use rootstock_core::{Digest, VolumeName};
use tokio::runtime::Handle;

use super::{networks::Network, orders};
use crate::{
    app::App,
    exports::DaemonExports,
    http::ApiError,
    nbd::{ExportError, Exports, OpenExport},
};

/// What the names of boots' exports begin with.
const PREFIX: &str = "session/";

/// The exports of boots. They are not listed, and nothing else is exported here.
pub(crate) struct SessionExports {
    app: Arc<App>,
    runtime: Handle,
    daemon: DaemonExports,
}

impl SessionExports {
    pub(crate) fn new(app: &Arc<App>, runtime: Handle) -> Self {
        Self {
            app: Arc::clone(app),
            daemon: DaemonExports {
                app: Arc::clone(app),
                runtime: runtime.clone(),
            },
            runtime,
        }
    }

    /// The volume of the boot with this export. A boot's export has the same name
    /// again when the daemon has restarted, so nothing needs to be kept for it.
    async fn volume_of(&self, name: &str) -> Result<Option<VolumeName>, ApiError> {
        for (boot, _) in self.app.catalog.last_boots().await? {
            let is_open = boot.ended.is_none() && boot.redeemed.is_some();
            if !is_open || export_name(&self.app.key, &boot.id) != name {
                continue;
            }
            let node = self.app.catalog.node(&boot.node).await?;
            let settings = orders::settings(&self.app, &node, &Network::default()).await?;
            // Its order named the export, wherever a later boot is to write.
            if settings.mode == Some(NodeMode::Personal) {
                return orders::volume_of(&node.name, &settings).map(Some);
            }
        }
        Ok(None)
    }
}

impl Exports for SessionExports {
    fn list(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, name: &str, client: &str) -> Result<OpenExport, ExportError> {
        let refused = |error: ApiError| ExportError::Refused {
            reason: error.0.to_string(),
        };
        let unknown = || ExportError::Unknown {
            name: name.chars().take(200).collect(),
        };
        if !name.starts_with(PREFIX) {
            return Err(unknown());
        }
        let volume = self.runtime.block_on(self.volume_of(name));
        let volume = volume.map_err(refused)?.ok_or_else(unknown)?;
        self.daemon.volume(&volume, client).map_err(refused)
    }
}

/// The export of a boot: nobody without the site's key can tell it.
pub(crate) fn export_name(site: &SigningKey, boot: &str) -> String {
    let mut text = b"rootstock session export\0".to_vec();
    text.extend_from_slice(&site.to_bytes());
    text.extend_from_slice(boot.as_bytes());
    let digest = Digest::of(&text).to_string();
    format!("{PREFIX}{}", &digest[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boot_has_its_own_export() {
        let site = SigningKey::from_bytes(&[1; 32]);
        let name = export_name(&site, "b1");
        assert!(
            name.starts_with(PREFIX) && name.len() == PREFIX.len() + 32,
            "{name}"
        );
        assert_eq!(name, export_name(&site, "b1"));
        assert_ne!(name, export_name(&site, "b2"));
        assert_ne!(name, export_name(&SigningKey::from_bytes(&[2; 32]), "b1"));
    }
}
