//! What `rootstock volume share` and `rootstock image share` have in common.

use clap::Args;
use rootstock_api::{ChapMode, Share, ShareSet, SharedTarget};

use crate::{output, session::Session};

/// With which initiator something is shared, and how.
#[derive(Debug, Args)]
pub(crate) struct WithArgs {
    /// The initiator's name: iqn.…, eui.… or naa.…
    #[arg(long, value_name = "NAME")]
    initiator: String,
    /// Make a secret that the initiator must know
    #[arg(long)]
    chap: bool,
    /// Make a second secret, by which the initiator knows the target; implies --chap
    #[arg(long)]
    mutual: bool,
    /// Only from this network or address: 10.0.0.0/24
    #[arg(long, value_name = "CIDR")]
    from: Option<String>,
    /// Send it to this target of the same name instead: another head's HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    redirect: Option<String>,
}

impl WithArgs {
    /// The request that says so.
    pub(super) fn request(&self) -> ShareSet {
        ShareSet {
            initiator: self.initiator.clone(),
            from: self.from.clone(),
            redirect: self.redirect.clone(),
            target: None,
            lun: None,
            chap: match (self.chap, self.mutual) {
                (_, true) => ChapMode::Mutual,
                (true, false) => ChapMode::OneWay,
                (false, false) => ChapMode::None,
            },
        }
    }
}

/// Says what is shared now, with its secrets.
pub(super) fn told(session: &Session, shared: &SharedTarget) -> anyhow::Result<()> {
    if session.json() {
        return output::json(shared);
    }
    output::line(&shared_text(shared))
}

fn shared_text(shared: &SharedTarget) -> String {
    let addresses = &shared.addresses;
    let mut fields = vec![
        ("target", target_text(&shared.target, shared.lun)),
        (
            "at",
            if addresses.is_empty() {
                "nowhere: the daemon serves no iSCSI (iscsi.listen)".to_owned()
            } else {
                addresses.join(", ")
            },
        ),
        ("initiator", text(&shared.share)),
    ];
    if let Some(secret) = &shared.secret {
        fields.push((
            "user name",
            format!("any, such as {}", shared.share.initiator),
        ));
        fields.push(("secret", format!("{secret}   (shown this once)")));
    }
    if let Some(secret) = &shared.mutual_secret {
        fields.push(("its name", shared.target.clone()));
        fields.push(("its secret", format!("{secret}   (shown this once)")));
    }
    output::fields(&fields)
}

/// A target, and the disk's number in it unless that is 0.
pub(super) fn target_text(target: &str, lun: u16) -> String {
    if lun == 0 {
        return target.to_owned();
    }
    format!("{target}, LUN {lun}")
}

/// An initiator, and what it has to prove.
pub(super) fn text(share: &Share) -> String {
    let mut text = share.initiator.clone();
    if let Some(from) = &share.from {
        text.push_str(&format!(" from {from}"));
    }
    match share.chap {
        ChapMode::None => {}
        ChapMode::OneWay => text.push_str(", CHAP"),
        ChapMode::Mutual => text.push_str(", mutual CHAP"),
    }
    if let Some(redirect) = &share.redirect {
        text.push_str(&format!(", sent to {redirect}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn a_share_reads_well() {
        let shared = SharedTarget {
            target: "iqn.2026-11.example.site:volume.seat-7".to_owned(),
            lun: 0,
            addresses: vec!["10.0.0.1:3260".to_owned()],
            share: Share {
                initiator: "iqn.2010-04.org.ipxe:seat-7".to_owned(),
                from: Some("10.0.0.0/24".to_owned()),
                chap: ChapMode::OneWay,
                redirect: Some("10.0.0.2:3260".to_owned()),
            },
            secret: Some("abcdefghijkmnpqr".to_owned()),
            mutual_secret: Some("stuvwxyz23456789".to_owned()),
        };
        assert_snapshot!(shared_text(&shared), @r"
        target      iqn.2026-11.example.site:volume.seat-7
        at          10.0.0.1:3260
        initiator   iqn.2010-04.org.ipxe:seat-7 from 10.0.0.0/24, CHAP, sent to 10.0.0.2:3260
        user name   any, such as iqn.2010-04.org.ipxe:seat-7
        secret      abcdefghijkmnpqr   (shown this once)
        its name    iqn.2026-11.example.site:volume.seat-7
        its secret  stuvwxyz23456789   (shown this once)
        ");
    }
}
