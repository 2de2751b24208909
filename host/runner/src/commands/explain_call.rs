//! `leasehold explain --call`: the nodes that a call by name may go to now, and why others are left out.

use anstyle::Style;
use http::Uri;
use leasehold::{Metadata, ServerNode, View};
use serde::Serialize;

use super::{
    ls::END_TIMEOUT,
    output::{print, print_json},
    progress::Progress,
    table::{self, Column},
    terminal,
};
use crate::{
    cli::ExplainArgs,
    config::{CallRule, Config, Spec},
    connect,
    error::{Failure, shown},
    outbound::service::Target,
};

const COLUMNS: [Column; 5] = [
    Column::text("NODE"),
    Column::text("VERSION"),
    Column::number("WEIGHT"),
    Column::number("SHARE"),
    Column::text("LEFT OUT"),
];

/// A node of the called service.
#[derive(Serialize)]
struct Row {
    addr: String,
    version: String,
    weight: u32,
    /// Share of the calls to the service, in percent; 0 for a node that is left out.
    share: f64,
    /// Reason why the node gets no calls.
    left_out: Option<&'static str>,
}

/// Prints the nodes of a call, with their shares.
pub(super) async fn explain_call(args: &ExplainArgs, url: &str) -> Result<(), Failure> {
    let config = Config::load(&args.file)?;
    let uri: Uri = url.parse().map_err(|_| Failure::usage(format!("--call: {url:?} is no URL")))?;
    let spec = caller(&config, args.from.as_deref(), &uri)?;
    let target = target(spec, &uri).ok_or_else(|| refusal(spec, &uri))?;
    let options = &config.registrar;
    let registrar = connect::start(options)?;
    let read = async {
        let prefix = connect::prefix(options, Some(target.name()));
        let unavailable = |error| connect::failure(&error, options, prefix.as_deref());
        connect::attempt(&registrar, options, Vec::new()).await.map_err(unavailable)?;
        let view = registrar.watch(target.name(), target.version()).await.map_err(unavailable)?;
        view.ready().await.map_err(unavailable)?;
        Ok(view)
    };
    let outcome: Result<View, Failure> = Progress::of("reading the nodes").during(read).await;
    // Nothing is registered, so nothing is lost if the thread does not end in time.
    let _ = registrar.shutdown(END_TIMEOUT).await;
    let view = outcome?;
    let rule = spec.calls.of(target.name());
    let rows = rows(&view, &target, rule, &spec.prefer);
    match args.json {
        true => print_json(&rows),
        false => print(&text(spec, &target, rule, &rows)),
    }
}

/// The service that calls: the one that is named, or the first that may.
fn caller<'a>(config: &'a Config, from: Option<&str>, uri: &Uri) -> Result<&'a Spec, Failure> {
    match from {
        Some(name) => {
            let found = config.services.iter().find(|spec| spec.name.as_str() == name);
            found.ok_or_else(|| Failure::usage(format!("--from: the configuration has no service {name:?}")))
        }
        None => {
            let may = config.services.iter().find(|spec| target(spec, uri).is_some());
            let first = config.services.first();
            may.or(first).ok_or_else(|| Failure::usage("the configuration has no service"))
        }
    }
}

fn target(spec: &Spec, uri: &Uri) -> Option<Target> {
    let named = uri.authority()?.as_str().strip_suffix(&format!(".{}", spec.suffix))?;
    Target::parse(named, &spec.allow.discover).filter(|_| uri.scheme_str().is_none_or(|scheme| scheme == "http"))
}

fn refusal(spec: &Spec, uri: &Uri) -> Failure {
    let host = uri.authority().map_or_else(|| uri.to_string(), ToString::to_string);
    Failure::usage(format!(
        "{} may not call {host}: a call by name goes to http://NAME.{}/ or http://VERSION.NAME.{}/, for a name in allow.discover",
        spec.name, spec.suffix, spec.suffix
    ))
}

fn rows(view: &View, target: &Target, rule: &CallRule, prefer: &Metadata) -> Vec<Row> {
    let nodes = view.nodes();
    let all: Vec<_> = nodes.iter_with_tls().collect();
    let is_preferred = |node: &ServerNode| {
        let has = |(key, value): &(String, String)| {
            node.metadata.pairs().contains(&(key.clone(), value.clone()))
                || key == "version" && node.version.as_str() == value
        };
        !prefer.pairs().is_empty() && prefer.pairs().iter().all(has)
    };
    let weight = |node: &ServerNode| node.weight.map_or(100, |weight| weight.value());
    let is_called = |uses_tls: bool| rule.tls.is_some() || !uses_tls;
    // Calls that name no version are split; each part has its preferred nodes, if it has some.
    let part = |node: &ServerNode| match target.version().as_str().is_empty() {
        true => rule.split.iter().position(|split| split.version == node.version),
        false => None,
    };
    let split_off: u32 = match target.version().as_str().is_empty() {
        true => rule.split.iter().map(|split| split.share).sum(),
        false => 0,
    };
    let share_of = |part: Option<usize>| part.map_or(100 - split_off, |index| rule.split[index].share);
    let among = |part_of: Option<usize>| {
        let callable = all.iter().filter(|(node, uses_tls)| is_called(*uses_tls) && part(node) == part_of);
        let preferred: Vec<_> = callable.clone().filter(|(node, _)| is_preferred(node)).collect();
        let among: Vec<_> = if preferred.is_empty() { callable.collect() } else { preferred };
        (among.iter().map(|(node, _)| weight(node)).sum::<u32>(), among.iter().all(|(node, _)| is_preferred(node)))
    };
    all.iter()
        .map(|(node, uses_tls)| {
            let part = part(node);
            let (total, only_preferred) = among(part);
            let left_out = match () {
                () if !is_called(*uses_tls) => Some("it uses TLS, which registry.calls.tls permits"),
                () if only_preferred && total > 0 && !is_preferred(node) && !prefer.pairs().is_empty() => {
                    Some("registry.prefer: others have the metadata")
                }
                () if share_of(part) == 0 => Some("registry.calls.split: its version gets no share"),
                () => None,
            };
            let share = f64::from(share_of(part)) * f64::from(weight(node)) / f64::from(total.max(1));
            Row {
                addr: node.addr.to_string(),
                version: node.version.to_string(),
                weight: weight(node),
                share: if left_out.is_some() { 0.0 } else { share },
                left_out,
            }
        })
        .collect()
}

fn text(spec: &Spec, target: &Target, rule: &CallRule, rows: &[Row]) -> String {
    let version = match target.version().as_str() {
        "" => String::new(),
        version => format!(" in version {version}"),
    };
    let over = if rule.tls.is_some() { "over TLS" } else { "in plain text" };
    let mut text = format!(
        "{} calls {}{version} {over} (retries: {}, retry_budget: {:.0}%)\n",
        spec.name,
        target.name(),
        rule.retries,
        100.0 * rule.retry_budget
    );
    for split in rule.split.iter().filter(|_| version.is_empty()) {
        let served = rows.iter().any(|row| row.version == split.version.as_str());
        let header = split.header.as_ref().map(|(name, value)| format!(", and calls with {name}: {value:?}"));
        let note = if served { "" } else { "; no node has it, so these calls fail" };
        text += &format!("  {} % go to {}{}{note}\n", split.share, split.version, header.unwrap_or_default());
    }
    if rows.is_empty() {
        return text + "no node is registered\n";
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let share = if row.left_out.is_some() { String::new() } else { format!("{:.1} %", row.share) };
            let left_out = row.left_out.unwrap_or_default().to_owned();
            vec![shown(&row.addr), shown(&row.version), row.weight.to_string(), share, left_out]
        })
        .collect();
    text += &table::text(&COLUMNS, &cells, terminal::width(), |_, _| Style::new());
    text + "A host that runs gives less to nodes that have just come, and none to those that fail: leasehold_calls_total counts them.\n"
}
