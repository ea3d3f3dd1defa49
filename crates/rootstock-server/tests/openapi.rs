//! The committed OpenAPI document is the API's.

use std::path::Path;

#[test]
fn the_committed_document_is_the_apis() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/rootstock.json");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let json = rootstock_server::openapi().to_pretty_json();
    let current = format!("{}\n", json.expect("the document serializes"));
    assert!(
        committed == current,
        "openapi/rootstock.json is out of date: run\n    cargo run -p rootstock-server --example openapi > openapi/rootstock.json\nand look at what changed: clients one release older must go on working"
    );
}

#[test]
fn it_is_openapi_3_1_and_complete() {
    let document = rootstock_server::openapi();
    let json: serde_json::Value =
        serde_json::from_str(&document.to_json().expect("serializes")).expect("is JSON");
    assert!(
        json["openapi"]
            .as_str()
            .is_some_and(|v| v.starts_with("3.1."))
    );
    let text = json.to_string();
    // Every reference leads somewhere.
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap_or_default();
        assert!(json["components"]["schemas"][name].is_object(), "{name}");
    }
    let mut ids: Vec<&str> = Vec::new();
    for (path, item) in json["paths"].as_object().expect("has paths") {
        for (method, operation) in item.as_object().expect("has methods") {
            let id = operation["operationId"].as_str();
            ids.push(id.unwrap_or_else(|| panic!("{method} {path} has no id")));
        }
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
}
