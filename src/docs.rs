//! Chapters for readers: nothing here is code.

#[doc = include_str!("docs/middleware_order.md")]
pub mod middleware_order {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}
