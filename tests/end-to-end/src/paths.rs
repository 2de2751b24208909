//! Paths of the build's results.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The binary under test: `$LEASEHOLD_BIN`, or the result of `make build`.
///
/// # Panics
/// When it has not been built.
pub fn leasehold() -> PathBuf {
    let named = env::var_os("LEASEHOLD_BIN").filter(|named| !named.is_empty());
    built(named.map_or_else(|| target().join("release/leasehold"), PathBuf::from), "make build")
}

/// An example of the workspace, from beside the binary.
///
/// # Panics
/// When it has not been built.
pub fn example(name: &str) -> PathBuf {
    let folder = leasehold().parent().expect("a file stands in a folder").join("examples");
    built(folder.join(name), "make examples")
}

/// A component.
///
/// # Panics
/// When it has not been built.
pub fn component(name: &str) -> PathBuf {
    built(target().join("components").join(name).with_extension("wasm"), "make guests")
}

/// A file of the clients in other languages: a program, or one of its inputs.
///
/// # Panics
/// When it has not been built.
pub fn client(name: &str) -> PathBuf {
    built(target().join("clients").join(name), "make clients")
}

/// Compile cache of the tests' hosts, apart from the user's own cache.
pub fn cache() -> PathBuf {
    target().join("end-to-end-cache")
}

/// The token of the admin endpoints under test.
pub const ADMIN_TOKEN: &str = "the-token-of-the-tests";

/// A file with that token.
///
/// # Panics
/// When it cannot be written.
pub fn admin_token() -> PathBuf {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    let write = || {
        fs::create_dir_all(cache()).expect("the build's folder is our own");
        let file = cache().join("admin-token");
        // Other processes of the tests read the same content at any time.
        fs::write(file.with_extension("new"), ADMIN_TOKEN).expect("the build's folder is our own");
        fs::rename(file.with_extension("new"), &file).ok(); // Another process was faster.
        file
    };
    WRITTEN.get_or_init(write).clone()
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the sources are where they were compiled")
}

fn target() -> PathBuf {
    workspace().join("target")
}

fn built(path: PathBuf, how: &str) -> PathBuf {
    assert!(path.is_file(), "{} is not there; build it with `{how}`", path.display());
    path
}
