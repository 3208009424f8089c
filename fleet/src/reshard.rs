//! From one number of shards to another: what must hold before anything moves, what it costs, when
//! it is proposed, and how the new number gets into the operator's file.

use toml_edit::{DocumentMut, Item, TableLike, Value};

use crate::{
    sizing::{GUILDS_LARGE_BOT, GUILDS_PER_SHARD_MAX},
    spec::{Generation, format_bytes},
};

/// Discord's spacing of IDENTIFYs in one bucket (discord-rules).
const IDENTIFY_S: u64 = 5;
/// From the choice of the cut to the end of the old set, without the time for which it is watched.
const CUT_S: u64 = 15;
/// Memory that stays free beside the second set: a tenth of the set, at least this.
const HEADROOM_BYTES_MIN: u64 = 128 << 20;

/// The IDENTIFYs that may be spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Allowed in 24 h; 0 = not known yet.
    pub total: u32,
    /// Left of them.
    pub remaining: u32,
    /// Never spent automatically.
    pub reserve: u32,
    /// Seconds until the count begins anew.
    pub resets_in_s: u64,
    /// IDENTIFYs at once.
    pub max_concurrency: u32,
}

impl Budget {
    /// What may be spent now.
    pub fn free(&self) -> u32 {
        self.remaining.saturating_sub(self.reserve)
    }

    /// Seconds that `identifies` take at the pace of the buckets.
    pub fn seconds(&self, identifies: u32) -> u64 {
        u64::from(identifies.div_ceil(self.max_concurrency.max(1))) * IDENTIFY_S
    }
}

/// Room for a second set of processes beside the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the processes of the bot use now.
    pub used_bytes: u64,
    /// How many they are.
    pub processes: u32,
    /// Free on the host; `None` = not known.
    pub free_bytes: Option<u64>,
}

/// What is, when a reshard is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The bot.
    pub bot: String,
    /// Whether it speaks the worker socket: without it nobody can share the events.
    pub worker: bool,
    /// Shards now.
    pub shards: u32,
    /// Shards per process now.
    pub shards_per_process: u32,
    /// The generation's number to use.
    pub number: u32,
    /// Guilds that its shards have reported.
    pub guilds: u64,
    /// What Discord recommends; 0 = it has not said.
    pub recommended: u32,
    /// Processes that are not ready.
    pub not_ready: Vec<String>,
    /// IDENTIFYs.
    pub budget: Budget,
    /// Memory.
    pub memory: Memory,
    /// For how long the new set is watched, in seconds.
    pub observe_s: u32,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Fine,
    /// Odd, not in the way.
    Odd,
    /// In the way.
    Refused,
}

impl Grade {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Odd => "warning",
            Self::Refused => "refused",
        }
    }
}

/// One thing that was looked at before anything moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// readiness, count, budget, memory, time.
    pub what: &'static str,
    /// How it came out.
    pub grade: Grade,
    /// For people.
    pub text: String,
    /// What to do where it is in the way.
    pub hint: String,
}

impl Check {
    fn new(what: &'static str, grade: Grade, text: impl Into<String>, hint: &str) -> Self {
        Self {
            what,
            grade,
            text: text.into(),
            hint: hint.to_owned(),
        }
    }
}

/// What a reshard would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// The new set.
    pub to: Generation,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
    /// IDENTIFYs it spends.
    pub identifies: u32,
    /// Seconds it takes.
    pub seconds: u64,
}

impl Preflight {
    /// The first check that is in the way.
    pub fn refused(&self) -> Option<&Check> {
        self.checks
            .iter()
            .find(|check| check.grade == Grade::Refused)
    }
}

/// Looks at everything that a reshard to `shards` (0 = as Discord recommends) with `per_process`
/// shards a process (0 = as now) needs.
pub fn preflight(facts: &Facts, shards: u32, per_process: u32) -> Preflight {
    let shards = if shards == 0 {
        facts.recommended
    } else {
        shards
    };
    let per_process = match per_process {
        0 => facts.shards_per_process,
        given => given,
    };
    let to = Generation {
        number: facts.number,
        shards,
        shards_per_process: per_process.clamp(1, shards.max(1)),
    };
    let mut checks = vec![standing(facts), count(facts, shards)];
    checks.push(budget(&facts.budget, shards));
    checks.push(memory(&facts.memory, facts.shards, shards, &facts.bot));
    let seconds = facts.budget.seconds(shards) + CUT_S + u64::from(facts.observe_s);
    checks.push(Check::new(
        "time",
        Grade::Fine,
        format!(
            "about {}: {} to identify {shards} shards {} at a time, then the cut and {} s under watch; \
             the old set serves until the cut",
            minutes(seconds),
            minutes(facts.budget.seconds(shards)),
            facts.budget.max_concurrency.max(1),
            facts.observe_s,
        ),
        "",
    ));
    Preflight {
        to,
        checks,
        identifies: shards,
        seconds,
    }
}

fn standing(facts: &Facts) -> Check {
    let bot = &facts.bot;
    if !facts.worker {
        return Check::new(
            "readiness",
            Grade::Refused,
            format!(
                "{bot} does not speak the worker socket, so that two sets of it cannot share its events"
            ),
            "stop it, apply a fleet.toml with the new shard count, and start it",
        );
    }
    match facts.not_ready.as_slice() {
        [] => Check::new(
            "readiness",
            Grade::Fine,
            format!("all of {bot} is ready"),
            "",
        ),
        [first, rest @ ..] => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            Check::new(
                "readiness",
                Grade::Refused,
                format!("{first}{more} of {bot} is not ready"),
                "see `tanakoctl status`; a reshard begins from a healthy set",
            )
        }
    }
}

fn count(facts: &Facts, shards: u32) -> Check {
    let (bot, guilds, recommended) = (&facts.bot, facts.guilds, facts.recommended);
    if shards == 0 {
        return Check::new(
            "count",
            Grade::Refused,
            format!("Discord has not recommended a shard count for {bot} yet"),
            "give one: --shards N",
        );
    }
    if shards == facts.shards {
        return Check::new(
            "count",
            Grade::Refused,
            format!("{bot} has {shards} shards already"),
            "to restart it, use `tanakoctl restart`; to spread the same shards over other processes, \
             stop it, apply a fleet.toml with another shards_per_process, and start it",
        );
    }
    let least = u32::try_from(guilds.div_ceil(GUILDS_PER_SHARD_MAX)).unwrap_or(u32::MAX);
    if shards < least {
        return Check::new(
            "count",
            Grade::Refused,
            format!(
                "{shards} shards cannot hold {guilds} guilds: Discord allows {GUILDS_PER_SHARD_MAX} a shard and closes \
                 with 4011"
            ),
            &format!("use --shards {least} or more"),
        );
    }
    if guilds > GUILDS_LARGE_BOT {
        if recommended == 0 {
            return Check::new(
                "count",
                Grade::Refused,
                format!(
                    "{bot} has more than {GUILDS_LARGE_BOT} guilds, so that its shard count must be a multiple of \
                     what Discord assigned, and Discord has not said what that is"
                ),
                "try again once a shard has connected and asked for the limits",
            );
        }
        if !shards.is_multiple_of(recommended) {
            let up = shards.div_ceil(recommended).saturating_mul(recommended);
            return Check::new(
                "count",
                Grade::Refused,
                format!(
                    "{shards} is not a multiple of {recommended}, the number that Discord assigned to a bot of {guilds} \
                     guilds: it would close the shards with 4010"
                ),
                &format!("use --shards {up}"),
            );
        }
    }
    let each = guilds.div_ceil(u64::from(shards));
    let text = format!(
        "{} shards become {shards}: about {each} guilds each",
        facts.shards
    );
    if recommended > 0 && shards < recommended {
        let text = format!("{text}; Discord recommends {recommended}");
        return Check::new("count", Grade::Odd, text, "");
    }
    Check::new("count", Grade::Fine, text, "")
}

/// Whether `identifies` fit into the budget.
pub fn budget(budget: &Budget, identifies: u32) -> Check {
    let free = budget.free();
    let left = format!(
        "{} of {} IDENTIFYs left, {} kept in reserve",
        budget.remaining, budget.total, budget.reserve
    );
    if budget.total == 0 {
        return Check::new(
            "budget",
            Grade::Refused,
            "Discord has not said how many IDENTIFYs are left",
            "try again once a shard has connected and asked for the limits",
        );
    }
    if identifies <= free {
        return Check::new(
            "budget",
            Grade::Fine,
            format!(
                "{identifies} IDENTIFYs, {} left afterwards; {left}",
                budget.remaining - identifies
            ),
            "",
        );
    }
    let hint = if identifies > budget.total.saturating_sub(budget.reserve) {
        format!(
            "it never fits: at most {} a day may be spent; stop the bot, apply the new count, and start it",
            budget.total.saturating_sub(budget.reserve)
        )
    } else {
        format!("it fits in {}", minutes(budget.resets_in_s.max(1)))
    };
    Check::new(
        "budget",
        Grade::Refused,
        format!("it needs {identifies} IDENTIFYs, {free} may be spent: {left}"),
        &hint,
    )
}

/// Whether a second set, of `to` shards where there are `from`, fits beside the first.
pub fn memory(memory: &Memory, from: u32, to: u32, bot: &str) -> Check {
    // Guilds are spread anew: a set's memory goes with its guilds, and a little with its shards.
    let grown = u128::from(memory.used_bytes) * u128::from(to.max(from)) / u128::from(from.max(1));
    let base = u128::from(memory.used_bytes);
    let need = u64::try_from(base + (grown - base) / 4).unwrap_or(u64::MAX);
    let need = need.saturating_add((need / 10).max(HEADROOM_BYTES_MIN));
    let of = format!(
        "a second set of {bot} beside the first needs about {}",
        mebibytes(need)
    );
    match memory.free_bytes {
        None => Check::new(
            "memory",
            Grade::Odd,
            format!("{of}; how much is free is not known"),
            "",
        ),
        Some(free) if free < need => Check::new(
            "memory",
            Grade::Refused,
            format!("{of}, {} are free", mebibytes(free)),
            "free some memory, or use a strategy that needs no second set: rolling",
        ),
        Some(free) => Check::new(
            "memory",
            Grade::Fine,
            format!("{of}, {} are free", mebibytes(free)),
            "",
        ),
    }
}

fn mebibytes(bytes: u64) -> String {
    format_bytes(bytes.next_multiple_of(1 << 20))
}

fn minutes(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// The reshard that is proposed for a bot with `shards = "auto"`: Discord recommends more than it has.
/// Never a smaller one: shrinking gains nothing and costs IDENTIFYs.
pub fn propose(shards: u32, recommended: u32) -> Option<u32> {
    (recommended > shards).then_some(recommended)
}

/// Sets a number; the comment behind the old one belongs to the line and stays.
fn set(table: &mut dyn TableLike, key: &str, number: u32) {
    let mut value = Value::from(i64::from(number));
    if let Some(item) = table.get_mut(key) {
        if let Some(old) = item.as_value() {
            *value.decor_mut() = old.decor().clone();
        }
        *item = Item::Value(value);
    } else {
        table.insert(key, Item::Value(value));
    }
}

/// Why the shard count could not be written into a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The text is not TOML.
    #[error("the spec cannot be parsed: {0}")]
    Syntax(String),
    /// It has no such bot.
    #[error("the spec has no bot {0:?}")]
    NoBot(String),
}

/// The spec with another layout for `bot`. Everything else stays as the operator wrote it, comments
/// and order included; `shards = "auto"` stays too.
pub fn rewrite(toml: &str, bot: &str, to: Generation) -> Result<String, EditError> {
    let mut document: DocumentMut = toml
        .parse()
        .map_err(|error: toml_edit::TomlError| EditError::Syntax(error.message().to_owned()))?;
    let missing = || EditError::NoBot(bot.to_owned());
    let table = document
        .get_mut("bots")
        .and_then(Item::as_table_like_mut)
        .and_then(|bots| bots.get_mut(bot))
        .and_then(Item::as_table_like_mut)
        .ok_or_else(missing)?;
    let is_auto = table.get("shards").and_then(Item::as_str) == Some("auto");
    if !is_auto {
        set(table, "shards", to.shards);
    }
    // 1 is what a spec without the key means.
    if to.shards_per_process != 1 || table.contains_key("shards_per_process") {
        set(table, "shards_per_process", to.shards_per_process);
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        Facts {
            bot: "tanako".to_owned(),
            worker: true,
            shards: 8,
            shards_per_process: 2,
            number: 2,
            guilds: 8_000,
            recommended: 16,
            not_ready: Vec::new(),
            budget: Budget {
                total: 1_000,
                remaining: 900,
                reserve: 100,
                resets_in_s: 7_200,
                max_concurrency: 8,
            },
            memory: Memory {
                used_bytes: 200 << 20,
                processes: 4,
                free_bytes: Some(4 << 30),
            },
            observe_s: 10,
        }
    }

    fn refused(facts: &Facts, shards: u32) -> (&'static str, String, String) {
        let preflight = preflight(facts, shards, 0);
        let check = preflight.refused().expect("is refused");
        (check.what, check.text.clone(), check.hint.clone())
    }

    #[test]
    fn a_good_one_says_what_it_costs() {
        let preflight = preflight(&facts(), 16, 0);
        assert_eq!(preflight.refused(), None);
        assert_eq!(
            preflight.to,
            Generation {
                number: 2,
                shards: 16,
                shards_per_process: 2
            }
        );
        assert_eq!(
            (preflight.identifies, preflight.seconds),
            (16, 10 + 15 + 10)
        );
        let texts: Vec<&str> = preflight
            .checks
            .iter()
            .map(|check| check.text.as_str())
            .collect();
        insta::assert_snapshot!(texts.join("\n"));
        // What Discord recommends, when no number is given.
        assert_eq!(super::preflight(&facts(), 0, 4).to.shards, 16);
    }

    #[test]
    fn large_bots_keep_to_multiples_of_what_discord_assigned() {
        let large = Facts {
            guilds: 200_000,
            shards: 160,
            recommended: 160,
            ..facts()
        };
        let (what, text, hint) = refused(&large, 250);
        assert_eq!((what, hint.as_str()), ("count", "use --shards 320"));
        assert!(text.contains("4010"), "{text}");
        assert_eq!(preflight(&large, 320, 0).refused(), None);
        let unknown = Facts {
            recommended: 0,
            ..large
        };
        assert_eq!(refused(&unknown, 320).0, "count");
    }

    #[test]
    fn refusals_say_what_is_in_the_way() {
        assert_eq!(refused(&facts(), 8).0, "count");
        assert_eq!(refused(&facts(), 3).2, "use --shards 4 or more");
        let foreign = Facts {
            worker: false,
            ..facts()
        };
        assert_eq!(refused(&foreign, 16).0, "readiness");
        let ill = Facts {
            not_ready: vec!["tanako/1".to_owned(), "tanako/2".to_owned()],
            ..facts()
        };
        assert!(refused(&ill, 16).1.starts_with("tanako/1 and 1 more"));
        let mut spent = facts();
        spent.budget.remaining = 110;
        assert_eq!(
            refused(&spent, 16),
            (
                "budget",
                "it needs 16 IDENTIFYs, 10 may be spent: 110 of 1000 IDENTIFYs left, 100 kept in reserve".to_owned(),
                "it fits in 2 h 0 min".to_owned()
            )
        );
        assert!(refused(&spent, 901).2.starts_with("it never fits"));
        let mut full = facts();
        full.memory.free_bytes = Some(100 << 20);
        assert_eq!(refused(&full, 16).0, "memory");
    }

    #[test]
    fn only_growth_is_proposed() {
        assert_eq!(propose(8, 16), Some(16));
        assert_eq!(propose(16, 8), None);
        assert_eq!(propose(8, 0), None);
    }

    #[test]
    fn the_operators_file_keeps_its_comments() {
        let to = Generation {
            number: 2,
            shards: 16,
            shards_per_process: 4,
        };
        let file = "# mine\n[fleet]\nname = \"x\"\n\n[bots.a] # the bot\nshards = 8 # eight\nenv = { A = \"1\" }\n# end\n";
        assert_eq!(
            rewrite(file, "a", to).as_deref(),
            Ok(
                "# mine\n[fleet]\nname = \"x\"\n\n[bots.a] # the bot\nshards = 16 # eight\nenv = { A = \"1\" }\nshards_per_process = 4\n# end\n"
            )
        );
        let inline = "bots.a = { shards = 8, shards_per_process = 2 }\n";
        assert_eq!(
            rewrite(inline, "a", to).as_deref(),
            Ok("bots.a = { shards = 16, shards_per_process = 4 }\n")
        );
        let auto = "[bots.a]\nshards = \"auto\"\nguilds = 5\n";
        let rewritten = rewrite(auto, "a", to).expect("rewrites");
        assert!(rewritten.starts_with(auto), "{rewritten}");
        assert_eq!(
            rewrite(auto, "b", to),
            Err(EditError::NoBot("b".to_owned()))
        );
        assert!(matches!(rewrite("[", "b", to), Err(EditError::Syntax(_))));
    }

    proptest! {
        #[test]
        fn what_is_let_through_never_touches_the_reserve(
            shards in 0_u32..3_000, remaining in 0_u32..2_000, reserve in 0_u32..500, guilds in 0_u64..400_000,
            recommended in 0_u32..300, now in 1_u32..300,
        ) {
            let mut facts = facts();
            facts.budget.total = 2_000;
            facts.budget.remaining = remaining;
            facts.budget.reserve = reserve;
            facts.guilds = guilds;
            facts.recommended = recommended;
            facts.shards = now;
            let preflight = preflight(&facts, shards, 0);
            if preflight.refused().is_none() {
                prop_assert!(preflight.identifies + reserve <= remaining);
                prop_assert!(u64::from(preflight.to.shards) * GUILDS_PER_SHARD_MAX >= guilds);
                prop_assert!(guilds <= GUILDS_LARGE_BOT || preflight.to.shards.is_multiple_of(recommended));
                prop_assert!(preflight.to.shards != now);
            } else {
                prop_assert!(preflight.refused().is_some_and(|check| !check.hint.is_empty()));
            }
        }
    }
}
