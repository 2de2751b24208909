//! Users and simple tokens of the simulated etcd: pure, with time as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

use super::failure::Failure;

/// Lifetime of an unused simple token in etcd.
pub(crate) const TOKEN_TTL: Duration = Duration::from_secs(300);

/// Users and tokens; without a user, authentication is off.
#[derive(Debug)]
pub(crate) struct Auth {
    users: BTreeMap<String, String>,
    tokens: BTreeMap<String, Duration>,
    token_ttl: Duration,
    issued: u64,
}

impl Auth {
    pub(crate) fn new() -> Self {
        Self { users: BTreeMap::new(), tokens: BTreeMap::new(), token_ttl: TOKEN_TTL, issued: 0 }
    }

    pub(crate) fn enable(&mut self, user: &str, password: &str, token_ttl: Duration) {
        self.users.insert(user.to_owned(), password.to_owned());
        self.token_ttl = token_ttl;
    }

    pub(crate) fn set_password(&mut self, user: &str, password: &str) {
        let known = self.users.get_mut(user).expect("the user is known");
        password.clone_into(known);
        self.tokens.clear();
    }

    pub(crate) fn forget_tokens(&mut self) {
        self.tokens.clear();
    }

    pub(crate) fn authenticate(
        &mut self,
        user: &str,
        password: &str,
        rng: &mut Rng,
        now: Duration,
    ) -> Result<String, Failure> {
        if self.users.is_empty() {
            return Err(Failure::AuthNotEnabled);
        }
        if self.users.get(user).is_none_or(|known| known != password) {
            return Err(Failure::WrongPassword);
        }
        self.issued += 1;
        let prefix: String = (0..16).map(|_| rng.alphabetic()).collect();
        let token = format!("{prefix}.{}", self.issued);
        self.tokens.insert(token.clone(), now + self.token_ttl);
        Ok(token)
    }

    /// Checks the token of a lease request: it may be missing, but not wrong. Every use prolongs it.
    pub(crate) fn check_given(&mut self, token: Option<&str>, now: Duration) -> Result<(), Failure> {
        self.tokens.retain(|_, deadline| *deadline >= now);
        match token {
            Some(token) if !self.users.is_empty() => {
                let deadline = self.tokens.get_mut(token).ok_or(Failure::InvalidToken)?;
                *deadline = now + self.token_ttl;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Checks the token of a key request: it must be valid.
    pub(crate) fn check(&mut self, token: Option<&str>, now: Duration) -> Result<(), Failure> {
        self.check_given(token, now)?;
        if token.is_none() && !self.users.is_empty() {
            return Err(Failure::NoUser);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let mut rng = Rng::with_seed(1);
        let mut auth = Auth::new();
        assert_eq!(auth.check(None, SECOND), Ok(()));
        auth.enable("root", "secret", 5 * SECOND);
        let wrong = auth.authenticate("root", "guess", &mut rng, SECOND);
        assert_eq!(wrong, Err(Failure::WrongPassword));
        let token = auth.authenticate("root", "secret", &mut rng, SECOND).unwrap();
        assert_eq!(auth.check(Some(&token), 5 * SECOND), Ok(()));
        assert_eq!(auth.check(Some(&token), 10 * SECOND), Ok(()));
        let late = auth.check(Some(&token), 16 * SECOND);
        assert_eq!(late, Err(Failure::InvalidToken));
        assert_eq!(auth.check(None, SECOND), Err(Failure::NoUser));
        assert_eq!(auth.check_given(None, SECOND), Ok(()));
    }
}
