//! Chapters for readers. They contain no code.

#[doc = include_str!("middleware_order.md")]
pub mod middleware_order {}

#[doc = include_str!("response_end.md")]
pub mod response_end {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("performance.md")]
pub mod performance {}
