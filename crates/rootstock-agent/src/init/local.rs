//! A start from the machine's own disk: with its server if that answers, else alone.

use std::time::{Duration, SystemTime};

use rootstock_api::boot::{BootOrder, BootStep, NextVersion, SessionState};

use super::{Drivers, Failure, Known, Opened, Told, address, order, tell_address};
use crate::cmdline::{CommandLine, Ipv4Config};
use crate::console;
use crate::control::Join;
use crate::disk::find::Devices;
use crate::inventory;
use crate::local::{Kept, Start, disk};
use crate::nic::Nic;
use crate::order::Site;
use crate::rejoin;
use crate::report::step;
use crate::service::Service;
use crate::swarm::membership::Membership;

/// A disk may be slow to start.
const DISK_LIMIT: Duration = Duration::from_secs(60);
/// A server that is there answers within these; its user waits for them in vain when
/// it is not.
const NIC_LIMIT: Duration = Duration::from_secs(5);
const LINK_LIMIT: Duration = Duration::from_secs(6);
const DHCP_WAITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3)];

/// What is started, and with whom.
pub(super) fn begin(
    line: &CommandLine,
    site: &Site,
    name: &str,
    mut drivers: Drivers,
    told: &mut Told,
) -> Result<Known, Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::Session,
        reason,
    };
    let (start, membership) = find(site, name, &mut drivers).map_err(failed)?;
    let spec = format!("{}:{}", start.local.order.image, start.local.order.version);
    let nic = drivers.nic(line, NIC_LIMIT);
    let link = nic.clone().and_then(|nic| link(line, nic, told));
    drivers.follow(told);
    let join = nic.map(|nic| Join {
        mac: nic.mac,
        ask: inventory::session_create(String::new(), nic.mac),
    });
    if let (Some(_), Some(join)) = (&link, &join)
        && let Some((opened, order)) = open(line, site, join, &start.local.order, told)
    {
        return Ok(Known {
            order,
            manifest: start.manifest,
            link,
            opened: Some(opened),
            join: None,
            membership: None,
            trace: None,
        });
    }
    // Shown on a quiet console, too: its user would wait for what only servers have.
    console::error(format_args!(
        "no server answers: this machine starts {spec} from its own disk"
    ));
    Ok(Known {
        order: start.local.order,
        manifest: start.manifest,
        link,
        opened: None,
        join,
        membership: membership.and_then(|text| remembered(site, &text)),
        trace: None,
    })
}

/// What the machine remembers of the swarm, if that can be used.
fn remembered(site: &Site, text: &[u8]) -> Option<Membership> {
    match Membership::decode(text, &site.file, SystemTime::now()) {
        Ok(membership) => Some(membership),
        Err(error) => {
            console::warn(format_args!(
                "what this machine kept of the swarm is not used: {error}"
            ));
            None
        }
    }
}

/// The start that GRUB named and what lies beside it, when its disk is there.
fn find(
    site: &Site,
    name: &str,
    drivers: &mut Drivers,
) -> Result<(Start, Option<Vec<u8>>), String> {
    let devices = Devices::open().map_err(|error| format!("there is no /dev: {error}"))?;
    let found = drivers.until(DISK_LIMIT, || disk::document(&devices, name));
    let found = found.ok_or_else(|| {
        format!(
            "the disk that this machine started from is not found, or has no {name} any more: \
             check the disk, or start this machine from the network"
        )
    })?;
    console::info(format_args!("started from {}", found.disk));
    let start = Kept::open(&found.text, name, site).map_err(|error| {
        format!(
            "{}; start this machine from the network once",
            console::chain(&error)
        )
    })?;
    Ok((start, found.membership))
}

/// The card with an address, if it gets one soon.
fn link(line: &CommandLine, nic: Nic, told: &mut Told) -> Option<(Nic, Ipv4Config)> {
    match address(&nic, line, LINK_LIMIT, &DHCP_WAITS) {
        Ok(address) => {
            tell_address(&nic, &address, told);
            Some((nic, address))
        }
        Err(error) => {
            console::info(error);
            None
        }
    }
}

/// A session and an order for the same version, if a server gives them.
fn open(
    line: &CommandLine,
    site: &Site,
    join: &Join,
    runs: &BootOrder,
    told: &mut Told,
) -> Option<(Opened, BootOrder)> {
    let service = Service::new(&site.file.authority_pem).ok()?;
    let version = NextVersion {
        image: runs.image.clone(),
        version: runs.version,
        manifest: runs.manifest,
    };
    for url in &line.urls {
        let (session, node) = match rejoin::open(&service, url, join, &version) {
            Ok(SessionState::Open { session, node }) => (session, node),
            Ok(SessionState::Held { message, .. }) => {
                console::error(message);
                continue;
            }
            Err(error) => {
                console::info(console::chain(&error));
                continue;
            }
        };
        console::info(format_args!("this machine is {node}"));
        let opened = Opened {
            service: service.with_session(&session),
            url: url.clone(),
            session,
        };
        match order(site, &opened) {
            Ok((order, _)) if order.manifest == runs.manifest => {
                told.service = Some((opened.service.clone(), url.clone()));
                told.steps.push(step(BootStep::Session, 0, node));
                return Some((opened, order));
            }
            Ok(_) => console::warn("its server has another order for it"),
            Err(failure) => console::warn(failure.reason),
        }
    }
    None
}
