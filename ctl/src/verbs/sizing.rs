//! `tanakoctl sizing`.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_fleet::sizing::{Sizing, recommend};

use crate::{
    exit::Exit,
    failure::Outcome,
    paint::Paint,
    session::Session,
    table::{Cell, Table},
    ui::Report,
    units::age,
};

/// Recommend shards, processes and database nodes for a number of guilds, with the reasons
///
/// Needs no agent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guilds the bot is in, or will be
    #[arg(long, value_name = "N")]
    guilds: u64,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        session.ui.report(&SizingView(recommend(self.guilds)))?;
        Ok(Exit::Ok)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct SizingView(Sizing);

impl Report for SizingView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let Self(sizing) = self;
        let nodes = if sizing.db_nodes_min == sizing.db_nodes_max {
            sizing.db_nodes_min.to_string()
        } else {
            format!("{}-{}", sizing.db_nodes_min, sizing.db_nodes_max)
        };
        let mut table = Table::new(&[
            "GUILDS",
            "SHARDS",
            "AT-LEAST",
            "PROCESSES",
            "SHARDS-EACH",
            "DB-NODES",
            "COLD-START",
        ]);
        table.row(vec![
            Cell::number(sizing.guilds),
            Cell::number(sizing.shards),
            Cell::number(sizing.shards_min),
            Cell::number(sizing.processes),
            Cell::number(sizing.shards_per_process),
            Cell::number(nodes),
            Cell::number(age(sizing.cold_start_s[0].into())),
        ]);
        let mut text = table.render(paint);
        text.push('\n');
        for reason in &sizing.reasons {
            let _ = writeln!(text, "  - {reason}");
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.shards.to_string()]
    }
}
