//! Bodies that firmware understands: an exact length, at most one range, as they are.

use std::{
    fs,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use rustix::io::{ReadWriteFlags, preadv2};

/// What is read of a file at once, in bytes.
const READ_BYTES: u64 = 256 << 10;

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file of so many bytes.
    File(Arc<fs::File>, u64),
}

impl Content {
    /// A file that is opened now, so that it is sent whole even when it is
    /// replaced meanwhile.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("this is no regular file"));
        }
        Ok(Self::File(Arc::new(file), metadata.len()))
    }

    /// How long it is.
    pub(crate) fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// A part of a file, when reading it does not wait for the disk. Most kernels are
    /// fetched by many machines: then another thread would only cost two switches.
    fn part_in_memory(&self, range: &Range<u64>) -> Option<Bytes> {
        let Self::File(file, _) = self else {
            return None;
        };
        let mut buffer = vec![0; (range.end - range.start) as usize];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let read = preadv2(file, &mut parts, range.start, ReadWriteFlags::NOWAIT);
        // Less than all is what the memory had. Not all file systems can tell.
        let is_all = read.is_ok_and(|read| read == buffer.len());
        is_all.then(|| buffer.into())
    }

    fn part(self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            // Both ends lie within the length of a slice.
            Self::Bytes(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Self::File(file, _) => {
                let mut buffer = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut buffer, range.start)?;
                Ok(buffer.into())
            }
        }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

/// Called with the bytes that went out, when the end of a body was sent.
pub(crate) type OnSent = Box<dyn FnOnce(u64) + Send>;

/// The response for a GET or HEAD: 200, or 206 and 416 for a range (RFC 9110,
/// section 14).
pub(crate) fn respond(
    method: &Method,
    asked: &HeaderMap,
    content: Content,
    media_type: &'static str,
    on_sent: OnSent,
) -> Response {
    let len = content.len_bytes();
    let (status, range) = match wanted(asked, len) {
        Wanted::All => (StatusCode::OK, 0..len),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Nothing => return unsatisfiable(len),
    };
    let sent_bytes = range.end - range.start;
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        body(content, range.clone(), on_sent)
    };
    let mut response = body.into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent_bytes));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    response
}

fn unsatisfiable(len: u64) -> Response {
    let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{len}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

fn body(content: Content, range: Range<u64>, on_sent: OnSent) -> Body {
    let sent = range.end - range.start;
    let state = Some((content, range, on_sent));
    Body::from_stream(stream::unfold(state, move |state| async move {
        let (content, range, on_sent) = state?;
        if range.is_empty() {
            on_sent(sent);
            return None;
        }
        let next = range.start + READ_BYTES.min(range.end - range.start);
        let (part, rest) = (range.start..next, next..range.end);
        let read = match (&content, content.part_in_memory(&part)) {
            (_, Some(bytes)) => Ok(bytes),
            (Content::Bytes(_), None) => content.clone().part(part),
            (Content::File(..), None) => {
                let content = content.clone();
                let read = tokio::task::spawn_blocking(move || content.part(part));
                read.await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
            }
        };
        match read {
            // The last part is the end: nobody asks for more than the length.
            Ok(bytes) if rest.is_empty() => {
                on_sent(sent);
                Some((Ok(bytes), None))
            }
            Ok(bytes) => Some((Ok(bytes), Some((content, rest, on_sent)))),
            Err(error) => {
                tracing::error!(%error, "a boot file could not be read");
                Some((Err(error), None))
            }
        }
    }))
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Nothing,
}

/// What a request wants. What is not understood is as if it were not there (RFC
/// 9110, section 14.2), and so are several ranges; there is no validator that
/// `If-Range` could match.
fn wanted(asked: &HeaderMap, len: u64) -> Wanted {
    if asked.contains_key(header::IF_RANGE) {
        return Wanted::All;
    }
    let range = asked
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let Some(range) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else {
        return Wanted::All;
    };
    let Some((first, last)) = range.split_once('-') else {
        return Wanted::All;
    };
    let number = |text: &str| match text.trim() {
        "" => Some(None),
        text if text.bytes().all(|b| b.is_ascii_digit()) => {
            Some(Some(text.parse().unwrap_or(u64::MAX)))
        }
        _ => None,
    };
    match (number(first), number(last)) {
        (Some(Some(first)), Some(last)) => {
            let last = last.unwrap_or(u64::MAX);
            if last < first {
                return Wanted::All;
            }
            let end = last.saturating_add(1).min(len);
            if first < end {
                Wanted::Part(first..end)
            } else {
                Wanted::Nothing
            }
        }
        (Some(None), Some(Some(suffix))) if suffix > 0 && len > 0 => {
            Wanted::Part(len.saturating_sub(suffix)..len)
        }
        (Some(None), Some(Some(_))) => Wanted::Nothing,
        _ => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-4", Wanted::Part(2..5)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=2-99999999999999999999999", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-12", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=4-2", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=x-", Wanted::All),
            ("bytes=", Wanted::All),
            ("bytes=-", Wanted::All),
            ("lines=1-2", Wanted::All),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(range));
            assert_eq!(wanted(&headers, 10), expected, "{range}");
            headers.insert(header::IF_RANGE, HeaderValue::from_static("\"x\""));
            assert_eq!(wanted(&headers, 10), Wanted::All, "{range}");
        }
    }

    #[tokio::test]
    async fn a_file_goes_out_whole_and_then_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kernel");
        let bytes: Vec<u8> = (0..3 * READ_BYTES + 17)
            .map(|at| (at % 251) as u8)
            .collect();
        fs::write(&path, &bytes).expect("writes");
        for range in [None, Some("bytes=1000-600000"), Some("bytes=-1")] {
            let mut headers = HeaderMap::new();
            if let Some(range) = range {
                headers.insert(header::RANGE, HeaderValue::from_static(range));
            }
            let (said, sent) = tokio::sync::oneshot::channel();
            let content = Content::open(&path).expect("opens");
            let on_sent: OnSent = Box::new(move |bytes| {
                let _ = said.send(bytes);
            });
            let response = respond(&Method::GET, &headers, content, "x/y", on_sent);
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
            let body = body.expect("is whole");
            let expected = match range {
                None => &bytes[..],
                Some("bytes=-1") => &bytes[bytes.len() - 1..],
                Some(_) => &bytes[1000..=600_000],
            };
            assert_eq!(body, expected);
            assert_eq!(sent.await, Ok(expected.len() as u64));
        }
    }
}
