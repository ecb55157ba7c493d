//! Answers in the form that Go's `net/http` gives them. Owns: headers and the last newline. Read next:
//! `mod.rs`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;

use super::Client;

/// An answer with its whole body.
pub(super) type Reply = Response<Full<Bytes>>;

/// Bytes of a refusal, which may repeat what was sent.
const MAX_TEXT: usize = 4 << 10;
/// Bytes of a request's body.
const MAX_BODY: usize = 64 << 10;
/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Also what JSON is labelled with: the original's server guesses from the first bytes.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// An answer that says why not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "404 page not found")
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let nosniff = (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let mut text = refusal.text;
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        let mut reply = reply(refusal.status, [(CONTENT_TYPE, TEXT), nosniff], text + "\n");
        if refusal.status == StatusCode::UNAUTHORIZED {
            reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        reply
    }
}

/// It is done, and there is nothing to say.
pub(super) fn done() -> Reply {
    reply(StatusCode::OK, [], "")
}

/// `value` as compact JSON.
///
/// # Errors
/// It has no form in JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Reply, Refusal> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    text.push('\n');
    Ok(reply(StatusCode::OK, [(CONTENT_TYPE, TEXT)], text))
}

/// The same request at `location`, which is escaped.
pub(super) fn redirect(method: &Method, location: &str) -> Reply {
    let Ok(to) = HeaderValue::from_str(location) else {
        return Refusal::bad_request("400 Bad Request").into();
    };
    let status = StatusCode::TEMPORARY_REDIRECT;
    if !matches!(*method, Method::GET | Method::HEAD) {
        return reply(status, [(LOCATION, to)], "");
    }
    let escaped = location.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;");
    let text = format!("<a href=\"{escaped}\">Temporary Redirect</a>.\n\n");
    reply(status, [(CONTENT_TYPE, HTML), (LOCATION, to)], text)
}

fn reply<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, HeaderValue); N],
    body: impl Into<Bytes>,
) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().extend(headers);
    reply
}

/// The body of `client`'s request that changes something.
///
/// # Errors
/// It is no POST, its body is too long, or does not arrive.
pub(super) async fn posted(client: &Client, request: Request<Incoming>) -> Result<Bytes, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::bad_request("post only"));
    }
    match tokio::time::timeout(BODY_TIME, whole(request.into_body())).await {
        Ok(Ok(Some(body))) => {
            client.slot.set_busy();
            Ok(body.into())
        }
        Ok(Ok(None)) => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("request body too large: the limit is {MAX_BODY} bytes"),
        )),
        // The client closed its half in the middle of it.
        Ok(Err(_)) => Err(Refusal::bad_request("unexpected EOF")),
        Err(_) => Err(Refusal::bad_request("i/o timeout")),
    }
}

/// All of a body, or `None` if it is longer than it may be. Each part is copied and let go: it would hold
/// what it was read into, which is larger by far where a client sends byte by byte.
async fn whole(mut body: Incoming) -> hyper::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let part = frame.data_ref().map_or(&[][..], |part| part);
        if bytes.len() + part.len() > MAX_BODY {
            return Ok(None);
        }
        bytes.extend_from_slice(part);
    }
    Ok(Some(bytes))
}
