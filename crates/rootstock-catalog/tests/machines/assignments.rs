//! Assignments: what nodes and profiles go back to.

use rootstock_catalog::{ASSIGNMENTS_MAX, CatalogError, NodeRow, Pass, ProfileRow};
use rootstock_core::{NodeName, VersionSpec};

use super::support::{Site, at, name, node, profile, profile_name};

fn spec(text: &str) -> VersionSpec {
    text.parse().expect("a version")
}

async fn set(site: &Site, node: &NodeName, image: Option<&str>) {
    let names = std::slice::from_ref(node);
    let edit = |row: &mut NodeRow| row.image = image.map(spec);
    let changed = site.catalog.update_nodes(names, Pass::Keep, edit).await;
    changed.expect("is changed");
}

/// Goes back, and answers the image.
async fn back(
    site: &Site,
    node: &NodeName,
    pass: Pass,
) -> Result<Option<VersionSpec>, CatalogError> {
    let names = std::slice::from_ref(node);
    let edit = |row: &mut NodeRow, image: Option<VersionSpec>| row.image = image;
    let changed = site.catalog.roll_nodes_back(names, pass, edit).await?;
    Ok(changed[0].after.image.clone())
}

#[tokio::test]
async fn a_node_goes_back_to_what_was_set_before_and_forth_again() {
    let site = Site::with_version("lab").await;
    let n1 = name("n1");
    let added = site.catalog.add_node(&node("n1", 1), at(1)).await;
    added.expect("adds");
    let nothing = back(&site, &n1, Pass::Keep).await;
    match nothing {
        Err(error @ CatalogError::NothingBefore { .. }) => {
            assert_eq!(error.to_string(), "node 'n1' had nothing else set before");
        }
        other => panic!("{other:?}"),
    }
    set(&site, &n1, Some("lab@live")).await;
    set(&site, &n1, Some("lab:1")).await;
    // What changes nothing is no assignment.
    set(&site, &n1, Some("lab:1")).await;
    for pass in [Pass::DryRun, Pass::Keep] {
        let image = back(&site, &n1, pass).await.expect("goes back");
        assert_eq!(image, Some(spec("lab@live")));
    }
    assert_eq!(
        back(&site, &n1, Pass::Keep).await.expect("goes forth"),
        Some(spec("lab:1"))
    );
    // An image that was inherited is inherited again.
    set(&site, &n1, None).await;
    set(&site, &n1, Some("lab")).await;
    assert_eq!(back(&site, &n1, Pass::Keep).await.expect("goes back"), None);
    for _ in 0..2 * ASSIGNMENTS_MAX {
        back(&site, &n1, Pass::Keep).await.expect("goes on");
    }
    let unknown = back(&site, &name("n9"), Pass::Keep).await;
    assert!(matches!(unknown, Err(CatalogError::NodeNotFound { .. })));
}

#[tokio::test]
async fn a_profile_goes_back_and_a_version_that_is_gone_is_refused() {
    let site = Site::with_version("lab").await;
    let room = profile_name("room");
    let added = site
        .catalog
        .add_profile(&profile("room", None), at(1))
        .await;
    added.expect("adds");
    let edit = |row: &mut ProfileRow, image: Option<VersionSpec>| row.image = image;
    let nothing = site
        .catalog
        .roll_profile_back(&room, Pass::Keep, edit)
        .await;
    assert!(matches!(nothing, Err(CatalogError::NothingBefore { .. })));
    for image in ["lab:1", "lab@live"] {
        let set = |row: &mut ProfileRow| row.image = Some(spec(image));
        let changed = site.catalog.update_profile(&room, Pass::Keep, set).await;
        changed.expect("is changed");
    }
    let back = site
        .catalog
        .roll_profile_back(&room, Pass::DryRun, edit)
        .await;
    assert_eq!(back.expect("goes back").1.image, Some(spec("lab:1")));
    let (lab, tag) = (
        "lab".parse().expect("a name"),
        "live".parse().expect("a tag"),
    );
    let set = |row: &mut ProfileRow| row.image = None;
    let changed = site.catalog.update_profile(&room, Pass::Keep, set).await;
    changed.expect("is changed");
    let untagged = site.catalog.remove_tag(&lab, &tag, "local", at(2)).await;
    untagged.expect("is removed");
    let gone = site
        .catalog
        .roll_profile_back(&room, Pass::Keep, edit)
        .await;
    assert!(matches!(gone, Err(CatalogError::TagNotFound { .. })));
}
