//! What the machine believes: an order and a manifest that its site signed.

use ed25519_dalek::{Signature, VerifyingKey};
use rootstock_api::boot::{BootOrder, CacheChoice, Identity, NextVersion, NodeMode, SiteFile};
use rootstock_api::guest::{GUEST_FORMAT, GuestOrder};
use rootstock_api::local::{LOCAL_FILE_BYTES_MAX, LOCAL_FORMAT, LocalFile, LocalOrder};
use rootstock_api::swarm::SwarmMode;
use rootstock_core::Digest;
use rootstock_image::manifest::{Manifest, ManifestError};
use rootstock_image::seal::{Seal, SealError};
use serde::de::DeserializeOwned;

/// The format of `site.json` that this release reads.
const SITE_FORMAT: u32 = 1;

/// The session of orders that are followed without one.
const NO_SESSION: &str = "";

/// The longest path of an export, in bytes.
const EXPORT_BYTES_MAX: usize = 255;

/// Why an order, a manifest or a site's file is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// The first stage's own file.
    #[error("the site's file (/rootstock/site.json of a first stage) cannot be used: {what}")]
    Site {
        /// What is wrong with it.
        what: String,
    },
    /// The signature is not the site's.
    #[error(
        "the {what} is not signed by this machine's site: another server answers, or its key was replaced; boot again to fetch a new first stage"
    )]
    Signature {
        /// What was signed.
        what: &'static str,
    },
    /// It is well signed and not for this boot.
    #[error("the order is for another boot: an old one was replayed")]
    OtherBoot,
    /// It is well signed and makes no sense.
    #[error("the order cannot be followed: {what}")]
    Order {
        /// What is wrong.
        what: String,
    },
    /// The manifest is another one.
    #[error("the manifest is not the one of the order")]
    OtherManifest,
    /// The seal is not good.
    #[error("the manifest's seal is refused")]
    Seal(#[source] SealError),
    /// The manifest makes no sense.
    #[error("the manifest cannot be read")]
    Manifest(#[source] ManifestError),
}

/// A site as the first stage knows it.
pub(crate) struct Site {
    /// What the file says.
    pub(crate) file: SiteFile,
    /// Its key.
    pub(crate) key: VerifyingKey,
}

impl Site {
    /// Reads the text of `site.json`.
    pub(crate) fn parse(text: &str) -> Result<Self, TrustError> {
        let bad = |what: String| TrustError::Site { what };
        Self::new(serde_json::from_str(text).map_err(|error| bad(error.to_string()))?)
    }

    /// The site that this file is of.
    pub(crate) fn new(file: SiteFile) -> Result<Self, TrustError> {
        let bad = |what: String| TrustError::Site { what };
        if file.format != SITE_FORMAT {
            return Err(bad(format!("its format is {}", file.format)));
        }
        let key = unhex(&file.public_key)
            .and_then(|bytes| VerifyingKey::from_bytes(bytes.first_chunk()?).ok())
            .ok_or_else(|| bad("its key is no ed25519 key".to_owned()))?;
        Ok(Self { file, key })
    }

    /// The order in these bytes, if the site signed them for just this session.
    pub(crate) fn order(
        &self,
        bytes: &[u8],
        signature: &str,
        session: &str,
    ) -> Result<BootOrder, TrustError> {
        self.signed(bytes, signature)?;
        let order: BootOrder = parsed(bytes)?;
        check(&order, session)?;
        Ok(order)
    }

    /// The local order in these bytes, if the site signed them. It is for no session.
    pub(crate) fn local_order(
        &self,
        bytes: &[u8],
        signature: &str,
    ) -> Result<LocalOrder, TrustError> {
        self.signed(bytes, signature)?;
        let local: LocalOrder = parsed(bytes)?;
        let bad = |what: &str| TrustError::Order {
            what: what.to_owned(),
        };
        if local.local_format != LOCAL_FORMAT {
            return Err(bad("its format is one of another release"));
        }
        if local.order.mode != NodeMode::Diskless {
            return Err(bad("only diskless machines start from their own disk"));
        }
        let is_long = |file: &LocalFile| file.len_bytes > LOCAL_FILE_BYTES_MAX;
        if is_long(&local.kernel) || is_long(&local.first_stage) || local.loader.iter().any(is_long)
        {
            return Err(bad("a file of it is longer than 256 MiB"));
        }
        check(&local.order, NO_SESSION)?;
        Ok(local)
    }

    /// The order for strangers in these bytes, if the site signed it and it holds at this
    /// time, in seconds since 1970.
    pub(crate) fn guest_order(
        &self,
        bytes: &[u8],
        signature: &str,
        now_seconds: Option<i64>,
    ) -> Result<GuestOrder, TrustError> {
        self.signed(bytes, signature)?;
        let guest: GuestOrder = parsed(bytes)?;
        let bad = |what: &str| TrustError::Order {
            what: what.to_owned(),
        };
        if guest.guest_format != GUEST_FORMAT {
            return Err(bad("its format is one of another release"));
        }
        if now_seconds.is_some_and(|now| now > guest.until_seconds) {
            return Err(bad("it has run out: no server renewed it for too long"));
        }
        let order = &guest.order;
        let is_plain = order.mode == NodeMode::Diskless
            && order.cache == CacheChoice::None
            && order.keep.is_empty()
            && order.install.is_none()
            && order.identity == Identity::default();
        if !is_plain {
            return Err(bad("a guest has neither disks nor a name of a node"));
        }
        let is_long = |file: &LocalFile| file.len_bytes > LOCAL_FILE_BYTES_MAX;
        if is_long(&guest.kernel) || is_long(&guest.first_stage) {
            return Err(bad("a file of it is longer than 256 MiB"));
        }
        match (guest.swarm.mode, &guest.credentials) {
            (SwarmMode::Tls, Some(_)) | (SwarmMode::Plain, None) => {}
            _ => return Err(bad("it does not say how the swarm is reached")),
        }
        check(order, NO_SESSION)?;
        Ok(guest)
    }

    /// Whether the site signed these bytes.
    fn signed(&self, bytes: &[u8], signature: &str) -> Result<(), TrustError> {
        let forged = || TrustError::Signature { what: "order" };
        let signature = unhex(signature)
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .ok_or_else(forged)?;
        // Strict: a signature has one encoding, and weak keys are refused.
        let verified = self.key.verify_strict(bytes, &signature);
        verified.map_err(|_| forged())
    }

    /// The manifest in these bytes, if the site sealed it as the order's version.
    pub(crate) fn manifest(
        &self,
        bytes: &[u8],
        seal: &str,
        order: &BootOrder,
    ) -> Result<Manifest, TrustError> {
        let version = NextVersion {
            image: order.image.clone(),
            version: order.version,
            manifest: order.manifest,
        };
        let manifest = self.sealed(bytes, seal, &version)?;
        if manifest.grid().disk_bytes() != order.disk_bytes {
            return Err(TrustError::OtherManifest);
        }
        Ok(manifest)
    }
}

impl Site {
    /// The manifest in these bytes, if the site sealed it as this version.
    pub(crate) fn sealed(
        &self,
        bytes: &[u8],
        seal: &str,
        version: &NextVersion,
    ) -> Result<Manifest, TrustError> {
        let seal = unhex(seal).ok_or(TrustError::Signature { what: "manifest" })?;
        let seal = Seal::decode(&seal).map_err(TrustError::Seal)?;
        seal.verify_for(&self.key, &version.image, version.version, version.manifest)
            .map_err(TrustError::Seal)?;
        if Digest::of(bytes) != version.manifest {
            return Err(TrustError::OtherManifest);
        }
        Manifest::decode(bytes).map_err(TrustError::Manifest)
    }
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TrustError> {
    serde_json::from_slice(bytes).map_err(|error| TrustError::Order {
        what: error.to_string(),
    })
}

/// What a good signature does not say.
fn check(order: &BootOrder, session: &str) -> Result<(), TrustError> {
    let bad = |what: &str| {
        Err(TrustError::Order {
            what: what.to_owned(),
        })
    };
    if order.boot != session {
        return Err(TrustError::OtherBoot);
    }
    if order.mode == NodeMode::Personal && order.volume.is_some() == order.personal.is_some() {
        return bad("the mode is personal, and not one place for its writes is named");
    }
    if (order.mode == NodeMode::Nfs) != order.nfs.is_some() {
        return bad("a place of NFS belongs to the mode nfs, and to no other");
    }
    if order
        .nfs
        .as_ref()
        .is_some_and(|place| !is_export(&place.path))
    {
        return bad("the path of its root on the server is none");
    }
    if order.volume.is_none() && order.chunk_urls.is_empty() {
        return bad("no server of chunks is named");
    }
    if order.mode == NodeMode::Hold {
        // It has no root.
        return Ok(());
    }
    if !order.root.init.starts_with('/') {
        return bad("the image's init is no absolute path");
    }
    let fs = &order.root.fs;
    if fs.is_empty() || !fs.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return bad("the root's file system has no name that a kernel knows");
    }
    Ok(())
}

/// Whether this can be the path of an export: nothing that the kernel would take apart.
fn is_export(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= EXPORT_BYTES_MAX
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// The bytes of hex digits.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits
        .chunks_exact(2)
        .map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use rootstock_api::boot::RootPlace;
    use rootstock_core::{CHUNK_BYTES, ChunkId};
    use rootstock_image::grid::Grid;

    use super::*;

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    pub(crate) fn site() -> Site {
        let public_key = hex(key().verifying_key().as_bytes());
        let text = format!(
            r#"{{"format":1,"public_key":"{public_key}","authority_pem":"","made_seconds":0}}"#
        );
        Site::parse(&text).expect("a good site")
    }

    pub(crate) fn order() -> BootOrder {
        let manifest = Manifest::zero(Grid::whole(4 * CHUNK_BYTES).expect("a grid"));
        BootOrder {
            boot: "session".to_owned(),
            node: "n1".to_owned(),
            mode: NodeMode::Diskless,
            image: "lab".parse().expect("a name"),
            version: rootstock_core::VersionNumber(3),
            manifest: manifest.id(),
            disk_bytes: 4 * CHUNK_BYTES,
            root: RootPlace {
                partition: 1,
                fs: "ext4".to_owned(),
                options: String::new(),
                init: "/sbin/init".to_owned(),
            },
            volume: None,
            personal: None,
            nfs: None,
            chunk_urls: vec!["http://10.0.0.1:8480".to_owned()],
            overlay_bytes_max: None,
            cache_bytes: 1 << 26,
            cache: Default::default(),
            cache_disk_bytes_max: None,
            install: None,
            fill: Default::default(),
            swarm: None,
            report_seconds: 30,
            check: None,
            keep: Vec::new(),
            rescue_shell: false,
            identity: Identity::default(),
        }
    }

    pub(crate) fn signed(order: &impl serde::Serialize) -> (Vec<u8>, String) {
        let bytes = serde_json::to_vec(order).expect("JSON");
        let signature = hex(&key().sign(&bytes).to_bytes());
        (bytes, signature)
    }

    #[test]
    fn a_good_order_is_followed_and_a_changed_one_is_not() {
        let (bytes, signature) = signed(&order());
        let site = site();
        assert_eq!(
            site.order(&bytes, &signature, "session").expect("good"),
            order()
        );
        let mut changed = bytes.clone();
        changed[20] ^= 1;
        for (bytes, signature) in [
            (&changed, signature.clone()),
            (&bytes, signature.replace(&signature[..2], "zz")),
            (&bytes, hex(&[1; 64])),
            (&bytes, String::new()),
        ] {
            let error = site.order(bytes, &signature, "session");
            assert!(matches!(error, Err(TrustError::Signature { .. })));
        }
        let replayed = site.order(&bytes, &signature, "another");
        assert!(matches!(replayed, Err(TrustError::OtherBoot)));
    }

    #[test]
    fn an_order_that_makes_no_sense_is_refused() {
        let with = |change: fn(&mut BootOrder)| {
            let mut order = order();
            change(&mut order);
            let (bytes, signature) = signed(&order);
            let error = site().order(&bytes, &signature, "session");
            error.expect_err("refused").to_string()
        };
        for (error, expected) in [
            (
                with(|order| order.mode = NodeMode::Personal),
                "not one place for its writes",
            ),
            (with(|order| order.chunk_urls.clear()), "no server"),
            (with(|order| order.root.init = "sh".to_owned()), "init"),
            (
                with(|order| order.root.fs = "../x".to_owned()),
                "file system",
            ),
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_sealed_manifest_is_taken() {
        let order = order();
        let manifest = Manifest::zero(Grid::whole(4 * CHUNK_BYTES).expect("a grid"));
        let seal = |key: &SigningKey, id: Digest| {
            hex(&Seal::sign(key, &order.image, order.version, id).encode())
        };
        let good = seal(&key(), order.manifest);
        let site = site();
        assert!(site.manifest(&manifest.encode(), &good, &order).is_ok());
        let other = SigningKey::from_bytes(&[8; 32]);
        let longer = Manifest::zero(Grid::whole(5 * CHUNK_BYTES).expect("a grid"));
        for (bytes, seal) in [
            (manifest.encode(), seal(&other, order.manifest)),
            (longer.encode(), good),
            (longer.encode(), seal(&key(), longer.id())),
            (manifest.encode(), "00".to_owned()),
        ] {
            assert!(site.manifest(&bytes, &seal, &order).is_err());
        }
        assert!(ChunkId::ZERO.is_zero());
    }
}
