//! The task that keeps one layout of a view up to date.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    discovery::{
        node_set::Keys,
        view::state::Picture,
        watcher::{Follower, Step},
    },
    etcd::{Etcd, Reading},
    layout::template::memo::ParseMemo,
};

/// Follows one layout of a view, for as long as a handle lives.
pub(crate) async fn follow(picture: Arc<Picture>, index: usize, etcd: Etcd, rng: fastrand::Rng) {
    let (layout, prefix) = &picture.places[index];
    let take = |memo: &mut ParseMemo, found| picture.known(layout, memo, found);
    let mut follower = Follower::new(etcd.clone(), prefix.clone(), picture.patience, take, rng);
    let service = &picture.name;
    let life = async {
        let mut failures = 0;
        loop {
            let failure = match follower.next().await {
                Step::Read(Reading { found, revision }) => match picture.recognises(index, &etcd, revision).await {
                    Ok(is_the_same) => {
                        if std::mem::take(&mut failures) > 1 {
                            info!(%service, prefix, "a service is followed again");
                        }
                        let keys = Keys::of(found);
                        picture.tell(index, |sight| {
                            sight.read(Instant::now(), revision, keys, is_the_same);
                            true
                        });
                        continue;
                    }
                    Err(failure) => {
                        follower.doubt(&failure);
                        failure
                    }
                },
                Step::Changed(news) => {
                    picture.tell(index, |sight| sight.apply(Instant::now(), news));
                    continue;
                }
                Step::Broken(failure) => failure,
            };
            failures += 1;
            // A break that the next reading mends is none that anybody has to know.
            if failures == 2 {
                warn!(%service, prefix, "a service cannot be followed; its nodes stay as they were known: {failure}");
            }
            picture.tell(index, |sight| {
                sight.trouble = Some(failure.into());
                false
            });
        }
    };
    let unwanted = async {
        loop {
            picture.told.closed().await;
            if picture.end_unless_wanted() {
                return;
            }
        }
    };
    tokio::select! {
        never = life => never,
        () = unwanted => {}
    }
}
