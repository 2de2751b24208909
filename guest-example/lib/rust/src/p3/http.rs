//! The HTTP server of a component, on wasi:http 0.3, with the requests and responses of the crate `http`.

use std::{
    fmt::{self, Display},
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use wasip3::{
    http::types::{self, ErrorCode},
    http_compat::{IncomingRequestBody, IncomingResponseBody, http_from_wasi_request, http_into_wasi_response},
};

pub use http::{Method, Response, StatusCode};
#[doc(hidden)]
pub use wasip3;
/// Begins a task beside the current request, in which it may still run when the response has been sent.
pub use wasip3::spawn_local as spawn;

/// A request, whose body is read while it comes.
pub type Request = http::Request<IncomingRequestBody>;

/// Body of a response: text or bytes, as a whole or as a stream.
pub struct Body(Content);

enum Content {
    Whole(Bytes),
    Stream(Pin<Box<dyn Chunks>>),
    /// The body of another service's response, passed on while it comes.
    Passed(IncomingResponseBody),
}

/// A stream of whatever becomes bytes.
trait Chunks {
    fn poll_chunk(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

impl<S: Stream<Item: Into<Bytes>>> Chunks for S {
    fn poll_chunk(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_next(cx).map(|chunk| chunk.map(Into::into))
    }
}

impl Body {
    /// A body that is sent while the stream gives it. The stream is dropped when the client has left, which is noticed with
    /// the next chunk.
    pub fn stream(chunks: impl Stream<Item: Into<Bytes>> + 'static) -> Self {
        Self(Content::Stream(Box::pin(chunks)))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from(text).into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Whole(bytes))
    }
}

impl From<IncomingResponseBody> for Body {
    fn from(body: IncomingResponseBody) -> Self {
        Self(Content::Passed(body))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        match &mut self.0 {
            Content::Whole(bytes) => {
                let whole = Some(mem::take(bytes)).filter(|bytes| !bytes.is_empty());
                Poll::Ready(whole.map(|bytes| Ok(Frame::data(bytes))))
            }
            Content::Stream(chunks) => {
                chunks.as_mut().poll_chunk(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
            Content::Passed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_) => SizeHint::default(),
            Content::Passed(body) => body.size_hint(),
        }
    }
}

/// Makes a component's `wasi:http/handler` of an async function that takes a [`Request`](crate::p3::http::Request) and returns a
/// `Result` of a response, whose body is a [`Body`](crate::p3::http::Body) or any other `http_body::Body`. Of an error the host's
/// log has the text, and the client gets the status 500.
#[macro_export]
macro_rules! serve {
    ($handle:path) => {
        const _: () = {
            struct Handler;

            impl $crate::p3::http::wasip3::exports::http::handler::Guest for Handler {
                async fn handle(
                    request: $crate::p3::http::wasip3::http::types::Request,
                ) -> Result<
                    $crate::p3::http::wasip3::http::types::Response,
                    $crate::p3::http::wasip3::http::types::ErrorCode,
                > {
                    $crate::p3::http::handle(request, $handle).await
                }
            }

            use $crate::p3::http::wasip3;
            wasip3::http::service::export!(Handler);
        };
    };
}

/// Converts a request, the response to it, and its error.
#[doc(hidden)]
pub async fn handle<B, E: Display>(
    request: types::Request,
    handle: impl AsyncFnOnce(Request) -> Result<Response<B>, E>,
) -> Result<types::Response, ErrorCode>
where
    B: HttpBody<Data: Into<Vec<u8>>, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    match handle(http_from_wasi_request(request)?).await {
        Ok(response) => http_into_wasi_response(response),
        Err(error) => Err(ErrorCode::InternalError(Some(error.to_string()))),
    }
}

/// An error of wasi:http as words: its own text if it has one, or the name of its case.
pub(crate) fn words(error: &ErrorCode) -> String {
    if let ErrorCode::InternalError(Some(text)) = error {
        return text.clone();
    }
    let name = format!("{error:?}");
    let name = name.strip_prefix("ErrorCode::").unwrap_or(&name);
    let name = name.split('(').next().unwrap_or(name);
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{ErrorCode, words};

    #[test]
    fn an_error_of_http_is_its_text_or_the_name_of_its_case() {
        for (error, expected) in [
            (ErrorCode::HttpRequestDenied, "http request denied"),
            (ErrorCode::HttpRequestBodySize(Some(3)), "http request body size"),
            (ErrorCode::InternalError(Some("no: (really)".into())), "no: (really)"),
            (ErrorCode::InternalError(None), "internal error"),
        ] {
            assert_eq!(words(&error), expected);
        }
    }
}
