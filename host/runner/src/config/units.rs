//! Durations, sizes and other scalars of the configuration, parsed once.

use std::{fmt, str::FromStr, time::Duration};

use leasehold::Ttl;
use serde_json::{Value, json};

use crate::config::{
    rule::{Form, Reading, Rule, Shape, scalars},
    tree::Node,
};

/// Permits text with a variable wherever a scalar has a pattern.
pub(crate) const OR_VARIABLE: &str = r"|\$";

/// A pattern of the JSON Schema for a scalar that may have variables.
pub(crate) fn pattern(regex: &str) -> String {
    format!("^(?:{regex})${OR_VARIABLE}")
}

/// `500ms`, `10s`, `1m` or `1h`; never zero, since a limit of no time at all is a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a duration such as 500ms, 10s or 1m, not {text:?}");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let millis = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => None,
        };
        match millis.ok_or_else(wrong)? {
            0 => Err("must be longer than nothing".to_owned()),
            // A century: what is added to a clock must not overflow it.
            millis if millis > 3_155_760_000_000 => Err(format!("must be at most 100 years, not {text:?}")),
            millis => Ok(Self(Duration::from_millis(millis))),
        }
    }
}

/// A duration, or `off` for none.
pub(crate) struct Ramp(pub(crate) Duration);

impl FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(Duration::ZERO));
        }
        let Span(span) = text.parse().map_err(|_| format!("must be a duration such as 30s, or off, not {text:?}"))?;
        Ok(Self(span))
    }
}

/// `512KiB`, `64MiB`, `1GiB`, or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a size such as 64MiB or 1GiB, not {text:?}");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let scale: u64 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let bytes = number.checked_mul(scale).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(wrong)
    }
}

/// Largest memory of an instance, whose addresses have 32 bits.
const MAX_MEMORY: u64 = 4 << 30;

/// The memory of an instance: at least one page of WebAssembly.
pub(crate) struct Memory(pub(crate) usize);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(size) = text.parse()?;
        match (64 << 10..=MAX_MEMORY).contains(&(size as u64)) {
            true => Ok(Self(size)),
            false => Err(format!("must be 64KiB to 4GiB, not {text:?}")),
        }
    }
}

/// The size of a request's headers.
pub(crate) struct HeaderSize(pub(crate) usize);

impl FromStr for HeaderSize {
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

/// A time to live, written as a duration.
pub(crate) struct WholeSeconds(pub(crate) Ttl);

impl FromStr for WholeSeconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(span) = text.parse()?;
        if span.subsec_nanos() != 0 {
            return Err(format!("must be whole seconds, not {text:?}"));
        }
        Ttl::try_from(span.as_secs()).map(Self).map_err(|invalid| invalid.to_string())
    }
}

/// A whole number within a range.
pub(crate) struct Number<const MIN: u32, const MAX: u32>(pub(crate) u32);

/// A limit of how many there may be.
pub(crate) type Count = Number<1, 100_000>;

impl<const MIN: u32, const MAX: u32> FromStr for Number<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.replace('_', "");
        let number = match plain.split_at_checked(2) {
            Some(("0x", digits)) => u64::from_str_radix(digits, 16),
            Some(("0o", digits)) => u64::from_str_radix(digits, 8),
            _ => plain.parse(),
        };
        let number = number.map_err(|_| format!("must be a whole number from {MIN} to {MAX}, not {text:?}"))?;
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("must be {MIN} to {MAX}, not {number}")),
        }
    }
}

/// `0%` to `100%`.
pub(crate) struct Percentage(pub(crate) u32);

impl FromStr for Percentage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        let number = number.filter(|number| *number <= 100);
        number.map(Self).ok_or_else(|| format!("must be 0% to 100%, not {text:?}"))
    }
}

/// A part of a whole.
pub(crate) struct Share(pub(crate) f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or_else(|| format!("must be from 0 to 1 such as 0.1, not {text:?}"))
    }
}

/// The schema of a size, with these limits where it is a plain number.
fn size(min: u64, max: Option<u64>) -> Value {
    let mut schema =
        json!({ "type": ["string", "integer"], "minimum": min, "pattern": pattern("[0-9]+([KMG]i?B|B)?") });
    if let Some(max) = max {
        schema["maximum"] = max.into();
    }
    schema
}

const DURATION: &str = "0*[1-9][0-9]*(ms|s|m|h)";

scalars! {
    Span => Duration, |span| span.0, secret if |_| false,
        "duration", "`1ms` to 100 years, in `ms`, `s`, `m` or `h`", "30s",
        json!({ "type": "string", "pattern": pattern(DURATION) });
    Ramp => Duration, |ramp| ramp.0, secret if |_| false,
        "duration", "`1ms` to 100 years, or `off`", "30s",
        json!({ "anyOf": [{ "enum": ["off"] }, { "type": "string", "pattern": pattern(DURATION) }] });
    WholeSeconds => Ttl, |ttl| ttl.0, secret if |_| false,
        "duration", "whole seconds from `1s`", "10s",
        json!({ "type": "string", "pattern": pattern("0*[1-9][0-9]*(s|m|h|000ms)") });
    Size => usize, |size| size.0, secret if |_| false,
        "size", "bytes, or `KiB`, `MiB`, `GiB`, `KB`, `MB`, `GB`", "64MiB", size(0, None);
    Memory => usize, |size| size.0, secret if |_| false,
        "size", "`64KiB` to `4GiB`", "64MiB", size(64 << 10, Some(MAX_MEMORY));
    HeaderSize => usize, |size| size.0, secret if |_| false,
        "size", "`8KiB` to `16MiB`", "64KiB", size(8 << 10, Some(16 << 20));
    Percentage => u32, |share| share.0, secret if |_| false,
        "percentage", "`0%` to `100%`", "50%",
        json!({ "type": "string", "pattern": pattern("0*([0-9]{1,2}|100)%") });
    Share => f64, |share| share.0, secret if |_| false,
        "share", "`0` to `1`", "0.1",
        json!({ "type": ["number", "string"], "minimum": 0, "maximum": 1, "pattern": pattern("[0-9.]+") });
    Secret => Secret, |secret| secret, secret if |_| true,
        "secret", "any; from a variable or a file", "${ETCD_PASSWORD}",
        json!({ "type": ["string", "number", "boolean"] });
}

impl<const MIN: u32, const MAX: u32> Rule for Number<MIN, MAX> {
    type Value = u32;

    fn shape() -> Shape {
        let schema = json!({ "type": ["integer", "string"], "minimum": MIN, "maximum": MAX, "pattern": pattern("[0-9][0-9_]*") });
        Shape::Scalar(Form { kind: "number", range: format!("`{MIN}` to `{MAX}`"), example: "16", schema })
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<u32> {
        let scalar = reading.scalar(node, "a whole number", true)?;
        match scalar.text.parse::<Self>() {
            Ok(Self(number)) => Some(number),
            Err(rule) => {
                reading.refuse(node, scalar, &rule, false);
                None
            }
        }
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

/// A password: shown by nothing.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Size, Span};

    #[test]
    fn durations_have_a_unit() {
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("10s".parse(), Ok(Span(Duration::from_secs(10))));
        assert_eq!("1m".parse(), Ok(Span(Duration::from_secs(60))));
        assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7200))));
        for bad in ["", "10", "s", "-1s", "1.5s", "10 s", "1d", "99999999999999999999s", "0s", "99999999999h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!("64MiB".parse(), Ok(Size(64 << 20)));
        assert_eq!("1GB".parse(), Ok(Size(1_000_000_000)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        for bad in ["", "MiB", "64mib", "64 MiB", "-1", "99999999999999999999", "99999999999GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }
}
