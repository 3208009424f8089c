//! Slash commands that leave one row each in the database: whoever handles one twice leaves two.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{db, discord::Discord, http, rig::Rig, wait};

/// Between two of them.
const EVERY: Duration = Duration::from_millis(120);

/// A member to be warned, and who may do it.
#[derive(Debug, Clone)]
struct Pair {
    guild: String,
    member: String,
    moderator: String,
}

/// `/warn` in one guild after the other, while something else goes on.
#[derive(Debug)]
pub struct Warnings {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sent>>,
}

#[derive(Debug)]
struct Sent {
    interaction: String,
    guild: String,
    reason: String,
}

impl Warnings {
    /// Begins; at most `most` are sent, each in a guild of its own.
    pub fn begin(rig: &Rig, most: u32) -> Self {
        /// Guilds are the same each time; reasons are not.
        static ROUND: AtomicU32 = AtomicU32::new(0);
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let pairs = pairs(&rig.discord, most);
        let url = format!("{}/_sim/interactions", rig.discord.url());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = Vec::new();
            for (number, pair) in pairs.into_iter().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let reason = format!("proof {round}-{number}");
                let body = json!({
                    "command": "warn", "guild_id": pair.guild, "user_id": pair.moderator,
                    "options": { "member": pair.member, "reason": reason },
                });
                // Members come and go while the flow goes on.
                let answer = match http::post_json(&url, &body) {
                    Err(error) if error.to_string().contains("not a member") => continue,
                    answer => answer.expect("an interaction"),
                };
                sent.push(Sent {
                    interaction: answer["id"].as_str().expect("its id").to_owned(),
                    guild: pair.guild,
                    reason,
                });
                std::thread::park_timeout(EVERY);
            }
            sent
        });
        Self { stop, thread }
    }

    /// Ends, and demands of each that it was answered in time and written exactly once. Gives how
    /// many there were.
    pub fn judge(self, rig: &Rig) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let sent = self.thread.join().expect("the thread that sends");
        assert!(!sent.is_empty(), "nobody was warned");
        let (url, token) = rig.database();
        let mut wrong = Vec::new();
        for one in &sent {
            let record = answered(&rig.discord, &one.interaction);
            let rows = rows(&url, token, one);
            if record["state"] != "answered" || rows != 1 {
                let (state, after) = (&record["state"], &record["answered_ms"]);
                wrong.push(format!("{one:?}: {rows} rows, {state} after {after} ms"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", rig.story());
        sent.len()
    }
}

/// The interaction, once it is no longer open.
fn answered(discord: &Discord, id: &str) -> Value {
    wait::until("an answer", 90, || {
        let record = discord.get(&format!("/interactions/{id}"));
        match record["state"].as_str() {
            Some("answered" | "late") => Ok(record),
            _ => Err(record.to_string()),
        }
    })
}

fn rows(url: &str, token: &Path, one: &Sent) -> u64 {
    let authorization = db::bearer(token).expect("a token");
    let guild: u64 = one.guild.parse().expect("an id");
    let data = json!({
        "table": "moderation_cases", "conditions": { "guild_id": guild, "reason": one.reason },
    });
    let reply = db::call(url, &authorization, "count", data).expect("a reply");
    reply["count"].as_u64().unwrap_or_else(|| panic!("{reply}"))
}

fn pairs(discord: &Discord, most: u32) -> Vec<Pair> {
    let list = discord.get(&format!("/guilds?limit={most}"));
    let guilds = list["guilds"].as_array().cloned().unwrap_or_default();
    let pair = |guild: &Value| {
        let guild = guild.as_str()?.to_owned();
        // The bot shares the limit of REST requests with this test.
        let members = wait::until("a guild's members", 30, || {
            discord
                .rest(&format!("/guilds/{guild}/members?limit=10"))
                .map_err(|error| error.to_string())
        });
        let mut people = members
            .as_array()
            .into_iter()
            .flatten()
            .map(|member| member["user"].clone())
            .filter(|user| user["bot"] != true)
            .filter_map(|user| user["id"].as_str().map(str::to_owned))
            .collect::<Vec<_>>()
            .into_iter();
        Some(Pair {
            member: people.next()?,
            moderator: people.next()?,
            guild,
        })
    };
    let pairs: Vec<Pair> = guilds.iter().filter_map(pair).collect();
    assert!(!pairs.is_empty(), "no guild with two people: {list}");
    pairs
}
