//! Users and roles of etcd: what a host may read and write there.

use std::fmt;

use etcd_client::{Client, Permission, UserAddOptions};

use super::{Etcd, Failure, latency::Verb};

/// A right on all keys that begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// Kind of access.
    pub access: Access,
    /// Beginning of the keys; the empty one is that of every key.
    pub prefix: String,
}

/// Kind of access to keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Reading alone.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// The word of etcdctl.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::ReadWrite => "readwrite",
        })
    }
}

impl Grant {
    /// Returns true if this grant includes another one.
    pub fn covers(&self, other: &Self) -> bool {
        self.access >= other.access && other.prefix.starts_with(&self.prefix)
    }

    fn permission(&self) -> Permission {
        let permission = match self.access {
            Access::Read => Permission::read(self.prefix.clone()),
            Access::ReadWrite => Permission::read_write(self.prefix.clone()),
        };
        // The range of every key has an end of its own.
        if self.prefix.is_empty() { permission.with_all_keys() } else { permission.with_prefix() }
    }
}

/// A user with a role, as [`Registrar::create_user`](crate::Registrar::create_user) creates them.
#[derive(Clone)]
pub struct NewUser {
    /// Name of the user.
    pub name: String,
    /// Password of a user that does not exist yet; without one the user signs in by a client certificate of its name.
    pub password: Option<String>,
    /// Name of the role.
    pub role: String,
    /// Rights of the role.
    pub grants: Vec<Grant>,
}

/// Shows no password.
impl fmt::Debug for NewUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewUser").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// Outcome of [`Registrar::create_user`](crate::Registrar::create_user).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedUser {
    /// The user is new; otherwise its password was left alone.
    pub user: bool,
    /// The role is new; otherwise its other rights were left alone.
    pub role: bool,
}

impl Etcd {
    /// Creates a user and a role as far as they are missing, and gives the role its rights and the user the role.
    pub(crate) async fn create_user(&self, new: &NewUser) -> Result<CreatedUser, Failure> {
        let roles = self.auth(|mut client| async move { client.role_list().await }).await?;
        let has_role = roles.roles().contains(&new.role);
        if !has_role {
            let role = &new.role;
            self.auth(|mut client| async move { client.role_add(role.as_str()).await }).await?;
        }
        for grant in &new.grants {
            let (role, permission) = (&new.role, grant.permission());
            let give = |mut client: Client| {
                let permission = permission.clone();
                async move { client.role_grant_permission(role.as_str(), permission).await }
            };
            self.auth(give).await?;
        }
        let users = self.auth(|mut client| async move { client.user_list().await }).await?;
        let has_user = users.users().contains(&new.name);
        if !has_user {
            let password = new.password.as_deref().unwrap_or_default();
            let options = || new.password.is_none().then(|| UserAddOptions::new().with_no_pwd());
            let add = |mut client: Client| async move { client.user_add(new.name.as_str(), password, options()).await };
            self.auth(add).await?;
        }
        let give =
            |mut client: Client| async move { client.user_grant_role(new.name.as_str(), new.role.as_str()).await };
        self.auth(give).await?;
        Ok(CreatedUser { user: !has_user, role: !has_role })
    }

    async fn auth<T, F>(&self, make: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Never repeated: a user that was created would be there already.
        self.call(Verb::Write, self.request_timeout, make).await
    }
}
