//! Command lines for an operator's shell, quoted so that no foreign text is executed.

use std::borrow::Cow;

use leasehold::Options;

use crate::config::EtcdFiles;

/// `etcdctl` with the endpoints, the user and the certificates of the etcd that was examined.
pub(super) struct Etcdctl(String);

impl Etcdctl {
    pub(super) fn new(options: &Options, files: &EtcdFiles) -> Self {
        let mut line = format!("etcdctl --endpoints={}", quoted(&options.endpoints.join(",")));
        // etcdctl prompts for the password, which is not shown.
        if let Some(credentials) = &options.credentials {
            line += &format!(" --user={}", quoted(&credentials.user));
        }
        for (flag, file) in [("cacert", &files.ca), ("cert", &files.cert), ("key", &files.key)] {
            if let Some(file) = file {
                line += &format!(" --{flag}={}", quoted(&file.to_string_lossy()));
            }
        }
        Self(line)
    }

    /// A command line with these words, which are part of the program.
    pub(super) fn line(&self, words: &str) -> String {
        format!("{} {words}", self.0)
    }

    /// A command line with these words of an operator or of the configuration.
    pub(super) fn words(&self, words: &[&str]) -> String {
        self.line(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
    }

    /// The command line that deletes a key; `None` for a key that a terminal may not show as it is.
    pub(super) fn delete(&self, key: &str) -> Option<String> {
        key.chars().all(is_plain).then(|| self.line(&format!("del -- {}", quoted(key))))
    }
}

/// Excludes characters that move the cursor or change the direction of a text, and replacements of invalid bytes.
fn is_plain(c: char) -> bool {
    let directs = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    !c.is_control() && !directs && c != char::REPLACEMENT_CHARACTER
}

/// One word of a POSIX shell.
fn quoted(word: &str) -> Cow<'_, str> {
    let needs_none = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    match !word.is_empty() && word.bytes().all(needs_none) {
        true => Cow::Borrowed(word),
        // Between single quotes only the closing quote has a meaning.
        false => Cow::Owned(format!("'{}'", word.replace('\'', r"'\''"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command};

    use leasehold::{Credentials, Options};

    use super::{Etcdctl, quoted};
    use crate::config::EtcdFiles;

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_was() {
        for word in [
            "plain/v1/10.0.0.4:1",
            "",
            "-n",
            "a b",
            "$(exit 7)`exit 7`${IFS}",
            "it's '' \"quoted\" \\",
            "; exit 7 #",
            "*?[a]~!{a,b}",
            "two\nlines",
            "日本 é",
        ] {
            let script = format!("printf '%s' {}", quoted(word));
            let printed = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(printed.stdout).unwrap(), word, "{script}");
        }
    }

    #[test]
    fn a_command_names_the_etcd_that_was_examined() {
        let mut options = Options::new(["https://a:1", "https://b:2"]);
        options.credentials = Some(Credentials { user: "o'neil".into(), password: "secret".into() });
        let path = |name: &str| Some(PathBuf::from(name));
        let files = EtcdFiles { ca: path("/etc/my ca.pem"), cert: path("cert.pem"), key: path("key.pem") };
        let etcdctl = Etcdctl::new(&options, &files);
        assert_eq!(
            etcdctl.delete("/$(x)/h:1").unwrap(),
            "etcdctl --endpoints=https://a:1,https://b:2 --user='o'\\''neil' --cacert='/etc/my ca.pem' --cert=cert.pem \
             --key=key.pem del -- '/$(x)/h:1'"
        );
        for unshown in ["/a\u{1b}[2J", "/a\nb", "/\u{202e}a", "/\u{fffd}"] {
            assert_eq!(etcdctl.delete(unshown), None, "{unshown:?}");
        }
    }
}
