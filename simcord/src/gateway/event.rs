//! An event on its way to sessions: its body is encoded once and shared by all of them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// The part of the body that sessions without MESSAGE_CONTENT do not get to see.
    hidden: Range<usize>,
    /// To how many sessions it was given and for how many it is lost. None: it concerns one session only.
    fate: Option<Arc<Fate>>,
}

/// What became of an event over all sessions that it was given to.
#[derive(Debug, Default)]
struct Fate {
    given: AtomicU32,
    lost: AtomicU32,
}

impl Event {
    /// The same event, from now on followed through all sessions that it is given to.
    pub(crate) fn followed(&self) -> Self {
        Self {
            fate: Some(Arc::default()),
            ..self.clone()
        }
    }

    /// One more session gets it.
    pub(crate) fn given(&self) {
        if let Some(fate) = &self.fate {
            fate.given.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session ended whose client never proved to have it. True when that holds for all sessions now.
    pub(crate) fn lost(&self) -> bool {
        self.fate.as_ref().is_some_and(|fate| {
            let lost = fate.lost.fetch_add(1, Ordering::Relaxed) + 1;
            lost == fate.given.load(Ordering::Relaxed)
        })
    }

    pub(crate) fn new(
        name: impl Into<Cow<'static, str>>,
        needs: Intents,
        body: &impl Serialize,
    ) -> Self {
        Self {
            name: name.into(),
            needs,
            body: encode(body),
            hidden: 0..0,
            fate: None,
        }
    }

    /// Fills the empty `content` of a message's body, for those who may see it.
    pub(crate) fn with_content(mut self, content: &str) -> Self {
        let empty = r#""content":""#;
        if let Some(place) = self.body.find(r#""content":"""#) {
            let start = place + empty.len();
            let quoted = encode(&content);
            let content = &quoted[1..quoted.len() - 1];
            let (before, after) = self.body.split_at(start);
            self.body = format!("{before}{content}{after}").into();
            self.hidden = start..start + content.len();
        }
        self
    }

    /// The body that a session with these intents may see, in two parts.
    pub(crate) fn body_for(&self, intents: Intents) -> Body {
        let hidden = if intents.contains(Intents::MESSAGE_CONTENT) {
            0..0
        } else {
            self.hidden.clone()
        };
        Body {
            whole: Arc::clone(&self.body),
            hidden,
        }
    }

    /// The bytes that the event holds.
    pub(crate) fn size(&self) -> usize {
        self.body.len()
    }
}

/// A body on its way to one session.
pub(crate) struct Body {
    whole: Arc<str>,
    hidden: Range<usize>,
}

fn encode(body: &impl Serialize) -> Arc<str> {
    serde_json::to_string(body)
        .expect("invariant: events have string keys")
        .into()
}

/// The whole frame of a dispatch.
pub(crate) fn frame(name: &str, seq: u64, body: &Body) -> String {
    let mut frame = String::with_capacity(body.whole.len() + name.len() + 48);
    // Names are upper-case words: no escaping is needed.
    write!(frame, r#"{{"t":"{name}","s":{seq},"op":0,"d":"#)
        .expect("invariant: writing to a string succeeds");
    frame.push_str(&body.whole[..body.hidden.start]);
    frame.push_str(&body.whole[body.hidden.end..]);
    frame.push('}');
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn frames_are_json_and_content_needs_its_intent() {
        let body = json!({ "content": "", "id": "5" });
        let event =
            Event::new("MESSAGE_CREATE", Intents::GUILD_MESSAGES, &body).with_content("a \"b\"");
        for (intents, content) in [(Intents::MESSAGE_CONTENT, "a \"b\""), (Intents::GUILDS, "")] {
            let frame = frame(&event.name, 7, &event.body_for(intents));
            let frame: Value = serde_json::from_str(&frame).expect("JSON");
            let d = json!({ "content": content, "id": "5" });
            assert_eq!(
                frame,
                json!({ "t": "MESSAGE_CREATE", "s": 7, "op": 0, "d": d })
            );
        }
    }
}
