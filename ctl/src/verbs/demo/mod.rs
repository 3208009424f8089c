//! `tanakoctl demo`: a whole fleet on this machine.
//!
//! ```text
//!  demo up ──► simcord (a Discord that plays along)      own session, log file, info file
//!          └─► tanako-agent ──► tanako-bot x4, tanako-db x3
//!
//!  demo up --hosts 3 ──► simcord
//!          ├─► 127.x.y.1: etcd, tanako-agent ──► tanako-bot x2, tanako-db      host a
//!          ├─► 127.x.y.2: …                                                    host b
//!          └─► 127.x.y.3: …                                                    host c
//! ```
//!
//! What was started is written down in `demo.json` of the data directory ([`record`]) at once, and is
//! found again by process id and start time, or by an argument that no other process carries
//! ([`process`]). So whatever an interrupted `up` leaves, the next `up` uses and `down` ends.

mod daemon;
mod down;
mod etcd;
mod hosts;
mod info;
mod place;
mod process;
mod record;
mod seat;
mod setup;
mod up;

use std::path::PathBuf;

use clap::Subcommand;

use crate::{
    client::{Endpoint, Way},
    failure::Outcome,
    remote::Remote,
    session::Session,
};

/// Run a whole fleet on this machine, to look at and to play with
///
/// A simulated Discord with 10,000 guilds, 8 shards in 4 processes of tanako-bot, 3 database nodes and one
/// agent; with `up --hosts 3` three agents on addresses of their own, and a real etcd. Nothing leaves this
/// machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Where the demo keeps everything [default: $XDG_STATE_HOME/tanako/demo]
    #[arg(
        long,
        global = true,
        env = "TANAKO_DEMO_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::Args),
    Down(down::Args),
    Info(info::Args),
    Status(info::StatusArgs),
    KillHost(hosts::KillArgs),
    ReviveHost(hosts::ReviveArgs),
}

/// How the fleet is reached: over the socket of its one agent, or over the network by any of several.
fn way(place: &place::Place, record: &record::Record) -> Way {
    let seats = seat::seats(place, record);
    let members = seats.iter().filter_map(|seat| seat.member.as_ref());
    let addresses: Vec<_> = members.map(|member| member.listen).collect();
    if addresses.is_empty() {
        return Way::Socket(seats[0].agent_socket());
    }
    Way::Fleet(Remote {
        addresses,
        identity: place.admin_identity(),
    })
}

fn endpoint(session: &Session, place: &place::Place, record: &record::Record) -> Endpoint {
    session.endpoint_by(way(place, record))
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let place = place::Place::find(session, self.data_dir)?;
        match self.verb {
            Verb::Up(args) => args.run(session, &place).await,
            Verb::Down(args) => args.run(session, &place).await,
            Verb::Info(info::Args {}) => info::show(session, &place),
            Verb::Status(args) => args.run(session, &place).await,
            Verb::KillHost(args) => args.run(session, &place).await,
            Verb::ReviveHost(args) => args.run(session, &place).await,
        }
    }
}
