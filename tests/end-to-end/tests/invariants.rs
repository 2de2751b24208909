//! The invariants of ARCHITECTURE.md, as a plain scan of the sources.

use std::{collections::BTreeMap, fs, path::Path};

use leasehold_end_to_end::{
    paths,
    sources::{Source, has_word, sources},
};

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

/// Clippy holds that tasks are spawned through trackers (`host/clippy.toml`); this test, that no tracker is a formality.
#[test]
fn no_tracker_is_made_for_one_task_and_thrown_away() {
    let thrown_away = |line: &str| line.contains("TaskTracker::new().spawn");
    for source in sources("host") {
        let lines: Vec<_> = source.code().filter(|(_, line)| thrown_away(line)).collect();
        assert!(lines.is_empty(), "{}: {lines:?}", source.path);
    }
}

#[test]
fn the_texts_of_etcd_are_matched_in_one_file() {
    let is_text = |line: &str| ["message", "reason"].iter().any(|word| has_word(line, word));
    let matches = |line: &str| is_text(line) && (line.contains("contains(\"") || line.contains("starts_with(\"etcd"));
    let mut matching = sources("host/registrar/src");
    matching.retain(|source| source.path.contains("/etcd") && source.code().any(|(_, line)| matches(line)));
    let paths: Vec<_> = matching.iter().map(|source| source.path.as_str()).collect();
    assert_eq!(paths, ["host/registrar/src/etcd/error.rs"]);
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
fn the_lease_core_reads_no_clock_and_waits_for_nothing() {
    let core = "host/registrar/src/lease/core/";
    let mut all = sources(core);
    all.retain(|source| !source.path.starts_with(&format!("{core}tests/")));
    assert!(all.len() > 5);
    for source in all {
        let impure =
            ["async", "await", "elapsed", "fs", "Etcd", "Instant::now", "mpsc", "spawn", "SystemTime", "thread"];
        assert_eq!(source.naming(&impure), Vec::<String>::new());
    }
}

#[test]
fn error_text_for_a_component_is_made_in_one_file() {
    let all = sources("host/plugin/src");
    let with = |part: &str| -> Vec<&str> {
        let has = |source: &&Source| source.code().any(|(_, line)| line.contains(part));
        all.iter().filter(has).map(|source| source.path.as_str()).collect()
    };
    assert_eq!(with("#[error("), ["host/plugin/src/error.rs"]);
    assert_eq!(with("for types::Error"), ["host/plugin/src/convert.rs"]);
    assert_eq!(with("types::Error::"), Vec::<&str>::new());
}

/// A package of the plugin has its WIT as files, also where a checkout has no symbolic links.
#[test]
fn the_plugin_has_the_wit_of_the_workspace_and_no_other() {
    fn texts(folder: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| {
                assert!(!path.is_symlink(), "{path:?}");
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                match path.is_dir() {
                    true => texts(&path).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)).collect(),
                    false => BTreeMap::from([(name, fs::read_to_string(&path).unwrap())]),
                }
            })
            .collect()
    }
    let packaged = paths::workspace().join("host/plugin/wit");
    assert!(!packaged.is_symlink());
    let packaged = texts(&packaged);
    assert!(packaged.len() > 2);
    assert!(packaged == texts(&paths::workspace().join("wit")), "copy wit to host/plugin/wit");
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
}
