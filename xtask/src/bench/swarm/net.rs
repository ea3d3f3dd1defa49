//! A head and its nodes at one switch, each behind a link that is narrow both ways.

use anyhow::{Context, Result};
use rootstock_tests::namespace::Namespace;
use serde_json::Value;

use crate::bench::deliver::shape;
use crate::bench::lab::SERVER;

/// The interface of the head and of each node.
pub(super) const LINK: &str = "eth0";
const BRIDGE: &str = "br0";
/// The switch's port of the head.
const HEAD_PORT: &str = "head";
/// The switch needs an address for nothing.
const SWITCH: &str = "10.77.255.254/16";

/// The network of one measurement.
pub(super) struct Net {
    pub(super) head: Namespace,
    pub(super) nodes: Vec<Namespace>,
    switch: Namespace,
}

impl Net {
    /// Each link lets so much through in each direction; all that it can when none is given.
    pub(super) fn new(node_count: u32, link_mbit: Option<u32>) -> Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.bridge(BRIDGE, SWITCH)?;
        let head = Namespace::new("head")?;
        let nodes: Result<Vec<_>> = (0..node_count).map(|_| Namespace::new("node")).collect();
        let net = Self {
            head,
            nodes: nodes?,
            switch,
        };
        net.plug(HEAD_PORT, &net.head, SERVER, link_mbit)?;
        for (number, node) in (1..).zip(&net.nodes) {
            let port = format!("node{number}");
            net.plug(&port, node, &address(number), link_mbit)?;
        }
        Ok(net)
    }

    /// What the head has sent so far, with all headers.
    pub(super) fn head_sent_bytes(&self) -> Result<u64> {
        let shown = self.switch.ip(&format!("-j -s link show {HEAD_PORT}"))?;
        let shown: Value = serde_json::from_str(&shown)?;
        let sent = shown[0]["stats64"]["rx"]["bytes"].as_u64();
        sent.context("ip shows no bytes of the head's port")
    }

    fn plug(&self, port: &str, member: &Namespace, address: &str, mbit: Option<u32>) -> Result<()> {
        self.switch.cable(port, member, LINK)?;
        self.switch
            .ip(&format!("link set {port} master {BRIDGE}"))?;
        // udpcast asks the interface for its broadcast address.
        member.ip(&format!("addr add {address}/16 brd + dev {LINK}"))?;
        if let Some(mbit) = mbit {
            shape(&self.switch, port, mbit)?;
            shape(member, LINK, mbit)?;
        }
        Ok(())
    }
}

/// Of the node with this number, from 1.
fn address(number: u32) -> String {
    format!("10.77.1.{number}")
}
