//! Which bearer tokens are good: `token-of-<client>`, and after a revocation the next one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PREFIX: &str = "token-of-";

/// How often the tokens of each client were revoked.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<BTreeMap<String, u64>>);

impl Tokens {
    /// The one token of a client that is good now.
    pub(super) fn of(&self, client: &str) -> String {
        match self.revoked(client) {
            0 => format!("{PREFIX}{client}"),
            times => format!("{PREFIX}{client}.{times}"),
        }
    }

    /// All tokens that a client has had are bad from now on.
    pub(super) fn revoke(&self, client: &str) {
        *self.held().entry(client.to_owned()).or_default() += 1;
    }

    /// The client with this token, if it is good.
    pub(super) fn client(&self, token: &str) -> Option<String> {
        let name = token.strip_prefix(PREFIX)?.split('.').next()?;
        (self.of(name) == token).then(|| name.to_owned())
    }

    fn revoked(&self, client: &str) -> u64 {
        self.held().get(client).copied().unwrap_or(0)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_token_is_nobodys_and_the_next_one_is_good() {
        let tokens = Tokens::default();
        let first = tokens.of("a");
        assert_eq!(tokens.client(&first).as_deref(), Some("a"));
        tokens.revoke("a");
        assert_eq!(tokens.client(&first), None);
        assert_eq!(tokens.client(&tokens.of("a")).as_deref(), Some("a"));
        assert_eq!(tokens.client(&tokens.of("b")).as_deref(), Some("b"));
        assert_eq!(tokens.client("a"), None);
    }
}
