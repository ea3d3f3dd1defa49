//! Rollouts as they are kept.

use rootstock_catalog::{
    CatalogError, NewRollout, ROLLOUTS_ENDED_MAX, RolloutNodeState, RolloutReboot, RolloutState,
    RolloutTerms,
};

use super::support::{Site, at, name, node};

fn new(nodes: &[&str]) -> NewRollout {
    NewRollout {
        version: "lab:1".parse().expect("a version"),
        profile: None,
        terms: RolloutTerms {
            canary_count: 1,
            batch_count: 2,
            failures_max: 3,
            reboot: RolloutReboot::Idle,
            wake: true,
        },
        actor: "root".to_owned(),
        starts: at(5),
        nodes: nodes.iter().map(|node| (name(node), None)).collect(),
    }
}

async fn site() -> Site {
    let site = Site::with_version("lab").await;
    for number in 1..=3 {
        let node = node(&format!("n{number}"), number);
        site.catalog.add_node(&node, at(1)).await.expect("adds");
    }
    site
}

#[tokio::test]
async fn a_node_is_in_one_rollout_at_a_time() {
    let site = site().await;
    let catalog = &site.catalog;
    let first = catalog.add_rollout(&new(&["n1", "n2"]), at(2)).await;
    let first = first.expect("begins");
    match catalog.add_rollout(&new(&["n3", "n2"]), at(3)).await {
        Err(CatalogError::InRollout { node, rollout }) => {
            assert_eq!((node, rollout), (name("n2"), first));
        }
        other => panic!("{other:?}"),
    }
    // Nothing of it is kept.
    assert_eq!(catalog.rollouts().await.expect("lists").len(), 1);
    catalog
        .add_rollout(&new(&["n3"]), at(3))
        .await
        .expect("is another");
    let aborted = RolloutState::Aborted;
    let ended = catalog.set_rollout_state(first, aborted, None, at(4)).await;
    ended.expect("ends");
    catalog
        .add_rollout(&new(&["n1", "n2"]), at(5))
        .await
        .expect("is free");
    let again = catalog.resume_rollout(first, at(6)).await;
    assert!(
        matches!(again, Err(CatalogError::RolloutOver { .. })),
        "{again:?}"
    );
    let none = catalog.resume_rollout(77, at(6)).await;
    assert!(
        matches!(none, Err(CatalogError::RolloutNotFound { .. })),
        "{none:?}"
    );
}

#[tokio::test]
async fn how_far_nodes_are_is_kept_and_failures_are_forgiven() {
    let site = site().await;
    let catalog = &site.catalog;
    let id = catalog
        .add_rollout(&new(&["n3", "n1"]), at(2))
        .await
        .expect("begins");
    let (row, nodes) = catalog.rollout(id).await.expect("is there");
    assert_eq!((row.starts, row.created, row.ended), (at(5), at(2), None));
    assert_eq!(nodes[0].node, name("n3"));
    let n3 = name("n3");
    for (state, detail, second) in [
        (RolloutNodeState::Assigned, "fetching", 6),
        (RolloutNodeState::Assigned, "in use", 7),
        (RolloutNodeState::Failed, "no init", 8),
    ] {
        let set = catalog.set_rollout_node(id, &n3, state, detail, at(second));
        set.await.expect("is kept");
        let (_, nodes) = catalog.rollout(id).await.expect("is there");
        assert_eq!((nodes[0].state, nodes[0].detail.as_str()), (state, detail));
        // The time is that of the state.
        let since = if second == 7 { 6 } else { second };
        assert_eq!(nodes[0].since, at(since));
    }
    let stopped = RolloutState::Stopped;
    let set = catalog.set_rollout_state(id, stopped, Some("n3 failed"), at(9));
    set.await.expect("halts");
    catalog.resume_rollout(id, at(10)).await.expect("goes on");
    let (row, _) = catalog.rollout(id).await.expect("is there");
    assert_eq!(
        (row.state, row.reason, row.failures_forgiven),
        (RolloutState::Open, None, 1)
    );
    let deleted = catalog.delete_nodes(&[name("n3")]).await;
    deleted.expect("a node may go");
    assert_eq!(catalog.rollout(id).await.expect("is there").1.len(), 1);
}

#[tokio::test]
async fn old_rollouts_go() {
    let site = site().await;
    let catalog = &site.catalog;
    for _ in 0..=ROLLOUTS_ENDED_MAX {
        let id = catalog
            .add_rollout(&new(&["n1"]), at(2))
            .await
            .expect("begins");
        let done = RolloutState::Done;
        catalog
            .set_rollout_state(id, done, None, at(3))
            .await
            .expect("ends");
    }
    catalog
        .add_rollout(&new(&["n1"]), at(4))
        .await
        .expect("begins");
    let rollouts = catalog.rollouts().await.expect("lists");
    assert_eq!(rollouts.len() as u32, ROLLOUTS_ENDED_MAX);
    assert_eq!(rollouts[0].id, u64::from(ROLLOUTS_ENDED_MAX) + 2);
}
