//! The build of a folder, by the tool that its language has for it.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::error::Failure;

/// Files that say how to build, and the command that they stand for.
const KNOWN: [(&str, &str); 4] = [
    ("Makefile", "make build"),
    ("makefile", "make build"),
    ("GNUmakefile", "make build"),
    ("package.json", "npm run build"),
];

/// A command that builds a folder.
pub(super) struct Build {
    folder: PathBuf,
    command: String,
}

impl Build {
    /// The given command, or that of the first known file in the folder.
    pub(super) fn of(folder: &Path, command: Option<&str>) -> Result<Self, Failure> {
        let known = || KNOWN.iter().find(|(file, _)| folder.join(file).is_file()).map(|(_, command)| *command);
        let Some(command) = command.or_else(known) else {
            return Err(Failure::usage(format!(
                "{}: there is neither a Makefile nor a package.json; --build 'COMMAND' says how to build",
                folder.display()
            )));
        };
        Ok(Self { folder: folder.to_owned(), command: command.to_owned() })
    }

    /// Builds. What the tool prints is printed as it is. Fails with a sentence.
    pub(super) async fn run(&self) -> Result<(), String> {
        let (command, begun) = (&self.command, Instant::now());
        tracing::info!(event = "building", "building: {command}");
        let mut group = Group(self.start().map_err(|error| format!("{command} cannot be started: {error}"))?);
        let status = group.ends().await.map_err(|error| format!("{command}: {error}"))?;
        if !status.success() {
            return Err(format!("the build failed: {command}: {status}"));
        }
        tracing::info!(event = "built", "built in {:.1} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn start(&self) -> io::Result<Child> {
        Command::new("sh")
            .args(["-c", &self.command])
            .current_dir(&self.folder)
            // The same binary where the build calls it, as for `leasehold componentize`.
            .env("LEASEHOLD", env::current_exe()?)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
    }
}

/// A running build with the processes that it has started: none outlives it.
struct Group(Child);

impl Group {
    async fn ends(&mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Without a number it has ended by itself.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(group, Signal::TERM); // It may end in this moment.
        }
    }
}
