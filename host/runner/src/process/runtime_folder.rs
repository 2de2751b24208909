//! The folders in which hosts put their admin sockets, and in which commands find them.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, test_kill_process};

/// Folder of this system's services, where no other is named.
const SYSTEM: &str = "/run/leasehold";
/// Ending of the name of a socket.
const EXTENSION: &str = "sock";

/// The path of this process's socket: `admin.sock` in the folder that systemd has made for this unit alone; else the number of
/// the process, in a folder that hosts share and that is made here.
pub(crate) fn socket() -> Result<PathBuf, String> {
    if let Some(folder) = folder("RUNTIME_DIRECTORY") {
        return Ok(folder.join("admin").with_extension(EXTENSION));
    }
    let (folder, mode) = match folder("XDG_RUNTIME_DIR") {
        Some(folder) => (folder.join("leasehold"), 0o700),
        None => (PathBuf::from(SYSTEM), 0o755),
    };
    let made = fs::DirBuilder::new().mode(mode).create(&folder);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make the folder {}: {error}", folder.display()))
        }
        _ => {
            remove_stale(&folder);
            Ok(folder.join(std::process::id().to_string()).with_extension(EXTENSION))
        }
    }
}

/// Sockets of hosts that this user or the system runs, in the order of their names.
pub(crate) fn sockets() -> Vec<PathBuf> {
    let user = folder("XDG_RUNTIME_DIR").map(|folder| folder.join("leasehold"));
    let mut found = Vec::new();
    for folder in user.into_iter().chain([SYSTEM.into()]) {
        for path in entries(&folder) {
            // Units of systemd have folders of their own.
            if path.is_dir() { found.extend(entries(&path)) } else { found.push(path) }
        }
    }
    found.retain(|path| is_socket(path));
    found.sort();
    found
}

/// Names of the folders, for an error.
pub(crate) fn shown() -> String {
    match folder("XDG_RUNTIME_DIR") {
        Some(folder) => format!("{}/leasehold and {SYSTEM}", folder.display()),
        None => SYSTEM.to_owned(),
    }
}

/// The first folder of an environment variable.
fn folder(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable)?;
    env::split_paths(&value).next().filter(|folder| folder.is_absolute())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map_or_else(|_| Vec::new(), |entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

fn is_socket(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
        && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Removes the sockets of processes that were killed.
fn remove_stale(folder: &Path) {
    for path in entries(folder).into_iter().filter(|path| is_socket(path)) {
        let pid = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).and_then(Pid::from_raw);
        if pid.is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH)) {
            let _ = fs::remove_file(&path); // Another user's; it leads nowhere.
        }
    }
}
