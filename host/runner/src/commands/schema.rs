//! `leasehold schema`: the JSON Schema of configuration files and of the files of `keep`, or the reference of their keys.

use super::output::{print, print_json};
use crate::{
    cli::SchemaArgs,
    config::{reference, schema},
    error::Failure,
};

/// Prints the schema, or the page.
pub(crate) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    match (args.keep, args.reference) {
        (false, true) => print(&reference::page()),
        (false, false) => print_json(&schema::schema()),
        (true, true) => print(&reference::kept()),
        (true, false) => print_json(&schema::kept()),
    }
}
