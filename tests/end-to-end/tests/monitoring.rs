//! Monitoring: the metrics of process and services, and the dashboards and alert rules that name them.

use std::{collections::BTreeSet, fs};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, hostile, plain, with},
    http::{begin, get},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::json;

/// Value of the first sample whose line starts so; `None` if there is none.
fn sample(page: &str, start: &str) -> Option<f64> {
    page.lines().find(|line| line.starts_with(start)).and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

async fn page(host: &Host) -> String {
    get(&format!("{}metrics", host.admin())).await.body
}

fn with_admin(world: &World, services: impl IntoIterator<Item = serde_json::Value>) -> serde_json::Value {
    with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))
}

/// Names of metrics in a text, without the suffixes of their samples.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    let names = words.filter(|word| word.starts_with("leasehold_") || word.starts_with("process_"));
    let base =
        |name: &str| ["_total", "_bucket"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned();
    names.map(base).collect()
}

#[tokio::test]
async fn every_metric_of_dashboard_alerts_and_documentation_exists() {
    let world = World::real().await;
    let host = Host::ready(&with_admin(&world, [plain("plain")])).await;
    let page = page(&host).await;
    let existing: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect();
    for (file, least) in [
        ("deploy/grafana/leasehold.json", 15),
        ("deploy/prometheus/alerts.yaml", 10),
        ("docs/operating.md", 10),
        ("docs/admin.md", 20),
        ("deploy/kubernetes/manifests/deployment.yaml", 1),
        ("docs/deploying.md", 1),
    ] {
        let names = named(&fs::read_to_string(paths::workspace().join(file)).unwrap());
        assert!(names.len() >= least, "{file} names {names:?}");
        let unknown: Vec<_> = names.difference(&existing).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}, which no page has");
    }
    let documented = named(&fs::read_to_string(paths::workspace().join("docs/admin.md")).unwrap());
    let missing: Vec<_> = existing.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/admin.md does not name {missing:?}");
    let has_help = |name: &&String| page.contains(&format!("# HELP {name} "));
    let without: Vec<_> = existing.iter().filter(|name| !has_help(name)).collect();
    assert!(without.is_empty(), "{without:?} have no HELP");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn the_process_is_measured_under_the_usual_names() {
    let world = World::real().await;
    let host = Host::ready(&with_admin(&world, [plain("plain")])).await;
    let page = page(&host).await;
    assert!(page.contains("leasehold_build_info{version=\"0.1.0\",commit=\""), "{page}");
    let version = Program::spawn(&paths::leasehold(), ["--version"], &host.temporary()).ends().await;
    let commit = version.stdout.lines().find_map(|line| line.strip_prefix("commit")).unwrap().trim();
    assert_eq!(sample(&page, &format!("leasehold_build_info{{version=\"0.1.0\",commit=\"{commit}\"}} ")), Some(1.0));
    let resident = sample(&page, "process_resident_memory_bytes ").unwrap();
    assert!(
        resident > host.resident_bytes() as f64 / 2.0 && resident < 2.0 * host.resident_bytes() as f64,
        "{resident}"
    );
    let (open, most) = (sample(&page, "process_open_fds ").unwrap(), sample(&page, "process_max_fds ").unwrap());
    assert!(open > 5.0 && open < most, "{open} of {most}");
    assert!(sample(&page, "process_cpu_seconds_total ").unwrap() > 0.0, "{page}");
    assert!(sample(&page, "process_start_time_seconds ").unwrap() > 1.7e9, "{page}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn processor_time_and_memory_of_a_component_are_measured() {
    let world = World::real().await;
    let limits = json!({ "limits": { "request_timeout": "3s" } });
    let host = Host::ready(&with_admin(&world, [with(hostile("user"), limits), plain("plain")])).await;
    let (cpu, memory) =
        ("leasehold_cpu_seconds_total{service=\"user\"", "leasehold_instances_memory_bytes{service=\"user\"");
    let before = page(&host).await;
    let spinning = begin(&format!("{}act/spin", host.url("user"))).await;
    wait_for("the instance has memory", SOON, async || sample(&page(&host).await, memory) > sample(&before, memory))
        .await;
    assert_eq!(spinning.answer().await.unwrap().status, 504);
    let after = page(&host).await;
    let computed = sample(&after, cpu).unwrap() - sample(&before, cpu).unwrap();
    // Three seconds, unless the machine has no processor for it.
    assert!(computed > 0.3 && computed < 3.5, "{computed} s");
    assert!(sample(&after, "leasehold_cpu_seconds_total{service=\"plain\"").unwrap() < computed / 2.0, "{after}");
    wait_for("the memory is given back", SOON, async || sample(&page(&host).await, memory) == sample(&before, memory))
        .await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn the_page_of_many_services_has_what_is_not_zero() {
    let world = World::real().await;
    let idle = |number: usize| with(plain(&format!("idle-{number}")), json!({ "register": "off" }));
    let busy = Host::ready(&with_admin(&world, (0..101).map(idle))).await;
    let few = Host::ready(&with_admin(&world, (0..2).map(idle))).await;
    let lines = |page: &str, service: &str| page.lines().filter(|line| line.contains(service)).count();
    let zero = |page: &str| page.contains("leasehold_rejected_requests_total{service=\"idle-1\"");
    let (many_page, few_page) = (page(&busy).await, page(&few).await);
    assert!(zero(&few_page) && !zero(&many_page), "{many_page}");
    let of_one = lines(&many_page, "service=\"idle-1\",");
    assert!(of_one <= 12 && of_one * 3 < lines(&few_page, "service=\"idle-1\","), "{of_one} lines of one service");
    assert_eq!(get(&busy.url("idle-1")).await.status, 200);
    let many_page = page(&busy).await;
    assert!(many_page.contains("leasehold_requests_total{service=\"idle-1\""), "{many_page}");
    assert!(
        sample(&many_page, "leasehold_request_duration_seconds_count{service=\"idle-1\"") == Some(1.0),
        "{many_page}"
    );
    for host in [busy, few] {
        assert_eq!(host.stop().await.code, Some(0));
    }
}
