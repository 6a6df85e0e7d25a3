//! Text for logs, in one line.

use std::{
    error::Error,
    fmt::{self, Write},
};

/// Formats a value in one line: line breaks and other control characters are escaped.
///
/// Names, labels and errors may contain text of a client, which must not forge a line of a log.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

/// Writes to a formatter, with control characters escaped.
struct Escape<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            write!(self.0, "{plain}{}", part[plain.len()..].escape_default())?;
        }
        Ok(())
    }
}

/// Formats an error and its causes, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Skips a cause that the text above already is or ends with, as many errors do.
        if !text.is_empty() && chain != text && !chain.ends_with(&format!(": {text}")) {
            chain = format!("{chain}: {text}");
        }
        cause = error.source();
    }
    OneLine(chain).to_string()
}

/// The first `most` bytes of a text, with an ellipsis if that is not all.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_escapes_control_characters_only() {
        for (text, line) in [
            ("", ""),
            ("\u{fc}ber", "\u{fc}ber"),
            ("left: 1\n right: 2\r\n", r"left: 1\n right: 2\r\n"),
            ("\u{1b}[31mred \"\\\u{85}", r#"\u{1b}[31mred "\\u{85}"#),
        ] {
            assert_eq!(OneLine(text).to_string(), line);
        }
    }
}
