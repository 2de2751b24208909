//! Tests the Debian package in an empty Debian: its files, its installation, docs/first-service.md as printed, its removal.
//!
//! `make deb-test` runs it in namespaces of its own for mounts and processes, which end with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
};

use leasehold_end_to_end::{
    paths,
    transcript::{EXIT_CODE, Prompt, Step, steps},
};
use tempfile::TempDir;

/// Files that the package must have.
const FILES: [&str; 11] = [
    "./usr/bin/leasehold",
    "./usr/lib/systemd/system/leasehold.service",
    "./usr/lib/systemd/system/leasehold@.service",
    "./usr/lib/sysusers.d/leasehold.conf",
    "./usr/share/bash-completion/completions/leasehold",
    "./usr/share/doc/leasehold/examples/greeter.wasm",
    "./usr/share/doc/leasehold/examples/services.yaml",
    "./usr/share/fish/vendor_completions.d/leasehold.fish",
    "./usr/share/man/man1/leasehold-run.1.gz",
    "./usr/share/man/man1/leasehold.1.gz",
    "./usr/share/zsh/site-functions/_leasehold",
];
/// The newcomer, who has a folder for sockets as after a login.
const USER: &str = "newcomer";
/// Between the outputs of two steps.
const MARK: &str = "@@ step";

#[expect(clippy::print_stdout, reason = "what it is for")]
fn main() -> ExitCode {
    let package = package();
    let system = System::mount();
    for (name, check) in [
        ("the package has its files, of root", files as fn(&System, &Path)),
        ("it installs, with its user and its folder", installs),
        ("its units verify and are confined", units),
        ("docs/first-service.md prints what it shows", first_service),
        ("it can be installed over itself, and the configuration stays", upgrades),
        ("a purge leaves the configuration and nothing else", purges),
    ] {
        check(&system, &package);
        println!("ok  {name}");
    }
    ExitCode::SUCCESS
}

/// The package that `make deb` built.
fn package() -> PathBuf {
    let folder = paths::workspace().join("target/deb");
    let listed = fs::read_dir(&folder).expect("run make deb first");
    let mut found = listed.map(|entry| entry.expect("it can be listed").path());
    found.find(|path| path.extension().is_some_and(|extension| extension == "deb")).expect("run make deb first")
}

/// An empty Debian of this machine's release. What is written to it is gone with the program.
struct System {
    root: PathBuf,
    _upper: TempDir,
}

impl System {
    /// Mounts it over a copy that is kept in `target/deb/base`, and that debootstrap makes the first time.
    fn mount() -> Self {
        let folder = paths::workspace().join("target/deb");
        let base = folder.join("base");
        if !base.join("etc/debian_version").exists() {
            let new = folder.join("base.new");
            let _ = fs::remove_dir_all(&new); // Of a run that was interrupted.
            let release = said(Command::new("sh").args(["-c", ". /etc/os-release; echo \"$VERSION_CODENAME\""]));
            done(Command::new("debootstrap").args(["--variant=minbase", release.trim()]).arg(&new));
            fs::rename(&new, &base).expect("both are in one folder");
        }
        let upper = TempDir::new_in(&folder).expect("the build's folder is our own");
        let part = |name: &str| {
            let part = upper.path().join(name);
            fs::create_dir(&part).expect("it is new");
            part
        };
        let (written, work, root) = (part("written"), part("work"), part("root"));
        let options = format!("lowerdir={},upperdir={},workdir={}", base.display(), written.display(), work.display());
        done(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root));
        done(Command::new("mount").args(["-t", "proc", "proc"]).arg(root.join("proc")));
        done(Command::new("mount").args(["--bind", "/dev"]).arg(root.join("dev")));
        let _ = fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")); // A machine may do without it.
        Self { root, _upper: upper }
    }

    /// A command of root in it.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(["bash", "-c", script]).env_clear();
        command.envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("LC_ALL", "C.UTF-8")]);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, script: &str) -> String {
        said(&mut self.command(script))
    }

    /// Runs a script as the newcomer, without any network but loopback, on which every port is free.
    fn run_alone(&self, script: &str) -> String {
        let file = self.root.join("tmp/script");
        fs::write(&file, script).expect("the system is our own");
        let alone = format!(
            "ip link set lo up && exec chroot {} runuser -u {USER} -- env HOME=/home/{USER} XDG_RUNTIME_DIR=/run/user/{USER} \
             bash /tmp/script",
            self.root.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", &alone]).env_remove("LEASEHOLD_ETCD").env("LC_ALL", "C.UTF-8");
        said(&mut command)
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Otherwise what was written could not be removed. A failure leaves it in the build's folder.
        let _ = Command::new("umount").arg("--recursive").arg(&self.root).status();
    }
}

fn files(_: &System, package: &Path) {
    let listed = said(Command::new("dpkg-deb").arg("--contents").arg(package));
    let paths: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    for file in FILES {
        assert!(paths.contains(&file), "{file} is missing:\n{listed}");
    }
    for line in listed.lines() {
        assert!(matches!(line.split_whitespace().nth(1), Some("0/0" | "root/root")), "not of root: {line}");
        let mode =
            if line.starts_with('d') || line.ends_with("./usr/bin/leasehold") { "rwxr-xr-x" } else { "rw-r--r--" };
        assert_eq!(&line[1..10], mode, "{line}");
    }
    let control = said(Command::new("dpkg-deb").arg("--field").arg(package));
    for field in ["Package: leasehold\n", "Version: 0.1.0-", "Depends: libc6 ", "Homepage: https://"] {
        assert!(control.contains(field), "{field:?} is missing:\n{control}");
    }
}

fn installs(system: &System, package: &Path) {
    let name = package.file_name().expect("it is a file");
    system.run(&format!("useradd --create-home {USER} && install -d -m 700 -o {USER} /run/user/{USER}"));
    fs::copy(package, system.root.join("root").join(name)).expect("the system is our own");
    system.run("apt-get update -qq");
    // The first commands of the page install it.
    for step in page().iter().take_while(|step| step.prompt == Prompt::Root) {
        system.run(&format!("cd /root && {}", step.command));
    }
    let user = system.run("getent passwd leasehold");
    assert!(user.contains(":/var/lib/leasehold:") && user.trim_end().ends_with("nologin"), "{user}");
    assert!(system.has("etc/leasehold"));
    assert!(system.run("leasehold --version").starts_with("leasehold 0.1.0\n"));
    system.run("leasehold check --offline /usr/share/doc/leasehold/examples/services.yaml");
}

fn units(system: &System, _: &Path) {
    for unit in ["leasehold.service", "leasehold@.service"] {
        let verified = system.run(&format!("systemd-analyze verify --man=no /usr/lib/systemd/system/{unit} 2>&1"));
        assert_eq!(verified, "", "{unit}");
        // 3.0, in tenths.
        system.run(&format!("systemd-analyze security --offline=true --threshold=30 --no-pager {unit}"));
    }
}

fn first_service(system: &System, _: &Path) {
    let page = page();
    let steps: Vec<_> = page.iter().skip_while(|step| step.prompt == Prompt::Root).collect();
    assert!(steps.len() > 10 && steps.iter().all(|step| step.prompt == Prompt::User), "{steps:?}");
    let output = system.run_alone(&script(&steps));
    let outputs: Vec<_> = output.split(&format!("{MARK}\n")).skip(1).collect();
    assert_eq!(outputs.len(), steps.len(), "{output}");
    let wrong: Vec<_> = steps.iter().zip(outputs).filter_map(|(step, output)| step.compare(output).err()).collect();
    assert!(
        wrong.is_empty(),
        "docs/first-service.md shows something else than what it prints:\n\n{}",
        wrong.join("\n\n")
    );
}

/// All steps as one script. A host runs in the background until Ctrl-C; its log is its output until it is ready, and after that
/// the output of Ctrl-C.
fn script(steps: &[&Step]) -> String {
    let mut script = "cd; set -m\n".to_owned();
    for step in steps {
        script.push_str(&format!("echo '{MARK}'\n"));
        if step.is_interrupt() {
            let end = format!("kill -INT $host; wait $host || echo \"{EXIT_CODE}$?\"");
            script.push_str(&format!("before=$(wc -l <~/run.log); {end}\n"));
            script.push_str("tail -n +$((before + 1)) ~/run.log\n");
        } else if step.command.starts_with("leasehold run ") {
            script.push_str(&format!("{} >~/run.log 2>&1 & host=$!\n", step.command));
            script.push_str("for _ in $(seq 300); do grep -q 'event=\"ready\"' ~/run.log && break; sleep 0.1; done; cat ~/run.log\n");
        } else {
            // The log and the output are two streams, whose order on a terminal may differ.
            let shown = format!("code=$?; cat ~/log ~/out; [ $code = 0 ] || echo \"{EXIT_CODE}$code\"");
            script.push_str(&format!("{{ {}; }} 2>~/log >~/out; {shown}\n", step.command));
        }
    }
    script
}

fn upgrades(system: &System, _: &Path) {
    system.run("leasehold init /etc/leasehold/services.yaml && dpkg -i ~/leasehold_*.deb");
    assert!(system.has("etc/leasehold/services.yaml"));
}

fn purges(system: &System, _: &Path) {
    system.run("dpkg --purge leasehold");
    for gone in ["usr/bin/leasehold", "usr/lib/systemd/system/leasehold.service", "usr/share/doc/leasehold"] {
        assert!(!system.has(gone), "{gone} is still there");
    }
    assert!(system.has("etc/leasehold/services.yaml"));
}

fn page() -> Vec<Step> {
    steps(&fs::read_to_string(paths::workspace().join("docs/first-service.md")).expect("the page is in the sources"))
}

/// Runs a command, which must succeed.
fn done(command: &mut Command) {
    said(command);
}

/// Standard output of a command that must succeed.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("it can be started");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}
