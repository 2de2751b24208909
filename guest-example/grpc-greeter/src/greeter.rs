//! The service: one function per call of its `.proto` file.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt, stream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use wasip3::clocks::monotonic_clock::wait_for;

use crate::generated::{GreetReply, GreetRequest, RepeatRequest, greeter_server};

/// Maximum number of names in one call.
const MAX_NAMES: usize = 100;

type Replies = Pin<Box<dyn Stream<Item = Result<GreetReply, Status>> + Send>>;

pub(crate) struct Greeter;

#[tonic::async_trait]
impl greeter_server::Greeter for Greeter {
    type RepeatStream = Replies;
    type ConverseStream = Replies;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        greeting(&request.into_inner().name).map(Response::new)
    }

    async fn repeat(&self, request: Request<RepeatRequest>) -> Result<Response<Replies>, Status> {
        let RepeatRequest { name, times, pause_ms } = request.into_inner();
        let reply = greeting(&name)?;
        let pause = Duration::from_millis(pause_ms.into());
        let replies = stream::iter(0..times).then(move |_| {
            let reply = reply.clone();
            async move {
                sleep(pause).await;
                Ok(reply)
            }
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn greet_all(&self, request: Request<Streaming<GreetRequest>>) -> Result<Response<GreetReply>, Status> {
        let mut names = Vec::new();
        let mut requests = request.into_inner();
        while let Some(GreetRequest { name }) = requests.message().await? {
            if names.len() == MAX_NAMES {
                return Err(Status::resource_exhausted(format!("more than {MAX_NAMES} names")));
            }
            names.push(name);
        }
        greeting(&names.join(", ")).map(Response::new)
    }

    async fn converse(&self, request: Request<Streaming<GreetRequest>>) -> Result<Response<Replies>, Status> {
        // Ends with its first error: the body is polled once more after that, and must not wait for another request then.
        let replies = stream::try_unfold(request.into_inner(), |mut requests| async move {
            let Some(GreetRequest { name }) = requests.message().await? else { return Ok(None) };
            Ok(Some((greeting(&name)?, requests)))
        });
        Ok(Response::new(replies.boxed()))
    }
}

fn greeting(name: &str) -> Result<GreetReply, Status> {
    if name.is_empty() {
        let details = ErrorDetails::with_bad_request_violation("name", "must not be empty");
        return Err(Status::with_error_details(Code::InvalidArgument, "a name must not be empty", details));
    }
    Ok(GreetReply { greeting: format!("hello {name}") })
}

async fn sleep(pause: Duration) {
    if !pause.is_zero() {
        wait_for(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX)).await;
    }
}
