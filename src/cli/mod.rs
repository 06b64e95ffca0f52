//! The command line: the service and its client in one binary.
//!
//! Data goes to standard output, talk to standard error. A new command is a module, a variant of [`Command`] and a line in
//! [`Command::run`]. `serve` and `migrate` bring their own flags; every other command takes [`client::ClientArgs`].

mod allocations;
mod client;
mod completions;
mod error;
mod find;
mod health;
pub mod migrate;
mod output;
mod request;
pub mod serve;
mod servers;
mod servers_file;
mod servers_set;
mod watch;
mod watch_text;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::{
    allocations::{EnsureArgs, GetArgs, ListArgs, ReleaseArgs},
    client::{ClientArgs, OutputFormat, block_on},
    completions::CompletionsArgs,
    error::{CliError, EXIT_CODES_HELP, EXIT_DONE},
    find::FindArgs,
    health::HealthArgs,
    migrate::MigrateArgs,
    serve::ServeArgs,
    servers::ServersArgs,
    watch::WatchArgs,
};

/// Gives software projects a place to run: a server, its capacity and one port per module
#[derive(Debug, Parser)]
#[command(name = "resource-allocator", version, propagate_version = true, after_help = EXIT_CODES_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "parsed once in the life of the process")]
enum Command {
    /// Place a project on a server, once, and give every module of it a port
    #[command(after_help = EXIT_CODES_HELP)]
    Ensure(EnsureArgs),
    /// Give back a project's ports, all or by module
    #[command(after_help = EXIT_CODES_HELP)]
    Release(ReleaseArgs),
    /// List allocations by project, server or module
    #[command(after_help = EXIT_CODES_HELP)]
    List(ListArgs),
    /// Show one project's placement and ports
    #[command(after_help = EXIT_CODES_HELP)]
    Get(GetArgs),
    /// Show which server an ensure would choose now, and why not the others
    #[command(after_help = EXIT_CODES_HELP)]
    Find(FindArgs),
    /// Follow the progress events, one line each
    #[command(after_help = EXIT_CODES_HELP)]
    Watch(WatchArgs),
    /// Keep the inventory of servers
    #[command(after_help = EXIT_CODES_HELP)]
    Servers(ServersArgs),
    /// Ask whether the service serves: exit code 0 for SERVING, 1 for NOT_SERVING, 5 when it cannot be reached
    Health(HealthArgs),
    /// Bring the database's schema up to date
    Migrate(MigrateArgs),
    /// Run the service
    Serve(ServeArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

/// Parses the command line and runs what it asks for.
#[must_use]
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    let output = command.client().map_or(OutputFormat::Text, |client| client.output);
    match command.run() {
        Ok(()) => ExitCode::from(EXIT_DONE),
        Err(error) => {
            error.tell(output);
            ExitCode::from(error.exit_code())
        }
    }
}

impl Command {
    /// The flags of a client command; nothing for the others.
    fn client(&self) -> Option<&ClientArgs> {
        match self {
            Self::Ensure(args) => Some(&args.client),
            Self::Release(args) => Some(&args.client),
            Self::List(args) => Some(&args.client),
            Self::Get(args) => Some(&args.client),
            Self::Find(args) => Some(&args.client),
            Self::Watch(args) => Some(&args.client),
            Self::Servers(args) => Some(&args.client),
            Self::Health(args) => Some(&args.client),
            Self::Migrate(_) | Self::Serve(_) | Self::Completions(_) => None,
        }
    }

    fn run(self) -> Result<(), CliError> {
        match self {
            Self::Ensure(args) => block_on(allocations::ensure(args)),
            Self::Release(args) => block_on(allocations::release(args)),
            Self::List(args) => block_on(allocations::list(args)),
            Self::Get(args) => block_on(allocations::get(args)),
            Self::Find(args) => block_on(find::find(args)),
            Self::Watch(args) => block_on(watch::watch(args)),
            Self::Servers(args) => block_on(servers::servers(args)),
            Self::Health(args) => block_on(health::health(args)),
            Self::Migrate(args) => Ok(migrate::run(args)?),
            Self::Serve(args) => Ok(serve::run(args)?),
            Self::Completions(args) => completions::completions(&args, Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    fn help(command: &str) -> String {
        let mut cli = Cli::command();
        cli.build();
        cli.find_subcommand_mut(command).unwrap().render_long_help().to_string()
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn client_flags_stand_after_any_client_command() {
        for line in [
            "resource-allocator list -o json",
            "resource-allocator ensure shop backend --output json --timeout 2m",
            "resource-allocator servers --output json list",
            "resource-allocator servers list --output json --endpoint http://allocator:1",
        ] {
            let command = parse(line).unwrap();
            assert_eq!(command.client().unwrap().output, OutputFormat::Json, "{line}");
        }
    }

    #[test]
    fn client_flags_are_not_the_services() {
        for command in ["serve", "migrate", "completions"] {
            assert!(!help(command).contains("--endpoint"), "{command}");
        }
        assert!(help("ensure").contains("RESOURCE_ALLOCATOR_ENDPOINT"));
        assert!(help("ensure").contains("Exit codes:"));
    }

    #[test]
    fn wrong_usage_is_told_before_any_call() {
        for line in [
            "resource-allocator ensure",
            "resource-allocator ensure shop a:http",
            "resource-allocator ensure shop --ram-mb much",
            "resource-allocator ensure shop --endpoint allocator:50051",
            "resource-allocator list --limit 5 --all-pages",
            "resource-allocator watch --from-beginning --resume-token t",
            "resource-allocator servers register web-1 --ram-mb 5",
            "resource-allocator servers set web-1",
            "resource-allocator servers set web-1 colour=red",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
