//! Properties of the terminal behind stdout.

use std::io::{IsTerminal, stdout};

use anstream::{AutoStream, ColorChoice};

/// Width in characters; `None` where stdout is no terminal, or its width is unknown.
pub(super) fn width() -> Option<usize> {
    let stdout = stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())??;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Returns true if stdout shows colors, and neither `NO_COLOR` nor `TERM=dumb` forbids them.
pub(super) fn is_colored() -> bool {
    AutoStream::choice(&stdout()) != ColorChoice::Never
}
