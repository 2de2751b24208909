//! Arguments of a component, as a target of fuzzing and as properties: they are refused with a case and a short text, or are
//! within the policy.

use leasehold::{Addr, ServiceName};

use crate::{Policy, bindings::v0_2::leasehold::registry::registry_types as types};

/// Longest text of a refusal, which repeats a short piece of an argument at most.
const MAX_TEXT_BYTES: usize = 1024;

/// The arguments of `register` and `resolve`, a line each: name, address, version, weight, time to live, and pairs of metadata
/// with a `=` in between.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default().to_owned();
    let (name, addr, version, weight, ttl) = (line(), line(), line(), line(), line());
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let node = types::ServerNode {
        name: name.clone(),
        addr,
        version: version.clone(),
        weight: weight.parse().ok(),
        metadata: lines.filter_map(pair).collect(),
    };
    let own: Addr = "127.0.0.1:80".parse().expect("an address");
    let service: ServiceName = "user".parse().expect("a name");
    let policy = Policy::serving(service.clone(), own.clone());
    match policy.admit(node) {
        Ok(node) => assert!(node.name == service && node.addr == own),
        Err(refusal) => is_short(&refusal.into()),
    }
    match policy.terms_for(ttl.parse().unwrap_or(0)) {
        Ok(terms) => assert!(terms.ttl.is_none_or(|ttl| ttl.seconds() <= policy.max_ttl.as_secs())),
        Err(refusal) => is_short(&refusal.into()),
    }
    match (Policy { discover: [service.clone()].into_iter().collect(), ..policy }).admit_lookup(&name, &version) {
        Ok((name, _)) => assert!(name == service),
        Err(refusal) => is_short(&refusal.into()),
    }
}

/// Holds that a refusal fits into a line of the log, whatever was passed.
fn is_short(error: &types::Error) {
    let text = format!("{error:?}");
    assert!(text.len() <= MAX_TEXT_BYTES && !text.contains(char::is_control), "{text}");
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::{ProptestConfig, proptest};

    use super::policy;

    /// The kept corpus: the seeds of fuzzing, and its findings.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/policy");
        let files: Vec<_> = fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty());
        files.iter().for_each(|file| policy(&fs::read(file).unwrap()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arguments_are_within_the_policy_or_refused(
            name in "user|.{0,300}", addr in "|127\\.0\\.0\\.1:80|.{0,300}", version in "v[0-9]|.{0,200}", rest in "([0-9]{0,5}\n){2}(.{0,9}=.{0,9}\n){0,70}"
        ) {
            policy(format!("{name}\n{addr}\n{version}\n{rest}").as_bytes());
        }
    }
}
