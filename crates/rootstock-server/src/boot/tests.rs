//! A machine's way through the boot service, by requests as they come.

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use ed25519_dalek::{Signature, SigningKey};
use jiff::Timestamp;
use rootstock_api::{
    boot::{
        BootOrder, BootStep, CHUNKS, Inventory, MANIFEST, ORDER, ORDER_SIGNATURE_HEADER, REPORT,
        RootPlace, SESSION, STEPS, SessionCreate, SessionState,
    },
    record::Records,
    settings::Settings,
};
use rootstock_catalog::{Catalog, NewNode, NewVersion, StepRow, VersionRow};
use rootstock_core::{ChunkId, MacAddress};
use rootstock_image::{grid::Grid, manifest::ManifestBuilder, seal::Seal};
use rootstock_store::{ChunkStore, StoreOptions, disk::RealDisk, objects::MemoryObjects};

use super::{
    body::Content,
    http,
    listen::{self, Arrival, Transport},
    stage::{Stage, Stages},
    transcript::{DhcpStage, Told},
};
use crate::{app::App, config::Config, volumes::Volumes};

mod commits;
mod control;
mod deltas;
mod health;
mod hold;
mod installer;
mod installs;
mod local;
mod nfs;
mod rollouts;
mod swarm;
mod traces;

const MAC: &str = "52-54-00-12-34-56";
const OWN: &str = "10.0.0.7:1000";
const OTHER: &str = "10.0.0.8:1000";

/// Stages without an image behind them.
struct FakeStages;

impl Stages for FakeStages {
    fn get<'a>(
        &'a self,
        _: &'a Arc<App>,
        _: &'a VersionRow,
        _: &'a Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Stage, String>> + Send + 'a>> {
        let stage = Stage {
            kernel: Content::Bytes(Bytes::from_static(b"kernel of lab")),
            initrd: Content::Bytes(Bytes::from_static(b"initrd")),
            kernel_version: "6.1.0".to_owned(),
            root: RootPlace {
                partition: 1,
                fs: "ext4".to_owned(),
                options: String::new(),
                init: "/sbin/init".to_owned(),
            },
            arguments: vec!["net.ifnames=0".to_owned(), "a'b".to_owned()],
        };
        Box::pin(async move { Ok(stage) })
    }
}

struct Site {
    app: Arc<App>,
    router: Router,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// One that is made ready by `prepare` before anybody asks it.
    async fn with(prepare: impl FnOnce(&mut App)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&dir.path().join("c.sqlite"))
            .await
            .expect("opens");
        let objects = Arc::new(MemoryObjects::new());
        let store = ChunkStore::open(objects, StoreOptions::default()).expect("opens");
        let disk = RealDisk::new(dir.path()).expect("opens");
        let volumes = Volumes::new(disk, store.clone(), 1 << 20);
        let mut config = Config::default();
        config.boot.plugins = dir.path().join("plugins.d");
        config.data = dir.path().to_owned();
        let key = SigningKey::from_bytes(&[5; 32]);
        let mut app = App::new(config, catalog, store, key, volumes);
        prepare(&mut app);
        let app = Arc::new(app);
        app.boot.set_stages(Arc::new(FakeStages));
        Self {
            router: http::router(Arc::clone(&app)),
            app,
            _dir: dir,
        }
    }

    /// A version `lab:1` of one chunk.
    async fn image(&self) -> ChunkId {
        self.version(7).await
    }

    /// The next version of `lab`: one chunk, full of this byte.
    async fn version(&self, fill: u8) -> ChunkId {
        self.version_of(&[fill]).await[0]
    }

    /// The next version of `lab`: chunks, each full of a byte.
    async fn version_of(&self, fills: &[u8]) -> Vec<ChunkId> {
        let disk_bytes = (fills.len() as u64) << 18;
        let grid = Grid::whole(disk_bytes).expect("is a grid");
        let mut builder = ManifestBuilder::new(grid);
        let mut chunks = Vec::new();
        for (index, fill) in fills.iter().enumerate() {
            let chunk = self.app.store.put_raw(&vec![*fill; 1 << 18]);
            chunks.push(chunk.expect("is stored"));
            builder.set(index as u64, chunks[index]);
        }
        let manifest = builder.finish(|_, bytes| self.app.store.put_raw(bytes).map(drop));
        let manifest = manifest.expect("is built");
        self.app
            .store
            .put_raw(&manifest.encode())
            .expect("is stored");
        self.app.store.flush().expect("is durable");
        let new = NewVersion {
            image: "lab".parse().expect("a name"),
            manifest: manifest.id(),
            disk_bytes,
            used_bytes: disk_bytes,
            added_chunks: 1,
            added_bytes: 1,
            parent: None,
            source: "test".to_owned(),
            message: None,
            facts: "{}".to_owned(),
            tag: None,
            event: "imported",
            actor: "test".to_owned(),
            import: None,
        };
        let (key, image, id) = (self.app.key.clone(), new.image.clone(), new.manifest);
        let seal = move |number| crate::app::hex(&Seal::sign(&key, &image, number, id).encode());
        let added = self.app.catalog.add_version(new, Timestamp::now(), seal);
        added.await.expect("is added");
        chunks
    }

    async fn node(&self, settings: &str) {
        let node = NewNode {
            name: "n001".parse().expect("a name"),
            profile: None,
            macs: vec![MAC.parse().expect("a MAC")],
            uuid: None,
            address: None,
            settings: settings.to_owned(),
            image: None,
        };
        self.app
            .catalog
            .add_node(&node, Timestamp::now())
            .await
            .expect("is added");
    }

    /// The catalog hears of a step of the newest boot of `n001`, at this time.
    async fn says(&self, step: &str, at: Timestamp, uptime_ms: Option<u64>, detail: &str) {
        let node = "n001".parse().expect("a name");
        let boots = self.app.catalog.boots_of(&node).await.expect("lists");
        let row = StepRow {
            step: step.to_owned(),
            time: at,
            uptime_ms,
            bytes: 0,
            detail: detail.to_owned(),
        };
        let added = self.app.catalog.add_steps(&boots[0].id, &[row]).await;
        added.expect("is added");
    }

    async fn send(&self, from: &str, transport: Transport, request: Request<Body>) -> Response {
        let arrival = Arrival {
            peer: from.parse::<SocketAddr>().expect("an address"),
            local: "10.0.0.1:8480".parse().expect("an address"),
            transport,
        };
        listen::answer(self.router.clone(), request, arrival).await
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = self.send(OWN, Transport::Plain, request).await;
        let status = response.status();
        (
            status,
            String::from_utf8(bytes(response).await).expect("is text"),
        )
    }

    async fn script(&self) -> String {
        let (status, script) = self.get(&format!("/boot/ipxe/{MAC}")).await;
        assert_eq!(status, StatusCode::OK);
        script
    }

    async fn redeem(&self, from: &str, transport: Transport, token: &str) -> Response {
        let ask = SessionCreate {
            token: token.to_owned(),
            mac: MAC.replace('-', ":"),
            uuid: None,
            release: "0.1.0".to_owned(),
            inventory: Inventory::default(),
        };
        let body = serde_json::to_vec(&ask).expect("is JSON");
        let request = Request::post(SESSION).body(body.into()).expect("a request");
        self.send(from, transport, request).await
    }

    async fn call(&self, transport: Transport, path: &str, session: &str, body: &[u8]) -> Response {
        let request = if body.is_empty() {
            Request::get(path)
        } else {
            Request::post(path)
        };
        let request = request
            .header(header::AUTHORIZATION, format!("Bearer {session}"))
            .body(Body::from(body.to_vec()))
            .expect("a request");
        self.send(OWN, transport, request).await
    }
}

async fn bytes(response: Response) -> Vec<u8> {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    body.expect("is whole").to_vec()
}

fn token_of(script: &str) -> &str {
    let (_, rest) = script.split_once("rootstock.token=").expect("has a token");
    rest.split_whitespace().next().expect("has a token")
}

async fn state(response: Response) -> SessionState {
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_slice(&bytes(response).await).expect("is a state")
}

#[tokio::test]
async fn an_unknown_machine_waits_until_it_is_approved_and_has_an_image() {
    let site = Site::new().await;
    let script = site.script().await;
    assert!(
        script.contains("echo Let it boot with: rootstock node approve node0001"),
        "{script}"
    );
    let nodes = site.app.catalog.nodes().await.expect("lists");
    assert_eq!(nodes.len(), 1);
    let names = [nodes[0].name.clone()];
    let approved = site
        .app
        .catalog
        .approve_nodes(&names, Timestamp::now())
        .await;
    approved.expect("is approved");
    let script = site.script().await;
    assert!(
        script.contains("The server could not choose an image"),
        "{script}"
    );
    // Another fetch makes no other node of it.
    assert_eq!(site.app.catalog.nodes().await.expect("lists").len(), 1);
    // What is no card's address is no script at all.
    for path in [
        "/boot/ipxe/01-00-00-00-00-00",
        "/boot/ipxe/x",
        "/boot",
        "/boot/s/x/kernel",
    ] {
        assert_eq!(site.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let (_, script) = site.get("//boot//ipxe").await;
    assert!(
        script.contains("http://10.0.0.1:8480/boot/ipxe/${netX/mac:hexhyp}"),
        "{script}"
    );
    let (_, script) = site.get("/autoexec.ipxe").await;
    assert!(script.starts_with("#!ipxe"), "{script}");
}

#[tokio::test]
async fn a_machine_boots_and_its_token_is_good_once() {
    let site = Site::new().await;
    let chunk = site.image().await;
    site.node(r#"{"image":"lab","kernel_arguments":"quiet","console":"ttyS0"}"#)
        .await;
    let mac: MacAddress = MAC.parse().expect("a MAC");
    let told = Told::new(BootStep::Discovered, "");
    site.app
        .boot
        .transcripts
        .dhcp(mac, DhcpStage::Firmware, told);
    let script = site.script().await;
    let token = token_of(&script).to_owned();
    assert!(
        script.contains("rootstock.ip=${netX/ip}/${netX/netmask},${netX/gateway},${netX/dns} net.ifnames=0 console=ttyS0 quiet || goto again"),
        "{script}"
    );
    assert!(
        script.contains("rootstock.url=https://10.0.0.1:8481"),
        "{script}"
    );

    // Files: exact lengths, heads, ranges; and another machine gets none of them.
    let path = format!("/boot/s/{token}/kernel");
    for (method, range, status, body) in [
        ("GET", "", 200, "kernel of lab"),
        ("HEAD", "", 200, ""),
        ("GET", "bytes=0-5", 206, "kernel"),
        ("GET", "bytes=99-", 416, ""),
    ] {
        let mut request = Request::builder().method(method).uri(&path);
        if !range.is_empty() {
            request = request.header(header::RANGE, range);
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = site.send(OWN, Transport::Plain, request).await;
        assert_eq!(response.status().as_u16(), status, "{method} {range}");
        let length = response.headers().get(header::CONTENT_LENGTH).cloned();
        if status == 200 {
            assert_eq!(length.expect("is said"), "13");
        }
        assert_eq!(bytes(response).await, body.as_bytes());
    }
    let foreign = Request::get(&path).body(Body::empty()).expect("a request");
    let foreign = site.send(OTHER, Transport::Plain, foreign).await;
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);

    // The token: not without TLS, not from elsewhere, and once.
    for (from, transport) in [(OWN, Transport::Plain), (OTHER, Transport::Tls)] {
        let refused = site.redeem(from, transport, &token).await;
        assert_eq!(
            refused.status(),
            StatusCode::FORBIDDEN,
            "{from} {transport:?}"
        );
    }
    let opened = state(site.redeem(OWN, Transport::Tls, &token).await).await;
    let SessionState::Open { session, node } = opened else {
        panic!("is held")
    };
    assert_eq!(node, "n001");
    let again = site.redeem(OWN, Transport::Tls, &token).await;
    assert_eq!(again.status(), StatusCode::FORBIDDEN);
    assert!(String::from_utf8_lossy(&bytes(again).await).contains("was used before"));

    // The order is signed, for this session, and of this node.
    let response = site.call(Transport::Tls, ORDER, &session, b"").await;
    assert_eq!(response.status(), StatusCode::OK);
    let signature = response.headers()[ORDER_SIGNATURE_HEADER]
        .to_str()
        .expect("is text");
    let signature: Vec<u8> = (0..64)
        .map(|at| u8::from_str_radix(&signature[2 * at..2 * at + 2], 16).expect("is hex"))
        .collect();
    let order = bytes(response).await;
    let signature = Signature::from_slice(&signature).expect("is a signature");
    let verified = site
        .app
        .key
        .verifying_key()
        .verify_strict(&order, &signature);
    verified.expect("is the site's");
    let order: BootOrder = serde_json::from_slice(&order).expect("is an order");
    assert_eq!(
        (order.boot.as_str(), order.node.as_str()),
        (session.as_str(), "n001")
    );
    assert_eq!(order.identity.host_name, "n001");
    assert_eq!(order.identity.machine_id.len(), 32);
    assert!(
        order
            .identity
            .files
            .iter()
            .any(|file| file.text.contains("OPENSSH PRIVATE KEY"))
    );
    assert_eq!(order.chunk_urls, ["http://10.0.0.1:8480"]);

    // Chunks of its version, and no others.
    let response = site.call(Transport::Plain, MANIFEST, &session, b"").await;
    assert!(response.headers().contains_key(rootstock_api::SEAL_HEADER));
    let response = site
        .call(Transport::Plain, CHUNKS, &session, chunk.as_bytes())
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let announced = response.headers()[header::CONTENT_LENGTH]
        .to_str()
        .expect("is text")
        .to_owned();
    let body = bytes(response).await;
    assert_eq!(announced, body.len().to_string());
    let records: Vec<_> = Records::new(&body)
        .map(|record| record.expect("is whole"))
        .collect();
    assert_eq!((records.len(), records[0].chunk), (1, chunk));
    let secret = site
        .app
        .store
        .put_raw(b"another image's")
        .expect("is stored");
    let response = site
        .call(Transport::Plain, CHUNKS, &session, secret.as_bytes())
        .await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);

    // The secret went over plain HTTP: it gets no keys any more.
    let response = site.call(Transport::Tls, ORDER, &session, b"").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let response = site.call(Transport::Tls, ORDER, "0123", b"").await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);

    // Steps and reports.
    let steps =
        br#"{"steps":[{"step":"device-up","uptime_ms":900},{"step":"discovered","uptime_ms":1}]}"#;
    let response = site.call(Transport::Tls, STEPS, &session, steps).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let response = site
        .call(Transport::Tls, REPORT, &session, br#"{"up":true}"#)
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(site.app.boot.transcripts.last(mac), Some(BootStep::Up));
    // The version is in use, and the catalog knows it.
    let lab = "lab".parse().expect("a name");
    let deleted = site
        .app
        .catalog
        .delete_image(&lab, "test", Timestamp::now())
        .await;
    assert!(deleted.is_err());
}

#[tokio::test]
async fn a_held_machine_keeps_its_token() {
    let site = Site::new().await;
    site.image().await;
    let script = site.script().await;
    assert!(!script.contains("rootstock.token="), "{script}");
    let nodes = site.app.catalog.nodes().await.expect("lists");
    let names = [nodes[0].name.clone()];
    let settings =
        |row: &mut rootstock_catalog::NodeRow| row.settings = r#"{"image":"lab"}"#.to_owned();
    let changed = site
        .app
        .catalog
        .update_nodes(&names, rootstock_catalog::Pass::Keep, settings);
    changed.await.expect("is changed");
    let script = site.script().await;
    let token = token_of(&script).to_owned();
    let waiting = state(site.redeem(OWN, Transport::Tls, &token).await).await;
    assert!(matches!(waiting, SessionState::Held { .. }), "{waiting:?}");
    let approved = site
        .app
        .catalog
        .approve_nodes(&names, Timestamp::now())
        .await;
    approved.expect("is approved");
    let open = state(site.redeem(OWN, Transport::Tls, &token).await).await;
    assert!(matches!(open, SessionState::Open { .. }), "{open:?}");
}

#[tokio::test]
async fn a_script_that_is_fetched_twice_is_one_boot() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab"}"#).await;
    let first = site.script().await;
    let second = site.script().await;
    assert_ne!(token_of(&first), token_of(&second));
    let node = "n001".parse().expect("a name");
    assert_eq!(
        site.app.catalog.boots_of(&node).await.expect("lists").len(),
        1
    );
    let refused = site.redeem(OWN, Transport::Tls, token_of(&first)).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&second)).await).await;
    assert!(matches!(open, SessionState::Open { .. }));
    let third = site.script().await;
    assert!(third.contains("rootstock.token="));
    assert_eq!(
        site.app.catalog.boots_of(&node).await.expect("lists").len(),
        2
    );
}

#[tokio::test]
async fn grub_gets_a_configuration_of_its_own() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab"}"#).await;
    let (status, text) = site.get("/boot/grub/52:54:00:12:34:56").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.contains("if linux (http,10.0.0.1:8480)/boot/s/"),
        "{text}"
    );
    let request = Request::post("/boot/ipxe")
        .body(Body::empty())
        .expect("a request");
    let response = site.send(OWN, Transport::Plain, request).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
}
