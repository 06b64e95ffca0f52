//! The command line: the service and its client in one binary.
//!
//! Data goes to standard output, talk to standard error. A new command is a module, a variant of `Command` and a line in
//! `Command::run`. `serve`, `migrate`, `audit`, `token` and `completions` bring their own flags; every other command takes
//! `ClientArgs`.

mod allocations;
mod audit;
mod client;
mod completions;
mod credentials;
mod duration;
mod error;
mod find;
mod health;
pub mod migrate;
mod node_exporter;
mod node_list;
mod node_metrics;
mod nodes;
mod output;
mod relocations;
mod request;
pub mod serve;
mod servers;
mod servers_drain;
mod servers_file;
mod servers_observe;
mod servers_policy;
mod servers_set;
mod servers_sync;
mod token;
mod wait;
mod waiting;
mod watch;
mod watch_text;

use std::process::ExitCode;

use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
    error::ErrorKind, parser::ValueSource,
};

use self::{
    allocations::{EnsureArgs, GetArgs, ListArgs, ReleaseArgs},
    audit::AuditArgs,
    client::{ClientArgs, OutputFormat, block_on},
    completions::CompletionsArgs,
    error::{CliError, EXIT_CODES_HELP, EXIT_DONE},
    find::FindArgs,
    health::HealthArgs,
    migrate::MigrateArgs,
    relocations::{PortInUseArgs, RelocateArgs},
    serve::ServeArgs,
    servers::ServersArgs,
    token::TokenArgs,
    waiting::WaitingArgs,
    watch::WatchArgs,
};

/// Gives software projects a place to run: a server, its capacity and one port per module
#[derive(Debug, Parser)]
#[command(name = "resource-allocator", version, propagate_version = true, after_help = EXIT_CODES_HELP)]
struct Cli {
    /// How to reach the service.
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
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
    /// Move a project to another server, with all that it holds
    #[command(after_help = EXIT_CODES_HELP)]
    Relocate(RelocateArgs),
    /// Report a module's port that something else uses on its host, and get another
    #[command(after_help = EXIT_CODES_HELP)]
    PortInUse(PortInUseArgs),
    /// List those who stand in line for capacity
    #[command(after_help = EXIT_CODES_HELP)]
    Waiting(WaitingArgs),
    /// Follow the progress events, one line each
    #[command(after_help = EXIT_CODES_HELP)]
    Watch(WatchArgs),
    /// Keep the inventory of servers
    #[command(after_help = EXIT_CODES_HELP)]
    Servers(ServersArgs),
    /// Ask whether the service serves: exit code 0 when it does, 1 when it does not, 5 when it cannot be reached
    Health(HealthArgs),
    /// Bring the database's schema up to date
    Migrate(MigrateArgs),
    /// Check that the database is what its log says: fold the log, count every sum, make every decision again
    ///
    /// It changes nothing. Exit code 1 when something differs, each told by name.
    Audit(Box<AuditArgs>),
    /// Run the service
    Serve(Box<ServeArgs>),
    /// Make tokens for callers
    Token(TokenArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

/// Parses the command line and runs what it asks for.
#[must_use]
pub fn run() -> ExitCode {
    let matches = tree().get_matches();
    let mut command = command_of(&matches).unwrap_or_else(|error| error.exit());
    let output = command.client().map_or(OutputFormat::Text, |client| client.output);
    match command.run() {
        Ok(()) => ExitCode::from(EXIT_DONE),
        Err(error) => {
            error.tell(output);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The command line as clap takes it. Client flags are global within `servers`; at the top they are not, nor is their
/// environment read there, since `serve` would be concerned too.
fn tree() -> clap::Command {
    Cli::command().mut_args(|flag| flag.global(false).env(Resettable::Reset))
}

/// What to run. Client flags may stand before a client command as well as after it, where they count more.
fn command_of(matches: &ArgMatches) -> Result<Command, clap::Error> {
    let Cli { client: before, mut command } = Cli::from_arg_matches(matches)?;
    let given = |matches: &ArgMatches, flag| matches.value_source(flag) == Some(ValueSource::CommandLine);
    let mut flags = client::FLAGS.into_iter().filter(|flag| given(matches, flag));
    match (command.client(), matches.subcommand()) {
        (Some(client), Some((_, matches))) => {
            flags.filter(|flag| !given(matches, flag)).for_each(|flag| client.take(flag, &before));
        }
        _ => {
            if let Some(flag) = flags.next() {
                let message = format!("--{} is a flag of the client commands", flag.replace('_', "-"));
                return Err(tree().error(ErrorKind::ArgumentConflict, message));
            }
        }
    }
    Ok(command)
}

impl Command {
    /// The flags of a client command; nothing for the others.
    fn client(&mut self) -> Option<&mut ClientArgs> {
        match self {
            Self::Ensure(args) => Some(&mut args.client),
            Self::Release(args) => Some(&mut args.client),
            Self::List(args) => Some(&mut args.client),
            Self::Get(args) => Some(&mut args.client),
            Self::Find(args) => Some(&mut args.client),
            Self::Relocate(args) => Some(&mut args.client),
            Self::PortInUse(args) => Some(&mut args.client),
            Self::Waiting(args) => Some(&mut args.client),
            Self::Watch(args) => Some(&mut args.client),
            Self::Servers(args) => Some(&mut args.client),
            Self::Health(args) => Some(&mut args.client),
            Self::Migrate(_) | Self::Audit(_) | Self::Serve(_) | Self::Token(_) | Self::Completions(_) => {
                None
            }
        }
    }

    fn run(self) -> Result<(), CliError> {
        match self {
            Self::Ensure(args) => block_on(allocations::ensure(args)),
            Self::Release(args) => block_on(allocations::release(args)),
            Self::List(args) => block_on(allocations::list(args)),
            Self::Get(args) => block_on(allocations::get(args)),
            Self::Find(args) => block_on(find::find(args)),
            Self::Relocate(args) => block_on(relocations::relocate(args)),
            Self::PortInUse(args) => block_on(relocations::port_in_use(args)),
            Self::Waiting(args) => block_on(waiting::waiting(args)),
            Self::Watch(args) => block_on(watch::watch(args)),
            Self::Servers(args) => block_on(servers::servers(args)),
            Self::Health(args) => block_on(health::health(args)),
            Self::Migrate(args) => Ok(migrate::run(&args)?),
            Self::Audit(args) => audit::run(&args),
            Self::Serve(args) => Ok(serve::run(*args)?),
            Self::Token(args) => token::token(&args),
            Self::Completions(args) => completions::completions(&args, tree()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        command_of(&tree().try_get_matches_from(line.split(' '))?)
    }

    fn help(command: &str) -> String {
        let mut cli = tree();
        cli.build();
        cli.find_subcommand_mut(command).unwrap().render_long_help().to_string()
    }

    #[test]
    fn the_command_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn client_flags_stand_before_and_after_any_client_command() {
        for line in [
            "resource-allocator -o json list",
            "resource-allocator -o text list -o json",
            "resource-allocator -o json servers list",
            "resource-allocator -o text servers list -o json",
            "resource-allocator list -o json",
            "resource-allocator ensure shop backend --output json --timeout 2m",
            "resource-allocator servers --output json list",
            "resource-allocator servers list --output json --endpoint http://allocator:1",
        ] {
            let mut command = parse(line).unwrap();
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
            "resource-allocator --endpoint http://allocator:1 serve",
            "resource-allocator list --limit 5 --all-pages",
            "resource-allocator watch --from-beginning --resume-token t",
            "resource-allocator servers register web-1 --ram-mb 5",
            "resource-allocator servers set web-1",
            "resource-allocator servers set web-1 colour=red",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_resume_token_may_begin_with_a_hyphen() {
        assert!(parse("resource-allocator watch --resume-token -MxyIn19 --output json").is_ok());
        // Without a token, what follows is not lost.
        let error = parse("resource-allocator watch --resume-token --output json").unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_duration_that_no_clock_can_add_is_wrong_usage() {
        let sync = "resource-allocator servers sync --source rack --from node-exporter http://a:1";
        // The longest that humantime reads: more seconds than an `i64` counts.
        let longest = "500000000000y";
        for (line, bound) in [
            ("resource-allocator list --timeout", "24h"),
            ("resource-allocator ensure shop --wait", "24h"),
            (&format!("{sync} --interval"), "24h"),
            (&format!("{sync} --scrape-timeout"), "24h"),
            ("resource-allocator serve --keepalive-interval", "1000 years"),
            ("resource-allocator serve --keepalive-timeout", "1000 years"),
            ("resource-allocator serve --max-connection-age", "1000 years"),
            ("resource-allocator serve --max-connection-age-grace", "1000 years"),
            ("resource-allocator serve --tls-handshake-timeout", "1000 years"),
            ("resource-allocator serve --drain-timeout", "1000 years"),
            ("resource-allocator serve --watch-stall-limit", "1000 years"),
            ("resource-allocator serve --event-max-age", "1000 years"),
            ("resource-allocator serve --usage-max-age", "1000 years"),
            ("resource-allocator serve --port-rest", "1000 years"),
            ("resource-allocator serve --port-set-aside", "1000 years"),
        ] {
            for duration in ["12000y", longest] {
                let error = parse(&format!("{line} {duration}")).unwrap_err();
                assert_eq!(error.exit_code(), 2, "{line}");
                assert!(error.to_string().contains(&format!("must be at most {bound}")), "{line}: {error}");
            }
            let most = if bound == "24h" { "24h" } else { "1000y" };
            assert!(parse(&format!("{line} {most}")).is_ok(), "{line}");
        }
    }
}
