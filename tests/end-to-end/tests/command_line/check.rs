//! `leasehold check`.

use std::{net::TcpListener, path::Path};

use leasehold_end_to_end::{
    Program,
    config::{config, endpoint, greeter, hostile, plain, service, with},
    paths,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};

use crate::command_line::{File, UNREACHABLE, leasehold, one_sentence};

#[tokio::test]
async fn check_of_many_services_lists_those_with_a_remark() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let mut services: Vec<_> = (0..29).map(|number| plain(&format!("plain-{number}"))).collect();
    services.push(with(plain("taken"), json!({ "listen": taken })));
    let file = File::of(&json!({ "services": services }).to_string());
    let rows = |text: &str| text.lines().filter(|line| line.contains(" over wasi:http 0.2")).count();
    let few = leasehold(["check", "--offline", &file.path()]).await;
    assert!(few.code == Some(0) && few.stdout.starts_with("30 services: ok (--all lists them)\n\n"), "{few:?}");
    let all = leasehold(["check", "--offline", "--all", &file.path()]).await;
    assert!(all.code == Some(0) && !all.stdout.contains("--all"), "{all:?}");
    assert_eq!(rows(&all.stdout), 30, "{all:?}");
    // A port in use is a remark where the network is used; no etcd is there.
    let noted = leasehold(["check", "--etcd", "127.0.0.1:9", &file.path()]).await;
    assert!(noted.stdout.contains("29 other services: ok (--all lists them)\n"), "{noted:?}");
    let row = noted.stdout.lines().find(|line| line.starts_with("taken"));
    assert!(row.is_some_and(|row| row.contains("ok; note: ")) && rows(&noted.stdout) == 1, "{noted:?}");
}

#[tokio::test]
async fn check_reports_mistakes_and_starts_nothing() {
    let world = World::real().await;
    let good = File::of(&config(&world, [greeter(), plain("plain")]).to_string());
    let ended = leasehold(["check", &good.path()]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.ends_with("etcd answers\n"), "{ended:?}");
    let ended = leasehold(["check", &good.path(), "--json"]).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["ok"]), (Some(0), &json!(true)));
    assert_eq!(report["services"][0]["inspected"]["http"], "0.2");
    let memory = 2 * 253 * (64_u64 << 20);
    assert_eq!(
        report["demand"],
        json!({ "instances": 2 * 253, "memory": memory, "pooled": true, "files": 2 * (4096 + 256) })
    );

    // The sum has the defaults, and a second line has their part where some services have limits of their own.
    let small = with(plain("small"), json!({ "limits": { "concurrency": 4, "memory": "16MiB" } }));
    let mixed = File::of(&config(&world, [greeter(), plain("plain"), small]).to_string());
    let ended = leasehold(["check", &mixed.path()]).await;
    let said = "\ninstances: 514 at most, with 31.8 GiB of memory if all of them are full\n\
        of these 506, with 31.6 GiB, by default: services without limits.concurrency and limits.memory: 2\n";
    assert!(ended.code == Some(0) && ended.stdout.contains(said), "{ended:?}");
    let report = leasehold(["check", "--offline", "--json", &mixed.path()]).await;
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["by_default"], json!({ "services": 2, "instances": 506, "memory": memory }), "{report}");
    let defaults = json!({ "defaults": { "limits": { "memory": "16MiB" } } });
    let all = File::of(&with(config(&world, [greeter(), plain("plain")]), defaults).to_string());
    let ended = leasehold(["check", &all.path()]).await;
    assert!(ended.stdout.contains(", with 7.9 GiB of ") && !ended.stdout.contains("by default"), "{ended:?}");

    let many = with(plain("plain"), json!({ "limits": { "concurrency": 4000 } }));
    let many = File::of(&config(&world, [many]).to_string());
    let ended = leasehold(["check", &many.path()]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let said =
        "\ninstances: 5003 at most, with 312.7 GiB of memory if all of them are full; the pool has room for 4096";
    assert!(ended.stdout.contains(said), "{ended:?}");

    // The number of instances fits, but not the address space that wasmtime reserves for each memory.
    let wide = with(plain("plain"), json!({ "limits": { "memory": "4GiB", "connections": 100_000 } }));
    let wide = File::of(&config(&world, [wide]).to_string());
    let few = "ulimit -n 4096 && ulimit -v 50000000 && exec \"$0\" check \"$1\"";
    let binary = paths::leasehold().display().to_string();
    let ended = Program::spawn(Path::new("/bin/sh"), ["-c", few, &binary, &wide.path()], wide.folder.path());
    let ended = ended.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("there is no pool for them ("), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains("\nfiles: connections and outgoing requests may come to 100512, and the process may have 4096")
    );

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let bad = [
        with(plain("plain"), json!({ "register": "component" })),
        with(greeter(), json!({ "listen": taken })),
        service("nothing", "nothing"),
        hostile("fine"),
        with(plain("together"), json!({ "limits": { "instance_concurrency": 2 } })),
    ];
    let bad = File::of(&config(&world, bad).to_string());
    let ended = leasehold(["check", &bad.path()]).await;
    one_sentence(&ended, 64, "3 of 5 services would not run");
    let ended = leasehold(["check", &bad.path(), "--json"]).await;
    one_sentence(&ended, 64, "3 of 5 services would not run");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let problem = |index: usize| report["services"][index]["problems"][0].as_str().unwrap_or_default();
    assert!(problem(0).contains("say register: host"), "{report}");
    // A host that runs already may have it.
    assert_eq!(problem(1), "");
    assert_eq!(report["services"][1]["notes"][0], format!("{taken} is in use at the moment"), "{report}");
    assert!(problem(2).contains("exports nothing that can be served"), "{report}");
    assert_eq!(problem(3), "");
    assert!(problem(4).contains("limits.instance_concurrency must be 1"), "{report}");

    let busy = with(
        json!({ "services": [with(greeter(), json!({ "listen": taken }))] }),
        json!({ "admin": { "listen": taken, "token_file": paths::admin_token() } }),
    );
    let busy = File::of(&with(busy, json!({ "etcd": { "endpoints": [endpoint(&world)] } })).to_string());
    let ended = leasehold(["check", &busy.path()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains(&format!("note: admin: {taken} is in use at the moment")), "{ended:?}");
    let ended = leasehold(["check", "--offline", &busy.path(), "--etcd", UNREACHABLE]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.ends_with("etcd and ports were not tried\n") && !ended.stdout.contains("note"), "{ended:?}");

    let unreachable = json!({ "etcd": { "endpoints": [UNREACHABLE], "required": true } });
    let unreachable = File::of(&with(json!({ "services": [greeter()] }), unreachable).to_string());
    one_sentence(&leasehold(["check", &unreachable.path()]).await, 69, &format!("etcd: {UNREACHABLE}"));
    assert_eq!(world.count().await, 0);
}
