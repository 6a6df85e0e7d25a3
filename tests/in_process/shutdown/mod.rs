//! The end of a server and of its jobs, under one deadline.

mod deadline;
mod other_servers;
