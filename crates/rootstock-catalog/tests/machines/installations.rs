//! What nodes have on disks of their own.

use rootstock_catalog::CatalogError;
use rootstock_core::VersionNumber;

use super::support::{Site, at, name, node};

#[tokio::test]
async fn an_installation_is_one_a_node_and_goes_with_its_version() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    for (node_name, number) in [("n1", 1), ("n2", 2)] {
        let added = catalog.add_node(&node(node_name, number), at(1)).await;
        added.expect("adds");
    }
    let (lab, one) = ("lab".parse().expect("a name"), VersionNumber(1));
    for (node, device, second) in [("n1", "/dev/sda", 5), ("n1", "/dev/sdb", 6), ("n2", "x", 7)] {
        let (node, boot) = (name(node), format!("boot{second}"));
        let begun = catalog
            .begin_installation(&node, (&lab, one), &boot, device)
            .await;
        begun.expect("begins");
        // Half of one is none.
        assert_eq!(catalog.installation(&node).await.expect("reads"), None);
        let other = catalog
            .finish_installation(&node, "another", at(second))
            .await;
        assert!(!other.expect("is of another boot"));
        let news = catalog.finish_installation(&node, &boot, at(second)).await;
        assert!(news.expect("is whole"));
        let again = catalog
            .finish_installation(&node, &boot, at(second + 1))
            .await;
        assert!(!again.expect("is known"));
    }
    let row = catalog.installation(&name("n1")).await.expect("reads");
    let row = row.expect("is there");
    assert_eq!((row.device.as_str(), row.at), ("/dev/sdb", at(6)));
    assert!(row.is_of(&lab, one) && !row.is_of(&lab, VersionNumber(2)));
    assert_eq!(catalog.installations().await.expect("lists").len(), 2);
    // What is not there cannot be installed.
    let (n1, nine) = (name("n1"), VersionNumber(9));
    let none = catalog.begin_installation(&n1, (&lab, nine), "b", "x");
    none.await.expect_err("there is no such version");

    let names = [name("n1"), name("n3")];
    let error = catalog.forget_installations(&names).await;
    let error = error.expect_err("one is unknown");
    assert!(matches!(error, CatalogError::NodeNotFound { .. }));
    assert_eq!(catalog.installations().await.expect("lists").len(), 2);
    let names = [name("n1")];
    for expected in [&names[..], &[]] {
        let forgotten = catalog.forget_installations(&names).await;
        assert_eq!(forgotten.expect("forgets"), expected);
    }
    let late = catalog.finish_installation(&n1, "boot6", at(9)).await;
    assert!(!late.expect("is forgotten"));
}
