//! Targets of fuzzing, also as properties: input of clients and operators is refused with a sentence, or has its documented
//! meaning.

use std::path::Path;

use http::{HeaderValue, Method, Request, header, uri::Scheme};

use crate::{
    admin::routes::{Rights, Route, Token},
    config::{
        Config,
        destination::{Destination, Target, is_local},
    },
    grpc,
    inbound::target::Origin,
};

/// Longest report about a configuration.
const MAX_REPORT_BYTES: usize = 64 << 10;
/// Words of YAML's parsers and of serde, which no report has.
const FOREIGN: [&str; 8] = ["EOF", "mapping", "scalar", "sequence", "flow ", "deserialize", "granit", "Option<"];

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // No file is read: none is there. No variable is set.
    if let Err(mistakes) = Config::parse_in("c.yaml", text, Path::new("/nonexistent"), |_| None) {
        let (sentences, report) = (mistakes.to_string(), mistakes.text());
        assert!(!sentences.contains('\n') && report.len() <= MAX_REPORT_BYTES, "{report}");
        assert!(report.starts_with("c.yaml"), "{report}");
        for word in FOREIGN.iter().filter(|word| !text.contains(*word)) {
            assert!(!report.contains(word), "{word}: {report}");
        }
    }
}

/// An entry of `allow.outbound`, and the authorities of requests, a line each.
pub fn destination(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let entry: Result<Destination, _> = lines.next().unwrap_or_default().parse();
    if let Ok(entry) = &entry {
        assert_eq!(entry.to_string().parse().as_ref(), Ok(entry), "it is read as it is shown");
    }
    for authority in lines.filter_map(|line| line.parse().ok()) {
        let Some(target) = Target::of(&authority, None) else { continue };
        if let Ok(shown) = target.entry().parse::<Destination>() {
            assert!(
                Destination::permitting(&[shown], target, false).is_ok(),
                "the entry in the log permits its target"
            );
        }
        if let Ok(entry) = &entry {
            let permits = |local| Destination::permitting(std::slice::from_ref(entry), target, local).is_ok();
            assert!(permits(true) || !permits(false), "what is permitted is permitted with more rights, too");
        }
    }
}

/// The head of a request as the host hands it on: method, target and hosts, a line each, then `grpc-timeout`.
pub fn request(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (method, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Ok(mut request) = Request::builder().method(method).uri(uri).body(()) else { return };
    for (number, line) in lines.enumerate().take(4) {
        let Ok(value) = HeaderValue::from_bytes(line) else { continue };
        let name = if number < 2 { header::HOST } else { header::HeaderName::from_static("grpc-timeout") };
        request.headers_mut().append(name, value);
    }
    let _ = grpc::timeout(request.headers());
    if Origin::new(Scheme::HTTP, None, None).locate(&mut request).is_ok()
        && let Some(authority) = request.uri().authority()
    {
        assert!(!authority.as_str().contains('@') && request.uri().scheme().is_some());
    }
}

/// The token of the admin endpoint.
const EXPECTED: &[u8] = b"0123456789abcdef";

/// Returns true if a request has the token.
fn has_token(request: &Request<()>) -> bool {
    let value = request.headers().get(header::AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    value.len() >= 7 && value[..7].eq_ignore_ascii_case(b"bearer ") && value[7..].trim_ascii() == EXPECTED
}

/// The head of a request to the admin endpoint: method, target, `host`, `origin` and `authorization`, a line each; an empty
/// one is absent.
pub fn admin(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (method, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Ok(mut request) = Request::builder().method(method).uri(uri).body(()) else { return };
    for (name, line) in [header::HOST, header::ORIGIN, header::AUTHORIZATION].into_iter().zip(lines) {
        if let (false, Ok(value)) = (line.is_empty(), HeaderValue::from_bytes(line)) {
            request.headers_mut().append(name, value);
        }
    }
    for takes_any_name in [false, true] {
        match Route::of(&request, takes_any_name) {
            Ok(route) if route.is_command() => {
                let is_command = request.method() == Method::POST && !request.headers().contains_key(header::ORIGIN);
                assert!(is_command, "a change is a POST from outside of web pages");
                let is_refused = |rights, token| route.permit(rights, token).is_err();
                let tokens = [Token::Absent, Token::Wrong, Token::Right];
                assert!(
                    tokens.into_iter().all(|token| is_refused(Rights::Read, token)),
                    "nothing changes without rights"
                );
                assert!(tokens.into_iter().all(|token| is_refused(Rights::Probes, token)));
                assert!(is_refused(Rights::Token, Token::of(request.headers(), EXPECTED)) != has_token(&request));
            }
            Ok(route) => {
                assert!(matches!(*request.method(), Method::GET | Method::HEAD));
                assert!(route.permit(Rights::Read, Token::Absent).is_ok(), "reading needs no token");
            }
            Err(refusal) => assert!(refusal.status.is_client_error() && !refusal.message.contains('\n')),
        }
    }
}

/// An address, of which only the form may differ.
pub fn local(data: &[u8]) {
    let Some((octets, _)) = data.split_first_chunk::<4>() else { return };
    let [a, b, c, d] = *octets;
    let plain = is_local((*octets).into());
    let forms = [
        format!("::ffff:{a}.{b}.{c}.{d}"),
        format!("64:ff9b::{a}.{b}.{c}.{d}"),
        format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
        format!("2001:db8::5efe:{a}.{b}.{c}.{d}"),
    ];
    for form in forms {
        assert_eq!(is_local(form.parse().expect("an address")), plain, "{form}");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::{admin, config, destination, local, request};

    /// The kept corpus: the seeds of fuzzing, and its findings.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for (name, target) in
            [("admin", admin as fn(&[u8])), ("config", config), ("destination", destination), ("request", request)]
        {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name}");
            files.iter().for_each(|file| target(&fs::read(file).unwrap()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_address_is_local_in_every_form_or_in_none(octets in any::<[u8; 4]>(), first in 0_usize..4) {
            local(&octets);
            let [.., c, d] = octets;
            local(&[[127, 0, c, d], [169, 254, c, d], [0, 0, c, d], [10, 0, c, d]][first]);
        }

        #[test]
        fn an_entry_is_refused_or_means_what_it_says(
            entry in "(\\*|\\*\\.)?[a-z0-9.*/:\\[\\]-]{0,24}(:[0-9]{0,6})?", authorities in "([a-z0-9.:\\[\\]-]{0,24}(:[0-9]{0,6})?\n){0,4}"
        ) {
            destination(format!("{entry}\n{authorities}").as_bytes());
        }

        #[test]
        fn a_request_is_refused_or_has_a_host(
            method in "GET|POST|CONNECT|OPTIONS|[A-Z]{1,8}", target in "[/a-z0-9.:@?*%\\[\\]-]{0,24}", hosts in "([a-z0-9.:@%\\[\\]-]{0,20}\n){0,3}"
        ) {
            request(format!("{method}\n{target}\n{hosts}").as_bytes());
        }

        #[test]
        fn only_a_post_from_outside_of_web_pages_changes_something(
            method in "GET|HEAD|POST|PUT|OPTIONS", target in "/(healthz|readyz|metrics|services|status/?|drain/|resume/|weight/a\\?value=|reload/?)?[a-z0-9%/?=]{0,8}", hosts in "(127.0.0.1|localhost|[a-z.]{0,8})(:[0-9]{1,5})?\n(http://[a-z]{1,8})?(\n(Bearer|bearer|Basic) {1,2}(0123456789abcdef|[0-9a-f]{1,16}))?"
        ) {
            admin(format!("{method}\n{target}\n{hosts}").as_bytes());
        }

        #[test]
        fn a_configuration_is_read_or_refused_in_our_words(lines in "([ -]{0,6}[a-z_]{1,9}: ?[ -~]{0,16}\n){0,12}") {
            config(lines.as_bytes());
            config(format!("services:\n  - name: a\n    component: a.wasm\n    listen: 127.0.0.1:1\n{lines}").as_bytes());
        }

        #[test]
        fn a_mangled_configuration_is_refused_in_our_words(
            edits in proptest::collection::vec((any::<u16>(), 0_u16..40, "[ -~\n\t]{0,3}|[:{}\\[\\],&*!|>'\"%@`#-]|\u{e9}"), 1..6)
        ) {
            let mut text = include_str!("../../../fuzz/corpus/config/every-key").to_owned();
            for (at, length, new) in edits {
                let at = usize::from(at) % text.len();
                let end = (at + usize::from(length)).min(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(end) {
                    text.replace_range(at..end, &new);
                }
            }
            config(text.as_bytes());
        }
    }
}
