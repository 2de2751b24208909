//! Processes of this program that do one part of it: a command a line goes in, a line of numbers comes out.

use std::{env, fs, io::Write, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use leasehold_scenarios::growth::resident_bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Timeout of a command.
const PATIENCE: Duration = Duration::from_secs(500);

/// A process under measurement.
pub(crate) struct Process {
    child: Child,
    commands: ChildStdin,
    responses: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this program with another role.
    pub(crate) fn start(role: &str, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(role).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let commands = child.stdin.take().context("stdin")?;
        let responses = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, commands, responses })
    }

    /// Sends a command.
    pub(crate) async fn send(&mut self, command: &str) -> Result<()> {
        Ok(self.commands.write_all(format!("{command}\n").as_bytes()).await?)
    }

    /// Waits for the response of the last command: that many numbers.
    pub(crate) async fn response<const N: usize>(&mut self) -> Result<[f64; N]> {
        let line = timeout(PATIENCE, self.responses.next_line()).await.context("no response")??;
        let line = line.context("the process ended")?;
        let numbers: Vec<f64> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>().with_context(|| line.clone())?;
        ensure!(numbers.len() == N, "{N} numbers are due, not {line:?}");
        Ok(std::array::from_fn(|index| numbers[index]))
    }

    /// Sends a command and waits for its response.
    pub(crate) async fn run<const N: usize>(&mut self, command: &str) -> Result<[f64; N]> {
        self.send(command).await?;
        self.response().await.with_context(|| command.to_owned())
    }

    fn id(&self) -> Result<String> {
        Ok(self.child.id().context("the process runs")?.to_string())
    }

    /// Resident memory.
    pub(crate) fn memory(&self) -> Result<u64> {
        Ok(resident_bytes(&self.id()?))
    }

    /// Processor time so far, of all threads, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()?))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += stat.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(nanos as f64 / 1e9)
    }
}

/// Executes the commands on stdin with `execute`, until its end.
pub(crate) async fn serve(mut execute: impl AsyncFnMut(Vec<String>) -> Result<Vec<f64>>) -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let numbers = execute(line.split_whitespace().map(str::to_owned).collect()).await?;
        let texts: Vec<String> = numbers.iter().map(f64::to_string).collect();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", texts.join(" "))?;
        stdout.flush()?;
    }
    Ok(())
}

/// The number at this place of a command.
pub(crate) fn number(words: &[String], place: usize) -> Result<usize> {
    match words.get(place).map(|word| word.parse()) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("a number is missing in {words:?}"),
    }
}
