//! Scripts for iPXE and GRUB: which kernel, which first stage, which arguments.
//!
//! iPXE has no quoting (its `exec.c` splits at white space, after it has expanded
//! `${…}`), so nothing that people or machines write reaches a script before it
//! has been checked: [`Argument`] for the kernel's arguments, [`plain`] for text.

use std::fmt::Write as _;

mod linux;
mod san;

pub use linux::{LinuxPlan, grub_plain, ipxe_linux};
pub use san::{SanPlan, ipxe_san};

/// The longest kernel command line (`COMMAND_LINE_SIZE` of x86 is 2048 with its
/// NUL), less what iPXE fills in for the addresses.
pub const COMMAND_LINE_BYTES_MAX: usize = 1900;

/// The longest argument.
pub const ARGUMENT_BYTES_MAX: usize = 512;

/// The longest text for a screen.
const TEXT_CHARS_MAX: usize = 200;

/// Seconds between the tries of a script that cannot go on.
pub const RETRY_SECONDS: u32 = 10;

/// How often a script tries to fetch before it asks for a new one: its token is
/// good for some minutes only.
const FETCH_TRIES_MAX: u32 = 5;

/// Why there is no script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// A kernel argument that a boot loader would not pass on as it is.
    #[error(
        "the kernel argument '{text}' {reason}: change it with `rootstock node set NAME --kernel-arguments …`"
    )]
    Argument {
        /// The argument.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More arguments than the kernel takes.
    #[error(
        "the kernel's command line has {len_bytes} bytes, and the limit is {COMMAND_LINE_BYTES_MAX}: use fewer kernel arguments"
    )]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
}

/// A kernel argument that both iPXE and GRUB pass on as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument(String);

impl Argument {
    /// Checks an argument that somebody wrote.
    ///
    /// # Errors
    /// [`ScriptError::Argument`].
    pub fn new(text: &str) -> Result<Self, ScriptError> {
        let wrong = |reason| {
            Err(ScriptError::Argument {
                text: plain(text),
                reason,
            })
        };
        if text.is_empty() || text.len() > ARGUMENT_BYTES_MAX {
            return wrong("has no letters, or more than 512");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("has characters that are not visible ASCII");
        }
        if text.contains(['\'', '"', '\\', '`', '$']) {
            return wrong("has a quote, a backslash or a dollar sign");
        }
        if text.starts_with('#') || matches!(text, ";" | "&&" | "||") {
            return wrong("means something to iPXE");
        }
        let own = ["rootstock.", "BOOTIF=", "initrd="];
        if own.iter().any(|prefix| text.starts_with(prefix)) {
            return wrong("is one that Rootstock itself sets");
        }
        Ok(Self(text.to_owned()))
    }

    /// All arguments of a text, which white space separates.
    ///
    /// # Errors
    /// As [`Argument::new`], for the first that is wrong.
    pub fn all(text: &str) -> Result<Vec<Self>, ScriptError> {
        text.split_whitespace().map(Self::new).collect()
    }

    /// The argument.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the first stage has its address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// What iPXE got: the script's variables say it.
    FromIpxe,
    /// What is known here.
    Known {
        /// The machine's address.
        ip: std::net::Ipv4Addr,
        /// Its mask.
        netmask: std::net::Ipv4Addr,
        /// Its router.
        gateway: Option<std::net::Ipv4Addr>,
        /// A name server.
        name_server: Option<std::net::Ipv4Addr>,
    },
    /// The first stage asks by DHCP itself.
    Asked,
}

/// Where a boot program fetches what it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrubSource {
    /// GRUB before 2.12 knows no port but 80, so TFTP.
    Tftp(std::net::Ipv4Addr),
    /// HTTP, where GRUB can.
    Http(std::net::SocketAddrV4),
}

impl std::fmt::Display for GrubSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tftp(address) => write!(f, "(tftp,{address})"),
            Self::Http(address) => write!(f, "(http,{address})"),
        }
    }
}

/// What a machine is told to boot. Texts are the server's own or were checked.
#[derive(Debug, Clone)]
pub struct BootPlan<'a> {
    /// For the screen: the machine and what it runs.
    pub title: String,
    /// Plain HTTP of the server that answers: `http://10.0.0.1:8480`.
    pub base: String,
    /// The card's address with hyphens: `52-54-00-12-34-56`.
    pub mac: String,
    /// Base URLs of the node service, best first.
    pub urls: Vec<String>,
    /// The boot token: hex.
    pub token: &'a str,
    /// Its address.
    pub address: Address,
    /// The node's and the image's arguments.
    pub arguments: &'a [Argument],
    /// The shim's URL, where Secure Boot wants one before the kernel.
    pub shim: Option<String>,
}

impl BootPlan<'_> {
    fn command_line(&self, address: Address) -> Result<Vec<String>, ScriptError> {
        let mut words: Vec<String> = self
            .urls
            .iter()
            .map(|url| format!("rootstock.url={url}"))
            .collect();
        words.push(format!("rootstock.token={}", self.token));
        words.push(format!("BOOTIF=01-{}", self.mac));
        match address {
            Address::FromIpxe => words.push(
                "rootstock.ip=${netX/ip}/${netX/netmask},${netX/gateway},${netX/dns}".to_owned(),
            ),
            Address::Known {
                ip,
                netmask,
                gateway,
                name_server,
            } => {
                let text = |address: Option<std::net::Ipv4Addr>| {
                    address
                        .map(|address| address.to_string())
                        .unwrap_or_default()
                };
                words.push(format!(
                    "rootstock.ip={ip}/{netmask},{},{}",
                    text(gateway),
                    text(name_server)
                ));
            }
            Address::Asked => {}
        }
        words.extend(self.arguments.iter().map(|argument| argument.0.clone()));
        let len_bytes = words.iter().map(|word| word.len() + 1).sum();
        if len_bytes > COMMAND_LINE_BYTES_MAX {
            return Err(ScriptError::TooLong { len_bytes });
        }
        Ok(words)
    }
}

/// The script with which a machine that is known boots.
///
/// On UEFI the kernel finds its initrd by name, which old releases of iPXE do not
/// add by themselves; on BIOS the argument does no harm.
///
/// # Errors
/// [`ScriptError`], which [`ipxe_failed`] can show.
pub fn ipxe_boot(plan: &BootPlan<'_>) -> Result<String, ScriptError> {
    let words = plan.command_line(plan.address)?.join(" ");
    let (base, mac, token) = (&plan.base, &plan.mac, plan.token);
    let mut script = begin(&plan.title);
    // Writing to a String cannot fail.
    let _ = writeln!(script, "set tries:int32 0");
    let _ = writeln!(script, ":fetch");
    let _ = writeln!(
        script,
        "kernel {base}/boot/s/{token}/kernel initrd=initrd {words} || goto again"
    );
    if let Some(shim) = &plan.shim {
        // Only with Secure Boot; releases without the variable or the command skip it.
        let _ = writeln!(script, "iseq ${{efi/SecureBoot:uint8}} 1 && shim {shim} ||");
    }
    let _ = writeln!(
        script,
        "initrd --name initrd {base}/boot/s/{token}/initrd || goto again"
    );
    let _ = writeln!(script, "boot ||");
    let _ = writeln!(script, ":again");
    let _ = writeln!(script, "imgfree ||");
    let _ = writeln!(script, "inc tries");
    let _ = writeln!(script, "iseq ${{tries}} {FETCH_TRIES_MAX} && goto anew ||");
    let _ = writeln!(script, "echo Rootstock: that did not work, trying again");
    let _ = writeln!(script, "sleep 2");
    let _ = writeln!(script, "goto fetch");
    let _ = writeln!(script, ":anew");
    let _ = writeln!(script, "chain --replace {base}/boot/ipxe/{mac} ||");
    let _ = writeln!(script, "sleep {RETRY_SECONDS}");
    let _ = writeln!(script, "goto anew");
    Ok(script)
}

/// The script that asks for the machine's own: what `autoexec.ipxe` is, too. It
/// tries until it has an address, because a ROM that loses the race between DHCP
/// and ProxyDHCP starts without one.
#[must_use]
pub fn ipxe_generic(base: &str) -> String {
    let mut script = begin("looking for this machine");
    let _ = write!(
        script,
        "\
:start
isset ${{netX/ip}} || dhcp || goto wait
chain --replace {base}/boot/ipxe/${{netX/mac:hexhyp}}?uuid=${{uuid}}&arch=${{buildarch}}&platform=${{platform}} || goto wait
:wait
echo Rootstock: no answer from {base}, trying again
sleep 3
goto start
"
    );
    script
}

/// The script of a machine that has to wait: it says why and asks again.
#[must_use]
pub fn ipxe_wait(base: &str, mac: &str, lines: &[String]) -> String {
    let mut script = begin("waiting");
    for line in lines {
        let _ = writeln!(script, "echo {}", plain(line));
    }
    let _ = write!(
        script,
        "\
:wait
sleep {RETRY_SECONDS}
chain --replace {base}/boot/ipxe/{mac} || goto wait
goto wait
"
    );
    script
}

/// The script of a machine that is none of ours: it boots from its own disk. UEFI
/// goes on with its next entry when a boot program returns an error.
#[must_use]
pub fn ipxe_local(reason: &str) -> String {
    let mut script = begin(reason);
    script.push_str(
        "\
iseq ${platform} efi && exit 1 ||
sanboot --no-describe --drive 0x80 || exit 1
",
    );
    script
}

/// The script of a machine that starts what is installed on its own disk. A BIOS that
/// cannot start it says so, and the machine asks `again`; UEFI goes on with its next
/// entry, and comes back to the network when there is none.
#[must_use]
pub fn ipxe_own_disk(title: &str, again: &str) -> String {
    let mut script = begin(title);
    let _ = write!(
        script,
        "\
iseq ${{platform}} efi && exit 1 ||
sanboot --no-describe --drive 0x80 ||
echo Rootstock: the disk does not start
:again
chain --replace {again} ||
sleep {RETRY_SECONDS}
goto again
"
    );
    script
}

/// The script of a machine whose boot the server cannot prepare: it names the
/// step and the reason and tries again.
#[must_use]
pub fn ipxe_failed(base: &str, mac: &str, step: &str, reason: &str) -> String {
    let lines = [
        format!("The server could not {step}:"),
        reason.to_owned(),
        format!("Trying again in {RETRY_SECONDS} seconds."),
    ];
    ipxe_wait(base, mac, &lines)
}

/// The GRUB configuration with which a machine that is known boots.
///
/// # Errors
/// As [`ipxe_boot`].
pub fn grub_boot(plan: &BootPlan<'_>, source: GrubSource) -> Result<String, ScriptError> {
    // GRUB has no variable for the netmask: what it got cannot be passed on.
    let address = match plan.address {
        Address::FromIpxe => Address::Asked,
        known => known,
    };
    let words = plan.command_line(address)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let path = format!("/boot/s/{}/", plan.token);
    Ok(grub_linux(&plan.title, source, &path, &words, &plan.mac))
}

/// The GRUB configuration that starts the kernel below a path with these arguments, and
/// asks again when it cannot.
fn grub_linux(title: &str, source: GrubSource, path: &str, words: &[&str], mac: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    format!(
        "\
{}\
if linux {source}{path}kernel {}; then
  if initrd {source}{path}initrd; then
    boot
  fi
fi
echo 'Rootstock: that did not work, trying again'
sleep {RETRY_SECONDS}
configfile {source}/boot/grub/{mac}
",
        grub_begin(title),
        words.join(" ")
    )
}

/// The GRUB configuration that asks for the machine's own.
#[must_use]
pub fn grub_generic(source: GrubSource) -> String {
    format!(
        "\
{}\
configfile {source}/boot/grub/${{net_default_mac}}
sleep 3
configfile $prefix/grub.cfg
",
        grub_begin("looking for this machine")
    )
}

/// The GRUB configuration of a machine that has to wait.
#[must_use]
pub fn grub_wait(source: GrubSource, mac: &str, lines: &[String]) -> String {
    let mut text = grub_begin("waiting");
    for line in lines {
        let _ = writeln!(text, "echo '{}'", plain(line));
    }
    let _ = write!(
        text,
        "sleep {RETRY_SECONDS}\nconfigfile {source}/boot/grub/{mac}\n"
    );
    text
}

/// The GRUB configuration of a machine that is none of ours.
#[must_use]
pub fn grub_local(reason: &str) -> String {
    format!("{}exit\n", grub_begin(reason))
}

/// Text that any boot loader only shows: printable ASCII without quotes, dollar
/// signs, comments and separators, of a bounded length.
#[must_use]
pub fn plain(text: &str) -> String {
    let harmless = |c: char| match c {
        ' ' => ' ',
        '\'' | '"' | '`' => '.',
        '$' | '#' | ';' | '&' | '|' | '\\' | '{' | '}' | '<' | '>' => '_',
        c if c.is_ascii_graphic() => c,
        c if c.is_control() => ' ',
        _ => '?',
    };
    // A leading hyphen would be an option of `echo`.
    let text = text.trim_start_matches(['-', ' ']);
    text.chars().map(harmless).take(TEXT_CHARS_MAX).collect()
}

fn begin(title: &str) -> String {
    format!("#!ipxe\necho Rootstock: {}\n", plain(title))
}

fn grub_begin(title: &str) -> String {
    format!("echo 'Rootstock: {}'\n", plain(title))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(arguments: &[Argument]) -> BootPlan<'_> {
        BootPlan {
            title: "n001 boots lab:3".to_owned(),
            base: "http://10.0.0.1:8480".to_owned(),
            mac: "52-54-00-12-34-56".to_owned(),
            urls: vec!["https://10.0.0.1:8481".to_owned()],
            token: "00112233445566778899aabbccddeeff",
            address: Address::FromIpxe,
            arguments,
            shim: None,
        }
    }

    #[test]
    fn an_installed_machine_starts_its_disk_or_asks_again() {
        let again = "http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56?disk=failed";
        let script = ipxe_own_disk("n001 starts lab:3 from its own disk", again);
        insta::assert_snapshot!(script, @"
        #!ipxe
        echo Rootstock: n001 starts lab:3 from its own disk
        iseq ${platform} efi && exit 1 ||
        sanboot --no-describe --drive 0x80 ||
        echo Rootstock: the disk does not start
        :again
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56?disk=failed ||
        sleep 10
        goto again
        ");
    }

    #[test]
    fn a_known_machine_boots() {
        let arguments = Argument::all("console=ttyS0,115200 quiet").expect("are fine");
        let script = ipxe_boot(&plan(&arguments)).expect("fits");
        insta::assert_snapshot!(script, @"
        #!ipxe
        echo Rootstock: n001 boots lab:3
        set tries:int32 0
        :fetch
        kernel http://10.0.0.1:8480/boot/s/00112233445566778899aabbccddeeff/kernel initrd=initrd rootstock.url=https://10.0.0.1:8481 rootstock.token=00112233445566778899aabbccddeeff BOOTIF=01-52-54-00-12-34-56 rootstock.ip=${netX/ip}/${netX/netmask},${netX/gateway},${netX/dns} console=ttyS0,115200 quiet || goto again
        initrd --name initrd http://10.0.0.1:8480/boot/s/00112233445566778899aabbccddeeff/initrd || goto again
        boot ||
        :again
        imgfree ||
        inc tries
        iseq ${tries} 5 && goto anew ||
        echo Rootstock: that did not work, trying again
        sleep 2
        goto fetch
        :anew
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56 ||
        sleep 10
        goto anew
        ");
    }

    #[test]
    fn with_secure_boot_the_shim_comes_between() {
        let mut plan = plan(&[]);
        plan.shim = Some("http://10.0.0.1:8480/boot/file/shimx64.efi".to_owned());
        let script = ipxe_boot(&plan).expect("fits");
        let line = script.lines().find(|line| line.contains("shim"));
        insta::assert_snapshot!(line.unwrap_or_default(), @"iseq ${efi/SecureBoot:uint8} 1 && shim http://10.0.0.1:8480/boot/file/shimx64.efi ||");
    }

    #[test]
    fn the_others_wait_or_leave() {
        let base = "http://10.0.0.1:8480";
        insta::assert_snapshot!(ipxe_generic(base), @"
        #!ipxe
        echo Rootstock: looking for this machine
        :start
        isset ${netX/ip} || dhcp || goto wait
        chain --replace http://10.0.0.1:8480/boot/ipxe/${netX/mac:hexhyp}?uuid=${uuid}&arch=${buildarch}&platform=${platform} || goto wait
        :wait
        echo Rootstock: no answer from http://10.0.0.1:8480, trying again
        sleep 3
        goto start
        ");
        let lines = ["`rootstock node approve` it\nboot".to_owned()];
        insta::assert_snapshot!(ipxe_wait(base, "52-54-00-12-34-56", &lines), @"
        #!ipxe
        echo Rootstock: waiting
        echo .rootstock node approve. it boot
        :wait
        sleep 10
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56 || goto wait
        goto wait
        ");
        insta::assert_snapshot!(ipxe_local("not managed here"), @"
        #!ipxe
        echo Rootstock: not managed here
        iseq ${platform} efi && exit 1 ||
        sanboot --no-describe --drive 0x80 || exit 1
        ");
        insta::assert_snapshot!(
            ipxe_failed(base, "52-54-00-12-34-56", "make the first stage", "no kernel in lab:3"),
            @"
        #!ipxe
        echo Rootstock: waiting
        echo The server could not make the first stage:
        echo no kernel in lab:3
        echo Trying again in 10 seconds.
        :wait
        sleep 10
        chain --replace http://10.0.0.1:8480/boot/ipxe/52-54-00-12-34-56 || goto wait
        goto wait
        "
        );
    }

    #[test]
    fn grub_does_the_same() {
        let arguments = Argument::all("console=ttyS0;x").expect("are fine");
        let mut plan = plan(&arguments);
        let source = GrubSource::Tftp([10, 0, 0, 1].into());
        insta::assert_snapshot!(grub_boot(&plan, source).expect("fits"), @"
        echo 'Rootstock: n001 boots lab:3'
        if linux (tftp,10.0.0.1)/boot/s/00112233445566778899aabbccddeeff/kernel 'rootstock.url=https://10.0.0.1:8481' 'rootstock.token=00112233445566778899aabbccddeeff' 'BOOTIF=01-52-54-00-12-34-56' 'console=ttyS0;x'; then
          if initrd (tftp,10.0.0.1)/boot/s/00112233445566778899aabbccddeeff/initrd; then
            boot
          fi
        fi
        echo 'Rootstock: that did not work, trying again'
        sleep 10
        configfile (tftp,10.0.0.1)/boot/grub/52-54-00-12-34-56
        ");
        plan.address = Address::Known {
            ip: [10, 0, 0, 7].into(),
            netmask: [255, 255, 255, 0].into(),
            gateway: None,
            name_server: Some([10, 0, 0, 2].into()),
        };
        let source = GrubSource::Http("10.0.0.1:8480".parse().expect("an address"));
        let script = grub_boot(&plan, source).expect("fits");
        assert!(
            script.contains("'rootstock.ip=10.0.0.7/255.255.255.0,,10.0.0.2'"),
            "{script}"
        );
        insta::assert_snapshot!(grub_generic(source), @"
        echo 'Rootstock: looking for this machine'
        configfile (http,10.0.0.1:8480)/boot/grub/${net_default_mac}
        sleep 3
        configfile $prefix/grub.cfg
        ");
        insta::assert_snapshot!(grub_wait(source, "52-54-00-12-34-56", &["it's held".to_owned()]), @"
        echo 'Rootstock: waiting'
        echo 'it.s held'
        sleep 10
        configfile (http,10.0.0.1:8480)/boot/grub/52-54-00-12-34-56
        ");
        insta::assert_snapshot!(grub_local("not managed here"), @"
        echo 'Rootstock: not managed here'
        exit
        ");
    }

    #[test]
    fn arguments_that_a_loader_would_read_are_refused() {
        for bad in [
            "",
            "a b",
            "a\nb",
            "${uuid}",
            "$(reboot)",
            "'x'",
            "x\\",
            "\"",
            "`x`",
            "#x",
            "||",
            "&&",
            ";",
            "ä",
            "rootstock.url=http://evil",
            "BOOTIF=01",
            "initrd=x",
        ] {
            assert!(Argument::new(bad).is_err(), "{bad:?}");
        }
        for good in [
            "quiet",
            "a=b,c",
            "root=/dev/x",
            "a||b",
            "x;y",
            "mem=1G@2G",
            "{}",
        ] {
            assert_eq!(Argument::new(good).expect(good).as_str(), good);
        }
        let long = Argument::all(&"x".repeat(500)).expect("one");
        let many = vec![long[0].clone(); 5];
        assert!(matches!(
            ipxe_boot(&plan(&many)),
            Err(ScriptError::TooLong { .. })
        ));
    }

    proptest! {
        /// Whatever a name, a title or an argument holds, the script has the same
        /// lines, and each begins with the same command.
        #[test]
        fn nothing_from_outside_makes_a_line(title in any::<String>(), text in any::<String>()) {
            let commands = |script: &str| -> Vec<String> {
                let lines = script.split(['\n', '\r']);
                lines.map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect()
            };
            let model = plan(&[]);
            let usual = commands(&ipxe_boot(&model).expect("fits"));
            let arguments = Argument::all(&text).unwrap_or_default();
            let mut other = plan(&arguments);
            other.title = title.clone();
            if let Ok(script) = ipxe_boot(&other) {
                prop_assert_eq!(commands(&script), usual);
                prop_assert_eq!(script.matches("${").count(), ipxe_boot(&model).expect("fits").matches("${").count());
            }
            let wait = ipxe_wait("b", "m", std::slice::from_ref(&title));
            prop_assert_eq!(commands(&wait), commands(&ipxe_wait("b", "m", &["x".to_owned()])));
            let source = GrubSource::Tftp([10, 0, 0, 1].into());
            let grub = grub_wait(source, "m", &[title]);
            prop_assert_eq!(grub.matches('\'').count(), 4);
        }
    }
}
