//! The tables themselves. The order of the columns is the order in replies and on disk: append only.

use super::{Column, Kind, Table};

const fn column(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        nullable: false,
        indexed: false,
        declared_default: None,
    }
}

impl Column {
    const fn index(mut self) -> Self {
        self.indexed = true;
        self
    }

    const fn null(mut self) -> Self {
        self.nullable = true;
        self
    }

    const fn default(mut self, json: &'static str) -> Self {
        self.declared_default = Some(json);
        self
    }
}

const fn snowflake(name: &'static str) -> Column {
    column(name, Kind::Snowflake)
}
const fn int64(name: &'static str) -> Column {
    column(name, Kind::Int64)
}
const fn int32(name: &'static str) -> Column {
    column(name, Kind::Int32)
}
const fn float64(name: &'static str) -> Column {
    column(name, Kind::Float64)
}
const fn boolean(name: &'static str, default: &'static str) -> Column {
    column(name, Kind::Bool).default(default)
}
const fn text(name: &'static str) -> Column {
    column(name, Kind::Text)
}
const fn object(name: &'static str) -> Column {
    column(name, Kind::Json).default("{}")
}
const fn time(name: &'static str) -> Column {
    column(name, Kind::Time)
}

/// Every table, in the order `list_tables` shows.
pub static TABLES: &[Table] = &[
    Table {
        id: 1,
        name: "guilds",
        guild: Some(0),
        columns: &[
            snowflake("guild_id"),
            object("settings"),
            time("created_at"),
            time("updated_at"),
            int32("case_counter").default("0"),
            int32("ticket_counter").default("0"),
            column("filter_rules", Kind::Json).default("[]"),
            object("custom_commands"),
        ],
    },
    Table {
        id: 2,
        name: "users",
        guild: Some(2),
        columns: &[
            text("id"),
            snowflake("user_id").index(),
            snowflake("guild_id").index(),
            object("data"),
            time("created_at"),
            time("updated_at"),
        ],
    },
    Table {
        id: 3,
        name: "tickets",
        guild: Some(1),
        columns: &[
            text("ticket_id"),
            snowflake("guild_id").index(),
            snowflake("channel_id").index(),
            snowflake("creator_id").index(),
            text("category_id"),
            text("status").default("\"open\""),
            int32("priority").default("2"),
            text("subject"),
            text("description"),
            time("created_at"),
            time("updated_at"),
            time("closed_at").null(),
            snowflake("claimed_by").null(),
            snowflake("closed_by").null(),
            text("close_reason").null(),
            object("data"),
        ],
    },
    Table {
        id: 4,
        name: "moderation_cases",
        guild: Some(2),
        columns: &[
            text("id"),
            int32("case_id").index(),
            snowflake("guild_id").index(),
            snowflake("target_id").index(),
            snowflake("moderator_id").index(),
            text("action").index(),
            text("reason"),
            time("created_at"),
            time("expires_at").null(),
            int64("duration_seconds").null(),
            boolean("is_active", "true"),
            boolean("revoked", "false"),
            object("data"),
        ],
    },
    Table {
        id: 5,
        name: "filters",
        guild: Some(1),
        columns: &[
            text("id"),
            snowflake("guild_id").index(),
            text("filter_type").index(),
            text("pattern"),
            text("action"),
            boolean("enabled", "true"),
            time("created_at"),
            object("data"),
        ],
    },
    Table {
        id: 6,
        name: "log_configs",
        guild: Some(0),
        columns: &[
            snowflake("guild_id"),
            boolean("enabled", "true"),
            object("channels"),
            object("events"),
            object("ignored"),
            time("updated_at"),
        ],
    },
    Table {
        id: 7,
        name: "user_levels",
        guild: Some(2),
        columns: &[
            text("id"),
            snowflake("user_id").index(),
            snowflake("guild_id").index(),
            int32("xp").default("0"),
            int32("level").default("0"),
            int64("total_xp").default("0"),
            int32("daily_messages").default("0"),
            text("last_xp_date"),
            time("last_message_time"),
            time("updated_at"),
        ],
    },
    Table {
        id: 8,
        name: "secret_users",
        guild: None,
        columns: &[
            snowflake("user_id"),
            text("nickname").index(),
            time("created_at"),
            boolean("is_active", "true"),
        ],
    },
    Table {
        id: 9,
        name: "secret_chats",
        guild: None,
        columns: &[
            text("id"),
            snowflake("sender_id").index(),
            snowflake("receiver_id").index(),
            time("created_at"),
            time("expires_at").null(),
        ],
    },
    Table {
        id: 10,
        name: "host_checks",
        guild: Some(1),
        columns: &[
            text("id"),
            snowflake("guild_id").index(),
            text("url"),
            text("name"),
            text("check_type"),
            int32("check_interval").default("60"),
            text("last_status"),
            time("last_check"),
            snowflake("notify_channel_id").null(),
            time("created_at"),
            boolean("is_active", "true"),
        ],
    },
    Table {
        id: 11,
        name: "node_status",
        guild: None,
        columns: &[
            int32("shard_id"),
            text("status"),
            float64("latency"),
            int32("guild_count").default("0"),
            int64("member_count").default("0"),
            int64("uptime_seconds").default("0"),
            float64("memory_mb"),
            float64("cpu_percent"),
            time("last_heartbeat"),
            time("started_at"),
            text("version"),
        ],
    },
    Table {
        id: 12,
        name: "metrics",
        guild: None,
        columns: &[
            text("id"),
            int32("shard_id").index(),
            text("metric_type").index(),
            float64("value"),
            time("timestamp").index(),
            column("data", Kind::Json),
        ],
    },
];
