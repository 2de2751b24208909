//! Layouts: `explain` prints exactly the keys and values that etcd then holds, byte for byte.

use std::{fs, net::TcpListener, path::Path, process::Output};

use leasehold_end_to_end::{
    Host,
    config::{config, endpoint, greeter, plain, with},
    paths,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

async fn leasehold(arguments: &[&str]) -> Output {
    Command::new(paths::leasehold()).args(arguments).output().await.unwrap()
}

fn written(folder: &Path, config: &Value) -> String {
    let file = folder.join("services.yaml");
    fs::write(&file, config.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn layouts_explain_prints_exactly_what_etcd_holds() {
    let world = World::real().await;
    let folder = TempDir::new().unwrap();
    let all = json!([
        "seed", "kratos", "go-zero", "kitex", "hertz", "go-micro", { "name": "rpcx", "prefix": "/prod/rpcx" },
        { "key": "/own/{name}/{addr}", "value": r#"{"at":"{addr}","w":"{weight:number}"}"# },
    ]);
    let listen = |port: u16| format!("127.0.0.1:{port}");
    let everywhere = with(
        plain("everywhere"),
        json!({ "listen": listen(free_port()), "layout": all, "version": "v1", "metadata": { "zone": "b" } }),
    );
    let alone = with(plain("alone"), json!({ "listen": listen(free_port()), "layout": "goframe" }));
    let itself = with(greeter(), json!({ "listen": listen(free_port()), "layout": ["etcd-naming", "grpc-todolist"] }));
    let config = config(&world, [everywhere, alone, itself]);

    let file = written(folder.path(), &config);
    let explained = leasehold(&["explain", &file, "--json"]).await;
    assert!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(rows.len(), 11);
    let text = leasehold(&["explain", &file]).await;
    assert!(
        String::from_utf8(text.stdout)
            .unwrap()
            .contains("alone is registered by the host\n  goframe\n    key    /service/")
    );

    let host = Host::ready(&config).await;
    for row in &rows {
        if row["register"] == "component" && row["layout"] == "grpc-todolist" {
            continue; // The component declares its own version, which is part of the key in this layout.
        }
        let key = row["key"].as_str().unwrap();
        let found = world.get(key).await.unwrap_or_else(|| panic!("{key} is not there"));
        assert_eq!(found.value, row["value"].as_str().unwrap(), "{key}");
        assert_ne!(found.lease, 0, "{key}");
    }
    let etcd = endpoint(&world);
    for layout in ["kratos", "kitex", "go-micro", "goframe"] {
        let listed = leasehold(&["ls", "--json", "--etcd", &etcd, "--layout", layout]).await;
        let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed.len(), 1, "{layout}: {listed:?}");
    }
    let moved = leasehold(&["ls", "--json", "--etcd", &etcd, "--layout", "rpcx", "--prefix", "/prod/rpcx"]).await;
    let moved: Vec<Value> = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(moved[0]["name"], "everywhere");

    assert_eq!(host.stop().await.code, Some(0));
    for row in &rows {
        assert_eq!(world.get(row["key"].as_str().unwrap()).await, None);
    }
}

#[tokio::test]
async fn layouts_a_key_among_those_of_another_registry_is_explained_and_refused() {
    let world = World::real().await;
    let folder = TempDir::new().unwrap();
    let file =
        written(folder.path(), &config(&world, [with(plain("microservices"), json!({ "listen": "127.0.0.1:1" }))]));
    let explained = leasehold(&["explain", &file]).await;
    assert_eq!(explained.status.code(), Some(64));
    let said = String::from_utf8(explained.stderr).unwrap();
    assert!(said.contains("/microservices/ is where kratos keeps its keys"), "{said}");
    let wrong = leasehold(&["ls", "--layout", "consul"]).await;
    assert_eq!(wrong.status.code(), Some(64));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("--layout: layout must be one of: seed"));
}
