//! A client of the guild database as a bot would write it: one request, one reply.

use std::{fs, path::Path, time::Duration};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio_websockets::{ClientBuilder, Message};

const DEADLINE: Duration = Duration::from_secs(60);

/// The token in a file, as an `Authorization` header.
pub fn bearer(token_file: &Path) -> anyhow::Result<String> {
    let token = fs::read_to_string(token_file).context("the database's token file")?;
    Ok(format!("Bearer {}", token.trim()))
}

/// Sends one request to a node and gives its reply.
pub fn call(url: &str, authorization: &str, action: &str, data: Value) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let request = json!({ "action": action, "data": data, "request_id": 1 }).to_string();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, async {
            let (mut socket, _) = ClientBuilder::new()
                .uri(url)?
                .add_header(
                    http::header::AUTHORIZATION,
                    HeaderValue::from_str(authorization)?,
                )?
                .connect()
                .await?;
            socket.send(Message::text(request)).await?;
            let reply = socket.next().await.context("closed without a reply")??;
            let text = reply.as_text().context("not a text frame")?;
            anyhow::Ok(serde_json::from_str(text)?)
        })
        .await
        .context("no reply in time")?
    })
}
