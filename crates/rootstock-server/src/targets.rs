//! What iSCSI initiators can open: the volumes that are shared with them.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use rootstock_api::{ChapMode, ProblemCode, VolumeShare, VolumeShareSet, VolumeShared};
use rootstock_catalog::{Secret, ShareRow};
use rootstock_core::{Digest, NodeName, VolumeName};
use rootstock_iscsi::{
    Account,
    name::{NAME_BYTES_MAX, escaped, is_name, normalized, unescaped},
};
use tokio::runtime::Handle;

use crate::{
    app::App,
    boot::san::Presence,
    exports::DaemonExports,
    http::{ApiError, chain},
    iscsi::{Client, Offer, OpenTarget, Targets},
};

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
            let target = target_name(&self.app, &row.volume);
            Offer {
                account: account(&row, &target),
                target,
            }
        };
        from_there.map(offer).collect()
    }

    fn open(&self, target: &str, client: &Client<'_>) -> Option<OpenTarget> {
        let volume = volume_of(&self.app, target)?;
        let named = format!("{} at {}", client.initiator, client.address);
        let exports = DaemonExports {
            app: Arc::clone(&self.app),
            runtime: self.runtime.clone(),
        };
        let row = self.runtime.block_on(self.app.catalog.volume(&volume));
        let opened = row
            .map_err(ApiError::from)
            .and_then(|row| Ok((row, exports.volume(&volume, &named)?)));
        match opened {
            Ok((row, export)) => Some(OpenTarget {
                device: export.device,
                identity: identity(&row.directory),
                lease: Box::new((export.lease, self.presence(target, client))),
            }),
            Err(error) => {
                tracing::warn!(target, detail = error.0.detail, "iSCSI target not opened");
                None
            }
        }
    }

    fn reservations(&self, target: &str) -> Option<String> {
        let volume = volume_of(&self.app, target)?;
        let kept = self
            .runtime
            .block_on(self.app.catalog.reservations(&volume));
        kept.unwrap_or_else(|error| {
            tracing::error!(target, error = chain(&error), "reservations not read");
            None
        })
    }

    fn keep_reservations(&self, target: &str, state: &str) -> bool {
        let Some(volume) = volume_of(&self.app, target) else {
            return false;
        };
        let kept = self
            .runtime
            .block_on(self.app.catalog.set_reservations(&volume, state));
        if let Err(error) = &kept {
            tracing::error!(target, error = chain(error), "reservations not kept");
        }
        kept.is_ok()
    }
}

impl DaemonTargets {
    /// A node's session is a step of its boot.
    fn presence(&self, target: &str, client: &Client<'_>) -> Option<Presence> {
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
    check_target(&volume, &target_name(app, &volume))?;
    let secret = chap.then(draw_secret).transpose()?;
    let row = ShareRow {
        initiator: node_name(app, node),
        addresses: Some(address.to_string()),
        secret: secret.clone(),
        mutual_secret: None,
        created: Timestamp::now(),
        volume,
    };
    app.catalog.set_share(&row).await?;
    Ok(secret)
}

/// Ends all shares with a node that is deleted.
pub(crate) async fn forget_node(app: &App, node: &NodeName) -> Result<(), ApiError> {
    let initiator = node_name(app, node);
    for row in app.catalog.shares_with(&initiator).await? {
        app.catalog.remove_share(&row.volume, &initiator).await?;
        expel(app, &initiator, &target_name(app, &row.volume));
    }
    Ok(())
}

/// The iSCSI name of a volume's target.
pub(crate) fn target_name(app: &App, volume: &VolumeName) -> String {
    name_below(&prefix(app), volume)
}

/// Names of volumes know more characters than iSCSI names.
fn name_below(prefix: &str, volume: &VolumeName) -> String {
    format!("{prefix}:volume.{}", escaped(volume.as_str()))
}

fn volume_of(app: &App, target: &str) -> Option<VolumeName> {
    volume_below(&prefix(app), target)
}

fn volume_below(prefix: &str, target: &str) -> Option<VolumeName> {
    let name = target.strip_prefix(prefix)?;
    unescaped(name.strip_prefix(":volume.")?)?.parse().ok()
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
fn check_target(volume: &VolumeName, target: &str) -> Result<(), ApiError> {
    if target.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let detail = format!(
        "volume '{volume}' cannot be an iSCSI target: its iSCSI name would have {} bytes, and the limit is {NAME_BYTES_MAX}",
        target.len()
    );
    Err(ApiError::new(ProblemCode::BadName, detail).with_hint(
        "give the volume a name of fewer capital letters and '_', or set a shorter iscsi.prefix",
    ))
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

/// Shares a volume with an initiator. What it was shared under before is void.
pub(crate) async fn share(
    app: &App,
    volume: VolumeName,
    request: VolumeShareSet,
) -> Result<VolumeShared, ApiError> {
    let initiator = check_initiator(&request.initiator)?;
    if let Some(from) = &request.from {
        check_addresses(from)?;
    }
    let target = target_name(app, &volume);
    check_target(&volume, &target)?;
    let secret = |wanted: bool| wanted.then(draw_secret).transpose();
    let row = ShareRow {
        addresses: request.from,
        secret: secret(request.chap != ChapMode::None)?,
        mutual_secret: secret(request.chap == ChapMode::Mutual)?,
        created: Timestamp::now(),
        initiator,
        volume,
    };
    app.catalog.set_share(&row).await?;
    expel(app, &row.initiator, &target);
    tracing::info!(volume = %row.volume, initiator = row.initiator, "volume shared over iSCSI");
    let reveal = |secret: &Option<Secret>| secret.as_ref().map(|it| it.reveal().to_owned());
    Ok(VolumeShared {
        target,
        addresses: app.iscsi().addresses(),
        secret: reveal(&row.secret),
        mutual_secret: reveal(&row.mutual_secret),
        share: describe(row),
    })
}

/// Ends a share, and the sessions that there are.
pub(crate) async fn unshare(
    app: &App,
    volume: &VolumeName,
    initiator: &str,
) -> Result<(), ApiError> {
    let initiator = normalized(initiator);
    app.catalog.volume(volume).await?;
    if !app.catalog.remove_share(volume, &initiator).await? {
        let detail = format!(
            "volume '{volume}' is not shared with '{}'",
            initiator.escape_debug()
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("`rootstock volume show` shows the initiators"));
    }
    expel(app, &initiator, &target_name(app, volume));
    tracing::info!(%volume, initiator, "volume not shared over iSCSI any more");
    Ok(())
}

/// A volume's shares, as they are shown: without their secrets.
pub(crate) async fn shares(app: &App, volume: &VolumeName) -> Result<Vec<VolumeShare>, ApiError> {
    let rows = app.catalog.shares_of(volume).await?;
    Ok(rows.into_iter().map(describe).collect())
}

fn describe(row: ShareRow) -> VolumeShare {
    VolumeShare {
        initiator: row.initiator,
        from: row.addresses,
        chap: match (row.secret, row.mutual_secret) {
            (None, _) => ChapMode::None,
            (Some(_), None) => ChapMode::OneWay,
            (Some(_), Some(_)) => ChapMode::Mutual,
        },
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

fn check_addresses(text: &str) -> Result<(), ApiError> {
    if parse_addresses(text).is_some() {
        return Ok(());
    }
    let start: String = text.chars().take(100).collect();
    let detail = format!("'{}' is not a network", start.escape_debug());
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("write NETWORK/BITS such as 10.0.0.0/24, or one address"))
}

/// A network's first address and its length in bits, as 128-bit numbers; a family
/// has a range of its own.
fn parse_addresses(text: &str) -> Option<(u128, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
    (bits <= most).then(|| (number(address), bits + 128 - most))
}

fn may_come_from(addresses: Option<&str>, address: IpAddr) -> bool {
    let Some(text) = addresses else {
        return true;
    };
    // What cannot be read lets nobody in.
    let Some((network, bits)) = parse_addresses(text) else {
        return false;
    };
    let differ = network ^ number(address.to_canonical());
    differ.checked_shr(128 - bits).unwrap_or(0) == 0
}

/// IPv4 addresses lie where IPv6 maps them (RFC 4291, section 2.5.5.2).
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_let_in_whom_they_name() {
        for (network, address, expected) in [
            (None, "10.0.0.7", true),
            (Some("10.0.0.0/24"), "10.0.0.7", true),
            (Some("10.0.0.0/24"), "::ffff:10.0.0.7", true),
            (Some("10.0.0.0/24"), "10.0.1.7", false),
            (Some("10.0.0.7"), "10.0.0.7", true),
            (Some("10.0.0.7"), "10.0.0.8", false),
            (Some("0.0.0.0/0"), "192.0.2.1", true),
            (Some("0.0.0.0/0"), "2001:db8::1", false),
            (Some("::/0"), "2001:db8::1", true),
            (Some("2001:db8::/32"), "2001:db8:1::1", true),
            (Some("2001:db8::/32"), "2001:db9::1", false),
            (Some("nonsense"), "10.0.0.7", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(
                may_come_from(network, address),
                expected,
                "{network:?} {address}"
            );
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "::/129", "/8"] {
            assert!(check_addresses(bad).is_err(), "{bad}");
        }
    }

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
            let volume: VolumeName = volume.parse().expect("a name");
            let target = name_below(&prefix, &volume);
            assert_eq!(target, format!("{prefix}:volume.{name}"));
            assert!(is_name(&target));
            assert_eq!(volume_below(&prefix, &target), Some(volume));
        }
        let strange = format!("{prefix}:volume.Seat_7");
        assert_eq!(volume_below(&prefix, &strange), None);
        let long: VolumeName = "A".repeat(64).parse().expect("a name");
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
