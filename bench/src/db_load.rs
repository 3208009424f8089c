//! Load for a guild database node: one request in flight per connection, as `redis-benchmark` without
//! pipelining does it. Prints one line of JSON.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use http::{HeaderValue, header::AUTHORIZATION};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, MaybeTlsStream, Message, WebSocketStream};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Durable single-row inserts.
    Insert,
    /// `find_one` of 1,000 guilds' settings over and over: answered from the cache.
    Read,
    /// `insert_many` of 500 rows at a time until `--rows` have been added.
    Fill,
}

#[derive(Parser)]
struct Arguments {
    /// ws://host:port of the node.
    #[arg(long)]
    url: String,
    /// File with the token.
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long, default_value_t = 64)]
    connections: u64,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 0)]
    rows: u64,
    work: Work,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn call(socket: &mut Socket, request: String) -> anyhow::Result<Message> {
    socket.send(Message::text(request)).await?;
    let reply = tokio::time::timeout(Duration::from_secs(30), socket.next()).await;
    Ok(reply.context("no reply in 30 s")?.context("closed")??)
}

fn check(reply: &Message) -> anyhow::Result<()> {
    let text = reply.as_text().context("not text")?;
    ensure!(text.contains("\"success\":true"), "{text}");
    Ok(())
}

fn row(unique: u64) -> Value {
    json!({
        "ticket_id": format!("{unique:016x}"),
        "guild_id": (fastrand::u64(1..=1_000)) << 22,
        "channel_id": 81_384_788_765_712_384_u64,
        "creator_id": 81_384_788_765_712_385_u64,
        "category_id": "general",
        "subject": "the subject of a ticket",
        "description": "x".repeat(200),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let token = std::fs::read_to_string(&arguments.token_file).context("the token file")?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
    let mut sockets = Vec::new();
    for _ in 0..arguments.connections {
        let (socket, _) = ClientBuilder::new()
            .uri(&arguments.url)?
            .add_header(AUTHORIZATION, bearer.clone())?
            .connect()
            .await?;
        sockets.push(socket);
    }
    if arguments.work == Work::Read {
        for guild in 1..=1_000_u64 {
            let row =
                json!({ "guild_id": guild << 22, "settings": { "prefix": "!", "log": true } });
            let request = json!({ "action": "upsert", "data": { "table": "guilds", "row": row } });
            check(&call(&mut sockets[0], request.to_string()).await?)?;
        }
    }
    // Unique over runs of this program on one database.
    let base = fastrand::u64(..) << 24;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(arguments.seconds);
    let work = arguments.work;
    let share = arguments.rows.div_ceil(arguments.connections);
    let workers = sockets
        .into_iter()
        .enumerate()
        .map(|(index, mut socket)| async move {
            let mut latency = Histogram::<u64>::new(3)?;
            let mut unique = base + index as u64 * 0x1_0000_0000;
            let mut rows = 0;
            loop {
                let (action, data, count) = match work {
                    Work::Insert => (
                        "insert",
                        json!({ "table": "tickets", "row": row(unique) }),
                        1,
                    ),
                    Work::Fill => {
                        let many: Vec<Value> = (0..500).map(|n| row(unique + n)).collect();
                        (
                            "insert_many",
                            json!({ "table": "tickets", "rows": many }),
                            500,
                        )
                    }
                    Work::Read => {
                        let guild = fastrand::u64(1..=1_000) << 22;
                        (
                            "find_one",
                            json!({ "table": "guilds", "conditions": { "guild_id": guild } }),
                            1,
                        )
                    }
                };
                let request = json!({ "action": action, "data": data, "request_id": unique });
                let sent = Instant::now();
                check(&call(&mut socket, request.to_string()).await?)?;
                latency.record(sent.elapsed().as_micros() as u64)?;
                unique += count;
                rows += count;
                let over = match work {
                    Work::Fill => rows >= share,
                    Work::Insert | Work::Read => Instant::now() >= end,
                };
                if over {
                    break;
                }
            }
            anyhow::Ok((rows, latency))
        });
    let mut rows = 0;
    let mut latency = Histogram::<u64>::new(3)?;
    for result in futures_util::future::join_all(workers).await {
        let (more, other) = result?;
        rows += more;
        latency.add(other)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({
            "rows": rows,
            "per_s": (rows as f64 / seconds).round(),
            "p50_us": latency.value_at_quantile(0.5),
            "p99_us": latency.value_at_quantile(0.99),
        })
    );
    Ok(())
}
