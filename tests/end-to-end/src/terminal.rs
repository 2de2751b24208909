//! A program in a terminal: its screen as a person sees it, and the keys that are pressed.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use leasehold_scenarios::{wait_for, world::SOON};
use pty_process::{Command, OwnedReadPty, OwnedWritePty, Size, open};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    task::JoinHandle,
    time::timeout,
};
use vt100::Parser;

/// Timeout of a program's end.
const END: Duration = Duration::from_secs(20);

/// A running program and its terminal; it is killed with the test.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keys: OwnedWritePty,
    output: Arc<Mutex<Output>>,
    reader: JoinHandle<()>,
}

/// Output so far, as bytes and as the screen that they make.
struct Output {
    bytes: Vec<u8>,
    screen: Parser,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.screen.screen().contents())
    }
}

impl Terminal {
    /// Starts a program in a terminal of this size, with `folder` for temporary files.
    ///
    /// # Panics
    /// If there is no terminal, or no such program.
    pub fn spawn<A: AsRef<OsStr>>(
        path: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
        (columns, lines): (u16, u16),
        variables: &[(&str, &str)],
    ) -> Self {
        let (pty, terminal) = open().expect("a pseudo terminal");
        pty.resize(Size::new(lines, columns)).expect("it takes a size");
        let child = Command::new(path)
            .args(arguments)
            .env_remove("RUST_LOG")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color")
            .env("TZ", "UTC")
            .env("TMPDIR", folder)
            .envs(variables.iter().copied())
            .kill_on_drop(true)
            .spawn(terminal)
            .expect("the program can be started");
        let (output, keys) = pty.into_split();
        let shared = Arc::new(Mutex::new(Output { bytes: Vec::new(), screen: Parser::new(lines, columns, 0) }));
        let reader = tokio::spawn(read(output, Arc::clone(&shared)));
        Self { child, keys, output: shared, reader }
    }

    /// Presses keys, as the bytes that a terminal sends.
    ///
    /// # Panics
    /// If the program has ended.
    pub async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.expect("the terminal takes keys");
    }

    /// Sends a signal by its name.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid]).status();
        assert!(sent.expect("a shell can be started").success(), "the program is not there to be signalled");
    }

    /// The lines of the screen, without space at their ends.
    pub fn lines(&self) -> Vec<String> {
        let output = self.output.lock().expect("reading does not panic");
        output.screen.screen().contents().lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Everything that was written so far.
    pub fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("reading does not panic").bytes).into_owned()
    }

    /// True if a program fills the screen, which leaves the lines behind it as they were.
    pub fn is_full_screen(&self) -> bool {
        self.output.lock().expect("reading does not panic").screen.screen().alternate_screen()
    }

    /// True if the cursor is hidden.
    pub fn hides_cursor(&self) -> bool {
        self.output.lock().expect("reading does not panic").screen.screen().hide_cursor()
    }

    /// Waits until the screen is as it should be.
    ///
    /// # Panics
    /// On a timeout, with the screen.
    pub async fn shows(&self, what: &str, is: impl Fn(&[String]) -> bool) {
        let shown = async { wait_for(what, SOON * 2, async || is(&self.lines())).await };
        if timeout(SOON, shown).await.is_err() {
            panic!("the screen does not show {what}:\n{}", self.lines().join("\n"));
        }
    }

    /// Waits for the end of the program; returns its exit code, and the terminal as it leaves it.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ends(mut self) -> (Option<i32>, Left) {
        let status = timeout(END, self.child.wait()).await;
        let Ok(status) = status else { panic!("it does not end:\n{}", self.lines().join("\n")) };
        // The device fails to be read once no process has it open.
        let _ = timeout(END, &mut self.reader).await;
        let left = Left {
            lines: self.lines(),
            bytes: self.bytes(),
            is_full_screen: self.is_full_screen(),
            hides_cursor: self.hides_cursor(),
        };
        (status.expect("a child can be waited for").code(), left)
    }
}

/// A terminal after the end of its program.
#[derive(Debug)]
pub struct Left {
    /// The lines of the screen.
    pub lines: Vec<String>,
    /// Everything that was written.
    pub bytes: String,
    /// True if the program did not leave the full screen.
    pub is_full_screen: bool,
    /// True if the program did not show the cursor again.
    pub hides_cursor: bool,
}

async fn read(mut from: OwnedReadPty, to: Arc<Mutex<Output>>) {
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let mut output = to.lock().expect("reading does not panic");
        output.bytes.extend_from_slice(&piece[..read]);
        output.screen.process(&piece[..read]);
    }
}
