//! Says in one sentence what is missing where etcd-client cannot be built, before its own build fails at length.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
    process::Command,
};

/// Needs what etcd's own files need: those of `google/protobuf` are a package of their own in Debian.
const PROBE: &str = r#"
    syntax = "proto3";
    import "google/protobuf/descriptor.proto";
    import "google/protobuf/struct.proto";
    message Probe { google.protobuf.FileOptions options = 1; google.protobuf.Value value = 2; }
"#;

fn main() {
    for variable in ["PROTOC", "PROTOC_INCLUDE"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let missing = match probe() {
        Ok(true) => return,
        Ok(false) => "protoc is there without its include files (google/protobuf/*.proto), or does not work".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => "protoc is not there".to_owned(),
        Err(error) => format!("protoc cannot be run: {error}"),
    };
    println!(
        "cargo::error=etcd's client is generated from its protocol by protoc, and {missing}. \
         Debian: apt-get install protobuf-compiler libprotobuf-dev; macOS: brew install protobuf; \
         others: https://github.com/protocolbuffers/protobuf/releases, with PROTOC and PROTOC_INCLUDE for its places"
    );
}

/// Returns true if protoc, as etcd-client finds it, generates from a file that imports the usual ones.
fn probe() -> io::Result<bool> {
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(folder.join("probe.proto"), PROBE)?;
    let protoc = env::var_os("PROTOC").unwrap_or_else(|| OsString::from("protoc"));
    let mut command = Command::new(protoc);
    command
        .arg("-I")
        .arg(&folder)
        .args(env::var_os("PROTOC_INCLUDE").iter().flat_map(|include| ["-I".into(), include.clone()]));
    let output = command.arg("-o").arg(folder.join("probe")).arg("probe.proto").output()?;
    Ok(output.status.success())
}
