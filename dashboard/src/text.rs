//! Cutting and collecting texts, so that no text of the application takes much memory.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Maximum size of a name, a key or a request's label, in bytes.
pub(crate) const NAME: usize = 200;
/// Maximum size of a spawn location, in bytes.
pub(crate) const LOCATION: usize = 300;
/// Maximum size of an error text, in bytes.
pub(crate) const ERROR: usize = 2048;

const CUT: &str = "…";

/// Cuts a text to `max` bytes, on a character boundary. A cut text ends in `…`.
pub(crate) fn cut(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = (0..=max - CUT.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// Collects a text up to a size, and then refuses more, so that formatting ends early.
struct Bounded {
    text: String,
    max: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.text.len() > self.max {
            return Err(fmt::Error);
        }
        let room = self.max + 1 - self.text.len();
        let end = (0..=room.min(part.len())).rev().find(|end| part.is_char_boundary(*end));
        // One character more than fits shows that the text was cut.
        let end = if part.len() > room { end.map(|end| next_boundary(part, end)) } else { end };
        self.text.push_str(&part[..end.unwrap_or(0)]);
        Ok(())
    }
}

fn next_boundary(text: &str, at: usize) -> usize {
    (at + 1..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len())
}

/// Formats a value, up to `max` bytes. A panic of its code is contained.
pub(crate) fn shown(value: &dyn fmt::Display, max: usize) -> String {
    let formatted = catch_unwind(AssertUnwindSafe(|| {
        let mut bounded = Bounded { text: String::new(), max };
        // An error of formatting means a text that is too long, or a value that cannot be shown.
        match write!(bounded, "{value}") {
            Ok(()) | Err(fmt::Error) => bounded.text,
        }
    }));
    let text = formatted.unwrap_or_else(|_| "(the error's text panicked)".to_owned());
    cut(&text, max).into_owned()
}

/// Formats an error and its causes in one string, of at most `max` bytes.
pub(crate) fn chain(error: &(dyn Error + 'static), max: usize) -> String {
    let mut chain = shown(error, max);
    let mut cause = error.source();
    // Errors can have themselves as cause, so the depth is bounded too.
    for _ in 0..32 {
        let Some(error) = cause else { break };
        let text = shown(error, max);
        // Many errors end with the text of their cause.
        if !text.is_empty() && !chain.ends_with(&text) {
            chain = cut(&format!("{chain}: {text}"), max).into_owned();
        }
        if chain.len() >= max {
            break;
        }
        cause = error.source();
    }
    chain
}

/// A text to search for, without regard to case. The empty text is everywhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search(String);

impl Search {
    pub(crate) fn new(text: &str) -> Self {
        Self(cut(text.trim(), NAME).to_lowercase())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn finds(&self, text: &str) -> bool {
        self.is_empty() || text.to_lowercase().contains(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_on_character_boundary() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("aéééé", 8), "aéé…");
        for max in 3..40 {
            let text = cut("日本語のテキスト: a long one", max);
            assert!(text.len() <= max, "{text}");
        }
    }

    #[test]
    fn formatting_ends_once_text_is_full() {
        struct Endless<'a>(&'a std::cell::Cell<u32>);
        impl fmt::Display for Endless<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    self.0.set(self.0.get() + 1);
                    f.write_str("日本")?;
                }
            }
        }
        let writes = std::cell::Cell::new(0);
        let text = shown(&Endless(&writes), 100);
        assert!(text.len() <= 100 && text.ends_with('…') && writes.get() < 30, "{text}");
    }

    #[test]
    fn chain_has_each_cause_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error, &'static str);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.1)
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let io = || std::io::Error::other("disk full");
        assert_eq!(chain(&Outer(io(), "cannot save"), 100), "cannot save: disk full");
        assert_eq!(chain(&Outer(io(), "no: disk full"), 100), "no: disk full");
    }

    #[test]
    fn panic_in_error_text_is_contained() {
        struct Bad;
        impl fmt::Display for Bad {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("no text")
            }
        }
        assert_eq!(shown(&Bad, 100), "(the error's text panicked)");
    }
}
