//! Reading what clients send: JSON, or multipart whose `payload_json` part is it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::app::App;

/// Bytes that a body may have.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A JSON body. An empty one is null.
pub(crate) struct JsonBody(pub Value);

/// A JSON body that is an object; an empty body is an empty one.
pub(crate) struct ObjectBody(pub Map<String, Value>);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &Arc<App>) -> Result<Self, ApiError> {
        let content_type = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let boundary = content_type.and_then(multipart_boundary);
        let bytes = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
        let bytes = bytes.map_err(|_| ApiError::INVALID_JSON)?;
        let json = match &boundary {
            Some(boundary) => payload_json(&bytes, boundary).ok_or(ApiError::INVALID_JSON)?,
            None => bytes,
        };
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(Value::Null));
        }
        serde_json::from_slice(&json)
            .map(Self)
            .map_err(|_| ApiError::INVALID_JSON)
    }
}

impl FromRequest<Arc<App>> for ObjectBody {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, state: &Arc<App>) -> Result<Self, ApiError> {
        match JsonBody::from_request(request, state).await?.0 {
            Value::Object(object) => Ok(Self(object)),
            Value::Null => Ok(Self(Map::new())),
            _ => Err(ApiError::form(
                "",
                "Only dictionaries may be used in a DictType",
            )),
        }
    }
}

fn multipart_boundary(content_type: &str) -> Option<String> {
    let parameters = content_type.strip_prefix("multipart/form-data")?;
    let boundary = parameters
        .split(';')
        .find_map(|part| part.trim().strip_prefix("boundary="))?;
    let boundary = boundary.trim_matches('"');
    (!boundary.is_empty()).then(|| boundary.to_owned())
}

/// The contents of the part called `payload_json`. Files are not kept.
fn payload_json(body: &Bytes, boundary: &str) -> Option<Bytes> {
    let line = format!("--{boundary}");
    let mut at = find(body, 0, line.as_bytes())? + line.len();
    loop {
        let head_end = find(body, at, b"\r\n\r\n")?;
        let contents = head_end + 4;
        let delimiter = format!("\r\n--{boundary}");
        let end = find(body, contents, delimiter.as_bytes())?;
        let head = String::from_utf8_lossy(&body[at..head_end]);
        if head.contains("name=\"payload_json\"") {
            return Some(body.slice(contents..end));
        }
        at = end + delimiter.len();
    }
}

fn find(body: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    body.get(from..)?
        .windows(what.len())
        .position(|window| window == what)
        .map(|place| from + place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_json_part_is_found_among_files() {
        let body = Bytes::from_static(
            b"--x\r\nContent-Disposition: form-data; name=\"files[0]\"; filename=\"a\"\r\n\r\n\xff\x00\r\n\
              --x\r\nContent-Disposition: form-data; name=\"payload_json\"\r\n\r\n{\"content\":\"hi\"}\r\n--x--\r\n",
        );
        assert_eq!(
            payload_json(&body, "x").as_deref(),
            Some(b"{\"content\":\"hi\"}".as_slice())
        );
        assert_eq!(payload_json(&body, "y"), None);
        assert_eq!(
            multipart_boundary("multipart/form-data; boundary=\"a b\"").as_deref(),
            Some("a b")
        );
        assert_eq!(multipart_boundary("application/json"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..400), boundary in "[-x\r\n]{1,3}") {
            payload_json(&Bytes::from(body), &boundary);
        }
    }
}
