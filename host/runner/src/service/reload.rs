//! A reload: from the component's file to a revision that can be served, beside the served one.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use leasehold_artifacts::Former;
use tokio_util::task::TaskTracker;

use crate::{
    config::{Register, Spec},
    error::Failure,
    inbound::tls::Tls,
    service::{handle::Reply, identity::Identity, keys, revision::Revision},
    wasm::{artifact, component::Loaded, context::ServiceContext, engine::Engine},
};

/// A reload that is in progress.
pub(crate) struct Reload {
    /// Recipient of the outcome, unless a change of the file caused the reload.
    reply: Option<Reply<Result<(), Failure>>>,
    building: BoxFuture<'static, Result<Built, Failure>>,
}

/// Everything that a revision is built from.
pub(crate) struct RevisionBuilder {
    pub(crate) spec: Spec,
    pub(crate) engine: Engine,
    /// The component; `None` for the content of its file.
    pub(crate) loaded: Option<Loaded>,
    /// The revision that is served.
    pub(crate) former: Arc<ServiceContext>,
    /// Set where the configuration differs from that of the served revision.
    pub(crate) reconfigured: Option<Reconfiguration>,
    /// Authority of the service, and the revisions that retire, where the host calls the component.
    pub(crate) handler: Option<(String, TaskTracker)>,
}

/// Values of a service that follow from a configuration that differs from that of the served revision.
pub(crate) struct Reconfiguration {
    pub(crate) identity: Identity,
    pub(crate) tls: Option<Arc<Tls>>,
}

/// Outcome of a build.
pub(crate) struct Built {
    pub(crate) spec: Spec,
    pub(crate) engine: Engine,
    pub(crate) reconfigured: Option<Reconfiguration>,
    pub(crate) loaded: Loaded,
    /// Started and probed; none for a program, which runs once the former one has ended.
    pub(crate) revision: Option<Revision>,
}

impl Reload {
    pub(crate) fn begin(reply: Option<Reply<Result<(), Failure>>>, builder: RevisionBuilder) -> Self {
        Self { reply, building: builder.build().boxed() }
    }

    /// Waits for the revision; once only. Dropped halfway, the build goes on with the next call.
    pub(crate) async fn built(&mut self) -> Result<Built, Failure> {
        (&mut self.building).await
    }

    /// Replies with the outcome.
    pub(crate) fn end(self, outcome: Result<(), Failure>) {
        if let Some(reply) = self.reply {
            let _ = reply.send(outcome); // The client may have gone away.
        }
    }
}

impl RevisionBuilder {
    async fn build(self) -> Result<Built, Failure> {
        let Self { spec, engine, loaded, former, reconfigured, handler } = self;
        let loaded = match loaded {
            Some(loaded) => loaded,
            None => artifact::load(&engine, &spec, Former::Refused).await?,
        };
        loaded.check(&spec)?;
        let Some((authority, retiring)) = handler else {
            loaded.program(&spec.component)?;
            return Ok(Built { spec, engine, reconfigured, loaded, revision: None });
        };
        // One revision retires at a time: each has an instance that lives as long as it does.
        retiring.close();
        retiring.wait().await;
        retiring.reopen();
        let context = Arc::new(match &reconfigured {
            None => former.successor(),
            Some(Reconfiguration { identity, .. }) => {
                former.successor_under(&spec, &identity.own, identity.tracer.clone())
            }
        });
        let begun = async {
            let mut revision = Revision::beside(&spec, &engine, &loaded, Arc::clone(&context), &authority).await?;
            if let Some(Reconfiguration { identity, .. }) = &reconfigured
                && spec.register == Register::Host
                && let Err(failure) = keys::register(&spec, identity.node.clone(), &context.registry).await
            {
                revision.stop(&spec).await;
                return Err(failure);
            }
            Ok(revision)
        };
        match begun.await {
            Ok(revision) => Ok(Built { spec, engine, reconfigured, loaded, revision: Some(revision) }),
            Err(failure) => {
                context.ended.cancel();
                keys::give_back(&spec, &context.registry, &former.registry).await;
                Err(failure)
            }
        }
    }
}
