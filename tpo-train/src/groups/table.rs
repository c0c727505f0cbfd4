//! Resolved groups as a table.

use std::fmt;

use super::{ResolvedGroups, ResolvedParam};

const HEADER: [&str; 6] = [
    "group",
    "tensors",
    "parameters",
    "learning rate",
    "weight decay",
    "no decay",
];

impl fmt::Display for ResolvedGroups {
    /// One row per group and one for the frozen rest; groups whose matrices Muon moves say so.
    /// `parameters` are values; `no decay` is the
    /// number of tensors that the group's weight decay spares.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADER.map(String::from)];
        for group in &self.groups {
            let spared = group.params.iter().filter(|p| !p.decays()).count();
            rows.push([
                match group.muon {
                    Some(_) => format!("{} (Muon)", group.name),
                    None => group.name.clone(),
                },
                thousands(group.num_tensors()),
                thousands(group.num_parameters()),
                format!("{:e}", group.learning_rate),
                group.weight_decay.map_or("-".into(), |d| d.to_string()),
                thousands(spared),
            ]);
        }
        rows.push([
            "(frozen)".into(),
            thousands(self.frozen.len()),
            thousands(self.frozen.iter().map(ResolvedParam::num_values).sum()),
            "-".into(),
            "-".into(),
            "-".into(),
        ]);
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max();
        let widths: Vec<usize> = (0..HEADER.len()).map(|c| width(c).unwrap_or(0)).collect();
        for (i, row) in rows.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{:<1$}", row[0], widths[0])?;
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn separators() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (41943040, "41,943,040"),
        ] {
            assert_eq!(thousands(n), text);
        }
    }
}
