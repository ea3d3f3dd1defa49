//! What is a node's own in a root that all share: its machine-id and its SSH keys.

use std::fmt::Write as _;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use rootstock_api::boot::NodeFile;
use rootstock_catalog::NodeRow;
use rootstock_core::Digest;
use serde::{Deserialize, Serialize};
use ssh_key::{
    LineEnding, PrivateKey,
    private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData},
    public::Ed25519PublicKey,
};

use crate::{app::App, http::ApiError};

/// The format of a node's secrets in the catalog.
const FORMAT: u32 = 1;

/// A node's secrets, as the catalog keeps them.
#[derive(Serialize, Deserialize)]
struct Secrets {
    format: u32,
    /// The seed of its SSH host key (ed25519), in hex.
    ssh_ed25519: String,
}

/// A node's SSH host key.
pub(crate) struct HostKey {
    /// As `ssh_host_ed25519_key` has it.
    pub(crate) private: String,
    /// As `ssh_host_ed25519_key.pub` has it, without a line's end.
    pub(crate) public: String,
}

impl HostKey {
    /// The files that sshd reads.
    pub(crate) fn files(&self) -> [NodeFile; 2] {
        let file = |name: &str, mode, text: &str| NodeFile {
            path: format!("/etc/ssh/{name}"),
            mode,
            text: text.to_owned(),
        };
        [
            file("ssh_host_ed25519_key", 0o600, &self.private),
            file(
                "ssh_host_ed25519_key.pub",
                0o644,
                &format!("{}\n", self.public),
            ),
        ]
    }
}

/// A node's SSH host key, made when it is asked for the first time.
pub(crate) async fn host_key(app: &App, node: &NodeRow) -> Result<HostKey, ApiError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| ApiError::internal("draw a key", &error))?;
    let fresh = move || {
        let secrets = Secrets {
            format: FORMAT,
            ssh_ed25519: crate::app::hex(&seed),
        };
        serde_json::to_string(&secrets).unwrap_or_default()
    };
    let now = Timestamp::now();
    let kept = app.catalog.node_secret(&node.name, fresh, now).await?;
    let damaged = || ApiError::damaged(format!("the secrets of node {} are damaged", node.name));
    let secrets: Secrets = serde_json::from_str(&kept).map_err(|_| damaged())?;
    if secrets.format != FORMAT {
        return Err(ApiError::damaged(format!(
            "the secrets of node {} are of format {}, which a newer release wrote",
            node.name, secrets.format
        )));
    }
    let seed = unhex(&secrets.ssh_ed25519).ok_or_else(damaged)?;
    of_seed(&seed, node.name.as_str()).ok_or_else(damaged)
}

fn of_seed(seed: &[u8; 32], name: &str) -> Option<HostKey> {
    let key = SigningKey::from_bytes(seed);
    let pair = Ed25519Keypair {
        public: Ed25519PublicKey(key.verifying_key().to_bytes()),
        private: Ed25519PrivateKey::from_bytes(seed),
    };
    let key = PrivateKey::new(KeypairData::Ed25519(pair), name).ok()?;
    Some(HostKey {
        private: key.to_openssh(LineEnding::LF).ok()?.to_string(),
        public: key.public_key().to_openssh().ok()?,
    })
}

/// A node's machine-id (machine-id(5)): always the same, and no other node's, also
/// not that of one that had its name before. It has the form of a random UUID.
pub(crate) fn machine_id(site: &SigningKey, node: &NodeRow) -> String {
    let text = format!(
        "rootstock machine-id\0{}\0{}\0{}",
        crate::app::hex(site.verifying_key().as_bytes()),
        node.name,
        node.created.as_millisecond()
    );
    let digest = Digest::of(text.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut id = String::with_capacity(32);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootstock_catalog::NodeState;

    #[test]
    fn a_key_is_in_the_form_that_ssh_reads() {
        let key = of_seed(&[7; 32], "n001").expect("is made");
        let read = PrivateKey::from_openssh(&key.private).expect("is read");
        assert_eq!(
            read.public_key().to_openssh().expect("is written"),
            key.public
        );
        assert!(key.public.starts_with("ssh-ed25519 AAAA") && key.public.ends_with(" n001"));
        let [private, public] = key.files();
        assert_eq!((private.mode, public.mode), (0o600, 0o644));
        assert_eq!(unhex(&crate::app::hex(&[7; 32])), Some([7; 32]));
        assert_eq!(unhex("zz"), None);
    }

    #[test]
    fn machine_ids_are_nodes_own() {
        let site = SigningKey::from_bytes(&[1; 32]);
        let node = |name: &str, created: i64| NodeRow {
            name: name.parse().expect(name),
            profile: None,
            state: NodeState::Ready,
            macs: Vec::new(),
            uuid: None,
            address: None,
            settings: "{}".to_owned(),
            image: None,
            inventory: None,
            created: Timestamp::from_millisecond(created).expect("a time"),
            approved: None,
            seen: None,
        };
        let id = machine_id(&site, &node("n001", 1));
        assert_eq!(id.len(), 32);
        assert_eq!(&id[12..13], "4");
        assert_eq!(id, machine_id(&site, &node("n001", 1)));
        assert_ne!(id, machine_id(&site, &node("n002", 1)));
        assert_ne!(id, machine_id(&site, &node("n001", 2)));
        assert_ne!(
            id,
            machine_id(&SigningKey::from_bytes(&[2; 32]), &node("n001", 1))
        );
    }
}
