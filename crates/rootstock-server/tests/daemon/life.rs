//! Starting, stopping, and starting where something else is; HTTPS and roles.

use std::os::unix::fs::PermissionsExt as _;

use axum::body::Body;
use hyper::{Method, header};
use rootstock_api::{
    Health, ImageList, ProblemCode, ScrubStatus, Site as SiteReport, TokenRole, paths,
};
use rootstock_server::{Daemon, DataDirError, ListenError, StartError};

use crate::{
    remote::{Remote, site_with_https},
    support::{Disk, Site, binary, config_in, json},
};

#[tokio::test]
async fn a_daemon_answers_keeps_its_state_and_leaves_no_socket() {
    let mut site = Site::start().await;
    let health: Health = site.get(paths::HEALTHZ).await.json();
    assert_eq!(health.status, "ok");
    let mode = std::fs::metadata(site.socket())
        .expect("is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let before: SiteReport = site.get(paths::SITE).await.json();
    assert_eq!(before.role, TokenRole::Admin);
    site.import("lab", &Disk::of(&[1, 2])).await;
    site.restart().await;
    let after: SiteReport = site.get(paths::SITE).await.json();
    assert_eq!(after.public_key, before.public_key);
    let images: ImageList = site.get(paths::IMAGES).await.json();
    assert_eq!(images.images[0].version_count, 1);
    site.stop().await;
    assert!(!site.socket().exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let site = Site::start().await;
    let Err(error) = Daemon::start(site.config()).await else {
        panic!("it started");
    };
    let pid = std::process::id();
    assert!(
        error.to_string().contains(&format!("(process {pid})")),
        "{error}"
    );
    assert!(matches!(
        error,
        StartError::DataDir(DataDirError::Locked { .. })
    ));
    // The same socket with other data.
    let mut config = site.config();
    config.data = site.dir.path().join("other");
    let Err(error) = Daemon::start(config).await else {
        panic!("it started");
    };
    assert!(
        matches!(error, StartError::Listen(ListenError::Taken { .. })),
        "{error}"
    );
    // The first is undisturbed.
    let _: Health = site.get(paths::HEALTHZ).await.json();
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_and_other_files_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    assert!(socket.exists());
    let daemon = Daemon::start(config_in(dir.path())).await.expect("starts");
    daemon.shutdown().await.expect("stops");
    std::fs::write(&socket, "precious").expect("writes");
    let Err(error) = Daemon::start(config_in(dir.path())).await else {
        panic!("it started");
    };
    assert!(
        matches!(error, StartError::Listen(ListenError::NoSocket { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&socket).expect("reads"), "precious");
}

#[tokio::test]
async fn newer_data_is_refused_and_left_alone() {
    let mut site = Site::start().await;
    site.stop().await;
    let format = site.data().join("format");
    std::fs::write(&format, "rootstock-data 99\n").expect("writes");
    let Err(error) = Daemon::start(site.config()).await else {
        panic!("it started");
    };
    assert!(error.to_string().contains("data format 99"), "{error}");
    assert!(
        error.to_string().contains("start the newer release"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_to_string(&format).expect("reads"),
        "rootstock-data 99\n"
    );
}

#[tokio::test]
async fn metrics_count() {
    let site = Site::start().await;
    site.import("lab", &Disk::of(&[1])).await;
    let answer = site.get(paths::METRICS).await;
    let text = String::from_utf8(answer.body.to_vec()).expect("is text");
    assert!(text.contains("rootstock_chunks_stored_total 2"), "{text}");
    let line =
        "rootstock_http_requests_total{method=\"POST\",route=\"/v1/imports\",status=\"201\"} 1";
    assert!(text.contains(line), "{text}");
    let document: serde_json::Value = site.get(paths::OPENAPI).await.json();
    assert_eq!(document["info"]["title"], "Rootstock");
}

#[tokio::test]
async fn a_scrub_is_started_and_its_result_outlives_a_restart() {
    let mut site = Site::start().await;
    site.import("lab", &Disk::of(&[1, 2])).await;
    // Packs that are still in memory are written.
    site.restart().await;
    let mut packs = Vec::new();
    for directory in std::fs::read_dir(site.data().join("store/packs")).expect("packs") {
        let files = std::fs::read_dir(directory.expect("reads").path()).expect("reads");
        packs.extend(files.map(|file| file.expect("reads").path()));
    }
    let [pack] = packs.as_slice() else {
        panic!("one pack: {packs:?}");
    };
    let mut bytes = std::fs::read(pack).expect("reads");
    bytes[300] ^= 1;
    std::fs::write(pack, bytes).expect("writes");

    let started = site.post(paths::SCRUB, &()).await;
    assert_eq!(started.status, hyper::StatusCode::ACCEPTED);
    let started: ScrubStatus = started.json();
    assert!(started.running && started.last_pass.is_none());
    assert_eq!(started.total_pack_count, 1);
    let ended = loop {
        let status: ScrubStatus = site.get(paths::SCRUB).await.json();
        if !status.running {
            break status;
        }
    };
    assert!(ended.last_pass.is_some());
    assert_eq!(ended.damage.len(), 1, "{ended:?}");
    site.restart().await;
    let kept: ScrubStatus = site.get(paths::SCRUB).await.json();
    assert_eq!(
        (kept.running, kept.last_pass, kept.damage),
        (false, ended.last_pass, ended.damage)
    );
}

#[tokio::test]
async fn who_sends_nothing_does_not_hold_the_stop() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut site = Site::start().await;
    let connect = || tokio::net::UnixStream::connect(site.socket());
    let mut half_head = connect().await.expect("connects");
    let part = half_head.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await;
    part.expect("is taken");
    let mut half_body = connect().await.expect("connects");
    let head = "POST /v1/imports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\nExpect: 100-continue\r\n\r\n{";
    half_body
        .write_all(head.as_bytes())
        .await
        .expect("is taken");
    // RFC 9110, section 10.1.1: what says that the body is waited for.
    let waits = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut answer = vec![0; waits.len()];
    half_body.read_exact(&mut answer).await.expect("answers");
    assert_eq!(answer, waits);
    site.stop().await;
    let mut answer = String::new();
    half_body
        .read_to_string(&mut answer)
        .await
        .expect("answers");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let mut answer = Vec::new();
    half_head.read_to_end(&mut answer).await.expect("ends");
    assert!(answer.is_empty());
}

#[tokio::test]
async fn over_https_tokens_decide() {
    let site = site_with_https().await;
    let remote = Remote::of(site.daemon());
    let reader = site.token(TokenRole::Reader).await;
    let admin = site.token(TokenRole::Admin).await;
    let (reader, admin) = (reader.as_str(), admin.as_str());
    // Nobody, a guess, and what is open to all.
    for secret in [None, Some("rst_guess"), Some("")] {
        let answer = remote.get(paths::IMAGES, secret).await;
        assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(answer.problem().code, ProblemCode::Unauthorized);
    }
    assert!(remote.get(paths::HEALTHZ, None).await.status.is_success());
    assert!(remote.get(paths::OPENAPI, None).await.status.is_success());
    let report: SiteReport = remote.get(paths::SITE, Some(reader)).await.json();
    assert_eq!(report.role, TokenRole::Reader);
    // A reader reads and does not write.
    assert!(
        remote
            .get(paths::IMAGES, Some(reader))
            .await
            .status
            .is_success()
    );
    let create = rootstock_api::ImportCreate {
        image: "lab".parse().expect("a name"),
        disk_bytes: 1,
        source: String::new(),
    };
    let write = || json(Method::POST, paths::IMPORTS, &create);
    let problem = remote.send(write(), Some(reader)).await.problem();
    assert_eq!(problem.code, ProblemCode::Forbidden);
    let problem = remote.get(paths::TOKENS, Some(reader)).await.problem();
    assert_eq!(problem.code, ProblemCode::Forbidden);
    let fetch = binary(paths::CHUNKS_FETCH, Body::from(vec![7; 32]));
    let problem = remote.send(fetch, Some(reader)).await.problem();
    assert_eq!(problem.code, ProblemCode::ChunkNotFound);
    assert!(remote.send(write(), Some(admin)).await.status.is_success());
    // Revoked is revoked.
    site.delete(&paths::token("admin")).await;
    let problem = remote.send(write(), Some(admin)).await.problem();
    assert_eq!(problem.code, ProblemCode::Unauthorized);
}
