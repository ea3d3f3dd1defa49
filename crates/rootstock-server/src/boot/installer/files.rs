//! What an installer asks for: its kernel and initrd, files made for its machine, and calls
//! home.

use std::{
    fs, io,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rootstock_api::boot::BootStep;
use rootstock_catalog::{InstallerRunRow, InstallerStart, NodeRow};
use rootstock_core::{Digest, MacAddress};

use super::{Known, Machine, end, folder};
use crate::{
    app::App,
    boot::{
        body::{Content, OnSent},
        files::{Asked, Found, Missing},
        held::Changes,
        orders, sessions,
        transcript::Told,
    },
    http::{ApiError, chain},
    installers::Folder,
};

/// The largest initrd of several parts, which is put together in memory, in bytes.
const INITRD_BYTES_MAX: u64 = 512 << 20;

/// Where each part of an initrd begins (the kernel's
/// Documentation/driver-api/early-userspace/buffer-format.rst).
const INITRD_ALIGNMENT: usize = 4;

/// The most characters of what an installer says.
const WORDS_CHARS_MAX: usize = 300;

/// What an installer gets for a call.
const HEARD: &str = "ok\n";

/// Finds what an installer asks for under its token.
pub(in crate::boot) async fn find(
    app: &Arc<App>,
    asked: Asked<'_>,
    token: &str,
    name: &str,
) -> Result<Found, Missing> {
    let digest = Digest::of(token.as_bytes());
    let run = app.catalog.installer_run_by_token(&digest).await;
    let run = run
        .map_err(|error| trouble(&error))?
        .ok_or(Missing::Nothing)?;
    let start = run.start.clone().ok_or(Missing::Nothing)?;
    let node = app
        .catalog
        .node(&run.node)
        .await
        .map_err(|error| trouble(&error))?;
    let mac = *node.macs.first().ok_or(Missing::Nothing)?;
    if !is_its(app, &node, &start, asked.peer).await {
        tracing::warn!(node = %node.name, peer = %asked.peer, "an installer's files refused");
        return Err(Missing::Refused);
    }
    let request = Request {
        app,
        asked,
        node,
        run,
        start,
        mac: app.boot.card_at(asked.peer).await.unwrap_or(mac),
    };
    request.follow().await;
    match name {
        "done" => request.done().await,
        "failed" => request.failed().await,
        "say" => Ok(request.say()),
        _ if request.run.ended.is_some() => Err(Missing::Nothing),
        "kernel" => request.kernel().await,
        "initrd" => request.initrd().await,
        _ => request.file(token, name).await,
    }
}

/// Whether it is the machine itself that asks. Its installer may have another address than
/// its firmware had.
async fn is_its(app: &App, node: &NodeRow, start: &InstallerStart, peer: IpAddr) -> bool {
    if start.source == peer {
        return true;
    }
    let card = app.boot.card_at(peer).await;
    card.is_some_and(|card| node.macs.contains(&card))
}

struct Request<'a> {
    app: &'a Arc<App>,
    asked: Asked<'a>,
    node: NodeRow,
    run: InstallerRunRow,
    start: InstallerStart,
    mac: MacAddress,
}

impl Request<'_> {
    /// Follows the boot again, if the daemon was started since.
    async fn follow(&self) {
        let (app, boot) = (self.app, &self.start.boot);
        if app.boot.transcripts.mac_of(boot).is_some() {
            return;
        }
        let resumed = sessions::resume(app, boot, &self.node.name, self.mac, self.start.at).await;
        if let Err(error) = resumed {
            tracing::warn!(boot, error = error.0.detail, "boot not followed again");
        }
    }

    fn step(&self, told: Told) {
        if let Some(mac) = self.app.boot.transcripts.mac_of(&self.start.boot) {
            self.app.boot.transcripts.step(mac, told);
        }
    }

    async fn done(&self) -> Result<Found, Missing> {
        let is_news = end(self.app, &self.run, None).await;
        if is_news.map_err(|error| trouble(&error))? {
            let detail = format!("{} says that it is done", self.run.installer);
            self.step(Told::new(BootStep::Installed, detail));
        }
        Ok(text(HEARD.to_owned()))
    }

    async fn failed(&self) -> Result<Found, Missing> {
        let reason = self
            .said("reason")
            .unwrap_or_else(|| "no reason".to_owned());
        let reason = format!("gave up: {reason}");
        let is_news = end(self.app, &self.run, Some(&reason)).await;
        if is_news.map_err(|error| trouble(&error))? {
            let detail = format!("{} {reason}", self.run.installer);
            self.step(Told::new(BootStep::Failed, detail));
        }
        Ok(text(HEARD.to_owned()))
    }

    fn say(&self) -> Found {
        if let Some(words) = self.said("text").filter(|_| self.run.ended.is_none()) {
            self.app.boot.transcripts.note(&self.start.boot, words);
        }
        text(HEARD.to_owned())
    }

    /// Words of a query, on one line.
    fn said(&self, name: &str) -> Option<String> {
        let query = self.asked.query?.as_bytes();
        let (_, words) = form_urlencoded::parse(query).find(|(key, _)| key == name)?;
        let words = words.chars().take(WORDS_CHARS_MAX);
        let words: String = words
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        Some(words.trim().to_owned()).filter(|words| !words.is_empty())
    }

    async fn folder(&self) -> Result<Folder, Missing> {
        let folder = folder(self.app, &self.run.installer).await;
        folder.map_err(|error| self.cannot(&error.0.detail))
    }

    /// What an administrator has to mend is in the node's log, too.
    fn cannot(&self, reason: &str) -> Missing {
        self.app.boot.transcripts.note(&self.start.boot, reason);
        Missing::Otherwise(reason.to_owned())
    }

    async fn kernel(&self) -> Result<Found, Missing> {
        let path = self.folder().await?.kernel();
        let content = self.read(vec![path]).await?;
        let sent = self.told_of(BootStep::KernelServed, content.len_bytes(), false);
        Ok(binary(content, sent))
    }

    async fn initrd(&self) -> Result<Found, Missing> {
        let paths = self.folder().await?.initrd();
        let content = self.read(paths).await?;
        let sent = self.told_of(BootStep::InitrdServed, content.len_bytes(), true);
        Ok(binary(content, sent))
    }

    async fn read(&self, paths: Vec<PathBuf>) -> Result<Content, Missing> {
        let read = tokio::task::spawn_blocking(move || content(&paths)).await;
        let read = read.map_err(|error| trouble(&error))?;
        let content = read.map_err(|reason| self.cannot(&reason))?;
        Ok(self.app.boot.held.hold(content, Changes::Possible).await)
    }

    /// Tells of what was sent whole. After the last part the installer is on its own.
    fn told_of(&self, step: BootStep, len: u64, is_last: bool) -> OnSent {
        let (app, mac) = (Arc::clone(self.app), self.mac);
        let installer = self.run.installer.clone();
        Box::new(move |sent| {
            if sent != len {
                return;
            }
            let told = Told::new(step, format!("of {installer}")).bytes(sent);
            app.boot.transcripts.step(mac, told);
            if is_last {
                let told = Told::new(BootStep::Installer, installer.to_string());
                app.boot.transcripts.step(mac, told);
            }
        })
    }

    async fn file(&self, token: &str, name: &str) -> Result<Found, Missing> {
        let folder = self.folder().await?;
        let machine = self.machine(token).await;
        let machine = machine.map_err(|error| self.cannot(&error.0.detail))?;
        let made = folder.file(name, &machine);
        let made = made.map_err(|error| self.cannot(&chain(&error)))?;
        let made = made.ok_or(Missing::Nothing)?;
        tracing::info!(node = %self.node.name, name, "an installer has fetched a file");
        Ok(text(made))
    }

    async fn machine(&self, token: &str) -> Result<Machine, ApiError> {
        let Asked { peer, local, .. } = self.asked;
        let network = self.app.boot.networks.of(peer, local);
        let settings = orders::settings(self.app, &self.node, &network).await?;
        let known = Known {
            node: &self.node,
            settings: &settings,
            network: &network,
            peer: Some(peer),
            local,
        };
        Machine::with_token(self.app, known, token).await
    }
}

/// A file, or several as one.
fn content(paths: &[PathBuf]) -> Result<Content, String> {
    let failed = |path: &Path, error: io::Error| format!("cannot read {}: {error}", path.display());
    match paths {
        [path] => Content::open(path).map_err(|error| failed(path, error)),
        paths => {
            let mut all = Vec::new();
            for path in paths {
                append(&mut all, path).map_err(|error| failed(path, error))?;
            }
            Ok(Content::Bytes(all.into()))
        }
    }
}

fn append(all: &mut Vec<u8>, path: &Path) -> io::Result<()> {
    all.resize(all.len().next_multiple_of(INITRD_ALIGNMENT), 0);
    let room = INITRD_BYTES_MAX.saturating_sub(all.len() as u64);
    let mut file = fs::File::open(path)?;
    if file.metadata()?.len() > room {
        let text = format!("the parts together are longer than {INITRD_BYTES_MAX} bytes");
        return Err(io::Error::other(text));
    }
    file.by_ref().take(room).read_to_end(all)?;
    Ok(())
}

fn trouble(error: &(dyn std::error::Error + 'static)) -> Missing {
    tracing::error!(error = chain(error), "an installer's request failed");
    Missing::Otherwise("the server could not look that up".to_owned())
}

fn binary(content: Content, on_sent: OnSent) -> Found {
    Found {
        content,
        media_type: "application/octet-stream",
        on_sent,
    }
}

fn text(text: String) -> Found {
    Found {
        content: text.into(),
        media_type: "text/plain",
        on_sent: Box::new(|_| {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_initrd_are_put_together_where_the_kernel_looks() {
        let dir = tempfile::tempdir().expect("a directory");
        let part = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("writes");
            path
        };
        let parts = [part("a", b"12345"), part("b", b"xy"), part("c", b"z")];
        let Ok(Content::Bytes(bytes)) = content(&parts) else {
            panic!("is in memory");
        };
        assert_eq!(&bytes[..], b"12345\0\0\0xy\0\0z");
        let error = content(&[dir.path().join("none")]).expect_err("is not there");
        assert!(error.contains("none: No such file"), "{error}");
        let error = content(&[parts[0].clone(), dir.path().join("none")]);
        assert!(error.is_err());
    }
}
