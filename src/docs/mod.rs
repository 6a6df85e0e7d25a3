//! Chapters for readers. They contain no code.

#[doc = include_str!("../../docs/pictures/job.svg")]
#[doc = ""]
#[doc = include_str!("verbs.md")]
pub mod verbs {}

#[doc = include_str!("migration.md")]
pub mod migration {}

#[doc = include_str!("../../docs/pictures/layers.svg")]
#[doc = ""]
#[doc = include_str!("middleware_order.md")]
pub mod middleware_order {}

#[doc = include_str!("../../docs/pictures/response.svg")]
#[doc = ""]
#[doc = include_str!("response_end.md")]
pub mod response_end {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("performance.md")]
pub mod performance {}
