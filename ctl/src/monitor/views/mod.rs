//! Drawing: one file a view. Views read the state and are told the time; they change nothing but
//! where their list stands on the screen.

pub mod chrome;
pub mod describe;
pub mod dialog;
pub mod events;
pub mod fleet;
pub mod guild;
pub mod help;
pub mod host;
pub mod identify;
pub mod logs;
pub mod operations;
pub mod paint;
pub mod process;
pub mod spread;
pub mod table;

use ratatui::{buffer::Buffer, layout::Rect};

use self::paint::Canvas;
use super::{
    app::{App, Clock, View},
    theme::{Role, Theme},
};

/// Below this nothing useful can be shown.
const SMALLEST: (u16, u16) = (20, 4);

/// Draws everything into `buffer`; returns how many rows of lists were formatted.
pub fn draw(app: &App, theme: Theme, clock: Clock, buffer: &mut Buffer) -> usize {
    let area = buffer.area;
    let mut canvas = Canvas {
        buffer,
        theme,
        formatted: 0,
    };
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        canvas.text(0, 0, area.width, "too small", Role::Warn);
    } else {
        let body = chrome::draw(&mut canvas, area, app, clock);
        view(&mut canvas, body, app, clock);
        if let Some(dialog) = &app.dialog {
            // What lies behind steps back.
            canvas.wash(area, Role::Dim);
            dialog::draw(&mut canvas, area, app, dialog);
        }
    }
    let formatted = canvas.formatted;
    theme.finish(buffer);
    formatted
}

fn view(canvas: &mut Canvas<'_>, body: Rect, app: &App, clock: Clock) {
    let screen = app.screen();
    let list = &screen.list;
    match &screen.view {
        View::Fleet => fleet::draw(canvas, body, app, clock),
        View::Hosts => host::draw_all(canvas, body, app, list, clock),
        View::Host(name) => host::draw(canvas, body, app, name, clock),
        View::Process(name) => process::draw(canvas, body, app, name, clock),
        View::Guild(id) => guild::draw(canvas, body, app, *id, clock),
        View::Logs(targets) => logs::draw(canvas, body, app, targets, clock),
        View::Events(object) => events::draw(canvas, body, app, object.as_deref(), clock),
        View::Identify => identify::draw(canvas, body, app, clock),
        View::Operations => operations::draw(canvas, body, app, clock),
        View::Operation(id) => operations::draw_one(canvas, body, app, id, clock),
        View::Describe(subject) => describe::draw(canvas, body, app, subject, clock),
        View::Help => help::draw(canvas, body, app),
    }
}
