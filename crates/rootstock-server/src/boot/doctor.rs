//! What the boot services have and lack, looked at when somebody asks.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use rootstock_api::doctor::{AgentReport, BootDoctor, BootInterfaceReport, BootPort, BootProgram};

use super::{
    agent_path, interfaces,
    programs::{LOCAL_PROGRAMS, Need, PROGRAMS, Program},
};
use crate::app::App;

/// How much of the agent is read, in bytes: its program headers.
const HEAD_BYTES: usize = 64 << 10;

/// Looks at everything. It reads directories and tries ports.
pub(crate) fn look(app: &App) -> BootDoctor {
    let config = &app.config.boot;
    let report = |program: &Program, path: Option<PathBuf>| BootProgram {
        name: program.name.to_owned(),
        arch: program.arch.to_owned(),
        firmware: program.firmware.to_owned(),
        role: program.role.to_owned(),
        is_needed: program.need == Need::Needed,
        path: path.map(|path| path.display().to_string()),
        package: program.package.to_owned(),
    };
    let offered = PROGRAMS
        .iter()
        .map(|program| report(program, app.boot.programs.find(program.name)));
    let local = LOCAL_PROGRAMS
        .iter()
        .map(|program| report(program, program.place()));
    let mut lacks = app.boot.networks.lacks();
    let found = interfaces::discover().unwrap_or_else(|error| {
        lacks.push(format!("network interfaces cannot be listed: {error}"));
        Vec::new()
    });
    BootDoctor {
        is_on: app.boot.is_on(),
        programs: offered.chain(local).collect(),
        interfaces: found.iter().map(|found| interface(app, found)).collect(),
        ports: ports(app),
        agent: agent(agent_path(config).as_deref()),
        nfs: app.boot.nfs.exports(),
        lacks,
    }
}

fn interface(app: &App, found: &interfaces::Interface) -> BootInterfaceReport {
    let places = app.boot.networks.places();
    let place = places.iter().find(|place| place.name == found.name);
    let mode = place.map(|place| {
        let mode = app.boot.networks.mode(&place.name);
        mode.unwrap_or(place.mode).to_string()
    });
    let reason = match &mode {
        Some(_) => None,
        None if !app.config.boot.is_on() => Some("boot.interfaces is off".to_owned()),
        None => {
            let lack = app.boot.auto_lack.clone();
            Some(lack.unwrap_or_else(|| interfaces::reason(found).to_owned()))
        }
    };
    let addresses = found.addresses.iter();
    let rivals = app.boot.networks.rivals(&found.name);
    BootInterfaceReport {
        name: found.name.clone(),
        addresses: addresses
            .map(|(address, subnet)| format!("{address}/{}", subnet.prefix))
            .collect(),
        mode,
        reason,
        rivals: rivals.iter().map(ToString::to_string).collect(),
    }
}

fn ports(app: &App) -> Vec<BootPort> {
    let config = &app.config.boot;
    let place = app.boot.networks.places().into_iter().next();
    // Ours are in use by ourselves while the services run.
    let is_running = place.is_some();
    let any = Ipv4Addr::UNSPECIFIED;
    let udp = |port| UdpSocket::bind((any, port)).map(drop);
    let tcp = |port| TcpListener::bind((any, port)).map(drop);
    let report = |protocol: &str, port: u16, purpose: &str, tried: io::Result<()>| BootPort {
        protocol: protocol.to_owned(),
        port,
        purpose: purpose.to_owned(),
        problem: tried.err().and_then(|error| problem(&error, is_running)),
    };
    let mut ports = vec![
        report("udp", 67, "DHCP", udp(67)),
        report("udp", 4011, "ProxyDHCP", udp(4011)),
        report("udp", 69, "TFTP", udp(69)),
        report(
            "tcp",
            config.http_port,
            "HTTP for firmware",
            tcp(config.http_port),
        ),
        report(
            "tcp",
            config.https_port,
            "HTTPS for first stages",
            tcp(config.https_port),
        ),
        report(
            "tcp",
            config.nbd_port,
            "volumes of personal machines",
            tcp(config.nbd_port),
        ),
    ];
    if config.swarm_port != 0 {
        let (port, purpose) = (config.swarm_port, "chunks for the swarm");
        let tried = tcp(port).err();
        // Other services may run while another program has this port.
        let is_ours = app.boot.swarm.listens.load(Relaxed);
        ports.push(BootPort {
            problem: tried.and_then(|error| problem(&error, is_ours)),
            ..report("tcp", port, purpose, Ok(()))
        });
    }
    ports
}

fn problem(error: &io::Error, is_running: bool) -> Option<String> {
    match error.kind() {
        io::ErrorKind::AddrInUse if is_running => None,
        io::ErrorKind::AddrInUse => Some("another program has it".to_owned()),
        io::ErrorKind::PermissionDenied => Some(
            "not permitted: run the daemon with CAP_NET_BIND_SERVICE, as its unit does".to_owned(),
        ),
        _ => Some(error.to_string()),
    }
}

fn agent(path: Option<&Path>) -> AgentReport {
    let Some(path) = path else {
        return AgentReport {
            path: None,
            problem: Some(
                "rootstock-agent was not found: install its package, or set boot.agent".to_owned(),
            ),
        };
    };
    let problem = match head(path) {
        Err(error) => Some(format!("it cannot be read: {error}")),
        Ok(bytes) => match needs_loader(&bytes) {
            Some(false) => None,
            Some(true) => {
                Some("it is not linked statically, and first stages have no libraries".to_owned())
            }
            None => Some("it is no ELF program of 64 bits".to_owned()),
        },
    };
    AgentReport {
        path: Some(path.display().to_string()),
        problem,
    }
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a program (ELF, 64 bits, little endian) asks for a dynamic loader:
/// whether it has a program header of the type `PT_INTERP`.
fn needs_loader(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let offset = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
    let offset = usize::try_from(offset).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for number in 0..count {
        let at = offset.checked_add(number.checked_mul(size)?)?;
        let kind = bytes.get(at..at.checked_add(4)?)?;
        if u32::from_le_bytes(kind.try_into().ok()?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_program_is_told_from_others() {
        let program = |kind: u32| {
            let mut bytes = vec![0; 64 + 56];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[32] = 64;
            bytes[54] = 56;
            bytes[56] = 1;
            bytes[64..68].copy_from_slice(&kind.to_le_bytes());
            bytes
        };
        assert_eq!(needs_loader(&program(3)), Some(true));
        assert_eq!(needs_loader(&program(1)), Some(false));
        assert_eq!(needs_loader(&program(1)[..60]), None);
        assert_eq!(needs_loader(b"#!/bin/sh"), None);
    }

    #[test]
    fn a_missing_agent_is_said() {
        let missing = agent(None).problem.expect("is missing");
        assert!(missing.contains("set boot.agent"), "{missing}");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rootstock-agent");
        fs::write(&path, "#!/bin/sh").expect("writes");
        assert!(
            agent(Some(&path))
                .problem
                .expect("is none")
                .contains("no ELF")
        );
    }
}
