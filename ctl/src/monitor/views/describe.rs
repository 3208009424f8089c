//! All fields of one thing, as the agent reports them.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::{Host, Operation, Process};

use super::paint::{Canvas, piece};
use crate::monitor::{
    app::{App, Clock, Subject},
    figures,
    state::Model,
    text,
    theme::Role,
};

/// Name and value; a value that is a time in milliseconds stays a number until it is drawn.
pub type Field = (String, Value);

/// A value to be written.
#[derive(Clone, Debug)]
pub enum Value {
    /// As it is.
    Text(String),
    /// Milliseconds since 1970.
    Time(i64),
    /// Begins a group.
    Heading,
}

/// The fields of `subject`; none when it is gone.
pub fn fields(model: &Model, subject: &Subject) -> Vec<Field> {
    match subject {
        Subject::Process(name) => model.process(name).map(process),
        Subject::Host(name) => model.host(name).map(host),
        Subject::Operation(id) => model.operation(id).map(operation),
    }
    .unwrap_or_default()
}

fn text_of(name: &str, value: impl ToString) -> Field {
    (name.to_owned(), Value::Text(value.to_string()))
}

fn time(name: &str, at: i64) -> Field {
    (name.to_owned(), Value::Time(at))
}

fn heading(name: impl Into<String>) -> Field {
    (name.into(), Value::Heading)
}

fn size(name: &str, n: u64) -> Field {
    text_of(
        name,
        format!("{} ({} bytes)", figures::bytes(n), figures::count(n)),
    )
}

fn process(p: &Process) -> Vec<Field> {
    let mut fields = vec![
        heading("process"),
        text_of("name", &p.name),
        text_of("kind", &p.kind),
        text_of("bot", &p.bot),
        text_of("host", &p.host),
        text_of("state", &p.state),
        text_of("desired", &p.desired),
        text_of("ready", p.ready),
        text_of("detail", &p.detail),
        text_of("last exit", &p.last_exit),
        text_of("pid", p.pid),
        text_of("attempt", p.attempt),
        text_of("restarts", p.restarts),
        time("started", p.started_at),
        text_of("uptime", figures::age(p.uptime_s)),
        time("next start", p.next_start_at),
        text_of("cpu", format!("{} %", figures::percent(p.cpu_percent))),
        size("resident memory", p.rss_bytes),
        text_of("threads", p.threads),
        text_of("open files", p.fds),
        text_of("log lines", figures::count(p.log_lines)),
        size("log", p.log_bytes),
    ];
    if let Some(db) = &p.db {
        fields.push(heading("database"));
        fields.push(text_of("url", &db.url));
        for (name, n) in [
            ("rows", db.rows),
            ("reads", db.reads),
            ("writes", db.writes),
            ("forwards", db.forwards),
            ("errors", db.errors),
            ("connections", u64::from(db.connections)),
        ] {
            fields.push(text_of(name, figures::count(n)));
        }
        fields.push(size("on disk", db.bytes_on_disk));
        for (name, ms) in [
            ("read p50", db.read_p50_ms),
            ("read p99", db.read_p99_ms),
            ("write p50", db.write_p50_ms),
            ("write p99", db.write_p99_ms),
        ] {
            fields.push(text_of(name, figures::millis(ms)));
        }
        fields.push(text_of("reads a second", figures::rate(db.reads_per_s)));
        fields.push(text_of("writes a second", figures::rate(db.writes_per_s)));
    }
    for shard in &p.shards {
        fields.push(heading(format!("shard {} of {}", shard.id, shard.count)));
        fields.push(text_of("stage", &shard.stage));
        fields.push(text_of(
            "guilds",
            format!("{} of {} expected", shard.guilds, shard.guilds_expected),
        ));
        fields.push(text_of("latency", figures::millis(shard.latency_ms)));
        fields.push(text_of(
            "events a second",
            figures::rate(shard.events_per_s),
        ));
        for (name, n) in [
            ("events", shard.events),
            ("sequence", shard.seq),
            ("resumed", shard.resumed),
            ("identified", shard.identified),
            ("reconnects", shard.reconnects),
            ("replayed", shard.replayed),
            ("interactions", shard.interactions),
            ("interactions failed", shard.interactions_failed),
            ("members", shard.members),
        ] {
            fields.push(text_of(name, figures::count(n)));
        }
        fields.push(text_of("last error", &shard.last_error));
        let mut types: Vec<_> = shard.events_by_type.iter().collect();
        types.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        fields.extend(
            types
                .into_iter()
                .map(|(name, n)| text_of(name, figures::count(*n))),
        );
    }
    if !p.metrics.is_empty() {
        fields.push(heading("metrics"));
        let mut metrics: Vec<_> = p.metrics.iter().collect();
        metrics.sort_by(|a, b| a.0.cmp(b.0));
        fields.extend(
            metrics
                .into_iter()
                .map(|(name, value)| text_of(name, value)),
        );
    }
    fields
}

fn host(h: &Host) -> Vec<Field> {
    vec![
        heading("host"),
        text_of("name", &h.name),
        text_of("state", &h.state),
        text_of("address", &h.address),
        text_of("system", &h.os),
        text_of("cpus", h.cpus),
        text_of("cpu", format!("{} %", figures::percent(h.cpu_percent))),
        text_of("load", format!("{:.2}", h.load1)),
        size("memory used", h.memory_used_bytes),
        size("memory", h.memory_total_bytes),
        size("disk used", h.disk_used_bytes),
        size("disk", h.disk_total_bytes),
        text_of(
            "received",
            format!("{}/s", figures::bytes(h.net_rx_bytes_per_s)),
        ),
        text_of(
            "sent",
            format!("{}/s", figures::bytes(h.net_tx_bytes_per_s)),
        ),
        text_of("uptime", figures::age(h.uptime_s)),
        heading("agent"),
        text_of("version", &h.agent_version),
        text_of("uptime", figures::age(h.agent_uptime_s)),
        size("resident memory", h.agent_rss_bytes),
        time("last seen", h.last_seen),
    ]
}

fn operation(o: &Operation) -> Vec<Field> {
    let mut fields = vec![
        heading("operation"),
        text_of("id", &o.id),
        text_of("kind", &o.kind),
        text_of("targets", o.targets.join(" ")),
        text_of("state", &o.state),
        text_of(
            "done",
            format!(
                "{} of {} {}",
                figures::count(o.done),
                figures::count(o.total),
                o.unit
            ),
        ),
        text_of("message", &o.message),
        text_of("requested by", &o.requested_by),
        text_of("date", &o.date),
        text_of("nothing to change", o.unchanged),
        time("created", o.created_at),
        time("updated", o.updated_at),
        time("ended", o.ended_at),
    ];
    if let Some(problem) = &o.problem {
        fields.push(heading("problem"));
        fields.push(text_of("code", &problem.code));
        fields.push(text_of("object", &problem.object));
        fields.push(text_of("message", &problem.message));
        fields.push(text_of("cause", &problem.cause));
        fields.push(text_of("hint", &problem.hint));
        fields.push(text_of("retryable", problem.retryable));
    }
    if let Some(cost) = &o.cost {
        fields.push(heading("cost"));
        fields.push(text_of("processes restarted", cost.processes_restarted));
        fields.push(text_of("processes started", cost.processes_started));
        fields.push(text_of("processes stopped", cost.processes_stopped));
        fields.push(text_of("identifies", cost.identifies));
        fields.push(text_of("identifies left", cost.identifies_left));
        fields.push(text_of("seconds", cost.seconds));
        fields.push(text_of("guilds moved", cost.guilds_moved));
    }
    fields
}

/// Draws the fields.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, subject: &Subject, clock: Clock) {
    let fields = fields(app.shown(), subject);
    if fields.is_empty() {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "it is gone",
            Role::Dim,
        );
        return;
    }
    let list = &app.screen().list;
    let columns = if area.width < 60 { 15 } else { 24 };
    for (y, row) in canvas.visible(list, fields.len(), area).enumerate() {
        let place = Rect {
            y: area.y + y as u16,
            height: 1,
            ..area
        };
        let (name, value) = &fields[row];
        let value = match value {
            Value::Heading => {
                canvas.line(place, &[piece(format!(" {name}"), Role::Title)]);
                None
            }
            Value::Text(text) => Some(text.clone()),
            Value::Time(at) => Some(figures::date_time(*at, clock.offset_s)),
        };
        if let Some(value) = value {
            let value = if value.is_empty() {
                "-".to_owned()
            } else {
                value
            };
            let name = text::fit(name, columns);
            canvas.line(
                place,
                &[
                    piece(format!("   {name:<columns$} "), Role::Dim),
                    piece(value, Role::Text),
                ],
            );
        }
        if row == list.cursor {
            canvas.text(
                place.x,
                place.y,
                1,
                canvas.theme.glyphs().cursor,
                Role::Accent,
            );
        }
    }
}
