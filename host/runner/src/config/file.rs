//! The configuration file as it is written: its keys, and where in it a mistake stands.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use leasehold::{Addr, Layout, Ownership, ServiceName, Ttl, Version};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_saphyr::{Error, Spanned};

use crate::config::{
    Endpoint, Pattern, Register,
    destination::Destination,
    units::{Parsed, Secret, Size, Span},
};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) etcd: Etcd,
    #[serde(default)]
    pub(crate) registry: Registry,
    pub(crate) admin: Option<Admin>,
    pub(crate) traces: Option<Traces>,
    pub(crate) services: Spanned<Vec<Service>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    pub(crate) listen: Spanned<Parsed<Listen>>,
    #[serde(default)]
    pub(crate) remote: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Traces {
    pub(crate) endpoint: Spanned<Parsed<Collector>>,
    pub(crate) sample: Option<Parsed<Share>>,
    pub(crate) ca: Option<Spanned<String>>,
    pub(crate) headers_file: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Etcd {
    pub(crate) endpoints: Option<Spanned<Vec<Parsed<Endpoint>>>>,
    pub(crate) dial_timeout: Option<Parsed<Span>>,
    pub(crate) request_timeout: Option<Parsed<Span>>,
    pub(crate) user: Option<Spanned<String>>,
    pub(crate) password: Option<Spanned<Parsed<Secret>>>,
    pub(crate) password_file: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) tls: Tls,
    #[serde(default)]
    pub(crate) required: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) ca: Option<Spanned<String>>,
    pub(crate) cert: Option<Spanned<String>>,
    pub(crate) key: Option<Spanned<String>>,
    pub(crate) server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registry {
    pub(crate) layout: Option<Spanned<Layouts>>,
    pub(crate) ttl: Option<Parsed<WholeSeconds>>,
    pub(crate) ownership: Option<Parsed<Ownership>>,
    pub(crate) suffix: Option<Parsed<Suffix>>,
    pub(crate) prefer: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    pub(crate) weight: Weight,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weight {
    pub(crate) fixed: Option<Parsed<FixedWeight>>,
    pub(crate) dead_band: Option<u32>,
    pub(crate) min_interval: Option<Parsed<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) name: Spanned<Parsed<ServiceName>>,
    pub(crate) component: Spanned<String>,
    pub(crate) listen: Spanned<Parsed<Listen>>,
    #[serde(default)]
    pub(crate) required: bool,
    #[serde(default)]
    pub(crate) precompiled: bool,
    pub(crate) advertise: Option<Spanned<Parsed<Addr>>>,
    pub(crate) tls: Option<ListenTls>,
    pub(crate) version: Option<Parsed<Version>>,
    pub(crate) register: Option<Parsed<Register>>,
    pub(crate) layout: Option<Spanned<Layouts>>,
    pub(crate) metadata: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    pub(crate) config: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) allow: Allow,
    #[serde(default)]
    pub(crate) limits: Limits,
    pub(crate) health: Option<Spanned<Health>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Health {
    pub(crate) path: Option<Parsed<HealthPath>>,
    #[serde(default)]
    pub(crate) grpc: bool,
    pub(crate) interval: Option<Parsed<Span>>,
    pub(crate) timeout: Option<Parsed<Span>>,
    pub(crate) rise: Option<Parsed<Times>>,
    pub(crate) fall: Option<Parsed<Times>>,
    pub(crate) panic_threshold: Option<Parsed<Percentage>>,
    pub(crate) withdraw_on_trap: Option<bool>,
}

impl Health {
    /// Whether it has nothing of a health check.
    pub(crate) fn is_of_quarantine_alone(&self) -> bool {
        let asks = self.interval.is_some() || self.timeout.is_some() || self.rise.is_some() || self.fall.is_some();
        !asks && (self.panic_threshold.is_some() || self.withdraw_on_trap.is_some())
    }
}

/// The files of a listener's certificate, not to be mistaken for those with which etcd is called.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenTls {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) client_ca: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Allow {
    pub(crate) names: Option<Vec<Parsed<Pattern>>>,
    pub(crate) discover: Option<Vec<Parsed<Pattern>>>,
    pub(crate) outbound: Option<Vec<Parsed<Destination>>>,
    pub(crate) local: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) memory: Option<Parsed<Size>>,
    pub(crate) request_timeout: Option<Parsed<Span>>,
    pub(crate) stream_timeout: Option<Parsed<Span>>,
    pub(crate) concurrency: Option<Spanned<u32>>,
    pub(crate) connections: Option<Spanned<u32>>,
    pub(crate) outgoing: Option<Spanned<u32>>,
    pub(crate) nodes: Option<Spanned<u32>>,
    pub(crate) output_lines: Option<Spanned<u32>>,
    pub(crate) header_size: Option<Parsed<HeaderSize>>,
    pub(crate) body_size: Option<Parsed<Size>>,
    pub(crate) client_timeout: Option<Parsed<Span>>,
    pub(crate) instance_requests: Option<Spanned<u32>>,
    pub(crate) instance_concurrency: Option<Spanned<u32>>,
    pub(crate) start_timeout: Option<Parsed<Span>>,
    pub(crate) stop_timeout: Option<Parsed<Span>>,
    pub(crate) settle_time: Option<Parsed<Span>>,
    pub(crate) drain_timeout: Option<Parsed<Span>>,
}

/// One layout or a list of them; each is the name of one that is built in, or says more in a map.
pub(crate) struct Layouts(pub(crate) Vec<Layout>);

/// A layout that is built in, under another prefix or scheme; or one of the user's own, as templates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: Option<String>,
    prefix: Option<String>,
    scheme: Option<String>,
    key: Option<String>,
    value: Option<String>,
}

impl Described {
    fn layout(self) -> Result<Layout, String> {
        let said = |error: leasehold::Invalid| error.to_string();
        let mut layout = match (self.name, self.key, self.value) {
            (Some(name), None, None) => name.parse().map_err(said)?,
            (None, Some(key), Some(value)) => Layout::custom(&key, &value).map_err(said)?,
            _ => return Err("needs a name, or a key and a value as templates".to_owned()),
        };
        if let Some(prefix) = self.prefix {
            layout = layout.with_prefix(&prefix).map_err(said)?;
        }
        if let Some(scheme) = self.scheme {
            layout = layout.with_scheme(&scheme).map_err(said)?;
        }
        Ok(layout)
    }
}

impl<'de> Deserialize<'de> for Layouts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Several;
        impl<'de> Visitor<'de> for Several {
            type Value = Layouts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a layout, a map that describes one, or a list of these")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Layouts, E> {
                text.parse().map(|layout| Layouts(vec![layout])).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Layouts, A::Error> {
                let described = Described::deserialize(MapAccessDeserializer::new(map))?;
                described.layout().map(|layout| Layouts(vec![layout])).map_err(de::Error::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Layouts, A::Error> {
                let mut all = Vec::new();
                while let Some(Layouts(layouts)) = items.next_element()? {
                    all.extend(layouts);
                }
                Ok(Layouts(all))
            }
        }
        deserializer.deserialize_any(Several)
    }
}

/// The size of a request's headers.
pub(crate) struct HeaderSize(pub(crate) usize);

impl std::str::FromStr for HeaderSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(size) = text.parse()?;
        // hyper reads into no smaller buffer, and HTTP/2 announces the size as 32 bits.
        match (8 << 10..=16 << 20).contains(&size) {
            true => Ok(Self(size)),
            false => Err(format!("must be 8KiB to 16MiB, not {text:?}")),
        }
    }
}

/// How many in a row, at least one.
pub(crate) struct Times(pub(crate) u32);

impl std::str::FromStr for Times {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let times = text.parse().ok().filter(|times| *times > 0);
        times.map(Self).ok_or_else(|| format!("must be a whole number from 1, not {text:?}"))
    }
}

/// `0%` to `100%`.
pub(crate) struct Percentage(pub(crate) u32);

impl std::str::FromStr for Percentage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        let number = number.filter(|number| *number <= 100);
        number.map(Self).ok_or_else(|| format!("must be 0% to 100%, not {text:?}"))
    }
}

/// The path of a health check.
#[derive(Clone)]
pub(crate) struct HealthPath(pub(crate) String);

impl std::str::FromStr for HealthPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok() {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("must be a path such as /healthz, not {text:?}")),
        }
    }
}

/// The address of a listener.
#[derive(Clone, Copy)]
pub(crate) struct Listen(pub(crate) SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be an IP address and a port such as 127.0.0.1:8080, not {text:?}");
        match text.parse().map_err(|_| wrong())? {
            SocketAddr::V6(addr) if addr.scope_id() != 0 => {
                Err("must have no scope: no other host could dial it".into())
            }
            addr => Ok(Self(addr)),
        }
    }
}

/// Where a collector of traces takes OTLP over gRPC.
pub(crate) struct Collector(pub(crate) String);

impl std::str::FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            // Not repeated: it may hold a password.
            return Err("must not hold a user or password; a token goes to traces.headers_file".to_owned());
        }
        text.parse().map(|Endpoint(url)| Self(url))
    }
}

/// A part of a whole.
pub(crate) struct Share(pub(crate) f64);

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or_else(|| format!("must be from 0 to 1 such as 0.1, not {text:?}"))
    }
}

/// A time to live, written as a duration.
pub(crate) struct WholeSeconds(pub(crate) Ttl);

impl std::str::FromStr for WholeSeconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(span) = text.parse()?;
        if span.subsec_nanos() != 0 {
            return Err(format!("must be whole seconds, not {text:?}"));
        }
        Ttl::try_from(span.as_secs()).map(Self).map_err(|invalid| invalid.to_string())
    }
}

/// What follows a service's name in the host of a request.
pub(crate) struct Suffix(pub(crate) Arc<str>);

impl std::str::FromStr for Suffix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |label: &str| !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        if text.len() > 253 || !text.split('.').all(legal) {
            return Err(format!("must be a domain such as leasehold or svc.local, not {text:?}"));
        }
        Ok(Self(text.into()))
    }
}

/// A weight that does not follow the load.
pub(crate) struct FixedWeight(pub(crate) leasehold::Weight);

impl std::str::FromStr for FixedWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: u32 = text.parse().map_err(|_| format!("must be 1 to 100, not {text:?}"))?;
        number.try_into().map(Self).map_err(|invalid: leasehold::Invalid| invalid.to_string())
    }
}

/// Reads the text of a configuration file. The error says which line and key, never the text around it, which may
/// hold a secret.
pub(crate) fn parse(file: &str, text: &str) -> Result<File, String> {
    serde_saphyr::from_str(text).map_err(|error| explain(file, text, &error))
}

fn explain(file: &str, text: &str, error: &Error) -> String {
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let said = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            // Where a space is missing behind a key, its value is a part of it.
            let key = if is_word(&field.replace('-', "_")) {
                format!("unknown key {field:?}")
            } else {
                "a key that is none".to_owned()
            };
            return at_line(file, line, &format!("{key}; known here: {}", expected.join(", ")));
        }
        Error::SerdeMissingField { field, .. } => return at_line(file, line, &format!("the key {field:?} is missing")),
        Error::Message { msg, .. } => msg.clone(),
        Error::SerdeInvalidType { expected, .. } => format!("must be {expected}"),
        Error::SerdeInvalidValue { expected, .. } => format!("must be {expected}"),
        // The only numbers that are read as such.
        Error::InvalidScalar { ty: "u32", .. } => "must be a whole number".to_owned(),
        Error::InvalidScalar { ty, .. } => format!("must be {ty}"),
        Error::InvalidBooleanStrict { .. } => "must be true or false".to_owned(),
        Error::Unexpected { expected, .. } => format!("must be {expected}"),
        other => {
            let said = other.to_string();
            said.split(" at line ").next().unwrap_or(&said).to_owned()
        }
    };
    match key_at(text, line, column) {
        Some(key) if !said.starts_with(&format!("{key} ")) => at_line(file, line, &format!("{key}: {said}")),
        _ => at_line(file, line, &said),
    }
}

/// A mistake with the place where it stands.
pub(crate) fn at_line(file: &str, line: u64, said: &str) -> String {
    match line {
        0 => format!("{file}: {said}"),
        line => format!("{file}:{line}: {said}"),
    }
}

/// The key whose value stands at this place: the last `key:` before it on its line.
fn key_at(text: &str, line: u64, column: u64) -> Option<String> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let before: String = line.chars().take(usize::try_from(column).ok()?).collect();
    let head = before.rsplit_once(':').map_or(before.as_str(), |(head, _)| head);
    let key = head.rsplit(|c: char| c.is_whitespace() || "{,-".contains(c)).next()?;
    (is_word(key) && before.contains(':')).then(|| key.to_owned())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
