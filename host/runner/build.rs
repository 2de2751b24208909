//! Facts of the build that `leasehold --version` prints.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A file that is added to an embedded folder.
    println!("cargo::rerun-if-changed=templates");
    println!("cargo::rerun-if-changed=lib");
    println!("cargo::rerun-if-env-changed=LEASEHOLD_COMMIT");
    // Set by `make install` and by packaging; a plain `cargo build` does not depend on the state of the repository.
    let commit = env::var("LEASEHOLD_COMMIT").unwrap_or_else(|_| "not recorded".to_owned());
    println!("cargo::rustc-env=LEASEHOLD_COMMIT={commit}");
    println!("cargo::rustc-env=LEASEHOLD_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=LEASEHOLD_WASMTIME={}", locked("wasmtime").unwrap_or_else(|| "48".to_owned()));
}

/// Version of a package in the lock file of the workspace, or of the unpacked crate.
fn locked(package: &str) -> Option<String> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let lock = manifest.ancestors().map(|folder| folder.join("Cargo.lock")).find(|path| path.exists())?;
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(lock).ok()?;
    let (_, entry) = text.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    entry.split('"').next().map(str::to_owned)
}
