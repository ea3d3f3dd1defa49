//! `rootstock image tag`, `rollback` and `untag`.

use clap::Args;
use rootstock_api::TagSet;
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

/// Which tag.
#[derive(Debug, Args)]
pub(crate) struct TaggedArgs {
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
    told(image, &args.tag, &set)
}

/// Points a tag at the version that it pointed at before.
pub(crate) fn run_rollback(args: &TaggedArgs, session: &Session) -> anyhow::Result<()> {
    let set = session.client()?.tag_rollback(&args.image, &args.tag)?;
    if session.json() {
        return output::json(&set);
    }
    told(&args.image, &args.tag, &set)
}

fn told(image: &ImageName, tag: &TagName, set: &TagSet) -> anyhow::Result<()> {
    let before = match set.before {
        Some(before) if before == set.version => " (as before)".to_owned(),
        Some(before) => format!(" (before: {image}:{before})"),
        None => String::new(),
    };
    output::line(&format!("{image}@{tag} is {image}:{}{before}", set.version))
}

/// Takes a tag away.
pub(crate) fn run_untag(args: &TaggedArgs, session: &Session) -> anyhow::Result<()> {
    session.client()?.untag(&args.image, &args.tag)?;
    if session.json() {
        return output::json(&json!({"image": args.image, "untagged": args.tag}));
    }
    output::line(&format!("{}@{} is gone", args.image, args.tag))
}
