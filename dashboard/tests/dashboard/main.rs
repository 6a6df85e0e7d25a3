//! The dashboard as its clients see it: over TCP.

mod actions;
mod api;
mod client;
mod events;
mod page;
mod tabs;
