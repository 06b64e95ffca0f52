//! The hosts of a list: what each exporter said last, and whether it answers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::anyhow;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    error::CliError,
    node_exporter::{Exporter, Scraper},
    node_metrics::NodeMetrics,
    output,
};
use crate::proto::v1::ReportUsageRequest;

/// How many exporters are read, or reports sent, at a time.
const AT_ONCE: usize = 64;

/// A host of the list.
pub struct Node {
    /// Where it is read.
    pub exporter: Exporter,
    /// What it said last.
    pub latest: Option<NodeMetrics>,
    /// What it said right before that; none when it did not.
    earlier: Option<NodeMetrics>,
    /// Why it could not be read the last time.
    trouble: Option<String>,
    /// The handle that its usage is reported for; none before it is known to be a server of the source.
    pub server: Option<String>,
}

impl Node {
    fn take(&mut self, read: Result<NodeMetrics, String>) {
        match read {
            Ok(metrics) => {
                let before = self.latest.replace(metrics);
                // After a silence there is nothing recent to compare with.
                self.earlier = before.filter(|_| self.trouble.is_none());
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// The report of what it said this time; none when it said nothing, or is no server of the source.
    pub fn report(&self) -> Option<ReportUsageRequest> {
        let metrics = self.latest.as_ref().filter(|_| self.trouble.is_none())?;
        let usage = Some(metrics.usage_since(self.earlier.as_ref()));
        self.server.clone().map(|handle| ReportUsageRequest { handle, usage })
    }
}

/// The hosts of a list, and how they are read.
pub struct Nodes {
    /// Each, in the order of the list.
    pub all: Vec<Node>,
    scraper: Scraper,
    mount_point: String,
}

impl Nodes {
    /// The hosts of these URLs, none of which was read yet.
    ///
    /// # Errors
    /// A text that is no exporter's URL, or one that is listed twice.
    pub fn new(urls: &[PathBuf], scraper: Scraper, mount_point: String) -> Result<Self, CliError> {
        let mut all: Vec<Node> = Vec::new();
        for url in urls {
            let exporter = exporter(url)?;
            if all.iter().any(|node| node.exporter == exporter) {
                return Err(CliError::Usage(format!("{exporter} is listed twice")));
            }
            all.push(Node { exporter, latest: None, earlier: None, trouble: None, server: None });
        }
        Ok(Self { all, scraper, mount_point })
    }

    /// Whether each was read once at least.
    pub fn have_all_answered(&self) -> bool {
        self.all.iter().all(|node| node.latest.is_some())
    }

    /// Reads every exporter.
    pub async fn read(&mut self) {
        let reads = self.all.iter().map(|node| {
            let (scraper, exporter) = (self.scraper.clone(), node.exporter.clone());
            let mount_point = self.mount_point.clone();
            async move {
                let text = scraper.scrape(&exporter).await.map_err(|error| error.to_string())?;
                NodeMetrics::parse(&text, &mount_point).map_err(|error| error.to_string())
            }
        });
        let reads = all(reads).await;
        for (node, read) in self.all.iter_mut().zip(reads) {
            node.take(read);
        }
    }

    /// The same, and tells of each that stops answering, and of each that answers again.
    pub async fn read_and_tell(&mut self) {
        let before: Vec<_> = self.all.iter().map(|node| node.trouble.is_some()).collect();
        self.read().await;
        for (node, was_in_trouble) in self.all.iter().zip(before) {
            let exporter = &node.exporter;
            match &node.trouble {
                Some(trouble) if !was_in_trouble => output::note(&format!("{exporter} {trouble}")),
                None if was_in_trouble => output::note(&format!("{exporter} answers again")),
                _ => {}
            }
        }
    }

    /// Refuses a list that is not whole: unfinished is not empty (L35).
    ///
    /// # Errors
    /// What is wrong with each exporter that could not be read the last time.
    pub fn check_whole(&self) -> Result<(), CliError> {
        let troubles = self
            .all
            .iter()
            .filter_map(|node| node.trouble.as_ref().map(|trouble| format!("{} {trouble}", node.exporter)));
        let troubles: Vec<_> = troubles.collect();
        if troubles.is_empty() {
            return Ok(());
        }
        let troubles = troubles.join("\n");
        Err(anyhow!("{troubles}\nthe list is not whole, so nothing was written").into())
    }
}

fn exporter(url: &Path) -> Result<Exporter, CliError> {
    let url = url.to_string_lossy();
    Exporter::parse(&url).map_err(|error| CliError::Usage(format!("`{url}` is no exporter's URL: {error}")))
}

/// Runs tasks beside each other, not too many at once; the results are in the tasks' order.
pub async fn all<T, F>(tasks: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (index, task) in tasks.into_iter().enumerate() {
        let turns = turns.clone();
        running.spawn(async move {
            let _turn = turns.acquire().await;
            (index, task.await)
        });
    }
    let mut results = running.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
