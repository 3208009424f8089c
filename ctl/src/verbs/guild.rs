//! `tanakoctl guild`.

use tanako_proto::fleet::v1::GuildRequest;

use crate::{
    exit::Exit, failure::Outcome, session::Session, target::guild_id, view::guild::GuildView,
};

/// Say where a guild is served: shard, process, host and database node
///
/// "IN-GUILD no" means that its shard runs and does not have that guild: the bot is not in it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guild's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let guild_id = guild_id(&self.id)?;
        let location = session
            .fleet()
            .await?
            .locate_guild(GuildRequest { guild_id })
            .await?;
        session.ui.report(&GuildView::from(location))?;
        Ok(Exit::Ok)
    }
}
