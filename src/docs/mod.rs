//! Chapters for readers: nothing here is code.

#[doc = include_str!("middleware_order.md")]
pub mod middleware_order {}

#[doc = include_str!("testing.md")]
pub mod testing {}
