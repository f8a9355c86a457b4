//! The claims of the demo: what is claimed, what was observed, and whether that is what was claimed.

use std::time::Duration;

use anyhow::bail;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use crate::front;

/// Claims in the order in which they were looked at.
#[derive(Debug, Default)]
pub(super) struct Claims {
    chapters: Vec<(&'static str, Vec<Claim>)>,
}

#[derive(Debug)]
struct Claim {
    text: String,
    observed: String,
    holds: bool,
}

impl Claims {
    /// Opens a chapter.
    pub(super) fn chapter(&mut self, title: &'static str) {
        eprintln!("\n{}", front::bold(title));
        self.chapters.push((title, Vec::new()));
    }

    /// Notes what was observed of a claim, and shows it at once.
    pub(super) fn observe(&mut self, holds: bool, text: impl Into<String>, observed: impl Into<String>) {
        let claim = Claim { text: text.into(), observed: observed.into(), holds };
        let mark = if claim.holds { front::green("✓") } else { front::red("✗") };
        eprintln!("  {mark} {}\n      {}", claim.text, claim.observed);
        match self.chapters.last_mut() {
            Some((_, claims)) => claims.push(claim),
            None => self.chapters.push(("", vec![claim])),
        }
    }

    /// Shows all of them as a table.
    pub(super) fn print(&self, took: Duration) {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["claim", "observed", ""]);
        for (chapter, claims) in &self.chapters {
            table.add_row([chapter.to_uppercase().as_str(), "", ""]);
            for claim in claims {
                table.add_row([claim.text.as_str(), claim.observed.as_str(), if claim.holds { "✓" } else { "✗" }]);
            }
        }
        let failed = self.failed();
        let all = self.chapters.iter().map(|(_, claims)| claims.len()).sum::<usize>();
        println!("\n{table}\n{} of {all} claims were observed, in {:.0} s", all - failed, took.as_secs_f32());
    }

    /// An error unless every claim holds, and there was one.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        match self.failed() {
            0 if self.chapters.iter().any(|(_, claims)| !claims.is_empty()) => Ok(()),
            0 => bail!("nothing was observed"),
            failed => bail!("{failed} claims were not observed"),
        }
    }

    fn failed(&self) -> usize {
        self.chapters.iter().flat_map(|(_, claims)| claims).filter(|claim| !claim.holds).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_needs_every_claim_and_at_least_one() {
        let mut claims = Claims::default();
        assert!(claims.verdict().is_err());
        claims.chapter("one");
        assert!(claims.verdict().is_err());
        claims.observe(true, "a", "seen");
        assert!(claims.verdict().is_ok());
        claims.observe(false, "b", "not seen");
        assert!(claims.verdict().is_err());
    }
}
