//! A fleet of ten hosts with two thousand registrations each, as `make growth` runs a hundred of them with ten thousand.

use leasehold_scenarios::growth::{Size, simulate};

#[tokio::test(start_paused = true)]
async fn self_healing_and_no_gap_hold_for_a_fleet_through_deploys_and_a_loss_of_data() {
    let report = Box::pin(simulate(Size { hosts: 10, keys: 2000 }, |_| {})).await;
    assert_eq!(report.leases, 20, "a lease carries a thousand keys");
    assert!(report.largest.operations <= 126, "{:?}", report.largest);
    let [register, hold, deploy, lost, stop] = report.phases.try_into().expect("five phases");
    assert_eq!(register.traffic.operations, 20_000);
    assert_eq!((hold.traffic.transactions, hold.traffic.grants), (0, 0), "a renewal writes nothing");
    // Each of twenty leases is renewed every third of ten seconds, with a little jitter.
    assert!((18 * 20..=22 * 20).contains(&hold.traffic.renewals), "{}", hold.traffic.renewals);
    assert_eq!((deploy.traffic.grants, lost.traffic.grants), (20, 20), "a lease each");
    // A thousand keys are eight transactions of 126; the first of a lease is written as soon as it is granted.
    assert!(lost.traffic.transactions <= 20 * 9, "{}", lost.traffic.transactions);
    assert!(stop.traffic.operations + stop.traffic.revoked_keys == 20_000, "{:?}", stop.traffic);
}
