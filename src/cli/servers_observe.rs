//! `servers sync --from node-exporter`: reads the hosts of a source, sends them as its list, and reports their usage, once or
//! at an interval.
//!
//! A list is sent only when every exporter has answered: one that is unfinished would mark servers missing that are there. At
//! an interval, an exporter that stops answering keeps its place in the list with what it said last, and the others go on;
//! so does the whole when the service is away for a while. What goes wrong is told when it begins and when it ends, not each
//! time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::anyhow;
use clap::Args;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic_types::StatusExt as _;

use super::{
    client::{ClientArgs, OutputFormat, Session},
    duration::at_most_a_day,
    error::{CliError, EXIT_DONE, EXIT_FAILURE},
    node_exporter::Scraper,
    node_list::{NodeList, node_list},
    nodes::{Node, Nodes, all},
    output,
    servers_sync::SyncOptions,
    watch::may_resume,
};
use crate::proto::v1::{
    ListServersRequest, ReportUsageResponse, Resources, Server, ServerSyncResult, SyncServersResponse,
    server_sync_result::Action,
};

/// Between the first two scrapes, which tell how busy the processors are.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const PAGE_SIZE: i32 = 1000;
const SERVER_NOT_FOUND: &str = "SERVER_NOT_FOUND";

/// Arguments of `servers sync` that concern exporters.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --from node-exporter")]
pub struct ObserveArgs {
    /// Go on reading the exporters and reporting usage this often, such as 15s, until Ctrl-C
    #[arg(
        long, value_name = "DURATION", value_parser = parse_interval, requires = "from", conflicts_with = "dry_run",
    )]
    interval: Option<Duration>,
    /// The filesystem that projects write to
    #[arg(long, value_name = "PATH", default_value = "/", requires = "from")]
    disk_mountpoint: String,
    /// How long an exporter may take for its answer, such as 10s; the others' reports wait for it
    #[arg(
        long, value_name = "DURATION", value_parser = at_most_a_day, default_value = "10s", requires = "from",
    )]
    scrape_timeout: Duration,
    /// Where projects on this server are reached, if not at the host of its exporter's URL; repeat it for more
    #[arg(long = "address", value_name = "HANDLE=ADDRESS", value_parser = parse_address, requires = "from")]
    addresses: Vec<(String, String)>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = at_most_a_day(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("it must be at least {}", humantime::format_duration(SHORTEST_INTERVAL)));
    }
    Ok(interval)
}

fn parse_address(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((handle, address)) if !handle.is_empty() && !address.is_empty() => {
            Ok((handle.to_owned(), address.to_owned()))
        }
        _ => Err("it is written HANDLE=ADDRESS".to_owned()),
    }
}

/// Sends the list of the exporters' hosts, and reports their usage.
///
/// # Errors
/// An exporter that cannot be read, exporters that make no list, or the service's refusal. At an interval: only what is so
/// from the start, or what no later try can mend.
pub async fn sync_and_observe(
    options: SyncOptions,
    urls: &[PathBuf],
    args: ObserveArgs,
    client: &ClientArgs,
) -> Result<(), CliError> {
    let mut observer = Observer {
        nodes: Nodes::new(urls, Scraper::new(args.scrape_timeout), args.disk_mountpoint)?,
        addresses: args.addresses.into_iter().collect(),
        options,
        sent: None,
        answer: None,
        told: BTreeSet::new(),
        service_is_away: false,
    };
    match args.interval {
        None => observer.once(client).await,
        Some(interval) => tokio::select! {
            result = observer.keep_on(client, interval) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
        },
    }
}

/// What decides whether a list must be sent again.
#[derive(PartialEq)]
struct Facts {
    name: String,
    capacity: Resources,
}

struct Observer {
    nodes: Nodes,
    addresses: BTreeMap<String, String>,
    options: SyncOptions,
    /// What the service took last; none when a list is due.
    sent: Option<Vec<Facts>>,
    /// The answer that was printed last.
    answer: Option<SyncServersResponse>,
    /// What was said once, and need not be said again.
    told: BTreeSet<String>,
    service_is_away: bool,
}

impl Observer {
    /// Reads every exporter; then, and only then, sends the list, and reports.
    async fn once(&mut self, client: &ClientArgs) -> Result<(), CliError> {
        self.nodes.read().await;
        self.nodes.check_whole()?;
        if !self.options.dry_run {
            sleep(FIRST_PAUSE).await;
            self.nodes.read().await;
            self.nodes.check_whole()?;
        }
        let session = Session::connect(client).await?;
        let answer = self.sync(&session).await?;
        output::print(session.output, &answer, |answer| self.options.text(answer))?;
        if self.options.dry_run {
            return exit(if answer.rejected == 0 { EXIT_DONE } else { EXIT_FAILURE });
        }
        let mut worst = if answer.rejected == 0 { EXIT_DONE } else { EXIT_FAILURE };
        let mut lines = Vec::new();
        for (handle, reported) in self.report(&session).await {
            match reported {
                Ok(answer) => lines.push(usage_line(&answer)),
                Err(error) => {
                    worst = worst.max(error.exit_code());
                    error.tell_of(&handle, session.output);
                }
            }
        }
        // As with a file, the one JSON document is the answer to the sync.
        if session.output == OutputFormat::Text && !lines.is_empty() {
            output::print_text(&format!("\n{}", lines.join("\n")))?;
            output::note(
                "a report counts for the service's --usage-max-age, 5m by default; --interval keeps on reporting",
            );
        }
        exit(worst)
    }

    /// The same at an interval, without end.
    async fn keep_on(&mut self, client: &ClientArgs, every: Duration) -> Result<(), CliError> {
        self.nodes.read_and_tell().await;
        let session = Session::connect(client).await?;
        sleep(FIRST_PAUSE.min(every)).await;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.nodes.read_and_tell().await;
            match self.sync_and_report(&session).await {
                Ok(()) if self.service_is_away => {
                    self.service_is_away = false;
                    output::note("the service answers again");
                }
                Ok(()) => {}
                Err(CliError::Status(status)) if may_resume(&status) => {
                    if !self.service_is_away {
                        self.service_is_away = true;
                        let every = humantime::format_duration(every);
                        let cause = status.message();
                        output::note(&format!(
                            "the service does not answer: {cause}; trying again every {every}"
                        ));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the list where it is due and whole, and reports the usage of those that answered.
    async fn sync_and_report(&mut self, session: &Session) -> Result<(), CliError> {
        if !self.nodes.have_all_answered() {
            self.say(
                "the list is sent when every exporter has answered; servers that are known are reported",
            );
            self.find_servers(session).await?;
        } else if self.sent.as_ref() != Some(&self.facts()) {
            self.sync_again(session).await?;
        }
        for (handle, reported) in self.report(session).await {
            match reported {
                Ok(answer) => output::print_line(session.output, &answer, usage_line)?,
                Err(CliError::Status(status)) if may_resume(&status) => return Err(CliError::Status(status)),
                Err(error) => {
                    if is_unknown_server(&error) {
                        self.sent = None;
                    }
                    self.say(&format!("{handle}: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Sends a list that is due. A refusal ends the command when it is the first; later it is told, and what is known is
    /// reported all the same.
    async fn sync_again(&mut self, session: &Session) -> Result<(), CliError> {
        match self.sync(session).await {
            Ok(answer) => {
                self.sent = (answer.rejected == 0).then(|| self.facts());
                if self.answer.as_ref() != Some(&answer) {
                    output::print_line(session.output, &answer, |answer| self.options.text(answer))?;
                }
                self.answer = Some(answer);
                Ok(())
            }
            Err(CliError::Status(status)) if may_resume(&status) => Err(CliError::Status(status)),
            Err(error) if self.answer.is_none() => Err(error),
            Err(error) => {
                self.say(&format!("the list could not be sent again: {error}"));
                Ok(())
            }
        }
    }

    async fn sync(&mut self, session: &Session) -> Result<SyncServersResponse, CliError> {
        let list = self.find_servers(session).await?;
        let handles: BTreeSet<_> = list.entries.iter().map(|entry| &entry.server.handle).collect();
        if let Some(stray) = self.addresses.keys().find(|handle| !handles.contains(handle)) {
            return Err(CliError::Usage(format!(
                "--address is for `{stray}`, and no exporter's host is that"
            )));
        }
        let servers: Vec<Server> = list.entries.into_iter().map(|entry| entry.server).collect();
        let handles: Vec<String> = servers.iter().map(|server| server.handle.clone()).collect();
        let answer = self.options.send(session, servers).await?;
        let rejected: BTreeSet<&str> = answer
            .results
            .iter()
            .filter(|result: &&ServerSyncResult| result.action() == Action::Rejected)
            .map(|result| result.handle.as_str())
            .collect();
        for (node, handle) in self.nodes.all.iter_mut().zip(handles) {
            // A server that was rejected may be another source's; one that the source had before stays its own.
            if !rejected.contains(handle.as_str()) {
                node.server = Some(handle);
            }
        }
        Ok(answer)
    }

    /// Finds which servers of the source the exporters are.
    async fn find_servers(&mut self, session: &Session) -> Result<NodeList, CliError> {
        let known = known_servers(session, &self.options.source).await?;
        let hosts: Vec<_> = self
            .nodes
            .all
            .iter()
            .filter_map(|node| node.latest.as_ref().map(|metrics| (&node.exporter, metrics)))
            .collect();
        let list = node_list(&hosts, &known, &self.addresses).map_err(|error| anyhow!(error))?;
        for note in &list.notes {
            self.say(note);
        }
        let with_metrics = self.nodes.all.iter_mut().filter(|node| node.latest.is_some());
        for (node, entry) in with_metrics.zip(&list.entries) {
            node.server = entry.is_known.then(|| entry.server.handle.clone());
        }
        Ok(list)
    }

    /// Reports the usage of every host that was read this time and is a server of the source.
    async fn report(&self, session: &Session) -> Vec<(String, Result<ReportUsageResponse, CliError>)> {
        let reports = self.nodes.all.iter().filter_map(Node::report).map(|report| {
            let (mut inventory, handle) = (session.inventory(), report.handle.clone());
            let request = session.request(report);
            async move { (handle, inventory.report_usage(request).await) }
        });
        let reported = all(reports.collect::<Vec<_>>()).await;
        reported
            .into_iter()
            .map(|(handle, answer)| (handle, answer.map(tonic::Response::into_inner).map_err(CliError::from)))
            .collect()
    }

    fn facts(&self) -> Vec<Facts> {
        let latest = self.nodes.all.iter().filter_map(|node| node.latest.as_ref());
        latest
            .map(|metrics| Facts { name: metrics.handle.to_string(), capacity: metrics.capacity() })
            .collect()
    }

    /// Says something once.
    fn say(&mut self, text: &str) {
        if self.told.insert(text.to_owned()) {
            output::note(text);
        }
    }
}

async fn known_servers(session: &Session, source: &str) -> Result<Vec<Server>, CliError> {
    let mut known = Vec::new();
    let mut request = ListServersRequest {
        source: Some(source.to_owned()),
        page_size: PAGE_SIZE,
        ..ListServersRequest::default()
    };
    loop {
        let page = session.inventory().list_servers(session.request(request.clone())).await?.into_inner();
        known.extend(page.servers);
        if page.next_page_token.is_empty() {
            return Ok(known);
        }
        request.page_token = page.next_page_token;
    }
}

fn is_unknown_server(error: &CliError) -> bool {
    let CliError::Status(status) = error else { return false };
    status.get_details_error_info().is_some_and(|info| info.reason == SERVER_NOT_FOUND)
}

fn usage_line(answer: &ReportUsageResponse) -> String {
    let server = answer.server.clone().unwrap_or_default();
    let observed = server.observed.unwrap_or_default();
    let usage = observed.usage.unwrap_or_default();
    let time = output::timestamp(observed.observe_time.as_ref());
    let cpu = usage.cpu_millis.map_or("CPU not known".to_owned(), |millis| format!("{millis} CPU millis"));
    format!(
        "{time}  {}  in use: {} MB RAM, {} MB disk, {cpu}",
        server.handle,
        usage.ram_mb(),
        usage.disk_mb()
    )
}

fn exit(code: u8) -> Result<(), CliError> {
    if code == EXIT_DONE { Ok(()) } else { Err(CliError::Told(code)) }
}
