//! `leasehold dev`: a folder that is built and run again with each change.

use std::{fs, net::TcpStream, path::Path};

use leasehold_end_to_end::{Ended, Program, config::free_address, http::get, paths};
use leasehold_scenarios::{wait_for, world::SOON};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The build: a file names the component.
const BUILD: &str = "build:\n\tcp \"$$(cat which)\" user.wasm\n";

/// A folder with a service and its sources.
struct Folder {
    folder: TempDir,
    /// Temporary files, which are no sources.
    temporary: TempDir,
    addr: String,
}

impl Folder {
    fn new(component: &str) -> Self {
        let [folder, temporary] = [(), ()].map(|()| TempDir::with_prefix("leasehold-workshop-").unwrap());
        let folder = Self { folder, temporary, addr: free_address() };
        folder.write("Makefile", BUILD);
        folder.write("which", paths::component(component).to_str().unwrap());
        folder.write("services.yaml", &folder.services(&folder.addr));
        folder
    }

    fn services(&self, addr: &str) -> String {
        json!({ "services": [{ "name": "user", "component": "user.wasm", "listen": addr, "register": "host" }] })
            .to_string()
    }

    fn write(&self, file: &str, content: &str) {
        fs::write(self.folder.path().join(file), content).unwrap();
    }

    fn dev(&self, arguments: &[&str]) -> Program {
        let path = self.folder.path().to_str().unwrap();
        let all = ["--log-format", "json", "dev", path].into_iter().chain(arguments.iter().copied());
        Program::spawn(&paths::leasehold(), all, self.temporary.path())
    }
}

/// Waits until it has said this so many times.
async fn says(program: &Program, start: &str, times: usize) {
    let message = |line: String| serde_json::from_str::<Value>(&line).ok()?["message"].as_str().map(str::to_owned);
    let fits = |line: String| message(line).is_some_and(|message| message.starts_with(start));
    let what = format!("it says {start:?} {times} times");
    wait_for(&what, SOON, async || program.stderr().into_iter().filter(|line| fits(line.clone())).count() >= times)
        .await;
}

async fn body(addr: &str) -> String {
    get(&format!("http://{addr}/")).await.body
}

#[tokio::test]
async fn dev_builds_and_reloads_with_each_change() {
    let folder = Folder::new("plain");
    let dev = folder.dev(&[]);
    says(&dev, "building: make build", 1).await;
    says(&dev, "the host is ready", 1).await;
    let former = body(&folder.addr).await;

    // A source that changes.
    folder.write("which", paths::component("raw").to_str().unwrap());
    says(&dev, "which has changed", 1).await;
    says(&dev, "built in ", 2).await;
    wait_for("the new component answers", SOON, async || body(&folder.addr).await != former).await;
    let latter = body(&folder.addr).await;

    // A build that fails, a component that does not start, a mistake in the services: all go on as they were.
    folder.write("which", "nowhere");
    says(&dev, "the build failed: make build: exit status: 2; the next change builds again", 1).await;
    folder.write("text", "no component");
    folder.write("which", "text");
    says(&dev, "not reloaded, the former version serves on: ", 1).await;
    folder.write("services.yaml", "services: [");
    says(&dev, "services.yaml has changed", 1).await;
    let file = folder.folder.path().join("services.yaml");
    says(&dev, &format!("reload: {}:1:11: the bracket [ is not closed", file.display()), 1).await;
    assert_eq!(body(&folder.addr).await, latter);

    // The services may change with the sources.
    let addr = free_address();
    folder.write("services.yaml", &folder.services(&addr));
    folder.write("which", paths::component("plain").to_str().unwrap());
    wait_for("it has moved", SOON, async || TcpStream::connect(&addr).is_ok() && body(&addr).await == former).await;
    dev.signal("INT");
    assert_eq!(dev.ends().await.code, Some(0));
}

#[tokio::test]
async fn dev_waits_for_a_first_component_that_starts() {
    let folder = Folder::new("plain");
    folder.write("which", "nowhere");
    let mut dev = folder.dev(&[]);
    says(&dev, "the build failed", 1).await;
    // A build without an error, and no component.
    folder.write("text", "no component");
    folder.write("which", "text");
    says(&dev, "built in ", 1).await;
    dev.line("that it starts again", |line| line.contains("the next change starts it again")).await;
    folder.write("which", paths::component("plain").to_str().unwrap());
    says(&dev, "the host is ready", 1).await;
    assert!(!body(&folder.addr).await.is_empty());
    dev.signal("TERM");
    assert_eq!(dev.ends().await.code, Some(0));
}

#[tokio::test]
async fn dev_builds_a_source_that_is_mended_while_its_build_fails() {
    let folder = Folder::new("plain");
    let slow = "build:\n\tcp which seen.wasm\n\ttouch begun.wasm\n\tsleep 2\n\tcp \"$$(cat seen.wasm)\" user.wasm\n";
    folder.write("Makefile", slow);
    folder.write("which", "nowhere");
    let dev = folder.dev(&[]);
    let begun = folder.folder.path().join("begun.wasm");
    wait_for("the build has begun", SOON, async || begun.exists()).await;
    folder.write("which", paths::component("plain").to_str().unwrap());
    says(&dev, "the host is ready", 1).await;
    assert!(!dev.stderr().iter().any(|line| line.contains("has changed")), "{:?}", dev.stderr());
    dev.signal("INT");
    assert_eq!(dev.ends().await.code, Some(0));
}

#[tokio::test]
async fn dev_ends_a_build_with_everything_that_it_started() {
    let folder = Folder::new("plain");
    folder.write("Makefile", "build:\n\tsh -c 'echo $$$$ > pid; exec sleep 1000'\n");
    let dev = folder.dev(&["--ignore", "pid"]);
    let pid = folder.folder.path().join("pid");
    wait_for("the build runs", SOON, async || fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n'))).await;
    let pid = fs::read_to_string(&pid).unwrap().trim().to_owned();
    says(&dev, "building", 1).await;
    dev.signal("INT");
    assert_eq!(dev.ends().await.code, Some(0));
    wait_for("the build is gone", SOON, async || !Path::new("/proc").join(&pid).exists()).await;
}

#[tokio::test]
async fn dev_repeats_a_build_that_writes_sources_and_gives_up_where_it_always_does() {
    let folder = Folder::new("plain");
    folder.write("Makefile", &format!("{BUILD}\techo locked > lock\n\techo x >> builds.wasm\n"));
    let dev = folder.dev(&[]);
    says(&dev, "the host is ready", 1).await;
    assert_eq!(fs::read_to_string(folder.folder.path().join("builds.wasm")).unwrap(), "x\nx\n");
    dev.signal("INT");
    assert_eq!(dev.ends().await.code, Some(0));
    folder.write("Makefile", &format!("{BUILD}\techo x >> lock\n"));
    let dev = folder.dev(&[]);
    says(&dev, "the build changes the sources each time; --ignore leaves out what it writes", 1).await;
    says(&dev, "the host is ready", 1).await;
    dev.signal("INT");
    assert_eq!(dev.ends().await.code, Some(0));
}

async fn refused(folder: &str, arguments: &[&str]) -> Ended {
    let all = ["dev", folder].into_iter().chain(arguments.iter().copied());
    let temporary = TempDir::with_prefix("leasehold-workshop-").unwrap();
    Program::spawn(&paths::leasehold(), all, temporary.path()).ends().await
}

#[tokio::test]
async fn a_folder_that_cannot_be_built_is_refused_in_one_sentence() {
    let folder = Folder::new("plain");
    let path = folder.folder.path().to_str().unwrap();
    for (arguments, expected) in [
        (vec!["--services", "other.yaml"], "other.yaml; `leasehold new NAME --lang rust` makes a folder with one"),
        (vec!["--ignore", "a["], "--ignore: \"a[\" is no pattern as in .gitignore"),
    ] {
        let ended = refused(path, &arguments).await;
        assert!(ended.code == Some(64) && ended.stderr.contains(expected), "{ended:?}");
    }
    fs::remove_file(folder.folder.path().join("Makefile")).unwrap();
    let ended = refused(path, &[]).await;
    let expected = "there is neither a Makefile nor a package.json; --build 'COMMAND' says how to build";
    assert!(ended.code == Some(64) && ended.stderr.contains(expected), "{ended:?}");
}
