//! Users, passwords, and tokens that expire.

use std::time::Duration;

use etcd_client::{ConnectOptions, LeaseTimeToLiveOptions};
use tokio::time::sleep;
use tonic::Code;

use crate::conformance::{TOKEN_TTL, Target, on_both, refused};

mod without_a_user {
    use super::{Code, ConnectOptions, Target, on_both, refused};

    on_both!(simulated, real: a_password_is_refused_without_authentication);

    async fn a_password_is_refused_without_authentication(target: Target) {
        let connected = target.connect(ConnectOptions::new().with_user("root", "secret")).await;
        refused(connected.map(drop), Code::FailedPrecondition, "etcdserver: authentication is not enabled");
    }
}

on_both!(simulated_with_user, real_with_user:
    a_wrong_password_is_refused,
    a_call_without_a_user_is_refused,
    a_user_may_do_everything,
    a_token_expires,
    a_client_can_renew_its_token,
    a_used_token_stays_valid,
);

fn root() -> ConnectOptions {
    ConnectOptions::new().with_user("root", "secret")
}

/// Longer than the lifetime of a token, with etcd's resolution of a second.
const TOKEN_GONE: Duration = TOKEN_TTL.saturating_mul(2);

async fn a_wrong_password_is_refused(target: Target) {
    for (user, password) in [("root", "guess"), ("nobody", "secret")] {
        let connected = target.connect(ConnectOptions::new().with_user(user, password)).await;
        refused(
            connected.map(drop),
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        );
    }
}

async fn a_call_without_a_user_is_refused(target: Target) {
    let mut client = target.client().await;
    let words = "etcdserver: user name is empty";
    refused(client.get("a", None).await, Code::InvalidArgument, words);
    refused(client.put("a", "1", None).await, Code::InvalidArgument, words);
    refused(client.delete("a", None).await, Code::InvalidArgument, words);
    let mut stream = client.watch("a", None).await.unwrap();
    let response = stream.message().await.unwrap().unwrap();
    assert!(response.created() && response.canceled());
    assert_eq!(response.cancel_reason(), "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
}

async fn a_user_may_do_everything(target: Target) {
    let mut client = target.connect(root()).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put("a", "1", None).await.unwrap();
    client.lease_keep_alive(lease).await.unwrap();
    let keys = LeaseTimeToLiveOptions::new().with_keys();
    client.lease_time_to_live(lease, Some(keys)).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    let mut stream = client.watch("a", None).await.unwrap();
    assert!(!stream.message().await.unwrap().unwrap().canceled());
}

async fn a_token_expires(target: Target) {
    let mut client = target.connect(root()).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let mut watching = client.watch("a", None).await.unwrap();
    watching.message().await.unwrap();
    sleep(TOKEN_GONE).await;
    let words = "etcdserver: invalid auth token";
    refused(client.put("a", "1", None).await, Code::Unauthenticated, words);
    refused(client.get("a", None).await, Code::Unauthenticated, words);
    refused(client.lease_grant(60, None).await, Code::Unauthenticated, words);
    refused(client.lease_revoke(lease).await, Code::Unauthenticated, words);
    watching.watch("b", None).await.unwrap();
    let response = watching.message().await.unwrap().unwrap();
    assert!(response.created() && response.canceled());
    assert_eq!(response.cancel_reason(), "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token");
}

async fn a_client_can_renew_its_token(target: Target) {
    let options = root().with_auto_token_refresh(true);
    let mut client = target.connect(options).await.unwrap();
    sleep(TOKEN_GONE).await;
    client.put("a", "1", None).await.unwrap();
}

async fn a_used_token_stays_valid(target: Target) {
    let mut client = target.connect(root()).await.unwrap();
    for _ in 0..8 {
        sleep(TOKEN_TTL / 4).await;
        client.put("a", "1", None).await.unwrap();
    }
}
