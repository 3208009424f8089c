//! Requests and replies on the wire.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A request.
#[derive(Debug, Serialize)]
pub struct Request<'a> {
    /// What to do.
    pub action: &'a str,
    /// With what.
    pub data: &'a Value,
    /// Comes back in the reply.
    pub request_id: u64,
}

/// A reply.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// Of which request; null for a message that the node could not read.
    #[serde(default)]
    pub request_id: Option<u64>,
    /// Whether it was carried out.
    pub success: bool,
    /// Why not.
    #[serde(default)]
    pub error: String,
    /// Stable code; our nodes add it.
    #[serde(default)]
    pub code: String,
    /// Whether the same request may succeed later; our nodes add it.
    #[serde(default)]
    pub retryable: bool,
    /// What the action adds.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn snowflakes_stay_exact() {
        let text = r#"{"request_id":3,"success":true,"row":{"guild_id":1254678901234567891}}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        assert_eq!(
            reply.rest["row"]["guild_id"].as_u64(),
            Some(1_254_678_901_234_567_891)
        );
    }

    #[test]
    fn both_kinds_of_failure() {
        let ours: Reply = serde_json::from_str(
            r#"{"request_id":1,"success":false,"error":"Row exists","code":"duplicate_key","retryable":false}"#,
        )
        .unwrap();
        assert_eq!((ours.success, ours.code.as_str()), (false, "duplicate_key"));
        let original: Reply =
            serde_json::from_str(r#"{"success": false, "error": "Invalid JSON"}"#).unwrap();
        assert_eq!((original.request_id, original.code.as_str()), (None, ""));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(text in "\\PC{0,200}") {
            let _ = serde_json::from_str::<Reply>(&text).map(|reply| reply.success);
        }
    }
}
