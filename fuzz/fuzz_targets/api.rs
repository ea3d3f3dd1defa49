//! Arbitrary bytes as bodies and names of the HTTP API.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_api::{
    Bitmap, ImportCommit, ImportCreate, Problem, TagTarget, TokenCreate, VolumeCommit,
    VolumeCreate, VolumeResize, VolumeSnapshot,
    record::{Records, decode_ids, encode_ids},
};
use rootstock_core::{ImageName, TagName, VersionSpec, VolumeName};

const IDS_MAX: usize = 16;

fuzz_target!(|data: &[u8]| {
    let mut body = Vec::new();
    let mut whole = true;
    for record in Records::new(data) {
        match record {
            Ok(record) => record.write(&mut body),
            Err(_) => whole = false,
        }
    }
    assert!(data.starts_with(&body), "records are what was sent");
    assert!(!whole || body.len() == data.len());
    if let Ok(ids) = decode_ids(data, IDS_MAX) {
        assert!(ids.len() <= IDS_MAX);
        assert_eq!(encode_ids(&ids), data);
    }
    if let Some((count, bits)) = data.split_first()
        && let Some(bitmap) = Bitmap::from_bytes(bits.to_vec(), usize::from(*count))
    {
        assert!(bitmap.count_set() <= bits.len() * 8);
        let _ = bitmap.get(usize::from(*count));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        names(text);
    }
    documents(data);
});

fn names(text: &str) {
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = text.parse::<TagName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = text.parse::<VolumeName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(spec) = text.parse::<VersionSpec>() {
        let again = spec.to_string().parse::<VersionSpec>();
        assert_eq!(again.ok(), Some(spec), "a version is written as it is read");
    }
}

fn documents(data: &[u8]) {
    let _ = serde_json::from_slice::<ImportCreate>(data);
    let _ = serde_json::from_slice::<ImportCommit>(data);
    let _ = serde_json::from_slice::<TagTarget>(data);
    let _ = serde_json::from_slice::<TokenCreate>(data);
    let _ = serde_json::from_slice::<VolumeCreate>(data);
    let _ = serde_json::from_slice::<VolumeCommit>(data);
    let _ = serde_json::from_slice::<VolumeResize>(data);
    let _ = serde_json::from_slice::<VolumeSnapshot>(data);
    let _ = serde_json::from_slice::<Problem>(data);
}
