//! When personal nodes were told to drop what they wrote.

use rootstock_catalog::CatalogError;

use super::support::{Site, at, name, node};

#[tokio::test]
async fn each_reset_has_a_higher_number() {
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
    let first = resets("n1").await;
    assert!(first > 1_700_000_000 && first == resets("n2").await);
    catalog.reset_personal(&all[..1]).await.expect("notes");
    let second = resets("n1").await;
    assert!(second > first);
    // All or none.
    let some = [name("n1"), name("n9")];
    let error = catalog.reset_personal(&some).await.expect_err("is unknown");
    assert!(matches!(error, CatalogError::NodeNotFound { .. }));
    assert_eq!(resets("n1").await, second);
    // Who comes back under the same name is told more than that, not less.
    catalog.delete_nodes(&all[..1]).await.expect("is deleted");
    let again = catalog.add_node(&node("n1", 1), at(1)).await;
    again.expect("adds");
    catalog.reset_personal(&all[..1]).await.expect("notes");
    assert!(resets("n1").await >= first);
}
