//! Rows of apalis-sqlite, in an SQLite file.
