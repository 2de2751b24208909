//! README.md: its commands run as printed, its configuration is one, and its code is that of the examples.

use std::{env, fs, path::Path};

use leasehold_end_to_end::{
    Ended, Program,
    config::{endpoint, free_address},
    paths,
};
use leasehold_scenarios::world::World;
use tempfile::TempDir;

/// Addresses of the configurations in README.md and of `leasehold init`, which a machine under test may have in use.
const ETCD: &str = "http://127.0.0.1:2379";
const LISTEN: &str = "127.0.0.1:10002";
const METRICS: &str = "127.0.0.1:9100";

fn read(file: &str) -> String {
    fs::read_to_string(paths::workspace().join(file)).unwrap()
}

/// Commands of the indented blocks, without the comments behind them, that begin with a program.
fn commands(program: &str) -> Vec<String> {
    let readme = read("README.md");
    let indented = readme.lines().filter_map(|line| line.strip_prefix("    "));
    let commands = indented.map(|line| line.split("  #").next().unwrap().trim_end());
    commands.filter(|line| line.split(' ').next() == Some(program)).map(str::to_owned).collect()
}

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let (readme, fence) = (read("README.md"), format!("```{language}\n"));
    let behind = readme.split(&*fence).skip(1);
    behind.map(|text| text.split("```").next().unwrap().to_owned()).collect()
}

/// A shell that finds the binary on its PATH, in a folder with a component.
struct Shell {
    folder: TempDir,
    etcd: String,
    path: String,
}

impl Shell {
    fn on(world: &World) -> Self {
        let folder = TempDir::with_prefix("leasehold-readme-").unwrap();
        fs::copy(paths::component("greeter"), folder.path().join("greeter.wasm")).unwrap();
        let binary = paths::leasehold();
        let path = format!("{}:{}", binary.parent().unwrap().display(), env::var("PATH").unwrap());
        Self { folder, etcd: endpoint(world), path }
    }

    fn spawn(&self, command: &str) -> Program {
        let script = format!("cd {} && exec {command}", self.folder.path().display());
        let runtime = self.folder.path().to_str().unwrap();
        let variables = [("PATH", &*self.path), ("LEASEHOLD_ETCD", &self.etcd), ("XDG_RUNTIME_DIR", runtime)];
        Program::spawn_with(Path::new("sh"), ["-c", &script], self.folder.path(), &variables)
    }

    async fn run(&self, command: &str) -> Ended {
        let ended = self.spawn(command).ends().await;
        assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
        ended
    }

    /// Writes a configuration with this world's etcd, and ports that are free.
    fn write(&self, file: &str, text: &str) {
        for address in [ETCD, LISTEN] {
            assert!(text.contains(address), "{address} is missing:\n{text}");
        }
        let text = text.replace(ETCD, &self.etcd).replace(LISTEN, &free_address()).replace(METRICS, &free_address());
        fs::write(self.folder.path().join(file), text).unwrap();
    }
}

#[tokio::test]
async fn the_commands_run_as_printed() {
    let world = World::real().await;
    let shell = Shell::on(&world);
    let mut commands = commands("leasehold").into_iter();
    assert_eq!(commands.next().as_deref(), Some("leasehold init"));
    shell.run("leasehold init").await;
    let first = fs::read_to_string(shell.folder.path().join("services.yaml")).unwrap();
    shell.write("services.yaml", &first);
    let mut host = None;
    let mut count = 1;
    for command in commands {
        count += 1;
        match &*command {
            "leasehold run services.yaml" => {
                let mut started = shell.spawn(&command);
                started.line("that it is ready", |line| line.contains("event=\"ready\"")).await;
                host = Some(started);
            }
            "leasehold watch" => {
                let mut watch = shell.spawn(&command);
                watch.line("the node", |line| line.contains("greeter")).await;
                watch.signal("INT");
                let ended = watch.ends().await;
                assert_eq!(ended.code, Some(0), "{ended:?}");
            }
            "leasehold ls" | "leasehold status" | "leasehold explain services.yaml" => {
                let ended = shell.run(&command).await;
                assert!(ended.stdout.contains("greeter"), "{command}: {ended:?}");
            }
            _ => drop(shell.run(&command).await),
        }
    }
    assert!(count >= 13, "{count} commands");
    let host = host.expect("it was started");
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn the_configuration_runs_as_printed() {
    let world = World::real().await;
    let shell = Shell::on(&world);
    let [block] = <[String; 1]>::try_from(blocks("yaml")).unwrap();
    shell.write("printed.yaml", &block);
    let mut host = shell.spawn("leasehold run printed.yaml");
    host.line("that it is ready", |line| line.contains("event=\"ready\"")).await;
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
}

#[test]
fn the_code_is_that_of_the_examples() {
    let [component, library] = <[String; 2]>::try_from(blocks("rust")).unwrap();
    assert!(read("guest-example/greeter/src/lib.rs").contains(&component), "{component}");
    let documented = read("host/registrar/src/lib.rs").replace("//! ", "");
    assert!(documented.contains(&library), "{library}");
}

#[test]
fn installing_stands_before_using_and_every_target_exists() {
    let readme = read("README.md");
    let place = |text: &str| readme.find(text).unwrap_or_else(|| panic!("{text} is missing"));
    assert!(place("make install") < place("leasehold init"));
    let makefile = read("Makefile");
    let commands = commands("make");
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands {
        let target = command.split(' ').nth(1).unwrap();
        assert!(makefile.contains(&format!("\n{target}: ")), "make {target}");
    }
}
