//! Orders for strangers: what machines of the swarm hand on to those that boot while no
//! server answers. docs/decisions has why they are trusted with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{extract::State, response::Response};
use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    ProblemCode,
    boot::{BootOrder, CacheChoice, NodeMode},
    guest::{GUEST_FORMAT, GUEST_ORDER_BYTES_MAX, GuestCredentials, GuestOrder},
    swarm::{SwarmMode, SwarmOrder},
};

use super::{
    decide,
    local::{self, LocalQuery},
    node_api::Machine,
    orders, swarm,
};
use crate::{
    app::App,
    http::{ApiError, ApiQuery},
};

/// How long an order is followed, and its certificate holds.
const LIFE: Duration = Duration::from_secs(14 * 24 * 3600);

/// For how long the same certificate is given out.
const SAME: Duration = Duration::from_secs(24 * 3600);

/// What such machines are called, where somebody has to have a name.
const NAME: &str = "guest";

/// The certificate of today.
#[derive(Default)]
pub(super) struct Credentials(Mutex<Option<(Instant, GuestCredentials)>>);

impl Credentials {
    fn get(&self, app: &App) -> Result<GuestCredentials, ApiError> {
        let authority = app.boot.swarm.authority()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, credentials)) = &*known
            && at.elapsed() < SAME
        {
            return Ok(credentials.clone());
        }
        let made = authority.guest(SystemTime::now(), LIFE + SAME);
        let (certificate_pem, key_pem) =
            made.map_err(|error| ApiError::internal("sign a certificate", &error))?;
        let credentials = GuestCredentials {
            certificate_pem,
            key_pem,
        };
        *known = Some((Instant::now(), credentials.clone()));
        Ok(credentials)
    }
}

/// The order for strangers of the version that a machine runs.
pub(super) async fn order(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(query): ApiQuery<LocalQuery>,
) -> Result<Response, ApiError> {
    let meant = local::meant(&app, &machine, query).await?;
    let (node, settings) = (&meant.node, &meant.settings);
    let swarm = swarm::order(settings).filter(|swarm| swarm.boots_others);
    let swarm = swarm.ok_or_else(|| {
        let detail = format!("{} is not to boot others", node.name);
        ApiError::new(ProblemCode::Forbidden, detail).with_hint(format!(
            "`rootstock node set {} --boots-others yes` says so, and it has to be in the swarm",
            node.name
        ))
    })?;
    let arguments = decide::arguments(settings, &meant.stage, &[])
        .map_err(|reason| ApiError::new(ProblemCode::BadValue, reason))?;
    let credentials = match swarm.mode {
        SwarmMode::Tls => Some(app.boot.swarm.guests.get(&app)?),
        SwarmMode::Plain | SwarmMode::Off => None,
    };
    let local = machine.arrival.local.ip().to_canonical();
    let root = meant.stage.root.clone();
    let name = NAME
        .parse()
        .map_err(|error| ApiError::internal("name a guest", &error))?;
    let plain = orders::plain(&app, &name, &meant.version, settings, root, local);
    let life = SignedDuration::try_from(LIFE).unwrap_or_default();
    let order = GuestOrder {
        guest_format: GUEST_FORMAT,
        until_seconds: (Timestamp::now() + life).as_second(),
        order: BootOrder {
            mode: NodeMode::Diskless,
            // A stranger's disks are its own, and so is what it keeps.
            cache: CacheChoice::None,
            keep: Vec::new(),
            check: None,
            rescue_shell: false,
            ..plain
        },
        arguments: arguments
            .iter()
            .map(|argument| argument.as_str().to_owned())
            .collect(),
        kernel: local::file(&app, "kernel", meant.stage.kernel.clone()).await?,
        first_stage: local::file(&app, "first-stage", meant.stage.initrd.clone()).await?,
        swarm: SwarmOrder {
            mode: swarm.mode,
            copies: swarm.copies,
            ..SwarmOrder::default()
        },
        credentials,
    };
    let bytes = serde_json::to_vec(&order);
    let bytes = bytes.map_err(|error| ApiError::internal("write a guest's order", &error))?;
    if bytes.len() > GUEST_ORDER_BYTES_MAX {
        let detail = "the order for guests is longer than 64 KiB: use fewer kernel arguments";
        return Err(ApiError::new(ProblemCode::TooLarge, detail));
    }
    local::signed(&app, bytes)
}
