//! The compiler's texts for frequent mistakes with `tower-jobs`: see `tests/mistakes`.
