//! What frames every view: the title line with health and age of the data, the line that says what
//! just happened, the keys that work here.

use ratatui::layout::Rect;

use super::paint::{Canvas, Piece, piece, pieces_width};
use crate::monitor::{
    app::{App, Clock, Gravity, LinkState, Screen, Subject, View},
    figures,
    keymap::{BINDINGS, Command},
    prompt::{Prompt, Purpose},
    state::is_running,
    text,
    theme::Role,
};

/// Screens lower than this give the status and the keys one line together.
const ROOMY: u16 = 14;
/// How long an ended operation stays on the status line, in milliseconds.
const ENDED_MS: i64 = 15_000;

/// Draws the frame; returns the area that is left for the view.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) -> Rect {
    let line = |y: u16| Rect {
        y,
        height: 1,
        ..area
    };
    title(canvas, line(area.y), app, clock);
    let roomy = area.height >= ROOMY;
    let bottom = area.bottom() - 1;
    let status_line = if roomy { bottom - 1 } else { bottom };
    let said = status(canvas, line(status_line), app, clock, roomy);
    if roomy || !said {
        keys(canvas, line(bottom), app);
    }
    Rect {
        y: area.y + 1,
        height: area.height - if roomy { 3 } else { 2 },
        ..area
    }
}

fn title(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) {
    let model = app.shown();
    let glyphs = canvas.theme.glyphs();
    let mut right: Vec<Piece<'_>> = Vec::new();
    if app.is_readonly() {
        right.push(piece("read-only ", Role::Dim));
    }
    if let Some((_, since)) = &app.frozen {
        let held = figures::age(clock.mono.saturating_sub(*since).as_secs());
        right.push(piece(format!(" PAUSED {held} "), Role::Stale));
        right.push(piece(" ", Role::Text));
    }
    right.extend(freshness(app, clock));
    let narrow = area.width < 60;
    let mut left = vec![piece(" ", Role::Text)];
    let name = if model.fleet.is_empty() {
        &app.context
    } else {
        &model.fleet
    };
    left.push(piece(name.as_str(), Role::Title));
    if !narrow && app.context != *name && !app.context.is_empty() {
        // A context that was named by its socket is a path: its end says enough.
        let context = app.context.rsplit('/').next().unwrap_or_default();
        left.push(piece(format!(" ({context})"), Role::Dim));
    }
    if model.production {
        left.push(piece(" ", Role::Text));
        left.push(piece(
            if narrow { " PROD " } else { " PRODUCTION " },
            Role::Production,
        ));
    }
    let crumbs: Vec<&Screen> = app.screens.iter().skip(1).collect();
    let shown = if narrow { 1 } else { 3 };
    for screen in crumbs.iter().skip(crumbs.len().saturating_sub(shown)) {
        left.push(piece(
            if canvas.theme.ascii { " > " } else { " › " },
            Role::Dim,
        ));
        left.push(piece(crumb(&screen.view), Role::Strong));
    }
    if model.is_known() {
        left.push(piece("  ", Role::Text));
        left.push(if model.healthy {
            piece(
                format!("{} {}", glyphs.ready, if narrow { "ok" } else { "healthy" }),
                Role::Good,
            )
        } else {
            piece(
                format!(
                    "{} {}",
                    glyphs.failed,
                    if narrow { "bad" } else { "unhealthy" }
                ),
                Role::Bad,
            )
        });
    }
    let room = area.width.saturating_sub(pieces_width(&right) + 2);
    canvas.line(
        Rect {
            width: room,
            ..area
        },
        &left,
    );
    canvas.line_right(
        Rect {
            width: area.width.saturating_sub(1),
            ..area
        },
        &right,
    );
}

/// How old the data is, in words; old data is marked so that nobody takes it for the present.
fn freshness(app: &App, clock: Clock) -> Vec<Piece<'static>> {
    let retry = match &app.link {
        LinkState::Lost { retry_at, .. } => {
            let wait = retry_at.saturating_sub(clock.mono).as_millis() as u64;
            if wait == 0 {
                "reconnecting".to_owned()
            } else {
                format!("retry in {}", figures::age(wait.div_ceil(1000)))
            }
        }
        LinkState::Connecting => "connecting".to_owned(),
        LinkState::Live => String::new(),
    };
    match app.age(clock) {
        None => vec![piece(retry, Role::Warn)],
        Some((age, false)) => vec![piece(
            format!("live {}", figures::brief(age.as_millis() as u64)),
            Role::Good,
        )],
        Some((age, true)) => {
            let dot = if retry.is_empty() { "" } else { " · " };
            vec![piece(
                format!(" STALE {}{dot}{retry} ", figures::age(age.as_secs())),
                Role::Stale,
            )]
        }
    }
}

fn crumb(view: &View) -> String {
    match view {
        View::Fleet => "fleet".into(),
        View::Hosts => "hosts".into(),
        View::Host(name) => format!("host {name}"),
        View::Process(name) => name.clone(),
        View::Guild(id) => format!("guild {id}"),
        View::Logs(targets) if targets.len() == 1 => format!("logs {}", targets[0]),
        View::Logs(targets) => format!("logs of {}", targets.len()),
        View::Events(None) => "events".into(),
        View::Events(Some(object)) => format!("events {object}"),
        View::Identify => "identify".into(),
        View::Operations => "operations".into(),
        View::Operation(id) => format!("operation {id}"),
        View::Describe(Subject::Process(name) | Subject::Host(name) | Subject::Operation(name)) => {
            format!("describe {name}")
        }
        View::Help => "help".into(),
    }
}

/// The status line: what is typed, what was said, what runs. False when there is nothing to say.
fn status(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock, roomy: bool) -> bool {
    if let Some(prompt) = &app.prompt {
        typed(canvas, area, prompt);
        return true;
    }
    let glyphs = canvas.theme.glyphs();
    if let Some(notice) = &app.notice {
        let (glyph, role) = match notice.gravity {
            Gravity::Info => (glyphs.dot, Role::Accent),
            Gravity::Error => (glyphs.failed, Role::Bad),
        };
        canvas.line(
            area,
            &[
                piece(format!(" {glyph} "), role),
                piece(notice.text.as_str(), role),
            ],
        );
        return true;
    }
    if let LinkState::Lost { why, .. } = &app.link {
        let line = crate::monitor::app::problem_line(why);
        let line = text::clean(&line, 500).into_owned();
        canvas.line(
            area,
            &[
                piece(format!(" {} ", glyphs.failed), Role::Bad),
                piece(line, Role::Bad),
            ],
        );
        return true;
    }
    let told = roomy && app.screens.len() == 1;
    operation(canvas, area, app, clock)
        || (!told && reasons(canvas, area, app))
        || marks(canvas, area, app)
}

fn typed(canvas: &mut Canvas<'_>, area: Rect, prompt: &Prompt) {
    let lead = match prompt.purpose {
        Purpose::Filter => " filter /",
        Purpose::Search => " search /",
        Purpose::Command => " :",
    };
    let (before, after) = prompt.editor.halves();
    let room = usize::from(area.width / 2);
    let mut hidden = before.as_str();
    while text::width(hidden) > room {
        let mut chars = hidden.chars();
        chars.next();
        hidden = chars.as_str();
    }
    let mut chars = after.chars();
    let under = chars.next().map_or_else(|| " ".into(), |c| c.to_string());
    let mut pieces = vec![
        piece(lead, Role::Accent),
        piece(hidden.to_owned(), Role::Text),
        piece(under, Role::Selected),
        piece(chars.as_str().to_owned(), Role::Text),
        piece("  ", Role::Text),
    ];
    if let Some(error) = &prompt.error {
        pieces.push(piece(error.as_str(), Role::Bad));
    } else {
        let first = prompt.choice().unwrap_or(0);
        for (at, choice) in prompt.choices.iter().enumerate().skip(first).take(20) {
            pieces.push(piece(
                choice.as_str(),
                if Some(at) == prompt.choice() {
                    Role::Accent
                } else {
                    Role::Dim
                },
            ));
            pieces.push(piece(" ", Role::Text));
        }
    }
    canvas.line(area, &pieces);
}

/// The operation that runs, or the one started here that has just ended.
fn operation(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) -> bool {
    let model = app.shown();
    let own = app.operation.as_ref().and_then(|id| model.operation(id));
    let recent = |o: &&_| is_running(o) || clock.unix_ms.saturating_sub(o.ended_at) < ENDED_MS;
    let Some(operation) = own
        .filter(recent)
        .or_else(|| model.operations.iter().find(|o| is_running(o)))
    else {
        return false;
    };
    let (glyph, role) = canvas.theme.state(&operation.state);
    let mut pieces = vec![
        piece(format!(" {glyph} "), role),
        piece(super::operations::title(operation), Role::Strong),
    ];
    pieces.push(piece(format!("  {}  ", operation.state), role));
    if operation.total > 0 {
        let share = operation.done as f64 / operation.total as f64;
        let columns = (area.width / 6).clamp(4, 20);
        pieces.extend(canvas.bar(columns, share, role));
        pieces.push(piece(super::operations::progress(operation), Role::Text));
    }
    let line = super::operations::outcome(operation);
    pieces.push(piece(format!("  {line}"), Role::Dim));
    canvas.line(area, &pieces);
    true
}

/// Why the fleet is not healthy; the fleet view says it in its header.
pub fn reasons(canvas: &mut Canvas<'_>, area: Rect, app: &App) -> bool {
    let model = app.shown();
    let Some(first) = model.reasons.first().filter(|_| !model.healthy) else {
        return false;
    };
    let more = match model.reasons.len() {
        0 | 1 => String::new(),
        n => format!("  (+{} more)", n - 1),
    };
    let glyph = canvas.theme.glyphs().failed;
    let room = usize::from(area.width).saturating_sub(4 + text::width(&more));
    let first = text::fit(first, room);
    canvas.line(
        area,
        &[
            piece(format!(" {glyph} {first}"), Role::Bad),
            piece(more, Role::Dim),
        ],
    );
    true
}

fn marks(canvas: &mut Canvas<'_>, area: Rect, app: &App) -> bool {
    if app.marked.is_empty() {
        return false;
    }
    let names: Vec<&str> = app.marked.iter().take(20).map(String::as_str).collect();
    let text = format!(
        " {} {} marked: {}",
        canvas.theme.glyphs().mark,
        app.marked.len(),
        names.join(" ")
    );
    canvas.line(area, &[piece(text, Role::Mark)]);
    true
}

/// The keys that do something here, most useful first, as many as fit.
fn keys(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let mut pieces: Vec<Piece<'static>> = vec![piece(" ", Role::Text)];
    let bottom_screen = app.screens.len() == 1;
    let quit = [piece("q", Role::Accent), piece(" quit", Role::Dim)];
    let room = area.width.saturating_sub(pieces_width(&quit) + 2);
    for binding in BINDINGS
        .iter()
        .filter(|binding| binding.scope & app.screen().scope() != 0)
    {
        let here = matches!(
            (binding.command, &app.screen().view),
            (Command::Events, View::Events(_))
                | (Command::Identify, View::Identify)
                | (Command::Operations, View::Operations)
                | (Command::Help, View::Help)
                | (Command::Host, View::Host(_))
        );
        let idle = here
            || binding.short.is_empty()
            || (matches!(binding.command, Command::Write(_)) && app.is_readonly())
            || (binding.command == Command::Back && bottom_screen)
            || binding.command == Command::Quit;
        if idle {
            continue;
        }
        let key = binding.press[0].label();
        let next = [
            piece(key, Role::Accent),
            piece(format!(" {}  ", binding.short), Role::Dim),
        ];
        if pieces_width(&pieces) + pieces_width(&next) > room {
            break;
        }
        pieces.extend(next);
    }
    pieces.extend(quit);
    canvas.line(area, &pieces);
}
