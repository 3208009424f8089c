//! Words that names and messages are made of.

/// First words of guild and user names.
pub(crate) const FIRST: [&str; 32] = [
    "amber", "brisk", "calm", "dapper", "eager", "fuzzy", "gentle", "hidden", "ivory", "jolly",
    "keen", "lunar", "mellow", "nimble", "opal", "polar", "quiet", "rapid", "silver", "tidal",
    "umber", "vivid", "witty", "young", "zesty", "crimson", "drowsy", "electric", "frosty",
    "golden", "humble", "misty",
];

/// Second words of guild and user names.
pub(crate) const SECOND: [&str; 32] = [
    "otter", "falcon", "harbor", "meadow", "comet", "lantern", "pixel", "raven", "summit",
    "tavern", "willow", "badger", "canyon", "dragon", "ember", "fjord", "garden", "heron",
    "island", "jungle", "kraken", "lagoon", "mantis", "nebula", "orchard", "panda", "quarry",
    "river", "sparrow", "tiger", "valley", "wizard",
];

/// What people write.
pub(crate) const SENTENCES: [&str; 16] = [
    "anyone up for a round tonight?",
    "that patch broke my favourite build again",
    "good morning everyone",
    "has somebody seen the new trailer yet",
    "brb, dinner",
    "lol",
    "could a moderator look at the channel above please",
    "I fixed it, the cable was loose the whole time",
    "does the bot still answer?",
    "this is the third time this week, and nobody knows why it happens only on Thursdays",
    "thanks!",
    "welcome to the server \u{1f44b}",
    "what time is the event?",
    "I would rather wait for the sale",
    "can you \"quote\" that with a \\ in it?",
    "naïve café, übergrößen, 日本語 also work here",
];

/// Reasons for moderation commands.
pub(crate) const REASONS: [&str; 6] = [
    "spamming invites",
    "rude in general chat",
    "advertising",
    "off-topic again",
    "ping abuse",
    "see the log",
];

/// Names of the text channels that guilds start with.
pub(crate) const CHANNELS: [&str; 8] = [
    "general",
    "announcements",
    "off-topic",
    "support",
    "bots",
    "media",
    "events",
    "moderation",
];

/// Names of the roles that guilds start with, after @everyone.
pub(crate) const ROLES: [&str; 6] = ["Admin", "Moderator", "Bots", "Helper", "Member", "Muted"];
