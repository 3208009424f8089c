//! Where a guild is served: `tanakoctl guild`.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::GuildLocation;

use super::text;
use crate::{
    paint::Paint,
    table::{Cell, Table},
    ui::Report,
};

/// `guild -o json`.
#[derive(Debug, Serialize)]
pub struct GuildView {
    /// As a string: JavaScript rounds numbers of this size.
    guild_id: String,
    shards: Vec<GuildShardView>,
    database: Option<GuildDatabase>,
}

#[derive(Debug, Serialize)]
struct GuildShardView {
    bot: String,
    shard_id: u32,
    shard_count: u32,
    process: Option<String>,
    host: Option<String>,
    state: Option<String>,
    stage: Option<String>,
    present: Option<bool>,
}

#[derive(Debug, Serialize)]
struct GuildDatabase {
    node: String,
    url: String,
    host: String,
}

impl From<GuildLocation> for GuildView {
    fn from(location: GuildLocation) -> Self {
        Self {
            guild_id: location.guild_id.to_string(),
            shards: location
                .shards
                .into_iter()
                .map(|shard| GuildShardView {
                    bot: shard.bot,
                    shard_id: shard.shard_id,
                    shard_count: shard.shard_count,
                    process: text(shard.process),
                    host: text(shard.host),
                    state: text(shard.state),
                    stage: text(shard.stage),
                    present: shard.present,
                })
                .collect(),
            database: text(location.db_node).map(|node| GuildDatabase {
                node,
                url: location.db_url,
                host: location.db_host,
            }),
        }
    }
}

impl Report for GuildView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let mut out = format!("guild {}\n", paint.strong(&self.guild_id));
        let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let mut table = Table::new(&[
            "BOT", "SHARD", "PROCESS", "HOST", "STATE", "STAGE", "IN-GUILD",
        ]);
        for shard in &self.shards {
            table.row(vec![
                Cell::new(&shard.bot),
                Cell::new(format!("{} of {}", shard.shard_id, shard.shard_count)),
                Cell::new(dash(&shard.process)),
                Cell::new(dash(&shard.host)),
                Cell::state(dash(&shard.state)),
                Cell::state(dash(&shard.stage)),
                Cell::new(match shard.present {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "unknown",
                }),
            ]);
        }
        if table.is_empty() {
            out.push_str("no bot of the fleet serves guilds\n");
        } else {
            out.push_str(&table.render(paint));
        }
        match &self.database {
            Some(db) => {
                let _ = writeln!(
                    out,
                    "database {} on {} ({})",
                    paint.strong(&db.node),
                    db.host,
                    db.url
                );
            }
            None => out.push_str("the fleet has no database\n"),
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.shards
            .iter()
            .filter_map(|shard| shard.process.clone())
            .collect()
    }
}
