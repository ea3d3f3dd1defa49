//! Scripts of machines whose disk is reached over iSCSI.

use std::fmt::Write as _;

use super::{RETRY_SECONDS, begin};

/// A disk that a machine reaches over iSCSI.
#[derive(Clone)]
pub struct SanPlan {
    /// For the screen: the machine and what it runs.
    pub title: String,
    /// Where the target is.
    pub portal: std::net::SocketAddr,
    /// Its iSCSI name.
    pub target: String,
    /// The machine's iSCSI name, with which it logs in.
    pub initiator: String,
    /// Its CHAP secret, letters and digits, if it has to prove one.
    pub secret: Option<String>,
}

/// The script of a machine that starts the boot loader of a disk that it reaches over
/// iSCSI. The disk stays hooked, and its description is left in memory for the system
/// (the iSCSI Boot Firmware Table). When it does not start, the machine asks `again`,
/// for the secret may be another by then.
#[must_use]
pub fn ipxe_san(plan: &SanPlan, again: &str) -> String {
    let mut script = begin(&plan.title);
    script.push_str(&login(plan));
    let url = url(plan);
    let _ = write!(
        script,
        "\
sanboot {url} ||
echo Rootstock: the disk does not start, trying again
:again
sleep {RETRY_SECONDS}
chain --replace {again} ||
goto again
"
    );
    script
}

/// Who the machine is to its disk.
pub(super) fn login(plan: &SanPlan) -> String {
    let initiator = &plan.initiator;
    let mut lines = format!("set initiator-iqn {initiator}\n");
    if let Some(secret) = &plan.secret {
        let _ = writeln!(lines, "set username {initiator}");
        let _ = writeln!(lines, "set password {secret}");
    }
    lines
}

/// The disk, as iPXE writes it (RFC 4173, section 5).
pub(super) fn url(plan: &SanPlan) -> String {
    let host = match plan.portal.ip() {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    };
    format!("iscsi:{host}::{}:0:{}", plan.portal.port(), plan.target)
}

impl std::fmt::Debug for SanPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SanPlan")
            .field("portal", &self.portal)
            .field("target", &self.target)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_over_iscsi_is_started() {
        let plan = SanPlan {
            title: "n001 starts lab:3 over iSCSI".to_owned(),
            portal: "10.0.0.1:3260".parse().expect("an address"),
            target: "iqn.2026-11.example:volume.n001".to_owned(),
            initiator: "iqn.2026-11.example:node.n001".to_owned(),
            secret: Some("abcdefgh23456789".to_owned()),
        };
        let again = "http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56";
        let script = ipxe_san(&plan, again);
        insta::assert_snapshot!(script, @"
        #!ipxe
        echo Rootstock: n001 starts lab:3 over iSCSI
        set initiator-iqn iqn.2026-11.example:node.n001
        set username iqn.2026-11.example:node.n001
        set password abcdefgh23456789
        sanboot iscsi:10.0.0.1::3260:0:iqn.2026-11.example:volume.n001 ||
        echo Rootstock: the disk does not start, trying again
        :again
        sleep 10
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56 ||
        goto again
        ");
        let plan = SanPlan {
            secret: None,
            ..plan
        };
        let script = ipxe_san(&plan, again);
        assert!(!script.contains("username") && !script.contains("password"));
    }
}
