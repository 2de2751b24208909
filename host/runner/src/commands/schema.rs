//! `leasehold schema`: the JSON Schema of configuration files, or the reference page.

use super::output::{print, print_json};
use crate::{
    cli::SchemaArgs,
    config::{reference, schema},
    error::Failure,
};

/// Prints the schema, or the page.
pub(crate) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    match args.reference {
        true => print(&reference::page()),
        false => print_json(&schema::schema()),
    }
}
