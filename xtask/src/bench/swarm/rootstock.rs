//! Rootstock: a daemon as the head, and on each node an agent that holds the image.

use anyhow::Result;

use super::clients::Outcome;
use super::net::Net;
use super::{Site, warm};

pub(super) fn tls(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    run(site, net, "tls")
}

pub(super) fn plain(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    run(site, net, "plain")
}

fn run(site: &Site<'_>, net: &Net, mode: &str) -> Result<Outcome> {
    let _ = (site, net, mode, warm);
    anyhow::bail!("not yet")
}
