//! Components in OCI registries: pushed, pulled, verified, cached, followed, and what registries do wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, endpoint, free_address, greeter, service, with},
    follower::{Call, Follower},
    http::get,
    paths,
    registry::{Fault, Registry, Scheme, digest},
};
use leasehold_scenarios::{
    real::Authority,
    wait_for,
    world::{SOON, World},
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder for the files of one test, with a cache of its own.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::with_prefix("leasehold-artifacts-").unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Runs a command with the cache of this folder, and Docker's configuration if it has one.
    async fn leasehold(&self, arguments: &[&str]) -> Ended {
        let (cache, docker) = (self.path("cache"), self.path("docker"));
        let variables = [("XDG_CACHE_HOME", &*cache), ("DOCKER_CONFIG", &*docker)];
        Program::spawn_with(&paths::leasehold(), arguments, self.0.path(), &variables).ends().await
    }

    async fn pull(&self, reference: &str, more: &[&str]) -> Ended {
        self.leasehold(&[&["pull", reference, "--plain-http", "--json"], more].concat()).await
    }

    /// Pulls, and must be able to.
    async fn pulled(&self, reference: &str, more: &[&str]) -> Value {
        let ended = self.pull(reference, more).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

/// A component that does nothing, with as many bytes as are wanted.
fn component(bytes: usize) -> Vec<u8> {
    let mut content = vec![1, b'x'];
    content.resize(bytes.max(20), b'.');
    let mut section = vec![0];
    let mut length = content.len();
    while length >= 0x80 {
        section.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    section.push(u8::try_from(length).unwrap());
    [b"\0asm\x0d\0\x01\0", &section[..], &content].concat()
}

fn pulled_from(registry: &Registry, reference: &str) -> Value {
    let from = json!({ "component": reference });
    with(with(greeter(), from), json!({ "x-registry": registry.host() }))
}

/// A configuration with a service from a registry.
fn of_registry(world: &World, registry: &Registry, service: Value) -> Value {
    let mut service = service;
    service.as_object_mut().unwrap().remove("x-registry");
    let artifacts = json!({ "registries": [registry.entry()], "poll": "200ms" });
    with(config(world, [service]), json!({ "artifacts": artifacts, "admin": { "listen": "127.0.0.1:0" } }))
}

/// A configuration with a further service, so that the host goes on while one does not start.
fn beside_another(mut config: Value) -> Value {
    let other = with(greeter(), json!({ "name": "other", "allow": { "names": ["greeter"] } }));
    config["services"].as_array_mut().unwrap().push(other);
    config
}

/// A key with its public part as PEM.
struct Key(Ed25519KeyPair);

impl Key {
    fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    fn pem(&self) -> String {
        let der = [&[0x30, 42, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 33, 0], self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// Signs an artifact as `cosign sign --key` does.
    fn sign(&self, registry: &Registry, name: &str, manifest: &str) {
        let image = json!({ "docker-manifest-digest": manifest });
        let identity = json!({ "docker-reference": format!("{}/{name}", registry.host()) });
        let critical = json!({ "identity": identity, "image": image, "type": "cosign container image signature" });
        let payload = json!({ "critical": critical, "optional": null }).to_string();
        let signature = STANDARD.encode(self.0.sign(payload.as_bytes()));
        let (config, layer) = (registry.put_blob(b"{}"), registry.put_blob(payload.as_bytes()));
        let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
        let signed = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
            "layers": [{
                "mediaType": kind,
                "digest": layer,
                "size": payload.len(),
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            }],
        });
        registry.put_manifest(name, &format!("{}.sig", manifest.replace(':', "-")), &signed);
    }
}

#[tokio::test]
async fn a_pushed_component_is_pulled_inspected_and_run() {
    let (registry, folder, world) = (Registry::start().await, Folder::new(), World::real().await);
    let (file, reference) = (paths::component("greeter"), registry.reference("team/greeter:1.4.2"));
    let file = file.to_str().unwrap();
    let mut digests = Vec::new();
    for tag in ["1.4.2", "latest"] {
        let reference = registry.reference(&format!("team/greeter:{tag}"));
        let pushed = folder.leasehold(&["push", file, &reference, "--plain-http", "--json"]).await;
        assert_eq!(pushed.code, Some(0), "{pushed:?}");
        let pushed: Value = serde_json::from_str(&pushed.stdout).unwrap();
        assert_eq!(pushed["reference"], reference);
        digests.push(pushed["digest"].clone());
    }
    assert_eq!(digests[0], digests[1], "the same component is the same artifact");

    let output = folder.path("out.wasm");
    let pulled = folder.pulled(&reference, &["-o", &output]).await;
    assert_eq!((&pulled["digest"], &pulled["file"], &pulled["signer"]), (&digests[0], &json!(output), &Value::Null));
    assert_eq!(fs::read(&output).unwrap(), fs::read(file).unwrap());
    let [from_file, from_registry] = [vec!["inspect", file], vec!["inspect", &reference, "--plain-http"]];
    let [from_file, from_registry] = [folder.leasehold(&from_file).await, folder.leasehold(&from_registry).await];
    assert_eq!((from_registry.code, from_registry.stdout), (Some(0), from_file.stdout));

    let host = Host::ready(&of_registry(&world, &registry, pulled_from(&registry, &reference))).await;
    world.stands(&format!("/greeter/v1/{}", host.addr("greeter"))).await;
    assert_eq!(get(&host.url("greeter")).await.status, 200);
    let status = get(&format!("{}services", host.admin())).await.json();
    assert_eq!(status[0]["component"], reference, "{status}");
    assert_eq!(status[0]["component_sha256"], digest(&fs::read(file).unwrap())[7..], "{status}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_host_starts_from_its_cache_while_the_registry_does_not_answer() {
    let (registry, world) = (Registry::start().await, World::real().await);
    let manifest = registry.put("greeter", "1", &fs::read(paths::component("greeter")).unwrap());
    let by_tag = of_registry(&world, &registry, pulled_from(&registry, &registry.reference("greeter:1")));
    let reference = registry.reference(&format!("greeter@{manifest}"));
    let by_digest = of_registry(&world, &registry, pulled_from(&registry, &reference));
    for config in [&by_tag, &by_digest] {
        assert_eq!(Host::ready(config).await.stop().await.code, Some(0));
    }
    // A digest needs no registry.
    let before = registry.requests().len();
    assert_eq!(Host::ready(&by_digest).await.stop().await.code, Some(0));
    assert_eq!(registry.requests().len(), before);
    registry.stop().await;
    let mut host = Host::spawn(&by_tag, &[]);
    let warning = host.says(&format!("{}: ", by_tag["services"][0]["component"].as_str().unwrap())).await;
    assert_eq!(warning["level"], "WARN");
    assert!(
        warning["message"].as_str().unwrap().contains(&format!("{manifest} of an earlier pull is used")),
        "{warning}"
    );
    host.event("ready").await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn wrong_answers_are_named_and_kept_out_of_the_cache() {
    let (registry, folder) = (Registry::start().await, Folder::new());
    let content = component(10_000);
    let manifest = registry.put("user", "1", &content);
    let (by_tag, by_digest) = (registry.reference("user:1"), registry.reference(&format!("user@{manifest}")));
    for (fault, reference, code, why) in [
        (Fault::Status(404), &by_tag, 1, "has no user:1"),
        (Fault::Status(500), &by_tag, 1, "does not answer"),
        (Fault::Status(403), &by_tag, 1, "denies access"),
        (Fault::Dies, &by_tag, 1, "the download ended after 5"),
        (Fault::Half, &by_tag, 1, "of 10"),
        (Fault::Other, &by_tag, 1, "its content is not that of sha256:"),
        (Fault::OtherManifest, &by_digest, 1, "wrong answer"),
    ] {
        registry.does(Some(fault));
        let ended = folder.pull(reference, &[]).await;
        assert_eq!(ended.code, Some(code), "{fault:?}: {ended:?}");
        assert!(ended.stderr.contains(why), "{fault:?}: {}", ended.stderr);
    }
    registry.does(None);
    let unknown = folder.pull(&registry.reference("user:2"), &[]).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("has no user:2"), "{unknown:?}");
    assert_eq!(folder.pulled(&by_tag, &[]).await["bytes"], content.len());
    // The registry is away: the cache helps, and says so.
    registry.does(Some(Fault::Status(503)));
    let cached = folder.pull(&by_tag, &[]).await;
    assert!(cached.code == Some(0) && cached.stderr.contains("of an earlier pull is used"), "{cached:?}");
    // It is there, and says no.
    registry.does(Some(Fault::Status(403)));
    assert_eq!(folder.pull(&by_tag, &[]).await.code, Some(1));

    for (layers, why) in [
        (json!([]), "it needs one layer of application/wasm"),
        (
            json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": manifest, "size": 1 }]),
            "tar+gzip",
        ),
        (json!([{ "mediaType": "application/wasm", "digest": manifest, "size": i64::MAX }]), "more than"),
    ] {
        registry.does(None);
        let config = json!({ "mediaType": "application/json", "digest": manifest, "size": 2 });
        registry.put_manifest("image", "1", &json!({ "schemaVersion": 2, "config": config, "layers": layers }));
        let ended = folder.pull(&registry.reference("image:1"), &[]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains(why), "{ended:?}");
    }
}

#[tokio::test]
async fn a_damaged_cache_is_repaired() {
    let (registry, folder) = (Registry::start().await, Folder::new());
    let content = component(1000);
    registry.put("user", "1", &content);
    let reference = registry.reference("user:1");
    let file = PathBuf::from(folder.pulled(&reference, &[]).await["file"].as_str().unwrap());
    assert!(file.starts_with(folder.path("cache")));
    fs::write(&file, b"damaged").unwrap();
    let again = folder.pull(&reference, &[]).await;
    assert!(again.code == Some(0) && again.stderr.contains("is damaged, and pulled again"), "{again:?}");
    assert_eq!(fs::read(&file).unwrap(), content);
}

#[tokio::test]
async fn a_registry_signs_its_clients_in() {
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let (registry, folder) = (Registry::start().await, Folder::new());
        registry.put("user", "1", &component(100));
        registry.needs(scheme, "hunter2");
        let reference = registry.reference("user:1");
        let anonymous = folder.pull(&reference, &[]).await;
        assert!(anonymous.code == Some(1) && anonymous.stderr.contains("denies access"), "{anonymous:?}");
        let password = folder.write("password", "hunter3\n");
        let signed_in = ["--registry-user", "ci", "--registry-password-file", &password];
        let refused = folder.pull(&reference, &signed_in).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("denies access"), "{refused:?}");
        assert!(!refused.wrote("hunter"), "{refused:?}");
        folder.write("password", "hunter2\n");
        folder.pulled(&reference, &signed_in).await;
        // As `docker login` keeps them.
        fs::create_dir(folder.path("docker")).unwrap();
        let auths = json!({ "auths": { registry.host(): { "auth": STANDARD.encode("ci:hunter2") } } });
        folder.write("docker/config.json", auths.to_string());
        folder.pulled(&reference, &[]).await;
        // A push needs them as well.
        let file = folder.write("user.wasm", component(200));
        let pushed = folder.leasehold(&["push", &file, &registry.reference("user:2"), "--plain-http"]).await;
        assert_eq!(pushed.code, Some(0), "{pushed:?}");
        folder.pulled(&registry.reference("user:2"), &[]).await;
    }
}

#[tokio::test]
async fn a_password_that_changes_is_read_by_the_next_attempt() {
    let (registry, folder, world) = (Registry::start().await, Folder::new(), World::real().await);
    registry.put("greeter", "1", &fs::read(paths::component("greeter")).unwrap());
    registry.needs(Scheme::Bearer, "hunter2");
    let password = folder.write("password", "hunter1");
    let mut config = of_registry(&world, &registry, pulled_from(&registry, &registry.reference("greeter:1")));
    config["artifacts"]["registries"][0]["username"] = json!("ci");
    config["artifacts"]["registries"][0]["password_file"] = json!(password);
    let mut host = Host::spawn(&beside_another(config), &[]);
    wait_for("it is refused", SOON, async || host.log().iter().any(|line| line.to_string().contains("denies access")))
        .await;
    folder.write("password", "hunter2");
    host.event("ready").await;
    assert!(!host.log().iter().any(|line| line.to_string().contains("hunter")));
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_registry_with_a_private_authority_is_trusted_by_its_certificate() {
    let authority = Authority::new("the registry's");
    let (registry, folder) = (Registry::start_tls(&authority.server()).await, Folder::new());
    registry.put("user", "1", &component(100));
    let reference = registry.reference("user:1");
    let distrusted = folder.leasehold(&["pull", &reference]).await;
    assert!(distrusted.code == Some(1) && distrusted.stderr.contains("certificate"), "{distrusted:?}");
    let ca = folder.write("ca.pem", authority.certificate());
    let trusted = folder.leasehold(&["pull", &reference, "--registry-ca", &ca]).await;
    assert_eq!(trusted.code, Some(0), "{trusted:?}");
    let wrong = folder.write("wrong.pem", "no certificate");
    assert_eq!(folder.leasehold(&["pull", &reference, "--registry-ca", &wrong]).await.code, Some(64));
}

#[tokio::test]
async fn a_component_without_a_trusted_signature_is_neither_downloaded_nor_run() {
    let (registry, folder, world) = (Registry::start().await, Folder::new(), World::real().await);
    let (trusted, other) = (Key::new(), Key::new());
    let content = component(300);
    let manifest = registry.put("user", "1", &content);
    let key = folder.write("cosign.pub", trusted.pem());
    let reference = registry.reference("user:1");
    let verify = ["--verify", &*key];
    let no_signature = folder.pull(&reference, &verify).await;
    assert!(no_signature.code == Some(1) && no_signature.stderr.contains("there is no signature"), "{no_signature:?}");
    other.sign(&registry, "user", &manifest);
    let by_others = folder.pull(&reference, &verify).await;
    assert!(by_others.code == Some(1) && by_others.stderr.contains("by others"), "{by_others:?}");
    let blob = format!("GET /v2/user/blobs/{}", digest(&content));
    assert!(!registry.requests().contains(&blob), "{:?}", registry.requests());

    trusted.sign(&registry, "user", &manifest);
    let pulled = folder.pulled(&reference, &verify).await;
    assert!(pulled["signer"].as_str().unwrap().starts_with("sha256:"), "{pulled}");
    // The tag moves to an artifact that has the signature of another key alone.
    let moved = registry.put("user", "1", &component(301));
    other.sign(&registry, "user", &moved);
    assert_eq!(folder.pull(&reference, &verify).await.code, Some(1));
    // Without the registry, what was verified is used, and nothing for another key.
    registry.does(Some(Fault::Status(503)));
    assert_eq!(folder.pulled(&reference, &verify).await["digest"], manifest);
    let another = folder.write("other.pub", other.pem());
    assert_eq!(folder.pull(&reference, &["--verify", &another]).await.code, Some(1));
    registry.does(None);

    let manifest = registry.put("greeter", "1", &fs::read(paths::component("greeter")).unwrap());
    let service = with(pulled_from(&registry, &registry.reference("greeter:1")), json!({ "verify": [key] }));
    let mut host = Host::spawn(&beside_another(of_registry(&world, &registry, service)), &[]);
    wait_for("it is refused", SOON, async || {
        host.log().iter().any(|line| line.to_string().contains("is not signed by a trusted key"))
    })
    .await;
    wait_for("the other one is registered", SOON, async || world.count().await == 1).await;
    trusted.sign(&registry, "greeter", &manifest);
    host.event("ready").await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_tag_that_moves_is_followed_without_a_failed_request() {
    let (registry, world) = (Registry::start().await, World::real().await);
    let [first, second] = ["greeter", "plain"].map(|name| fs::read(paths::component(name)).unwrap());
    registry.put("service", "1", &first);
    let reference = registry.reference("service:1");
    let service = with(service("greeter", "greeter"), json!({ "component": reference, "register": "host" }));
    let mut host = Host::spawn(&of_registry(&world, &registry, service), &["--watch"]);
    host.event("ready").await;
    let url = host.url("greeter");
    let mut follower = Follower::of(&world, "greeter", Duration::ZERO).await;
    follower.calls(Call::Http1);
    let answered = async |follower: &Follower, more: usize| {
        let so_far = follower.answered();
        wait_for("the load goes on", SOON, async || follower.answered() >= so_far + more).await;
    };
    answered(&follower, 50).await;
    registry.put("service", "1", &second);
    host.event("reloaded").await;
    answered(&follower, 50).await;
    assert_eq!(follower.ends().await.failures, Vec::<String>::new());
    // A reload that fails is tried again: the download breaks off at first.
    // Of this run alone, so that it is not in the cache.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().to_le_bytes();
    let third = [&first[..], &[0, 18, 1, b'x'], &now[..]].concat();
    registry.does(Some(Fault::Dies));
    registry.put("service", "1", &third);
    host.says("not reloaded").await;
    registry.does(None);
    wait_for("it is reloaded", SOON, async || {
        let status = get(&format!("{}services", host.admin())).await.json();
        status[0]["component_sha256"] == digest(&third)[7..]
    })
    .await;
    // A registry that is away changes nothing.
    registry.does(Some(Fault::Status(503)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&url).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_reload_of_the_configuration_pulls_what_it_names_now() {
    let (registry, folder, world) = (Registry::start().await, Folder::new(), World::real().await);
    let [first, second] = ["greeter", "lookup"].map(|name| fs::read(paths::component(name)).unwrap());
    registry.put("service", "1", &first);
    registry.put("service", "2", &second);
    let socket = format!("unix:{}", folder.path("admin.sock"));
    let at_socket = |tag: &str| {
        let component = registry.reference(&format!("service:{tag}"));
        let service = with(service("greeter", "greeter"), json!({ "component": component, "register": "host" }));
        with(of_registry(&world, &registry, service), json!({ "admin": { "listen": socket } }))
    };
    let host = Host::ready(&at_socket("1")).await;
    let served = async || {
        let status = folder.leasehold(&["status", "--admin", &socket, "--json"]).await;
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["services"][0]["component_sha256"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(served().await, digest(&first)[7..]);
    let reload = async || folder.leasehold(&["reload", "--admin", &socket]).await;
    fs::write(host.file(), at_socket("2").to_string()).unwrap();
    let reloaded = reload().await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(served().await, digest(&second)[7..]);
    // The same configuration, whose tag leads elsewhere by now.
    registry.put("service", "2", &first);
    let reloaded = reload().await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(served().await, digest(&first)[7..]);
    // A reference that leads nowhere changes nothing.
    fs::write(host.file(), at_socket("3").to_string()).unwrap();
    let refused = reload().await;
    assert!(refused.code != Some(0) && refused.wrote("has no service:3"), "{refused:?}");
    assert_eq!(served().await, digest(&first)[7..]);
    // Another limit for pulls concerns services from registries alone.
    let mut changed = at_socket("2");
    changed["artifacts"]["cache_size"] = json!("1GiB");
    fs::write(host.file(), changed.to_string()).unwrap();
    let planned = folder.leasehold(&["reload", "--admin", &socket, "--dry-run"]).await;
    assert!(planned.code == Some(0) && planned.stdout.contains("artifacts.cache_size"), "{planned:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn mirrors_are_tried_first() {
    let (origin, mirror, world) = (Registry::start().await, Registry::start().await, World::real().await);
    let content = fs::read(paths::component("greeter")).unwrap();
    origin.put("greeter", "1", &content);
    let reference = origin.reference("greeter:1");
    let mut config = of_registry(&world, &origin, pulled_from(&origin, &reference));
    config["artifacts"]["registries"][0]["mirrors"] = json!([mirror.host()]);
    config["artifacts"]["registries"].as_array_mut().unwrap().push(mirror.entry());
    // The mirror has nothing.
    assert_eq!(Host::ready(&config).await.stop().await.code, Some(0));
    assert!(mirror.requests().contains(&"GET /v2/greeter/manifests/1".to_owned()), "{:?}", mirror.requests());
    mirror.put("greeter", "1", &content);
    origin.does(Some(Fault::Status(503)));
    let before = origin.requests().len();
    assert_eq!(Host::ready(&config).await.stop().await.code, Some(0));
    assert_eq!(origin.requests().len(), before);
}

#[tokio::test]
async fn a_slow_pull_reports_its_progress_and_ends_with_the_host() {
    let (registry, world) = (Registry::start().await, World::real().await);
    // Of this test alone, so that it is not in the cache.
    let content = component(100_000 + usize::try_from(std::process::id()).unwrap());
    registry.put("user", "1", &content);
    registry.does(Some(Fault::Slow(Duration::from_millis(50))));
    let mut host =
        Host::spawn(&of_registry(&world, &registry, pulled_from(&registry, &registry.reference("user:1"))), &[]);
    let progress = host.says("pulling oci://").await;
    assert!(progress["message"].as_str().unwrap().contains(" of 0.1 MB"), "{progress}");
    let begun = Instant::now();
    assert_eq!(host.stop().await.code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_service_whose_registry_is_away_is_tried_again_while_others_run() {
    let (registry, world) = (Registry::start().await, World::real().await);
    registry.does(Some(Fault::Status(502)));
    let all = of_registry(&world, &registry, pulled_from(&registry, &registry.reference("greeter:7")));
    let mut host = Host::spawn(&beside_another(all), &[]);
    wait_for("the other one is registered", SOON, async || world.count().await == 1).await;
    registry.put("greeter", "7", &fs::read(paths::component("greeter")).unwrap());
    registry.does(None);
    wait_for("both are registered", SOON, async || world.count().await == 2).await;
    host.event("ready").await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn the_contract_is_published_as_one_package() {
    let (registry, folder) = (Registry::start().await, Folder::new());
    let (file, reference) = (folder.path("registry.wasm"), registry.reference("leasehold/registry:0.2.0"));
    let written = folder.leasehold(&["wit", "--http", "0.3", "--package", &file]).await;
    assert_eq!((written.code, written.stdout), (Some(0), format!("written    {file}\n")));
    let pushed = folder.leasehold(&["push", &file, &reference, "--plain-http"]).await;
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    let output = folder.path("pulled.wasm");
    folder.pulled(&reference, &["-o", &output]).await;
    assert_eq!(fs::read(output).unwrap(), fs::read(&file).unwrap());
    // What is no component of a service is none for the host either.
    let service = folder.leasehold(&["inspect", &file]).await;
    assert!(service.stdout.contains("missing     the component exports nothing that can be served"), "{service:?}");
}

#[tokio::test]
async fn a_component_explains_the_configuration_that_it_needs() {
    let (folder, world) = (Folder::new(), World::real().await);
    for (component, keys) in [
        ("greeter", &["register: component", "config: {}"][..]),
        ("plain-p3", &["register: host", "discover: []", "outbound: []"]),
        ("program", &["register: component", "args: []"]),
    ] {
        let file = paths::component(component);
        let explained = folder.leasehold(&["explain", file.to_str().unwrap()]).await;
        assert_eq!(explained.code, Some(0), "{explained:?}");
        for key in keys {
            assert!(explained.stdout.contains(key), "{component}: {key}: {}", explained.stdout);
        }
        let etcd = format!("etcd: {{ endpoints: [{}] }}\n", endpoint(&world));
        let services = folder.write("services.yaml", etcd + &explained.stdout);
        let checked = folder.leasehold(&["check", &services]).await;
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
    let nothing = paths::component("nothing");
    let explained = folder.leasehold(&["explain", nothing.to_str().unwrap(), "--json"]).await;
    assert_eq!(explained.code, Some(64), "{explained:?}");
    let report: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert!(report["missing"][0].as_str().unwrap().contains("exports nothing that can be served"), "{report}");
}

#[tokio::test]
async fn mistakes_in_references_and_registries_are_named_by_their_lines() {
    let folder = Folder::new();
    let cases = [
        ("component: oci://team/user:1", "must begin with the host of the registry"),
        ("component: oci://registry.example/user", "must end with a tag"),
        ("component: oci://root:hunter2@registry.example/user:1", "a reference has no user"),
        ("component: user.wasm\n    verify: [cosign.pub]", "is for a component from a registry"),
        ("component: oci://registry.example/user:1\n    verify: [missing.pub]", "cannot read"),
        ("component: oci://registry.example/user:1\n    verify: [services.yaml]", "a public key must be PEM"),
    ];
    for (component, why) in cases {
        let file = folder
            .write("services.yaml", format!("services:\n  - name: user\n    {component}\n    listen: 127.0.0.1:1\n"));
        let ended = folder.leasehold(&["check", "--offline", &file]).await;
        assert!(ended.code == Some(64) && ended.wrote(why) && !ended.wrote("hunter2"), "{component}: {ended:?}");
    }
    let registries = [
        ("{ host: a.example }, { host: a.example }", "stands here twice"),
        ("{ host: a.example, username: ci }", "needs password or password_file"),
        ("{ host: 'https://a.example' }", "must be a host alone"),
        ("{ host: a.example, password: hunter2, password_file: services.yaml }", "stands beside password"),
    ];
    for (entries, why) in registries {
        let services = "services: [{ name: user, component: a.wasm, listen: '127.0.0.1:1' }]";
        let file = folder.write("services.yaml", format!("artifacts: {{ registries: [{entries}] }}\n{services}\n"));
        let ended = folder.leasehold(&["check", "--offline", &file]).await;
        assert!(ended.code == Some(64) && ended.wrote(why), "{entries}: {ended:?}");
    }
    let no_component = folder.write("text.wasm", "text");
    let pushed = folder.leasehold(&["push", &no_component, "oci://127.0.0.1:1/user:1", "--plain-http"]).await;
    assert!(pushed.code == Some(64) && pushed.stderr.contains("not WebAssembly"), "{pushed:?}");
    let registry = Registry::start().await;
    let plain = folder.leasehold(&["pull", &registry.reference("user:1")]).await;
    assert!(plain.code == Some(1) && plain.stderr.contains("with plain_http, this host speaks HTTP"), "{plain:?}");
    let unreachable = format!("oci://{}/user:1", free_address());
    let away = folder.pull(&unreachable, &[]).await;
    assert!(away.code == Some(1) && away.stderr.contains("does not answer"), "{away:?}");
    assert!(!Path::new(&folder.path("cache/leasehold/artifacts")).join("user").exists());
}
