//! A database node for tests: the actions the bot uses, in memory. `original` leaves out what only our node has.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_websockets::{Message, ServerBuilder};

type Row = Map<String, Value>;

/// Rows by table; several nodes may share them, as those of a ring do.
#[derive(Clone, Default)]
pub struct Tables {
    rows: Arc<Mutex<HashMap<String, Vec<Row>>>>,
    /// Milliseconds that each answer takes.
    delay: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl Tables {
    /// Each answer takes this long from now on.
    pub fn slow_down(&self, delay: Duration) {
        self.delay
            .store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Requests that have come, answered or not.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn rows(&self, table: &str) -> Vec<Row> {
        self.rows
            .lock()
            .unwrap()
            .get(table)
            .cloned()
            .unwrap_or_default()
    }
}

pub struct Node {
    pub address: SocketAddr,
    stop: CancellationToken,
}

impl Node {
    pub async fn start(tables: Tables, token: &'static str, original: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        tokio::spawn(connection(stream, tables.clone(), token, original, stopped.clone()));
                    }
                    () = stopped.cancelled() => return,
                }
            }
        });
        Self { address, stop }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Cuts all connections and listens no more.
    pub fn die(&self) {
        self.stop.cancel();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn connection(
    stream: TcpStream,
    tables: Tables,
    token: &str,
    original: bool,
    stop: CancellationToken,
) {
    let Ok((request, mut socket)) = ServerBuilder::new().accept(stream).await else {
        return;
    };
    let authorization = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    assert_eq!(authorization, Some(format!("Bearer {token}").as_str()));
    loop {
        let message = tokio::select! {
            Some(Ok(message)) = socket.next() => message,
            () = stop.cancelled() => return,
            else => return,
        };
        let Some(text) = message.as_text() else {
            continue;
        };
        let request: Value = serde_json::from_str(text).unwrap();
        tables.requests.fetch_add(1, Ordering::Relaxed);
        let mut reply = answer(
            &mut tables
                .rows
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
            &request,
            original,
        );
        reply["request_id"] = request["request_id"].clone();
        tokio::time::sleep(Duration::from_millis(tables.delay.load(Ordering::Relaxed))).await;
        if socket.send(Message::text(reply.to_string())).await.is_err() {
            return;
        }
    }
}

fn matches(row: &Row, conditions: &Value) -> bool {
    conditions.as_object().is_none_or(|conditions| {
        conditions
            .iter()
            .all(|(name, value)| row.get(name) == Some(value))
    })
}

fn key(table: &str) -> &'static str {
    if table == "guilds" { "guild_id" } else { "id" }
}

fn with_defaults(table: &str, row: Option<&Value>) -> Row {
    let mut row = row.and_then(Value::as_object).cloned().unwrap_or_default();
    if table == "guilds" {
        row.entry("settings").or_insert_with(|| json!({}));
        row.entry("case_counter").or_insert_with(|| json!(0));
    }
    row
}

fn answer(
    tables: &mut MutexGuard<'_, HashMap<String, Vec<Row>>>,
    request: &Value,
    original: bool,
) -> Value {
    let (action, data) = (request["action"].as_str().unwrap(), &request["data"]);
    if original && matches!(action, "increment" | "compare_and_set" | "transaction") {
        return json!({ "success": false, "error": format!("Unknown action: {action}") });
    }
    if action == "ping" {
        return json!({ "success": true, "pong": true });
    }
    if action == "transaction" {
        let before = tables.clone();
        for op in data["ops"].as_array().unwrap() {
            let mut reply = answer(tables, op, original);
            if reply["swapped"] == false {
                reply = json!({ "success": false, "error": "not as expected", "code": "conflict", "retryable": false });
            }
            if reply["success"] == false {
                **tables = before;
                return reply;
            }
        }
        return json!({ "success": true, "results": [] });
    }
    let table = data["table"].as_str().unwrap();
    let rows = tables.entry(table.to_owned()).or_default();
    let conditions = &data["conditions"];
    match action {
        "find_one" => {
            json!({ "success": true, "row": rows.iter().find(|row| matches(row, conditions)) })
        }
        "count" => {
            json!({ "success": true, "count": rows.iter().filter(|row| matches(row, conditions)).count() })
        }
        "select" => {
            let mut found: Vec<&Row> = rows.iter().filter(|row| matches(row, conditions)).collect();
            assert_eq!(data["order_by"], json!([["case_id", "desc"]]));
            found.sort_by_key(|row| std::cmp::Reverse(row["case_id"].as_i64()));
            let (offset, limit) = (
                data["offset"].as_u64().unwrap() as usize,
                data["limit"].as_u64().unwrap() as usize,
            );
            let found: Vec<&Row> = found.into_iter().skip(offset).take(limit).collect();
            json!({ "success": true, "rows": found, "count": found.len() })
        }
        "insert" => {
            let row = with_defaults(table, data.get("row"));
            if !original
                && rows
                    .iter()
                    .any(|other| other[key(table)] == row[key(table)])
            {
                return json!({ "success": false, "error": "Row exists", "code": "duplicate_key", "retryable": false });
            }
            rows.push(row);
            json!({ "success": true, "row_id": rows.len() })
        }
        "update" => {
            let mut updated = 0;
            for row in rows.iter_mut().filter(|row| matches(row, conditions)) {
                row.extend(data["data"].as_object().unwrap().clone());
                updated += 1;
            }
            json!({ "success": true, "updated": updated })
        }
        "delete" => {
            let before = rows.len();
            rows.retain(|row| !matches(row, conditions));
            json!({ "success": true, "deleted": before - rows.len() })
        }
        "increment" => {
            if !rows.iter().any(|row| matches(row, conditions)) {
                assert_eq!(data["create"], true);
                rows.push(with_defaults(table, data.get("conditions")));
            }
            let row = rows
                .iter_mut()
                .find(|row| matches(row, conditions))
                .unwrap();
            let column = data["column"].as_str().unwrap();
            let value =
                row.get(column).and_then(Value::as_i64).unwrap_or(0) + data["by"].as_i64().unwrap();
            row.insert(column.to_owned(), json!(value));
            json!({ "success": true, "value": value })
        }
        "compare_and_set" => {
            let row = rows
                .iter_mut()
                .find(|row| matches(row, conditions))
                .unwrap();
            let swapped = matches(row, &data["expected"]);
            if swapped {
                row.extend(data["data"].as_object().unwrap().clone());
            }
            json!({ "success": true, "swapped": swapped, "updated": u64::from(swapped), "row": row })
        }
        other => panic!("the bot used {other}"),
    }
}
