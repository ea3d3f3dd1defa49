//! Bad requests: each gets a problem document, and nothing else happens.

use axum::body::Body;
use hyper::{Method, StatusCode, header};
use rootstock_api::{
    CollectEvent, ProblemCode, TokenCreate, TokenCreated, TokenList, TokenRole, paths,
    record::RECORDS_BYTES_MAX,
};

use crate::support::{Disk, Site, binary, json, request};

#[tokio::test]
async fn garbage_gets_a_problem() {
    let site = Site::start().await;
    let long = format!("/v1/images/{}", "a".repeat(5000));
    let cases = [
        (Method::GET, "/nowhere", "", 404, ProblemCode::NoSuchPath),
        (Method::GET, "/v1/images/", "", 404, ProblemCode::NoSuchPath),
        (
            Method::PATCH,
            "/v1/images",
            "",
            405,
            ProblemCode::MethodNotAllowed,
        ),
        (
            Method::DELETE,
            "/healthz",
            "",
            405,
            ProblemCode::MethodNotAllowed,
        ),
        (
            Method::GET,
            "/v1/images/a%20b",
            "",
            400,
            ProblemCode::BadName,
        ),
        (
            Method::GET,
            "/v1/images/%2e%2e%2fetc",
            "",
            400,
            ProblemCode::BadName,
        ),
        (
            Method::GET,
            "/v1/images/%F0%9F%8C%B1",
            "",
            400,
            ProblemCode::BadName,
        ),
        (Method::GET, "/v1/images/%ff", "", 400, ProblemCode::BadName),
        (Method::GET, &long, "", 400, ProblemCode::BadName),
        (
            Method::GET,
            "/v1/images/lab/versions/0",
            "",
            400,
            ProblemCode::BadName,
        ),
        (
            Method::GET,
            "/v1/images/lab/versions/x",
            "",
            400,
            ProblemCode::BadName,
        ),
        (
            Method::GET,
            "/v1/images/lab/versions/1",
            "",
            404,
            ProblemCode::ImageNotFound,
        ),
        (Method::GET, "/v1/diff", "", 400, ProblemCode::BadRequest),
        (
            Method::GET,
            "/v1/diff?from=a&to=:",
            "",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            "{",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            "[]",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            "\u{1}\u{2}",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            r#"{"image":"a/b","disk_bytes":1,"source":""}"#,
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            r#"{"image":"a","disk_bytes":1,"source":"","colour":1}"#,
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports",
            r#"{"image":"a","disk_bytes":0,"source":""}"#,
            422,
            ProblemCode::BadValue,
        ),
        (
            Method::POST,
            "/v1/imports",
            r#"{"image":"a","disk_bytes":1,"source":"\u001b[2J"}"#,
            422,
            ProblemCode::BadValue,
        ),
        (
            Method::GET,
            "/v1/imports/x",
            "",
            404,
            ProblemCode::ImportNotFound,
        ),
        (
            Method::POST,
            "/v1/imports/x/lacking",
            "",
            404,
            ProblemCode::ImportNotFound,
        ),
        (
            Method::POST,
            "/v1/imports/x/lacking",
            "odd",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/chunks/fetch",
            "odd",
            400,
            ProblemCode::BadRequest,
        ),
        (
            Method::POST,
            "/v1/imports/x/chunks",
            "{}",
            415,
            ProblemCode::UnsupportedMediaType,
        ),
        (
            Method::DELETE,
            "/v1/tokens/x",
            "",
            404,
            ProblemCode::TokenNotFound,
        ),
    ];
    for (method, path, body, status, code) in cases {
        let mut request = request(method.clone(), path, Body::from(body.to_owned()));
        let binary = ["lacking", "fetch"].iter().any(|end| path.ends_with(end));
        let value = if binary {
            "application/octet-stream; x=y"
        } else {
            "application/json"
        };
        let value = header::HeaderValue::from_static(value);
        request.headers_mut().insert(header::CONTENT_TYPE, value);
        let problem = site.send(request).await.problem();
        assert_eq!(
            (problem.status, problem.code),
            (status, code),
            "{method} {path}: {problem}"
        );
        assert!(problem.detail.len() < 1000, "{problem}");
    }
}

#[tokio::test]
async fn bodies_are_bounded_and_typed() {
    let site = Site::start().await;
    let import = site.open_import("lab", &Disk::of(&[1])).await;
    let path = paths::import_chunks(&import.id);
    let announced = binary(&path, Body::from(vec![0; RECORDS_BYTES_MAX + 1]));
    assert_eq!(
        site.send(announced).await.problem().code,
        ProblemCode::TooLarge
    );
    // Without a length, in parts, forever.
    let parts = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 20]));
    let endless = binary(&path, Body::from_stream(parts));
    assert_eq!(
        site.send(endless).await.problem().code,
        ProblemCode::TooLarge
    );
    let ids = vec![1; 32 * 4097];
    let answer = site.bytes(&paths::import_lacking(&import.id), ids).await;
    assert_eq!(answer.problem().code, ProblemCode::BadRequest);
    let form = request(Method::POST, paths::IMPORTS, Body::from("image=lab"));
    let problem = site.send(form).await.problem();
    assert_eq!(problem.code, ProblemCode::UnsupportedMediaType);
    let large = json(Method::POST, paths::IMPORTS, &"x".repeat(2 << 20));
    assert_eq!(site.send(large).await.problem().code, ProblemCode::TooLarge);
    let missing = site.bytes(paths::CHUNKS_FETCH, vec![7; 32]).await.problem();
    assert_eq!(missing.code, ProblemCode::ChunkNotFound);
}

#[tokio::test]
async fn two_collections_at_once_are_one_too_many_or_take_turns() {
    let site = Site::start().await;
    site.import("lab", &Disk::of(&[1])).await;
    let (one, two) = tokio::join!(
        site.bytes(paths::GC, Vec::new()),
        site.bytes(paths::GC, Vec::new())
    );
    for answer in [one, two] {
        let events: Vec<CollectEvent> = answer.lines();
        match events.last() {
            Some(CollectEvent::Done(_)) => {}
            Some(CollectEvent::Failed(problem)) => assert_eq!(problem.code, ProblemCode::Busy),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let site = Site::start().await;
    let create = TokenCreate {
        name: "ci".to_owned(),
        role: TokenRole::Reader,
    };
    let created: TokenCreated = site.post(paths::TOKENS, &create).await.json();
    assert!(created.secret.starts_with("rst_"));
    let problem = site.post(paths::TOKENS, &create).await.problem();
    assert_eq!(problem.code, ProblemCode::Exists);
    let answer = site.get(paths::TOKENS).await;
    assert!(!String::from_utf8_lossy(&answer.body).contains(&created.secret));
    let list: TokenList = answer.json();
    assert_eq!(
        (list.tokens[0].name.as_str(), &list.tokens[0].revoked),
        ("ci", &None)
    );
    let answer = site.delete(&paths::token("ci")).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    // The catalog has no trace of the secret itself.
    let mut files = String::new();
    for entry in std::fs::read_dir(site.data()).expect("reads") {
        let path = entry.expect("reads").path();
        if path.is_file() {
            files.push_str(&String::from_utf8_lossy(
                &std::fs::read(path).expect("reads"),
            ));
        }
    }
    assert!(!files.contains(&created.secret));
}
