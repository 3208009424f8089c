//! Replies, written as bytes: a reply is mostly a copy of what is stored.

use crate::failure::{Code, Failure};
use crate::row::{Row, Style, write_value};
use crate::schema::{KEY, Table};
use crate::write::Outcome;

/// What every reply starts with. `id` is the client's own JSON for it.
fn head(id: &str, success: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"request_id\":");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(if success {
        b",\"success\":true"
    } else {
        b",\"success\":false"
    });
    out
}

/// A successful reply; `fill` appends the members, each with a leading comma.
pub fn success(id: &str, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = head(id, true);
    fill(&mut out);
    out.push(b'}');
    out
}

/// A failed reply.
pub fn failure(id: &str, failure: &Failure) -> Vec<u8> {
    let mut out = head(id, false);
    fill_failure(&mut out, failure);
    out
}

/// The reply to what is no request: without a request id, as in the original protocol.
pub fn invalid_json() -> Vec<u8> {
    let mut out = b"{\"success\":false".to_vec();
    fill_failure(&mut out, &Failure::new(Code::InvalidJson, "Invalid JSON"));
    out
}

fn fill_failure(out: &mut Vec<u8>, failure: &Failure) {
    out.extend_from_slice(b",\"error\":");
    text(out, &failure.text);
    out.extend_from_slice(b",\"code\":\"");
    out.extend_from_slice(failure.code.name().as_bytes());
    out.extend_from_slice(if failure.code.retryable() {
        b"\",\"retryable\":true}"
    } else {
        b"\",\"retryable\":false}"
    });
}

/// A reply from another node with the client's request id in front.
pub fn with_id(id: &str, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rest.len() + id.len() + 16);
    out.extend_from_slice(b"{\"request_id\":");
    out.extend_from_slice(id.as_bytes());
    out.push(b',');
    out.extend_from_slice(rest);
    out
}

/// Appends `,"name":` and a number.
pub fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    member(out, name);
    out.extend_from_slice(value.to_string().as_bytes());
}

/// Appends `,"name":` and a boolean.
pub fn boolean(out: &mut Vec<u8>, name: &str, value: bool) {
    member(out, name);
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Appends `,"name":`.
pub fn member(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// Appends a JSON string.
pub fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(serde_json::to_vec(text).unwrap_or_else(|_| b"\"\"".to_vec()));
}

/// Appends `,"name":` and a stored row, or null.
pub fn row(
    out: &mut Vec<u8>,
    name: &str,
    table: &'static Table,
    stored: Option<&[u8]>,
    style: Style,
) -> Result<(), Failure> {
    member(out, name);
    match stored {
        Some(stored) => {
            Row::decode(table, stored)
                .map_err(crate::read::damaged)?
                .write_json(out, None, style);
        }
        None => out.extend_from_slice(b"null"),
    }
    Ok(())
}

/// Appends `,"rows":[…],"count":n`.
pub fn rows(
    out: &mut Vec<u8>,
    table: &'static Table,
    stored: &[Vec<u8>],
    columns: Option<&[usize]>,
    style: Style,
) -> Result<(), Failure> {
    member(out, "rows");
    out.push(b'[');
    for (at, stored) in stored.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        Row::decode(table, stored)
            .map_err(crate::read::damaged)?
            .write_json(out, columns, style);
    }
    out.push(b']');
    number(out, "count", stored.len() as u64);
    Ok(())
}

/// The whole reply to a write.
pub fn outcome(id: &str, outcome: &Outcome, style: Style) -> Vec<u8> {
    let mut out = head(id, true);
    match fill_outcome(&mut out, outcome, style) {
        Ok(()) => {
            out.push(b'}');
            out
        }
        Err(error) => failure(id, &error),
    }
}

fn fill_outcome(out: &mut Vec<u8>, outcome: &Outcome, style: Style) -> Result<(), Failure> {
    match outcome {
        Outcome::Inserted { table, ids, many } => {
            let kind = find(table).map(|table| table.key().kind);
            let write = |out: &mut Vec<u8>, id: &[u8]| match kind {
                Some(kind) => write_value(out, kind, id, style),
                None => out.extend_from_slice(id),
            };
            if *many {
                member(out, "row_ids");
                out.push(b'[');
                for (at, id) in ids.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write(out, id);
                }
                out.push(b']');
            } else if let Some(id) = ids.first() {
                member(out, "row_id");
                write(out, id);
            }
        }
        Outcome::Upserted {
            row: stored,
            created,
            table,
        } => {
            let Some(table) = find(table) else {
                return Ok(());
            };
            let decoded = Row::decode(table, stored).map_err(crate::read::damaged)?;
            member(out, "row_id");
            write_value(out, table.key().kind, decoded.column(KEY), style);
            boolean(out, "created", *created);
            row(out, "row", table, Some(stored), style)?;
        }
        Outcome::Updated(count) => number(out, "updated", *count),
        Outcome::Deleted(count) => number(out, "deleted", *count),
        Outcome::Compared {
            swapped,
            row: stored,
            table,
        } => {
            let Some(table) = find(table) else {
                return Ok(());
            };
            boolean(out, "swapped", *swapped);
            number(out, "updated", u64::from(*swapped));
            row(out, "row", table, stored.as_deref(), style)?;
        }
        Outcome::Incremented(value) => {
            member(out, "value");
            out.extend_from_slice(value);
        }
        Outcome::Transaction(outcomes) => {
            member(out, "results");
            out.push(b'[');
            for (at, outcome) in outcomes.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(b"{\"success\":true");
                fill_outcome(out, outcome, style)?;
                out.push(b'}');
            }
            out.push(b']');
        }
        Outcome::Passed => {}
    }
    Ok(())
}

fn find(name: &str) -> Option<&'static Table> {
    Table::find(name)
}
