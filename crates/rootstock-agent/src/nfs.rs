//! A root whose files come over NFS: mounted read-only, under writes in memory.
//!
//! The version below never changes, so that the kernel may believe what it knows of it for
//! as long as it likes. When the server is away, readers wait (`hard`, `nfs(5)`).

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::BootOrder;
use rootstock_api::nfs::NfsPlace;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::console;
use crate::overlay::Fill;
use crate::server::writes_bytes_max;
use crate::switch::SYSROOT;

/// Where the server's files are until the overlay has them.
const BELOW: &str = "/run/rootstock/nfs";
/// Where writes are; root's alone, since files lie there that others may not read by
/// another path.
const WRITES: &str = "/run/rootstock/writes";
/// The same, from the directory that the server of the root stays in.
const WRITES_FROM_RUN: &str = "rootstock/writes";
/// The server was there a moment ago.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(2);

/// What the kernel is asked for; `nfs(5)` has the words.
fn options(place: &NfsPlace, own: Option<Ipv4Addr>) -> String {
    let mut text = format!(
        "vers=4.2,proto=tcp,sec=sys,addr={},port={},hard,nocto,actimeo=86400",
        place.server, place.port
    );
    if let Some(own) = own {
        text.push_str(&format!(",clientaddr={own}"));
    }
    text
}

/// Mounts the root: the server's files, and a memory file system above them for writes.
///
/// # Errors
/// When the server's files cannot be had, or the kernel has no overlay.
pub(crate) fn mount_root(
    order: &BootOrder,
    place: &NfsPlace,
    own: Option<Ipv4Addr>,
) -> io::Result<()> {
    for path in [BELOW, WRITES, SYSROOT] {
        fs::create_dir_all(path)?;
    }
    below(place, own)?;
    let bytes_max = writes_bytes_max(order);
    let size = CString::new(format!("mode=0700,size={bytes_max}"))?;
    mount(
        "writes",
        WRITES,
        "tmpfs",
        MountFlags::empty(),
        size.as_c_str(),
    )
    .map_err(because("memory for writes cannot be mounted"))?;
    let [upper, work] = ["upper", "work"].map(|name| format!("{WRITES}/{name}"));
    for path in [&upper, &work] {
        fs::create_dir(path)?;
    }
    // The overlay's root is as its upper directory is, not as the one below.
    fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    let layers = CString::new(format!("lowerdir={BELOW},upperdir={upper},workdir={work}"))?;
    mount(
        "rootstock",
        SYSROOT,
        "overlay",
        MountFlags::RELATIME,
        layers.as_c_str(),
    )
    .map_err(because("the overlay above NFS cannot be mounted"))?;
    // The overlay goes on with it; a system that ends would take it away first.
    unmount(BELOW, UnmountFlags::DETACH)?;
    Ok(())
}

fn below(place: &NfsPlace, own: Option<Ipv4Addr>) -> io::Result<()> {
    let source = format!("{}:{}", place.server, place.path);
    let data = CString::new(options(place, own))?;
    let began = Instant::now();
    loop {
        let mounted = mount(
            source.as_str(),
            BELOW,
            "nfs",
            MountFlags::RDONLY,
            data.as_c_str(),
        );
        match mounted {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > MOUNT_LIMIT => {
                let what = format!("{source}, port {}, cannot be mounted over NFS", place.port);
                return Err(because(&what)(error));
            }
            Err(error) => console::warn(format_args!(
                "{source} cannot be mounted yet: {error}; trying again"
            )),
        }
        thread::sleep(PAUSE);
    }
}

fn because(what: &str) -> impl Fn(rustix::io::Errno) -> io::Error {
    move |error| io::Error::new(io::Error::from(error).kind(), format!("{what}: {error}"))
}

/// How full the memory for writes is, seen from `/run`.
pub(crate) fn fill() -> Option<Fill> {
    let facts = rustix::fs::statvfs(WRITES_FROM_RUN).ok()?;
    let used = facts.f_blocks.saturating_sub(facts.f_bfree);
    let percent = (used * 100).checked_div(facts.f_blocks)?;
    Some(Fill {
        used_bytes: used * facts.f_frsize,
        bytes_max: facts.f_blocks * facts.f_frsize,
        percent: u8::try_from(percent).unwrap_or(100),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_in_words_of_its_own() {
        let place = NfsPlace {
            server: "10.0.0.1".parse().expect("an address"),
            port: 2050,
            path: "/lab/3".to_owned(),
        };
        assert_eq!(
            options(&place, Some(Ipv4Addr::new(10, 0, 0, 7))),
            "vers=4.2,proto=tcp,sec=sys,addr=10.0.0.1,port=2050,hard,nocto,actimeo=86400,\
             clientaddr=10.0.0.7"
        );
    }
}
