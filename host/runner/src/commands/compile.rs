//! `leasehold compile`: machine code of a component, for starts that do not compile.

use std::{
    fs::Permissions,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::{cli::CompileArgs, component, engine::Engine, failure::Failure};

/// Writes the machine code. A file of that name is replaced as a whole, or not at all.
pub(crate) fn compile(args: &CompileArgs) -> Result<(), Failure> {
    let code = component::machine_code(&Engine::new(&[])?, &args.file)?;
    let output = args.output.clone().unwrap_or_else(|| args.file.with_extension("cwasm"));
    write(&output, &code).map_err(|error| Failure::other(format!("cannot write {}: {error}", output.display())))?;
    tracing::info!("{} is {} bytes of machine code; run it with precompiled: true", output.display(), code.len());
    Ok(())
}

fn write(output: &Path, code: &[u8]) -> io::Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any other file, and not for its maker only.
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(code)?;
    file.as_file().sync_all()?;
    file.persist(output).map_err(|error| error.error)?;
    Ok(())
}
