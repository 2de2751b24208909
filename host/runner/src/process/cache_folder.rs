//! The user's cache folder: what is compiled and what is pulled.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// Bits of a folder's mode that let the group or all users write.
const OTHERS_WRITE: u32 = 0o022;

/// The folder that systemd made for this unit (`CacheDirectory=`), otherwise the user's.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = match std::env::var_os("CACHE_DIRECTORY") {
        // Several are separated by colons; the first is the one for components.
        Some(folders) => std::env::split_paths(&folders).next().filter(|path| path.is_absolute()),
        None => absolute("XDG_CACHE_HOME")
            .or_else(|| {
                let home = absolute("HOME")?;
                Some(home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
            })
            .map(|folder| folder.join("leasehold")),
    };
    folder.context("none of CACHE_DIRECTORY, XDG_CACHE_HOME and HOME is an absolute path")
}

/// Makes the folder if there is none. Entries run as machine code outside of the sandbox, or in the place of a component, so
/// only this user may write there.
pub(crate) fn own(folder: &Path) -> anyhow::Result<()> {
    let owned = || {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let found = fs::metadata(folder)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            bail!("it belongs to another user");
        }
        if found.mode() & OTHERS_WRITE != 0 {
            bail!("others may write there; remove it, and it is made anew");
        }
        Ok(())
    };
    owned().with_context(|| format!("the cache {} is not used", folder.display()))
}
