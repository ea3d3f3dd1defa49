//! A boot through a machine of the swarm, while no server answers.

use std::time::{SystemTime, UNIX_EPOCH};

use rootstock_api::boot::BootStep;

use super::{Drivers, Failure, Known, Told, call, network};
use crate::cmdline::CommandLine;
use crate::console;
use crate::control::Join;
use crate::guest::Document;
use crate::inventory;
use crate::order::Site;
use crate::service::Service;

/// What is booted, and through whom.
pub(super) fn begin(
    line: &CommandLine,
    site: &Site,
    url: &str,
    mut drivers: Drivers,
    told: &mut Told,
) -> Result<Known, Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::Session,
        reason,
    };
    let (nic, address) = network(line, &mut drivers, told)?;
    drivers.follow(told);
    let service = Service::new(&site.file.authority_pem)
        .map_err(|error| failed(format!("the site's authority is no certificate: {error}")))?;
    let (_, text) = call(&[url.to_owned()], |url| service.guest_document(url))
        .map_err(|error| failed(console::chain(&error)))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs() as i64);
    let guest = Document::open(&text, site, now);
    let mut guest = guest.map_err(|error| failed(console::chain(&error)))?;
    let membership = guest.settle(nic.mac);
    let membership =
        membership.map_err(|error| failed(format!("there is no chance to be had: {error}")))?;
    // Shown on a quiet console, too: its user may look for what only servers have.
    console::error(format_args!(
        "no server answers: this machine boots {}:{} as a guest",
        guest.order.order.image, guest.order.order.version
    ));
    Ok(Known {
        order: guest.order.order,
        manifest: guest.manifest,
        link: Some((nic.clone(), address)),
        opened: None,
        join: Some(Join {
            mac: nic.mac,
            ask: inventory::session_create(String::new(), nic.mac),
        }),
        membership: Some(membership),
        trace: guest.trace,
    })
}
