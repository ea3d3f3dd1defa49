//! Settings of nodes and profiles: each optional, each inherited.

use std::{fmt, num::NonZeroU32, str::FromStr};

use rootstock_core::{DailyHours, TimeLimit, VersionSpec, VolumeName};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::{
    boot::{CacheChoice, KeptPath, NodeMode},
    install::InstallDisk,
    iscsi_start::IscsiStart,
    personal::{OtherWrites, PersonalPlace},
    swarm::{Metered, Rack, SwarmCopies, SwarmMode},
};

/// The most paths that one machine keeps.
const KEPT_PATHS_MAX: usize = 64;

/// Why a text is no setting's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No setting has this name.
    #[error("there is no setting '{}': there are {}", name.escape_debug(), Setting::list())]
    Name {
        /// What was written.
        name: String,
    },
    /// The setting cannot be this.
    #[error("'{}' is no {setting}: {reason}", value.escape_debug())]
    Value {
        /// The setting.
        setting: Setting,
        /// What was written.
        value: String,
        /// What it can be.
        reason: String,
    },
}

macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty as $schema:ty => $name:ident;)*) => {
        /// Settings of a node or profile. What is absent is inherited.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(default)]
        pub struct Settings {
            $($(#[$doc])*
            #[serde(skip_serializing_if = "Option::is_none")]
            #[schema(value_type = Option<$schema>)]
            pub $field: Option<$type>,)*
        }

        /// The same, but what is not known is refused: a request's.
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Strict {
            $($field: Option<$type>,)*
        }

        impl From<Strict> for Settings {
            fn from(strict: Strict) -> Self {
                Self { $($field: strict.$field,)* }
            }
        }

        /// A setting's name.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Setting {
            $($(#[$doc])* $name,)*
        }

        impl Setting {
            /// All of them, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name as it stands in documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($field),)* }
            }
        }

        impl Settings {
            /// A setting as people write it.
            #[must_use]
            pub fn text(&self, setting: Setting) -> Option<String> {
                match setting { $(Setting::$name => self.$field.as_ref().map(Text::write),)* }
            }

            /// Sets a setting to what people write.
            ///
            /// # Errors
            /// [`SettingError::Value`] when it cannot be that.
            pub fn set_text(&mut self, setting: Setting, value: &str) -> Result<(), SettingError> {
                let wrong = |reason: String| SettingError::Value {
                    setting,
                    value: value.chars().take(80).collect(),
                    reason,
                };
                match setting {
                    $(Setting::$name => self.$field = Some(Text::read(value).map_err(wrong)?),)*
                }
                Ok(())
            }

            /// Takes a setting away.
            pub fn clear(&mut self, setting: Setting) {
                match setting { $(Setting::$name => self.$field = None,)* }
            }

            /// Sets what `above` sets.
            pub fn set_all(&mut self, above: &Self) {
                $(if above.$field.is_some() {
                    self.$field.clone_from(&above.$field);
                })*
            }
        }
    };
}

settings! {
    /// What it runs: `lab`, `lab:3` or `lab@production`.
    image: VersionSpec as String => Image;
    /// How it treats its root.
    mode: NodeMode as NodeMode => Mode;
    /// Where a personal machine's writes are.
    personal: PersonalPlace as PersonalPlace => Personal;
    /// The volume that is its disk, in the place of one that is called like it.
    volume: VolumeName as String => Volume;
    /// Whether it has to prove a secret to its disk over iSCSI (CHAP), a new one for
    /// each boot.
    chap: bool as bool => Chap;
    /// What starts on it when its disk is reached over iSCSI.
    iscsi_start: IscsiStart as IscsiStart => IscsiStart;
    /// What becomes of what it wrote over another version.
    other_writes: OtherWrites as OtherWrites => OtherWrites;
    /// The network that it boots in, by its interface on the server.
    network: String as String => Network;
    /// Arguments for its kernel, after those of the image.
    kernel_arguments: String as String => KernelArguments;
    /// The kernel's console, such as `ttyS0,115200n8`.
    console: String as String => Console;
    /// How its firmware is booted, when not the way that is found by trying.
    boot_strategy: String as String => BootStrategy;
    /// Words to find it by.
    tags: Vec<String> as Vec<String> => Tags;
    /// The kernel, as a path inside the image.
    kernel: String as String => Kernel;
    /// An initrd of its own, as a path inside the image, in the place of the first stage.
    initrd: String as String => Initrd;
    /// The partition of the root file system; 0 is the whole disk.
    root: u32 as u32 => Root;
    /// What its writes may take of its memory.
    overlay_bytes_max: u64 as u64 => OverlayBytesMax;
    /// Its memory for decompressed chunks.
    cache_bytes: u64 as u64 => CacheBytes;
    /// Paths of its root that lie on a file system of its own, and outlive a boot.
    keep: Vec<KeptPath> as Vec<String> => Keep;
    /// Which of its own disks it keeps chunks on: `auto`, `none`, or a device.
    cache: CacheChoice as String => Cache;
    /// What it may take of that disk.
    cache_disk_bytes_max: u64 as u64 => CacheDiskBytesMax;
    /// The disk that its image is laid out on in the mode `install`; all that is on it
    /// is lost.
    install_disk: InstallDisk as String => InstallDisk;
    /// Whether it fetches what nobody has asked for yet.
    fill: FillSwitch as FillSwitch => Fill;
    /// The most that this may take of the network, in Mbit/s.
    fill_mbit_max: NonZeroU32 as u32 => FillMbitMax;
    /// When it does so, by the site's clock: `22:00-06:00`.
    fill_hours: DailyHours as String => FillHours;
    /// Whether there is an exam, during which nothing runs in the background.
    exam: bool as bool => Exam;
    /// Whether it fetches from other machines and serves them, and how.
    swarm: SwarmMode as SwarmMode => Swarm;
    /// Which machines it reaches without a slower or dearer link: those with the same
    /// label; those of its subnet when nobody says.
    rack: Rack as String => Rack;
    /// The most that it may send others, in Mbit/s.
    upload_mbit_max: NonZeroU32 as u32 => UploadMbitMax;
    /// Whether its line is paid for by the byte, over which it sends others nothing: `auto`,
    /// as the machine knows it, when nobody says.
    metered: Metered as Metered => Metered;
    /// Memory in which it holds chunks for others, when it has no disk for them.
    swarm_memory: u64 as u64 => SwarmMemory;
    /// How many machines of its rack own each chunk.
    swarm_copies: SwarmCopies as u8 => SwarmCopies;
    /// Whether it boots machines of its subnet when no server does.
    boots_others: bool as bool => BootsOthers;
    /// How long a boot of a version that is new to it may take until the system is up.
    boot_limit: TimeLimit as String => BootLimit;
    /// A command of the image that must end with 0 for its system to count as up.
    check: String as String => Check;
    /// Whether a boot that fails offers a shell on the console.
    rescue_shell: bool as bool => RescueShell;
}

impl Setting {
    /// Whether a machine that runs is told at once when it changes; it boots anew
    /// for the others.
    #[must_use]
    pub const fn holds_at_once(self) -> bool {
        matches!(
            self,
            Self::Fill
                | Self::FillMbitMax
                | Self::FillHours
                | Self::Exam
                | Self::Swarm
                | Self::Rack
                | Self::UploadMbitMax
                | Self::Metered
                | Self::SwarmMemory
                | Self::SwarmCopies
                | Self::BootsOthers
        )
    }

    fn list() -> String {
        let names: Vec<_> = Self::ALL.iter().map(|setting| setting.as_str()).collect();
        names.join(", ")
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Setting {
    type Err = SettingError;

    /// The name, with `_` or `-` between its words.
    fn from_str(text: &str) -> Result<Self, SettingError> {
        let name = text.replace('-', "_");
        let mut all = Self::ALL.iter().copied();
        all.find(|setting| setting.as_str() == name)
            .ok_or_else(|| SettingError::Name {
                name: text.chars().take(80).collect(),
            })
    }
}

impl Settings {
    /// Whether the machine's disk is a volume on the server that stays what it is: what the
    /// machine runs is what that was made from.
    #[must_use]
    pub fn has_volume(&self) -> bool {
        match self.mode {
            Some(NodeMode::Personal) => self.personal.unwrap_or_default() == PersonalPlace::Server,
            Some(NodeMode::Iscsi) => true,
            // Its own one is made anew for another version; a given one is not.
            Some(NodeMode::IscsiFrozen) => self.volume.is_some(),
            _ => false,
        }
    }

    /// Whether its disk is reached over iSCSI, by firmware and a system of any kind.
    #[must_use]
    pub fn is_iscsi(&self) -> bool {
        matches!(self.mode, Some(NodeMode::Iscsi | NodeMode::IscsiFrozen))
    }

    /// Whether its root is mounted over NFS.
    #[must_use]
    pub fn is_nfs(&self) -> bool {
        self.mode == Some(NodeMode::Nfs)
    }
}

impl NodeMode {
    /// The modes, as people write them.
    pub const WORDS: &str = "diskless (or frozen: every boot is fresh), ram, personal, install, hold, iscsi, iscsi-frozen, nfs";

    /// The mode as it stands in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Diskless => "diskless",
            Self::Ram => "ram",
            Self::Personal => "personal",
            Self::Install => "install",
            Self::Hold => "hold",
            Self::Iscsi => "iscsi",
            Self::IscsiFrozen => "iscsi-frozen",
            Self::Nfs => "nfs",
        }
    }
}

impl fmt::Display for NodeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for NodeMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "diskless" | "frozen" => Ok(Self::Diskless),
            "ram" => Ok(Self::Ram),
            "personal" => Ok(Self::Personal),
            "install" => Ok(Self::Install),
            "hold" => Ok(Self::Hold),
            "iscsi" => Ok(Self::Iscsi),
            "iscsi-frozen" => Ok(Self::IscsiFrozen),
            "nfs" => Ok(Self::Nfs),
            _ => Err(format!("the modes are {}", Self::WORDS)),
        }
    }
}

/// Whether a machine fetches what nobody has asked for yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FillSwitch {
    /// It does.
    #[default]
    On,
    /// It waits until it is told otherwise.
    Paused,
}

impl fmt::Display for FillSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::On => "on",
            Self::Paused => "paused",
        })
    }
}

impl FromStr for FillSwitch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "paused" => Ok(Self::Paused),
            _ => Err("write on or paused".to_owned()),
        }
    }
}

/// Reads settings of a request, in which a mistyped name must not be overlooked.
pub(crate) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Settings, D::Error> {
    let settings = Strict::deserialize(deserializer).map(Settings::from)?;
    let kept = settings.keep.as_ref().map_or(0, Vec::len);
    if kept > KEPT_PATHS_MAX {
        return Err(serde::de::Error::custom(too_many_kept()));
    }
    Ok(settings)
}

fn too_many_kept() -> String {
    format!("at most {KEPT_PATHS_MAX} paths can be kept")
}

/// A value as people write it.
trait Text: Sized {
    fn write(&self) -> String;
    fn read(text: &str) -> Result<Self, String>;
}

impl Text for String {
    fn write(&self) -> String {
        self.clone()
    }

    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Text for Vec<String> {
    fn write(&self) -> String {
        self.join(" ")
    }

    fn read(text: &str) -> Result<Self, String> {
        let words = text.split([' ', ',']).filter(|word| !word.is_empty());
        Ok(words.map(str::to_owned).collect())
    }
}

impl Text for Vec<KeptPath> {
    fn write(&self) -> String {
        let paths: Vec<&str> = self.iter().map(KeptPath::as_str).collect();
        paths.join(" ")
    }

    fn read(text: &str) -> Result<Self, String> {
        let words = Vec::<String>::read(text)?;
        if words.len() > KEPT_PATHS_MAX {
            return Err(too_many_kept());
        }
        words.iter().map(|word| word.parse()).collect()
    }
}

impl Text for bool {
    fn write(&self) -> String {
        if *self { "yes" } else { "no" }.to_owned()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "yes" | "true" => Ok(true),
            "no" | "false" => Ok(false),
            _ => Err("write yes or no".to_owned()),
        }
    }
}

macro_rules! text_by_from_str {
    ($($type:ty, $reason:expr;)*) => {$(
        impl Text for $type {
            fn write(&self) -> String {
                self.to_string()
            }

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err($reason)
            }
        }
    )*};
}

text_by_from_str! {
    VersionSpec, |error: rootstock_core::NameError| error.to_string();
    VolumeName, |error: rootstock_core::NameError| error.to_string();
    NodeMode, |error: String| error;
    CacheChoice, |error: String| error;
    InstallDisk, |error: String| error;
    FillSwitch, |error: String| error;
    SwarmMode, |error: String| error;
    SwarmCopies, |error: String| error;
    Metered, |error: String| error;
    Rack, |error: String| error;
    OtherWrites, |error: String| error;
    PersonalPlace, |error: String| error;
    IscsiStart, |error: String| error;
    DailyHours, |error: rootstock_core::HoursError| error.to_string();
    TimeLimit, |error: rootstock_core::TimeLimitError| error.to_string();
    NonZeroU32, |_| "write Mbit/s, at least 1; `fill paused` and `swarm off` are for none".to_owned();
    u32, |_| "write a partition's number, or 0 for the whole disk".to_owned();
}

impl Text for u64 {
    fn write(&self) -> String {
        self.to_string()
    }

    fn read(text: &str) -> Result<Self, String> {
        rootstock_core::units::parse_size_bytes(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Settings {
        let mut settings = Settings::default();
        for (setting, value) in [
            (Setting::Image, "lab@production"),
            (Setting::Mode, "frozen"),
            (Setting::Personal, "disk"),
            (Setting::Volume, "seat-7"),
            (Setting::Chap, "yes"),
            (Setting::IscsiStart, "kernel"),
            (Setting::OtherWrites, "drop"),
            (Setting::Network, "lan0"),
            (Setting::KernelArguments, "quiet splash"),
            (Setting::Console, "ttyS0,115200n8"),
            (Setting::BootStrategy, "http"),
            (Setting::Tags, "room-1 gpu"),
            (Setting::Kernel, "/boot/vmlinuz"),
            (Setting::Initrd, "/boot/initrd.img"),
            (Setting::Root, "2"),
            (Setting::OverlayBytesMax, "1GiB"),
            (Setting::CacheBytes, "64MiB"),
            (Setting::Keep, "/home /var/lib/docker"),
            (Setting::Cache, "/dev/disk/by-partlabel/cache"),
            (Setting::CacheDiskBytesMax, "100GiB"),
            (Setting::InstallDisk, "/dev/disk/by-id/ata-1"),
            (Setting::Fill, "paused"),
            (Setting::FillMbitMax, "200"),
            (Setting::FillHours, "22:00-06:00,12:00-13:00"),
            (Setting::Exam, "yes"),
            (Setting::Swarm, "tls"),
            (Setting::Rack, "room-1"),
            (Setting::UploadMbitMax, "500"),
            (Setting::Metered, "yes"),
            (Setting::SwarmMemory, "1GiB"),
            (Setting::SwarmCopies, "3"),
            (Setting::BootsOthers, "yes"),
            (Setting::BootLimit, "15m"),
            (Setting::Check, "systemctl is-active gdm"),
            (Setting::RescueShell, "yes"),
        ] {
            settings.set_text(setting, value).expect(value);
        }
        settings
    }

    #[test]
    fn each_setting_goes_and_comes_back() {
        let settings = full();
        let mut again = Settings::default();
        for setting in Setting::ALL {
            let text = settings.text(*setting).expect("is set");
            again.set_text(*setting, &text).expect("is its own text");
            assert_eq!(setting.as_str().parse(), Ok(*setting));
            let json = serde_json::to_string(setting).expect("serializes");
            assert_eq!(json, format!("\"{setting}\""));
        }
        assert_eq!(again, settings);
        assert_eq!(again.mode, Some(NodeMode::Diskless));
        for setting in Setting::ALL {
            again.clear(*setting);
        }
        assert_eq!(again, Settings::default());
        again.set_all(&settings);
        again.set_all(&Settings::default());
        assert_eq!(again, settings);
        let json = serde_json::to_string(&settings).expect("serializes");
        assert_eq!(
            serde_json::from_str::<Settings>(&json).expect("is its own"),
            settings
        );
    }

    #[test]
    fn no_more_paths_are_kept_than_there_are_places() {
        let paths = |count: usize| {
            let paths: Vec<String> = (0..count).map(|path| format!("\"/srv/{path}\"")).collect();
            format!(r#"{{"keep":[{}]}}"#, paths.join(","))
        };
        let read = |text: &str| strict(&mut serde_json::Deserializer::from_str(text));
        assert!(read(&paths(KEPT_PATHS_MAX)).is_ok());
        let error = read(&paths(KEPT_PATHS_MAX + 1)).expect_err("too many");
        assert!(error.to_string().contains("at most 64 paths"), "{error}");
    }

    #[test]
    fn what_concerns_the_background_holds_at_once() {
        let all = Setting::ALL.iter().copied();
        let names: Vec<_> = all.filter(|setting| setting.holds_at_once()).collect();
        let fill = [Setting::Fill, Setting::FillMbitMax, Setting::FillHours];
        let swarm = [
            Setting::Swarm,
            Setting::Rack,
            Setting::UploadMbitMax,
            Setting::Metered,
            Setting::SwarmMemory,
            Setting::SwarmCopies,
            Setting::BootsOthers,
        ];
        assert_eq!(names, [&fill[..], &[Setting::Exam], &swarm].concat());
    }

    #[test]
    fn mistakes_are_said() {
        let mut settings = Settings::default();
        for (setting, value, said) in [
            (
                Setting::Mode,
                "thawed",
                "'thawed' is no mode: the modes are diskless (or frozen",
            ),
            (Setting::Personal, "here", "write server or disk"),
            (Setting::OtherWrites, "yes", "write keep or drop"),
            (Setting::Image, "a b", "is no image"),
            (Setting::Root, "sda1", "write a partition's number"),
            (Setting::RescueShell, "maybe", "write yes or no"),
            (Setting::Cache, "sda3", "write auto, none, or a device"),
            (Setting::Cache, "/dev/../etc/shadow", "write auto, none, or"),
            (Setting::CacheDiskBytesMax, "much", "is not a size"),
            (Setting::InstallDisk, "auto", "write a whole disk"),
            (Setting::Fill, "off", "write on or paused"),
            (
                Setting::FillMbitMax,
                "0",
                "at least 1; `fill paused` and `swarm off` are for none",
            ),
            (Setting::FillHours, "22-6", "write 22:00-06:00"),
            (Setting::Exam, "1", "write yes or no"),
            (Setting::Swarm, "on", "write off, tls or plain"),
            (Setting::Rack, "room 1", "write at most 64 letters, digits"),
            (Setting::UploadMbitMax, "0", "`swarm off` are for none"),
            (Setting::Metered, "maybe", "write auto, yes or no"),
            (Setting::SwarmMemory, "much", "is not a size"),
            (Setting::SwarmCopies, "9", "write a number from 1 to 8"),
            (Setting::BootLimit, "10", "write 90s, 10m or 1h"),
            (Setting::Keep, "home", "write absolute paths"),
            (Setting::Keep, "/home /srv/../etc", "write absolute paths"),
            (Setting::Keep, "/", "write absolute paths"),
            (Setting::Keep, "/run/user", "write absolute paths"),
        ] {
            let error = settings
                .set_text(setting, value)
                .expect_err(value)
                .to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(settings, Settings::default());
        let error = "imge".parse::<Setting>().expect_err("is none").to_string();
        assert!(
            error.starts_with("there is no setting 'imge': there are image, mode, personal,"),
            "{error}"
        );
        assert_eq!("kernel-arguments".parse(), Ok(Setting::KernelArguments));
    }

    #[test]
    fn a_newer_neighbours_settings_are_read_and_a_mistyped_request_is_not() {
        let newer = r#"{"image":"lab","teleport":true}"#;
        let settings: Settings = serde_json::from_str(newer).expect("is read");
        assert_eq!(settings.text(Setting::Image).as_deref(), Some("lab"));
        let mut json = serde_json::Deserializer::from_str(newer);
        assert!(strict(&mut json).is_err());
    }
}
