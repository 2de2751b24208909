//! The files of `deploy` for containers: their configurations are accepted, and what is rendered is up to date. `make deploy-test`
//! has the tests on a real API server and a real engine.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use leasehold_end_to_end::{Ended, Program, paths};
use leasehold_scenarios::real::Authority;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Files of manifests, and of values that they are rendered from.
const WORKLOADS: [&str; 2] = ["daemonset", "deployment"];

fn read(path: &str) -> String {
    fs::read_to_string(paths::workspace().join(path)).unwrap()
}

/// The configuration in the ConfigMap of a file of manifests, which is the only block under this key.
fn configuration(manifests: &str) -> String {
    let (_, rest) = manifests.split_once("  services.yaml: |\n").unwrap();
    let lines: Vec<_> = rest.lines().map_while(|line| line.strip_prefix("    ")).collect();
    assert!(lines.len() > 10, "{rest}");
    lines.join("\n")
}

/// Runs `leasehold check --offline` with the components of the tests, and with Secrets in place of those of a cluster.
async fn check(configuration: &str, variables: &[(&str, &str)]) -> Ended {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("shop");
    let (authority, pair) = (authority.certificate(), authority.server());
    for (file, content) in [
        ("etcd-password/password", "secret"),
        ("etcd-tls/ca.crt", &authority),
        ("etcd-tls/tls.crt", &pair.certificate),
        ("etcd-tls/tls.key", &pair.key),
        ("greeter-tls/tls.crt", &pair.certificate),
        ("greeter-tls/tls.key", &pair.key),
    ] {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let components = paths::component("greeter").parent().unwrap().display().to_string();
    let moved = configuration
        .replace("component: /usr/share/doc/leasehold/examples/", &format!("component: {components}/"))
        .replace("component: /components/", &format!("component: {components}/"))
        .replace("/run/secrets", &folder.path().display().to_string());
    let file = folder.path().join("services.yaml");
    fs::write(&file, moved).unwrap();
    let arguments = ["check", "--offline", file.to_str().unwrap()];
    Program::spawn_with(&paths::leasehold(), arguments, folder.path(), variables).ends().await
}

#[tokio::test]
async fn the_host_accepts_the_configuration_of_each_manifest() {
    for workload in WORKLOADS {
        let configuration = configuration(&read(&format!("deploy/kubernetes/manifests/{workload}.yaml")));
        let accepted = check(&configuration, &[("POD_IP", "10.0.0.7")]).await;
        assert!(accepted.code == Some(0) && accepted.wrote("over wasi:http"), "{workload}: {accepted:?}");
        let without_address = check(&configuration, &[]).await;
        assert!(without_address.code == Some(64) && without_address.wrote("POD_IP"), "{workload}: {without_address:?}");
        let misspelt = check(&configuration.replace("advertise", "advertize"), &[("POD_IP", "10.0.0.7")]).await;
        assert!(misspelt.code == Some(64) && misspelt.wrote("advertize"), "{workload}: {misspelt:?}");
    }
}

#[tokio::test]
async fn the_host_accepts_the_configuration_of_the_nomad_job() {
    let configuration =
        read("deploy/nomad/services.yaml").replace("/secrets/etcd-password", "/run/secrets/etcd-password/password");
    let accepted = check(&configuration, &[("NOMAD_HOST_ADDR_greeter", "10.0.0.7:23456")]).await;
    assert!(accepted.code == Some(0) && accepted.wrote("over wasi:http"), "{accepted:?}");
    let without_address = check(&configuration, &[]).await;
    assert!(
        without_address.code == Some(64) && without_address.wrote("NOMAD_HOST_ADDR_greeter"),
        "{without_address:?}"
    );
}

/// Files under a folder of the workspace, by their paths from its root.
fn files(folder: &str) -> Vec<PathBuf> {
    let root = paths::workspace();
    let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let walked = entries.flat_map(|path| {
        let path = path.strip_prefix(&root).unwrap().to_owned();
        if root.join(&path).is_dir() { files(path.to_str().unwrap()) } else { vec![path] }
    });
    walked.collect()
}

#[test]
fn the_manifests_are_rendered_from_the_present_chart() {
    for workload in WORKLOADS {
        let mut sources = files("deploy/kubernetes/chart");
        sources.push(PathBuf::from(format!("deploy/kubernetes/values/{workload}.yaml")));
        sources.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
        let mut digest = Sha256::new();
        for path in sources {
            let content = fs::read(paths::workspace().join(&path)).unwrap();
            digest.update([format!("{}\n", path.display()).as_bytes(), &content, b"\n"].concat());
        }
        let line = format!("# sha256 of both: {:x}\n", digest.finalize());
        let manifests = read(&format!("deploy/kubernetes/manifests/{workload}.yaml"));
        assert!(manifests.contains(&line), "{workload}.yaml is not up to date: run `make manifests`");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_image_has_what_the_binary_needs_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("image");
    let status = Command::new("sh")
        .arg("scripts/image.sh")
        .current_dir(paths::workspace())
        .env("BINARY", paths::leasehold())
        .env("IMAGE", &image)
        .status();
    assert!(status.unwrap().success());
    let root = image.join("root");
    let there = |path: &str| assert!(root.join(path).is_file(), "{path}");
    assert!(image.join("Containerfile").is_file());
    there("usr/bin/leasehold");
    there("etc/ssl/certs/ca-certificates.crt");
    there("etc/passwd");
    there("usr/share/doc/leasehold/examples/greeter.wasm");
    assert_eq!(
        Command::new("sh").args(["-c", "ls bin/sh usr/bin/sh 2>/dev/null"]).current_dir(&root).output().unwrap().stdout,
        b""
    );
    for writable in ["run/leasehold", "var/cache/leasehold"] {
        assert_eq!(fs::metadata(root.join(writable)).unwrap().permissions().mode() & 0o7777, 0o1777, "{writable}");
    }
    // The binary runs with the libraries of the image alone.
    let found = Command::new("ldd").arg(root.join("usr/bin/leasehold")).output().unwrap();
    for library in String::from_utf8_lossy(&found.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        there(library.trim_start_matches('/').trim_end_matches(':'));
    }
}
