//! How far the end is.

/// The steps of the end, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Open,
    /// Nothing new is claimed.
    Stopping,
    /// The time to settle is over.
    Over,
}
