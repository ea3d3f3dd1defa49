//! Makes a first stage: an archive with the agent, its site, and a kernel's modules; and what
//! is added to an image's own initrd for a disk over iSCSI.
//!
//! docs/formats/first-stage.md describes every file in it. Modules are read,
//! decompressed and written one after the other, so that memory holds the
//! compressed result and one module.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use rootstock_core::Digest;

use super::{
    cpio::Cpio,
    firmware,
    kernel::Kernel,
    modinfo,
    modules::{ModuleIndex, name_of},
    root_fs::{FsError, RootFs, text_of},
    select::{Selection, select, select_initiator},
    unpack::{UnpackError, unpack},
};

/// The most modules in one first stage, in bytes, decompressed.
pub const MODULES_BYTES_MAX: u64 = 256 << 20;
/// The largest module, in bytes, decompressed.
const MODULE_BYTES_MAX: u64 = 64 << 20;
/// The most modules.
const MODULES_MAX: usize = 4096;
/// The largest configuration of a kernel, in bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// The largest `modules.builtin.modinfo`, in bytes.
const BUILTIN_BYTES_MAX: u64 = 8 << 20;

/// Measured with all network drivers of Debian 12's kernel, 52.9 MB: level 9 makes
/// 11.8 MB of them, level 15 11.5 MB in five times the time, and level 19 10.4 MB
/// in ten times the time.
const ZSTD_LEVEL: i32 = 9;
/// The kernel's decompressor refuses windows of more than 8 MiB
/// (`ZSTD_WINDOWSIZE_MAX` in its lib/decompress_unzstd.c).
const ZSTD_WINDOW_LOG: u32 = 23;

/// The module of a root that is mounted over NFS; the others come with it.
pub const NFS: &str = "nfsv4";

/// What a first stage carries besides what is the image's.
#[derive(Debug, Clone, Copy)]
pub struct Ingredients<'a> {
    /// The agent, which is `/init`.
    pub agent: &'a [u8],
    /// The site's file, JSON.
    pub site: &'a [u8],
}

/// How a first stage is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Every kernel takes it.
    Gzip,
    /// Smaller and faster, where the kernel says that it takes it.
    Zstd,
}

/// A first stage that was made.
#[derive(Debug)]
pub struct Assembled {
    /// What boots.
    pub initrd: Vec<u8>,
    /// How it is compressed.
    pub compression: Compression,
    /// Its length when decompressed.
    pub unpacked_bytes: u64,
    /// How many modules it has.
    pub module_count: usize,
    /// How many firmware files it has.
    pub firmware_count: usize,
    /// Firmware that was left out for its size, by name.
    pub firmware_left_out: Vec<String>,
}

/// Why there is no first stage.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The kernel cannot do what is needed.
    #[error(
        "kernel {version} has no {}: install the package with the rest of its modules in the image",
        lacking.join(", ")
    )]
    Lacking {
        /// The kernel.
        version: String,
        /// Names of modules.
        lacking: Vec<String>,
    },
    /// A module cannot be used.
    #[error("module {path} cannot be used")]
    Module {
        /// Its path in the image.
        path: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// A file in a module's place is none.
    #[error("{path} is not a module of a 64-bit little-endian kernel")]
    NotModule {
        /// Its path in the image.
        path: String,
    },
    /// There are more than there may be.
    #[error("the modules of kernel {version} are more than {count_max} or {bytes_max} bytes")]
    TooMuch {
        /// The kernel.
        version: String,
        /// How many there may be.
        count_max: usize,
        /// How long they may be.
        bytes_max: u64,
    },
    /// The image cannot be read.
    #[error("the modules of the image cannot be read")]
    Fs(#[from] FsError),
    /// The archive cannot be compressed.
    #[error("the first stage cannot be compressed")]
    Write(#[from] io::Error),
}

/// Makes the first stage of a kernel for a root of the file system `root_fs`, or [`NFS`].
///
/// The same ingredients and the same image give the same bytes.
///
/// # Errors
/// When the kernel lacks what is needed, or the image is damaged.
pub fn assemble(
    fs: &dyn RootFs,
    kernel: &Kernel,
    root_fs: &str,
    ingredients: Ingredients<'_>,
) -> Result<Assembled, AssembleError> {
    let index = ModuleIndex::read(fs, &kernel.modules)?;
    let selection = select(&index, root_fs);
    let mut first_stage = Archive::new(fs, kernel, &index, &selection, Encoder::new)?;
    let cpio = &mut first_stage.cpio;
    for dir in ["dev", "etc", "proc", "run", "sys", "sysroot", "tmp"] {
        cpio.directory(dir)?;
    }
    cpio.character_device("dev/console", 0o600, (5, 1))?;
    cpio.file("init", 0o755, ingredients.agent)?;
    cpio.file("rootstock/site.json", 0o644, ingredients.site)?;
    cpio.file("rootstock/modules.load", 0o644, &lines(&selection.load))?;
    let modules = format!("lib/modules/{}", kernel.version);
    first_stage.finish(&modules, "lib/firmware")
}

/// Makes what the image's own initrd lacks for a disk over iSCSI: the agent, and modules for
/// it, in a directory of their own.
///
/// The same agent and the same image give the same bytes.
///
/// # Errors
/// When the kernel has no initiator, or the image is damaged.
pub fn assemble_initiator(
    fs: &dyn RootFs,
    kernel: &Kernel,
    agent: &[u8],
) -> Result<Assembled, AssembleError> {
    initiator(fs, kernel, agent, Encoder::new)
}

/// The digest of what [`assemble_initiator`] would put in: of everything that it takes from
/// the image, in a fraction of the time.
///
/// # Errors
/// As [`assemble_initiator`].
pub fn initiator_digest(
    fs: &dyn RootFs,
    kernel: &Kernel,
    agent: &[u8],
) -> Result<Digest, AssembleError> {
    let summed = initiator(fs, kernel, agent, |_| Ok(Encoder::sum()))?;
    Ok(Digest::of(&summed.initrd))
}

fn initiator(
    fs: &dyn RootFs,
    kernel: &Kernel,
    agent: &[u8],
    encoder: impl FnOnce(Compression) -> io::Result<Encoder>,
) -> Result<Assembled, AssembleError> {
    let index = ModuleIndex::read(fs, &kernel.modules)?;
    let selection = select_initiator(&index);
    let mut added = Archive::new(fs, kernel, &index, &selection, encoder)?;
    added.cpio.file("rootstock/iscsi", 0o755, agent)?;
    added
        .cpio
        .file("rootstock/modules/load", 0o644, &lines(&selection.load))?;
    added.finish("rootstock/modules", "rootstock/firmware")
}

/// An archive that is being made for a kernel of an image.
struct Archive<'a> {
    fs: &'a dyn RootFs,
    kernel: &'a Kernel,
    index: &'a ModuleIndex,
    selection: &'a Selection,
    compression: Compression,
    cpio: Cpio<Encoder>,
}

impl<'a> Archive<'a> {
    fn new(
        fs: &'a dyn RootFs,
        kernel: &'a Kernel,
        index: &'a ModuleIndex,
        selection: &'a Selection,
        encoder: impl FnOnce(Compression) -> io::Result<Encoder>,
    ) -> Result<Self, AssembleError> {
        if !selection.lacking.is_empty() {
            return Err(AssembleError::Lacking {
                version: kernel.version.clone(),
                lacking: selection.lacking.clone(),
            });
        }
        let compression = compression(fs, kernel)?;
        Ok(Self {
            fs,
            kernel,
            index,
            selection,
            compression,
            cpio: Cpio::new(encoder(compression)?),
        })
    }

    /// Adds the modules and their firmware, in these directories, and ends it.
    fn finish(mut self, modules: &str, firmware: &str) -> Result<Assembled, AssembleError> {
        let (fs, kernel, selection) = (self.fs, self.kernel, self.selection);
        let mut names = put_modules(&mut self.cpio, modules, fs, kernel, self.index, selection)?;
        add_builtin_firmware(fs, kernel, selection, &mut names)?;
        let found = firmware::gather(fs, &kernel.version, &names)?;
        for (name, bytes) in &found.files {
            self.cpio
                .file(&format!("{firmware}/{name}"), 0o644, bytes)?;
        }
        let unpacked_bytes = self.cpio.written_bytes();
        Ok(Assembled {
            initrd: self.cpio.finish()?.finish()?,
            compression: self.compression,
            unpacked_bytes,
            module_count: selection.modules.len(),
            firmware_count: found.files.len(),
            firmware_left_out: found.left_out,
        })
    }
}

/// How the kernel's own configuration lets its first file system be compressed.
///
/// # Errors
/// When the image cannot be read.
pub fn compression(fs: &dyn RootFs, kernel: &Kernel) -> Result<Compression, FsError> {
    let places = [
        format!("/boot/config-{}", kernel.version),
        format!("{}/config", kernel.modules),
        format!("{}/build/.config", kernel.modules),
    ];
    for path in places {
        if let Some(config) = text_of(fs, &path, CONFIG_BYTES_MAX)? {
            return Ok(if config.lines().any(|line| line == "CONFIG_RD_ZSTD=y") {
                Compression::Zstd
            } else {
                Compression::Gzip
            });
        }
    }
    Ok(Compression::Gzip)
}

/// Writes the modules and depmod's lists for them, and gives the firmware that
/// they ask for.
fn put_modules(
    cpio: &mut Cpio<Encoder>,
    dir: &str,
    fs: &dyn RootFs,
    kernel: &Kernel,
    index: &ModuleIndex,
    selection: &Selection,
) -> Result<firmware::Names, AssembleError> {
    let too_much = || AssembleError::TooMuch {
        version: kernel.version.clone(),
        count_max: MODULES_MAX,
        bytes_max: MODULES_BYTES_MAX,
    };
    if selection.modules.len() > MODULES_MAX {
        return Err(too_much());
    }
    let aliases: Vec<_> = index
        .aliases_of(&selection.modules)
        .map(|(pattern, module)| format!("alias {pattern} {module}"))
        .collect();
    cpio.file(
        &format!("{dir}/modules.dep"),
        0o644,
        &lines(&dependencies(index, &selection.modules)),
    )?;
    cpio.file(&format!("{dir}/modules.alias"), 0o644, &lines(&aliases))?;
    let mut names = firmware::Names::default();
    let mut room_bytes = MODULES_BYTES_MAX;
    for (name, module) in index.modules() {
        if !selection.modules.contains(name) {
            continue;
        }
        let path = format!("{}/{}", kernel.modules, module.path);
        let stored = fs.read(&path, MODULE_BYTES_MAX)?;
        let bytes = unpack(stored, MODULE_BYTES_MAX).map_err(|source| AssembleError::Module {
            path: path.clone(),
            source,
        })?;
        if !modinfo::is_module(&bytes) {
            return Err(AssembleError::NotModule { path });
        }
        room_bytes = room_bytes
            .checked_sub(bytes.len() as u64)
            .ok_or_else(too_much)?;
        for firmware in modinfo::values(&bytes, "firmware") {
            names.add(firmware);
        }
        let plain = plain_path(&module.path);
        cpio.file(&format!("{dir}/{plain}"), 0o644, &bytes)?;
    }
    Ok(names)
}

/// Lines of `modules.dep` for these modules: `a.ko: b.ko c.ko`, where what is
/// needed first is last.
fn dependencies(index: &ModuleIndex, modules: &BTreeSet<String>) -> Vec<String> {
    let path = |name: &String| {
        let module = index.module(name)?;
        Some(plain_path(&module.path).to_owned())
    };
    modules
        .iter()
        .filter_map(|name| {
            let order = index.load_order(name);
            let (_, before) = order.split_last()?;
            let mut line = format!("{}:", path(name)?);
            for need in before.iter().rev().filter_map(path) {
                line.push(' ');
                line.push_str(&need);
            }
            Some(line)
        })
        .collect()
}

/// A module's path without the ending of its compression.
fn plain_path(path: &str) -> &str {
    path.rfind(".ko")
        .map_or(path, |at| &path[..at + ".ko".len()])
}

/// What drivers that are built in ask for, by `modules.builtin.modinfo`: strings
/// of `name.key=value` that end with NUL.
fn add_builtin_firmware(
    fs: &dyn RootFs,
    kernel: &Kernel,
    selection: &Selection,
    names: &mut firmware::Names,
) -> Result<(), FsError> {
    let path = format!("{}/modules.builtin.modinfo", kernel.modules);
    let strings = fs.read_if_there(&path, BUILTIN_BYTES_MAX)?;
    for string in strings.unwrap_or_default().split(|byte| *byte == 0) {
        let Ok(string) = std::str::from_utf8(string) else {
            continue;
        };
        if let Some((module, file)) = string.split_once(".firmware=")
            && selection.builtin.contains(&name_of(module))
        {
            names.add(file);
        }
    }
    Ok(())
}

fn lines(lines: &[String]) -> Vec<u8> {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text.into_bytes()
}

/// A compressor into memory, or what only sums up.
enum Encoder {
    Sum(Box<blake3::Hasher>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(Box<zstd::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            // Without a name and a time of modification.
            Compression::Gzip => Self::Gzip(flate2::write::GzEncoder::new(
                Vec::new(),
                flate2::Compression::best(),
            )),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    fn sum() -> Self {
        Self::Sum(Box::new(blake3::Hasher::new()))
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Sum(hasher) => Ok(hasher.finalize().as_bytes().to_vec()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sum(hasher) => hasher.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Sum(_) => Ok(()),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
