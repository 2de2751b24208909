//! `leasehold inspect`, and missing imports.

use std::fs;

use leasehold_end_to_end::Ended;
use serde_json::{Value, json};

use crate::command_line::{File, component, leasehold, one_sentence};

/// A component that imports only `f` of an interface.
fn importing(interface: &str) -> Vec<u8> {
    let types = b"\x01\x42\x02\x01\x40\x00\x01\x00\x04\x00\x01f\x01\x00";
    let mut imports = vec![1, 0, u8::try_from(interface.len()).unwrap()];
    imports.extend_from_slice(interface.as_bytes());
    imports.extend_from_slice(&[5, 0]);
    let section = |id: u8, bytes: &[u8]| [&[id, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(7, types), section(10, &imports)].concat()
}

#[tokio::test]
async fn a_missing_import_is_reported_with_its_remedy() {
    let files = File::of("");
    let file = files.beside("lacking.wasm");
    for (interface, cure) in [
        ("acme:things/store@1.0.0", "another component can bring it: `wac plug --plug"),
        ("wasi:nn/graph@0.2.0", "another component can bring it: `wac plug --plug"),
        ("wasi:http/types@0.3.0-rc-2025-09-16", "this host has wasi:http 0.2 and 0.3: build the component for that"),
        (
            "leasehold:registry/registrar@9.0.0",
            "this host has leasehold:registry 0.1 and 0.2: build the component for that",
        ),
    ] {
        fs::write(&file, importing(interface)).unwrap();
        let start = format!("{file}: missing import: {interface}; {cure}");
        one_sentence(&leasehold(["compile", &file]).await, 64, &start);
    }
}

#[tokio::test]
async fn inspect_shows_imports_and_missing_imports() {
    let ended = leasehold(["inspect", &component("greeter")]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for line in [
        "  leasehold:registry/registrar@0.1.0",
        "  wasi:config/store@",
        "served      over wasi:http 0.2",
        "registered  by itself",
        "lifecycle   started and stopped by the host",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
    let facts = |ended: Ended| serde_json::from_str::<Value>(&ended.stdout).unwrap();
    let greeter = facts(leasehold(["inspect", &component("greeter"), "--json"]).await);
    assert_eq!(
        (&greeter["http"], &greeter["lifecycle"], &greeter["missing"]),
        (&json!("0.2"), &json!(true), &json!([]))
    );
    let p3 = facts(leasehold(["inspect", &component("plain-p3"), "--json"]).await);
    assert_eq!((&p3["http"], &p3["lifecycle"], &p3["leasehold"]), (&json!("0.3"), &json!(false), &json!([])));
    let nothing = facts(leasehold(["inspect", &component("nothing"), "--json"]).await);
    assert!(nothing["http"].is_null());
    assert!(nothing["missing"][0].as_str().unwrap().contains("nothing that can be served"), "{nothing}");
    one_sentence(&leasehold(["inspect", "/does/not/exist.wasm"]).await, 64, "cannot read /does/not/exist.wasm");
}
