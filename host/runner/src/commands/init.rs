//! `leasehold init`: a first configuration file, with comments.

use std::{fs::File, io::Write};

use super::output::print;
use crate::{cli::InitArgs, config::schema, error::Failure};

/// The file, below the line that names the schema.
const TEXT: &str = include_str!("init.yaml");

/// The text of a first configuration file.
pub(crate) fn text() -> String {
    format!("# yaml-language-server: $schema={}\n{TEXT}", schema::FILE)
}

/// Writes the file, unless there is one.
pub(crate) fn init(args: &InitArgs) -> Result<(), Failure> {
    let file = args.file.display();
    let written = File::create_new(&args.file).and_then(|mut created| created.write_all(text().as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::usage(format!("{file} exists; init overwrites no file")),
        _ => Failure::other(format!("cannot write {file}: {error}")),
    })?;
    print(&format!(
        "{file} is written; change it, then: leasehold check {file}\nFor editors: leasehold schema > {}\n",
        schema::FILE
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn the_first_file_is_a_configuration() {
        let config = Config::parse("services.yaml", &super::text(), Path::new("")).unwrap();
        assert_eq!(config.services.len(), 1);
    }
}
