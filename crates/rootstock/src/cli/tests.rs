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
        "volume commit v lab --tag t",
        "gc -q",
        "scrub status",
        "token create ci --role admin",
        "status",
        "completions zsh",
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
        "volume resize v huge",
        "image inport lab x",
    ];
    let told: Vec<String> = mistakes
        .iter()
        .map(|line| {
            let error = parsed(line).err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            let lines: Vec<&str> = error.lines().take_while(|line| !line.starts_with("Usage")).collect();
            lines.join("\n").trim().to_owned()
        })
        .collect();
    assert_snapshot!(told.join("\n---\n"), @"");
}

fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(90);
    for name in path {
        let found = command.find_subcommand(name);
        command = found.cloned().expect("a command").term_width(90);
    }
    command.render_help().to_string()
}

#[test]
fn help_teaches() {
    assert_snapshot!(help(&[]), @"");
    assert_snapshot!(help(&["image", "import"]), @"");
    assert_snapshot!(help(&["volume"]), @"");
    assert_snapshot!(help(&["volume", "create"]), @"");
}
