//! What became of an interaction whose handler may have died: Discord knows.
//!
//! The first answer to an interaction makes its original message. None: nobody has answered. One that is
//! still loading: it was deferred, and whoever did that did not live to fill it in.

use std::time::Duration;

use serde::Deserialize;
use serenity::all::ApplicationId;
use serenity::http::{LightMethod, Request, Route};

use crate::rest::RestError;
use crate::services::Services;
use crate::shard::duty::Standing;

/// Message flag: the answer is still to come.
const LOADING: u64 = 1 << 7;
/// The interaction's token has ended.
const INVALID_WEBHOOK_TOKEN: i64 = 50_027;
/// Tries for one look-up. Discord takes a first answer for three seconds: more would come too late.
const TRIES: u32 = 3;

#[derive(Debug, Deserialize)]
struct Original {
    #[serde(default)]
    flags: u64,
}

/// Asks for the original message.
pub async fn look_up(services: &Services, application_id: ApplicationId, token: &str) -> Standing {
    for attempt in 1..=TRIES {
        let route = Route::WebhookOriginalInteractionResponse {
            application_id,
            token,
        };
        let answer = services
            .rest
            .exempt(Request::new(route, LightMethod::Get))
            .await;
        match &answer {
            Err(error) if error.is_retryable() && attempt < TRIES => {
                let pause = Duration::from_millis(100 << attempt);
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            _ => return read(&answer),
        }
    }
    Standing::Unknown
}

fn read(answer: &Result<Vec<u8>, RestError>) -> Standing {
    match answer {
        Ok(body) => match serde_json::from_slice::<Original>(body) {
            Ok(original) if original.flags & LOADING != 0 => Standing::Deferred,
            Ok(_) => Standing::Answered,
            Err(_) => Standing::Unknown,
        },
        Err(error) if error.is_not_found() => Standing::Open,
        // A quarter of an hour old: nobody can answer it any more.
        Err(RestError::Refused {
            code: INVALID_WEBHOOK_TOKEN,
            ..
        }) => Standing::Answered,
        Err(_) => Standing::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let refused = |status, code| {
            Err(RestError::Refused {
                status,
                code,
                message: String::new(),
            })
        };
        let body = |text: &str| Ok(text.as_bytes().to_vec());
        assert_eq!(read(&body(r#"{"id":"1","flags":128}"#)), Standing::Deferred);
        assert_eq!(read(&body(r#"{"id":"1","flags":192}"#)), Standing::Deferred);
        assert_eq!(read(&body(r#"{"id":"1","flags":64}"#)), Standing::Answered);
        assert_eq!(read(&body(r#"{"id":"1"}"#)), Standing::Answered);
        assert_eq!(read(&body("gateway error")), Standing::Unknown);
        assert_eq!(read(&refused(404, 10_015)), Standing::Open);
        assert_eq!(read(&refused(401, 50_027)), Standing::Answered);
        // Of the bot's own token this says nothing about the interaction.
        assert_eq!(read(&refused(401, 0)), Standing::Unknown);
        assert_eq!(read(&refused(500, 0)), Standing::Unknown);
        assert_eq!(
            read(&Err(RestError::Unreachable("no connection"))),
            Standing::Unknown
        );
    }
}
