//! `servers`: the inventory's commands on one server, and the list of all. Files are `servers_file`'s, changes of single
//! fields `servers_set`'s, lists of a source `servers_sync`'s.

use clap::{Args, Subcommand};

use super::{
    allocations::PageArgs,
    client::{ClientArgs, Session},
    error::CliError,
    output::{self, servers_table},
    request::parse_label,
    servers_drain::{self, DrainArgs},
    servers_file::{self, ApplyArgs},
    servers_policy::{self, PolicyArgs},
    servers_set::{self, SetArgs},
    servers_sync::{self, SyncArgs},
};
use crate::{
    domain::resources::Resource,
    inventory_file::{parse_port_range, parse_status},
    policy_figure::{PolicyFigure, overcommit},
    proto::v1::{
        DeleteServerRequest, GetServerRequest, ListServersRequest, ListServersResponse, Percentages,
        PortRange, RegisterServerRequest, Resources, Server, ServerStatus, UsageObserver,
    },
};

/// Arguments of `servers`.
#[derive(Debug, Args)]
pub struct ServersArgs {
    #[command(subcommand)]
    command: ServersCommand,
    /// How to reach the service.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum ServersCommand {
    /// Register one server, or replace what is known of it
    Register(Box<RegisterArgs>),
    /// Register every server of a file; one that fails does not stop the others
    ///
    /// Prints a line for each server. The exit code is the highest of those that failed.
    Apply(ApplyArgs),
    /// List the servers
    List(ListArgs),
    /// Show one server
    Get(HandleArgs),
    /// Change single fields of a server
    Set(SetArgs),
    /// Remove a server that holds no placement
    Delete(DeleteArgs),
    /// Move everything on a server elsewhere, or list where it would go
    ///
    /// Exit code 3 or 4 when a project could not go anywhere.
    Drain(DrainArgs),
    /// Show or change what holds for every server that does not say otherwise
    Policy(PolicyArgs),
    /// Take the whole list of one source: create, update, and mark MISSING what it no longer lists
    ///
    /// The list is read from a file, or from a Prometheus node_exporter on each server, which tells usage as well. The
    /// exit code is 1 when the service took the list but rejected some of its servers.
    Sync(Box<SyncArgs>),
}

/// Runs one of the inventory's commands.
///
/// # Errors
/// The service's refusal, that it cannot be reached, or a file that cannot be read.
pub async fn servers(args: ServersArgs) -> Result<(), CliError> {
    let client = &args.client;
    match args.command {
        ServersCommand::Register(args) => register(*args, client).await,
        ServersCommand::Apply(args) => servers_file::apply(args, client).await,
        ServersCommand::List(args) => list(args, client).await,
        ServersCommand::Get(args) => get(args, client).await,
        ServersCommand::Set(args) => servers_set::set(args, client).await,
        ServersCommand::Delete(args) => delete(args, client).await,
        ServersCommand::Sync(args) => servers_sync::sync(*args, client).await,
        ServersCommand::Drain(args) => servers_drain::drain(args, client).await,
        ServersCommand::Policy(args) => servers_policy::policy(args, client).await,
    }
}

#[derive(Debug, Args)]
struct RegisterArgs {
    /// The server's identity
    handle: String,
    /// An IP address or a DNS name
    #[arg(long)]
    address: String,
    /// What it has of memory, in MB
    #[arg(long, value_name = "N")]
    ram_mb: u64,
    /// What it has of disk, in MB; 0 when left out
    #[arg(long, value_name = "N")]
    disk_mb: Option<u64>,
    /// What it has of CPU, in thousandths of a core; 0 when left out
    #[arg(long, value_name = "N")]
    cpu_millis: Option<u32>,
    /// Memory kept free of placements, in MB; the fleet's default when left out
    #[arg(long, value_name = "N")]
    headroom_ram_mb: Option<u64>,
    /// Disk kept free of placements, in MB; the fleet's default when left out
    #[arg(long, value_name = "N")]
    headroom_disk_mb: Option<u64>,
    /// CPU kept free of placements, in thousandths of a core; the fleet's default when left out
    #[arg(long, value_name = "N")]
    headroom_cpu_millis: Option<u32>,
    /// How much may be reserved of what there is, such as cpu=4,ram=1.2; the fleet's ratio when left out
    #[arg(long, value_name = "RESOURCE=RATIO", value_delimiter = ',', value_parser = overcommit)]
    overcommit: Vec<PolicyFigure>,
    /// A label that requests select by; repeat it for more
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Such as ready or maintenance; ready for a new server, as it was for a known one when left out
    #[arg(long, value_parser = parse_status)]
    status: Option<ServerStatus>,
    /// Whether projects may be placed here; true for a new server, as it was for a known one when left out
    #[arg(long, value_name = "BOOL")]
    managed: Option<bool>,
    /// The ports that may be given; 1024-32767 when left out
    #[arg(long, value_name = "START-END", value_parser = parse_port_range)]
    port_range: Option<PortRange>,
    /// Ports that are never given: 8080-8090, or a single port; repeat it, or separate with commas, for more
    #[arg(long, value_name = "START-END", value_parser = parse_port_range, value_delimiter = ',')]
    exclude_ports: Vec<PortRange>,
    /// Who listed the server; empty for one registered by hand
    #[arg(long, default_value = "", hide_default_value = true)]
    source: String,
    /// The source's own name for the server
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    external_id: String,
    /// Register only while the server that stands has this etag
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

impl From<RegisterArgs> for Server {
    fn from(args: RegisterArgs) -> Self {
        let headroom = Resources {
            cpu_millis: args.headroom_cpu_millis,
            ram_mb: args.headroom_ram_mb,
            disk_mb: args.headroom_disk_mb,
        };
        let mut overcommit = Percentages::default();
        for figure in args.overcommit {
            if let PolicyFigure::OvercommitPercent(resource, percent) = figure {
                let percent = u32::try_from(percent).ok();
                match resource {
                    Resource::Cpu => overcommit.cpu = percent,
                    Resource::Ram => overcommit.ram = percent,
                    Resource::Disk => overcommit.disk = percent,
                }
            }
        }
        Self {
            overcommit_percent: (overcommit != Percentages::default()).then_some(overcommit),
            handle: args.handle,
            address: args.address,
            status: args.status.unwrap_or_default().into(),
            managed: args.managed,
            labels: args.labels.into_iter().collect(),
            capacity: Some(Resources {
                cpu_millis: args.cpu_millis,
                ram_mb: Some(args.ram_mb),
                disk_mb: args.disk_mb,
            }),
            headroom: (headroom != Resources::default()).then_some(headroom),
            port_range: args.port_range,
            excluded_ports: args.exclude_ports,
            source: args.source,
            external_id: args.external_id,
            etag: args.etag,
            ..Self::default()
        }
    }
}

async fn register(args: RegisterArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let request = session.request(RegisterServerRequest { server: Some(args.into()) });
    let answer = session.inventory().register_server(request).await?.into_inner();
    output::print(session.output, &answer, |answer| server_text(answer.server.as_ref()))
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only servers of this status; ready does not include those in use
    #[arg(long, value_parser = parse_status)]
    status: Option<ServerStatus>,
    /// Only managed servers, or only others
    #[arg(long, value_name = "BOOL")]
    managed: Option<bool>,
    /// Only servers that carry this label: key=value, or key for any value
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// Only servers of this source; an empty one means those registered by hand
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    pages: PageArgs,
}

async fn list(args: ListArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let mut inventory = session.inventory();
    let mut request = ListServersRequest {
        status: args.status.unwrap_or_default().into(),
        managed: args.managed,
        label: args.label,
        source: args.source,
        ..ListServersRequest::default()
    };
    let mut answer = ListServersResponse::default();
    while let Some(page_size) = args.pages.next_page_size(answer.servers.len()) {
        request.page_size = page_size;
        let page = inventory.list_servers(session.request(request.clone())).await?.into_inner();
        answer.servers.extend(page.servers);
        answer.next_page_token.clone_from(&page.next_page_token);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    PageArgs::note_rest(&answer.next_page_token);
    output::print(session.output, &answer, |answer| servers_table(&answer.servers))
}

#[derive(Debug, Args)]
struct HandleArgs {
    /// The server
    handle: String,
}

async fn get(args: HandleArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let request = session.request(GetServerRequest { handle: args.handle });
    let answer = session.inventory().get_server(request).await?.into_inner();
    output::print(session.output, &answer, |answer| server_text(answer.server.as_ref()))
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The server
    handle: String,
    /// Delete only while the server has this etag
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

async fn delete(args: DeleteArgs, client: &ClientArgs) -> Result<(), CliError> {
    let session = Session::connect(client).await?;
    let request = DeleteServerRequest { handle: args.handle.clone(), etag: args.etag };
    let answer = session.inventory().delete_server(session.request(request)).await?.into_inner();
    output::print(session.output, &answer, |_| format!("{}: deleted", args.handle))
}

/// All that is known of a server, a line for each.
pub fn server_text(server: Option<&Server>) -> String {
    let server = server.cloned().unwrap_or_default();
    let amounts = |amounts: Option<Resources>| output::resources(&amounts.unwrap_or_default());
    let observed = server.observed.as_ref().map_or_else(
        || "never".to_owned(),
        |observed| {
            let usage = observed.usage.clone().unwrap_or_default();
            let ports = output::count(usage.listening_ports.len(), "listening port");
            let usage =
                Resources { cpu_millis: usage.cpu_millis, ram_mb: usage.ram_mb, disk_mb: usage.disk_mb };
            let time = output::timestamp(observed.observe_time.as_ref());
            let by = match observed.observer() {
                UsageObserver::Provider => ", by its source",
                UsageObserver::Host | UsageObserver::Unspecified => "",
            };
            format!("{}, {ports}, at {time}{by}", output::resources(&usage))
        },
    );
    let ports: Vec<_> = server.port_range.into_iter().map(range_text).collect();
    let excluded: Vec<_> = server.excluded_ports.iter().copied().map(range_text).collect();
    let lines = [
        ("handle", server.handle.clone()),
        ("address", server.address.clone()),
        ("status", output::server_state(&server)),
        ("labels", output::labels(&server)),
        ("projects", server.placement_count.to_string()),
        ("capacity", amounts(server.capacity)),
        ("headroom", server.headroom.as_ref().map_or_else(|| "the fleet's default".to_owned(), set_amounts)),
        ("over-commit", output::percentages(&server.overcommit_percent.unwrap_or_default())),
        ("budget", output::free_resources(&server.budget.unwrap_or_default())),
        ("reserved", amounts(server.reserved)),
        ("observed", observed),
        ("free", output::free_resources(&server.free.unwrap_or_default())),
        ("ports", ports.join(",")),
        ("excluded", excluded.join(",")),
        ("source", server.source.clone()),
        ("external id", server.external_id.clone()),
        ("etag", server.etag.clone()),
        ("created", output::timestamp(server.create_time.as_ref())),
        ("updated", output::timestamp(server.update_time.as_ref())),
    ];
    let lines = lines.iter().filter(|(_, value)| !value.is_empty());
    let lines: Vec<_> = lines.map(|(name, value)| format!("{name:<12}{value}")).collect();
    lines.join("\n")
}

/// The amounts that are set, with units.
fn set_amounts(amounts: &Resources) -> String {
    let told = [
        amounts.ram_mb.map(|amount| format!("{amount} MB RAM")),
        amounts.disk_mb.map(|amount| format!("{amount} MB disk")),
        amounts.cpu_millis.map(|amount| format!("{amount} CPU millis")),
    ];
    told.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn range_text(range: PortRange) -> String {
    if range.start == range.end { range.start.to_string() } else { format!("{}-{}", range.start, range.end) }
}
