//! `token`: makes tokens for the file of `serve --auth-tokens`.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{error::CliError, output};
use crate::auth::{Credentials, Role, Token};

/// Arguments of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token: print it once on standard output, and its entry for the file on standard error
    New(NewArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// Who is going to call with it; the events and the log have this name
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What it is for: viewer, worker, operator or admin
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// What the projects of a worker begin with, such as shop-; may be repeated [default: any]
    #[arg(long = "project", value_name = "PREFIX")]
    projects: Vec<String>,
    /// Until when it counts, such as 2027-01-31T00:00:00Z [default: for good]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    expires: Option<toml::value::Datetime>,
}

fn moment(text: &str) -> Result<toml::value::Datetime, String> {
    let wrong = |_| "a moment is written 2027-01-31T00:00:00Z".to_owned();
    OffsetDateTime::parse(text, &Rfc3339).map_err(wrong)?;
    text.parse().map_err(|_| "a moment is written 2027-01-31T00:00:00Z".to_owned())
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    sha256: String,
    role: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    projects: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<toml::value::Datetime>,
}

#[derive(Serialize)]
struct File<'a> {
    tokens: [Entry<'a>; 1],
}

/// Makes what was asked for.
///
/// # Errors
/// When the entry would not be taken, or the system has no randomness.
pub fn token(args: &TokenArgs) -> Result<(), CliError> {
    let TokenCommand::New(new) = &args.command;
    let made = Token::new().ok().context("the system has no randomness")?;
    let entry = Entry {
        name: &new.name,
        sha256: made.hash(),
        role: new.role.as_str(),
        projects: &new.projects,
        expires: new.expires,
    };
    let file = toml::to_string(&File { tokens: [entry] }).context("writing the entry")?;
    Credentials::parse(file.as_bytes()).map_err(|error| CliError::Usage(error.to_string()))?;
    output::print_text(made.expose())?;
    anstream::eprintln!("{file}");
    Ok(())
}
