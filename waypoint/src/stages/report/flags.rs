//! Envoy's response flags: short words in the access log and in the label `response_flags`.

use std::fmt;

/// A set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

macro_rules! flags {
    ($($name:ident $bit:literal $word:literal $meaning:literal)*) => {
        impl Flags {
            $(#[doc = $meaning] pub const $name: Self = Self(1 << $bit);)*
            const WORDS: &[(Self, &str)] = &[$((Self::$name, $word),)*];
        }
    };
}

flags! {
    NO_HEALTHY_UPSTREAM 0 "UH" "No endpoint that may be used."
    UPSTREAM_CONNECTION_FAILURE 1 "UF" "No connection to the endpoint."
    OVERFLOW 2 "UO" "A limit of the pool, or ours."
    NO_ROUTE 3 "NR" "No route, or nothing that is attached here."
    RETRIES_EXHAUSTED 4 "URX" "Tried as often as the route allows."
    NO_CLUSTER 5 "NC" "The route names a pool that does not exist."
    DOWNSTREAM_CLOSED 6 "DC" "The caller went away."
    UPSTREAM_TIMEOUT 7 "UT" "The route's time, or a try's, ran out."
    UPSTREAM_RESET 8 "UR" "The endpoint reset the request."
    UPSTREAM_CLOSED 9 "UC" "The endpoint closed the connection."
    DELAY_INJECTED 10 "DI" "The route's fault waited."
    FAULT_INJECTED 11 "FI" "The route's fault answered."
    DOWNSTREAM_PROTOCOL_ERROR 12 "DPE" "The request is malformed or ambiguous."
    UPSTREAM_PROTOCOL_ERROR 13 "UPE" "The response is malformed."
}

impl Flags {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The word, when there is no more than one flag: no text is made for what is common.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::NONE => Some("-"),
            _ => Self::WORDS.iter().find(|(flag, _)| *flag == self).map(|(_, word)| *word),
        }
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("-");
        }
        let mut first = true;
        for (_, word) in Self::WORDS.iter().filter(|(flag, _)| self.0 & flag.0 != 0) {
            write!(f, "{}{word}", if first { "" } else { "," })?;
            first = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_joined_and_none_is_a_dash() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!(Flags::UPSTREAM_CONNECTION_FAILURE.with(Flags::RETRIES_EXHAUSTED).to_string(), "UF,URX");
        assert_eq!((Flags::OVERFLOW.word(), Flags::NONE.word()), (Some("UO"), Some("-")));
        assert_eq!(Flags::OVERFLOW.with(Flags::NO_ROUTE).word(), None);
    }
}
