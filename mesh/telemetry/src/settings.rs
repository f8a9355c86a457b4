//! Settings: a program's environment, read once and checked.
//!
//! Names and defaults are Istio's, so that Istio's charts start our programs unchanged; ours begin with `TROPIS_`. A setting that cannot
//! be read is an error that names it: a proxy that runs with half of what was asked for is worse than none. What a program can be told
//! is in its own `config.rs`.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use thiserror::Error;

/// A setting cannot be used. The program does not start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("setting {name}={found:?} is not {accepted}")]
pub struct InvalidSetting {
    /// The variable.
    pub name: &'static str,
    /// Its value.
    pub found: String,
    /// What it may be.
    pub accepted: &'static str,
}

/// More worker threads than this would be descriptors without gain: each has listeners of its own.
const MAX_WORKERS: usize = 64;

/// The variables of an environment.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a>(pub &'a BTreeMap<String, String>);

impl<'a> Variables<'a> {
    /// A variable's value; empty counts as unset, as it does in charts.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable's value, or `default`.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    /// A value of a type that reads itself.
    pub fn parsed<T: FromStr>(&self, name: &'static str, default: T, accepted: &'static str) -> Result<T, InvalidSetting> {
        let Some(found) = self.get(name) else { return Ok(default) };
        found.parse().map_err(|_| InvalidSetting { name, found: found.to_owned(), accepted })
    }

    /// `true` or `false`.
    pub fn boolean(&self, name: &'static str, default: bool) -> Result<bool, InvalidSetting> {
        self.parsed(name, default, "true or false")
    }

    /// A number with a unit: `ms`, `s`, `m` or `h`.
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, InvalidSetting> {
        let Some(found) = self.get(name) else { return Ok(default) };
        parse_duration(found).ok_or_else(|| InvalidSetting {
            name,
            found: found.to_owned(),
            accepted: "a duration with a unit (for example 500ms, 10s, 5m, 24h)",
        })
    }

    /// All variables that begin with `prefix`, without it.
    pub fn prefixed(&self, prefix: &'static str) -> impl Iterator<Item = (String, String)> + use<'a> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
    }

    /// How long to finish what is open: `CONNECTION_TERMINATION_DEADLINE`, or what `TERMINATION_GRACE_PERIOD_SECONDS` leaves.
    pub fn drain_limit(&self) -> Result<Duration, InvalidSetting> {
        let grace: u64 = self.parsed("TERMINATION_GRACE_PERIOD_SECONDS", 0, "a number of seconds")?;
        let left = match grace {
            0 => 5,
            1..=10 => (grace - 1).max(1),
            _ => grace - 5,
        };
        self.duration("CONNECTION_TERMINATION_DEADLINE", Duration::from_secs(left))
    }

    /// Threads that move bytes: `TROPIS_WORKERS`, or `percent_name` (a number, or `N%` of the cores). Istio's rule without either: a
    /// quarter of the cores, at least two, never more than there are.
    pub fn workers(&self, percent_name: &'static str) -> Result<usize, InvalidSetting> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let automatic = cores.div_ceil(4).max(2).min(cores);
        let Some(found) = self.get(percent_name) else {
            return Ok(self.parsed("TROPIS_WORKERS", automatic, "a number of threads")?.clamp(1, MAX_WORKERS));
        };
        let invalid =
            || InvalidSetting { name: percent_name, found: found.to_owned(), accepted: "a number of threads, or N% of the cores" };
        let wanted = match found.strip_suffix('%') {
            Some(percent) => (cores * percent.parse::<usize>().map_err(|_| invalid())?).div_ceil(100),
            None => found.parse().map_err(|_| invalid())?,
        };
        let wanted = if wanted == 0 { cores } else { wanted };
        Ok(self.parsed("TROPIS_WORKERS", wanted, "a number of threads")?.clamp(1, MAX_WORKERS))
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("5", None),
            ("x", None),
            ("5d", None),
        ] {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn empty_is_unset_and_a_bad_value_is_named() {
        let found = variables(&[("A", ""), ("B", "maybe"), ("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("TROPIS_WORKERS", "1000")]);
        let found = Variables(&found);
        assert_eq!(found.boolean("A", true), Ok(true));
        let error = found.boolean("B", true).unwrap_err();
        assert_eq!(error.to_string(), "setting B=\"maybe\" is not true or false");
        assert_eq!(found.drain_limit(), Ok(Duration::from_secs(25)));
        assert_eq!(found.workers("THREADS"), Ok(MAX_WORKERS));
    }
}
