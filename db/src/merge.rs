//! Puts the answers of all nodes together into one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tanako_fleet::ring::Ring;

use crate::failure::{Code, Failure};
use crate::query::{Members, Select, assignments};
use crate::read::Page;
use crate::reply;
use crate::request::Call;
use crate::row::Style;
use crate::schema::{KEY, Table};
use crate::write::{NewRow, Op};

/// What every node is asked.
pub struct Plan {
    /// The `data` for each node. Not used by inserts, which send each node its own rows.
    pub data: String,
}

/// What to ask each node so that the answers can be merged. A page of the whole is within the first
/// `offset + limit` rows of each node, and sorting needs all columns.
pub fn plan(call: &Call, raw: Option<&RawValue>) -> Result<Plan, Failure> {
    let raw = raw.map_or("{}", RawValue::get);
    let Call::Select(select) = call else {
        return Ok(Plan {
            data: raw.to_owned(),
        });
    };
    let Members(members) = serde_json::from_str(raw)
        .map_err(|_| Failure::bad_request("Invalid data: expected an object"))?;
    let mut data = String::from("{");
    for (name, value) in members {
        if !["columns", "limit", "offset"].contains(&name.as_ref()) {
            data.push_str(&json!(name).to_string());
            data.push(':');
            data.push_str(value.get());
            data.push(',');
        }
    }
    match select.limit {
        Some(limit) => {
            let _ = write!(data, "\"limit\":{}}}", limit.saturating_add(select.offset));
        }
        None => data.push_str("\"offset\":0}"),
    }
    Ok(Plan { data })
}

/// One node's reply, as far as merging looks into it.
#[derive(serde::Deserialize)]
struct Part<'a> {
    success: bool,
    #[serde(borrow, default)]
    error: Option<Cow<'a, str>>,
    #[serde(default)]
    code: Option<String>,
    #[serde(borrow, default)]
    rows: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
    #[serde(borrow, default)]
    row_ids: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(default)]
    count: Option<u64>,
    #[serde(default)]
    exists: Option<bool>,
    #[serde(default)]
    updated: Option<u64>,
    #[serde(default)]
    deleted: Option<u64>,
    #[serde(default)]
    swapped: Option<bool>,
    #[serde(default)]
    stats: Option<Value>,
    #[serde(default)]
    info: Option<Value>,
}

/// The merged reply.
pub fn merge(
    id: &str,
    call: &Call,
    _plan: &Plan,
    ring: &Ring,
    names: &[String],
    replies: &[Vec<u8>],
    style: Style,
) -> Result<Vec<u8>, Failure> {
    let mut parts = Vec::with_capacity(replies.len());
    let mut failed = Vec::new();
    for (name, reply) in names.iter().zip(replies) {
        let part: Part<'_> = serde_json::from_slice(reply).map_err(|_| {
            Failure::new(Code::Storage, format!("Node {name} sent no valid answer"))
        })?;
        if part.success {
            parts.push((name.as_str(), part));
        } else {
            failed.push((name.as_str(), part));
        }
    }
    match call {
        // One row somewhere: the node that has it decides, the others found nothing.
        Call::Write(Op::Increment { .. }) => {
            if let Some((_, part)) = parts.first() {
                let value = part.value.map_or("null", RawValue::get);
                return Ok(reply::success(id, |out| {
                    reply::member(out, "value");
                    out.extend_from_slice(value.as_bytes());
                }));
            }
            return Err(refusal(&failed, false));
        }
        Call::Write(Op::CompareAndSet { filter, .. }) => {
            if let Some((_, part)) = parts.iter().find(|(_, part)| part.row.is_some()) {
                let swapped = part.swapped.unwrap_or_default();
                let row = encode(filter.table(), part.row)?;
                let mut result = Ok(());
                let merged = reply::success(id, |out| {
                    reply::boolean(out, "swapped", swapped);
                    reply::number(out, "updated", u64::from(swapped));
                    result = reply::row(out, "row", filter.table(), row.as_deref(), style);
                });
                return result.map(|()| merged);
            }
        }
        Call::Find(filter) => {
            if let Some((_, part)) = parts.iter().find(|(_, part)| part.row.is_some())
                && filter.value(KEY).is_some()
            {
                return found(id, filter.table(), part.row, style);
            }
        }
        Call::Exists(_) if parts.iter().any(|(_, part)| part.exists == Some(true)) => {
            return Ok(reply::success(id, |out| {
                reply::boolean(out, "exists", true);
            }));
        }
        _ => {}
    }
    if !failed.is_empty() {
        let changed = call.is_write()
            && parts.iter().any(|(_, part)| {
                part.updated.unwrap_or_default() + part.deleted.unwrap_or_default() > 0
                    || part.row_ids.as_ref().is_some_and(|ids| !ids.is_empty())
            });
        return Err(refusal(&failed, changed));
    }
    match call {
        Call::Select(select) => rows(id, select, &parts, style),
        Call::Find(filter) => {
            let row = parts.iter().find_map(|(_, part)| part.row);
            found(id, filter.table(), row, style)
        }
        Call::Count(_) => {
            let count = parts.iter().filter_map(|(_, part)| part.count).sum();
            Ok(reply::success(id, |out| reply::number(out, "count", count)))
        }
        Call::Exists(_) => Ok(reply::success(id, |out| {
            reply::boolean(out, "exists", false);
        })),
        Call::Write(Op::Update { .. }) => {
            let count = parts.iter().filter_map(|(_, part)| part.updated).sum();
            Ok(reply::success(id, |out| {
                reply::number(out, "updated", count);
            }))
        }
        Call::Write(Op::Delete { .. }) => {
            let count = parts.iter().filter_map(|(_, part)| part.deleted).sum();
            Ok(reply::success(id, |out| {
                reply::number(out, "deleted", count);
            }))
        }
        Call::Write(Op::CompareAndSet { .. }) => Ok(reply::success(id, |out| {
            out.extend_from_slice(b",\"swapped\":false,\"updated\":0,\"row\":null");
        })),
        Call::Write(Op::Insert { rows, .. }) => inserted(id, rows, ring, &parts, style),
        Call::Stats => {
            let mut stats = sum(parts.iter().filter_map(|(_, part)| part.stats.as_ref()));
            stats["table_count"] = json!(crate::schema::TABLES.len());
            Ok(value(id, "stats", &stats))
        }
        Call::TableInfo(_) => {
            let count: u64 = parts
                .iter()
                .filter_map(|(_, part)| part.info.as_ref()?["row_count"].as_u64())
                .sum();
            let mut info = parts
                .first()
                .and_then(|(_, part)| part.info.clone())
                .unwrap_or_default();
            info["row_count"] = json!(count);
            Ok(value(id, "info", &info))
        }
        _ => Err(Failure::bad_request(
            "This request cannot be asked of all nodes",
        )),
    }
}

/// One failure for the whole: the gravest first, and whether some nodes already did their part.
fn refusal(failed: &[(&str, Part<'_>)], changed: bool) -> Failure {
    let worst = failed
        .iter()
        .find(|(_, part)| part.code.as_deref() != Some(Code::NotFound.name()))
        .or_else(|| failed.first());
    let Some((_, part)) = worst else {
        return Failure::bad_request("No node answered");
    };
    let mut text = part.error.as_deref().unwrap_or("unknown error").to_owned();
    if changed {
        text.push_str(" (the other nodes have carried out their part)");
    }
    let code = code_named(part.code.as_deref().unwrap_or_default());
    Failure::new(code, text)
}

fn code_named(name: &str) -> Code {
    [
        Code::UnknownTable,
        Code::UnknownColumn,
        Code::BadValue,
        Code::BadRequest,
        Code::DuplicateKey,
        Code::EmptyConditions,
        Code::NotFound,
        Code::Conflict,
        Code::Unavailable,
        Code::RingChanged,
        Code::Overloaded,
        Code::TooLarge,
        Code::DiskFull,
        Code::ShuttingDown,
    ]
    .into_iter()
    .find(|code| code.name() == name)
    .unwrap_or(Code::Storage)
}

/// A row from another node's reply, as stored.
fn encode(table: &'static Table, raw: Option<&RawValue>) -> Result<Option<Vec<u8>>, Failure> {
    let Some(raw) = raw else { return Ok(None) };
    let given = assignments(table, "row", Some(raw))?;
    Ok(Some(NewRow::complete(table, &given)?.stored))
}

fn found(
    id: &str,
    table: &'static Table,
    raw: Option<&RawValue>,
    style: Style,
) -> Result<Vec<u8>, Failure> {
    let stored = encode(table, raw)?;
    let mut result = Ok(());
    let merged = reply::success(id, |out| {
        result = reply::row(out, "row", table, stored.as_deref(), style);
    });
    result.map(|()| merged)
}

fn rows(
    id: &str,
    select: &Select,
    parts: &[(&str, Part<'_>)],
    style: Style,
) -> Result<Vec<u8>, Failure> {
    let table = select.filter.table();
    let mut page = Page::new(table, &select.order, select.offset, select.limit);
    'nodes: for (_, part) in parts {
        for raw in part.rows.iter().flatten() {
            if let Some(stored) = encode(table, Some(raw))?
                && page.add(&stored)? == ControlFlow::Break(())
            {
                break 'nodes;
            }
        }
    }
    let stored = if select.limit == Some(0) {
        Vec::new()
    } else {
        page.finish()?
    };
    let mut result = Ok(());
    let merged = reply::success(id, |out| {
        result = reply::rows(out, table, &stored, select.columns.as_deref(), style);
    });
    result.map(|()| merged)
}

/// The ids of rows that were split between nodes, in the order in which the client sent them.
fn inserted(
    id: &str,
    rows: &[NewRow],
    ring: &Ring,
    parts: &[(&str, Part<'_>)],
    style: Style,
) -> Result<Vec<u8>, Failure> {
    let mut given: BTreeMap<&str, std::vec::IntoIter<&RawValue>> = parts
        .iter()
        .map(|(name, part)| (*name, part.row_ids.clone().unwrap_or_default().into_iter()))
        .collect();
    let mut ids = Vec::with_capacity(rows.len());
    for row in rows {
        let node =
            crate::keys::row_partition(&row.key).map_or("", |partition| ring.primary(partition));
        let raw = given
            .get_mut(node)
            .and_then(Iterator::next)
            .ok_or_else(|| {
                Failure::new(
                    Code::Storage,
                    format!("Node {node} did not name the rows it stored"),
                )
            })?;
        ids.push(raw.get().as_bytes().to_vec());
    }
    let table = rows.first().map_or("", |row| row.table.name);
    Ok(reply::outcome(
        id,
        &crate::write::Outcome::Inserted {
            table,
            ids,
            many: true,
        },
        style,
    ))
}

fn value(id: &str, name: &str, value: &Value) -> Vec<u8> {
    reply::success(id, |out| {
        reply::member(out, name);
        out.extend(value.to_string().into_bytes());
    })
}

/// Adds numbers member by member.
fn sum<'v>(values: impl Iterator<Item = &'v Value>) -> Value {
    fn add(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (name, value) in from {
                    add(into.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
            (into @ Value::Null, from) => *into = from.clone(),
            (into, from) => {
                if let (Some(a), Some(b)) = (into.as_u64(), from.as_u64()) {
                    *into = json!(a + b);
                }
            }
        }
    }
    let mut total = Value::Null;
    for value in values {
        add(&mut total, value);
    }
    total
}
