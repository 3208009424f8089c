//! Requests: from the text of a frame to a call that is checked against the schema.

use std::borrow::Cow;

use serde_json::value::RawValue;
use tanako_fleet::ring::PartitionKey;

use crate::failure::{Code, Failure};
use crate::keys;
use crate::query::{self, Assignments, Filter, Select, assignments};
use crate::row::{Row, Style};
use crate::schema::value::{canonical, integer, string};
use crate::schema::{KEY, Kind, Table};
use crate::write::{Amount, NewRow, Op};

/// Operations in one transaction at most.
pub const TRANSACTION_OPS_MAX: usize = 256;

/// The outer object of a request.
#[derive(serde::Deserialize)]
pub struct Envelope<'a> {
    /// What to do.
    #[serde(borrow, default)]
    pub action: Option<&'a RawValue>,
    /// With what.
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    /// Echoed in the reply.
    #[serde(borrow, default)]
    pub request_id: Option<&'a RawValue>,
    /// `"string"`: 64-bit ids in this reply are strings.
    #[serde(borrow, default)]
    pub snowflakes: Option<&'a RawValue>,
    /// Set by a node that passes a request on: the version of its ring.
    #[serde(borrow, default)]
    pub forwarded: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Reads a frame.
    pub fn parse(text: &'a str) -> Option<Self> {
        // The derived parser would also accept a list of members.
        text.trim_start()
            .starts_with('{')
            .then(|| serde_json::from_str(text).ok())
            .flatten()
    }

    /// The request id's own JSON.
    pub fn id(&self) -> &'a str {
        self.request_id.map_or("null", RawValue::get)
    }

    /// The style asked for, else the connection's.
    pub fn style(&self, connection: Style) -> Style {
        match self.snowflakes.map(RawValue::get) {
            Some("\"string\"") => Style::Strings,
            Some("\"number\"") => Style::Numbers,
            _ => connection,
        }
    }
}

/// The members of `data`, for all actions.
#[derive(serde::Deserialize, Default)]
struct Data<'a> {
    #[serde(borrow, default)]
    table: Option<&'a RawValue>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
    #[serde(borrow, default)]
    rows: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "data")]
    set: Option<&'a RawValue>,
    #[serde(borrow, default)]
    conditions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    expected: Option<&'a RawValue>,
    #[serde(borrow, default)]
    columns: Option<&'a RawValue>,
    #[serde(borrow, default)]
    order_by: Option<&'a RawValue>,
    #[serde(borrow, default)]
    limit: Option<&'a RawValue>,
    #[serde(borrow, default)]
    offset: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id_column: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id_value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    all: Option<&'a RawValue>,
    #[serde(borrow, default)]
    column: Option<&'a RawValue>,
    #[serde(borrow, default)]
    by: Option<&'a RawValue>,
    #[serde(borrow, default)]
    create: Option<&'a RawValue>,
    #[serde(borrow, default)]
    guild_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ops: Option<&'a RawValue>,
}

/// A checked request.
#[derive(Debug)]
pub enum Call {
    /// `ping`.
    Ping,
    /// `list_tables`.
    ListTables,
    /// `table_info`.
    TableInfo(&'static Table),
    /// `stats`.
    Stats,
    /// `cluster_stats`.
    ClusterStats,
    /// `backup`.
    Backup,
    /// `vacuum`.
    Vacuum,
    /// `select`.
    Select(Select),
    /// `find_one` and `find_by_id`.
    Find(Filter),
    /// `count`.
    Count(Filter),
    /// `exists`.
    Exists(Filter),
    /// Any write.
    Write(Op),
}

/// Which node answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The one that was asked.
    Here,
    /// The primary of the partition.
    Partition(PartitionKey),
    /// All of them together.
    Everywhere,
}

impl Scope {
    /// Whether a read of this scope may see what a write of the other changes.
    pub fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Partition(a), Self::Partition(b)) => a == b,
            _ => true,
        }
    }
}

/// The actions, for checking names and counting requests.
pub const ACTIONS: [&str; 20] = [
    "ping",
    "insert",
    "insert_many",
    "update",
    "delete",
    "select",
    "find_one",
    "find_by_id",
    "count",
    "exists",
    "list_tables",
    "table_info",
    "stats",
    "backup",
    "vacuum",
    "cluster_stats",
    "upsert",
    "compare_and_set",
    "increment",
    "transaction",
];

/// The position of the requested action in [`ACTIONS`].
pub fn action(envelope: &Envelope<'_>) -> Result<usize, Failure> {
    let raw = envelope.action.map(RawValue::get);
    let name: Cow<'_, str> = match raw {
        Some(raw) => string(raw).unwrap_or(Cow::Borrowed(raw)),
        None => Cow::Borrowed("None"),
    };
    ACTIONS
        .iter()
        .position(|action| *action == name)
        .ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            Failure::new(Code::UnknownAction, format!("Unknown action: {shown}"))
        })
}

/// Reads the call.
pub fn call(action: usize, data: Option<&RawValue>) -> Result<Call, Failure> {
    let name = ACTIONS[action];
    match name {
        "ping" => return Ok(Call::Ping),
        "list_tables" => return Ok(Call::ListTables),
        "stats" => return Ok(Call::Stats),
        "cluster_stats" => return Ok(Call::ClusterStats),
        // A path in the request is ignored on purpose: the node alone decides where it writes.
        "backup" => return Ok(Call::Backup),
        "vacuum" => return Ok(Call::Vacuum),
        _ => {}
    }
    let data = read_data(data)?;
    if name == "transaction" {
        return transaction(&data).map(Call::Write);
    }
    let table = table(data.table)?;
    Ok(match name {
        "table_info" => Call::TableInfo(table),
        "select" => Call::Select(Select {
            filter: Filter::parse(table, data.conditions)?,
            columns: query::columns(table, data.columns)?,
            order: query::order(table, data.order_by)?,
            offset: query::natural("offset", data.offset)?.unwrap_or_default(),
            limit: query::natural("limit", data.limit)?,
        }),
        "find_one" => Call::Find(Filter::parse(table, data.conditions)?),
        "find_by_id" => Call::Find(by_id(table, &data)?),
        "count" => Call::Count(Filter::parse(table, data.conditions)?),
        "exists" => Call::Exists(Filter::parse(table, data.conditions)?),
        _ => Call::Write(write(name, table, &data, None)?),
    })
}

impl Call {
    /// Which node answers it. Inserts of many rows are split by the caller.
    pub fn scope(&self) -> Scope {
        let of = |filter: &Filter| {
            filter
                .partition()
                .map_or(Scope::Everywhere, Scope::Partition)
        };
        match self {
            Self::Ping | Self::ListTables | Self::ClusterStats | Self::Backup | Self::Vacuum => {
                Scope::Here
            }
            Self::TableInfo(_) | Self::Stats => Scope::Everywhere,
            Self::Select(select) => of(&select.filter),
            Self::Find(filter) | Self::Count(filter) | Self::Exists(filter) => of(filter),
            Self::Write(op) => scope_of(op),
        }
    }

    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
}

fn scope_of(op: &Op) -> Scope {
    let of = |filter: &Filter| {
        filter
            .partition()
            .map_or(Scope::Everywhere, Scope::Partition)
    };
    let at =
        |row: &NewRow| keys::row_partition(&row.key).map_or(Scope::Everywhere, Scope::Partition);
    match op {
        Op::Insert { rows, .. } => {
            let Some(first) = rows.first().map(at) else {
                return Scope::Here;
            };
            if rows.iter().all(|row| at(row) == first) {
                first
            } else {
                Scope::Everywhere
            }
        }
        Op::Upsert { row, .. } => at(row),
        Op::Update { filter, .. }
        | Op::Delete { filter }
        | Op::CompareAndSet { filter, .. }
        | Op::Increment { filter, .. } => of(filter),
        Op::Transaction(ops) => ops.first().map_or(Scope::Here, scope_of),
        Op::Barrier => Scope::Here,
    }
}

fn read_data(data: Option<&RawValue>) -> Result<Data<'_>, Failure> {
    let Some(raw) = data else {
        return Ok(Data::default());
    };
    if !raw.get().starts_with('{') {
        return Err(Failure::bad_request("Invalid data: expected an object"));
    }
    serde_json::from_str(raw.get())
        .map_err(|error| Failure::bad_request(format!("Invalid data: {error}")))
}

fn table(raw: Option<&RawValue>) -> Result<&'static Table, Failure> {
    let name: Cow<'_, str> = match raw.map(RawValue::get) {
        Some(raw) => string(raw).unwrap_or(Cow::Borrowed(raw)),
        None => Cow::Borrowed("None"),
    };
    Table::find(&name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        Failure::new(Code::UnknownTable, format!("Table {shown} does not exist"))
    })
}

fn by_id(table: &'static Table, data: &Data<'_>) -> Result<Filter, Failure> {
    let at = match data.id_column.map(RawValue::get) {
        Some(raw) => {
            let name = string(raw).ok_or_else(|| {
                Failure::bad_request("Invalid id_column: expected the name of a column")
            })?;
            query::column(table, &name)?
        }
        None => KEY,
    };
    let value = data
        .id_value
        .map(RawValue::get)
        .ok_or_else(|| Failure::bad_request("Missing id_value"))?;
    // Existing bots look text ids up by number and the other way round.
    let column = &table.columns[at];
    let value = match canonical(table.name, column, value) {
        Err(_) if column.kind == Kind::Text && integer(value).is_some() => {
            format!("\"{value}\"").into_bytes()
        }
        result => result?,
    };
    Ok(Filter::by_column(table, at, value))
}

fn write(
    name: &str,
    table: &'static Table,
    data: &Data<'_>,
    guild: Option<&[u8]>,
) -> Result<Op, Failure> {
    let flag = |raw: Option<&RawValue>| raw.is_some_and(|raw| raw.get() == "true");
    let filter = || {
        let mut filter = Filter::parse(table, data.conditions)?;
        if filter.is_empty() && !flag(data.all) {
            return Err(Failure::new(
                Code::EmptyConditions,
                format!(
                    "Refused: {name} without conditions would change every row of {}; give conditions, or \"all\": true to mean it",
                    table.name
                ),
            ));
        }
        if let Some(guild) = guild {
            filter.within_guild(guild);
        }
        Ok(filter)
    };
    let set = || {
        let set = assignments(table, "data", data.set)?;
        if set.is_empty() {
            return Err(Failure::bad_request(
                "Missing data: an object of columns to set and their values",
            ));
        }
        Ok(set)
    };
    match name {
        "insert" => {
            let given = given_row(table, "row", data.row, guild)?;
            Ok(Op::Insert {
                rows: vec![NewRow::complete(table, &given)?],
                many: false,
            })
        }
        "insert_many" => {
            let raw = data
                .rows
                .ok_or_else(|| Failure::bad_request("Missing rows: a list of rows"))?;
            let raws: Vec<&RawValue> = serde_json::from_str(raw.get())
                .map_err(|_| Failure::bad_request("Invalid rows: expected a list of rows"))?;
            let rows = raws
                .into_iter()
                .map(|raw| NewRow::complete(table, &given_row(table, "row", Some(raw), guild)?))
                .collect::<Result<_, _>>()?;
            Ok(Op::Insert { rows, many: true })
        }
        "upsert" => {
            let given = given_row(table, "row", data.row, guild)?;
            Ok(Op::Upsert {
                row: NewRow::complete(table, &given)?,
                given,
            })
        }
        "update" => Ok(Op::Update {
            filter: filter()?,
            set: set()?,
        }),
        "delete" => Ok(Op::Delete { filter: filter()? }),
        "compare_and_set" => {
            let conditions = filter()?;
            let mut expected = assignments_or_null(table, data.expected)?;
            let mut identity = Vec::new();
            for (at, value) in conditions.equalities() {
                if *at == KEY || Some(*at) == table.guild {
                    identity.push((*at, value.clone()));
                } else {
                    expected.push((*at, value.clone()));
                }
            }
            if !identity.iter().any(|(at, _)| *at == KEY) {
                return Err(Failure::bad_request(format!(
                    "compare_and_set is for one row: its conditions must have {}",
                    table.key().name
                )));
            }
            Ok(Op::CompareAndSet {
                filter: Filter::of(table, identity),
                expected,
                set: set()?,
            })
        }
        "increment" => increment(table, data, filter()?),
        _ => Err(Failure::bad_request(format!(
            "Action {name} cannot be part of a transaction: it takes insert, insert_many, upsert, update, delete, increment, compare_and_set"
        ))),
    }
}

fn increment(table: &'static Table, data: &Data<'_>, filter: Filter) -> Result<Op, Failure> {
    let name = data
        .column
        .and_then(|raw| string(raw.get()))
        .ok_or_else(|| {
            Failure::bad_request("Missing column: the name of the column to increment")
        })?;
    let column = query::column(table, &name)?;
    let by = data.by.map_or("1", RawValue::get);
    let by = match table.columns[column].kind {
        Kind::Int32 | Kind::Int64 if column != KEY => integer(by).map(Amount::Integer),
        Kind::Float64 => serde_json::from_str::<f64>(by).ok().map(Amount::Float),
        _ => {
            return Err(Failure::new(
                Code::BadValue,
                format!("Cannot increment {}.{name}: it is no counter", table.name),
            ));
        }
    }
    .ok_or_else(|| {
        Failure::new(
            Code::BadValue,
            "Invalid by: expected a number that the column can hold",
        )
    })?;
    let create = if data.create.is_some_and(|raw| raw.get() == "true") {
        Some(NewRow::complete(table, &filter.equalities().to_vec())?)
    } else {
        None
    };
    Ok(Op::Increment {
        filter,
        column,
        by,
        create,
    })
}

/// Like assignments, but null may be expected of any column.
fn assignments_or_null(
    table: &'static Table,
    raw: Option<&RawValue>,
) -> Result<Assignments, Failure> {
    Ok(Filter::parse(table, raw)?.equalities().to_vec())
}

fn given_row(
    table: &'static Table,
    what: &str,
    raw: Option<&RawValue>,
    guild: Option<&[u8]>,
) -> Result<Assignments, Failure> {
    let raw = raw.ok_or_else(|| {
        Failure::bad_request(format!("Missing {what}: an object of columns and values"))
    })?;
    let mut given = assignments(table, what, Some(raw))?;
    if let (Some(guild), Some(at)) = (guild, table.guild)
        && !given.iter().any(|(given, _)| *given == at)
    {
        given.push((at, guild.to_vec()));
    }
    Ok(given)
}

fn transaction(data: &Data<'_>) -> Result<Op, Failure> {
    let guild = data
        .guild_id
        .and_then(|raw| integer(raw.get()))
        .ok_or_else(|| {
            Failure::bad_request("Missing guild_id: a transaction is within one guild")
        })?;
    let text = guild.to_string().into_bytes();
    let raw = data
        .ops
        .ok_or_else(|| Failure::bad_request("Missing ops: a list of {action, data}"))?;
    let raws: Vec<&RawValue> = serde_json::from_str(raw.get())
        .map_err(|_| Failure::bad_request("Invalid ops: expected a list of {action, data}"))?;
    if raws.is_empty() || raws.len() > TRANSACTION_OPS_MAX {
        return Err(Failure::bad_request(format!(
            "Invalid ops: expected 1 to {TRANSACTION_OPS_MAX} operations"
        )));
    }
    let mut ops = Vec::with_capacity(raws.len());
    for (at, raw) in raws.into_iter().enumerate() {
        let wrap = |failure: Failure| {
            Failure::new(failure.code, format!("Operation {at}: {}", failure.text))
        };
        let envelope = Envelope::parse(raw.get())
            .ok_or_else(|| wrap(Failure::bad_request("expected an object {action, data}")))?;
        let name = ACTIONS[action(&envelope).map_err(wrap)?];
        let inner = read_data(envelope.data).map_err(wrap)?;
        let table = table(inner.table).map_err(wrap)?;
        let op = write(name, table, &inner, Some(&text)).map_err(wrap)?;
        if scope_of(&op) != Scope::Partition(PartitionKey::guild(guild)) {
            return Err(wrap(Failure::bad_request(format!(
                "it is not within guild {guild}; a transaction changes rows of its own guild only"
            ))));
        }
        ops.push(op);
    }
    Ok(Op::Transaction(ops))
}

/// The `data` of a call whose rows are complete, to be passed on to their primary.
pub fn rows_as_data(rows: &[&NewRow], many: bool) -> Result<String, Failure> {
    let mut out = Vec::with_capacity(256);
    let table = rows.first().map(|row| row.table);
    out.extend_from_slice(b"{\"table\":\"");
    out.extend_from_slice(table.map_or("", |table| table.name).as_bytes());
    out.extend_from_slice(if many {
        b"\",\"rows\":["
    } else {
        b"\",\"row\":"
    });
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        Row::decode(row.table, &row.stored)
            .map_err(crate::read::damaged)?
            .write_json(&mut out, None, Style::Numbers);
    }
    out.extend_from_slice(if many { b"]}" } else { b"}" });
    String::from_utf8(out).map_err(|_| Failure::bad_request("Invalid row: not UTF-8"))
}

/// The `data` of an upsert with its key, to be passed on to its primary.
pub fn upsert_as_data(row: &NewRow, given: &Assignments) -> Result<String, Failure> {
    let mut columns: Vec<usize> = given.iter().map(|(at, _)| *at).collect();
    if !columns.contains(&KEY) {
        columns.push(KEY);
    }
    let mut out = format!("{{\"table\":\"{}\",\"row\":", row.table.name).into_bytes();
    Row::decode(row.table, &row.stored)
        .map_err(crate::read::damaged)?
        .write_json(&mut out, Some(&columns), Style::Numbers);
    out.push(b'}');
    String::from_utf8(out).map_err(|_| Failure::bad_request("Invalid row: not UTF-8"))
}
