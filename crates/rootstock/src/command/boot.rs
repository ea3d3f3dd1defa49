//! `rootstock boot`: what the boot services have and lack.

use clap::{Args, Subcommand};
use rootstock_api::{NfsExport, doctor::BootDoctor};

use crate::{output, session::Session};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum BootCommand {
    /// Say what booting machines needs and lacks: programs, ports, interfaces, agent
    Doctor(DoctorArgs),
    /// Print what a machine needs to know of this site, for `rootstock-agent hold`
    ///
    /// It is a small JSON document: the public key that signs orders and versions, and the
    /// authority of the node service's certificate. Nothing of it is secret; what matters
    /// is that nobody changes it on its way to the machine.
    Site(SiteArgs),
}

/// Nothing to choose.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

/// Nothing to choose.
#[derive(Debug, Args)]
pub(crate) struct SiteArgs {}

/// Does it.
pub(crate) fn run(verb: &BootCommand, session: &Session) -> anyhow::Result<()> {
    match verb {
        BootCommand::Doctor(DoctorArgs {}) => doctor(session),
        BootCommand::Site(SiteArgs {}) => output::json(&session.client()?.boot_site()?),
    }
}

fn doctor(session: &Session) -> anyhow::Result<()> {
    let report = session.client()?.boot_doctor()?;
    if session.json() {
        return output::json(&report);
    }
    output::line(text(&report).trim_end())
}

fn text(report: &BootDoctor) -> String {
    let mut lines = Vec::new();
    lines.push(match report.is_on {
        true => "boot services are on".to_owned(),
        false => "boot services are off: start with --boot auto, or set boot.interfaces".to_owned(),
    });
    lines.push("\nboot programs".to_owned());
    for program in &report.programs {
        let kind = format!("{} {}", program.arch, program.firmware);
        lines.push(match (&program.path, program.is_needed) {
            (Some(path), _) => format!("  ok       {kind:13} {}: {path}", program.name),
            (None, true) => format!(
                "  MISSING  {kind:13} {}: {}; from {}",
                program.name, program.role, program.package
            ),
            (None, false) => format!(
                "  none     {kind:13} {}: {}; from {}",
                program.name, program.role, program.package
            ),
        });
    }
    lines.push("\nports".to_owned());
    for port in &report.ports {
        let (mark, problem) = match &port.problem {
            None => ("ok     ", String::new()),
            Some(problem) => ("MISSING", format!(": {problem}")),
        };
        lines.push(format!(
            "  {mark}  {}/{} for {}{problem}",
            port.protocol, port.port, port.purpose
        ));
    }
    lines.push("\ninterfaces".to_owned());
    for interface in &report.interfaces {
        let what = match (&interface.mode, &interface.reason) {
            (Some(mode), _) => mode.clone(),
            (None, Some(reason)) => format!("nothing, since {reason}"),
            (None, None) => "nothing".to_owned(),
        };
        let addresses = interface.addresses.join(" ");
        lines.push(format!("  {} {addresses}: {what}", interface.name));
        for rival in &interface.rivals {
            lines.push(format!("    another DHCP server answers there: {rival}"));
        }
    }
    lines.push("\nfirst stages".to_owned());
    lines.push(match (&report.agent.path, &report.agent.problem) {
        (path, Some(problem)) => {
            format!("  MISSING  {}: {problem}", output::or_dash(path.as_ref()))
        }
        (path, None) => format!("  ok       {}", output::or_dash(path.as_ref())),
    });
    for lack in &report.lacks {
        lines.push(format!("  MISSING  {lack}"));
    }
    lines.push("\nroots over NFS".to_owned());
    lines.extend(nfs(report.nfs.as_deref()));
    lines.join("\n")
}

fn nfs(exports: Option<&[NfsExport]>) -> Vec<String> {
    let Some(exports) = exports else {
        return vec![
            "  none     machines in the mode nfs need `rootstock nfs serve` \
             (rootstock-nfs.service)"
                .to_owned(),
        ];
    };
    if exports.is_empty() {
        return vec!["  ok       nothing is exported, since no machine wants it".to_owned()];
    }
    let line = |export: &NfsExport| {
        let spec = export.root.spec();
        match &export.trouble {
            Some(why) => format!("  MISSING  {spec}: {why}"),
            None => format!(
                "  ok       {spec} at port {}, for {}",
                export.port,
                export.clients.len()
            ),
        }
    };
    exports.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootstock_api::doctor::{AgentReport, BootInterfaceReport, BootPort, BootProgram};

    #[test]
    fn a_report() {
        let program = |name: &str, path: Option<&str>, is_needed| BootProgram {
            name: name.to_owned(),
            arch: "x86_64".to_owned(),
            firmware: "uefi".to_owned(),
            role: "iPXE".to_owned(),
            is_needed,
            path: path.map(str::to_owned),
            package: "ipxe".to_owned(),
        };
        let report = BootDoctor {
            is_on: true,
            programs: vec![
                program("snponly.efi", Some("/usr/lib/ipxe/snponly.efi"), true),
                program("undionly.kpxe", None, true),
                program("ipxe.efi", None, false),
            ],
            interfaces: vec![BootInterfaceReport {
                name: "eth0".to_owned(),
                addresses: vec!["10.0.0.1/24".to_owned()],
                mode: Some("proxy".to_owned()),
                reason: None,
                rivals: vec!["10.0.0.2".to_owned()],
            }],
            ports: vec![BootPort {
                protocol: "udp".to_owned(),
                port: 67,
                purpose: "DHCP".to_owned(),
                problem: Some("another program has it".to_owned()),
            }],
            agent: AgentReport {
                path: None,
                problem: Some("rootstock-agent was not found".to_owned()),
            },
            nfs: None,
            lacks: Vec::new(),
        };
        insta::assert_snapshot!(text(&report), @"
        boot services are on

        boot programs
          ok       x86_64 uefi   snponly.efi: /usr/lib/ipxe/snponly.efi
          MISSING  x86_64 uefi   undionly.kpxe: iPXE; from ipxe
          none     x86_64 uefi   ipxe.efi: iPXE; from ipxe

        ports
          MISSING  udp/67 for DHCP: another program has it

        interfaces
          eth0 10.0.0.1/24: proxy
            another DHCP server answers there: 10.0.0.2

        first stages
          MISSING  -: rootstock-agent was not found

        roots over NFS
          none     machines in the mode nfs need `rootstock nfs serve` (rootstock-nfs.service)
        ");
    }
}
