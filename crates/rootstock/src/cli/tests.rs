//! The command line as its users see it.

use clap::CommandFactory as _;
use insta::assert_snapshot;

use super::*;

fn parsed(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("rootstock").chain(line.split_whitespace()))
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn commands_are_understood() {
    for line in [
        "image import lab disk.img --tag test -m words --keep-free-space",
        "image import lab - --format raw --spool /tmp --max-size 20G",
        "--api unix:/x image list --json",
        "image list --api https://server:8443 --token-file t --ca c.pem",
        "image export lab@test out.qcow2 --format qcow2 --force",
        "image diff lab:1 lab:2",
        "image tag lab:1 production",
        "image delete lab --all",
        "import abort x",
        "volume create v --from lab:@test --size 20G --ephemeral",
        "volume create v --blank 20G --block-size 4096",
        "image share lab:3 --initiator iqn.2026-11.example:b --chap --from 10.0.0.0/24",
        "image unshare lab@production --initiator iqn.2026-11.example:b",
        "volume commit v lab --tag t",
        "gc -q",
        "scrub status",
        "scrub start",
        "token create ci --role admin",
        "installer list",
        "installer render debian-12 --node n7 preseed.cfg",
        "node install n[01-20] --installer debian-12 --size 20G --force",
        "node install n7 --cancel",
        "status",
        "completions zsh",
        "plan storm --nodes 300 --image lab:8 --head 10G --nodes-link 1G --racks 6 --json",
        "plan storm --nodes 1 --bytes 8G --boot-set 200M --from boot --spread 0",
        "node set n[01-20] --cache /dev/sda3 --cache-disk-bytes-max 64G --exam no",
        "node set n1 --fill paused --fill-mbit-max 200 --fill-hours 22:00-06:00,12:00-13:00",
        "profile set lab --exam yes --cache auto",
        "serve --config c.toml --api unix:/a --api https://0.0.0.0:8443",
    ] {
        assert!(parsed(line).is_ok(), "{line}: {:?}", parsed(line).err());
    }
}

#[test]
fn mistakes_are_explained() {
    let mistakes = [
        "image import a/b disk.img",
        "image import lab disk.img --format tape",
        "image show lab:0",
        "volume create v",
        "volume create v --blank 1G --block-size 520",
        "volume resize v huge",
        "image inport lab x",
        "node set n1 --cache sda3",
        "node set n1 --fill off",
        "node set n1 --fill-mbit-max 0",
        "node set n1 --fill-hours 22-6",
        "node set n1 --exam soon",
        "node install n1",
    ];
    let told: Vec<String> = mistakes
        .iter()
        .map(|line| {
            let error = parsed(line).err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            let lines: Vec<&str> = error
                .lines()
                .take_while(|line| !line.starts_with("Usage"))
                .collect();
            lines.join("\n").trim().to_owned()
        })
        .collect();
    assert_snapshot!(told.join("\n---\n"), @r"
    error: invalid value 'a/b' for '<NAME>': the image name 'a/b' has '/' in it: names are letters, digits, '.', '_' and '-', and begin with a letter or digit

    For more information, try '--help'.
    ---
    error: invalid value 'tape' for '--format <FORMAT>': write raw, qcow2, vmdk, vdi, vhd, vhdx, ova, box, gz, xz or zstd

    For more information, try '--help'.
    ---
    error: invalid value 'lab:0' for '<VERSION>': 'lab:0' is not a version: write NAME, NAME:3 or NAME@tag

    For more information, try '--help'.
    ---
    error: the following required arguments were not provided:
      <--from <VERSION>|--blank <SIZE>>
    ---
    error: invalid value '520' for '--block-size <BYTES>'
      [possible values: 512, 4096]

    For more information, try '--help'.
    ---
    error: invalid value 'huge' for '<SIZE>': 'huge' is not a size: write bytes or a number with K, M, G, T (powers of 1024), such as 20G

    For more information, try '--help'.
    ---
    error: unrecognized subcommand 'inport'

      tip: some similar subcommands exist: 'export', 'import'
    ---
    error: invalid value 'sda3' for '--cache <DISK>': write auto, none, or a device such as /dev/sda3

    For more information, try '--help'.
    ---
    error: invalid value 'off' for '--fill <on|paused>': write on or paused

    For more information, try '--help'.
    ---
    error: invalid value '0' for '--fill-mbit-max <MBIT>': write Mbit/s, at least 1; '--fill paused' stops it

    For more information, try '--help'.
    ---
    error: invalid value '22-6' for '--fill-hours <HOURS>': '22-6' is not a part of the day: write 22:00-06:00, or several with commas between them

    For more information, try '--help'.
    ---
    error: invalid value 'soon' for '--exam <yes|no>': write yes or no

    For more information, try '--help'.
    ---
    error: the following required arguments were not provided:
      --installer <INSTALLER>
    ");
}

#[test]
fn a_long_word_is_cut() {
    let long = format!("error: '{}' is long", "é".repeat(10_000));
    let cut = shortened(&long);
    assert!(cut.starts_with("error: 'é") && cut.ends_with("… is long") && cut.len() < 200);
    assert_eq!(shortened("a short one\n"), "a short one\n");
}

fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(90);
    command.build();
    let mut command = &mut command;
    for name in path {
        command = command.find_subcommand_mut(name).expect("a command");
    }
    command.render_help().to_string()
}

#[test]
fn help_teaches() {
    assert_snapshot!(help(&[]), @r"
    Disk images in, versions kept, clones out

    Usage: rootstock [OPTIONS] <COMMAND>

    Commands:
      serve        Run the daemon
      image        Import, export and look after images
      import       Look after imports that are not finished
      volume       Make and look after writable clones (a seat's writeback, a super client)
      node         Add and look after machines (seats, PCs), and see them boot
      installer    Look at the installers of distributions that machines can be started with
      profile      Make and look after settings that nodes inherit
      rollout      Bring a version to many nodes, a few at first
      plan         Say what something would take, such as 300 machines that boot at once
      boot         Look after the services that boot machines
      nfs          Export versions over NFS, for machines in the mode nfs
      gc           Free the space of what nothing needs
      scrub        Start and watch the check of all stored data
      token        Let other machines use the API
      status       Show the daemon, its store and who uses it
      completions  Print a shell's completion script

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Options of every command:
          --api <ADDRESS>      Where the daemon is: unix:PATH or https://HOST:PORT (or set
                               ROOTSTOCK_API); for serve, where it listens, and repeatable
          --json               Print one JSON document (or one a line) instead of text
      -q, --quiet              Print no progress and no remarks
          --token-file <FILE>  A file with the bearer token for --api https:… (or set
                               ROOTSTOCK_TOKEN)
          --ca <FILE>          A file of PEM certificates to trust instead of the system's
                               [env: ROOTSTOCK_CA=]

    Examples:
      rootstock serve --data ~/rootstock --api unix:/tmp/rootstock.sock
      rootstock image import lab disk.qcow2 --tag test
      rootstock image import lab /dev/sda -m 'seat 7 as installed'
      rootstock image show lab@test
      rootstock volume create seat-7 --from lab@test
      rootstock volume commit seat-7 lab --tag production
      rootstock image export lab@production lab.vmdk --format vmdk

    The daemon is found by --api, or ROOTSTOCK_API, or at unix:/run/rootstock/api.sock.
    ");
    assert_snapshot!(help(&["image", "import"]), @r"
    Make a version of a disk image, a block device or standard input

    Usage: rootstock image import [OPTIONS] <NAME> <SOURCE>

    Arguments:
      <NAME>    The image that gets the version; made when it does not exist
      <SOURCE>  The disk: a file, a block device, or - for standard input

    Options:
          --tag <TAG>          Point this tag at the version
      -m, --message <MESSAGE>  What there is to say about the version
          --keep-free-space    Keep what file systems have free, such as deleted files
          --format <FORMAT>    Take the source for this format instead of looking
          --member <NAME>      The member of an OVA or box that is the disk, when there are
                               several
          --spool <DIR>        Where streams and packed sources are unpacked to [default:
                               /var/tmp]
          --max-size <SIZE>    The largest disk to accept
          --allow-changes      Accept a source that is written to while it is read, such as
                               the disk of the running system: its file systems may need their
                               repair
          --allow-truncated    Accept a disk whose end is missing, by what its partition table
                               says
      -h, --help               Print help

    Options of every command:
          --api <ADDRESS>      Where the daemon is: unix:PATH or https://HOST:PORT (or set
                               ROOTSTOCK_API); for serve, where it listens, and repeatable
          --json               Print one JSON document (or one a line) instead of text
      -q, --quiet              Print no progress and no remarks
          --token-file <FILE>  A file with the bearer token for --api https:… (or set
                               ROOTSTOCK_TOKEN)
          --ca <FILE>          A file of PEM certificates to trust instead of the system's
                               [env: ROOTSTOCK_CA=]

    Sources: a raw disk image, a block device, qcow2, VMDK, VDI, VHD, VHDX, an OVA, a
    Vagrant box, any of them packed with gzip, xz or zstd, and - for standard input.

    The work is done here: holes and free space are skipped, and only what the daemon
    lacks is sent. If it is interrupted, run the same command again: it goes on where
    it was. A source that is the image's newest version already makes no new one.

    Examples:
      rootstock image import lab disk.qcow2
      rootstock image import lab disk.img.xz --tag test -m 'kernel 6.1.99'
      sudo rootstock image import lab /dev/sda --api https://server:8443
      curl -s https://example.org/disk.raw.gz | rootstock image import lab -
    ");
    assert_snapshot!(help(&["volume"]), @r"
    Make and look after writable clones (a seat's writeback, a super client)

    Usage: rootstock volume [OPTIONS] <COMMAND>

    Commands:
      create    Make a writable clone of a version, or an empty disk, at no cost
      list      List the volumes [alias: ls]
      show      Show a volume
      delete    Delete a volume and what was written to it [alias: rm]
      resize    Make a volume larger
      snapshot  Copy a volume as it is now into a new one
      commit    Make a volume's contents a new version (café and lab words: apply, keep)
      reset     Drop what was written to a volume (empty its writeback)
      share     Let an initiator use a volume over iSCSI [alias: attach]
      unshare   Let it use the volume no longer [alias: detach]

    Options:
      -h, --help  Print help

    Options of every command:
          --api <ADDRESS>      Where the daemon is: unix:PATH or https://HOST:PORT (or set
                               ROOTSTOCK_API); for serve, where it listens, and repeatable
          --json               Print one JSON document (or one a line) instead of text
      -q, --quiet              Print no progress and no remarks
          --token-file <FILE>  A file with the bearer token for --api https:… (or set
                               ROOTSTOCK_TOKEN)
          --ca <FILE>          A file of PEM certificates to trust instead of the system's
                               [env: ROOTSTOCK_CA=]
    ");
    assert_snapshot!(help(&["volume", "create"]), @r"
    Make a writable clone of a version, or an empty disk, at no cost

    Usage: rootstock volume create [OPTIONS] <--from <VERSION>|--blank <SIZE>> <NAME>

    Arguments:
      <NAME>  The new volume

    Options:
          --from <VERSION>      The version to clone: NAME, NAME:3 or NAME@tag
          --size <SIZE>         Its size, larger than the version's disk: 200G, 1.5T
          --blank <SIZE>        An empty disk of this size, for a system to be installed on:
                                20G
          --ephemeral           Drop what was written when the last client leaves (frozen, no
                                writeback kept)
          --block-size <BYTES>  The logical blocks of its disk over iSCSI: 512 or 4096 bytes.
                                An image that was made for the other size has partitions that
                                are not found [default: 512] [possible values: 512, 4096]
      -h, --help                Print help

    Options of every command:
          --api <ADDRESS>      Where the daemon is: unix:PATH or https://HOST:PORT (or set
                               ROOTSTOCK_API); for serve, where it listens, and repeatable
          --json               Print one JSON document (or one a line) instead of text
      -q, --quiet              Print no progress and no remarks
          --token-file <FILE>  A file with the bearer token for --api https:… (or set
                               ROOTSTOCK_TOKEN)
          --ca <FILE>          A file of PEM certificates to trust instead of the system's
                               [env: ROOTSTOCK_CA=]

    A machine opens it over NBD as volume/NAME. What it writes (its writeback) stays in
    the volume; the version is not touched. To change an image, as with a 'super
    client', write to a volume and commit it.

    Examples:
      rootstock volume create seat-7 --from lab@production
      rootstock volume create kiosk --from lab:3 --ephemeral
      rootstock volume create big --from lab --size 200G
      rootstock volume create new --blank 20G
    ");
}
