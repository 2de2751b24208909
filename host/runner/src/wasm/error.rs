//! Errors of wasmtime, in this program's words.

use anyhow::anyhow;

use crate::error::one_line;

/// Root cause of an error, on one line, without wasmtime's backtrace.
pub(crate) fn cause(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(trap) => trap.to_string(),
        None => one_line(&error.root_cause().to_string()),
    }
}

/// An error of wasmtime's own type with all of its causes.
#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
pub(crate) fn into_anyhow(error: wasmtime::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}
