//! Tables in markdown.

use std::fmt;

/// A table in markdown: the first column is text, the others are figures.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns, and no row yet.
    pub fn new<C: Into<String>>(columns: impl IntoIterator<Item = C>) -> Self {
        let mut table = Self { rows: Vec::new() };
        table.row(columns);
        table
    }

    /// Adds a row.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        let [columns, cells] = [self.rows.first(), self.rows.last()].map(|row| row.map(Vec::len));
        assert_eq!(columns, cells, "a cell for each column of {:?}", self.rows[0]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.rows.iter().enumerate() {
            writeln!(f, "| {} |", row.join(" | "))?;
            if number == 0 {
                writeln!(f, "|---|{}", "---:|".repeat(row.len() - 1))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_at_the_right() {
        let mut table = Table::new(["", "ns"]);
        table.row(["`JoinSet`", "12"]);
        assert_eq!(table.to_string(), "|  | ns |\n|---|---:|\n| `JoinSet` | 12 |\n");
    }

    #[test]
    #[should_panic(expected = r#"a cell for each column of ["", "ns"]"#)]
    fn a_row_is_as_long_as_the_first() {
        Table::new(["", "ns"]).row(["12"]);
    }
}
