//! How often personal nodes were told to drop what they wrote.

use rootstock_catalog::CatalogError;

use super::support::{Site, at, name, node};

#[tokio::test]
async fn resets_are_counted_for_each_node() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    for (node_name, number) in [("n1", 1), ("n2", 2)] {
        let added = catalog.add_node(&node(node_name, number), at(1)).await;
        added.expect("adds");
    }
    let resets = async |node| catalog.personal_resets(&name(node)).await.expect("reads");
    assert_eq!(resets("n1").await, 0);
    let all = [name("n1"), name("n2")];
    assert_eq!(catalog.reset_personal(&all).await.expect("notes"), all);
    catalog.reset_personal(&all[..1]).await.expect("notes");
    assert_eq!((resets("n1").await, resets("n2").await), (2, 1));
    // All or none.
    let some = [name("n1"), name("n9")];
    let error = catalog.reset_personal(&some).await.expect_err("is unknown");
    assert!(matches!(error, CatalogError::NodeNotFound { .. }));
    assert_eq!(resets("n1").await, 2);
}
