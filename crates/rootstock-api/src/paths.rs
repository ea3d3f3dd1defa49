//! The paths of the HTTP API: what the server routes and what the client asks for.
//!
//! Names have no character that a path would escape, so builders only join.

use rootstock_core::{
    ImageName, InstallerName, NameError, NodeName, ProfileName, TagName, VersionNumber,
    VersionSelector, VolumeName,
};

/// Whether the daemon is up; needs no token.
pub const HEALTHZ: &str = "/healthz";
/// Prometheus metrics.
pub const METRICS: &str = "/metrics";
/// This API's OpenAPI 3.1 document; needs no token.
pub const OPENAPI: &str = "/openapi.json";
/// The site: release, public key, caller's role.
pub const SITE: &str = "/v1/site";
/// All images.
pub const IMAGES: &str = "/v1/images";
/// One image.
pub const IMAGE: &str = "/v1/images/{image}";
/// What happened to an image.
pub const IMAGE_HISTORY: &str = "/v1/images/{image}/history";
/// PUT: whether versions of an image may be roots over NFS.
pub const IMAGE_NFS: &str = "/v1/images/{image}/nfs";
/// A tag of an image.
pub const IMAGE_TAG: &str = "/v1/images/{image}/tags/{tag}";
/// POST: points a tag at the version that it pointed at before.
pub const IMAGE_TAG_ROLLBACK: &str = "/v1/images/{image}/tags/{tag}/rollback";
/// A version: its number, `latest` or `@tag`.
pub const VERSION: &str = "/v1/images/{image}/versions/{version}";
/// A version's root document, with its seal in a header.
pub const MANIFEST: &str = "/v1/images/{image}/versions/{version}/manifest";
/// Re-reads a version.
pub const VERIFY: &str = "/v1/images/{image}/versions/{version}/verify";
/// What a holder of one version must fetch for another: `?from=lab:1&to=lab:2`.
pub const DIFF: &str = "/v1/diff";
/// Recipes, and the making of them.
pub const RECIPES: &str = "/v1/recipes";
/// Open imports.
pub const IMPORTS: &str = "/v1/imports";
/// One open import.
pub const IMPORT: &str = "/v1/imports/{import}";
/// Which of these chunks the store lacks.
pub const IMPORT_LACKING: &str = "/v1/imports/{import}/lacking";
/// Chunks for the store.
pub const IMPORT_CHUNKS: &str = "/v1/imports/{import}/chunks";
/// Makes the import a version.
pub const IMPORT_COMMIT: &str = "/v1/imports/{import}/commit";
/// Fetches chunks by id.
pub const CHUNKS_FETCH: &str = "/v1/chunks/fetch";
/// All volumes.
pub const VOLUMES: &str = "/v1/volumes";
/// One volume.
pub const VOLUME: &str = "/v1/volumes/{volume}";
/// Makes a volume larger.
pub const VOLUME_RESIZE: &str = "/v1/volumes/{volume}/resize";
/// Drops what was written to a volume.
pub const VOLUME_RESET: &str = "/v1/volumes/{volume}/reset";
/// Copies a volume as it is now into a new one.
pub const VOLUME_SNAPSHOT: &str = "/v1/volumes/{volume}/snapshot";
/// Shares a volume over iSCSI.
pub const VOLUME_SHARE: &str = "/v1/volumes/{volume}/share";
/// Ends a share.
pub const VOLUME_UNSHARE: &str = "/v1/volumes/{volume}/unshare";
/// Shares a version with an iSCSI initiator.
pub const VERSION_SHARE: &str = "/v1/images/{image}/versions/{version}/share";
/// Ends such a share.
pub const VERSION_UNSHARE: &str = "/v1/images/{image}/versions/{version}/unshare";
/// Makes a volume's contents a new version.
pub const VOLUME_COMMIT: &str = "/v1/volumes/{volume}/commit";
/// All nodes; PATCH changes those of a host list.
pub const NODES: &str = "/v1/nodes";
/// How nodes do, live: a line for each change.
pub const NODES_WATCH: &str = "/v1/nodes/watch";
/// All nodes as text: `?format=csv`.
pub const NODES_EXPORT: &str = "/v1/nodes/export";
/// Adds and changes nodes so that they are as a text says.
pub const NODES_IMPORT: &str = "/v1/nodes/import";
/// Lets held nodes boot.
pub const NODES_APPROVE: &str = "/v1/nodes/approve";
/// Deletes nodes.
pub const NODES_DELETE: &str = "/v1/nodes/delete";
/// POST: brings nodes back to the image before.
pub const NODES_ROLLBACK: &str = "/v1/nodes/rollback";
/// POST: starts machines anew.
pub const NODES_REBOOT: &str = "/v1/nodes/reboot";
/// POST: wakes machines up.
pub const NODES_WAKE: &str = "/v1/nodes/wake";
/// POST: lets nodes try versions again that failed there.
pub const NODES_RETRY: &str = "/v1/nodes/retry";
/// POST: has nodes lay their image out on their disk anew.
pub const NODES_REINSTALL: &str = "/v1/nodes/reinstall";
/// POST: has nodes run an installer at their next boot.
pub const NODES_INSTALL: &str = "/v1/nodes/install";
/// POST: has nodes run no installer.
pub const NODES_INSTALL_CANCEL: &str = "/v1/nodes/install-cancel";
/// One node.
pub const NODE: &str = "/v1/nodes/{node}";
/// A node's boots: `?limit=1`.
pub const NODE_BOOTS: &str = "/v1/nodes/{node}/boots";
/// POST: has a node's writes made a version; GET: how far that is; DELETE: gives it up.
pub const NODE_COMMIT: &str = "/v1/nodes/{node}/commit";
/// POST: has another machine take a node's place.
pub const NODE_REPLACE: &str = "/v1/nodes/{node}/replace";
/// POST: has personal machines drop what they wrote.
pub const NODES_RESET: &str = "/v1/nodes/reset";
/// Names that no node can have: paths have them.
pub const NODE_NAMES_RESERVED: [&str; 13] = [
    "watch",
    "export",
    "import",
    "approve",
    "delete",
    "retry",
    "reboot",
    "wake",
    "rollback",
    "reinstall",
    "reset",
    "install",
    "install-cancel",
];
/// All installers.
pub const INSTALLERS: &str = "/v1/installers";
/// One installer.
pub const INSTALLER: &str = "/v1/installers/{installer}";
/// POST: what an installer would be given on a node.
pub const INSTALLER_RENDER: &str = "/v1/installers/{installer}/render";
/// All profiles.
pub const PROFILES: &str = "/v1/profiles";
/// One profile.
pub const PROFILE: &str = "/v1/profiles/{profile}";
/// POST: brings a profile back to the image before.
pub const PROFILE_ROLLBACK: &str = "/v1/profiles/{profile}/rollback";
/// All rollouts.
pub const ROLLOUTS: &str = "/v1/rollouts";
/// One rollout.
pub const ROLLOUT: &str = "/v1/rollouts/{rollout}";
/// POST: halts a rollout.
pub const ROLLOUT_PAUSE: &str = "/v1/rollouts/{rollout}/pause";
/// POST: has a rollout go on.
pub const ROLLOUT_RESUME: &str = "/v1/rollouts/{rollout}/resume";
/// POST: ends a rollout, and puts nodes back that did not come up with the version.
pub const ROLLOUT_ABORT: &str = "/v1/rollouts/{rollout}/abort";
/// What can be opened over NBD.
pub const EXPORTS: &str = "/v1/exports";
/// Who has what open.
pub const CLIENTS: &str = "/v1/clients";
/// What the store holds.
pub const STORE: &str = "/v1/store";

/// What the boot services have and lack.
pub const BOOT_DOCTOR: &str = "/v1/boot/doctor";
/// What a machine needs to know of the site: `GET`.
pub const BOOT_SITE: &str = "/v1/boot/site";
/// POST: what a head exports over NFS; the answer is what it is to export.
pub const NFS: &str = "/v1/nfs";
/// Frees what nothing needs.
pub const GC: &str = "/v1/gc";
/// How far the background scrub is, and what it found.
pub const SCRUB: &str = "/v1/scrub";
/// Tokens.
pub const TOKENS: &str = "/v1/tokens";
/// One token, by name.
pub const TOKEN: &str = "/v1/tokens/{token}";

/// A selector as it stands in a path.
#[must_use]
pub fn selector(selector: &VersionSelector) -> String {
    match selector {
        VersionSelector::Latest => "latest".to_owned(),
        VersionSelector::Number(number) => number.to_string(),
        VersionSelector::Tag(tag) => format!("@{tag}"),
    }
}

/// Reads a selector from a path: a number, `latest` or `@tag`.
///
/// # Errors
/// [`NameError`] for anything else.
pub fn parse_selector(text: &str) -> Result<VersionSelector, NameError> {
    if text == "latest" {
        return Ok(VersionSelector::Latest);
    }
    if let Some(tag) = text.strip_prefix('@') {
        return Ok(VersionSelector::Tag(tag.parse()?));
    }
    let number = text.parse().ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| NameError::Version {
        text: text.chars().take(64).collect(),
    })?;
    Ok(VersionSelector::Number(VersionNumber(number)))
}

/// [`IMAGE`] of this image.
#[must_use]
pub fn image(image: &ImageName) -> String {
    format!("{IMAGES}/{image}")
}

/// [`IMAGE_HISTORY`] of this image.
#[must_use]
pub fn image_history(image: &ImageName) -> String {
    format!("{IMAGES}/{image}/history")
}

/// [`IMAGE_NFS`] of this image.
#[must_use]
pub fn image_nfs(image: &ImageName) -> String {
    format!("{IMAGES}/{image}/nfs")
}

/// [`IMAGE_TAG`] of this tag.
#[must_use]
pub fn image_tag(image: &ImageName, tag: &TagName) -> String {
    format!("{IMAGES}/{image}/tags/{tag}")
}

/// [`IMAGE_TAG_ROLLBACK`] of this tag.
#[must_use]
pub fn image_tag_rollback(image: &ImageName, tag: &TagName) -> String {
    format!("{}/rollback", image_tag(image, tag))
}

/// [`VERSION`] of this version.
#[must_use]
pub fn version(image: &ImageName, version: &VersionSelector) -> String {
    format!("{IMAGES}/{image}/versions/{}", selector(version))
}

/// [`VERSION_SHARE`] of this version.
#[must_use]
pub fn version_share(image: &ImageName, selector: &VersionSelector) -> String {
    format!("{}/share", version(image, selector))
}

/// [`VERSION_UNSHARE`] of this version.
#[must_use]
pub fn version_unshare(image: &ImageName, selector: &VersionSelector) -> String {
    format!("{}/unshare", version(image, selector))
}

/// [`MANIFEST`] of this version.
#[must_use]
pub fn manifest(image: &ImageName, selector: &VersionSelector) -> String {
    format!("{}/manifest", version(image, selector))
}

/// [`VERIFY`] of this version.
#[must_use]
pub fn verify(image: &ImageName, selector: &VersionSelector) -> String {
    format!("{}/verify", version(image, selector))
}

/// [`IMPORT`] of this import.
#[must_use]
pub fn import(id: &str) -> String {
    format!("{IMPORTS}/{id}")
}

/// [`IMPORT_LACKING`] of this import.
#[must_use]
pub fn import_lacking(id: &str) -> String {
    format!("{IMPORTS}/{id}/lacking")
}

/// [`IMPORT_CHUNKS`] of this import.
#[must_use]
pub fn import_chunks(id: &str) -> String {
    format!("{IMPORTS}/{id}/chunks")
}

/// [`IMPORT_COMMIT`] of this import.
#[must_use]
pub fn import_commit(id: &str) -> String {
    format!("{IMPORTS}/{id}/commit")
}

/// [`VOLUME`] of this volume.
#[must_use]
pub fn volume(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}")
}

/// [`VOLUME_RESIZE`] of this volume.
#[must_use]
pub fn volume_resize(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/resize")
}

/// [`VOLUME_RESET`] of this volume.
#[must_use]
pub fn volume_reset(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/reset")
}

/// [`VOLUME_SNAPSHOT`] of this volume.
#[must_use]
pub fn volume_snapshot(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/snapshot")
}

/// [`VOLUME_SHARE`] of this volume.
#[must_use]
pub fn volume_share(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/share")
}

/// [`VOLUME_UNSHARE`] of this volume.
#[must_use]
pub fn volume_unshare(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/unshare")
}

/// [`VOLUME_COMMIT`] of this volume.
#[must_use]
pub fn volume_commit(volume: &VolumeName) -> String {
    format!("{VOLUMES}/{volume}/commit")
}

/// [`NODE`] of this node.
#[must_use]
pub fn node(node: &NodeName) -> String {
    format!("{NODES}/{node}")
}

/// [`NODE_BOOTS`] of this node.
#[must_use]
pub fn node_boots(node: &NodeName) -> String {
    format!("{NODES}/{node}/boots")
}

/// [`NODE_COMMIT`] of this node.
#[must_use]
pub fn node_commit(node: &NodeName) -> String {
    format!("{NODES}/{node}/commit")
}

/// [`NODE_REPLACE`] of this node.
#[must_use]
pub fn node_replace(node: &NodeName) -> String {
    format!("{NODES}/{node}/replace")
}

/// [`PROFILE`] of this profile.
#[must_use]
pub fn profile(profile: &ProfileName) -> String {
    format!("{PROFILES}/{profile}")
}

/// [`PROFILE_ROLLBACK`] of this profile.
#[must_use]
pub fn profile_rollback(profile: &ProfileName) -> String {
    format!("{PROFILES}/{profile}/rollback")
}

/// [`ROLLOUT`] of this rollout.
#[must_use]
pub fn rollout(rollout: u64) -> String {
    format!("{ROLLOUTS}/{rollout}")
}

/// [`ROLLOUT_PAUSE`] of this rollout.
#[must_use]
pub fn rollout_pause(id: u64) -> String {
    format!("{}/pause", rollout(id))
}

/// [`ROLLOUT_RESUME`] of this rollout.
#[must_use]
pub fn rollout_resume(id: u64) -> String {
    format!("{}/resume", rollout(id))
}

/// [`ROLLOUT_ABORT`] of this rollout.
#[must_use]
pub fn rollout_abort(id: u64) -> String {
    format!("{}/abort", rollout(id))
}

/// [`INSTALLER`] of this name.
#[must_use]
pub fn installer(name: &InstallerName) -> String {
    format!("{INSTALLERS}/{name}")
}

/// [`INSTALLER_RENDER`] of this name.
#[must_use]
pub fn installer_render(name: &InstallerName) -> String {
    format!("{}/render", installer(name))
}

/// [`TOKEN`] of this token.
#[must_use]
pub fn token(name: &str) -> String {
    format!("{TOKENS}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_go_and_come_back() {
        for text in ["latest", "3", "@production"] {
            assert_eq!(selector(&parse_selector(text).expect(text)), text);
        }
        for bad in ["", "0", "-1", "x", "@", "@a/b", "4294967296"] {
            assert!(parse_selector(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn builders_fill_the_templates() {
        let name: ImageName = "lab".parse().expect("a name");
        let number = VersionSelector::Number(VersionNumber(3));
        let filled = MANIFEST.replace("{image}", "lab").replace("{version}", "3");
        assert_eq!(manifest(&name, &number), filled);
        let volume: VolumeName = "seat".parse().expect("a name");
        assert_eq!(
            volume_commit(&volume),
            VOLUME_COMMIT.replace("{volume}", "seat")
        );
        assert_eq!(
            import_lacking("a1"),
            IMPORT_LACKING.replace("{import}", "a1")
        );
    }
}
