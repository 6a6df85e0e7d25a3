//! Lines for standard error, where neither `tracing` nor `log` would show a failure.

use std::{
    collections::VecDeque,
    io::{self, Write},
    mem,
    sync::{Arc, Mutex},
};

use crate::{run::hooks::Hooks, util::sync::lock_std};

/// Lines that wait while standard error does not take them. Later ones are counted only.
const MAX_WAITING: usize = 1000;

/// Returns whether an event would be lost: no subscriber was ever set up, and no logger.
pub(super) fn is_last_resort() -> bool {
    !tracing::dispatcher::has_been_set() && log::max_level() == log::LevelFilter::Off
}

/// Writes lines on a plain thread, since standard error may be a pipe that is full.
#[derive(Clone, Default)]
pub(crate) struct StandardError(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    left_out: u64,
    is_writing: bool,
}

impl StandardError {
    pub(super) fn write(&self, line: String, hooks: &Hooks) {
        let mut state = lock_std(&self.0);
        if state.waiting.len() == MAX_WAITING {
            state.left_out += 1;
            return;
        }
        state.waiting.push_back(line);
        if mem::replace(&mut state.is_writing, true) {
            return;
        }
        drop(state);
        let lines = self.clone();
        hooks.run(None, move || while lines.write_next(&mut io::stderr()) {});
    }

    /// Writes the next line. Returns whether there was one.
    fn write_next(&self, to: &mut impl Write) -> bool {
        let mut state = lock_std(&self.0);
        let line = match state.waiting.pop_front() {
            Some(line) => line,
            None if state.left_out > 0 => {
                format!("tower-jobs: {} failures more", mem::take(&mut state.left_out))
            }
            None => {
                state.is_writing = false;
                return false;
            }
        };
        drop(state);
        // In one write, so that a panic's own message does not come between. If it fails, there is nothing left
        // to tell it to.
        to.write_all(format!("{line}\n").as_bytes()).ok();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(lines: usize) -> StandardError {
        // No thread writes meanwhile.
        let state = State { is_writing: true, ..State::default() };
        let error = StandardError(Arc::new(Mutex::new(state)));
        let hooks = Hooks::default();
        (0..lines).for_each(|number| error.write(number.to_string(), &hooks));
        error
    }

    fn written(error: &StandardError) -> Vec<String> {
        let mut bytes = Vec::new();
        while error.write_next(&mut bytes) {}
        let text = String::from_utf8(bytes).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_written_in_order() {
        let error = waiting(3);
        assert_eq!(written(&error), ["0", "1", "2"]);
        assert!(!lock_std(&error.0).is_writing);
    }

    #[test]
    fn lines_beyond_the_bound_are_counted() {
        let lines = written(&waiting(MAX_WAITING + 7));
        assert_eq!(lines.len(), MAX_WAITING + 1);
        assert_eq!(lines[MAX_WAITING], "tower-jobs: 7 failures more");
    }

    #[test]
    fn line_is_one_write() {
        struct Writes(Vec<Vec<u8>>);
        impl Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.push(bytes.to_vec());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (error, mut writes) = (waiting(2), Writes(Vec::new()));
        while error.write_next(&mut writes) {}
        assert_eq!(writes.0, [b"0\n", b"1\n"]);
    }

    #[test]
    fn closed_standard_error_is_no_panic() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = waiting(1);
        assert!(error.write_next(&mut Closed));
        assert!(!error.write_next(&mut Closed));
    }
}
