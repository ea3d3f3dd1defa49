//! `rootstock image tag` and `untag`.

use clap::Args;
use rootstock_core::{ImageName, TagName, VersionSpec};
use serde_json::json;

use crate::{output, session::Session};

/// Which version gets which tag.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rootstock image tag lab:3 test
  rootstock image tag lab@test production     what was tested goes live")]
pub(crate) struct TagArgs {
    /// The version: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
    /// The tag
    tag: TagName,
}

/// Which tag goes.
#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// The image
    image: ImageName,
    /// The tag
    tag: TagName,
}

/// Points a tag at a version.
pub(crate) fn run(args: &TagArgs, session: &Session) -> anyhow::Result<()> {
    let VersionSpec { image, selector } = &args.version;
    let set = session.client()?.tag(image, &args.tag, selector)?;
    if session.json() {
        return output::json(&set);
    }
    let before = match set.before {
        Some(before) if before == set.version => " (as before)".to_owned(),
        Some(before) => format!(" (before: {image}:{before})"),
        None => String::new(),
    };
    output::line(&format!(
        "{image}@{} is {image}:{}{before}",
        args.tag, set.version
    ))
}

/// Takes a tag away.
pub(crate) fn run_untag(args: &UntagArgs, session: &Session) -> anyhow::Result<()> {
    session.client()?.untag(&args.image, &args.tag)?;
    if session.json() {
        return output::json(&json!({"image": args.image, "untagged": args.tag}));
    }
    output::line(&format!("{}@{} is gone", args.image, args.tag))
}
