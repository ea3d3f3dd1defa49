//! The API's calls, one method each.

use std::ops::ControlFlow;

use bytes::Bytes;
use reqwest::Method;
use rootstock_api::{
    Bitmap, BootList, ChangeReport, ClientList, CollectEvent, CollectReport, DiffReport,
    ExportList, HistoryList, ImageDetail, ImageList, Import, ImportCommit, ImportCommitted,
    ImportCreate, ImportList, ImportReceipt, Installer, InstallerList, InstallerRender,
    InstallerRendered, NfsSet, NfsState, NfsWanted, Node, NodeCommit, NodeCreate, NodeDelete,
    NodeEvent, NodeFormat, NodeImport, NodeList, NodeNames, NodeReboot, NodeReplace, NodeRollback,
    NodeSet, NodeText, NodesDone, NodesInstall, NodesInstalling, NodesTold, Profile, ProfileCreate,
    ProfileList, ProfileRollback, ProfileSet, RecipeList, RolloutDetail, RolloutList, RolloutStart,
    RolloutStarted, SEAL_HEADER, ScrubStatus, ShareEnd, ShareSet, SharedTarget, Site, StoreReport,
    TagSet, TagTarget, TokenCreate, TokenCreated, TokenList, VERSION_HEADER, VerifyEvent,
    VerifyReport, VersionDetail, Volume, VolumeCommit, VolumeCommitted, VolumeCreate, VolumeList,
    VolumeResize, VolumeSnapshot, paths, record,
};
use rootstock_core::{
    ChunkId, ImageName, InstallerName, NodeName, ProfileName, TagName, VersionSelector,
    VersionSpec, VolumeName,
};

use crate::{Client, ClientError};

type Answer<T> = Result<T, ClientError>;

/// A version's root document as it came, nothing of it checked.
#[derive(Debug, Clone)]
pub(crate) struct ManifestAnswer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) seal: String,
    pub(crate) version: String,
}

#[expect(
    clippy::missing_errors_doc,
    reason = "every call fails alike, as ClientError says"
)]
impl Client {
    /// The site: release, public key, the caller's role.
    pub fn site(&self) -> Answer<Site> {
        self.get(paths::SITE)
    }

    /// What the boot services have and lack.
    pub fn boot_doctor(&self) -> Answer<rootstock_api::doctor::BootDoctor> {
        self.get(paths::BOOT_DOCTOR)
    }

    /// What a machine needs to know of the site.
    pub fn boot_site(&self) -> Answer<rootstock_api::boot::SiteFile> {
        self.get(paths::BOOT_SITE)
    }

    /// All images.
    pub fn images(&self) -> Answer<ImageList> {
        self.get(paths::IMAGES)
    }

    /// One image with its versions.
    pub fn image(&self, image: &ImageName) -> Answer<ImageDetail> {
        self.get(&paths::image(image))
    }

    /// One version.
    pub fn version(&self, version: &VersionSpec) -> Answer<VersionDetail> {
        self.get(&paths::version(&version.image, &version.selector))
    }

    /// Deletes a version.
    pub fn delete_version(&self, version: &VersionSpec) -> Answer<()> {
        let path = paths::version(&version.image, &version.selector);
        self.order(Method::DELETE, &path)
    }

    /// Deletes an image with all its versions.
    pub fn delete_image(&self, image: &ImageName) -> Answer<()> {
        self.order(Method::DELETE, &paths::image(image))
    }

    /// What happened to an image.
    pub fn history(&self, image: &ImageName) -> Answer<HistoryList> {
        self.get(&paths::image_history(image))
    }

    /// Says whether versions of an image may be roots over NFS.
    pub fn image_nfs(&self, image: &ImageName, allowed: bool) -> Answer<NfsSet> {
        self.send(Method::PUT, &paths::image_nfs(image), &NfsSet { allowed })
    }

    /// Tells what a head exports over NFS, and asks what it is to export.
    pub fn nfs(&self, state: &NfsState) -> Answer<NfsWanted> {
        self.send(Method::POST, paths::NFS, state)
    }

    /// Points a tag at a version.
    pub fn tag(&self, image: &ImageName, tag: &TagName, at: &VersionSelector) -> Answer<TagSet> {
        let target = TagTarget {
            version: paths::selector(at),
        };
        self.send(Method::PUT, &paths::image_tag(image, tag), &target)
    }

    /// Points a tag at the version that it pointed at before.
    pub fn tag_rollback(&self, image: &ImageName, tag: &TagName) -> Answer<TagSet> {
        self.send(Method::POST, &paths::image_tag_rollback(image, tag), &())
    }

    /// Takes a tag away.
    pub fn untag(&self, image: &ImageName, tag: &TagName) -> Answer<()> {
        self.order(Method::DELETE, &paths::image_tag(image, tag))
    }

    /// What a holder of `from` must fetch for `to`.
    pub fn diff(&self, from: &VersionSpec, to: &VersionSpec) -> Answer<DiffReport> {
        self.get_with(paths::DIFF, &format!("from={from}&to={to}"))
    }

    /// Reads a version anew and reports what cannot be read.
    pub fn verify(
        &self,
        version: &VersionSpec,
        mut event: impl FnMut(&VerifyEvent),
    ) -> Answer<VerifyReport> {
        let mut last = None;
        let path = paths::verify(&version.image, &version.selector);
        self.lines(&path, |line: VerifyEvent| {
            event(&line);
            last = Some(line);
        })?;
        match last {
            Some(VerifyEvent::Done(report)) => Ok(report),
            Some(VerifyEvent::Failed(problem)) => Err(ClientError::Problem(Box::new(problem))),
            _ => Err(self.not_the_api("its progress ended before its work".to_owned())),
        }
    }

    /// Frees what nothing needs.
    pub fn collect(&self, mut event: impl FnMut(&CollectEvent)) -> Answer<CollectReport> {
        let mut last = None;
        self.lines(paths::GC, |line: CollectEvent| {
            event(&line);
            last = Some(line);
        })?;
        match last {
            Some(CollectEvent::Done(report)) => Ok(report),
            Some(CollectEvent::Failed(problem)) => Err(ClientError::Problem(Box::new(problem))),
            _ => Err(self.not_the_api("its progress ended before its work".to_owned())),
        }
    }

    /// How far the background scrub is.
    pub fn scrub(&self) -> Answer<ScrubStatus> {
        self.get(paths::SCRUB)
    }

    /// Begins a pass of the scrub, unless one is under way.
    pub fn scrub_start(&self) -> Answer<ScrubStatus> {
        self.send(Method::POST, paths::SCRUB, &())
    }

    /// Recipes, and the making of them.
    pub fn recipes(&self) -> Answer<RecipeList> {
        self.get(paths::RECIPES)
    }

    /// What the store holds.
    pub fn store(&self) -> Answer<StoreReport> {
        self.get(paths::STORE)
    }

    /// What can be opened over NBD.
    pub fn exports(&self) -> Answer<ExportList> {
        self.get(paths::EXPORTS)
    }

    /// Who has what open over NBD.
    pub fn clients(&self) -> Answer<ClientList> {
        self.get(paths::CLIENTS)
    }

    /// Open imports.
    pub fn imports(&self) -> Answer<ImportList> {
        self.get(paths::IMPORTS)
    }

    /// Opens an import.
    pub fn import_create(&self, import: &ImportCreate) -> Answer<Import> {
        self.send(Method::POST, paths::IMPORTS, import)
    }

    /// Gives up an import.
    pub fn import_abort(&self, id: &str) -> Answer<()> {
        self.order(Method::DELETE, &paths::import(id))
    }

    /// Which of these chunks the store lacks; at most [`record::IDS_MAX`].
    pub fn import_lacking(&self, id: &str, chunks: &[ChunkId]) -> Answer<Bitmap> {
        let path = paths::import_lacking(id);
        let answer = self.exchange(&path, record::encode_ids(chunks))?;
        Bitmap::from_bytes(answer, chunks.len())
            .ok_or_else(|| self.not_the_api("its list of lacking chunks is cut".to_owned()))
    }

    /// Sends chunk records; at most [`record::RECORDS_BYTES_MAX`].
    pub fn import_chunks(&self, id: &str, records: &Bytes) -> Answer<ImportReceipt> {
        self.send_bytes(&paths::import_chunks(id), records)
    }

    /// Makes an import a version.
    pub fn import_commit(&self, id: &str, commit: &ImportCommit) -> Answer<ImportCommitted> {
        self.send(Method::POST, &paths::import_commit(id), commit)
    }

    /// Records of these chunks; at most [`record::FETCH_MAX`]. Nothing is checked.
    pub fn fetch(&self, chunks: &[ChunkId]) -> Answer<Vec<u8>> {
        self.exchange(paths::CHUNKS_FETCH, record::encode_ids(chunks))
    }

    pub(crate) fn manifest(&self, version: &VersionSpec) -> Answer<ManifestAnswer> {
        let path = paths::manifest(&version.image, &version.selector);
        let (bytes, [seal, version]) = self.get_bytes(&path, [SEAL_HEADER, VERSION_HEADER])?;
        Ok(ManifestAnswer {
            bytes,
            seal,
            version,
        })
    }

    /// All volumes.
    pub fn volumes(&self) -> Answer<VolumeList> {
        self.get(paths::VOLUMES)
    }

    /// One volume.
    pub fn volume(&self, volume: &VolumeName) -> Answer<Volume> {
        self.get(&paths::volume(volume))
    }

    /// Makes a volume.
    pub fn volume_create(&self, create: &VolumeCreate) -> Answer<Volume> {
        self.send(Method::POST, paths::VOLUMES, create)
    }

    /// Deletes a volume.
    pub fn volume_delete(&self, volume: &VolumeName) -> Answer<()> {
        self.order(Method::DELETE, &paths::volume(volume))
    }

    /// Makes a volume larger.
    pub fn volume_resize(&self, volume: &VolumeName, size_bytes: u64) -> Answer<Volume> {
        let resize = VolumeResize { size_bytes };
        self.send(Method::POST, &paths::volume_resize(volume), &resize)
    }

    /// Drops what was written to a volume.
    pub fn volume_reset(&self, volume: &VolumeName) -> Answer<()> {
        self.order(Method::POST, &paths::volume_reset(volume))
    }

    /// Copies a volume as it is now into a new one.
    pub fn volume_snapshot(&self, volume: &VolumeName, name: &VolumeName) -> Answer<Volume> {
        let snapshot = VolumeSnapshot { name: name.clone() };
        self.send(Method::POST, &paths::volume_snapshot(volume), &snapshot)
    }

    /// Shares a volume with an initiator over iSCSI.
    pub fn volume_share(&self, volume: &VolumeName, share: &ShareSet) -> Answer<SharedTarget> {
        self.send(Method::POST, &paths::volume_share(volume), share)
    }

    /// Ends a share; the volume says with whom it is shared still.
    pub fn volume_unshare(&self, volume: &VolumeName, initiator: &str) -> Answer<Volume> {
        let unshare = ShareEnd {
            initiator: initiator.to_owned(),
        };
        self.send(Method::POST, &paths::volume_unshare(volume), &unshare)
    }

    /// Shares a version with an iSCSI initiator, to be read.
    pub fn version_share(&self, spec: &VersionSpec, share: &ShareSet) -> Answer<SharedTarget> {
        let path = paths::version_share(&spec.image, &spec.selector);
        self.send(Method::POST, &path, share)
    }

    /// Ends such a share; the version says with whom it is shared still.
    pub fn version_unshare(&self, spec: &VersionSpec, initiator: &str) -> Answer<VersionDetail> {
        let end = ShareEnd {
            initiator: initiator.to_owned(),
        };
        let path = paths::version_unshare(&spec.image, &spec.selector);
        self.send(Method::POST, &path, &end)
    }

    /// Makes a volume's contents a new version.
    pub fn volume_commit(
        &self,
        volume: &VolumeName,
        commit: &VolumeCommit,
    ) -> Answer<VolumeCommitted> {
        self.send(Method::POST, &paths::volume_commit(volume), commit)
    }

    /// All nodes.
    pub fn nodes(&self) -> Answer<NodeList> {
        self.get(paths::NODES)
    }

    /// One node.
    pub fn node(&self, node: &NodeName) -> Answer<Node> {
        self.get(&paths::node(node))
    }

    /// Adds nodes.
    pub fn node_create(&self, create: &NodeCreate) -> Answer<NodeList> {
        self.send(Method::POST, paths::NODES, create)
    }

    /// Changes nodes, or works out what a change would do.
    pub fn node_set(&self, set: &NodeSet) -> Answer<ChangeReport> {
        self.send(Method::PATCH, paths::NODES, set)
    }

    /// Deletes nodes.
    pub fn node_delete(&self, delete: &NodeDelete) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_DELETE, delete)
    }

    /// Lets held nodes boot.
    pub fn node_approve(&self, names: &NodeNames) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_APPROVE, names)
    }

    /// Lets nodes try versions again that failed there.
    pub fn node_retry(&self, names: &NodeNames) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_RETRY, names)
    }

    /// Has nodes lay their image out on their disk anew.
    pub fn node_reinstall(&self, names: &NodeNames) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_REINSTALL, names)
    }

    /// Has what a node wrote made a version.
    pub fn node_commit(&self, node: &NodeName, commit: &VolumeCommit) -> Answer<NodeCommit> {
        self.send(Method::POST, &paths::node_commit(node), commit)
    }

    /// How far that is.
    pub fn node_commit_show(&self, node: &NodeName) -> Answer<NodeCommit> {
        self.get(&paths::node_commit(node))
    }

    /// Gives it up.
    pub fn node_commit_abort(&self, node: &NodeName) -> Answer<NodeCommit> {
        self.send(Method::DELETE, &paths::node_commit(node), &())
    }

    /// Has another machine take a node's place.
    pub fn node_replace(&self, node: &NodeName, replace: &NodeReplace) -> Answer<ChangeReport> {
        self.send(Method::POST, &paths::node_replace(node), replace)
    }

    /// Has personal nodes drop what they wrote.
    pub fn node_reset(&self, names: &NodeNames) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_RESET, names)
    }

    /// Brings nodes back to the image before.
    pub fn node_rollback(&self, rollback: &NodeRollback) -> Answer<ChangeReport> {
        self.send(Method::POST, paths::NODES_ROLLBACK, rollback)
    }

    /// Brings a profile back to the image before.
    pub fn profile_rollback(
        &self,
        profile: &ProfileName,
        rollback: &ProfileRollback,
    ) -> Answer<ChangeReport> {
        self.send(Method::POST, &paths::profile_rollback(profile), rollback)
    }

    /// Starts machines anew.
    pub fn node_reboot(&self, reboot: &NodeReboot) -> Answer<NodesTold> {
        self.send(Method::POST, paths::NODES_REBOOT, reboot)
    }

    /// Wakes machines up.
    pub fn node_wake(&self, names: &NodeNames) -> Answer<NodesTold> {
        self.send(Method::POST, paths::NODES_WAKE, names)
    }

    /// All rollouts that are not over, and the last that are.
    pub fn rollouts(&self) -> Answer<RolloutList> {
        self.get(paths::ROLLOUTS)
    }

    /// A rollout and its nodes.
    pub fn rollout(&self, rollout: u64) -> Answer<RolloutDetail> {
        self.get(&paths::rollout(rollout))
    }

    /// Begins a rollout, or works out what it would do.
    pub fn rollout_start(&self, start: &RolloutStart) -> Answer<RolloutStarted> {
        self.send(Method::POST, paths::ROLLOUTS, start)
    }

    /// Halts a rollout.
    pub fn rollout_pause(&self, rollout: u64) -> Answer<RolloutDetail> {
        self.send(Method::POST, &paths::rollout_pause(rollout), &())
    }

    /// Has a rollout go on.
    pub fn rollout_resume(&self, rollout: u64) -> Answer<RolloutDetail> {
        self.send(Method::POST, &paths::rollout_resume(rollout), &())
    }

    /// Ends a rollout.
    pub fn rollout_abort(&self, rollout: u64) -> Answer<RolloutDetail> {
        self.send(Method::POST, &paths::rollout_abort(rollout), &())
    }

    /// All nodes as text.
    pub fn node_export(&self, format: NodeFormat) -> Answer<NodeText> {
        let format = match format {
            NodeFormat::Json => "json",
            NodeFormat::Toml => "toml",
            NodeFormat::Csv => "csv",
        };
        self.get_with(paths::NODES_EXPORT, &format!("format={format}"))
    }

    /// Adds and changes nodes so that they are as a text says.
    pub fn node_import(&self, import: &NodeImport) -> Answer<ChangeReport> {
        self.send(Method::POST, paths::NODES_IMPORT, import)
    }

    /// The last boots of a node, newest first.
    pub fn node_boots(&self, node: &NodeName, limit: usize) -> Answer<BootList> {
        self.get_with(&paths::node_boots(node), &format!("limit={limit}"))
    }

    /// How nodes do, live, until the daemon stops or `event` answers
    /// [`ControlFlow::Break`].
    pub fn node_watch(&self, event: impl FnMut(NodeEvent) -> ControlFlow<()>) -> Answer<()> {
        self.lines_of(Method::GET, paths::NODES_WATCH, event)
    }

    /// All profiles.
    pub fn profiles(&self) -> Answer<ProfileList> {
        self.get(paths::PROFILES)
    }

    /// One profile.
    pub fn profile(&self, profile: &ProfileName) -> Answer<Profile> {
        self.get(&paths::profile(profile))
    }

    /// Makes a profile.
    pub fn profile_create(&self, create: &ProfileCreate) -> Answer<Profile> {
        self.send(Method::POST, paths::PROFILES, create)
    }

    /// Changes a profile, or works out what a change would do.
    pub fn profile_set(&self, profile: &ProfileName, set: &ProfileSet) -> Answer<ChangeReport> {
        self.send(Method::PATCH, &paths::profile(profile), set)
    }

    /// Deletes a profile.
    pub fn profile_delete(&self, profile: &ProfileName) -> Answer<()> {
        self.order(Method::DELETE, &paths::profile(profile))
    }

    /// All installers.
    pub fn installers(&self) -> Answer<InstallerList> {
        self.get(paths::INSTALLERS)
    }

    /// One installer.
    pub fn installer(&self, name: &InstallerName) -> Answer<Installer> {
        self.get(&paths::installer(name))
    }

    /// What an installer would be given on a node.
    pub fn installer_render(
        &self,
        name: &InstallerName,
        render: &InstallerRender,
    ) -> Answer<InstallerRendered> {
        self.send(Method::POST, &paths::installer_render(name), render)
    }

    /// Has nodes run an installer at their next boot.
    pub fn node_install(&self, install: &NodesInstall) -> Answer<NodesInstalling> {
        self.send(Method::POST, paths::NODES_INSTALL, install)
    }

    /// Has nodes run no installer.
    pub fn node_install_cancel(&self, names: &NodeNames) -> Answer<NodesDone> {
        self.send(Method::POST, paths::NODES_INSTALL_CANCEL, names)
    }

    /// Tokens.
    pub fn tokens(&self) -> Answer<TokenList> {
        self.get(paths::TOKENS)
    }

    /// Makes a token.
    pub fn token_create(&self, create: &TokenCreate) -> Answer<TokenCreated> {
        self.send(Method::POST, paths::TOKENS, create)
    }

    /// Revokes a token.
    pub fn token_revoke(&self, name: &str) -> Answer<()> {
        self.order(Method::DELETE, &paths::token(name))
    }
}
