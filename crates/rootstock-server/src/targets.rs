//! What iSCSI initiators can open: the volumes and versions that are shared with them.

use std::{any::Any, borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use rootstock_api::{ChapMode, ProblemCode, Share, ShareSet, SharedTarget};
use rootstock_catalog::{Secret, ShareRow, Shareable, VolumeRow};
use rootstock_core::{Digest, NodeName, SECTOR_BYTES, VersionSelector, VersionSpec, VolumeName};
use rootstock_iscsi::{
    Account,
    name::{NAME_BYTES_MAX, escaped, is_name, normalized, unescaped},
};
use rootstock_scsi::LUNS_MAX;
use tokio::runtime::Handle;

use crate::{
    app::App,
    boot::san::Presence,
    exports::{DaemonExports, volume_name},
    http::{ApiError, chain},
    iscsi::{self, Client, Offer, OpenUnit, Targets},
};

mod addresses;

use addresses::{check_addresses, check_redirect, may_come_from};

/// What names begin with at a site that has not said its domain. `internal` is
/// nobody's domain, and a part that is made of the site's key tells sites apart.
const PRIVATE_AUTHORITY: &str = "iqn.2026-11.internal.rootstock";

/// Bytes of a digest of the site's key in a name.
const SITE_BYTES: usize = 5;

/// Characters of a CHAP secret. Windows takes 12 to 16, and no other initiator
/// wants fewer than 12.
const SECRET_CHARACTERS: usize = 16;

/// Letters and digits that are not taken for one another: 32 of them, so that a
/// secret has 80 bits.
const SECRET_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// The daemon's targets. iSCSI sessions have threads of their own, so that they may
/// wait here for the catalog.
pub(crate) struct DaemonTargets {
    pub(crate) app: Arc<App>,
    pub(crate) runtime: Handle,
}

impl Targets for DaemonTargets {
    fn offered(&self, initiator: &str, address: IpAddr) -> Vec<Offer> {
        let rows = match self
            .runtime
            .block_on(self.app.catalog.shares_with(initiator))
        {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(error = chain(&error), "shares not read");
                return Vec::new();
            }
        };
        let from_there = rows
            .into_iter()
            .filter(|row| may_come_from(row.addresses.as_deref(), address));
        let offer = |row: ShareRow| {
            let target = target_of(&self.app, &row);
            Offer {
                account: account(&row, &target),
                redirect: row.redirect,
                target,
            }
        };
        // The disks of one target are shared with an initiator in one way.
        let mut offers: Vec<Offer> = from_there.map(offer).collect();
        offers.sort_by(|one, other| one.target.cmp(&other.target));
        offers.dedup_by(|one, other| one.target == other.target);
        offers
    }

    fn units(&self, target: &str, client: &Client<'_>) -> Vec<OpenUnit> {
        let shared = self.app.catalog.shares_with(client.initiator);
        let rows = self.runtime.block_on(shared).unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "shares not read");
            Vec::new()
        });
        let named = format!("{} at {}", client.initiator, client.address);
        let rows = rows
            .iter()
            .filter(|row| target_of(&self.app, row) == target);
        let opened = rows.filter_map(|row| {
            let opened = self.open(row, &named);
            let failed = |error: &ApiError| {
                let disk = described(&row.disk);
                tracing::warn!(
                    target,
                    disk,
                    detail = error.0.detail,
                    "iSCSI disk not opened"
                );
            };
            opened.inspect_err(failed).ok()
        });
        let mut units: Vec<_> = opened.take(LUNS_MAX).collect();
        units.sort_by_key(|unit| unit.lun);
        units
    }

    fn presence(&self, target: &str, client: &Client<'_>) -> Box<dyn Any + Send> {
        Box::new(self.node_presence(target, client))
    }

    fn reservations(&self, unit: &str) -> Option<String> {
        // What is only read is reserved for as long as the daemon runs.
        let volume = volume_named(unit)?;
        let kept = self
            .runtime
            .block_on(self.app.catalog.reservations(&volume));
        kept.unwrap_or_else(|error| {
            tracing::error!(unit, error = chain(&error), "reservations not read");
            None
        })
    }

    fn keep_reservations(&self, unit: &str, state: &str) -> bool {
        let Some(volume) = volume_named(unit) else {
            return true;
        };
        let kept = self
            .runtime
            .block_on(self.app.catalog.set_reservations(&volume, state));
        if let Err(error) = &kept {
            tracing::error!(unit, error = chain(error), "reservations not kept");
        }
        kept.is_ok()
    }
}

impl DaemonTargets {
    fn exports(&self) -> DaemonExports {
        DaemonExports {
            app: Arc::clone(&self.app),
            runtime: self.runtime.clone(),
        }
    }

    fn open(&self, row: &ShareRow, client: &str) -> Result<OpenUnit, ApiError> {
        let (export, identity, block_bytes) = match &row.disk {
            Shareable::Volume(name) => {
                let volume = self.runtime.block_on(self.app.catalog.volume(name))?;
                let export = self.exports().volume(name, client)?;
                (export, identity(&volume.directory), volume.block_bytes)
            }
            Shareable::Version(image, number) => {
                let spec = VersionSpec {
                    image: image.clone(),
                    selector: VersionSelector::Number(*number),
                };
                // A number is never used again, but another site has the same name for it.
                let key = self.app.key.verifying_key();
                let unique = format!("{} {spec}", Digest::of(key.as_bytes()));
                let export = self.exports().version(&spec, client)?;
                (export, identity(&unique), SECTOR_BYTES as u32)
            }
        };
        Ok(OpenUnit {
            lun: row.lun,
            name: unit_name(&row.disk),
            device: export.device,
            identity,
            block_bytes,
            lease: Box::new(export.lease),
        })
    }

    /// A node's session is a step of its boot.
    fn node_presence(&self, target: &str, client: &Client<'_>) -> Option<Presence> {
        let node = node_of(&self.app, client.initiator)?;
        Some(Presence::begin(
            &self.app,
            &self.runtime,
            node,
            target,
            client,
        ))
    }
}

/// What a disk is called, apart from any target: as it is exported over NBD.
fn unit_name(disk: &Shareable) -> String {
    match disk {
        Shareable::Volume(volume) => volume_name(volume),
        Shareable::Version(image, number) => format!("image/{image}:{number}"),
    }
}

fn volume_named(unit: &str) -> Option<VolumeName> {
    unit.strip_prefix("volume/")?.parse().ok()
}

/// The iSCSI name of a node, as an initiator.
pub(crate) fn node_name(app: &App, node: &NodeName) -> String {
    format!("{}:node.{}", prefix(app), escaped(node.as_str()))
}

fn node_of(app: &App, initiator: &str) -> Option<NodeName> {
    let name = initiator.strip_prefix(prefix(app).as_ref())?;
    unescaped(name.strip_prefix(":node.")?)?.parse().ok()
}

/// Shares a volume with a node, for one boot from one address. Answers the secret that
/// its firmware is told, if it has to prove one.
pub(crate) async fn share_with_node(
    app: &App,
    node: &NodeName,
    volume: VolumeName,
    address: IpAddr,
    chap: bool,
) -> Result<Option<Secret>, ApiError> {
    if let Some(target) = app.catalog.volume(&volume).await?.target {
        let detail = format!("volume '{volume}' is a disk of the target '{target}'");
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("machines boot from volumes with a target of their own: unshare it"));
    }
    let disk = Shareable::Volume(volume);
    check_target(&disk, &target_name(app, &disk))?;
    let secret = chap.then(draw_secret).transpose()?;
    let row = ShareRow {
        target: None,
        lun: 0,
        initiator: node_name(app, node),
        addresses: Some(address.to_string()),
        secret: secret.clone(),
        mutual_secret: None,
        redirect: None,
        created: Timestamp::now(),
        disk,
    };
    app.catalog.set_share(&row).await?;
    Ok(secret)
}

/// Ends all shares with a node that is deleted.
pub(crate) async fn forget_node(app: &Arc<App>, node: &NodeName) -> Result<(), ApiError> {
    let initiator = node_name(app, node);
    for row in app.catalog.shares_with(&initiator).await? {
        app.catalog.remove_share(&row.disk, &initiator).await?;
        end_or_refresh(app, &initiator, &target_of(app, &row)).await?;
    }
    Ok(())
}

/// The iSCSI name of a volume's target.
pub(crate) fn volume_target(app: &App, volume: &VolumeRow) -> String {
    match &volume.target {
        Some(target) => shared_name(&prefix(app), target),
        None => own_target(app, &volume.name),
    }
}

/// The iSCSI name of a volume's own target.
pub(crate) fn own_target(app: &App, volume: &VolumeName) -> String {
    target_name(app, &Shareable::Volume(volume.clone()))
}

/// The iSCSI name of the target that a row is about.
fn target_of(app: &App, row: &ShareRow) -> String {
    match &row.target {
        Some(target) => shared_name(&prefix(app), target),
        None => target_name(app, &row.disk),
    }
}

/// The iSCSI name of a target of several disks.
fn shared_name(prefix: &str, target: &VolumeName) -> String {
    format!("{prefix}:target.{}", escaped(target.as_str()))
}

/// The iSCSI name of a disk's own target.
pub(crate) fn target_name(app: &App, disk: &Shareable) -> String {
    name_below(&prefix(app), disk)
}

/// Names of volumes and images know more characters than iSCSI names.
fn name_below(prefix: &str, disk: &Shareable) -> String {
    match disk {
        Shareable::Volume(volume) => format!("{prefix}:volume.{}", escaped(volume.as_str())),
        Shareable::Version(image, number) => {
            format!("{prefix}:image.{}.{number}", escaped(image.as_str()))
        }
    }
}

/// The naming authority (RFC 7143, section 4.2.7.4). It does not come from the
/// host's name: initiators keep the names of targets, and hosts change theirs.
fn prefix(app: &App) -> Cow<'_, str> {
    let configured = &app.config.iscsi.prefix;
    if configured.is_empty() {
        private_prefix(app.key.verifying_key().as_bytes()).into()
    } else {
        configured.into()
    }
}

fn private_prefix(site_key: &[u8]) -> String {
    let digest = Digest::of(site_key);
    let bytes = digest.as_bytes().iter().take(SITE_BYTES);
    let site: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    format!("{PRIVATE_AUTHORITY}.{site}")
}

/// A target needs a name that initiators can write.
fn check_target(disk: &Shareable, target: &str) -> Result<(), ApiError> {
    if target.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let detail = format!(
        "{} cannot be an iSCSI target: its iSCSI name would have {} bytes, and the limit is {NAME_BYTES_MAX}",
        described(disk),
        target.len()
    );
    Err(ApiError::new(ProblemCode::BadName, detail).with_hint(
        "give it a name of fewer capital letters and '_', or set a shorter iscsi.prefix",
    ))
}

fn described(disk: &Shareable) -> String {
    match disk {
        Shareable::Volume(volume) => format!("volume '{volume}'"),
        Shareable::Version(image, number) => format!("version '{image}:{number}'"),
    }
}

fn account(row: &ShareRow, target: &str) -> Option<Account> {
    let bytes = |secret: &Secret| secret.reveal().as_bytes().to_vec();
    let mutual = row.mutual_secret.as_ref();
    row.secret.as_ref().map(|secret| Account {
        secret: bytes(secret),
        mutual: mutual.map(|secret| (target.to_owned(), bytes(secret))),
    })
}

/// A volume's files are its own for ever, and so is what is computed from where
/// they lie.
fn identity(directory: &str) -> u64 {
    let digest = Digest::of(directory.as_bytes());
    let bytes = digest.as_bytes().first_chunk::<8>();
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Shares a volume or a version with an initiator. What it was shared under before is void.
pub(crate) async fn share(
    app: &App,
    disk: Shareable,
    request: ShareSet,
) -> Result<SharedTarget, ApiError> {
    let initiator = check_initiator(&request.initiator)?;
    if let Some(from) = &request.from {
        check_addresses(from)?;
    }
    if let Some(redirect) = &request.redirect {
        check_redirect(redirect)?;
    }
    let (name, lun) = place(app, &disk, &request).await?;
    let others = app.catalog.shares_with(&initiator).await?;
    let others = others
        .into_iter()
        .filter(|row| name.is_some() && row.target == name && row.disk != disk);
    let others: Vec<_> = others.collect();
    let secret = |wanted: bool| wanted.then(draw_secret).transpose();
    let mut row = ShareRow {
        addresses: request.from.clone(),
        secret: secret(request.chap != ChapMode::None)?,
        mutual_secret: secret(request.chap == ChapMode::Mutual)?,
        redirect: request.redirect.clone(),
        created: Timestamp::now(),
        target: name,
        lun,
        initiator,
        disk,
    };
    let target = target_of(app, &row);
    check_target(&row.disk, &target)?;
    let reveal = |secret: &Option<Secret>| secret.as_ref().map(|it| it.reveal().to_owned());
    let mut shared = SharedTarget {
        target: target.clone(),
        lun,
        addresses: app.iscsi().addresses(),
        secret: reveal(&row.secret),
        mutual_secret: reveal(&row.mutual_secret),
        share: describe(row.clone()),
    };
    let says_how = request.from.is_some() || request.chap != ChapMode::None;
    if let Some(other) = others
        .first()
        .filter(|_| !says_how && request.redirect.is_none())
    {
        // One more disk of a target that it uses already, in the way that it does.
        row = like(row, other);
        shared.share = describe(row.clone());
        app.catalog.set_share(&row).await?;
        refresh(app, &row.initiator, &target);
    } else {
        for other in others {
            app.catalog.set_share(&like(other, &row)).await?;
        }
        app.catalog.set_share(&row).await?;
        expel(app, &row.initiator, &target);
    }
    tracing::info!(
        disk = described(&row.disk),
        target,
        initiator = row.initiator,
        "shared over iSCSI"
    );
    Ok(shared)
}

/// A share that is used in the way that another is.
fn like(row: ShareRow, other: &ShareRow) -> ShareRow {
    ShareRow {
        addresses: other.addresses.clone(),
        secret: other.secret.clone(),
        mutual_secret: other.mutual_secret.clone(),
        redirect: other.redirect.clone(),
        ..row
    }
}

/// The target that a disk is to be in, unless it has one of its own, and its number there.
async fn place(
    app: &App,
    disk: &Shareable,
    request: &ShareSet,
) -> Result<(Option<VolumeName>, u16), ApiError> {
    let bad = |detail: String, hint: &'static str| {
        Err(ApiError::new(ProblemCode::BadValue, detail).with_hint(hint))
    };
    let Shareable::Volume(volume) = disk else {
        if request.target.is_some() || request.lun.is_some() {
            let detail = format!("{} cannot be a disk of another target", described(disk));
            return bad(detail, "versions have targets of their own");
        }
        return Ok((None, 0));
    };
    let row = app.catalog.volume(volume).await?;
    let Some(target) = &request.target else {
        if request.lun.is_some_and(|lun| lun != row.lun) {
            let detail = format!("volume '{volume}' is LUN {} of its target", row.lun);
            return bad(
                detail,
                "say with `target` in which target it is to have another number",
            );
        }
        return Ok((row.target, row.lun));
    };
    let lun = match request.lun {
        Some(lun) => lun,
        None if row.target.as_ref() == Some(target) => row.lun,
        None => free_lun(app, target).await?,
    };
    if row.target.as_ref() == Some(target) && row.lun == lun {
        return Ok((row.target, lun));
    }
    if usize::from(lun) >= LUNS_MAX {
        return bad(format!("a target has no LUN {lun}"), "the highest is 255");
    }
    if !app.catalog.shares_of(disk).await?.is_empty() {
        let detail = format!(
            "volume '{volume}' is shared as LUN {} of another target",
            row.lun
        );
        return bad(detail, "unshare it from all initiators first");
    }
    let name = shared_name(&prefix(app), target);
    check_target(disk, &name)?;
    app.catalog
        .set_volume_target(volume, Some((target, lun)))
        .await?;
    Ok((Some(target.clone()), lun))
}

/// The lowest number that no disk of a target has.
async fn free_lun(app: &App, target: &VolumeName) -> Result<u16, ApiError> {
    let volumes = app.catalog.volumes().await?;
    let there = volumes
        .iter()
        .filter(|row| row.target.as_ref() == Some(target));
    let taken: BTreeSet<u16> = there.map(|row| row.lun).collect();
    Ok((0..).find(|lun| !taken.contains(lun)).unwrap_or(u16::MAX))
}

/// Ends a share, and the sessions that there are. What they have begun is over when this
/// returns.
pub(crate) async fn unshare(
    app: &Arc<App>,
    disk: &Shareable,
    initiator: &str,
) -> Result<(), ApiError> {
    let initiator = normalized(initiator);
    let shares = app.catalog.shares_of(disk).await?;
    let of_it = shares.iter().find(|row| row.initiator == initiator);
    let (Some(row), true) = (of_it, app.catalog.remove_share(disk, &initiator).await?) else {
        let detail = format!(
            "{} is not shared with '{}'",
            described(disk),
            initiator.escape_debug()
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("`rootstock volume show` and `rootstock image show` show the initiators"));
    };
    tracing::info!(
        disk = described(disk),
        initiator,
        "not shared over iSCSI any more"
    );
    let target = target_of(app, row);
    if let (Shareable::Volume(volume), [_]) = (disk, shares.as_slice()) {
        app.catalog.set_volume_target(volume, None).await?;
    }
    end_or_refresh(app, &initiator, &target).await
}

/// After a share ended: an initiator that may still use other disks of the target is told
/// which, any other one's sessions end. What those have begun is over when this returns.
async fn end_or_refresh(app: &Arc<App>, initiator: &str, target: &str) -> Result<(), ApiError> {
    let left = app.catalog.shares_with(initiator).await?;
    if left.iter().any(|row| target_of(app, row) == target) {
        refresh(app, initiator, target);
        return Ok(());
    }
    let (initiator, target) = (initiator.to_owned(), target.to_owned());
    app.blocking(move |app| {
        let sessions = app.iscsi().handle.as_ref().map(iscsi::Handle::sessions);
        if sessions.is_some_and(|sessions| !sessions.end(&initiator, &target)) {
            tracing::warn!(
                initiator,
                target,
                "a session whose share ended is stuck in its device"
            );
        }
        Ok(())
    })
    .await
}

/// Who may use a disk, as it is shown: without their secrets.
pub(crate) async fn shares(app: &App, disk: &Shareable) -> Result<Vec<Share>, ApiError> {
    let rows = app.catalog.shares_of(disk).await?;
    Ok(rows.into_iter().map(describe).collect())
}

fn describe(row: ShareRow) -> Share {
    Share {
        initiator: row.initiator,
        from: row.addresses,
        redirect: row.redirect,
        chap: match (row.secret, row.mutual_secret) {
            (None, _) => ChapMode::None,
            (Some(_), None) => ChapMode::OneWay,
            (Some(_), Some(_)) => ChapMode::Mutual,
        },
    }
}

fn refresh(app: &App, initiator: &str, target: &str) {
    if let Some(handle) = app.iscsi().handle.as_ref() {
        handle.refresh(initiator, target);
    }
}

fn expel(app: &App, initiator: &str, target: &str) {
    if let Some(handle) = app.iscsi().handle.as_ref() {
        handle.expel(initiator, target);
    }
}

fn draw_secret() -> Result<Secret, ApiError> {
    let mut bytes = [0; SECRET_CHARACTERS];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal("draw a secret", &error))?;
    let letter = |byte: &u8| char::from(SECRET_ALPHABET[usize::from(*byte) % 32]);
    Ok(Secret::new(bytes.iter().map(letter).collect()))
}

/// An iSCSI name, normalized.
fn check_initiator(name: &str) -> Result<String, ApiError> {
    let normal = normalized(name);
    if is_name(&normal) {
        return Ok(normal);
    }
    let start: String = name.chars().take(NAME_BYTES_MAX).collect();
    let detail = format!("'{}' is not an initiator's name", start.escape_debug());
    Err(ApiError::new(ProblemCode::BadName, detail).with_hint(
        "write iqn.YEAR-MONTH.DOMAIN:NAME, eui.DIGITS or naa.DIGITS; open-iscsi keeps it in /etc/iscsi/initiatorname.iscsi",
    ))
}

#[cfg(test)]
mod tests {
    use rootstock_core::VersionNumber;

    use super::*;

    #[test]
    fn initiators_are_known_by_normalized_names() {
        let good = "iqn.1993-08.org.Debian:01:abc";
        assert_eq!(check_initiator(good).expect("good"), good.to_lowercase());
        for bad in ["", "host", "iqn.a b", "iqn.a\n", "iqn.2026-11.exämple"] {
            assert!(check_initiator(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_have_names_that_any_initiator_can_write() {
        let prefix = private_prefix(&[7; 32]);
        assert_eq!(prefix, "iqn.2026-11.internal.rootstock.ebaf85b465");
        for (volume, name) in [("seat-7", "seat-7"), ("Seat_7", ":53eat:5f7")] {
            let volume = Shareable::Volume(volume.parse().expect("a name"));
            let target = name_below(&prefix, &volume);
            assert_eq!(target, format!("{prefix}:volume.{name}"));
            assert!(is_name(&target));
        }
        for (image, name) in [("lab", "lab.12"), ("A.b", ":41.b.12")] {
            let image = image.parse().expect("a name");
            let version = Shareable::Version(image, VersionNumber(12));
            let target = name_below(&prefix, &version);
            assert_eq!(target, format!("{prefix}:image.{name}"));
            assert!(is_name(&target));
        }
        let long = Shareable::Volume("A".repeat(64).parse().expect("a name"));
        assert!(check_target(&long, &name_below(&prefix, &long)).is_err());
    }

    #[test]
    fn secrets_differ_and_fit_everywhere() {
        let (one, other) = (draw_secret().expect("one"), draw_secret().expect("another"));
        assert_eq!(one.reveal().len(), SECRET_CHARACTERS);
        assert_ne!(one, other);
        assert_eq!(format!("{one:?}"), "Secret");
    }
}
