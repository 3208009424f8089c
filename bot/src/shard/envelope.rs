//! The outer layer of a gateway message. The payload stays raw until someone needs it: decoding a
//! 22 KB GUILD_CREATE into a full model costs ten times as much as reading the two numbers we use.

use serde::Deserialize;
use serde_json::value::RawValue;

/// `{op, s, t, d}` of a gateway message.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// Opcode.
    pub op: u8,
    /// Sequence number of a dispatch.
    #[serde(default)]
    pub s: Option<u64>,
    /// Event type of a dispatch.
    #[serde(default)]
    pub t: Option<&'a str>,
    /// Payload, not yet decoded. Absent for `null`.
    #[serde(default, borrow)]
    pub d: Option<&'a RawValue>,
}

/// Dispatch.
pub const OP_DISPATCH: u8 = 0;
/// The gateway wants us to reconnect and resume.
pub const OP_RECONNECT: u8 = 7;
/// The session is invalid; `d` says whether a resume may be tried.
pub const OP_INVALID_SESSION: u8 = 9;
/// First message of a connection.
pub const OP_HELLO: u8 = 10;

/// What is used of READY.
#[derive(Debug, Deserialize)]
pub struct Ready {
    /// Session to resume later.
    pub session_id: String,
    /// Where to resume it.
    pub resume_gateway_url: String,
    /// The application, for REST routes.
    pub application: Id,
    /// Guilds that will arrive as GUILD_CREATE.
    #[serde(default)]
    pub guilds: Vec<Id>,
}

/// What is used of Hello.
#[derive(Debug, Deserialize)]
pub struct Hello {
    /// Milliseconds.
    pub heartbeat_interval: u64,
}

/// An object of which only the id matters.
#[derive(Debug, Deserialize)]
pub struct Id {
    /// Snowflake.
    #[serde(deserialize_with = "snowflake")]
    pub id: u64,
}

/// What is used of GUILD_CREATE.
#[derive(Debug, Deserialize)]
pub struct GuildCreate {
    /// Snowflake.
    #[serde(deserialize_with = "snowflake")]
    pub id: u64,
    /// Members at that moment. Absent in an unavailable guild.
    #[serde(default)]
    pub member_count: Option<u32>,
    /// True when Discord cannot serve the guild at present.
    #[serde(default)]
    pub unavailable: Option<bool>,
}

/// What is used of GUILD_MEMBER_ADD, GUILD_MEMBER_REMOVE and MESSAGE_CREATE.
#[derive(Debug, Deserialize)]
pub struct InGuild<'a> {
    /// Snowflake of a message.
    #[serde(default, borrow)]
    pub id: Option<&'a str>,
    /// Snowflake as text; absent in direct messages.
    #[serde(default, borrow)]
    pub guild_id: Option<&'a str>,
    /// Sender of a message.
    #[serde(default)]
    pub author: Option<Author>,
}

/// What is used of a message's author.
#[derive(Debug, Deserialize)]
pub struct Author {
    /// Bots do not count as activity.
    #[serde(default)]
    pub bot: bool,
}

/// Reads a snowflake that is text on the wire.
pub fn snowflake<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a snowflake")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
    }
    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payload_stays_raw() {
        let text = r#"{"t":"GUILD_CREATE","s":7,"op":0,"d":{"id":"81384788765712384","member_count":3,"name":"x"}}"#;
        let envelope: Envelope<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(
            (envelope.op, envelope.s, envelope.t),
            (0, Some(7), Some("GUILD_CREATE"))
        );
        let guild: GuildCreate = serde_json::from_str(envelope.d.unwrap().get()).unwrap();
        assert_eq!(
            (guild.id, guild.member_count),
            (81_384_788_765_712_384, Some(3))
        );
    }

    #[test]
    fn null_fields_are_absent() {
        let envelope: Envelope<'_> =
            serde_json::from_str(r#"{"op":11,"s":null,"t":null,"d":null}"#).unwrap();
        assert!(envelope.s.is_none() && envelope.t.is_none() && envelope.d.is_none());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(text in ".{0,200}") {
            let _ = serde_json::from_str::<Envelope<'_>>(&text).map(|envelope| envelope.op);
            let _ = serde_json::from_str::<GuildCreate>(&text).map(|guild| guild.id);
        }
    }
}
