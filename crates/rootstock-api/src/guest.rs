//! What machines boot that no server knows by then: an order for strangers.
//!
//! A head gives it, while it lives, to machines that boot others
//! ([`crate::settings::Settings::boots_others`]); those hand it on to whoever asks in
//! their subnet. So nothing in it is secret, nor of any one machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{boot::BootOrder, local::LocalFile, swarm::SwarmOrder};

/// A [`GuestOrder`], with its signature in [`crate::boot::ORDER_SIGNATURE_HEADER`].
/// `?image=lab&version=3` is the version that the asking machine runs. Its files are
/// those of [`crate::local::LOCAL_FILE`].
pub const GUEST_ORDER: &str = "/node/v1/guest";

/// The format of a [`GuestOrder`].
pub const GUEST_FORMAT: u32 = 1;

/// The largest, in bytes.
pub const GUEST_ORDER_BYTES_MAX: usize = 64 << 10;

/// What a machine runs that boots while no server answers. The bytes on the wire are
/// what is signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestOrder {
    /// [`GUEST_FORMAT`].
    pub guest_format: u32,
    /// Until when it is followed, in seconds since 1970.
    pub until_seconds: i64,
    /// What it runs: diskless, without a session, a volume and an identity.
    pub order: BootOrder,
    /// The kernel's arguments, but for Rootstock's own.
    pub arguments: Vec<String>,
    /// The version's kernel.
    pub kernel: LocalFile,
    /// The first stage made for it.
    pub first_stage: LocalFile,
    /// How it takes part in the swarm.
    pub swarm: SwarmOrder,
    /// With TLS, what it shows there: a certificate for guests, PEM, and its key. Anybody
    /// can have both; members believe nothing of who shows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<GuestCredentials>,
}

/// A certificate for guests.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestCredentials {
    /// PEM.
    pub certificate_pem: String,
    /// PKCS #8, PEM.
    pub key_pem: String,
}
