//! An embed that keeps Discord's limits whatever is put into it.

use serde_json::{Value, json};

/// Characters in a title.
pub const TITLE_MAX: usize = 256;
/// Characters in the description.
pub const DESCRIPTION_MAX: usize = 4096;
/// Fields.
pub const FIELDS_MAX: usize = 25;
/// Characters in a field's name.
pub const NAME_MAX: usize = 256;
/// Characters in a field's value.
pub const VALUE_MAX: usize = 1024;
/// Characters in the footer.
pub const FOOTER_MAX: usize = 2048;
/// Characters in all of it.
pub const TOTAL_MAX: usize = 6000;

/// Neutral.
pub const BLUE: u32 = 0x0058_65F2;
/// Good.
pub const GREEN: u32 = 0x0057_F287;
/// Warning.
pub const AMBER: u32 = 0x00FE_E75C;

/// An embed.
#[derive(Debug, Clone, Default)]
pub struct Panel {
    title: String,
    description: String,
    colour: u32,
    fields: Vec<(String, String, bool)>,
    footer: String,
    thumbnail: Option<String>,
}

impl Panel {
    /// An embed with a title.
    pub fn new(title: impl Into<String>, colour: u32) -> Self {
        Self {
            title: title.into(),
            colour,
            ..Self::default()
        }
    }

    /// The text under the title.
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// A field beside others.
    pub fn field(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.fields.push((name.into(), value.to_string(), true));
        self
    }

    /// A field on a line of its own.
    pub fn row(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.fields.push((name.into(), value.to_string(), false));
        self
    }

    /// Small text at the end.
    pub fn footer(mut self, text: impl Into<String>) -> Self {
        self.footer = text.into();
        self
    }

    /// A small picture.
    pub fn thumbnail(mut self, url: Option<String>) -> Self {
        self.thumbnail = url;
        self
    }

    /// The embed object, cut to the limits.
    pub fn json(&self) -> Value {
        let mut left = TOTAL_MAX;
        let mut take = |text: &str, max: usize| {
            let cut = shorten(text, max.min(left));
            left -= cut.chars().count();
            cut
        };
        let title = take(&self.title, TITLE_MAX);
        let footer = take(&self.footer, FOOTER_MAX);
        let description = take(&self.description, DESCRIPTION_MAX);
        let mut fields = Vec::new();
        for (name, value, inline) in self.fields.iter().take(FIELDS_MAX) {
            // Neither may be empty; a zero-width space is how Discord's own clients say "nothing".
            let or_blank = |text: String| {
                if text.is_empty() {
                    "\u{200b}".to_owned()
                } else {
                    text
                }
            };
            let name = or_blank(take(name, NAME_MAX));
            let value = or_blank(take(value, VALUE_MAX));
            if name == "\u{200b}" && value == "\u{200b}" {
                break;
            }
            fields.push(json!({ "name": name, "value": value, "inline": inline }));
        }
        let mut embed = json!({ "title": title, "color": self.colour });
        if !description.is_empty() {
            embed["description"] = description.into();
        }
        if !fields.is_empty() {
            embed["fields"] = fields.into();
        }
        if !footer.is_empty() {
            embed["footer"] = json!({ "text": footer });
        }
        if let Some(url) = &self.thumbnail {
            embed["thumbnail"] = json!({ "url": url });
        }
        embed
    }
}

/// At most `max` characters, the last one an ellipsis when something was cut.
pub fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
    if max > 0 {
        cut.push('…');
    }
    cut
}

/// Text of a member, so that it cannot format, mention or link.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' | '*' | '_' | '~' | '`' | '|' | '>' | '#' | '[' | ']' | '(' | ')' | '<' | '-' => {
                out.push('\\');
                out.push(letter);
            }
            '@' => out.push_str("@\u{200b}"),
            '\n' | '\r' => out.push(' '),
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn length(value: &Value) -> usize {
        value.as_str().map_or(0, |text| text.chars().count())
    }

    proptest! {
        // Long texts take long to draw; the cuts do not depend on what they say.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn limits_hold_for_any_text(
            title in "\\PC{0,400}",
            description in "\\PC{0,5000}",
            footer in "\\PC{0,2500}",
            fields in prop::collection::vec(("\\PC{0,300}", "\\PC{0,1500}"), 0..30),
        ) {
            let mut panel = Panel::new(title, BLUE).description(description).footer(footer);
            for (name, value) in fields { panel = panel.field(name, value); }
            let embed = panel.json();
            let mut total = length(&embed["title"]) + length(&embed["description"]) + length(&embed["footer"]["text"]);
            prop_assert!(length(&embed["title"]) <= TITLE_MAX);
            prop_assert!(length(&embed["description"]) <= DESCRIPTION_MAX);
            let none = Vec::new();
            let fields = embed["fields"].as_array().unwrap_or(&none);
            prop_assert!(fields.len() <= FIELDS_MAX);
            for field in fields {
                prop_assert!((1..=NAME_MAX).contains(&length(&field["name"])));
                prop_assert!((1..=VALUE_MAX).contains(&length(&field["value"])));
                total += length(&field["name"]) + length(&field["value"]);
            }
            // Blank names and values are one character that was not there.
            prop_assert!(total <= TOTAL_MAX + 2);
        }
    }

    #[test]
    fn members_cannot_format_or_mention() {
        assert_eq!(
            plain("**@everyone** [x](y)\nz"),
            "\\*\\*@\u{200b}everyone\\*\\* \\[x\\]\\(y\\) z"
        );
    }
}
