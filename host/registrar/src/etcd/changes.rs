//! The stream of changes under a prefix, and single keys as readers see and delete them.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, EventType, GetOptions, KeyValue, Txn, TxnOp, WatchOptions, WatchStream};
use tokio::time::timeout;

use super::{
    Etcd, Found, MAX_ANSWER,
    endpoint::{Endpoints, Route},
    error::{Failure, classify, classify_cancellation, rounded},
    latency::Verb,
    range::range_end,
};

/// Change of one key.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Found),
    /// The key, and the revision that deleted it.
    Deleted(Vec<u8>, i64),
}

impl Etcd {
    /// The revision that had created the key that stood at `revision`; refused when that is compacted.
    pub(crate) async fn created(&self, key: &[u8], revision: i64) -> Result<Option<i64>, Failure> {
        let answer = self.call(Verb::Read, self.request_timeout, |mut client| async move {
            client.get(key, Some(GetOptions::new().with_revision(revision))).await
        });
        Ok(answer.await?.kvs().first().map(KeyValue::create_revision))
    }

    /// Deletes a key unless it was written after `revision`. Returns false when it was, or is gone.
    pub(crate) async fn delete_unchanged(&self, key: &str, revision: i64) -> Result<bool, Failure> {
        let answer = self.call(Verb::Write, self.request_timeout, |mut client| {
            let unchanged = Compare::mod_revision(key.as_bytes(), CompareOp::Equal, revision);
            let txn = Txn::new().when([unchanged]).and_then([TxnOp::delete(key.as_bytes(), None)]);
            async move { client.txn(txn).await }
        });
        Ok(answer.await?.succeeded())
    }

    /// Opens a stream of what happens to the keys under a prefix from `revision` on. Ok once etcd has confirmed it.
    pub(crate) async fn open_changes(
        &self,
        prefix: &str,
        revision: i64,
        deadline: Duration,
    ) -> Result<Changes, Failure> {
        let key = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let opened = self.ask(Verb::Watch, deadline, |client| {
            // In fragments: etcd may have more to say at a time than fits into one message.
            let options = WatchOptions::new()
                .with_range(range_end(prefix.as_bytes()))
                .with_start_revision(revision)
                .with_fragment();
            let key = key.clone();
            async move { client.watch_client().max_decoding_message_size(MAX_ANSWER).watch(key, Some(options)).await }
        });
        let (route, stream) = opened.await?;
        let mut changes = Changes {
            stream,
            endpoints: self.endpoints.clone(),
            url: self.url(route.index),
            route,
            revision,
            awaits_progress: false,
        };
        match timeout(deadline, changes.attended(deadline)).await {
            Ok(confirmed) => confirmed.map(|_| changes),
            Err(_) => Err(changes.unanswered(format!("no watch within {:?}", rounded(deadline)))),
        }
    }
}

/// An open stream of what happens under a prefix.
pub(crate) struct Changes {
    stream: WatchStream,
    endpoints: Endpoints,
    route: Route,
    url: Arc<str>,
    /// First revision whose changes it has.
    revision: i64,
    /// Set while a progress request has no response.
    awaits_progress: bool,
}

impl Changes {
    /// Waits for the next changes. None at all is a sign of life, which is requested after `silence`.
    ///
    /// After a failure the stream must not be used again. May be dropped and called again.
    pub(crate) async fn next(&mut self, silence: Duration, deadline: Duration) -> Result<Vec<Change>, Failure> {
        if !self.awaits_progress {
            match timeout(silence, self.message()).await {
                Ok(changes) => return changes,
                Err(_) => self.stream.request_progress().await.map_err(|error| classify(&self.url, &error))?,
            }
            self.awaits_progress = true;
        }
        let answer = timeout(deadline, self.attended(deadline)).await;
        let changes = answer.map_err(|_| self.unanswered(format!("no sign of life within {:?}", rounded(deadline))))?;
        self.awaits_progress = false;
        changes
    }

    /// The next message where one is due within `deadline`, which the caller holds.
    async fn attended(&mut self, deadline: Duration) -> Result<Vec<Change>, Failure> {
        let (endpoints, route) = (self.endpoints.clone(), self.route.clone());
        endpoints.attend(&route, deadline, self.message()).await
    }

    async fn message(&mut self) -> Result<Vec<Change>, Failure> {
        let message = self.stream.message().await.map_err(|error| classify(&self.url, &error))?;
        let Some(message) = message else { return Err(self.unanswered("the watch ended".to_owned())) };
        let behind = message.header().is_some_and(|header| header.revision() + 1 < self.revision);
        if message.created() && behind {
            // A watch from there on would be silent until it has caught up.
            return Err(self.unanswered(format!("it does not know revision {} any more", self.revision - 1)));
        }
        if message.compact_revision() > 0 {
            let message = format!("has compacted what came before revision {}", message.compact_revision());
            return Err(Failure::Refused { endpoint: self.url.clone(), message });
        }
        if message.canceled() {
            return Err(classify_cancellation(&self.url, message.cancel_reason()));
        }
        let changes = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(kv.clone().into()),
                EventType::Delete => Change::Deleted(kv.key().to_vec(), kv.mod_revision()),
            })
        });
        Ok(changes.collect())
    }

    fn unanswered(&self, reason: String) -> Failure {
        Failure::Unanswered { endpoint: self.url.clone(), reason }
    }
}
