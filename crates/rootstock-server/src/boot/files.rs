//! Boot files by name: programs, scripts, kernels and first stages, however asked for.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use rootstock_api::boot::BootStep;
use rootstock_core::MacAddress;
use rootstock_netboot::{
    dhcp::{Progress, Who},
    script::{self, GrubSource},
};

use super::{
    body::{Content, OnSent},
    decide::{self, Decision},
    held::Changes,
    installer,
    installs::DISK_FAILED,
    local, neighbours, programs,
    transcript::Told,
};
use crate::app::App;

/// The longest name.
const NAME_BYTES_MAX: usize = 512;

/// What GRUB puts before its card's address, `01` being Ethernet.
const GRUB_OWN: &str = "grub.cfg-01-";

/// How something was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// HTTP on this port.
    Http(u16),
    /// TFTP.
    Tftp,
}

/// A question for a boot file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Its name: a path, with or without a slash before it.
    pub(crate) name: &'a str,
    /// What stands after the question mark.
    pub(crate) query: Option<&'a str>,
    /// Who asks.
    pub(crate) peer: IpAddr,
    /// The address that was asked.
    pub(crate) local: IpAddr,
    /// How.
    pub(crate) via: Via,
}

impl Asked<'_> {
    /// The base of URLs on the address that was asked.
    pub(crate) fn base(&self, app: &App) -> String {
        let port = match self.via {
            Via::Http(port) => port,
            Via::Tftp => app.config.boot.http_port,
        };
        url("http", self.local, port)
    }

    fn grub_source(&self) -> GrubSource {
        let local = match self.local {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        match self.via {
            Via::Http(port) => GrubSource::Http(SocketAddrV4::new(local, port)),
            Via::Tftp => GrubSource::Tftp(local),
        }
    }
}

/// A boot file that was found.
pub(crate) struct Found {
    /// What is sent.
    pub(crate) content: Content,
    /// What it is.
    pub(crate) media_type: &'static str,
    /// To be called when it was sent.
    pub(crate) on_sent: OnSent,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There is no such file.
    Nothing,
    /// There is, and it is another machine's.
    Refused,
    /// There is none for this machine now, and why.
    Otherwise(String),
}

/// Finds a boot file.
pub(crate) async fn find(app: &Arc<App>, asked: Asked<'_>) -> Result<Found, Missing> {
    let name = asked.name.trim_start_matches('/');
    if name.len() > NAME_BYTES_MAX {
        return Err(Missing::Nothing);
    }
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        // iPXE 2.0 looks beside its own file and in the root (efi_autoexec.c).
        ["boot", "ipxe"] | [.., "autoexec.ipxe"] => {
            Ok(text(script::ipxe_generic(&asked.base(app))))
        }
        ["boot", "grub"] | [.., "grub.cfg"] => Ok(text(script::grub_generic(asked.grub_source()))),
        // GRUB asks for its card's own configuration first.
        [.., file] if file.starts_with(GRUB_OWN) => {
            Ok(grub(app, asked, parse_mac(&file[GRUB_OWN.len()..])?).await)
        }
        ["boot", "ipxe", mac] => Ok(ipxe(app, asked, parse_mac(mac)?).await),
        ["boot", "local", mac] => Ok(text(local::token(app, asked, parse_mac(mac)?).await?)),
        ["boot", "hold", mac] => {
            let token = local::hold_token(app, asked, parse_mac(mac)?).await?;
            Ok(text(token))
        }
        ["boot", "grub", mac] => Ok(grub(app, asked, parse_mac(mac)?).await),
        ["boot", "i", token, name] => installer::find(app, asked, token, name).await,
        ["boot", "s", token, part] => staged(app, asked, token, part).await,
        ["boot", "file", program] => self::program(app, asked, program).await,
        [program] if asked.via == Via::Tftp => self::program(app, asked, program).await,
        _ => Err(Missing::Nothing),
    }
}

/// `https://10.0.0.1:8481`, with brackets around IPv6.
pub(crate) fn url(scheme: &str, host: IpAddr, port: u16) -> String {
    format!("{scheme}://{}", std::net::SocketAddr::new(host, port))
}

fn parse_mac(text: &str) -> Result<MacAddress, Missing> {
    // GRUB's variable has colons, which firmware may have encoded.
    let text = text.replace("%3a", ":").replace("%3A", ":");
    let mac = text.parse().ok().filter(MacAddress::is_unicast);
    mac.ok_or(Missing::Nothing)
}

async fn ipxe(app: &Arc<App>, asked: Asked<'_>, mac: MacAddress) -> Found {
    let base = asked.base(app);
    let dashed = mac.dashed();
    text(match decide::decide(app, asked, mac).await {
        Decision::Boot(ready) => {
            let plan = ready.plan(app, asked, mac, script::Address::FromIpxe);
            script::ipxe_boot(&plan).unwrap_or_else(|error| {
                script::ipxe_failed(&base, &dashed, "make the script", &error.to_string())
            })
        }
        Decision::Wait { lines } | Decision::Refused { lines } => {
            script::ipxe_wait(&base, &dashed, &lines)
        }
        Decision::San(plan) => {
            let again = format!("{base}/boot/ipxe/{dashed}");
            script::ipxe_san(&plan, &again)
        }
        Decision::Linux(plan) => {
            let again = format!("{base}/boot/ipxe/{dashed}");
            let shim = shim(app, asked);
            script::ipxe_linux(&plan, &base, shim.as_deref(), &again).unwrap_or_else(|error| {
                script::ipxe_failed(&base, &dashed, "make the script", &error.to_string())
            })
        }
        Decision::OwnDisk { title } => {
            let again = format!("{base}/boot/ipxe/{dashed}?{DISK_FAILED}");
            script::ipxe_own_disk(&title, &again)
        }
        Decision::Local { reason } => script::ipxe_local(&reason),
        Decision::Failed { step, reason } => script::ipxe_failed(&base, &dashed, step, &reason),
    })
}

async fn grub(app: &Arc<App>, asked: Asked<'_>, mac: MacAddress) -> Found {
    let source = asked.grub_source();
    let dashed = mac.dashed();
    let failed = |step: &str, reason: String| {
        let lines = [format!("The server could not {step}:"), reason];
        script::grub_wait(source, &dashed, &lines)
    };
    text(match decide::decide(app, asked, mac).await {
        Decision::Boot(ready) => {
            let plan = ready.plan(app, asked, mac, script::Address::Asked);
            script::grub_boot(&plan, source)
                .unwrap_or_else(|error| failed("make the configuration", error.to_string()))
        }
        Decision::Wait { lines } | Decision::Refused { lines } => {
            script::grub_wait(source, &dashed, &lines)
        }
        Decision::San(_) => failed(
            "start it over iSCSI",
            "this firmware came to GRUB, which knows no iSCSI, and not to iPXE".to_owned(),
        ),
        Decision::Linux(plan) if plan.disk.is_some() => failed(
            "hook its disk over iSCSI",
            "this firmware came to GRUB, which knows no iSCSI, and not to iPXE".to_owned(),
        ),
        Decision::Linux(plan) => script::grub_plain(&plan, source, &dashed)
            .unwrap_or_else(|error| failed("make the configuration", error.to_string())),
        Decision::OwnDisk { title: reason } | Decision::Local { reason } => {
            script::grub_local(&reason)
        }
        Decision::Failed { step, reason } => failed(step, reason),
    })
}

/// Where Secure Boot finds the shim, if there is one.
pub(super) fn shim(app: &App, asked: Asked<'_>) -> Option<String> {
    let shim = app.boot.programs.find("shimx64.efi");
    shim.map(|_| format!("{}/boot/file/shimx64.efi", asked.base(app)))
}

async fn staged(
    app: &Arc<App>,
    asked: Asked<'_>,
    token: &str,
    part: &str,
) -> Result<Found, Missing> {
    let staged = app.boot.staged.get(token).ok_or(Missing::Nothing)?;
    if staged.peer != asked.peer {
        tracing::warn!(
            node = %staged.node,
            boot = staged.boot,
            peer = %asked.peer,
            owner = %staged.peer,
            "boot files of another machine refused"
        );
        let detail = format!("refused {}: it asked for the boot files", asked.peer);
        app.boot.transcripts.note(&staged.boot, detail);
        return Err(Missing::Refused);
    }
    let (content, step) = match part {
        "kernel" => (staged.stage.kernel.clone(), BootStep::KernelServed),
        "initrd" => (staged.stage.initrd.clone(), BootStep::InitrdServed),
        _ => return Err(Missing::Nothing),
    };
    let content = app.boot.held.hold(content, Changes::Never).await;
    let (len, detail) = (content.len_bytes(), staged.stage.kernel_version.clone());
    let (app, mac) = (Arc::clone(app), staged.mac);
    Ok(Found {
        content,
        media_type: "application/octet-stream",
        on_sent: Box::new(move |sent| {
            // A range is a part of it; the whole is the step.
            if sent == len {
                app.boot
                    .transcripts
                    .step(mac, Told::new(step, detail).bytes(sent));
            }
        }),
    })
}

async fn program(app: &Arc<App>, asked: Asked<'_>, name: &str) -> Result<Found, Missing> {
    let (programs, wanted) = (app.boot.programs.clone(), name.to_owned());
    let opened = tokio::task::spawn_blocking(move || programs.open(&wanted)).await;
    let content = opened.ok().flatten().ok_or(Missing::Nothing)?;
    let content = app.boot.held.hold(content, Changes::Possible).await;
    let (len, peer) = (content.len_bytes(), asked.peer);
    if let IpAddr::V4(address) = peer {
        app.boot.progress(Who::Address(address), Progress::File);
    }
    let detail = match asked.via {
        Via::Http(_) => format!("{name} by HTTP"),
        Via::Tftp => format!("{name} by TFTP"),
    };
    let app = Arc::clone(app);
    Ok(Found {
        content,
        media_type: programs::media_type(name),
        on_sent: Box::new(move |sent| {
            if sent == len
                && let Some(mac) = neighbours::mac_of(peer)
            {
                let told = Told::new(BootStep::FileServed, detail).bytes(sent);
                app.boot.transcripts.step(mac, told);
            }
        }),
    })
}

fn text(text: String) -> Found {
    Found {
        content: text.into(),
        media_type: "text/plain",
        on_sent: Box::new(|_| {}),
    }
}
