//! Rows of Graphile Worker, in PostgreSQL.
