//! The terminal: taken over, and given back whatever happens.
//!
//! It is given back on Drop, which covers the end, errors and signals (the runner ends its loop on
//! them), and by a panic hook before the message of the panic is printed.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

use crossterm::{
    cursor, event, execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{
    backend::{Backend, CrosstermBackend},
    buffer::Buffer,
    layout::Rect,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Signal, getpid, kill_process},
};
use tokio_util::sync::CancellationToken;

use super::{app::App, app::Clock, theme::Theme, views};

/// Whether the terminal is taken over, for the panic hook.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A terminal that was taken over.
///
/// It writes the difference between two frames itself. Ratatui's `Terminal` would do that too, but it
/// asks the terminal where the cursor is when it clears, and waits for the answer; and it prints to
/// standard error when it cannot show the cursor at the end, which panics when that is gone as well.
#[derive(Debug)]
pub struct Term {
    backend: CrosstermBackend<io::BufWriter<io::Stdout>>,
    shown: Buffer,
    next: Buffer,
    mouse: bool,
}

impl Term {
    /// Takes the terminal over. A panic in any task gives it back and cancels `stop`.
    pub fn take(mouse: bool, stop: CancellationToken) -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            stop.cancel();
            before(panic);
        }));
        let mut term = Self {
            backend: CrosstermBackend::new(io::BufWriter::new(io::stdout())),
            shown: Buffer::empty(Rect::ZERO),
            next: Buffer::empty(Rect::ZERO),
            mouse,
        };
        term.enter()?;
        Ok(term)
    }

    fn enter(&mut self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            event::EnableBracketedPaste,
            cursor::Hide
        )?;
        if self.mouse {
            execute!(io::stdout(), event::EnableMouseCapture)?;
        }
        self.redraw();
        Ok(())
    }

    /// Draws `app`.
    pub fn draw(&mut self, app: &App, theme: Theme, clock: Clock) -> io::Result<()> {
        let (width, height) = self.size()?;
        let area = Rect::new(0, 0, width, height);
        if self.shown.area != area {
            self.backend.clear()?;
            self.shown = Buffer::empty(area);
        }
        self.next.resize(area);
        self.next.reset();
        views::draw(app, theme, clock, &mut self.next);
        self.backend.draw(self.shown.diff(&self.next).into_iter())?;
        Backend::flush(&mut self.backend)?;
        std::mem::swap(&mut self.shown, &mut self.next);
        Ok(())
    }

    /// Makes the next drawing write every cell.
    pub fn redraw(&mut self) {
        self.shown = Buffer::empty(Rect::ZERO);
    }

    /// Columns and lines.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        self.backend.size().map(|size| (size.width, size.height))
    }

    /// Gives the terminal back, stops like any program in the foreground, and takes it over again
    /// when continued.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        kill_process(getpid(), Signal::TSTP)?;
        self.enter()
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        give_back();
    }
}

/// Restores the terminal; harmless when it was not taken, or given back already.
fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut out = io::stdout();
    // Each may fail when the terminal is gone: then there is nothing left to restore.
    let _ = execute!(
        out,
        event::DisableMouseCapture,
        event::DisableBracketedPaste,
        LeaveAlternateScreen,
        cursor::Show
    );
    let _ = disable_raw_mode();
    let _ = out.flush();
}

/// Whether there is a terminal at both ends.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Whether the terminal hung up. Reading from such a terminal returns at once for ever, so it has to
/// be asked about, or the reader would spin.
pub fn is_gone() -> bool {
    let stdin = io::stdin();
    let mut ends = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty())];
    match poll(
        &mut ends,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    ) {
        Ok(_) => ends[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
        Err(Errno::INTR | Errno::AGAIN) => false,
        Err(_) => true,
    }
}
