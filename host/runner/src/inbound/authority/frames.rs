//! Bytes of a client on their way to the h2 crate, which resets a stream whose `:authority` is percent-encoded, and ends the
//! connection after a thousand resets. The authority is replaced here, and passed on in a header whose name clients cannot know.
//!
//! Bytes are inspected in the read buffer, and copied only where a header block is incomplete or rewritten.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::block::{Blocks, Malformed, Rewritten, field};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// Largest payload of a frame: the default of the h2 crate.
const LARGEST: usize = 16_384;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Size of a priority, in bytes.
const DEPENDENCY: usize = 5;

/// Header of a frame.
#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..]: [u8; HEAD] = *bytes.first_chunk()?;
        Some(Self { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags, stream })
    }

    fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&(self.length as u32).to_be_bytes()[1..]);
        to.extend_from_slice(&[self.kind, self.flags]);
        to.extend_from_slice(&self.stream);
    }
}

/// Outcome of one step over the bytes at hand.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Pass on this many bytes unchanged.
    Pass(usize),
    /// Replace this many bytes.
    Replace(usize, Vec<u8>),
    /// Wait for more bytes.
    More,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Inside the preface of HTTP/2, after this many bytes.
    Preface(usize),
    /// Inside a frame without headers, with this many bytes left.
    Frame(usize),
    /// Inside a header block, of whose frames this many bytes were inspected.
    Block(usize),
    /// Not HTTP/2, or malformed.
    Ignored,
}

/// Parser of the frames of one connection, without I/O.
#[derive(Debug)]
struct Watch {
    state: State,
    blocks: Blocks,
    /// Header in which a replaced authority is passed on.
    name: HeaderName,
    has_replaced: Arc<AtomicBool>,
    /// Most bytes of a header block.
    most: usize,
}

impl Watch {
    fn step(&mut self, bytes: &[u8]) -> Step {
        match self.state {
            State::Preface(matched) => {
                let rest = &PREFACE[matched..];
                let length = rest.len().min(bytes.len());
                if bytes[..length] != rest[..length] {
                    return self.ignore(bytes);
                }
                let matched = matched + length;
                self.state = if matched == PREFACE.len() { State::Frame(0) } else { State::Preface(matched) };
                Step::Pass(length)
            }
            State::Frame(0) => match Head::parse(bytes) {
                None => Step::More,
                Some(Head { kind: HEADERS, .. }) => {
                    self.state = State::Block(0);
                    self.block(bytes, 0)
                }
                Some(head) => self.pass(HEAD + head.length, bytes),
            },
            State::Frame(left) => self.pass(left, bytes),
            State::Block(read) => self.block(bytes, read),
            State::Ignored => Step::Pass(bytes.len()),
        }
    }

    fn pass(&mut self, left: usize, bytes: &[u8]) -> Step {
        let now = left.min(bytes.len());
        self.state = State::Frame(left - now);
        Step::Pass(now)
    }

    fn ignore(&mut self, bytes: &[u8]) -> Step {
        self.state = State::Ignored;
        Step::Pass(bytes.len())
    }

    /// Looks for the end of a header block, after `read` bytes that were inspected before.
    fn block(&mut self, bytes: &[u8], mut read: usize) -> Step {
        while let Some(head) = Head::parse(&bytes[read..]) {
            if head.kind != if read == 0 { HEADERS } else { CONTINUATION } {
                return self.ignore(bytes);
            }
            let end = read + HEAD + head.length;
            if bytes.len() < end {
                break;
            }
            read = end;
            if head.flags & END_HEADERS != 0 {
                self.state = State::Frame(0);
                return match self.rewritten(&bytes[..end]) {
                    Ok(None) => Step::Pass(end),
                    Ok(Some(frames)) => Step::Replace(end, frames),
                    Err(Malformed) => self.ignore(bytes),
                };
            }
        }
        if bytes.len() > self.most {
            return self.ignore(bytes);
        }
        self.state = State::Block(read);
        Step::More
    }

    /// Rewrites the frames of one complete block, if necessary.
    fn rewritten(&mut self, frames: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let head = Head::parse(frames).ok_or(Malformed)?;
        let (first, mut more) = frames[HEAD..].split_at(head.length);
        let (priority, fragment) = payload(head, first).ok_or(Malformed)?;
        let rewritten = if more.is_empty() {
            self.blocks.read(fragment)?
        } else {
            let mut block = fragment.to_vec();
            while let Some(head) = Head::parse(more) {
                block.extend_from_slice(&more[HEAD..HEAD + head.length]);
                more = &more[HEAD + head.length..];
            }
            self.blocks.read(&block)?
        };
        Ok(rewritten.map(|Rewritten { mut block, sent }| {
            // An authority that is no header value either is malformed, as an empty authority is.
            let sent = HeaderValue::from_maybe_shared(sent).unwrap_or(HeaderValue::from_static(""));
            self.has_replaced.store(true, Ordering::Release);
            block.extend(field(self.name.as_str().as_bytes(), sent.as_bytes()));
            write(head, priority, &block)
        }))
    }
}

/// Splits a payload into priority and header block fragment.
fn payload(head: Head, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut payload = payload;
    if head.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = &rest[..rest.len().checked_sub(usize::from(*padding))?];
    }
    payload.split_at_checked(if head.flags & PRIORITY != 0 { DEPENDENCY } else { 0 })
}

/// Writes the frames of a header block, without padding.
fn write(head: Head, priority: &[u8], block: &[u8]) -> Vec<u8> {
    let (first, mut rest) = block.split_at(block.len().min(LARGEST - priority.len()));
    let mut written = Vec::with_capacity(block.len() + 2 * HEAD + priority.len());
    let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    let flags = head.flags & (END_STREAM | PRIORITY) | end(rest);
    Head { length: priority.len() + first.len(), flags, ..head }.write(&mut written);
    written.extend_from_slice(priority);
    written.extend_from_slice(first);
    while !rest.is_empty() {
        let (next, left) = rest.split_at(rest.len().min(LARGEST));
        rest = left;
        Head { length: next.len(), kind: CONTINUATION, flags: end(rest), ..head }.write(&mut written);
        written.extend_from_slice(next);
    }
    written
}

/// Connection whose authorities the h2 crate accepts.
pub(crate) struct Frames<S> {
    inner: S,
    watch: Watch,
    /// Rewritten bytes, passed on before further reads.
    ready: Bytes,
    /// Incomplete header block or frame header.
    held: BytesMut,
}

impl<S> Frames<S> {
    /// Wraps a connection. Replaced authorities are passed on in the header `name`, and the first sets `has_replaced`. After a
    /// header block larger than `most` bytes nothing is replaced any more.
    pub(crate) fn new(inner: S, name: HeaderName, most: usize, has_replaced: Arc<AtomicBool>) -> Self {
        let watch = Watch { state: State::Preface(0), blocks: Blocks::default(), name, has_replaced, most };
        Self { inner, watch, ready: Bytes::new(), held: BytesMut::new() }
    }

    /// Inspects the bytes just read. Returns the length of the prefix that stays in place.
    fn look(&mut self, read: &[u8]) -> usize {
        let (mut passed, mut ready) = (0, BytesMut::new());
        if self.held.is_empty() {
            while passed < read.len() && self.held.is_empty() && ready.is_empty() {
                let rest = &read[passed..];
                match self.watch.step(rest) {
                    Step::Pass(length) => passed += length,
                    Step::More => self.held.extend_from_slice(rest),
                    Step::Replace(length, by) => {
                        self.held.extend_from_slice(&rest[length..]);
                        ready.extend_from_slice(&by);
                    }
                }
            }
            if ready.is_empty() {
                return passed;
            }
        } else {
            self.held.extend_from_slice(read);
        }
        while !self.held.is_empty() {
            match self.watch.step(&self.held) {
                Step::Pass(length) => ready.extend_from_slice(&self.held.split_to(length)),
                Step::More => break,
                Step::Replace(length, by) => {
                    self.held.advance(length);
                    ready.extend_from_slice(&by);
                }
            }
        }
        self.ready = ready.freeze();
        passed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                let length = this.ready.len().min(buf.remaining());
                buf.put_slice(&this.ready.split_to(length));
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
            if matches!(this.watch.state, State::Ignored) && this.held.is_empty() {
                return polled;
            }
            ready!(polled)?;
            if buf.filled().len() == before {
                if this.held.is_empty() || buf.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
                // The client has ended in the middle of a frame.
                this.watch.state = State::Ignored;
                this.ready = this.held.split().freeze();
                continue;
            }
            let passed = this.look(&buf.filled()[before..]);
            buf.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::Ordering};

    use http::HeaderName;
    use loona_hpack::Decoder;
    use proptest::{collection::vec, prelude::*};
    use tokio::{
        io::{AsyncReadExt, ReadBuf},
        runtime::Builder,
    };

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-authority-test");
    const MOST: usize = 100_000;

    /// Connection that yields one piece after another.
    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match self.0.front_mut() {
                None => {}
                // Nothing has come yet.
                Some(piece) if piece.is_empty() => {
                    self.0.pop_front();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(piece) => {
                    let length = piece.len().min(buf.remaining());
                    buf.put_slice(&piece.drain(..length).collect::<Vec<_>>());
                    if piece.is_empty() {
                        self.0.pop_front();
                    }
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    /// Bytes passed on when `bytes` arrive in pieces and are read `at_a_time`; and whether an authority was replaced.
    fn passed(bytes: &[u8], cuts: &[usize], most: usize, at_a_time: usize) -> (Vec<u8>, bool) {
        let (mut pieces, mut rest) = (std::collections::VecDeque::new(), bytes);
        for cut in cuts {
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            pieces.push_back(piece.to_vec());
            rest = more;
        }
        pieces.push_back(rest.to_vec());
        let has_replaced = Arc::new(AtomicBool::new(false));
        let mut frames = Frames::new(Pieces(pieces), NAME, most, Arc::clone(&has_replaced));
        let mut all = Vec::new();
        Builder::new_current_thread().build().unwrap().block_on(async {
            let mut some = vec![0; at_a_time];
            loop {
                let read = frames.read(&mut some).await.unwrap();
                if read == 0 {
                    break;
                }
                all.extend_from_slice(&some[..read]);
            }
        });
        (all, has_replaced.load(Ordering::Acquire))
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut written = Vec::new();
        Head { length: payload.len(), kind, flags, stream: stream.to_be_bytes() }.write(&mut written);
        [written, payload.to_vec()].concat()
    }

    /// Request, or another frame.
    #[derive(Debug, Clone)]
    enum Sent {
        Request { authority: String, is_inserted: bool, padding: Option<u8>, has_priority: bool, cuts: Vec<usize> },
        Other { kind: u8, payload: Vec<u8> },
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let authority = prop_oneof![Just("user%2Fv1".to_owned()), Just("here:80".to_owned()), "[a-z%/ ]{1,300}"];
        let request = (authority, any::<bool>(), any::<Option<u8>>(), any::<bool>(), vec(0_usize..64, 0..4));
        prop_oneof![
            request.prop_map(|(authority, is_inserted, padding, has_priority, cuts)| Sent::Request {
                authority,
                is_inserted,
                padding,
                has_priority,
                cuts
            }),
            (prop_oneof![Just(0_u8), Just(3), Just(6), Just(8), Just(77)], vec(any::<u8>(), 0..100))
                .prop_map(|(kind, payload)| Sent::Other { kind, payload }),
        ]
    }

    fn written(all: &[Sent]) -> Vec<u8> {
        let mut written = PREFACE.to_vec();
        for (number, sent) in all.iter().enumerate() {
            let stream = 2 * number as u32 + 1;
            match sent {
                Sent::Other { kind, payload } => written.extend(frame(*kind, 0, stream, payload)),
                Sent::Request { authority, is_inserted, padding, has_priority, cuts } => {
                    let mut block = vec![0x82, 0x86, 0x84];
                    block.push(if *is_inserted { 0x41 } else { 0x01 });
                    block.extend(&field(b"", authority.as_bytes())[2..]);
                    block.extend(field(b"x-name", b"value"));
                    let (mut fragments, mut rest) = (Vec::new(), &block[..]);
                    for cut in cuts {
                        let (fragment, more) = rest.split_at((*cut).min(rest.len()));
                        fragments.push(fragment);
                        rest = more;
                    }
                    fragments.push(rest);
                    let last = fragments.len() - 1;
                    let end = |place| if place == last { END_HEADERS } else { 0 };
                    let (mut flags, mut payload) = (END_STREAM | end(0), Vec::new());
                    if let Some(padding) = padding {
                        flags |= PADDED;
                        payload.push(*padding);
                    }
                    if *has_priority {
                        flags |= PRIORITY;
                        payload.extend([0, 0, 0, 0, 7]);
                    }
                    payload.extend_from_slice(fragments[0]);
                    payload.extend(vec![0; usize::from(padding.unwrap_or(0))]);
                    written.extend(frame(HEADERS, flags, stream, &payload));
                    for (place, fragment) in fragments.iter().enumerate().skip(1) {
                        written.extend(frame(CONTINUATION, end(place), stream, fragment));
                    }
                }
            }
        }
        written
    }

    /// Frame that is passed on as it is: stream, kind and payload.
    type Other = (u32, u8, Vec<u8>);
    /// Headers of a stream, and whether the stream ends with them.
    type Headers = (u32, bool, Vec<(String, String)>);

    /// Parses frames as a server does.
    fn read(bytes: &[u8]) -> Vec<Result<Other, Headers>> {
        let mut bytes = bytes.strip_prefix(PREFACE).unwrap();
        let (mut decoder, mut all) = (Decoder::new(), Vec::new());
        let mut next = || {
            let head = Head::parse(bytes)?;
            let (frame, rest) = bytes.split_at(HEAD + head.length);
            bytes = rest;
            Some((head, frame[HEAD..].to_vec()))
        };
        while let Some((head, content)) = next() {
            let stream = u32::from_be_bytes(head.stream);
            if head.kind != HEADERS {
                all.push(Ok((stream, head.kind, content)));
                continue;
            }
            let (priority, fragment) = payload(head, &content).unwrap();
            assert!(head.length <= LARGEST);
            let (mut block, mut flags) = (fragment.to_vec(), head.flags);
            while flags & END_HEADERS == 0 {
                let (head, content) = next().unwrap();
                assert!(head.kind == CONTINUATION && head.stream == stream.to_be_bytes() && head.length <= LARGEST);
                block.extend(content);
                flags = head.flags;
            }
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let fields = decoder.decode(&block).unwrap();
            let fields = fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
            all.push(Err((stream, head.flags & END_STREAM != 0 && !priority.is_empty(), fields)));
        }
        all
    }

    proptest! {
        #[test]
        fn a_server_reads_the_same_requests_however_they_come(
            all in vec(sent(), 0..8), cuts in vec(0_usize..200, 0..40), at_a_time in 1_usize..300,
        ) {
            let sent = written(&all);
            let (passed, has_replaced) = passed(&sent, &cuts, MOST, at_a_time);
            let (before, after) = (read(&sent), read(&passed));
            prop_assert_eq!(before.len(), after.len());
            let mut replaced = 0;
            for (before, after) in before.into_iter().zip(after) {
                match (before, after) {
                    (Err((stream, flags, mut fields)), Err((passed_stream, passed_flags, mut passed))) => {
                        prop_assert_eq!((stream, flags), (passed_stream, passed_flags));
                        let authority = fields[3].1.clone();
                        if authority.parse::<http::uri::Authority>().is_err() {
                            replaced += 1;
                            prop_assert_eq!(passed.pop(), Some((NAME.to_string(), authority)));
                            prop_assert!(passed[3].1.parse::<http::uri::Authority>().is_ok());
                            fields.remove(3);
                            passed.remove(3);
                        }
                        prop_assert_eq!(fields, passed);
                    }
                    (before, after) => prop_assert_eq!(before, after),
                }
            }
            prop_assert_eq!(has_replaced, replaced > 0);
            prop_assert!(replaced > 0 || sent == passed, "nothing is written anew without need");
        }

        #[test]
        fn other_protocols_pass_unchanged(bytes: Vec<u8>, prefix in 0..=PREFACE.len(), cuts in vec(0_usize..9, 0..9)) {
            let sent = [&PREFACE[..prefix], &bytes].concat();
            if prefix < PREFACE.len() || !bytes.contains(&HEADERS) {
                prop_assert_eq!(passed(&sent, &cuts, MOST, 7), (sent, false));
            } else {
                // It ends, whatever it is.
                passed(&sent, &cuts, MOST, 7);
            }
        }
    }

    #[test]
    fn a_header_block_that_is_too_large_is_not_held() {
        let block = field(b"x-large", &[b'x'; 3000]);
        let sent = [PREFACE, &frame(HEADERS, 0, 1, &block), &frame(CONTINUATION, 0, 1, &block)].concat();
        let (passed, _) = passed(&sent, &[100, 4000], 4000, 512);
        assert_eq!(passed, sent);
    }

    #[test]
    fn an_incomplete_header_block_passes_at_the_end() {
        let sent = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &[0x82; 100])].concat();
        let half = &sent[..sent.len() - 50];
        assert_eq!(passed(half, &[30], MOST, 512), (half.to_vec(), false));
    }

    #[test]
    fn a_rewritten_block_fits_into_frames() {
        let authority = "%".repeat(LARGEST);
        let block = [&[0x82, 0x86, 0x84, 0x01], &field(b"", authority.as_bytes())[2..]].concat();
        let (first, second) = block.split_at(LARGEST);
        let sent =
            [PREFACE, &frame(HEADERS, END_STREAM, 1, first), &frame(CONTINUATION, END_HEADERS, 1, second)].concat();
        let (passed, has_replaced) = passed(&sent, &[], MOST, 512);
        assert!(has_replaced);
        let Err((1, false, fields)) = &read(&passed)[0] else { panic!("a request") };
        assert_eq!(fields.last().unwrap().1, authority);
    }
}
