//! `leasehold ls`: what is registered in etcd.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use anstyle::Style;
use leasehold::{Error, LeaseId, LeaseTtl, Options, RawEntry, Registrar, ServiceName};
use tokio::time::timeout;

use super::{
    filter::{Names, Pattern},
    node_row::{NodeRow, STATE, color, columns, not_nodes, plural, totals},
    output::{print, print_json},
    progress::Progress,
    table::{self, Column},
    terminal,
};
use crate::{
    cli::{LsArgs, lease_state::LeaseState},
    connect,
    error::Failure,
};

/// Longest wait for the end of the registrar's thread, which holds no lease.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Nodes to show.
struct Filter {
    names: Names,
    version: Option<Pattern>,
    states: Vec<LeaseState>,
}

/// Content of etcd under the layouts.
struct Listed {
    /// Nodes with a name to show, in order.
    rows: Vec<NodeRow>,
    /// Names of all nodes that were read.
    names: BTreeSet<String>,
    /// Number of keys that are not nodes.
    others: usize,
}

/// Lists nodes on stdout. What else there is to say goes to stderr.
pub(crate) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let filter = Filter::of(&args)?;
    let options = args.etcd.registrar()?;
    let registrar = connect::start(&options)?;
    let outcome = Progress::of("reading the keys").during(list(&registrar, &options, &filter)).await;
    // Nothing is registered, so nothing is lost if the thread does not end in time.
    let _ = registrar.shutdown(END_TIMEOUT).await;
    let listed = outcome?;
    let rows: Vec<_> = listed.rows.iter().filter(|row| filter.shows(row)).collect();
    if args.json {
        print_json(&rows)?;
    } else {
        print(&text(&rows, options.read_layouts().len() > 1))?;
    }
    remarks(&filter, &listed, rows.len());
    Ok(())
}

impl Filter {
    fn of(args: &LsArgs) -> Result<Self, Failure> {
        let version = args.version.as_deref().map(|text| Pattern::parse("--version", text)).transpose()?;
        Ok(Self { names: Names::parse(args.name.as_deref())?, version, states: args.state.clone() })
    }

    fn shows(&self, row: &NodeRow) -> bool {
        let has_version = self.version.as_ref().is_none_or(|version| version.matches(&row.version));
        has_version && (self.states.is_empty() || self.states.contains(&row.state))
    }
}

/// Reads nodes with the remaining time of their leases, as far as etcd reports it.
async fn list(registrar: &Registrar, options: &Options, filter: &Filter) -> Result<Listed, Failure> {
    let scope = filter.names.scope();
    let mut listed = Listed::of(read(registrar, options, scope).await?, options, &filter.names);
    if listed.rows.is_empty() && scope.is_some() {
        // The list is shown even if this fails.
        let all = timeout(options.register_timeout, registrar.list(None)).await;
        if let Ok(Ok(all)) = all {
            listed.names = Listed::of(all, options, &Names::All).names;
        }
    }
    let leases = listed.rows.iter().filter_map(|row| row.lease).collect();
    let left: HashMap<LeaseId, LeaseTtl> =
        registrar.lease_ttls(leases, options.register_timeout).await.unwrap_or_default();
    listed.rows.iter_mut().for_each(|row| row.set_ttl(&left));
    Ok(listed)
}

/// Reads every key of one service, or of all services.
pub(super) async fn read(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
) -> Result<Vec<RawEntry>, Failure> {
    // A first request checks that etcd responds at all; the list itself may take longer than one request.
    let prefix = connect::prefix(options, name);
    let unavailable = |error: Error| connect::failure(&error, options, prefix.as_deref());
    connect::attempt(registrar, options, Vec::new()).await.map_err(unavailable)?;
    let deadline = options.register_timeout;
    let listed = timeout(deadline, registrar.list(name)).await;
    listed.unwrap_or(Err(Error::Timeout { what: "the list", after: deadline, why: None })).map_err(unavailable)
}

impl Listed {
    fn of(entries: Vec<RawEntry>, options: &Options, names: &Names) -> Self {
        let (layouts, all) = (options.read_layouts(), entries.len());
        let mut rows: Vec<_> = entries.into_iter().filter_map(|entry| NodeRow::of(entry, &layouts)).collect();
        let others = all - rows.len();
        let known = rows.iter().map(|row| row.name.clone()).collect();
        // The keys of one service may lie among those of another one.
        rows.retain(|row| names.matches(&row.name));
        rows.sort_by_cached_key(NodeRow::order);
        Self { rows, names: known, others }
    }
}

/// The table and its totals, as wide as the terminal at most.
fn text(rows: &[&NodeRow], has_layouts: bool) -> String {
    let columns: Vec<_> = columns(has_layouts).collect();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells(has_layouts).collect()).collect();
    let is_colored = terminal::is_colored();
    let paint = |row: usize, column: usize| match columns[column].heading == STATE && is_colored {
        true => color(rows[row].state),
        false => Style::new(),
    };
    let width = terminal::width();
    let totals = totals(rows.iter().copied());
    let totals = Column::text("").fit(&totals, width.unwrap_or(usize::MAX)).into_owned();
    format!("{}{totals}\n", table::text(&columns, &cells, width, paint))
}

/// Logs what the list does not show.
fn remarks(filter: &Filter, listed: &Listed, shown: usize) {
    let unknown = listed.rows.iter().filter(|row| row.state == LeaseState::Unknown).count();
    if unknown > 0 {
        tracing::warn!("etcd did not report the remaining time of {unknown} of {} leases", listed.rows.len());
    }
    if listed.rows.is_empty() && !matches!(filter.names, Names::All) {
        tracing::warn!("{}", filter.names.unknown(&listed.names));
    } else if shown == 0 && !listed.rows.is_empty() {
        let are = if listed.rows.len() == 1 { "is" } else { "are" };
        tracing::warn!("{} {are} of another version or state", plural(listed.rows.len(), "node"));
    }
    if listed.others > 0 {
        tracing::warn!("{}", not_nodes(listed.others));
    }
}
