//! Installing: the version, completions, man pages, and the files that `make install` puts in place.

use std::{fs, path::Path, process::Command};

use leasehold_end_to_end::{Ended, Program, paths};
use tempfile::TempDir;

async fn leasehold<const N: usize>(arguments: [&str; N]) -> Ended {
    let folder = TempDir::new().unwrap();
    Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await
}

/// Commands that `--help` lists.
async fn commands() -> Vec<String> {
    let help = leasehold(["--help"]).await.stdout;
    let (_, listed) = help.split_once("Commands:\n").unwrap();
    // A long line goes on in the next one, further to the right.
    let lines = listed.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_version_names_everything_that_compiled_components_depend_on() {
    let ended = leasehold(["--version"]).await;
    assert_eq!(ended.code, Some(0));
    for part in ["leasehold 0.1.0\n", "commit ", "target ", "wasmtime   48.", "leasehold:registry@0.1.0 and @0.2.0"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    assert_eq!(leasehold(["-V"]).await.stdout, "leasehold 0.1.0\n");
}

#[tokio::test]
async fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = leasehold(["completions", shell]).await;
        assert_eq!(ended.code, Some(0), "{shell}: {ended:?}");
        for command in commands().await {
            assert!(ended.stdout.contains(&command), "{shell}: {command}");
        }
    }
    let ended = leasehold(["completions", "tcsh"]).await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.stderr.contains("bash") && ended.stderr.contains("fish"), "{}", ended.stderr);
}

#[tokio::test]
async fn bash_takes_its_completions() {
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("completions");
    fs::write(&script, leasehold(["completions", "bash"]).await.stdout).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
}

#[tokio::test]
async fn every_command_has_a_man_page() {
    let folder = TempDir::new().unwrap();
    let ended = leasehold(["man", &folder.path().display().to_string()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(page("leasehold.1").contains(".TH leasehold"));
    for command in commands().await.iter().filter(|command| *command != "help") {
        assert!(page(&format!("leasehold-{command}.1")).contains(".SH SYNOPSIS"), "{command}");
    }
}

#[tokio::test]
async fn a_folder_for_man_pages_is_made_or_refused_in_one_sentence() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("share/man");
    assert_eq!(leasehold(["man", &missing.display().to_string()]).await.code, Some(0));
    assert!(missing.join("leasehold.1").is_file());
    let ended = leasehold(["man", "/dev/null/at/all"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("leasehold: cannot write man pages to /dev/null/at/all: "), "{}", ended.stderr);
}

/// Runs `scripts/install.sh` into a staging folder.
fn install(stage: &Path) {
    let status = Command::new("sh")
        .arg("scripts/install.sh")
        .current_dir(paths::workspace())
        .env("BINARY", paths::leasehold())
        .env("DESTDIR", stage)
        .env("PREFIX", "/usr")
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn make_install_puts_every_file_in_place() {
    let stage = TempDir::new().unwrap();
    install(stage.path());
    let there = |path: &str| assert!(stage.path().join(path).is_file(), "{path}");
    there("usr/bin/leasehold");
    there("usr/share/man/man1/leasehold-run.1");
    there("usr/share/bash-completion/completions/leasehold");
    there("usr/share/zsh/site-functions/_leasehold");
    there("usr/share/fish/vendor_completions.d/leasehold.fish");
    there("usr/share/doc/leasehold/examples/greeter.wasm");
    if cfg!(target_os = "linux") {
        there("usr/lib/systemd/system/leasehold.service");
        there("usr/lib/systemd/system/leasehold@.service");
        there("usr/lib/sysusers.d/leasehold.conf");
    }
}

#[tokio::test]
async fn the_installed_example_runs_as_it_is() {
    let stage = TempDir::new().unwrap();
    install(stage.path());
    let example = stage.path().join("usr/share/doc/leasehold/examples/services.yaml");
    let ended = leasehold(["check", "--offline", &example.display().to_string()]).await;
    assert!(ended.code == Some(0) && ended.stdout.contains("over wasi:http"), "{ended:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_units_verify_and_are_confined() {
    let stage = TempDir::new().unwrap();
    install(stage.path());
    let analyze = |arguments: &[&str], unit: &Path| {
        let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
        output.expect("systemd-analyze is needed: apt-get install systemd")
    };
    for name in ["leasehold.service", "leasehold@.service"] {
        let unit = stage.path().join("usr/lib/systemd/system").join(name);
        let text = fs::read_to_string(&unit).unwrap();
        assert!(text.contains("ExecStart=/usr/bin/leasehold run "), "{text}");
        // The binary stands in the staging folder, and so do the man pages.
        let staged = text.replace("/usr/bin/leasehold", &stage.path().join("usr/bin/leasehold").display().to_string());
        let without_documentation = staged.lines().filter(|line| !line.starts_with("Documentation="));
        fs::write(&unit, without_documentation.collect::<Vec<_>>().join("\n") + "\n").unwrap();
        let verified = analyze(&["verify"], &unit);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && said.is_empty(), "{name}: {said}");
        // 3.0, in tenths.
        let rated = analyze(&["security", "--offline=true", "--threshold=30", "--no-pager"], &unit);
        assert!(rated.status.success(), "{name}: {}", String::from_utf8_lossy(&rated.stdout));
    }
}
