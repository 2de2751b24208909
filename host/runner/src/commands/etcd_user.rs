//! `leasehold etcd-user`: the user and the role that a host needs in etcd, as commands or created.

use leasehold::{CreatedUser, Grant, NewUser, Options, Source};
use leasehold_wasmtime::Names;
use serde::Serialize;

use super::{
    ls::END_TIMEOUT,
    output::{print, print_json},
    shell::Etcdctl,
};
use crate::{
    cli::{EtcdUserArgs, parse},
    config::{EtcdFiles, grants, values},
    connect,
    error::Failure,
};

/// The user, as `--json` shows it.
#[derive(Serialize)]
struct Report {
    user: String,
    role: String,
    grants: Vec<Right>,
    /// Commands that create it, in their order.
    commands: Vec<String>,
    /// Outcome of `--apply`; null without it.
    created: Option<Created>,
}

#[derive(Serialize)]
struct Right {
    access: String,
    prefix: String,
}

/// False for what was there before.
#[derive(Serialize)]
struct Created {
    user: bool,
    role: bool,
}

/// Prints the commands, or creates the user.
pub(crate) async fn etcd_user(args: EtcdUserArgs) -> Result<(), Failure> {
    if args.apply && args.new_password_file.is_none() && !args.no_password {
        return Err(Failure::usage(
            "--apply needs --new-password-file FILE; or --no-password, for a user that signs in by a client certificate",
        ));
    }
    let (options, files, grants) = needed(&args)?;
    let role = args.role.clone().unwrap_or_else(|| args.new_user.clone());
    let new = NewUser { name: args.new_user.clone(), password: password(&args)?, role, grants };
    let commands = commands(&Etcdctl::new(&options, &files), &new, args.no_password);
    let created = if args.apply { Some(create(&options, &new).await?) } else { None };
    if args.json {
        let right = |grant: &Grant| Right { access: grant.access.to_string(), prefix: grant.prefix.clone() };
        let created = created.map(|CreatedUser { user, role, .. }| Created { user, role });
        let grants = new.grants.iter().map(right).collect();
        return print_json(&Report { user: new.name, role: new.role, grants, commands, created });
    }
    match created {
        None => print(&commands.iter().map(|command| format!("{command}\n")).collect::<String>()),
        Some(created) => print(&text(&new, created)),
    }
}

/// The connection, and the rights that the arguments or the configuration ask for.
fn needed(args: &EtcdUserArgs) -> Result<(Options, EtcdFiles, Vec<Grant>), Failure> {
    let (mut options, files) = args.etcd.examined()?;
    if let Some(config) = args.etcd.config()? {
        if args.etcd.has_no_user() {
            // That of the configuration is the user to create, who cannot create itself.
            options.credentials = None;
        }
        if args.names.is_empty() && args.discover.is_empty() {
            let grants = grants::of_config(&config);
            return Ok((options, files, grants));
        }
    }
    if args.names.is_empty() && args.discover.is_empty() {
        return Err(Failure::usage("the services are missing: --names greeter,user, or --config FILE"));
    }
    let names = |flag: &str, listed: &[String]| -> Result<Names, Failure> {
        let parsed: Result<Vec<_>, _> = listed.iter().map(|name| parse(flag, name)).collect();
        parsed.map(values::names)
    };
    let (registered, looked_up) = (names("--names", &args.names)?, names("--discover", &args.discover)?);
    let grants = grants::of_names(&options.read_layouts(), registered, looked_up);
    Ok((options, files, grants))
}

fn password(args: &EtcdUserArgs) -> Result<Option<String>, Failure> {
    let Some(file) = &args.new_password_file else { return Ok(None) };
    let wrong = |message: String| Failure::usage(format!("--new-password-file: {message}"));
    let bytes = Source::from(file.clone()).read().map_err(|error| wrong(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong(format!("{} must be UTF-8", file.display())))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(wrong(format!("{} is empty", file.display()))),
        password => Ok(Some(password.to_owned())),
    }
}

/// The commands that do the same. etcdctl prompts for the password.
fn commands(etcdctl: &Etcdctl, new: &NewUser, no_password: bool) -> Vec<String> {
    let (user, role) = (new.name.as_str(), new.role.as_str());
    let mut commands = vec![etcdctl.words(&["role", "add", "--", role])];
    for grant in &new.grants {
        let access = grant.access.to_string();
        // Without a prefix, from the first key on.
        let range = if grant.prefix.is_empty() { "--from-key=true" } else { "--prefix=true" };
        commands.push(etcdctl.words(&["role", "grant-permission", range, "--", role, &access, &grant.prefix]));
    }
    let add = ["user", "add", "--no-password", "--", user];
    commands.push(if no_password { etcdctl.words(&add) } else { etcdctl.words(&["user", "add", "--", user]) });
    commands.push(etcdctl.words(&["user", "grant-role", "--", user, role]));
    commands
}

async fn create(options: &Options, new: &NewUser) -> Result<CreatedUser, Failure> {
    let registrar = connect::start(options)?;
    let created = registrar.create_user(new.clone()).await;
    let _ = registrar.shutdown(END_TIMEOUT).await; // The registrar holds nothing.
    created.map_err(|error| connect::failure(&error, options, None))
}

fn text(new: &NewUser, created: CreatedUser) -> String {
    let state = |is_new| if is_new { "created" } else { "was there, and its password is as before" };
    let role = if created.role { "created" } else { "was there" };
    let mut text = format!("user {} {}\nrole {} {role}\n", new.name, state(created.user), new.role);
    for grant in &new.grants {
        text.push_str(&format!("  {} {}\n", grant.access, grant.prefix));
    }
    text
}

#[cfg(test)]
mod tests {
    use leasehold::{Access, Grant, NewUser, Options};

    use super::{Etcdctl, commands};
    use crate::config::EtcdFiles;

    #[test]
    fn each_right_is_a_command_in_which_nothing_is_executed() {
        let grant = |access, prefix: &str| Grant { access, prefix: prefix.to_owned() };
        let new = NewUser {
            name: "host".to_owned(),
            password: None,
            role: "r".to_owned(),
            grants: vec![grant(Access::ReadWrite, "/$(x)/"), grant(Access::Read, "")],
        };
        let etcdctl = Etcdctl::new(&Options::new(["http://e:1"]), &EtcdFiles::default());
        let e = "etcdctl --endpoints=http://e:1";
        assert_eq!(
            commands(&etcdctl, &new, false),
            [
                format!("{e} role add -- r"),
                format!("{e} role grant-permission --prefix=true -- r readwrite '/$(x)/'"),
                format!("{e} role grant-permission --from-key=true -- r read ''"),
                format!("{e} user add -- host"),
                format!("{e} user grant-role -- host r"),
            ]
        );
        assert!(commands(&etcdctl, &new, true).contains(&format!("{e} user add --no-password -- host")));
    }
}
