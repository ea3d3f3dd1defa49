//! Where a run of the demo keeps what it makes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rootstock_tests::DaemonOptions;
use rootstock_tests::undo::{Action, Undo};

use crate::command;
use crate::demo::programs::Programs;

/// The directories of one run, removed when dropped.
pub(crate) struct Work {
    /// Disk images, the daemon's data and logs; beside the build, where there is room.
    pub(crate) bulk: PathBuf,
    /// Sockets, whose paths must be short.
    sockets: PathBuf,
    /// Differs from run to run.
    pub(crate) mark: String,
    undo: [Undo; 2],
}

impl Work {
    /// Makes them.
    ///
    /// # Errors
    /// When there is no room or no right to.
    pub(crate) fn new() -> Result<Self> {
        let target = command::target();
        fs::create_dir_all(&target)?;
        let bulk = tempfile::Builder::new()
            .prefix("demo-")
            .tempdir_in(&target)?
            .keep();
        let sockets = tempfile::Builder::new()
            .prefix("rootstock-demo-")
            .tempdir()?
            .keep();
        let name = bulk.file_name().context("a directory has a name")?;
        let mark = name.to_string_lossy().into_owned();
        let undo = [bulk.clone(), sockets.clone()].map(|path| Undo::new(Action::RemoveTree(path)));
        Ok(Self {
            bulk,
            sockets,
            mark,
            undo,
        })
    }

    /// A daemon that keeps everything here.
    pub(crate) fn daemon(&self, programs: &Programs) -> DaemonOptions {
        DaemonOptions {
            binary: programs.rootstock.clone(),
            directory: self.sockets.clone(),
            data: self.bulk.join("data"),
            config: String::new(),
            boot: None,
            namespace: None,
        }
    }

    /// Removes them now.
    ///
    /// # Errors
    /// When something stays.
    pub(crate) fn remove(self) -> Result<()> {
        for undo in self.undo {
            undo.now()?;
        }
        for path in [self.bulk, self.sockets] {
            ensure!(!path.exists(), "{} is still there", path.display());
        }
        Ok(())
    }
}
