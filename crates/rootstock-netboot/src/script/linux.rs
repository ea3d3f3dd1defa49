//! Scripts of machines that start a kernel and an initrd that are not ours: an installer, or
//! a system whose disk is reached over iSCSI.

use std::fmt::Write as _;

use super::{
    Argument, COMMAND_LINE_BYTES_MAX, GrubSource, RETRY_SECONDS, SanPlan, ScriptError, begin,
    grub_linux, san,
};

/// A kernel and its initrd, and the disk that they are to find.
#[derive(Debug, Clone)]
pub struct LinuxPlan {
    /// For the screen: the machine and what it runs.
    pub title: String,
    /// Under which path its kernel and its initrd are, with a slash before and after it.
    pub path: String,
    /// Its kernel's arguments.
    pub arguments: Vec<Argument>,
    /// The machine's disk, where it is reached over iSCSI.
    pub disk: Option<SanPlan>,
}

impl LinuxPlan {
    fn command_line(&self) -> Result<Vec<&str>, ScriptError> {
        let words: Vec<_> = self.arguments.iter().map(Argument::as_str).collect();
        let len_bytes = words.iter().map(|word| word.len() + 1).sum();
        if len_bytes > COMMAND_LINE_BYTES_MAX {
            return Err(ScriptError::TooLong { len_bytes });
        }
        Ok(words)
    }
}

/// The script with which a machine starts them. Its disk, if it is reached over iSCSI,
/// stays hooked, and its description in memory for whom is started. What fails is tried
/// anew with a script that is made anew, from `again`.
///
/// # Errors
/// [`ScriptError::TooLong`].
pub fn ipxe_linux(
    plan: &LinuxPlan,
    base: &str,
    shim: Option<&str>,
    again: &str,
) -> Result<String, ScriptError> {
    let words = plan.command_line()?.join(" ");
    let path = &plan.path;
    let mut script = begin(&plan.title);
    if let Some(disk) = &plan.disk {
        script.push_str(&san::login(disk));
        let url = san::url(disk);
        // Writing to a String cannot fail.
        let _ = writeln!(script, "sanhook --drive 0x80 {url} || goto again");
    }
    let _ = writeln!(
        script,
        "kernel {base}{path}kernel initrd=initrd {words} || goto again"
    );
    if let Some(shim) = shim {
        // As in the script of any boot.
        let _ = writeln!(script, "iseq ${{efi/SecureBoot:uint8}} 1 && shim {shim} ||");
    }
    let _ = write!(
        script,
        "\
initrd --name initrd {base}{path}initrd || goto again
boot ||
:again
imgfree ||
sanunhook --drive 0x80 ||
echo Rootstock: that did not work, trying again
sleep {RETRY_SECONDS}
chain --replace {again} ||
goto again
"
    );
    Ok(script)
}

/// The GRUB configuration with which a machine starts them.
///
/// # Errors
/// As [`ipxe_linux`].
pub fn grub_plain(plan: &LinuxPlan, source: GrubSource, mac: &str) -> Result<String, ScriptError> {
    let words = plan.command_line()?;
    let path = &plan.path;
    Ok(grub_linux(&plan.title, source, path, &words, mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> LinuxPlan {
        LinuxPlan {
            title: "n7 runs the installer debian-12".to_owned(),
            path: "/boot/i/00ff/".to_owned(),
            arguments: Argument::all("auto=true url=http://10.0.0.1:8480/boot/i/00ff/preseed.cfg")
                .expect("arguments"),
            disk: None,
        }
    }

    #[test]
    fn an_installer_is_started_with_its_disk_hooked() {
        let disk = SanPlan {
            title: String::new(),
            portal: "10.0.0.1:3260".parse().expect("an address"),
            target: "iqn.2026-11.example:volume.n7".to_owned(),
            initiator: "iqn.2026-11.example:node.n7".to_owned(),
            secret: None,
        };
        let plan = LinuxPlan {
            disk: Some(disk),
            ..plan()
        };
        let base = "http://10.0.0.1:8480";
        let again = "http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56";
        let script = ipxe_linux(&plan, base, Some("http://10.0.0.1:8480/s"), again);
        insta::assert_snapshot!(script.expect("a script"), @"
        #!ipxe
        echo Rootstock: n7 runs the installer debian-12
        set initiator-iqn iqn.2026-11.example:node.n7
        sanhook --drive 0x80 iscsi:10.0.0.1::3260:0:iqn.2026-11.example:volume.n7 || goto again
        kernel http://10.0.0.1:8480/boot/i/00ff/kernel initrd=initrd auto=true url=http://10.0.0.1:8480/boot/i/00ff/preseed.cfg || goto again
        iseq ${efi/SecureBoot:uint8} 1 && shim http://10.0.0.1:8480/s ||
        initrd --name initrd http://10.0.0.1:8480/boot/i/00ff/initrd || goto again
        boot ||
        :again
        imgfree ||
        sanunhook --drive 0x80 ||
        echo Rootstock: that did not work, trying again
        sleep 10
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56 ||
        goto again
        ");
    }

    #[test]
    fn grub_starts_an_installer_too() {
        let source = GrubSource::Tftp([10, 0, 0, 1].into());
        let text = grub_plain(&plan(), source, "52-54-00-12-34-56");
        insta::assert_snapshot!(text.expect("a configuration"), @"
        echo 'Rootstock: n7 runs the installer debian-12'
        if linux (tftp,10.0.0.1)/boot/i/00ff/kernel 'auto=true' 'url=http://10.0.0.1:8480/boot/i/00ff/preseed.cfg'; then
          if initrd (tftp,10.0.0.1)/boot/i/00ff/initrd; then
            boot
          fi
        fi
        echo 'Rootstock: that did not work, trying again'
        sleep 10
        configfile (tftp,10.0.0.1)/boot/grub/52-54-00-12-34-56
        ");
    }

    #[test]
    fn a_command_line_has_a_bound() {
        let word = Argument::new(&"x".repeat(500)).expect("an argument");
        let plan = LinuxPlan {
            arguments: vec![word; 4],
            ..plan()
        };
        let error = ipxe_linux(&plan, "", None, "").expect_err("is too long");
        assert_eq!(error, ScriptError::TooLong { len_bytes: 2004 });
    }
}
