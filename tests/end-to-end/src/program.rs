//! A process under test: started, read from, signalled, waited for.

use std::{
    ffi::OsStr,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use leasehold_scenarios::{wait_for, world::SOON};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::paths;

/// Timeout of a program's end, including its drain.
const END: Duration = Duration::from_secs(60);

/// A running program, killed with the test.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pid: u32,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// True if the output contains the text.
    pub fn wrote(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }
}

impl Program {
    /// Starts a program, with `folder` for temporary files and without settings of the caller's environment.
    pub fn spawn<A: AsRef<OsStr>>(path: &Path, arguments: impl IntoIterator<Item = A>, folder: &Path) -> Self {
        Self::spawn_with(path, arguments, folder, &[])
    }

    /// Starts a program with further environment variables.
    pub fn spawn_with<A: AsRef<OsStr>>(
        path: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::spawn_passing(path, arguments, folder, variables, Vec::new())
    }

    /// Starts it with these descriptors, from the number 3 on.
    pub fn spawn_passing<A: AsRef<OsStr>>(
        path: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
        variables: &[(&str, &str)],
        descriptors: Vec<OwnedFd>,
    ) -> Self {
        Self::spawn_reading(path, arguments, folder, variables, descriptors, Stdio::null())
    }

    /// Starts a program that reads standard input, which [`write`](Self::write) writes.
    pub fn spawn_with_input<A: AsRef<OsStr>>(
        path: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
    ) -> Self {
        Self::spawn_reading(path, arguments, folder, &[], Vec::new(), Stdio::piped())
    }

    fn spawn_reading<A: AsRef<OsStr>>(
        path: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
        variables: &[(&str, &str)],
        descriptors: Vec<OwnedFd>,
        stdin: Stdio,
    ) -> Self {
        let mappings = (3..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new(path);
        command.fd_mappings(mappings.collect()).expect("each has a number of its own");
        let mut child = command
            .args(arguments)
            .env_remove("RUST_LOG")
            .env("XDG_CACHE_HOME", paths::cache())
            .env("TMPDIR", folder)
            .env("XDG_RUNTIME_DIR", runtime())
            .env("LEASEHOLD_ADMIN_TOKEN_FILE", paths::admin_token())
            .envs(variables.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started");
        let stdin = child.stdin.take();
        let pid = child.id().expect("it was just started");
        let stdout = Lines::of(child.stdout.take().expect("it is piped"));
        let stderr = Lines::of(child.stderr.take().expect("it is piped"));
        Self { child, pid, stdin, stdout, stderr }
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Writes a line to standard input.
    ///
    /// # Panics
    /// If the program has ended, or was started without input.
    pub async fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it was started with input");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    /// Ends standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal by its name: `TERM`, `INT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.pid.to_string()])
            .status()
            .expect("a shell can be started");
        assert!(sent.success(), "the program is not there to be signalled");
    }

    /// Resident memory, in bytes.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_else(|| panic!("it has ended:\n{status}"))
    }

    /// Lines of standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.so_far()
    }

    /// Lines of standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.so_far()
    }

    /// Waits for a line of either stream that fits, and returns it.
    ///
    /// # Panics
    /// If the program ends without such a line, or on a timeout.
    pub async fn line(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        wait_for(&format!("the program says {what}"), SOON, async || {
            let over = self.child.try_wait().expect("a child can be asked").is_some();
            if over {
                self.stderr.end().await;
                self.stdout.end().await;
            }
            found = self.stderr().into_iter().chain(self.stdout()).find(|line| fits(line));
            assert!(found.is_some() || !over, "it ended without {what}:\n{}", self.stderr().join("\n"));
            found.is_some()
        })
        .await;
        found.expect("it was just found")
    }

    /// Waits for the exit of the process; others may go on with its output.
    ///
    /// # Panics
    /// If it does not exit.
    pub async fn exits(&mut self) -> Option<i32> {
        let status = timeout(END, self.child.wait()).await;
        let Ok(status) = status else { panic!("it does not exit:\n{}", self.stderr().join("\n")) };
        status.expect("a child can be waited for").code()
    }

    /// Waits for the end of the program.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ends(mut self) -> Ended {
        let status = timeout(END, self.child.wait()).await;
        let Ok(status) = status else { panic!("it does not end:\n{}", self.stderr().join("\n")) };
        let status = status.expect("a child can be waited for");
        self.stdout.end().await;
        self.stderr.end().await;
        Ended { code: status.code(), stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

/// Folder for the sockets of hosts, apart from that for temporary files; its path is short, as that of a socket has to be.
fn runtime() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join("leasehold-tests");
    std::fs::create_dir_all(&folder).expect("there is a folder for temporary files");
    folder
}

/// Lines of one stream.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    fn of(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let sink = Arc::clone(&lines);
        let reader = tokio::spawn(async move {
            let mut stream = BufReader::new(stream).lines();
            while let Ok(Some(line)) = stream.next_line().await {
                sink.lock().expect("pushing does not panic").push(line);
            }
        });
        Self { lines, reader: Some(reader) }
    }

    fn so_far(&self) -> Vec<String> {
        self.lines.lock().expect("pushing does not panic").clone()
    }

    fn text(&self) -> String {
        self.so_far().into_iter().map(|line| line + "\n").collect()
    }

    /// Waits for the end of the stream. A child process that is left behind holds the stream open, which is a failure.
    async fn end(&mut self) {
        if let Some(reader) = self.reader.take() {
            let all = timeout(SOON, reader).await;
            all.expect("nothing that the program started outlives it").expect("reading does not panic");
        }
    }
}
