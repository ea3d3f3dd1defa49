//! The simulated disk behaves as the real one, and crashes as one may.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::disk::{RealDisk, is_full};

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Open(u8),
    Write(u8, u16, Vec<u8>),
    SetLen(u8, u16),
    Punch(u8, u16, u16),
    Rename(u8, u8),
    Remove(u8),
    Dir(u8),
    RemoveDir(u8),
    List(u8),
    Sync(u8),
}

const PATHS: [&str; 5] = ["a", "b", "d/a", "d/b", "d/e/a"];
const DIRS: [&str; 4] = ["", "d", "d/e", "f"];

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len() as u8;
    let dir = || 0..DIRS.len() as u8;
    let bytes = prop::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        4 => path().prop_map(Step::Create),
        1 => path().prop_map(Step::Open),
        4 => (path(), 0..3000_u16, bytes).prop_map(|(p, at, data)| Step::Write(p, at, data)),
        1 => (path(), 0..4000_u16).prop_map(|(p, len)| Step::SetLen(p, len)),
        1 => (path(), 0..4000_u16, 0..4000_u16).prop_map(|(p, at, len)| Step::Punch(p, at, len)),
        2 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => path().prop_map(Step::Remove),
        3 => dir().prop_map(Step::Dir),
        1 => dir().prop_map(Step::RemoveDir),
        1 => dir().prop_map(Step::List),
        1 => dir().prop_map(Step::Sync),
    ]
}

/// What a step gives, as text that both disks must agree on.
fn run(disk: &dyn Disk, step: &Step) -> Result<String, io::ErrorKind> {
    let path = |index: &u8| PATHS[*index as usize];
    let dir = |index: &u8| DIRS[*index as usize];
    let done = |result: io::Result<()>| result.map(|()| String::new());
    let file = |index: &u8| disk.open(path(index));
    let result = match step {
        Step::Create(p) => disk.create(path(p)).map(|_| String::new()),
        Step::Open(p) => file(p).and_then(|file| {
            let mut content = vec![0; file.len()? as usize];
            file.read_at(0, &mut content)?;
            assert!(file.read_at(1, &mut vec![0; content.len()]).is_err() || content.is_empty());
            Ok(format!("{content:?}"))
        }),
        Step::Write(p, at, data) => file(p).and_then(|file| {
            let (first, second) = data.split_at(data.len() / 3);
            let parts = [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)];
            done(file.write_vectored_at(u64::from(*at), &parts))
        }),
        Step::SetLen(p, len) => file(p).and_then(|file| done(file.set_len(u64::from(*len)))),
        Step::Punch(p, at, len) => file(p)
            .and_then(|file| done(file.punch(ByteRange::new(u64::from(*at), u64::from(*len))))),
        Step::Rename(from, to) => done(disk.rename(path(from), path(to))),
        Step::Remove(p) => done(disk.remove(path(p))),
        Step::Dir(d) if *d == 0 => Ok(String::new()),
        Step::Dir(d) => done(disk.create_dir(dir(d))),
        Step::RemoveDir(d) if *d == 0 => Ok(String::new()),
        Step::RemoveDir(d) => done(disk.remove_dir(dir(d))),
        Step::List(d) => disk.list(dir(d)).map(|names| format!("{names:?}")),
        Step::Sync(d) => done(disk.sync_dir(dir(d))),
    };
    result.map_err(|error| error.kind())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_real_one(steps in prop::collection::vec(step(), 1..40)) {
        let root = tempfile::tempdir().unwrap();
        let real = RealDisk::new(root.path()).unwrap();
        let sim = SimDisk::new();
        let reads = (0..PATHS.len() as u8).map(Step::Open);
        for step in steps.iter().cloned().chain(reads) {
            prop_assert_eq!(run(&real, &step), run(&sim, &step), "{:?}", step);
        }
    }
}

#[test]
fn paths_do_not_leave_the_root() {
    let root = tempfile::tempdir().unwrap();
    let real = RealDisk::new(root.path()).unwrap();
    for path in ["../a", "/etc/passwd", "a/../../b"] {
        let error = real.open(path).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
    }
}

/// All contents that a file may have after a crash, by many seeds.
fn outcomes(disk: &SimDisk, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    let states = (0..400).map(|seed| {
        let crashed = disk.crash(seed);
        let file = crashed.open(path).ok()?;
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut content).unwrap();
        Some(content)
    });
    states.collect()
}

#[test]
fn what_is_synced_stays() {
    let disk = SimDisk::new();
    let file = disk.create("a").unwrap();
    file.write_at(0, b"one").unwrap();
    file.sync_data().unwrap();
    assert!(
        outcomes(&disk, "a").contains(&None),
        "its name is not durable"
    );
    disk.sync_dir("").unwrap();
    assert_eq!(
        outcomes(&disk, "a"),
        BTreeSet::from([Some(b"one".to_vec())])
    );
}

#[test]
fn sectors_tear_and_reorder() {
    let disk = SimDisk::new();
    let file = disk.create("a").unwrap();
    file.write_at(0, &[1; 1024]).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file.write_at(0, &[2; 1024]).unwrap();
    file.write_at(0, &[3; 1024]).unwrap();
    let found: BTreeSet<(u8, u8)> = outcomes(&disk, "a")
        .into_iter()
        .map(|content| {
            let content = content.unwrap();
            let (first, second) = content.split_at(512);
            assert!(first.iter().all(|b| *b == first[0]) && second.iter().all(|b| *b == second[0]));
            (first[0], second[0])
        })
        .collect();
    let all = (1..=3).flat_map(|a| (1..=3).map(move |b| (a, b)));
    assert_eq!(found, all.collect());
}

#[test]
fn names_are_lost_one_by_one() {
    let disk = SimDisk::new();
    disk.create_dir("d").unwrap();
    disk.sync_dir("").unwrap();
    for (name, byte) in [("d/a", 1), ("d/b", 2)] {
        let file = disk.create(name).unwrap();
        file.write_at(0, &[byte]).unwrap();
        file.sync_data().unwrap();
    }
    disk.sync_dir("d").unwrap();
    disk.create("d/c").unwrap();
    disk.rename("d/a", "d/b").unwrap();
    let found: BTreeSet<String> = (0..400)
        .map(|seed| disk.crash(seed).files().join(" "))
        .collect();
    let expected = ["d/a d/b", "d/a d/b d/c", "d/b", "d/b d/c"];
    assert_eq!(found, expected.map(str::to_owned).into());
    let contents = outcomes(&disk, "d/b");
    assert_eq!(contents, BTreeSet::from([Some(vec![1]), Some(vec![2])]));
    disk.sync_dir("d").unwrap();
    assert_eq!(outcomes(&disk, "d/b"), BTreeSet::from([Some(vec![1])]));
}

#[test]
fn faults_come_when_they_are_planned() {
    let disk = SimDisk::new();
    let file = disk.create("a").unwrap();
    disk.fail_next(Fault::NoSpace);
    assert!(is_full(&file.write_at(0, &[1; 1024]).unwrap_err()));
    file.write_at(0, &[1; 1024]).unwrap();
    disk.set_capacity_bytes(Some(1536));
    assert!(is_full(&file.write_at(1024, &[2; 1024]).unwrap_err()));
    assert_eq!(file.len().unwrap(), 1536, "what fits is written");
    disk.set_capacity_bytes(None);

    // A failed sync forgets: a later one does not make up for it.
    disk.sync_dir("").unwrap();
    file.sync_data().unwrap();
    file.write_at(0, &[3; 512]).unwrap();
    disk.fail_next(Fault::Io);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    let mut states = BTreeMap::new();
    for seed in 0..50 {
        let mut first = [0];
        let crashed = disk.crash(seed).open("a").unwrap();
        crashed.read_at(0, &mut first).unwrap();
        *states.entry(first[0]).or_insert(0) += 1;
    }
    assert_eq!(states.len(), 1, "the loss is decided when the sync fails");

    disk.fail_at(disk.operations() + 1, Fault::PowerCut);
    file.write_at(0, &[4; 512]).unwrap();
    assert!(file.sync_data().is_err());
    assert!(file.read_at(0, &mut [0]).is_err() && disk.open("a").is_err());
    disk.flip_bit("a", 0).unwrap();
    assert!(disk.flip_bit("a", 8 * 1536).is_err());
}
