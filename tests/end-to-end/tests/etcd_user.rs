//! Users of etcd with the rights of a host: created, and enough for that host and for no other.

use std::fs;

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, endpoint, greeter, plain, with},
    paths,
};
use leasehold_scenarios::{real::Etcd, world::World};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROOT_PASSWORD: &str = "right-password";

/// An etcd with authentication, and files with passwords.
struct Scene {
    world: World,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let world = World::Real(Box::new(Etcd::options().user("root", ROOT_PASSWORD).start().await));
        let scene = Self { world, folder: TempDir::with_prefix("leasehold-user-").unwrap() };
        fs::write(scene.folder.path().join("root"), ROOT_PASSWORD).unwrap();
        fs::write(scene.folder.path().join("new"), "password-of-the-host\n").unwrap();
        scene
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// `etcd-user` as root, with these further arguments.
    async fn as_root(&self, arguments: &[&str]) -> Ended {
        let (etcd, password) = (endpoint(&self.world), self.file("root"));
        let root = ["--etcd", &etcd, "--user", "root", "--password-file", &password];
        etcd_user(&[arguments, &root].concat()).await
    }

    /// A host that signs in as the new user.
    fn host(&self, services: impl IntoIterator<Item = Value>) -> Value {
        let changes = json!({ "etcd": { "user": "host-a", "password_file": self.file("new"), "required": true } });
        with(config(&self.world, services), changes)
    }
}

async fn etcd_user(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-user-").unwrap();
    let run = ["etcd-user", "host-a"].iter().chain(arguments);
    Program::spawn(&paths::leasehold(), run, folder.path()).ends().await
}

#[tokio::test]
async fn etcd_user_has_the_rights_of_its_host_and_no_others() {
    let scene = Scene::new().await;
    // The configuration names the rights; the user that it has is the one to create.
    let file = scene.folder.path().join("services.yaml");
    let services = || [plain("plain"), greeter()];
    fs::write(&file, scene.host(services()).to_string()).unwrap();
    let (file, new) = (file.to_str().unwrap().to_owned(), scene.file("new"));
    let apply = ["--config", &file, "--apply", "--new-password-file", &new];
    let created = scene.as_root(&apply).await;
    assert_eq!(created.code, Some(0), "{created:?}");
    let expected = "user host-a created\nrole host-a created\n  readwrite /greeter/\n  readwrite /plain/\n";
    assert_eq!(created.stdout, expected);

    let host = Host::ready(&scene.host(services())).await;
    assert_eq!(scene.world.count().await, 2);
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(scene.world.count().await, 0, "it could delete its keys, too");
    let other = Host::spawn(&scene.host([plain("other")]), &["--strict"]).ends().await;
    assert!(other.code != Some(0) && other.wrote("/other/"), "{other:?}");
    assert_eq!(scene.world.count().await, 0);

    let again = scene.as_root(&apply).await;
    assert!(
        again.stdout.starts_with("user host-a was there, and its password is as before\nrole host-a was there\n"),
        "{again:?}"
    );
    let refused = [
        &["--names", "plain", "--apply", "--no-password", "--user", "host-a", "--password-file", &new][..],
        &["--etcd", &endpoint(&scene.world)],
    ];
    let refused = etcd_user(&refused.concat()).await;
    assert!(refused.code == Some(77) && refused.stderr.contains("permission"), "{refused:?}");
}

#[tokio::test]
async fn etcd_user_prints_commands_and_says_what_is_missing() {
    let printed =
        etcd_user(&["--names", "greeter,user", "--discover", "order", "--layout", "kratos", "--etcd", "http://e:1"])
            .await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let etcdctl = "etcdctl --endpoints=http://e:1";
    let grant = format!("{etcdctl} role grant-permission --prefix=true -- host-a");
    let expected = [
        format!("{etcdctl} role add -- host-a"),
        format!("{grant} readwrite /microservices/greeter/"),
        format!("{grant} read /microservices/order/"),
        format!("{grant} readwrite /microservices/user/"),
        format!("{etcdctl} user add -- host-a"),
        format!("{etcdctl} user grant-role -- host-a host-a"),
    ];
    assert_eq!(printed.stdout.lines().collect::<Vec<_>>(), expected);
    let json = etcd_user(&["--names", "a", "--role", "r", "--json", "--etcd", "http://e:1"]).await;
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&report["role"], &report["created"]), (&json!("r"), &Value::Null));
    assert_eq!(report["grants"], json!([{ "access": "readwrite", "prefix": "/a/" }]));
    for (arguments, said) in [
        (&["--etcd", "http://e:1"][..], "the services are missing: --names greeter,user, or --config FILE"),
        (&["--names", "a/b"], "--names: name must"),
        (&["--names", "a", "--layout", "no-such"], "--layout: "),
        (&["--names", "a", "--apply"], "--apply needs --new-password-file FILE"),
    ] {
        let ended = etcd_user(arguments).await;
        assert!(ended.code == Some(64) && ended.stderr.contains(said), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}
