//! The invariants of ARCHITECTURE.md, as a plain scan of the sources.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use leasehold_end_to_end::sources::{Source, has_word, sources};

/// Asserts that no file under the folder has one of these words, except for the files or folders in `but`.
fn named_nowhere(words: &[&str], under: &str, but: &[&str]) {
    let all = sources(under);
    for may in but {
        assert!(all.iter().any(|source| source.path.starts_with(may)), "{may} is not there any more");
    }
    let named: Vec<_> = all
        .iter()
        .filter(|source| !but.iter().any(|may| source.path.starts_with(may)))
        .flat_map(|source| source.naming(words))
        .collect();
    assert!(named.is_empty(), "{words:?}:\n{}", named.join("\n"));
}

#[test]
fn the_client_of_etcd_is_named_in_one_module() {
    named_nowhere(&["etcd_client"], "host", &["host/registrar/src/etcd/"]);
}

#[test]
fn the_registrar_does_not_use_wasm() {
    named_nowhere(&["wasmtime", "leasehold_wasmtime"], "host/registrar", &[]);
}

#[test]
fn the_plugin_does_not_use_the_runner() {
    named_nowhere(&["hyper", "hyper_util"], "host/plugin", &[]);
}

#[test]
fn tasks_are_spawned_only_through_a_tracker() {
    for host in ["host/registrar/src", "host/plugin/src", "host/runner/src"] {
        for source in sources(host) {
            let spawned: Vec<_> = source.code().filter(|(_, line)| spawns(line)).collect();
            assert!(spawned.is_empty(), "{}: {spawned:?}", source.path);
        }
    }
}

/// True if a line spawns a task without a tracker. A tracker's own `spawn` is a method.
fn spawns(line: &str) -> bool {
    ["spawn(", "spawn_blocking(", "spawn_local("]
        .iter()
        .any(|call| ["tokio::", "task::"].iter().any(|path| line.contains(&format!("{path}{call}"))))
        || (line.trim_start().starts_with("use tokio") && has_word(line, "spawn"))
}

#[test]
fn the_pure_files_do_no_io_and_read_no_clock() {
    let impure =
        ["fs", "tokio", "Instant", "SystemTime", "TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs", "thread"];
    for pure in ["node.rs", "layout/", "weight/mod.rs"] {
        let all = sources("host/registrar/src");
        let pure: Vec<_> =
            all.iter().filter(|source| source.path.starts_with(&format!("host/registrar/src/{pure}"))).collect();
        assert!(!pure.is_empty());
        for source in pure {
            assert_eq!(source.naming(&impure), Vec::<String>::new());
        }
    }
}

#[test]
fn error_text_for_a_component_is_made_in_one_file() {
    let made = |source: &Source| source.code().any(|(_, line)| line.contains("types::Error::"));
    let all = sources("host/plugin/src");
    let makers: Vec<_> = all.iter().filter(|source| made(source)).map(|source| source.path.as_str()).collect();
    assert_eq!(makers, ["host/plugin/src/error.rs"]);
}

#[test]
fn every_file_opens_with_the_sentence_that_says_what_it_is() {
    for under in ["host", "guest-example", "tests"] {
        for source in sources(under) {
            assert!(source.text.starts_with("//! "), "{}", source.path);
        }
    }
}

#[test]
fn a_word_is_not_a_part_of_another() {
    assert!(has_word("use hyper::body;", "hyper"));
    assert!(has_word("use std::{fs, io};", "fs"));
    assert!(!has_word("offset", "fs"));
    assert!(!has_word("hyper_util::rt", "hyper"));
    assert!(spawns("    tokio::spawn(async {"));
    assert!(spawns("    tokio::task::spawn_blocking(f)"));
    assert!(!spawns("    self.tasks.spawn(async {"));
}
