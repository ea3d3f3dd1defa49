//! The NBD server held against real clients: libnbd's tools, QEMU's and fio.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use rootstock_tests::{peer, tool};

#[path = "nbd_memory/server.rs"]
mod server;

use server::{IMAGE, MemoryServer, SIZE, content};

/// Writable and warm, read-only, and one whose reads all go by way of workers.
const EXPORTS: [&str; 3] = ["volume/disk", "image/disk:1", "volume/cold"];

#[test]
fn nbdinfo_sees_what_is_exported() {
    let server = MemoryServer::start(&[]).unwrap();
    let list = tool::run("nbdinfo", ["--list", "--json", &server.tcp("")]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["structured"], true);
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["volume/disk", "image/disk:1", "volume/cold"]);
    for export in exports {
        let read_only = export["export-name"] == "image/disk:1";
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["is_read_only"], read_only);
        for ability in [
            "can_cache",
            "can_df",
            "can_flush",
            "can_fua",
            "can_multi_conn",
        ] {
            assert_eq!(export[ability], true, "{ability}");
        }
        for ability in ["can_trim", "can_zero", "can_fast_zero"] {
            assert_eq!(export[ability], !read_only, "{ability}");
        }
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }
    let map = tool::run("nbdinfo", ["--map", &server.unix("volume/cold")]).unwrap();
    let map: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        map,
        [
            vec!["0", "262144", "0", "data"],
            vec!["262144", "4980736", "3", "hole,zero"],
            vec!["5242880", "6029312", "0", "data"],
            vec!["11272192", "13631488", "3", "hole,zero"],
            vec!["24903680", "262144", "0", "data"],
        ]
    );
    server.finish().unwrap();
}

#[test]
fn nbdcopy_and_qemu_img_read_the_same_bytes() {
    let server = MemoryServer::start(&[]).unwrap();
    let image = server.dir.path().join(IMAGE);
    let copy = server.dir.path().join("copy.img");
    let copy = copy.to_str().unwrap();
    for export in EXPORTS {
        for uri in [server.tcp(export), server.unix(export)] {
            for options in [&["--synchronous"][..], &[], &["--connections=4"]] {
                let arguments = options.iter().copied().chain([uri.as_str(), copy]);
                tool::run("nbdcopy", arguments).unwrap();
                assert!(fs::read(copy).unwrap() == content(), "{export} {options:?}");
                fs::remove_file(copy).unwrap();
            }
            let image = image.to_str().unwrap();
            let compare = ["compare", "-f", "raw", "-F", "raw", &uri, image];
            let said = tool::run("qemu-img", compare).unwrap();
            assert!(said.contains("identical"), "{said}");
        }
    }
    server.finish().unwrap();
}

#[test]
fn nbdcopy_writes_an_image() {
    let server = MemoryServer::start(&[]).unwrap();
    let mut new = content();
    new.rotate_left(1_000_000);
    let source = server.dir.path().join("new.img");
    fs::write(&source, &new).unwrap();
    let source = source.to_str().unwrap();
    let target = server.tcp("volume/disk");
    tool::run("nbdcopy", ["--flush", source, &target]).unwrap();
    let compare = ["compare", "-f", "raw", "-F", "raw", &target, source];
    tool::run("qemu-img", compare).unwrap();
    server.finish().unwrap();
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    let server = MemoryServer::start(&[]).unwrap();
    for export in ["volume/disk", "volume/cold"] {
        let steps = [
            "write -P 5 0 64k",
            "write -P 6 1000000 3000001",
            "write -z 8M 100k",
            "write -z -u 9M 1M",
            "write -f -P 7 10M 4k",
            "discard 4M 512k",
            "flush",
            "read -P 5 0 64k",
            "read -P 6 1000000 3000001",
            "read -P 0 8M 100k",
            "read -P 0 9M 1M",
            "read -P 7 10M 4k",
        ];
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]);
        for step in steps {
            command.args(["-c", step]);
        }
        let said = tool::run_command(command.arg(server.tcp(export))).unwrap();
        assert!(!said.contains("failed"), "{said}");
    }
    let said = tool::output(
        Command::new("qemu-io")
            .args(["-f", "raw", "-c", "write 0 4k"])
            .arg(server.tcp("image/disk:1")),
    )
    .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.is_empty(), "a write to an image was let through");
    server.finish().unwrap();
}

#[test]
fn qemu_tools_list_and_hammer() {
    let server = MemoryServer::start(&[]).unwrap();
    let (host, port) = server.address.split_once(':').unwrap();
    let list = tool::run("qemu-nbd", ["--list", "-b", host, "-p", port]).unwrap();
    for export in EXPORTS {
        assert!(list.contains(&format!("export: '{export}'")), "{list}");
    }
    for export in ["volume/disk", "volume/cold"] {
        let uri = server.unix(export);
        for write in [&[][..], &["-w"]] {
            let bench = ["bench", "-f", "raw", "-c", "3000", "-d", "32", "-s", "4096"];
            let arguments = bench.iter().chain(write).copied().chain([uri.as_str()]);
            tool::run("qemu-img", arguments).unwrap();
        }
    }
    server.finish().unwrap();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = MemoryServer::start(&[]).unwrap();
    for export in ["volume/disk", "volume/cold"] {
        let uri = format!("--uri={}", server.tcp(export));
        let said = tool::run(
            "fio",
            [
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                "--bsrange=512-128k",
                "--blockalign=512",
                "--size=16M",
                "--iodepth=32",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--output-format=json",
            ],
        )
        .unwrap();
        let json = &said[said.find('{').unwrap()..];
        let said: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(said["jobs"][0]["error"], 0);
        assert!(said["jobs"][0]["read"]["total_ios"].as_u64().unwrap() > 0);
    }
    server.finish().unwrap();
}

#[test]
fn libnbd_asks_for_every_form() {
    let server = MemoryServer::start(&[]).unwrap();
    let script = "
size = h.get_size()
assert h.get_structured_replies_negotiated()
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
    return 0
buffer = h.pread_structured(11 << 20, 0, chunk)
assert {status for (_, _, status) in chunks} == {nbd.READ_DATA, nbd.READ_HOLE}
assert sum(length for (_, length, status) in chunks if status == nbd.READ_DATA) < 8 << 20
chunks.clear()
assert h.pread_structured(11 << 20, 0, chunk, nbd.CMD_FLAG_DF) == buffer
assert [(o, s) for (o, _, s) in chunks] == [(0, nbd.READ_DATA)]
h.pwrite(b'x' * 5000, 777, nbd.CMD_FLAG_FUA)
assert h.pread(5002, 776)[1:5001] == b'x' * 5000
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1681, 4096) == bytes(1681)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 1 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
extents = []
def extent(context, offset, entries, error):
    extents.append((context, len(entries)))
    return 0
h2 = nbd.NBD()
h2.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h2.connect_uri(sys.argv[1])
h2.block_status(size, 0, extent)
h2.block_status(size, 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert extents[0][1] > 2 and extents[1] == ('base:allocation', 2), extents
for handle in (h, h2):
    handle.shutdown()
print('done')
";
    for export in ["volume/disk", "volume/cold"] {
        let said = peer::libnbd(&server.unix(export), script).unwrap();
        assert_eq!(said.trim(), "done");
    }
    server.finish().unwrap();
}

/// A certificate authority and a server's certificate, as libnbd and QEMU want them.
fn certificates(dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let authority = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test CA",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ];
    let (key, cert) = (path("ca-key.pem"), path("ca-cert.pem"));
    let out = ["-keyout", key.as_str(), "-out", cert.as_str()];
    tool::run("openssl", authority.iter().chain(&out)).unwrap();
    let (server_key, server_cert) = (path("server-key.pem"), path("server-cert.pem"));
    let server = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext",
        "basicConstraints=CA:FALSE",
    ];
    let signed = [
        "-CA",
        cert.as_str(),
        "-CAkey",
        key.as_str(),
        "-keyout",
        server_key.as_str(),
        "-out",
        server_cert.as_str(),
    ];
    tool::run("openssl", server.iter().chain(&signed)).unwrap();
}

#[test]
fn tls_works_with_libnbd_and_qemu() {
    for required in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let certs = dir.path().to_str().unwrap().to_owned();
        let mut arguments = vec!["--tls-dir", &certs];
        if required {
            arguments.push("--tls-required");
        }
        let server = MemoryServer::start_in(dir, &arguments).unwrap();
        let (host, port) = server.address.split_once(':').unwrap();
        let uri = format!("nbds://{host}:{port}/volume/cold?tls-certificates={certs}");
        let said = tool::run("nbdinfo", [&uri]).unwrap();
        assert!(said.contains("with TLS"), "{said}");
        let copy = server.dir.path().join("copy.img");
        tool::run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]).unwrap();
        assert!(fs::read(&copy).unwrap() == content());
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={certs}");
        let target = format!(
            "driver=nbd,host={host},port={port},export=volume/disk,tls-creds=tls,tls-hostname=localhost"
        );
        let image = server.dir.path().join(IMAGE);
        let image = format!("driver=raw,file.filename={}", image.display());
        let compare = [
            "compare",
            "--object",
            &credentials,
            "--image-opts",
            &target,
            &image,
        ];
        tool::run("qemu-img", compare).unwrap();
        let clear = Command::new("nbdinfo")
            .arg(server.tcp("volume/disk"))
            .output()
            .unwrap();
        assert_eq!(clear.status.success(), !required);
        // What reaches the Unix socket was let in by the file system.
        tool::run("nbdinfo", [server.unix("volume/disk")]).unwrap();
        server.finish().unwrap();
    }
}
