//! The catalog's rules, against a database in a temporary directory.

use jiff::Timestamp;
use rootstock_catalog::{
    AddedVersion, Catalog, CatalogError, Holder, NewImport, NewVersion, NewVolume, RecipeRow, Role,
    VersionRow, VolumeState,
};
use rootstock_core::{Digest, ImageName, VersionNumber, VersionSelector};

struct Site {
    catalog: Catalog,
    dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = open(&dir).await;
        Self { catalog, dir }
    }

    async fn reopened(self) -> Self {
        self.catalog.close().await;
        let catalog = open(&self.dir).await;
        Self { catalog, ..self }
    }

    async fn add(&self, image: &str, content: &str, tag: Option<&str>) -> AddedVersion {
        let mut new = version(image, content);
        new.tag = tag.map(|tag| tag.parse().expect("a tag"));
        self.catalog
            .add_version(new, at(1), |number| format!("seal of {number}"))
            .await
            .expect("adds")
    }
}

async fn open(dir: &tempfile::TempDir) -> Catalog {
    Catalog::open(&dir.path().join("catalog.sqlite"))
        .await
        .expect("opens")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn image(name: &str) -> ImageName {
    name.parse().expect("a name")
}

fn version(image_name: &str, content: &str) -> NewVersion {
    NewVersion {
        image: image(image_name),
        manifest: Digest::of(content.as_bytes()),
        disk_bytes: 1 << 30,
        used_bytes: 1 << 20,
        added_chunks: 3,
        added_bytes: 99,
        parent: None,
        source: "disk.raw".to_owned(),
        message: None,
        facts: "{}".to_owned(),
        tag: None,
        event: "imported",
        actor: "local".to_owned(),
        import: None,
    }
}

fn created(added: AddedVersion) -> VersionRow {
    match added {
        AddedVersion::Created(row) => row,
        AddedVersion::Unchanged(row) => panic!("unchanged {row:?}"),
    }
}

fn volume(name: &str, image_name: &str, number: u32) -> NewVolume {
    NewVolume {
        name: name.parse().expect("a name"),
        image: image(image_name),
        version: VersionNumber(number),
        size_bytes: 1 << 30,
        ephemeral: false,
        block_bytes: 512,
        directory: format!("dir-{name}"),
    }
}

#[tokio::test]
async fn numbers_are_never_used_again() {
    let site = Site::new().await;
    let first = created(site.add("lab", "a", None).await);
    assert_eq!(first.number, VersionNumber(1));
    assert_eq!(first.seal, "seal of 1");
    assert_eq!(first.parent, None);
    let second = created(site.add("lab", "b", None).await);
    assert_eq!(second.parent, Some(first.spec()));
    let lab = image("lab");
    let catalog = &site.catalog;
    catalog
        .delete_version(&lab, VersionNumber(2), "local", at(2))
        .await
        .expect("deletes");
    assert_eq!(
        created(site.add("lab", "b", None).await).number,
        VersionNumber(3)
    );
    catalog
        .delete_image(&lab, "local", at(3))
        .await
        .expect("deletes the image");
    assert!(matches!(
        catalog.image(&lab).await,
        Err(CatalogError::ImageNotFound { .. })
    ));
    assert_eq!(catalog.history(&lab).await.expect("stays").len(), 6);
    let site = site.reopened().await;
    assert_eq!(
        created(site.add("lab", "b", None).await).number,
        VersionNumber(4)
    );
    assert_eq!(site.catalog.images().await.expect("lists").len(), 1);
}

#[tokio::test]
async fn the_same_again_is_no_new_version() {
    let site = Site::new().await;
    site.add("lab", "a", None).await;
    let again = site.add("lab", "a", Some("production")).await;
    assert!(matches!(again, AddedVersion::Unchanged(ref row) if row.number == VersionNumber(1)));
    let row = site.catalog.image(&image("lab")).await.expect("is there");
    assert_eq!((row.version_count, row.tags.len()), (1, 1));
    // Another image may be the same, and going back to old contents is a new version.
    created(site.add("other", "a", None).await);
    created(site.add("lab", "b", None).await);
    assert_eq!(
        created(site.add("lab", "a", None).await).number,
        VersionNumber(3)
    );
}

#[tokio::test]
async fn a_tag_goes_back_and_forth() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    for content in ["a", "b", "c"] {
        site.add("lab", content, None).await;
    }
    let lab = image("lab");
    let tag = "production".parse().expect("a tag");
    let back = |second| catalog.roll_tag_back(&lab, &tag, "local", at(second));
    assert!(matches!(
        back(1).await,
        Err(CatalogError::TagNotFound { .. })
    ));
    for number in [1, 2, 3] {
        let selector = VersionSelector::Number(VersionNumber(number));
        let set = catalog.set_tag(&lab, &tag, &selector, "local", at(2)).await;
        set.expect("tags");
        if number == 1 {
            let nothing = back(3).await.expect_err("has nothing before");
            let message = "tag 'lab@production' had nothing else set before";
            assert_eq!(nothing.to_string(), message);
        }
    }
    for expected in [(2, 3), (3, 2), (2, 3)] {
        let (row, before) = back(4).await.expect("goes back");
        assert_eq!((row.number.0, before.0), expected);
    }
    let three = VersionNumber(3);
    let deleted = catalog.delete_version(&lab, three, "local", at(5)).await;
    deleted.expect("nobody needs it");
    let gone = back(6).await;
    assert!(matches!(gone, Err(CatalogError::VersionNotFound { .. })));
}

#[tokio::test]
async fn selectors_find_their_version() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    for content in ["a", "b", "c"] {
        site.add("lab", content, None).await;
    }
    let lab = image("lab");
    let tag = "production".parse().expect("a tag");
    let number = |n| VersionSelector::Number(VersionNumber(n));
    let (row, before) = catalog
        .set_tag(&lab, &tag, &number(2), "local", at(2))
        .await
        .expect("tags");
    assert_eq!((row.number, before), (VersionNumber(2), None));
    let (_, before) = catalog
        .set_tag(&lab, &tag, &VersionSelector::Latest, "local", at(3))
        .await
        .expect("moves");
    assert_eq!(before, Some(VersionNumber(2)));
    for (spec, expected) in [("lab", 3), ("lab:1", 1), ("lab@production", 3)] {
        let row = catalog
            .resolve(&spec.parse().expect(spec))
            .await
            .expect(spec);
        assert_eq!(row.number, VersionNumber(expected), "{spec}");
    }
    for (spec, message) in [
        ("lab:9", "image 'lab' has no version 9"),
        ("lab@test", "image 'lab' has no tag 'test'"),
        ("attic", "there is no image 'attic'"),
    ] {
        let error = catalog.resolve(&spec.parse().expect(spec)).await;
        assert_eq!(error.expect_err(spec).to_string(), message);
    }
    catalog
        .remove_tag(&lab, &tag, "local", at(4))
        .await
        .expect("untags");
    assert!(
        catalog
            .remove_tag(&lab, &tag, "local", at(4))
            .await
            .is_err()
    );
    let events: Vec<_> = catalog.history(&lab).await.expect("reads");
    let events: Vec<_> = events.iter().map(|row| row.event.as_str()).collect();
    assert_eq!(
        events,
        [
            "imported", "imported", "imported", "tagged", "tagged", "untagged"
        ]
    );
}

#[tokio::test]
async fn what_is_needed_is_not_deleted() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    site.add("lab", "a", Some("production")).await;
    site.add("lab", "b", None).await;
    catalog
        .add_volume(&volume("seat", "lab", 1), at(2))
        .await
        .expect("adds");
    let lab = image("lab");
    let error = catalog
        .delete_version(&lab, VersionNumber(1), "local", at(3))
        .await
        .expect_err("is in use");
    assert_eq!(
        error.to_string(),
        "version lab:1 is in use by tag production, volume seat"
    );
    let error = catalog
        .delete_image(&lab, "local", at(3))
        .await
        .expect_err("is in use");
    let CatalogError::InUse { holders, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*holders, [Holder::Volume("seat".parse().expect("a name"))]);
    // Nothing of the refused deletion happened.
    assert_eq!(catalog.image(&lab).await.expect("stays").tags.len(), 1);
    assert_eq!(catalog.versions(&lab).await.expect("stay").len(), 2);
    catalog
        .delete_version(&lab, VersionNumber(2), "local", at(3))
        .await
        .expect("nothing needs it");
}

#[tokio::test]
async fn volumes_go_through_their_states() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    site.add("lab", "a", None).await;
    let new = volume("seat", "lab", 1);
    catalog.add_volume(&new, at(1)).await.expect("adds");
    assert!(matches!(
        catalog.add_volume(&new, at(1)).await,
        Err(CatalogError::Exists { .. })
    ));
    assert!(matches!(
        catalog.add_volume(&volume("other", "lab", 9), at(1)).await,
        Err(CatalogError::VersionNotFound { .. })
    ));
    assert!(catalog.volume(&new.name).await.is_err(), "not ready");
    catalog
        .set_volume_state(&new.name, VolumeState::Ready)
        .await
        .expect("becomes ready");
    catalog
        .set_volume_size(&new.name, 2 << 30)
        .await
        .expect("grows");
    let site = site.reopened().await;
    let row = site.catalog.volume(&new.name).await.expect("is there");
    assert_eq!(
        (row.size_bytes, row.base().to_string()),
        (2 << 30, "lab:1".to_owned())
    );
    site.catalog.remove_volume(&new.name).await.expect("goes");
    assert!(site.catalog.remove_volume(&new.name).await.is_err());
}

#[tokio::test]
async fn imports_pin_expire_and_end_with_their_version() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    let open = async |id: &str, second| {
        let new = NewImport {
            id: id.to_owned(),
            image: image("lab"),
            disk_bytes: 1 << 30,
            source: "disk.raw".to_owned(),
        };
        catalog.open_import(&new, at(second)).await.expect("opens")
    };
    open("one", 0).await;
    open("two", 10).await;
    let packs = ["p1".to_owned(), "p2".to_owned()];
    catalog.pin("one", &packs).await.expect("pins");
    catalog.pin("one", &packs).await.expect("pins again");
    catalog.pin("two", &packs[1..]).await.expect("pins");
    assert_eq!(catalog.pins().await.expect("reads").len(), 2);
    catalog
        .touch_import("one", 3, 99, at(20))
        .await
        .expect("touches");
    let row = catalog.import("one").await.expect("is there");
    assert_eq!(
        (row.added_chunks, row.added_bytes, row.active),
        (3, 99, at(20))
    );
    assert_eq!(
        catalog.expire_imports(at(15)).await.expect("expires"),
        ["two"]
    );
    assert!(catalog.pin("two", &packs).await.is_err());
    let mut new = version("lab", "a");
    new.import = Some("one".to_owned());
    let commit = || catalog.add_version(new.clone(), at(30), |_| String::new());
    created(commit().await.expect("commits"));
    assert!(catalog.pins().await.expect("reads").is_empty());
    // Committing it once more finds nothing, and adds nothing.
    assert!(matches!(
        commit().await,
        Err(CatalogError::ImportNotFound { .. })
    ));
    assert_eq!(catalog.all_versions().await.expect("lists").len(), 1);
}

#[tokio::test]
async fn tokens_are_found_by_digest_until_revoked() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    let digest = Digest::of(b"secret");
    catalog
        .add_token("ci", digest, Role::Reader, at(1))
        .await
        .expect("adds");
    assert!(matches!(
        catalog
            .add_token("ci", Digest::of(b"x"), Role::Admin, at(1))
            .await,
        Err(CatalogError::Exists { .. })
    ));
    let row = catalog
        .token_of(digest)
        .await
        .expect("reads")
        .expect("found");
    assert_eq!((row.name.as_str(), row.role), ("ci", Role::Reader));
    catalog.token_used("ci", at(5)).await.expect("records");
    catalog.revoke_token("ci", at(6)).await.expect("revokes");
    assert_eq!(catalog.token_of(digest).await.expect("reads"), None);
    assert!(catalog.revoke_token("ci", at(7)).await.is_err());
    let rows = catalog.tokens().await.expect("lists");
    assert_eq!(
        (rows[0].last_used, rows[0].revoked),
        (Some(at(5)), Some(at(6)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_wait_for_one_another() {
    let site = Site::new().await;
    let adds: Vec<_> = (0..16)
        .map(|index| {
            let catalog = site.catalog.clone();
            tokio::spawn(async move {
                let new = version("lab", &index.to_string());
                catalog.add_version(new, at(1), |_| String::new()).await
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for add in adds {
        numbers.push(created(add.await.expect("joins").expect("adds")).number.0);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
}

fn recipe(from: &VersionRow, to: &VersionRow) -> RecipeRow {
    RecipeRow {
        to: to.spec(),
        from: from.spec(),
        root: Digest::of(b"recipe"),
        delta_count: 7,
        delta_bytes: 700,
        frame_bytes: 7000,
        stored_bytes: 800,
        created: at(9),
    }
}

#[tokio::test]
async fn recipes_are_wanted_made_and_gone_with_their_versions() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    let mut rows = Vec::new();
    for content in ["a", "b", "c"] {
        rows.push(created(site.add("lab", content, None).await));
    }
    let mut commit = version("lab", "d");
    commit.parent = Some(rows[0].spec());
    let added = catalog.add_version(commit, at(5), |_| String::new()).await;
    rows.push(created(added.expect("adds")));
    rows.push(created(site.add("other", "a", None).await));
    let wanted = async || {
        let wanted = catalog.recipes_wanted().await.expect("answers");
        let pair = |(from, to): &(VersionRow, VersionRow)| format!("{} {}", from.spec(), to.spec());
        wanted.iter().map(pair).collect::<Vec<_>>()
    };
    assert_eq!(
        wanted().await,
        ["lab:3 lab:4", "lab:1 lab:4", "lab:2 lab:3", "lab:1 lab:2"]
    );
    for from in [0, 2] {
        let made = catalog.add_recipe(&recipe(&rows[from], &rows[3])).await;
        made.expect("is added");
    }
    let again = recipe(&rows[0], &rows[3]);
    catalog.add_recipe(&again).await.expect("is there already");
    assert_eq!(wanted().await, ["lab:2 lab:3", "lab:1 lab:2"]);
    let key = |row: usize| (&rows[row].image, rows[row].number);
    let found = catalog.recipe(key(0), key(3)).await.expect("answers");
    assert_eq!(found, Some(again));
    assert_eq!(catalog.recipe(key(3), key(0)).await.expect("answers"), None);
    for gone in [0, 1] {
        let deleted = catalog.delete_version(&rows[gone].image, rows[gone].number, "me", at(6));
        deleted.await.expect("nothing holds it");
    }
    let left = catalog.recipes().await.expect("answers");
    assert_eq!(left, [recipe(&rows[2], &rows[3])]);
    let late = catalog.add_recipe(&recipe(&rows[0], &rows[3])).await;
    assert!(matches!(late, Err(CatalogError::VersionNotFound { .. })));
    let root = Digest::of(b"recipe");
    catalog.remove_recipe(root).await.expect("is removed");
    assert_eq!(wanted().await, ["lab:3 lab:4"]);
}
