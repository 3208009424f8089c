//! Probes that the agent runs itself: HTTP requests and patterns in the output.

use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::logs::Follow;

/// One request takes at most this long.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// However short the spec's interval is.
pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Waits for a line that matches.
pub(super) async fn log(pattern: &str, mut lines: Follow) -> Result<(), String> {
    let regex = regex::Regex::new(pattern).map_err(|error| {
        format!("its log pattern {pattern:?} is no regular expression: {error}")
    })?;
    while let Some(line) = lines.next().await {
        match line {
            Ok(line) if regex.is_match(&line.text) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("its log ended".to_owned())
}

/// Asks once; an error says in words what was wrong.
pub(super) async fn http(url: &str) -> Result<(), String> {
    match timeout(REQUEST_MAX, get(url)).await {
        Ok(Ok(status)) if (200..300).contains(&status) => Ok(()),
        Ok(Ok(status)) => Err(format!("GET {url} answered {status}")),
        Ok(Err(why)) => Err(format!("GET {url} failed: {why}")),
        Err(_) => Err(format!(
            "GET {url} was not answered within {} s",
            REQUEST_MAX.as_secs()
        )),
    }
}

async fn get(url: &str) -> Result<u16, String> {
    let uri: http::Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("only http:// is probed".to_owned());
    }
    let host = uri.host().ok_or("the URL has no host")?;
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, uri.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = http::Request::get(path)
        .header(http::header::HOST, authority)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        sender
            .send_request(request)
            .await
            .map(|response| response.status().as_u16())
            .map_err(|error| error.to_string())
    };
    // The connection lives no longer than the answer's head.
    tokio::pin!(answer);
    tokio::select! {
        status = &mut answer => status,
        result = connection => match result {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
