//! `leasehold doctor --fix`: deletes leftover keys that are unchanged since they were examined.

use std::io::{BufRead, Write, stderr, stdin};

use leasehold::{Options, Registrar};
use serde::Serialize;

use super::finding::{Finding, Fix};
use crate::{
    connect,
    error::{Failure, shown},
};

/// One key and the outcome for it.
#[derive(Debug, Serialize)]
pub(super) struct Fixed {
    pub(super) key: String,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    Deleted,
    /// It was written or deleted after it was examined.
    Changed,
    /// The operator declined, or there was no question.
    Left,
}

impl Outcome {
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Changed => "left alone: it has changed since it was examined",
            Self::Left => "left alone",
        }
    }
}

/// Deletes each key that may be deleted: with `yes` those without a caution, otherwise those for which the operator agrees.
pub(super) async fn apply(
    registrar: &Registrar,
    options: &Options,
    findings: &[Finding],
    yes: bool,
) -> Result<Vec<Fixed>, Failure> {
    let mut fixed = Vec::new();
    for (finding, fix) in findings.iter().filter_map(|finding| Some((finding, finding.fix.as_ref()?))) {
        let agreed = match yes {
            true => fix.caution.is_none(),
            false => agreed(finding, fix),
        };
        let outcome = if agreed {
            let deleted = registrar.delete_unchanged(&fix.key, fix.revision).await;
            let deleted = deleted.map_err(|error| Failure::unavailable(connect::message(&error, options)))?;
            if deleted { Outcome::Deleted } else { Outcome::Changed }
        } else {
            Outcome::Left
        };
        fixed.push(Fixed { key: shown(&fix.key), outcome });
    }
    Ok(fixed)
}

/// Asks on standard error. Any answer but yes is a no, the end of the input included.
fn agreed(finding: &Finding, fix: &Fix) -> bool {
    let caution = fix.caution.map_or_else(String::new, |caution| format!(" ({caution})"));
    let question = format!("{}: {}{caution}; delete it? [y/N] ", shown(&fix.key), finding.kind);
    let mut answer = String::new();
    // A question that cannot be written is not answered with yes.
    let answered = stderr().write_all(question.as_bytes()).and_then(|()| stdin().lock().read_line(&mut answer));
    answered.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
