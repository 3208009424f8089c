//! An event on its way to sessions: its body is encoded once and shared by all of them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::Intents;

/// One dispatch, without a sequence number.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// The event's type, as in `t`.
    pub name: Cow<'static, str>,
    /// The intents that let it through: any of them suffices. Empty: it always comes.
    pub needs: Intents,
    /// The encoded `d`.
    pub body: Arc<str>,
    /// The encoded `d` for sessions without MESSAGE_CONTENT, where that differs.
    reduced: Option<Arc<str>>,
}

impl Event {
    pub(crate) fn new(
        name: impl Into<Cow<'static, str>>,
        needs: Intents,
        body: &impl Serialize,
    ) -> Self {
        Self {
            name: name.into(),
            needs,
            body: encode(body),
            reduced: None,
        }
    }

    pub(crate) fn with_reduced(mut self, body: &impl Serialize) -> Self {
        self.reduced = Some(encode(body));
        self
    }

    /// The body that a session with these intents may see.
    pub(crate) fn body_for(&self, intents: Intents) -> &Arc<str> {
        match &self.reduced {
            Some(reduced) if !intents.contains(Intents::MESSAGE_CONTENT) => reduced,
            _ => &self.body,
        }
    }

    /// The bytes that the event holds.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.reduced.as_ref().map_or(0, |reduced| reduced.len())
    }
}

fn encode(body: &impl Serialize) -> Arc<str> {
    serde_json::to_string(body)
        .expect("invariant: events have string keys")
        .into()
}

/// The whole frame of a dispatch.
pub(crate) fn frame(name: &str, seq: u64, body: &str) -> String {
    let mut frame = String::with_capacity(body.len() + name.len() + 48);
    // Names are upper-case words: no escaping is needed.
    write!(frame, r#"{{"t":"{name}","s":{seq},"op":0,"d":"#)
        .expect("invariant: writing to a string succeeds");
    frame.push_str(body);
    frame.push('}');
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn frames_are_json_and_content_needs_its_intent() {
        let event = Event::new(
            "MESSAGE_CREATE",
            Intents::GUILD_MESSAGES,
            &json!({ "content": "a \"b\"" }),
        )
        .with_reduced(&json!({ "content": "" }));
        let full = frame(&event.name, 7, event.body_for(Intents::MESSAGE_CONTENT));
        let full: Value = serde_json::from_str(&full).expect("JSON");
        assert_eq!(
            full,
            json!({ "t": "MESSAGE_CREATE", "s": 7, "op": 0, "d": { "content": "a \"b\"" } })
        );
        assert_eq!(
            event.body_for(Intents::GUILD_MESSAGES).as_ref(),
            r#"{"content":""}"#
        );
    }
}
