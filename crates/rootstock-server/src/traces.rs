//! Boot traces: learnt from machines, merged, carried over to new versions.
//!
//! A version's first boots on a class of hardware are merged into the trace that
//! later ones are sent; from then on a boot teaches only when its trace served it
//! badly. A new version begins with its parent's trace. That is worked out in the
//! background from what the catalog says is lacking, so a daemon that stopped in
//! the middle goes on when it starts.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use rootstock_api::{BootSet, HolderKind, ProblemCode, boot::Inventory};
use rootstock_catalog::{
    TRACE_BOOTS_MAX, TRACE_CLASS_ALL, TRACE_CLASS_BYTES_MAX, TRACE_CLASSES_MAX, TraceRow,
    VersionRow,
};
use rootstock_core::{CHUNK_BYTES, Digest};
use rootstock_image::{
    manifest::Leaf,
    trace::{FileMap, Trace, carry, merge},
};
use tokio::sync::{Mutex, Notify};

use crate::{
    app::App,
    boot::first_stage::DiskBytes,
    http::ApiError,
    leases::Key,
    pages::{StorePages, manifest},
    stop::Stop,
};

/// A boot whose trace covered less than this teaches however many there were.
const COVERAGE_POOR_PERMILLE: u16 = 950;

/// How often versions without a trace are looked for when nobody says that there
/// are any.
const CARRY_INTERVAL: Duration = Duration::from_secs(600);

/// The class of machines that do not tell what they are.
const CLASS_UNKNOWN: &str = "unknown";

/// What learning and carrying share.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// Boots are learnt from one after the other.
    learning: Mutex<()>,
    wanted: Notify,
}

impl Traces {
    /// Has new versions looked for that could begin with their parent's trace.
    pub(crate) fn carry_soon(&self) {
        self.wanted.notify_one();
    }
}

/// What a boot tells of itself.
pub(crate) struct Boot {
    /// The class of the machine.
    pub(crate) hardware: String,
    /// What it read.
    pub(crate) trace: Trace,
    /// How much of that lay in the chunks of the trace that it was given.
    pub(crate) coverage_permille: Option<u16>,
}

/// The class of a machine: its maker and model, in one spelling.
pub(crate) fn class_of(inventory: &Inventory) -> String {
    let text = format!("{} {}", inventory.vendor, inventory.product);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(plain).collect::<String>().to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut class = words.join(" ");
    class.truncate(class.floor_char_boundary(TRACE_CLASS_BYTES_MAX));
    match class.is_empty() {
        true => CLASS_UNKNOWN.to_owned(),
        false => class,
    }
}

/// Learns from a boot, if there is anything to learn.
pub(crate) async fn learn(
    app: &Arc<App>,
    version: &VersionRow,
    boot: Boot,
) -> Result<(), ApiError> {
    let _one = app.traces.learning.lock().await;
    let (image, number) = (&version.image, version.number);
    let rows = app.catalog.traces(image, number).await?;
    if !is_wanted(&rows, &boot) {
        return Ok(());
    }
    let kept = app
        .catalog
        .trace_boots(image, number, &boot.hardware)
        .await?;
    let disk_bytes = version.disk_bytes;
    let (rows, boot) = app
        .blocking(move |_| Ok((learnt(disk_bytes, rows, &kept, &boot), boot)))
        .await?;
    let bytes = boot.trace.encode();
    let kept = Some((boot.hardware.as_str(), bytes.as_slice()));
    app.catalog
        .put_traces(image, number, &rows, kept, Timestamp::now())
        .await?;
    tracing::info!(
        image = %version.spec(),
        hardware = boot.hardware,
        blocks = boot.trace.block_count(),
        coverage_permille = boot.coverage_permille,
        "boot learnt from"
    );
    app.traces.carry_soon();
    Ok(())
}

fn is_wanted(rows: &[TraceRow], boot: &Boot) -> bool {
    match rows.iter().find(|row| row.hardware == boot.hardware) {
        Some(row) if row.boots >= u64::from(TRACE_BOOTS_MAX) => boot
            .coverage_permille
            .is_some_and(|permille| permille < COVERAGE_POOR_PERMILLE),
        Some(_) => true,
        None => {
            let classes = rows.iter().filter(|row| row.hardware != TRACE_CLASS_ALL);
            classes.count() < TRACE_CLASSES_MAX
        }
    }
}

/// The rows that change: the boot's class, and all together.
fn learnt(
    disk_bytes: u64,
    mut rows: Vec<TraceRow>,
    kept: &[Vec<u8>],
    boot: &Boot,
) -> Vec<TraceRow> {
    let newest = kept.len().saturating_sub(TRACE_BOOTS_MAX as usize - 1);
    let mut boots = decoded(kept[newest..].iter().map(Vec::as_slice));
    boots.push(boot.trace.clone());
    let merged = merge(disk_bytes, &boots);
    let before = rows.iter().find(|row| row.hardware == boot.hardware);
    let row = TraceRow {
        hardware: boot.hardware.clone(),
        boots: before.map_or(0, |row| row.boots) + 1,
        source: None,
        trace: merged.encode(),
    };
    rows.retain(|row| row.hardware != boot.hardware && row.hardware != TRACE_CLASS_ALL);
    rows.push(row.clone());
    vec![together(disk_bytes, &rows), row]
}

/// All classes as one, each with one voice.
fn together(disk_bytes: u64, classes: &[TraceRow]) -> TraceRow {
    let traces = decoded(classes.iter().map(|row| row.trace.as_slice()));
    let boots = classes.iter().map(|row| row.boots).sum();
    let source = classes.iter().find_map(|row| row.source.clone());
    TraceRow {
        hardware: TRACE_CLASS_ALL.to_owned(),
        boots,
        source: source.filter(|_| boots == 0),
        trace: merge(disk_bytes, &traces).encode(),
    }
}

/// Those that this release can read. A trace that is lost is learnt again.
fn decoded<'a>(traces: impl Iterator<Item = &'a [u8]>) -> Vec<Trace> {
    let read = |bytes: &[u8]| {
        let trace = Trace::decode(bytes);
        trace.inspect_err(|error| tracing::warn!(%error, "a boot trace is left out"))
    };
    traces.filter_map(|bytes| read(bytes).ok()).collect()
}

/// Carries traces over to new versions until the stop.
pub(crate) async fn work(app: Arc<App>, mut stop: Stop) {
    loop {
        carry_all(&app).await;
        tokio::select! {
            () = app.traces.wanted.notified() => {}
            stops = stop.rest(CARRY_INTERVAL) => {
                if stops {
                    return;
                }
            }
        }
    }
}

/// What cannot be done now is tried again when it is looked for the next time.
async fn carry_all(app: &Arc<App>) {
    let versions = match app.catalog.versions_to_trace().await {
        Ok(versions) => versions,
        Err(error) => {
            tracing::warn!(%error, "versions without a trace not looked for");
            return;
        }
    };
    for version in versions {
        let spec = version.spec();
        match carry_to(app, version).await {
            Ok(()) => tracing::info!(image = %spec, "trace carried over"),
            Err(error) => {
                tracing::warn!(image = %spec, detail = error.0.detail, "trace not carried over");
            }
        }
    }
}

async fn carry_to(app: &Arc<App>, version: VersionRow) -> Result<(), ApiError> {
    let parent = version
        .parent
        .clone()
        .ok_or_else(|| ApiError::new(ProblemCode::VersionNotFound, "the version has no parent"))?;
    let parent = app.catalog.resolve(&parent).await?;
    let mut leases = Vec::new();
    for row in [&parent, &version] {
        let key = Key::Version(row.image.clone(), row.number);
        leases.push(app.leases.take(key, HolderKind::Operation, "trace")?);
    }
    let rows = app.catalog.traces(&parent.image, parent.number).await?;
    let (from, to, disk_bytes) = (parent.manifest, version.manifest, version.disk_bytes);
    let source = parent.spec();
    let carried = app
        .blocking(move |app| {
            let (from, to) = (file_map(app, from)?, file_map(app, to)?);
            let mut carried = Vec::new();
            for row in rows {
                let source = row.source.clone().unwrap_or_else(|| source.clone());
                for trace in decoded(std::iter::once(row.trace.as_slice())) {
                    carried.push(TraceRow {
                        hardware: row.hardware.clone(),
                        boots: 0,
                        source: Some(source.clone()),
                        trace: carry(&trace, &from, &to, disk_bytes).encode(),
                    });
                }
            }
            Ok(carried)
        })
        .await?;
    // A boot of it may have been learnt from meanwhile, and knows better.
    let _one = app.traces.learning.lock().await;
    let (image, number) = (&version.image, version.number);
    if app.catalog.traces(image, number).await?.is_empty() {
        let now = Timestamp::now();
        app.catalog
            .put_traces(image, number, &carried, None, now)
            .await?;
    }
    drop(leases);
    Ok(())
}

fn file_map(app: &App, id: Digest) -> Result<FileMap, ApiError> {
    let disk = DiskBytes(app.volumes.version_disk(id)?);
    FileMap::read(&disk).map_err(|error| ApiError::internal("read where files lie", &error))
}

/// What the boots of a version read, if that is known. It reads from the disk.
pub(crate) async fn boot_set(
    app: &Arc<App>,
    version: &VersionRow,
) -> Result<Option<BootSet>, ApiError> {
    let (image, number) = (&version.image, version.number);
    let row = app.catalog.trace(image, number, TRACE_CLASS_ALL).await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let manifest = version.manifest;
    app.blocking(move |app| {
        let Some(trace) = decoded(std::iter::once(row.trace.as_slice())).pop() else {
            return Ok(None);
        };
        let mut set = weigh(app, manifest, &trace)?;
        set.boots = row.boots;
        set.source = row.source;
        Ok(Some(set))
    })
    .await
}

fn weigh(app: &App, id: Digest, trace: &Trace) -> Result<BootSet, ApiError> {
    let manifest = manifest(&app.store, id)?;
    let mut leaf: Option<Leaf> = None;
    let mut seen = HashSet::new();
    let mut set = BootSet::default();
    for index in trace.chunks(manifest.grid()) {
        if leaf
            .as_ref()
            .is_none_or(|leaf| !leaf.chunks().contains(&index))
        {
            leaf = Some(manifest.leaf(&StorePages(&app.store), index)?);
        }
        let chunk = leaf.as_ref().and_then(|leaf| leaf.chunk(index));
        let chunk = chunk.filter(|chunk| !chunk.is_zero());
        let Some(chunk) = chunk.filter(|chunk| seen.insert(*chunk)) else {
            continue;
        };
        set.chunk_count += 1;
        set.raw_bytes += u64::from(app.store.raw_bytes(chunk).unwrap_or(0));
        set.frame_bytes += u64::from(app.store.frame_bytes(chunk).unwrap_or(0));
    }
    debug_assert!(set.raw_bytes <= set.chunk_count * CHUNK_BYTES);
    Ok(set)
}

#[cfg(test)]
mod tests;
