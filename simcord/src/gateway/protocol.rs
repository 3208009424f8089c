//! The form of what clients send, and the codes that connections are closed with.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Intents;

/// Bytes that one payload of a client may have.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 4096;

/// Gateway close codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseCode {
    UnknownError,
    UnknownOpcode,
    DecodeError,
    NotAuthenticated,
    AuthenticationFailed,
    AlreadyAuthenticated,
    InvalidSeq,
    RateLimited,
    SessionTimedOut,
    InvalidShard,
    ShardingRequired,
    InvalidApiVersion,
    InvalidIntents,
    DisallowedIntents,
    /// What the admin API asked for.
    Other(u16),
}

impl CloseCode {
    /// The code on the wire and its reason.
    pub(crate) fn parts(self) -> (u16, &'static str) {
        match self {
            Self::UnknownError => (4000, "Unknown error."),
            Self::UnknownOpcode => (4001, "Unknown opcode."),
            Self::DecodeError => (4002, "Error while decoding payload."),
            Self::NotAuthenticated => (4003, "Not authenticated."),
            Self::AuthenticationFailed => (4004, "Authentication failed."),
            Self::AlreadyAuthenticated => (4005, "Already authenticated."),
            Self::InvalidSeq => (4007, "Invalid seq."),
            Self::RateLimited => (4008, "Rate limited."),
            Self::SessionTimedOut => (4009, "Session timed out."),
            Self::InvalidShard => (4010, "Invalid shard."),
            Self::ShardingRequired => (4011, "Sharding required."),
            Self::InvalidApiVersion => (4012, "Invalid API version."),
            Self::InvalidIntents => (4013, "Invalid intent(s)."),
            Self::DisallowedIntents => (4014, "Disallowed intent(s)."),
            Self::Other(code) => (code, "Closed by the operator of the simulation."),
        }
    }
}

/// Which share of the guilds a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shard {
    pub id: u32,
    pub count: u32,
}

/// A payload from a client.
#[derive(Debug)]
pub(crate) enum Command {
    /// With the last seq that the client has received.
    Heartbeat(Option<u64>),
    Identify(Identify),
    Resume(Resume),
    /// Presence update, voice state, voice server ping, soundboard, channel info: read and left without effect.
    Ignored,
    RequestGuildMembers(RequestGuildMembers),
}

/// Opcode 2.
#[derive(Deserialize)]
pub(crate) struct Identify {
    pub token: String,
    /// Absent is as bad as undefined bits (4013).
    #[serde(default)]
    intents: serde_json::Value,
    #[serde(default)]
    shard: Option<serde_json::Value>,
    /// Required by Discord, of no further use.
    #[expect(dead_code, reason = "deserialising it proves that it is there")]
    properties: serde_json::Map<String, serde_json::Value>,
}

/// Opcode 6.
#[derive(Deserialize)]
pub(crate) struct Resume {
    pub token: String,
    pub session_id: String,
    pub seq: u64,
}

/// Opcode 8.
#[derive(Debug, Deserialize)]
pub(crate) struct RequestGuildMembers {
    pub guild_id: serde_json::Value,
    #[serde(default)]
    pub query: Option<String>,
    #[serde(default)]
    pub limit: usize,
    #[serde(default)]
    pub user_ids: Option<serde_json::Value>,
    #[serde(default)]
    pub nonce: Option<String>,
}

/// Tokens do not show.
impl std::fmt::Debug for Identify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identify")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// Tokens do not show.
impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume")
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}

impl Identify {
    /// The shard asked for; `[0, 1]` when none is named.
    pub(crate) fn shard(&self) -> Result<Shard, CloseCode> {
        let Some(shard) = self.shard.as_ref().filter(|shard| !shard.is_null()) else {
            return Ok(Shard { id: 0, count: 1 });
        };
        let part = |n: usize| shard.get(n)?.as_u64().and_then(|n| u32::try_from(n).ok());
        match (shard.as_array().map(Vec::len), part(0), part(1)) {
            (Some(2), Some(id), Some(count)) if id < count && count <= SHARDS_MAX => {
                Ok(Shard { id, count })
            }
            _ => Err(CloseCode::InvalidShard),
        }
    }

    pub(crate) fn intents(&self) -> Result<Intents, CloseCode> {
        let intents = self.intents.as_u64().map(Intents);
        intents
            .filter(|intents| intents.are_defined())
            .ok_or(CloseCode::InvalidIntents)
    }
}

/// Shard counts above this are refused: nothing of that size exists.
const SHARDS_MAX: u32 = 65_536;

#[derive(Deserialize)]
struct Envelope<'a> {
    op: u64,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
}

/// Reads one payload.
pub(crate) fn decode(payload: &[u8]) -> Result<Command, CloseCode> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(CloseCode::DecodeError);
    }
    // Lists would do for structs as well, to serde's mind.
    if !is_object(payload) {
        return Err(CloseCode::DecodeError);
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(payload).map_err(|_| CloseCode::DecodeError)?;
    let d = envelope.d.map_or("null", RawValue::get);
    match envelope.op {
        1 => Ok(Command::Heartbeat(read(d)?)),
        2 | 6 | 8 if !is_object(d.as_bytes()) => Err(CloseCode::DecodeError),
        2 => Ok(Command::Identify(read(d)?)),
        6 => Ok(Command::Resume(read(d)?)),
        8 => Ok(Command::RequestGuildMembers(read(d)?)),
        3 | 4 | 5 | 31 | 43 => {
            read::<serde_json::Map<String, serde_json::Value>>(d)?;
            Ok(Command::Ignored)
        }
        _ => Err(CloseCode::UnknownOpcode),
    }
}

fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"{")
}

fn read<'a, T: Deserialize<'a>>(d: &'a str) -> Result<T, CloseCode> {
    serde_json::from_str(d).map_err(|_| CloseCode::DecodeError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(payload: &str) -> Option<u16> {
        decode(payload.as_bytes()).err().map(|code| code.parts().0)
    }

    #[test]
    fn what_cannot_be_read_is_4002_and_what_is_not_known_4001() {
        for bad in [
            "",
            "{",
            "[]",
            "7",
            "null",
            r#"{"op":"2"}"#,
            r#"{"d":1}"#,
            r#"{"op":-1}"#,
            r#"{"op":2,"d":5}"#,
            r#"{"op":2,"d":{}}"#,
            r#"{"op":6,"d":{"token":"a","session_id":"b","seq":-1}}"#,
            r#"{"op":1,"d":"x"}"#,
            r#"{"op":3,"d":null}"#,
            "[1,2]",
            r#"{"op":6,"d":["token","session",1]}"#,
        ] {
            assert_eq!(code(bad), Some(4002), "{bad}");
        }
        for unknown in [0, 7, 9, 10, 11, 12, 99] {
            assert_eq!(
                code(&format!(r#"{{"op":{unknown},"d":null}}"#)),
                Some(4001),
                "{unknown}"
            );
        }
        let long = format!(r#"{{"op":1,"d":null,"x":"{}"}}"#, "a".repeat(4096));
        assert_eq!(code(&long), Some(4002));
    }

    #[test]
    fn identifies_are_read_and_their_shards_checked() {
        let identify = |rest: &str| {
            let payload = format!(r#"{{"op":2,"d":{{"token":"t","properties":{{}}{rest}}}}}"#);
            match decode(payload.as_bytes()) {
                Ok(Command::Identify(identify)) => identify,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(identify("").shard(), Ok(Shard { id: 0, count: 1 }));
        assert_eq!(
            identify(r#","shard":[3,8]"#).shard(),
            Ok(Shard { id: 3, count: 8 })
        );
        for bad in [
            "[8,8]",
            "[0,0]",
            "[0]",
            "[0,1,2]",
            "5",
            "[-1,4]",
            r#"["0","1"]"#,
            "[0,99999999]",
        ] {
            assert_eq!(
                identify(&format!(r#","shard":{bad}"#)).shard(),
                Err(CloseCode::InvalidShard),
                "{bad}"
            );
        }
        assert_eq!(identify(r#","intents":513"#).intents(), Ok(Intents(513)));
        for bad in [
            "",
            r#","intents":-1"#,
            r#","intents":"513""#,
            r#","intents":131072"#,
        ] {
            assert_eq!(
                identify(bad).intents(),
                Err(CloseCode::InvalidIntents),
                "{bad}"
            );
        }
    }

    #[test]
    fn tokens_do_not_show() {
        let payload = r#"{"op":6,"d":{"token":"secret","session_id":"b","seq":1}}"#;
        assert!(!format!("{:?}", decode(payload.as_bytes())).contains("secret"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..5000)) {
            if let Err(code) = decode(&payload) {
                prop_assert!(matches!(code, CloseCode::DecodeError | CloseCode::UnknownOpcode));
            }
        }
    }
}
