//! Leases: an address is one client's.

use std::net::Ipv4Addr;

use rootstock_catalog::{LeaseRow, LeaseState, Taken};

use super::support::{Site, at, mac, node, open};

fn lease(last: u8, card: u16, from: i64, until: i64) -> LeaseRow {
    LeaseRow {
        address: Ipv4Addr::new(10, 0, 0, last),
        mac: mac(card),
        client_id: "01525400".to_owned(),
        host_name: None,
        node: None,
        network: "lab0".to_owned(),
        state: LeaseState::Bound,
        started: at(from),
        expires: at(until),
    }
}

#[tokio::test]
async fn an_address_is_one_clients() {
    let site = Site::new().await;
    let other = open(&site.dir).await;
    let taken = |last| {
        Err(Taken {
            address: Ipv4Addr::new(10, 0, 0, last),
        })
    };
    let first = [
        lease(1, 1, 0, 100),
        lease(2, 2, 0, 100),
        lease(1, 3, 0, 100),
    ];
    let answers = site
        .catalog
        .lease_commit_many(&first)
        .await
        .expect("commits");
    assert_eq!(answers, [Ok(()), Ok(()), taken(1)]);
    // The other daemon: not before it is over, but the same card at any time.
    for (row, answer) in [
        (lease(1, 3, 99, 200), taken(1)),
        (lease(1, 1, 50, 150), Ok(())),
        // A renewal that was written late does not take back what came after it.
        (lease(1, 1, 20, 120), Ok(())),
        (lease(1, 3, 120, 250), taken(1)),
        (lease(1, 3, 149, 250), taken(1)),
        (lease(1, 3, 150, 250), Ok(())),
    ] {
        let answers = other.lease_commit_many(std::slice::from_ref(&row)).await;
        assert_eq!(answers.expect("commits"), [answer], "{row:?}");
    }
    let address = Ipv4Addr::new(10, 0, 0, 1);
    assert!(
        !site
            .catalog
            .lease_release(address, mac(1), at(160))
            .await
            .expect("looks")
    );
    // It was given again at 150: what was given back before then is not that.
    assert!(
        !other
            .lease_release(address, mac(3), at(150))
            .await
            .expect("looks")
    );
    assert!(
        site.catalog
            .lease_release(address, mac(3), at(160))
            .await
            .expect("releases")
    );
    let again = site
        .catalog
        .lease_commit_many(&[lease(1, 4, 160, 300)])
        .await;
    assert_eq!(again.expect("commits"), [Ok(())]);
    // A declined address is nobody's, also not its own client's.
    assert!(
        site.catalog
            .lease_decline(address, mac(4), at(500))
            .await
            .expect("declines")
    );
    for (card, from, answer) in [(4, 400, taken(1)), (5, 499, taken(1)), (5, 500, Ok(()))] {
        let answers = other.lease_commit_many(&[lease(1, card, from, 600)]).await;
        assert_eq!(answers.expect("commits"), [answer]);
    }
    assert_eq!(
        site.catalog.leases_expire(at(101)).await.expect("forgets"),
        1
    );
    let rows = site.catalog.leases().await.expect("lists");
    assert_eq!(rows, [lease(1, 5, 500, 600)]);
}

#[tokio::test]
async fn a_nodes_address_is_for_its_cards_only() {
    let site = Site::new().await;
    let mut owner = node("n1", 1);
    owner.macs.push(mac(2));
    owner.address = Some(Ipv4Addr::new(10, 0, 0, 9));
    site.catalog.add_node(&owner, at(1)).await.expect("adds");
    let asked = [lease(9, 7, 1, 9), lease(9, 2, 1, 9), lease(8, 7, 1, 9)];
    let answers = site
        .catalog
        .lease_commit_many(&asked)
        .await
        .expect("commits");
    assert_eq!(
        answers.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [false, true, true]
    );
}

/// A batch is one statement: what clients send in it reaches its own row, as it is.
#[tokio::test]
async fn a_batch_of_leases_keeps_every_field() {
    let site = Site::new().await;
    let mut rows: Vec<LeaseRow> = (1..=200)
        .map(|last| lease(last, last.into(), 1, 100 + i64::from(last)))
        .collect();
    let names = [
        "\"],[\"",
        "back\\slash",
        "\u{1}\t",
        "'; DROP TABLE lease",
        "é€𝄞",
        "",
    ];
    for (row, name) in rows.iter_mut().zip(names) {
        row.host_name = Some(name.to_owned());
    }
    rows[7].client_id = String::new();
    rows[8].node = Some("n1".parse().expect("a name"));
    // The one in the middle comes again for another card, and is refused alone.
    let mut asked = rows.clone();
    asked.insert(100, lease(50, 999, 1, 9));
    let answers = site.catalog.lease_commit_many(&asked).await;
    let answers = answers.expect("commits");
    let refused = (0..).zip(&answers).filter(|(_, answer)| answer.is_err());
    let refused: Vec<i32> = refused.map(|(place, _)| place).collect();
    assert_eq!((answers.len(), refused), (201, vec![100]));
    let mut kept = site.catalog.leases().await.expect("lists");
    kept.sort_by_key(|row| row.address);
    assert_eq!(kept, rows);
    let none = site.catalog.lease_commit_many(&[]).await;
    assert_eq!(none.expect("commits"), []);
}
