//! Transcripts of a page: the commands of its `console` blocks with their output, to run and to compare.

use regex_lite::Regex;

/// A line that stands for any number of lines; within a line, for any text.
const ELLIPSIS: &str = "…";

/// Begins the last line of a command that fails.
pub const EXIT_CODE: &str = "exit code ";

/// Prompt of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// `#`: root.
    Root,
    /// `$`: a user.
    User,
}

/// A command of a page, or Ctrl-C in the terminal of the program that still runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line in the page, from 1.
    pub line: usize,
    /// The prompt before it.
    pub prompt: Prompt,
    /// The command; `^C` for Ctrl-C.
    pub command: String,
    /// The output as the page has it. Output that a page leaves out is not compared.
    pub printed: Vec<String>,
}

impl Step {
    /// True for Ctrl-C.
    pub fn is_interrupt(&self) -> bool {
        self.command == "^C"
    }

    /// Compares output with that of the page. Times, leases, processes, digests, chosen ports, weights and spaces may differ.
    ///
    /// # Errors
    /// Both outputs, where they differ.
    pub fn compare(&self, output: &str) -> Result<(), String> {
        let lines = |text: &mut dyn Iterator<Item = &str>| -> Vec<_> {
            text.map(general).filter(|line| !line.is_empty()).collect()
        };
        let expected = lines(&mut self.printed.iter().map(String::as_str));
        let found = lines(&mut output.lines());
        let has_failed = found.iter().any(|line| line.starts_with(EXIT_CODE));
        if expected.is_empty() && !has_failed || lines_match(&expected, &found) {
            return Ok(());
        }
        Err(format!(
            "line {}: {}\nthe page has:\n{}\nit prints:\n{output}",
            self.line,
            self.command,
            self.printed.join("\n")
        ))
    }
}

/// The steps of a page, in order.
///
/// # Panics
/// When a block has output before a command.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_block = false;
    for (line, number) in page.lines().zip(1..) {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_block = !in_block && language == "console";
            continue;
        }
        if !in_block {
            continue;
        }
        let command = match (line.strip_prefix("$ "), line.strip_prefix("# "), line == "^C") {
            (Some(command), ..) => Some((Prompt::User, command)),
            (_, Some(command), _) => Some((Prompt::Root, command)),
            (.., true) => Some((Prompt::User, line)),
            _ => None,
        };
        match command {
            Some((prompt, command)) => {
                steps.push(Step { line: number, prompt, command: command.to_owned(), printed: Vec::new() });
            }
            None => {
                let step = steps.last_mut().unwrap_or_else(|| panic!("line {number}: output without a command"));
                step.printed.push(line.to_owned());
            }
        }
    }
    steps
}

/// A line without what differs from one run to the next.
fn general(line: &str) -> String {
    let mut line = line.trim().to_owned();
    for (pattern, general) in [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"\b[0-9a-f]{16}\b", "LEASE"),
        // A build outside of a repository has none.
        (r#" commit="[0-9a-f]+""#, ""),
        (r"\b[0-9a-f]{12}\b|\bnot recorded\b", "DIGEST"),
        (r"\bprocess \d+", "process N"),
        (r"\bpid=\d+", "pid=N"),
        (r"\buid \d+", "uid N"),
        (r"127\.0\.0\.1:[3-6]\d{4}", "127.0.0.1:PORT"),
        (r"[a-z0-9_]+-unknown-linux-[a-z]+", "TARGET"),
        (r"\s+", " "),
        (r"\d+ ok LEASE \d+s", "W ok LEASE S"),
        (r" ready \d+ ", " ready W "),
        (r#""weight":"\d+""#, r#""weight":"W""#),
    ] {
        let pattern = Regex::new(pattern).expect("a test uses every pattern");
        line = pattern.replace_all(&line, general).into_owned();
    }
    line
}

fn lines_match(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == ELLIPSIS => (0..=found.len()).any(|skip| lines_match(rest, &found[skip..])),
        Some((first, rest)) => {
            found.split_first().is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others))
        }
    }
}

fn line_matches(expected: &str, found: &str) -> bool {
    let pattern: Vec<_> = expected.split(ELLIPSIS).map(regex_lite::escape).collect();
    Regex::new(&format!("^{}$", pattern.join(".*"))).is_ok_and(|pattern| pattern.is_match(found))
}

#[cfg(test)]
mod tests {
    use super::{Prompt, steps};

    const PAGE: &str = "\
# A page

```console
# apt-get install x
$ leasehold ls
NAME  WEIGHT  STATE  LEASE             TTL
user      45  ok     3453a227517abe06   7s
…
1 node …
```

```yaml
$ no command
```

```console
^C
```
";

    #[test]
    fn a_page_is_a_list_of_commands_with_their_output() {
        let steps = steps(PAGE);
        let commands: Vec<_> = steps.iter().map(|step| (step.line, step.prompt, step.command.as_str())).collect();
        let expected =
            [(4, Prompt::Root, "apt-get install x"), (5, Prompt::User, "leasehold ls"), (17, Prompt::User, "^C")];
        assert_eq!(commands, expected);
        assert_eq!(steps[1].printed.len(), 4);
        assert!(steps[2].is_interrupt());
    }

    #[test]
    fn output_may_differ_only_in_what_each_run_chooses() {
        let step = &steps(PAGE)[1];
        let output = "NAME  WEIGHT  STATE  LEASE             TTL\nuser      91  ok     0053a227517abe99  10s\n";
        assert_eq!(step.compare(&format!("{output}more\n\n1 node of 1 service\n")), Ok(()));
        assert_eq!(step.compare(&format!("{output}1 node of 1 service\n")), Ok(()));
        assert!(step.compare(output).is_err());
        assert!(step.compare(&output.replace("user", "order")).is_err());
        assert!(step.compare("").is_err());
        assert_eq!(steps(PAGE)[0].compare("whatever apt-get prints\n"), Ok(()));
        assert!(steps(PAGE)[0].compare("not found\nexit code 127\n").is_err());
    }
}
