//! `leasehold weight`: the weight of a service of a running host, until the host starts again.

use serde::Deserialize;

use crate::{
    cli::WeightArgs,
    commands::admin_client::{command, part},
    error::{Failure, shown},
};

/// Outcome for one service.
#[derive(Deserialize)]
struct Weighed {
    service: String,
    listen: String,
    weight: Option<u32>,
    why: Option<String>,
}

/// Requests the weight, and reports on stdout. A registration that does not take it is a failure.
pub(crate) async fn weight(args: WeightArgs) -> Result<(), Failure> {
    let value = args.weight.0.map_or_else(|| "auto".to_owned(), |weight| weight.to_string());
    let path = format!("/weight/{}?value={value}", part(&args.name));
    command(&args.host, &path, args.json, line, |one: &Weighed| one.why.is_some(), "have not taken it").await
}

fn line(one: &Weighed) -> String {
    let weight =
        one.weight.map_or_else(|| "its weight as configured".to_owned(), |weight| format!("the weight {weight}"));
    let failed =
        one.why.as_ref().map_or_else(String::new, |why| format!("; a registration has not taken it: {}", shown(why)));
    format!("{} on {} has {weight}, published within a second{failed}\n", one.service, one.listen)
}
