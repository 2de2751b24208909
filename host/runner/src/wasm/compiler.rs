//! Compilation in a child process, which takes its memory and its failures with it.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write, stderr, stdin, stdout},
    path::Path,
    process::{ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures::future::join3;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use wasmtime::{Config, Engine};

use crate::{
    error::{Failure, one_line},
    process::cpus,
    wasm::error::cause,
};

/// The subcommand of the child, which is hidden: it speaks to its parent only.
pub(crate) const SUBCOMMAND: &str = "compile-for-parent";

/// Longest duration of one compilation.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Time after which a compilation is logged, and interval of further lines.
const FIRST_LOG: Duration = Duration::from_secs(1);
const REMIND: Duration = Duration::from_secs(10);
/// Niceness of the child: requests that are served go first.
const NICE: i32 = 5;
/// The exit code of a child whose component is at fault.
const REFUSED: u8 = 64;
/// Bytes of the child's standard error that are read, at most.
const MAX_STDERR_BYTES: u64 = 16 << 10;

/// Compiler settings, the same in the host and in its child.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config.wasm_component_model_async(true);
    config.epoch_interruption(true);
    config
}

/// Reasons for which there is no machine code.
pub(crate) enum NotCompiled {
    /// The component is at fault.
    Refused(String),
    /// The child ended otherwise than it should.
    Failed(String),
    /// No child can be started.
    NoProcess(io::Error),
}

/// Limits compilations to as many at a time as there are processors, and runs blocking work on files.
pub(crate) struct Compiler {
    permits: Semaphore,
    /// Blocking work, each awaited by its caller.
    tasks: TaskTracker,
}

impl Compiler {
    pub(crate) fn new() -> Self {
        Self { permits: Semaphore::new(cpus::available()), tasks: TaskTracker::new() }
    }

    /// Waits for a permit to compile.
    pub(crate) async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the permits are never closed")
    }

    /// Runs work on a thread that may block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let done = self.tasks.spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(Failure::other("a component could not be loaded: the host failed in it")))
    }
}

/// Compiles the component that was read from `path`, and logs the progress of a long compilation. Returns a file in memory
/// that holds the machine code.
pub(crate) async fn compile(path: &Path, bytes: Arc<Vec<u8>>) -> Result<File, NotCompiled> {
    let (begun, size) = (Instant::now(), Megabytes(bytes.len()));
    let progress = async {
        sleep(FIRST_LOG).await;
        tracing::info!("compiling {}, {size}", path.display());
        loop {
            sleep(REMIND).await;
            tracing::info!("still compiling {}, for {:.0?} so far", path.display(), begun.elapsed());
        }
    };
    let compiled = tokio::select! {
        compiled = in_child(bytes) => compiled?,
        never = progress => match never {},
    };
    if begun.elapsed() > FIRST_LOG {
        tracing::info!("compiled {} in {:.1?}", path.display(), begun.elapsed());
    }
    Ok(compiled)
}

struct Megabytes(usize);

impl fmt::Display for Megabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MB", self.0 as f64 / 1e6)
    }
}

async fn in_child(bytes: Arc<Vec<u8>>) -> Result<File, NotCompiled> {
    let output = memory().map_err(NotCompiled::NoProcess)?;
    let itself = itself().map_err(NotCompiled::NoProcess)?;
    let mut child = Command::new(itself)
        .arg0("leasehold")
        .arg(SUBCOMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(output.try_clone().map_err(NotCompiled::NoProcess)?)
        .stderr(Stdio::piped())
        // Out of the terminal's group: Ctrl-C is for the host, which ends the child.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(NotCompiled::NoProcess)?;
    let (mut input, errors) = (child.stdin.take(), child.stderr.take());
    let sent = async {
        if let Some(input) = &mut input {
            // A child that does not read has ended, and its status says how.
            let _ = input.write_all(&(bytes.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(&bytes).await;
        }
    };
    let message = async {
        let mut message = Vec::new();
        if let Some(errors) = errors {
            let _ = errors.take(MAX_STDERR_BYTES).read_to_end(&mut message).await; // The text is used as far as it was read.
        }
        one_line(&String::from_utf8_lossy(&message))
    };
    let ended = timeout(COMPILE_TIMEOUT, join3(sent, message, child.wait())).await;
    drop(input); // Its end ends the child.
    let Ok(((), message, status)) = ended else {
        return Err(NotCompiled::Failed(format!("it takes longer than {COMPILE_TIMEOUT:?} to compile")));
    };
    let status = status.map_err(NotCompiled::NoProcess)?;
    match status.code() {
        Some(0) => Ok(output),
        Some(code) if code == i32::from(REFUSED) => Err(NotCompiled::Refused(message)),
        _ if message.is_empty() => Err(NotCompiled::Failed(format!("its compilation ended by {status}"))),
        _ => Err(NotCompiled::Failed(format!("its compilation ended by {status}: {message}"))),
    }
}

/// A file without a name, which takes no room on any disk.
#[cfg(target_os = "linux")]
fn memory() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("leasehold", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

#[cfg(not(target_os = "linux"))]
fn memory() -> io::Result<File> {
    tempfile::tempfile()
}

/// The path of this program, even if another release has replaced its file.
fn itself() -> io::Result<std::path::PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Ok(running.to_owned()) } else { std::env::current_exe() }
}

/// The child: machine code of the component that its standard input holds, on its standard output. Ends with its parent.
pub(crate) fn child() -> ExitCode {
    let _ = rustix::process::nice(NICE); // It is compiled nevertheless.
    let outcome = read().and_then(|bytes| {
        thread::Builder::new().name("parent".to_owned()).spawn(end_with_parent)?;
        Ok(bytes)
    });
    let code = outcome.map_err(|error| (1, error.to_string())).and_then(|bytes| {
        let engine = Engine::new(&config()).map_err(|error| (1, format!("{error:#}")))?;
        let code = engine.precompile_component(&bytes).map_err(|error| (REFUSED, cause(&error)))?;
        stdout().lock().write_all(&code).map_err(|error| (1, error.to_string()))
    });
    match code {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            let _ = stderr().write_all(message.as_bytes()); // The parent may be gone.
            ExitCode::from(code)
        }
    }
}

fn read() -> io::Result<Vec<u8>> {
    let mut input = stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let mut bytes = Vec::new();
    let length = u64::from_le_bytes(length);
    let read = input.take(length).read_to_end(&mut bytes)?;
    if read as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Ends the process at the end of its input, which the parent keeps open for as long as it waits.
fn end_with_parent() {
    let _ = stdin().lock().read(&mut [0]); // Whatever comes, nothing should.
    std::process::exit(1);
}
