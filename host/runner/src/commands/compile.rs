//! `leasehold compile`: machine code of a component, for starts that do not compile.

use tokio_util::task::TaskTracker;

use super::progress::Progress;
use crate::{
    cli::CompileArgs,
    error::Failure,
    wasm::{cache, component, engine::Engine},
};

/// Mode of an ordinary file, readable beyond its owner.
const MODE: u32 = 0o666;

/// Writes the machine code. A file of that name is replaced as a whole, or not at all.
pub(crate) async fn compile(args: CompileArgs) -> Result<(), Failure> {
    let progress = Progress::of(format!("compiling {}", args.file.display()));
    let output = args.output.unwrap_or_else(|| args.file.with_extension("cwasm"));
    let tasks = TaskTracker::new();
    let compiling = tasks.spawn_blocking(move || component::machine_code(&Engine::new(&[])?, &args.file));
    let code = progress.during(compiling).await;
    let code =
        code.unwrap_or_else(|_| Err(Failure::other("the component could not be compiled: the compiler failed")))?;
    let written = cache::write_whole(&output, &code, MODE);
    written.map_err(|error| Failure::other(format!("cannot write {}: {error}", output.display())))?;
    tracing::info!("{} is {} bytes of machine code; run it with precompiled: true", output.display(), code.len());
    Ok(())
}
