//! A GET or POST over plain HTTP/1.1, blocking, with a deadline: all that reading an account needs.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

fn request(
    method: &str,
    url: &str,
    headers: &[String],
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let rest = url.strip_prefix("http://").context("only http:// URLs")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = authority.parse().context("an address with a port")?;
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut lines = headers.join("\r\n");
    if !lines.is_empty() {
        lines.push_str("\r\n");
    }
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n{lines}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of head")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no status")?;
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        match usize::from_str_radix(size.trim(), 16) {
            Ok(size) if size > 0 && rest.len() >= size => {
                whole.push_str(&rest[..size]);
                body = rest[size..].trim_start_matches("\r\n");
            }
            _ => break,
        }
    }
    whole
}

/// Status and body of a GET.
pub fn get(url: &str) -> anyhow::Result<(u16, String)> {
    get_with(url, &[])
}

/// As [`get`], with header lines.
pub fn get_with(url: &str, headers: &[String]) -> anyhow::Result<(u16, String)> {
    request("GET", url, headers, "")
}

/// The JSON that a GET answers.
pub fn get_json(url: &str) -> anyhow::Result<Value> {
    let (status, body) = get(url)?;
    if status != 200 {
        bail!("{url}: {status} {body}");
    }
    Ok(serde_json::from_str(&body)?)
}

/// The JSON that a POST answers; null when it answers nothing.
pub fn post_json(url: &str, body: &Value) -> anyhow::Result<Value> {
    let (status, answer) = request("POST", url, &[], &body.to_string())?;
    if !(200..300).contains(&status) {
        bail!("{url}: {status} {answer}");
    }
    Ok(serde_json::from_str(&answer).unwrap_or(Value::Null))
}
