use std::fmt::{self, Write};

/// Shows a value in one line: its line breaks, and other control characters, are escaped. What goes to
/// a log may be anybody's text, and must not look like a line of its own there.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_controls_a_terminal_is_escaped() {
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
