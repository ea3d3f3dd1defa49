//! What tests of booting machines look at: steps, notes, a guest's shell, and somebody else on the wire.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_api::boot::{BootOrder, ORDER, SESSION, SessionCreate, SessionState};
use serde_json::Value;

use crate::golden::{self, Golden};
use crate::lan::{BOOT_LIMIT, BRIDGE, Lan, SERVER};
use crate::namespace::Namespace;
use crate::pxe::PoweredOn;
use crate::{Process, tool, wait};

/// How long a command in an emulated guest may take.
pub const SHELL_LIMIT: Duration = Duration::from_secs(180);

/// An image, made now or by an earlier run.
///
/// # Errors
/// When it cannot be made.
pub fn image(golden: Golden) -> Result<PathBuf> {
    golden::build(&golden::cache()?, golden, &|line| println!("{line}"))
}

/// Reads all files below these directories of the guest, none of them from its own
/// memory, and answers with [`ALL_READ`] some time.
///
/// # Errors
/// When the guest is gone.
pub fn begin_to_read(machine: &mut PoweredOn, directories: &str) -> Result<()> {
    let command = format!(
        "sync; echo 3 > /proc/sys/vm/drop_caches; \
         find {directories} -xdev -type f -print0 | xargs -0 cat > /dev/null && echo all-\"\"read\n"
    );
    machine.console.send(&command)
}

/// What a guest says when it has read everything.
pub const ALL_READ: &str = "all-read";

/// The errors of the guest's disk and file systems, as its kernel tells them.
///
/// # Errors
/// When its shell does not answer.
pub fn disk_errors(machine: &mut PoweredOn) -> Result<String> {
    shell(
        machine,
        "dmesg | grep -iE 'I/O error|EXT4-fs error' || true",
    )
}

/// Shuts the guest down and waits until its machine is off.
///
/// # Errors
/// When it hangs.
pub fn power_off(mut machine: PoweredOn) -> Result<()> {
    machine.console.send("systemctl poweroff\n")?;
    let status = machine.process().wait(BOOT_LIMIT)?;
    ensure!(status.success(), "the machine ended with {status}");
    Ok(())
}

/// What `command` prints in the guest's shell.
///
/// # Errors
/// When it fails there.
pub fn shell(machine: &mut PoweredOn, command: &str) -> Result<String> {
    let output = machine.console.shell(command, SHELL_LIMIT)?;
    Ok(output.trim().to_owned())
}

/// The steps of a node's last boot, each with what was said of it.
///
/// # Errors
/// When the daemon does not tell.
pub fn steps(lan: &Lan, node: &str) -> Result<Vec<(String, String)>> {
    let log = lan.daemon.json(["node", "log", node])?;
    let steps = log["boots"][0]["steps"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let step = |step: &Value| (text(&step["step"]), text(&step["detail"]));
    Ok(steps.into_iter().flatten().map(step).collect())
}

/// Waits until a node's last boot has come to `step`.
///
/// # Errors
/// When it does not.
pub fn reach(lan: &Lan, node: &str, step: &str) -> Result<()> {
    wait::until(&format!("{node} at {step}"), BOOT_LIMIT, || {
        let steps = steps(lan, node)?;
        Ok(steps.iter().any(|(name, _)| name == step).then_some(()))
    })
}

/// Waits until a note of a node's last boot has all these words.
///
/// # Errors
/// When there is none.
pub fn noted(lan: &Lan, node: &str, words: &[&str]) -> Result<()> {
    let what = format!("a note of {node} with {words:?}");
    wait::until(&what, SHELL_LIMIT, || {
        let steps = steps(lan, node)?;
        let has = |detail: &str| words.iter().all(|word| detail.contains(word));
        Ok(steps.iter().any(|(_, detail)| has(detail)).then_some(()))
    })
}

/// Somebody else on the bridge, with an address and `curl`.
pub struct Peer {
    /// Where it is.
    pub namespace: Namespace,
    /// The address of its card.
    pub mac: String,
}

/// The site's own DHCP server, on a peer, for the lab's upper hundred addresses.
///
/// # Errors
/// When it does not start.
pub fn dnsmasq(lan: &Lan, site: &Peer) -> Result<Process> {
    dnsmasq_with(lan, site, &[])
}

/// As [`dnsmasq`], with more options.
///
/// # Errors
/// When it does not start.
pub fn dnsmasq_with(lan: &Lan, site: &Peer, more: &[&str]) -> Result<Process> {
    let mut dnsmasq = site.namespace.command("dnsmasq");
    dnsmasq.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
        "--dhcp-range=10.77.0.100,10.77.0.199,1h",
        "--dhcp-option=option:router,10.77.0.1",
        "--dhcp-authoritative",
        "--log-dhcp",
        "--pid-file=",
        "--user=root",
    ]);
    dnsmasq.arg(format!("--dhcp-leasefile={}", lan.path("leases").display()));
    dnsmasq.args(more);
    Process::start("dnsmasq", &mut dnsmasq, &lan.path("dnsmasq.log"))
}

/// An answer to [`Peer::curl`].
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status; 0 when nobody answered.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Peer {
    /// Plugs one in, at `10.77.0.NUMBER` and with machine `number`'s card.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lan: &Lan, number: u8) -> Result<Self> {
        let peer = Self::bare(lan, number)?;
        peer.namespace
            .ip(&format!("addr add 10.77.0.{number}/24 dev eth0"))?;
        Ok(peer)
    }

    /// As [`Peer::new`], without an address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bare(lan: &Lan, number: u8) -> Result<Self> {
        let namespace = Namespace::new("peer")?;
        let mac = Lan::mac(number);
        let port = format!("peer{number}");
        lan.namespace.cable(&port, &namespace, "eth0")?;
        namespace.ip(&format!("link set eth0 address {mac}"))?;
        lan.namespace
            .ip(&format!("link set {port} master {BRIDGE}"))?;
        Ok(Self { namespace, mac })
    }

    /// Asks by `curl`, whose last words are these; certificates are not looked at.
    ///
    /// # Errors
    /// When curl cannot be started or its answer not be read.
    pub fn curl(&self, words: &[&str]) -> Result<Answer> {
        let mut command: Command = self.namespace.command("curl");
        command.args(["-sk", "--max-time", "60", "-w", "\n%{http_code}"]);
        let output = tool::output(command.args(words))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').context("curl told no status")?;
        Ok(Answer {
            status: status.parse()?,
            body: body.to_owned(),
        })
    }

    /// The script of a card.
    ///
    /// # Errors
    /// When there is none.
    pub fn script(&self, mac: &str) -> Result<String> {
        let url = format!("http://{SERVER}:8480/boot/ipxe/{}", mac.replace(':', "-"));
        let answer = self.curl(&[&url])?;
        ensure!(answer.status == 200, "no script: {answer:?}");
        Ok(answer.body)
    }

    /// A token of the peer's own boot.
    ///
    /// # Errors
    /// When its script has none.
    pub fn token(&self) -> Result<String> {
        let script = self.script(&self.mac)?;
        let token = token_of(&script);
        token.with_context(|| format!("the script has no token: {script}"))
    }

    /// Gives a token in, as the machine with this card.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn redeem(&self, token: &str, mac: &str) -> Result<Answer> {
        let create = SessionCreate {
            token: token.to_owned(),
            mac: mac.to_owned(),
            uuid: None,
            release: "test".to_owned(),
            inventory: Default::default(),
        };
        let body = serde_json::to_string(&create)?;
        let url = format!("https://{SERVER}:8481{SESSION}");
        let json = "content-type: application/json";
        self.curl(&["-H", json, "-d", &body, &url])
    }

    /// The secret of a session for a token of its own.
    ///
    /// # Errors
    /// When it gets none.
    pub fn session(&self, token: &str) -> Result<String> {
        let answer = self.redeem(token, &self.mac)?;
        match serde_json::from_str(&answer.body) {
            Ok(SessionState::Open { session, .. }) => Ok(session),
            _ => anyhow::bail!("no session: {answer:?}"),
        }
    }

    /// Asks for a session's order.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn ask_order(&self, session: &str) -> Result<Answer> {
        let url = format!("https://{SERVER}:8481{ORDER}");
        self.curl(&["-H", &bearer(session), &url])
    }

    /// A session's order.
    ///
    /// # Errors
    /// When there is none.
    pub fn order(&self, session: &str) -> Result<BootOrder> {
        let answer = self.ask_order(session)?;
        serde_json::from_str(&answer.body).with_context(|| format!("no order: {answer:?}"))
    }
}

/// The header of a session's requests.
#[must_use]
pub fn bearer(session: &str) -> String {
    format!("authorization: Bearer {session}")
}

/// The token in a script or on a kernel's command line.
#[must_use]
pub fn token_of(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("rootstock.token=")?;
    rest.split_whitespace().next().map(str::to_owned)
}
