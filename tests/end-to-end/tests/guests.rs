//! The commands for authors of components: `new`, `wit` and `componentize`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use leasehold_end_to_end::{
    Ended, Program,
    config::free_address,
    paths,
    template::{Guest, meets_expectations},
};
use leasehold_scenarios::world::World;
use serde_json::Value;
use tempfile::TempDir;

/// Runs the binary in this folder.
async fn leasehold(folder: &Path, arguments: &[&str]) -> Ended {
    let in_folder = ["-c", "cd \"$0\" && exec \"$@\""];
    let (folder, binary) = (folder.display().to_string(), paths::leasehold().display().to_string());
    let arguments = in_folder.into_iter().chain([&*folder, &*binary]).chain(arguments.iter().copied());
    Program::spawn(Path::new("/bin/sh"), arguments, Path::new(&folder)).ends().await
}

/// Asserts that the process ended with 64 and one sentence, which has this part.
#[track_caller]
fn refused(ended: &Ended, part: &str) {
    assert_eq!(ended.code, Some(64), "{part}: {ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{part}: {ended:?}");
    assert!(ended.stderr.contains(part), "{part}: {ended:?}");
}

/// Files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => found.extend(files(&path).iter().map(|below| format!("{name}/{below}"))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn wit_without_a_folder_prints_the_contract() {
    let folder = TempDir::new().unwrap();
    let ended = leasehold(folder.path(), &["wit"]).await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.stdout, fs::read_to_string(paths::workspace().join("wit/0.2/registry.wit")).unwrap());
    let former = leasehold(folder.path(), &["wit", "--contract", "0.1"]).await;
    assert_eq!(former.stdout, fs::read_to_string(paths::workspace().join("wit/0.1/registry.wit")).unwrap());
    let asynchronous = leasehold(folder.path(), &["wit", "--http", "0.3"]).await;
    assert!(asynchronous.stdout.starts_with(&ended.stdout), "{asynchronous:?}");
    assert!(asynchronous.stdout.contains("\ninterface async-discovery {") && !ended.stdout.contains("async func("));
    refused(&leasehold(folder.path(), &["wit", "--contract", "0.3"]).await, "0.3");
    assert!(files(folder.path()).is_empty());
}

#[tokio::test]
async fn wit_writes_the_packages_and_leaves_the_authors_files_alone() {
    let folder = TempDir::new().unwrap();
    let world = folder.path().join("wit/world.wit");
    let io = folder.path().join("wit/deps/wasi-io/package.wit");
    assert_eq!(leasehold(folder.path(), &["wit", "wit"]).await.code, Some(0));
    let expected = [
        "deps/leasehold-registry/registry.wit",
        "deps/wasi-clocks/package.wit",
        "deps/wasi-config/package.wit",
        "deps/wasi-http/package.wit",
        "deps/wasi-io/package.wit",
        "world.wit",
    ];
    assert_eq!(files(&folder.path().join("wit")), expected);

    fs::write(&world, "package acme:own;\n").unwrap();
    let again = leasehold(folder.path(), &["wit", "wit"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        again.stdout.lines().count() == 5 && again.stdout.lines().all(|line| line.starts_with("unchanged  wit/deps"))
    );
    assert_eq!(fs::read_to_string(&world).unwrap(), "package acme:own;\n");

    fs::write(&io, "changed").unwrap();
    fs::remove_file(folder.path().join("wit/deps/wasi-http/package.wit")).unwrap();
    refused(&leasehold(folder.path(), &["wit", "wit"]).await, "wit/deps/wasi-io/package.wit would be overwritten");
    assert_eq!(fs::read_to_string(&io).unwrap(), "changed");
    assert_eq!(files(&folder.path().join("wit")).len(), 5, "a refusal writes nothing");

    let forced = leasehold(folder.path(), &["wit", "wit", "--force", "--json"]).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    let forced: Value = serde_json::from_str(&forced.stdout).unwrap();
    assert_eq!(forced.as_array().unwrap().iter().filter(|file| file["written"] == true).count(), 2, "{forced}");
    assert!(fs::read_to_string(&io).unwrap().starts_with("package wasi:io@0.2"));
}

#[tokio::test]
async fn wit_of_another_version_of_http_has_its_packages() {
    let folder = TempDir::new().unwrap();
    assert_eq!(leasehold(folder.path(), &["wit", ".", "--http", "0.3"]).await.code, Some(0));
    let http = fs::read_to_string(folder.path().join("deps/wasi-http/package.wit")).unwrap();
    assert!(http.starts_with("package wasi:http@0.3"), "{http}");
    assert!(!folder.path().join("deps/wasi-io").exists());
}

#[tokio::test]
async fn wit_checks_the_versions_of_a_component() {
    let folder = TempDir::new().unwrap();
    let greeter = paths::component("greeter").display().to_string();
    let ended = leasehold(folder.path(), &["wit", "--check", &greeter]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in [
        "served   leasehold:registry 0.1.0; the host has 0.1 and 0.2\n",
        "exports lifecycle\n",
        "exports incoming-handler\n",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }

    let other = folder.path().join("other.wasm");
    fs::write(&other, importing(&["wasi:io/streams@0.3.0", "wasi:nn/graph@0.2.0", "wasi:clocks/wall-clock@0.2.3"]))
        .unwrap();
    let ended = leasehold(folder.path(), &["wit", "--check", "other.wasm"]).await;
    refused(
        &ended,
        "2 interfaces are missing in this host, the first: wasi:io/streams@0.3.0; this host has wasi:io 0.2",
    );
    assert!(ended.stdout.contains("missing  wasi:io 0.3.0; the host has 0.2\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("missing  wasi:nn 0.2.0; the host has nothing\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("served   wasi:clocks 0.2.3; the host has 0.2 and 0.3\n"), "{}", ended.stdout);
    let ended = leasehold(folder.path(), &["wit", "--check", "other.wasm", "--json"]).await;
    assert_eq!(ended.code, Some(64));
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["complete"], &report["interfaces"][0]["host"][0]), (&false.into(), &"0.2".into()), "{report}");
}

/// A component that imports `f` of each of these interfaces.
fn importing(interfaces: &[&str]) -> Vec<u8> {
    let section = |id: u8, bytes: &[u8]| [&[id, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    component.extend(section(7, b"\x01\x42\x02\x01\x40\x00\x01\x00\x04\x00\x01f\x01\x00"));
    for interface in interfaces {
        let import = [&[1, 0, u8::try_from(interface.len()).unwrap()], interface.as_bytes(), &[5, 0]].concat();
        component.extend(section(10, &import));
    }
    component
}

#[tokio::test]
async fn a_file_that_componentize_cannot_use_is_one_sentence_and_64() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    write("text.wasm", b"hello");
    write("core.wasm", b"\0asm\x01\0\0\0");
    write("broken.wasm", b"\0asm\x01\0\0\0\x01\xff");
    write("component.wasm", &importing(&[]));
    write("main.wasm", b"\0asm\x01\0\0\0\x05\x03\x01\0\x01\x07\x0a\x01\x06_start\x02\0");
    write("with-wit.wasm", b"\0asm\x01\0\0\0\x00\x11\x10component-type:x");
    for (arguments, part) in [
        (&["missing.wasm"][..], "cannot read missing.wasm: No such file"),
        (&["text.wasm"], "text.wasm: not WebAssembly"),
        (&["broken.wasm"], "broken.wasm: not a valid module: "),
        (&["component.wasm"], "component.wasm: a component already"),
        (
            &["core.wasm"],
            "core.wasm: no WIT is in it, which says what it imports and exports; name the folder of its WIT",
        ),
        (
            &["main.wasm", "--wit", "wit"],
            "main.wasm: it has a main that runs, and a service is a library; build it with -bui",
        ),
        (&["with-wit.wasm", "--wit", "wit"], "with-wit.wasm: it has WIT in it already; leave --wit out"),
        (&["core.wasm", "--wit", "nowhere"], "--wit nowhere: "),
    ] {
        let arguments: Vec<_> = ["componentize"].iter().chain(arguments).copied().collect();
        refused(&leasehold(folder.path(), &arguments).await, part);
    }
    assert_eq!(files(folder.path()).len(), 6);
}

#[tokio::test]
async fn a_module_without_an_export_of_its_world_names_the_export() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("core.wasm"), b"\0asm\x01\0\0\0").unwrap();
    assert_eq!(leasehold(folder.path(), &["wit", "wit"]).await.code, Some(0));
    let ended = leasehold(folder.path(), &["componentize", "core.wasm", "--wit", "wit"]).await;
    refused(&ended, "core.wasm: ");
    assert!(ended.stderr.contains("handle") || ended.stderr.contains("lifecycle"), "{ended:?}");
    fs::write(folder.path().join("wit/world.wit"), "package acme:empty;\nworld empty {}\n").unwrap();
    let ended = leasehold(folder.path(), &["componentize", "core.wasm", "--wit", "wit"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let made = fs::read(folder.path().join("core.component.wasm")).unwrap();
    assert!(made.starts_with(b"\0asm\x0d\0\x01\0"), "{:?}", &made[..8]);
}

#[tokio::test]
async fn new_lists_its_languages_and_refuses_names_and_folders() {
    let folder = TempDir::new().unwrap();
    let list = leasehold(folder.path(), &["new", "--list"]).await;
    let languages: Vec<_> = list.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(languages, ["rust", "go", "c", "js", "ts", "python"]);
    for name in ["User", "us/er", "..", "user_1", "-x", "9lives"] {
        refused(&leasehold(folder.path(), &["new", "--lang", "c", "--", name]).await, "lower-case letters");
    }
    refused(&leasehold(folder.path(), &["new", "user"]).await, "--lang");
    refused(&leasehold(folder.path(), &["new", "user", "--lang", "cobol"]).await, "cobol");
    for language in ["go", "c", "js", "ts", "python"] {
        let sentence = format!("--grpc: there is no such template for {language}; there is one for rust\n");
        refused(&leasehold(folder.path(), &["new", "user", "--lang", language, "--grpc"]).await, &sentence);
    }
    for (arguments, sentence) in [
        (&["go", "--http", "0.3"][..], "--http 0.3: there is no such template for go; it has 0.2\n"),
        (&["python", "--http", "0.2"], "--http 0.2: there is no such template for python; it has 0.3\n"),
        (&["rust", "--grpc", "--http", "0.2"], "--http 0.2: there is no such template for rust in gRPC; it has 0.3\n"),
    ] {
        let arguments: Vec<_> = ["new", "user", "--lang"].iter().chain(arguments).copied().collect();
        refused(&leasehold(folder.path(), &arguments).await, sentence);
    }
    assert!(list.stdout.starts_with("rust    wasi:http 0.2 or 0.3; --grpc  needs rustup"), "{list:?}");
    assert!(files(folder.path()).is_empty());

    fs::create_dir(folder.path().join("user")).unwrap();
    assert_eq!(leasehold(folder.path(), &["new", "user", "--lang", "c"]).await.code, Some(0), "an empty folder");
    let before = files(folder.path());
    refused(
        &leasehold(folder.path(), &["new", "user", "--lang", "go"]).await,
        "user exists and is not an empty folder",
    );
    assert_eq!(files(folder.path()), before);
}

#[tokio::test]
async fn every_new_service_has_a_valid_configuration() {
    let folder = TempDir::new().unwrap();
    let plain = ["rust", "go", "c", "js", "ts", "python"].map(|language| (language, language, &[][..]));
    let more: [(_, _, &[&str]); 2] = [("rust-grpc", "rust", &["--grpc"]), ("rust-p3", "rust", &["--http", "0.3"])];
    for (name, language, options) in plain.into_iter().chain(more) {
        let name = format!("hello-{name}");
        let arguments: Vec<_> = ["new", &name, "--lang", language].iter().chain(options).copied().collect();
        let written = leasehold(folder.path(), &arguments).await;
        assert_eq!(written.code, Some(0), "{written:?}");
        let made = folder.path().join(&name);
        // The component stands in for the one that would be built.
        fs::copy(paths::component("greeter"), made.join(format!("{name}.wasm"))).unwrap();
        let checked = leasehold(&made, &["check", "--offline", "services.yaml"]).await;
        assert_eq!(checked.code, Some(0), "{name}: {checked:?}");
    }
}

#[tokio::test]
async fn a_new_service_in_rust_meets_the_expectations() {
    new_in_rust_meets_the_expectations("hello-rust", &[]).await;
}

#[tokio::test]
async fn a_new_service_in_rust_for_wasi_0_3_meets_the_expectations() {
    new_in_rust_meets_the_expectations("hello-rust-p3", &["--http", "0.3"]).await;
}

async fn new_in_rust_meets_the_expectations(name: &str, options: &[&str]) {
    let folder = TempDir::new().unwrap();
    let arguments: Vec<_> = ["new", name, "--lang", "rust"].iter().chain(options).copied().collect();
    let written = leasehold(folder.path(), &arguments).await;
    assert_eq!(written.code, Some(0), "{written:?}");
    let folder = folder.path().join(name);
    let component = folder.join(name).with_extension("wasm");
    let built = Command::new("sh")
        .args(["scripts/guests.sh", "folder"])
        .args([&folder, &component])
        .current_dir(paths::workspace())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let tested = tested(&folder);
    assert!(tested.status.success(), "{tested:?}");
    let checks = String::from_utf8_lossy(&tested.stdout).lines().filter(|line| line.starts_with("ok: ")).count();
    assert_eq!(checks, 5, "{tested:?}");
    let guest = Guest { name: name.to_owned(), language: "rust".to_owned(), component };
    let cache = paths::cache();
    meets_expectations(&World::real().await, &[guest], cache.to_str().unwrap()).await;
}

/// Runs the test of a new service, which listens at a free address for it.
fn tested(folder: &Path) -> Output {
    let services = folder.join("services.yaml");
    let text = fs::read_to_string(&services).unwrap();
    fs::write(&services, text.replace("127.0.0.1:10002", &free_address())).unwrap();
    Command::new("make")
        .args(["--no-print-directory", "-o", "build", "test"])
        .current_dir(folder)
        .env("LEASEHOLD", paths::leasehold())
        .env("XDG_CACHE_HOME", paths::cache())
        .output()
        .unwrap()
}

#[tokio::test]
async fn the_test_of_a_new_service_fails_where_the_service_does() {
    for (component, sentence) in [
        ("greeter", "test: GET /: expected \"200 hello from user\", got \"200 hello\"\n"),
        ("plain", "test: expected a running service, the host ended with 64\n"),
    ] {
        let folder = TempDir::new().unwrap();
        assert_eq!(leasehold(folder.path(), &["new", "user", "--lang", "rust"]).await.code, Some(0));
        let made = folder.path().join("user");
        fs::copy(paths::component(component), made.join("user.wasm")).unwrap();
        let services = made.join("services.yaml");
        let text = fs::read_to_string(&services).unwrap();
        fs::write(&services, text.replace("    listen:", "    config: { name: user }\n    listen:")).unwrap();
        let tested = tested(&made);
        let stderr = String::from_utf8_lossy(&tested.stderr);
        assert!(!tested.status.success() && stderr.contains(sentence), "{component}: {tested:?}");
    }
}
