//! Transactions: comparisons, branches, nesting, limits, and all or nothing.

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tonic::Code;

use crate::conformance::{Target, keys, on_both, refused, revision, value};

on_both!(simulated, real:
    a_transaction_is_one_revision,
    comparisons_hold_as_documented,
    a_missing_key_compares_as_zeros,
    a_comparison_can_span_a_range,
    an_unknown_lease_fails_the_whole_transaction,
    nested_transactions_decide_before_anything_is_applied,
    nested_transactions_share_the_limit,
    a_key_is_touched_once,
    a_missing_key_cannot_keep_its_value,
    a_read_of_the_compacted_past_fails_the_whole_transaction,
    a_full_etcd_refuses_transactions_that_put,
);

fn put(key: &str) -> TxnOp {
    TxnOp::put(key, "v", None)
}

fn then(operations: impl Into<Vec<TxnOp>>) -> Txn {
    Txn::new().and_then(operations)
}

async fn holds(client: &mut Client, compares: impl Into<Vec<Compare>>) -> bool {
    client.txn(Txn::new().when(compares)).await.unwrap().succeeded()
}

async fn a_transaction_is_one_revision(target: Target) {
    let mut client = target.client().await;
    client.put("old", "1", None).await.unwrap();
    let operations = [TxnOp::get("a", None), put("a"), put("b"), TxnOp::get("a", None), TxnOp::delete("old", None)];
    let response = client.txn(then(operations)).await.unwrap();
    assert!(response.succeeded());
    assert_eq!(response.header().unwrap().revision(), 3);
    let answers = response.op_responses();
    let count = |index: usize| match &answers[index] {
        TxnOpResponse::Get(get) => get.count(),
        other => panic!("expected a read, got {other:?}"),
    };
    assert_eq!((count(0), count(3)), (0, 1));
    assert!(matches!(&answers[4], TxnOpResponse::Delete(delete) if delete.deleted() == 1));
    let all = client.get("a", Some(GetOptions::new().with_range("c"))).await.unwrap();
    assert!(all.kvs().iter().all(|kv| kv.mod_revision() == 3));
    client.txn(then([TxnOp::delete("old", None)])).await.unwrap();
    assert_eq!(revision(&mut client).await, 3);
    let other = Txn::new().when([Compare::version("a", CompareOp::Equal, 0)]).and_then([put("x")]).or_else([put("y")]);
    assert!(!client.txn(other).await.unwrap().succeeded());
    assert_eq!(keys(&mut client, "x").await.len(), 0);
    assert_eq!(keys(&mut client, "y").await.len(), 1);
}

async fn comparisons_hold_as_documented(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put("other", "1", None).await.unwrap();
    let bound = PutOptions::new().with_lease(lease);
    client.put("a", "m", Some(bound.clone())).await.unwrap();
    client.put("a", "m", Some(bound)).await.unwrap();
    type Number = fn(&str, CompareOp, i64) -> Compare;
    let numbers: [(Number, i64); 4] = [
        (|key, op, number| Compare::version(key, op, number), 2),
        (|key, op, number| Compare::create_revision(key, op, number), 3),
        (|key, op, number| Compare::mod_revision(key, op, number), 4),
        (|key, op, number| Compare::lease(key, op, number), lease),
    ];
    let operators = [
        (CompareOp::Equal, [false, true, false]),
        (CompareOp::NotEqual, [true, false, true]),
        (CompareOp::Greater, [true, false, false]),
        (CompareOp::Less, [false, false, true]),
    ];
    for (operator, expected) in operators {
        for (compare, actual) in numbers {
            for (wanted, expected) in [actual - 1, actual, actual + 1].into_iter().zip(expected) {
                let compare = compare("a", operator, wanted);
                assert_eq!(holds(&mut client, [compare.clone()]).await, expected, "{compare:?}");
            }
        }
        for (wanted, expected) in ["l", "m", "n"].into_iter().zip(expected) {
            let compare = Compare::value("a", operator, wanted);
            assert_eq!(holds(&mut client, [compare.clone()]).await, expected, "{compare:?}");
        }
    }
    let both = [Compare::lease("a", CompareOp::Equal, lease), Compare::version("a", CompareOp::Equal, 9)];
    assert!(!holds(&mut client, both).await);
    assert!(holds(&mut client, []).await);
}

async fn a_missing_key_compares_as_zeros(target: Target) {
    let mut client = target.client().await;
    let equal = CompareOp::Equal;
    assert!(holds(&mut client, [Compare::version("a", equal, 0)]).await);
    assert!(holds(&mut client, [Compare::create_revision("a", equal, 0)]).await);
    assert!(holds(&mut client, [Compare::mod_revision("a", equal, 0)]).await);
    assert!(holds(&mut client, [Compare::lease("a", equal, 0)]).await);
    assert!(holds(&mut client, [Compare::lease("a", CompareOp::NotEqual, 5)]).await);
    assert!(!holds(&mut client, [Compare::lease("a", CompareOp::Greater, 0)]).await);
    for operator in [equal, CompareOp::NotEqual, CompareOp::Less, CompareOp::Greater] {
        assert!(!holds(&mut client, [Compare::value("a", operator, "")]).await);
    }
    refused(
        client.txn(Txn::new().when([Compare::version("", equal, 0)])).await,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
}

async fn a_comparison_can_span_a_range(target: Target) {
    let mut client = target.client().await;
    let young = || Compare::version("/p/", CompareOp::Equal, 1).with_prefix();
    assert!(!holds(&mut client, [young()]).await);
    client.put("/p/1", "1", None).await.unwrap();
    client.put("/p/2", "1", None).await.unwrap();
    assert!(holds(&mut client, [young()]).await);
    client.put("/p/2", "2", None).await.unwrap();
    assert!(!holds(&mut client, [young()]).await);
}

async fn an_unknown_lease_fails_the_whole_transaction(target: Target) {
    let mut client = target.client().await;
    let bound = || Some(PutOptions::new().with_lease(4242));
    let words = "etcdserver: requested lease not found";
    refused(client.put("a", "1", bound()).await, Code::NotFound, words);
    let operations = [put("a"), TxnOp::put("b", "1", bound()), TxnOp::get("a", None)];
    refused(client.txn(then(operations)).await, Code::NotFound, words);
    let nested = TxnOp::txn(then([TxnOp::put("b", "1", bound())]));
    refused(client.txn(then([put("a"), nested])).await, Code::NotFound, words);
    assert_eq!(revision(&mut client).await, 1);
    let untaken = Txn::new().and_then([put("a")]).or_else([TxnOp::put("b", "1", bound())]);
    assert!(client.txn(untaken).await.unwrap().succeeded());
}

async fn nested_transactions_decide_before_anything_is_applied(target: Target) {
    let mut client = target.client().await;
    let missing = |key: &str| Compare::version(key, CompareOp::Equal, 0);
    let inner = Txn::new().when([missing("a")]).and_then([put("b"), TxnOp::get("a", None)]).or_else([put("c")]);
    let twice_nested = TxnOp::txn(then([TxnOp::txn(then([put("d")]))]));
    let outer = then([put("a"), TxnOp::txn(inner), twice_nested]);
    let response = client.txn(outer).await.unwrap();
    assert_eq!(keys(&mut client, "").await, ["a", "b", "d"]);
    assert_eq!(response.header().unwrap().revision(), 2);
    let answers = response.op_responses();
    let TxnOpResponse::Txn(inner) = &answers[1] else {
        panic!("expected a nested answer, got {answers:?}");
    };
    assert!(inner.succeeded());
    let answers = inner.op_responses();
    assert!(matches!(&answers[1], TxnOpResponse::Get(get) if get.count() == 1));
}

async fn nested_transactions_share_the_limit(target: Target) {
    let mut client = target.client().await;
    let puts = |count: usize| -> Vec<TxnOp> { (0..count).map(|index| put(&format!("k{index}"))).collect() };
    let words = "etcdserver: too many operations in txn request";
    client.txn(then(puts(128))).await.unwrap();
    refused(client.txn(then(puts(129))).await, Code::InvalidArgument, words);
    let compares: Vec<Compare> =
        (0..129).map(|index| Compare::lease(format!("k{index}"), CompareOp::Equal, 0)).collect();
    refused(client.txn(Txn::new().when(compares.clone())).await, Code::InvalidArgument, words);
    let full = Txn::new().when(&compares[..128]).and_then(puts(128)).or_else(puts(128));
    client.txn(full).await.unwrap();
    client.txn(then([TxnOp::txn(then(puts(127)))])).await.unwrap();
    let over = then([TxnOp::txn(then(puts(128)))]);
    refused(client.txn(over).await, Code::InvalidArgument, words);
    let one_each = |index: usize| TxnOp::txn(then([put(&format!("n{index}"))]));
    let many: Vec<TxnOp> = (0..127).map(one_each).collect();
    client.txn(then(many)).await.unwrap();
    let too_many: Vec<TxnOp> = (0..128).map(one_each).collect();
    refused(client.txn(then(too_many)).await, Code::InvalidArgument, words);
    assert_eq!(keys(&mut client, "k").await.len(), 128);
}

async fn a_key_is_touched_once(target: Target) {
    let mut client = target.client().await;
    let words = "etcdserver: duplicate key given in txn request";
    let nested = |operations: Vec<TxnOp>| TxnOp::txn(then(operations));
    let delete = |key: &str| TxnOp::delete(key, None);
    for operations in [
        vec![put("a"), put("a")],
        vec![put("a"), delete("a")],
        vec![delete("a"), put("a")],
        vec![put("a"), nested(vec![put("a")])],
        vec![nested(vec![put("a")]), nested(vec![put("a")])],
        vec![delete("a"), nested(vec![put("a")])],
        vec![put("a"), nested(vec![delete("a")])],
    ] {
        refused(client.txn(then(operations)).await, Code::InvalidArgument, words);
    }
    let branches = Txn::new().and_then([put("a")]).or_else([put("a")]);
    client.txn(branches.clone()).await.unwrap();
    client.txn(then([TxnOp::txn(branches)])).await.unwrap();
    client.txn(then([delete("a"), delete("a")])).await.unwrap();
    client.txn(then([TxnOp::get("a", None), put("a")])).await.unwrap();
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("v"));
}

async fn a_missing_key_cannot_keep_its_value(target: Target) {
    let mut client = target.client().await;
    let keep = Some(PutOptions::new().with_ignore_value());
    let operations = [put("a"), TxnOp::put("b", "", keep)];
    refused(client.txn(then(operations)).await, Code::InvalidArgument, "etcdserver: key not found");
    assert_eq!(keys(&mut client, "").await.len(), 0);
}

async fn a_read_of_the_compacted_past_fails_the_whole_transaction(target: Target) {
    let mut client = target.client().await;
    for _ in 0..3 {
        client.put("a", "1", None).await.unwrap();
    }
    client.compact(3, None).await.unwrap();
    let at = |revision| TxnOp::get("a", Some(GetOptions::new().with_revision(revision)));
    refused(
        client.txn(then([put("b"), at(2)])).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
    refused(
        client.txn(then([put("b"), at(9)])).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    assert_eq!(value(&mut client, "b").await, None);
}

async fn a_full_etcd_refuses_transactions_that_put(target: Target) {
    use etcd_client::{AlarmAction, AlarmType};

    let mut client = target.client().await;
    client.put("a", "1", None).await.unwrap();
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    let words = "etcdserver: mvcc: database space exceeded";
    refused(client.txn(then([put("b")])).await, Code::ResourceExhausted, words);
    let untaken = Txn::new().or_else([put("b")]);
    refused(client.txn(untaken).await, Code::ResourceExhausted, words);
    client.txn(then([TxnOp::delete("a", None)])).await.unwrap();
    assert_eq!(value(&mut client, "a").await, None);
}
