//! What a machine keeps on its own disk to start when no server answers.
//!
//! GRUB comes from this system's own packages, signed for UEFI, and is put together
//! for a BIOS as `grub-install` does it; docs/formats/start.md has what becomes of it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::FileExt as _,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use rootstock_api::{
    BINARY_MEDIA_TYPE, ProblemCode,
    boot::{NodeMode, ORDER_SIGNATURE_HEADER},
    local::{
        BOOT_EFI, BOOT_IMG, CORE_IMG, LOCAL_FORMAT, LOCAL_ORDER_BYTES_MAX, LocalFile, LocalOrder,
    },
    settings::Settings,
};
use rootstock_catalog::{NodeRow, VersionRow};
use rootstock_core::{Digest, ImageName, VersionNumber, VersionSelector, VersionSpec};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;

use super::{
    body::{self, Content},
    decide::{self, Decision, Runs},
    files::{Asked, Missing},
    held::Changes,
    node_api::Machine,
    orders,
    programs::{LOCAL_PROGRAMS, Program},
    stage::Stage,
};
use crate::{
    app::{App, hex},
    http::{ApiError, ApiQuery},
};

/// What of GRUB is in `core.img`: all that its configuration on the disk needs.
const MODULES: [&str; 11] = [
    "biosdisk",
    "part_gpt",
    "fat",
    "normal",
    "configfile",
    "linux",
    "echo",
    "test",
    "reboot",
    "halt",
    "sleep",
];

/// Where GRUB finds its configuration: on the second partition of the disk that it
/// was started from.
const PREFIX: &str = "(,gpt2)/EFI/BOOT";

/// The longest `core.img` that is believed.
const CORE_BYTES_MAX: usize = 512 << 10;

/// The longest text of a version.
const SPEC_BYTES_MAX: usize = 200;

/// GRUB as it was put together, once.
#[derive(Debug, Default)]
pub(crate) struct Grub(Mutex<Option<Bytes>>);

/// A version and a file.
#[derive(Debug, Deserialize)]
pub(super) struct LocalQuery {
    image: ImageName,
    version: VersionNumber,
    #[serde(default)]
    name: Option<String>,
}

/// What is known of a start before its files are looked at.
pub(super) struct Meant {
    pub(super) version: VersionRow,
    pub(super) node: NodeRow,
    pub(super) settings: Settings,
    pub(super) stage: Stage,
}

/// The local order of a version.
pub(super) async fn order(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(query): ApiQuery<LocalQuery>,
) -> Result<Response, ApiError> {
    let meant = meant(&app, &machine, query).await?;
    if meant.settings.mode.unwrap_or_default() != NodeMode::Diskless {
        return Err(meant.not("its mode is not diskless"));
    }
    let local = machine.arrival.local.ip().to_canonical();
    let (node, settings) = (&meant.node, &meant.settings);
    // What plug-ins add is of one boot, and may be secret.
    let arguments = decide::arguments(settings, &meant.stage, &[])
        .map_err(|reason| ApiError::new(ProblemCode::BadValue, reason))?;
    let root = meant.stage.root.clone();
    let order = orders::plain(&app, &node.name, &meant.version, settings, root, local);
    let kernel = file(&app, "kernel", meant.stage.kernel.clone()).await?;
    let first_stage = file(&app, "first-stage", meant.stage.initrd.clone()).await?;
    let (loader, lacks) = app.blocking(|app| Ok(loader(app))).await?;
    let loader = loader.iter().map(|(name, bytes)| named(name, bytes));
    let order = LocalOrder {
        local_format: LOCAL_FORMAT,
        order,
        arguments: arguments
            .iter()
            .map(|argument| argument.as_str().to_owned())
            .collect(),
        kernel,
        first_stage,
        loader: loader.collect(),
        lacks,
    };
    let bytes = serde_json::to_vec(&order);
    let bytes = bytes.map_err(|error| ApiError::internal("write a local order", &error))?;
    if bytes.len() > LOCAL_ORDER_BYTES_MAX {
        let detail = format!(
            "the local order of {} has {} bytes, and the limit is {LOCAL_ORDER_BYTES_MAX}",
            node.name,
            bytes.len()
        );
        return Err(ApiError::new(ProblemCode::TooLarge, detail));
    }
    signed(&app, bytes)
}

/// Bytes with the site's signature.
pub(super) fn signed(app: &App, bytes: Vec<u8>) -> Result<Response, ApiError> {
    let signature = hex(&app.key.sign(&bytes).to_bytes());
    let signature = HeaderValue::try_from(signature)
        .map_err(|error| ApiError::internal("send a signature", &error))?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(HeaderName::from_static(ORDER_SIGNATURE_HEADER), signature);
    Ok(response)
}

/// A file that the order of the same version names.
pub(super) async fn give(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(query): ApiQuery<LocalQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let name = query.name.clone().unwrap_or_default();
    let meant = meant(&app, &machine, query).await?;
    let content = match name.as_str() {
        "kernel" => meant.stage.kernel,
        "first-stage" => meant.stage.initrd,
        _ => {
            let (loader, _) = app.blocking(|app| Ok(loader(app))).await?;
            let found = loader.into_iter().find(|(known, _)| *known == name);
            let (_, bytes) = found.ok_or_else(|| {
                let detail = format!("no local order names a file {name:?}");
                ApiError::new(ProblemCode::NoSuchPath, detail)
            })?;
            Content::Bytes(bytes)
        }
    };
    let content = app.boot.held.hold(content, Changes::Never).await;
    let (method, headers) = (request.method(), request.headers());
    let on_sent = Box::new(|_| {});
    Ok(body::respond(
        method,
        headers,
        content,
        BINARY_MEDIA_TYPE,
        on_sent,
    ))
}

impl Meant {
    /// That this machine starts from the network alone, and why.
    fn not(&self, why: &str) -> ApiError {
        not(&self.node, why)
    }
}

fn not(node: &NodeRow, why: &str) -> ApiError {
    let detail = format!("{} starts from the network alone: {why}", node.name);
    ApiError::new(ProblemCode::BadValue, detail)
}

/// What a machine asks about.
pub(super) async fn meant(
    app: &Arc<App>,
    machine: &Machine,
    query: LocalQuery,
) -> Result<Meant, ApiError> {
    let spec = VersionSpec {
        image: query.image,
        selector: VersionSelector::Number(query.version),
    };
    let version = super::node_api::readable(app, machine, &spec).await?;
    let node = app.catalog.node(&machine.session.node).await?;
    let peer = machine.arrival.peer.ip().to_canonical();
    let local = machine.arrival.local.ip().to_canonical();
    let network = app.boot.networks.of(peer, local);
    let settings = orders::settings(app, &node, &network).await?;
    if settings.initrd.is_some() {
        return Err(not(&node, "its settings name an initrd of the image"));
    }
    let stages = app.boot.stages().ok_or_else(|| {
        ApiError::new(ProblemCode::Unavailable, "there is no first stage here")
            .with_hint("`rootstock boot doctor` says what is missing")
    })?;
    let stage = stages.get(app, &version, &settings).await;
    let stage = stage.map_err(|reason| ApiError::new(ProblemCode::BadValue, reason))?;
    Ok(Meant {
        version,
        node,
        settings,
        stage,
    })
}

/// How a file of a stage is named.
pub(super) async fn file(
    app: &Arc<App>,
    name: &'static str,
    content: Content,
) -> Result<LocalFile, ApiError> {
    let content = app.boot.held.hold(content, Changes::Never).await;
    app.blocking(move |_| {
        let bytes = match content {
            Content::Bytes(bytes) => bytes,
            Content::File(file, len) => {
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, 0)
                    .map_err(|error| ApiError::internal("read a first stage", &error))?;
                bytes.into()
            }
        };
        Ok(named(name, &bytes))
    })
    .await
}

fn named(name: &str, bytes: &Bytes) -> LocalFile {
    LocalFile {
        name: name.to_owned(),
        len_bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
    }
}

/// The boot loader's files, and what there is not of it. Reads from the disk.
fn loader(app: &App) -> (Vec<(&'static str, Bytes)>, Vec<String>) {
    let mut files = Vec::new();
    let mut lacks = Vec::new();
    match bios(app) {
        Ok(bios) => files.extend(bios),
        Err(why) => lacks.push(why),
    }
    match uefi(app) {
        Ok(uefi) => files.extend(uefi),
        Err(why) => lacks.push(why),
    }
    (files, lacks)
}

fn bios(app: &App) -> Result<[(&'static str, Bytes); 2], String> {
    let boot = read(&LOCAL_PROGRAMS[0])?;
    let mut core = app
        .boot
        .grub
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if core.is_none() {
        *core = Some(make_core(&LOCAL_PROGRAMS[1])?);
    }
    let core = core.clone().unwrap_or_default();
    Ok([(BOOT_IMG, boot), (CORE_IMG, core)])
}

fn make_core(program: &Program) -> Result<Bytes, String> {
    let path = program.place().ok_or_else(|| lacks(program))?;
    let failed = |why: String| format!("{} made no core.img: {why}", path.display());
    let run = || -> io::Result<(Output, Vec<u8>)> {
        // It syncs what it writes, which a pipe cannot.
        let mut file = File::from(memfd_create("core.img", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(&path);
        command.args(["--format", "i386-pc", "--prefix", PREFIX]);
        command.args(MODULES).stdin(Stdio::null());
        let output = command.stdout(file.try_clone()?).output()?;
        let mut core = Vec::new();
        file.rewind()?;
        file.take(CORE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut core)?;
        Ok((output, core))
    };
    let (output, core) = run().map_err(|error| failed(error.to_string()))?;
    if output.status.success() && (512..=CORE_BYTES_MAX).contains(&core.len()) {
        return Ok(core.into());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(said.lines().next().unwrap_or_default().to_owned()))
}

fn uefi(app: &App) -> Result<Vec<(&'static str, Bytes)>, String> {
    let grub = read(&LOCAL_PROGRAMS[2])?;
    let shim = app.boot.programs.find("shimx64.efi");
    let shim = shim.and_then(|path| fs::read(path).ok());
    let shim = shim.ok_or("there is no shimx64.efi: install shim-signed")?;
    // What shim starts comes before shim itself.
    let mut files = vec![("GRUBX64.EFI", grub)];
    let manager = app.boot.programs.find("mmx64.efi");
    if let Some(manager) = manager.and_then(|path| fs::read(path).ok()) {
        files.push(("MMX64.EFI", manager.into()));
    }
    files.push((BOOT_EFI, shim.into()));
    Ok(files)
}

fn read(program: &Program) -> Result<Bytes, String> {
    let path = program.place().ok_or_else(|| lacks(program))?;
    let bytes = fs::read(&path);
    let bytes = bytes.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(bytes.into())
}

fn lacks(program: &Program) -> String {
    format!("there is no {}: install {}", program.name, program.package)
}

/// A boot token for a machine that runs a version from its own disk.
pub(super) async fn token(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: rootstock_core::MacAddress,
) -> Result<String, Missing> {
    let words = || asked.query.unwrap_or_default().split('&');
    let mut runs = words().filter_map(|word| word.strip_prefix("runs="));
    let runs = runs.next().filter(|text| text.len() <= SPEC_BYTES_MAX);
    let runs = runs.and_then(|text| text.parse::<VersionSpec>().ok());
    let mut manifest = words().filter_map(|word| word.strip_prefix("manifest="));
    let manifest = manifest.next().map(str::parse::<Digest>).transpose();
    let runs = Runs {
        version: runs.ok_or(Missing::Nothing)?,
        manifest: manifest.map_err(|_| Missing::Nothing)?,
    };
    match decide::decide_local(app, asked, mac, &runs).await {
        Decision::Boot(ready) => Ok(ready.token().to_owned()),
        decision => Err(refusal(decision)),
    }
}

/// A boot token for a machine that holds its image for others.
pub(super) async fn hold_token(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: rootstock_core::MacAddress,
) -> Result<String, Missing> {
    let decided = decide::decide_hold(app, asked, mac).await;
    decided.map_err(refusal)
}

fn refusal(decision: Decision) -> Missing {
    Missing::Otherwise(match decision {
        Decision::Boot(_) | Decision::San(_) | Decision::Linux(_) => {
            return Missing::Nothing;
        }
        Decision::Wait { lines } | Decision::Refused { lines } => lines.join(" "),
        Decision::Local { reason } => reason,
        Decision::OwnDisk { title } => title,
        Decision::Failed { step, reason } => format!("the server could not {step}: {reason}"),
    })
}
