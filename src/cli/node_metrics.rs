//! What a node_exporter's text says of its host: its name, what it has, and what of that is in use.
//!
//! Pure: text in, figures out. Only the lines of the metrics that are used here are read, so that no other metric of an
//! exporter can make it unreadable; those lines are read strictly, so that no damaged figure is taken for a true one. One
//! more metric is a constant and a line in [`NodeMetrics::parse`].

use std::collections::{BTreeMap, BTreeSet};

use nom_openmetrics::parser;

use crate::{
    domain::ServerHandle,
    proto::v1::{Resources, Usage},
};

const UNAME: &str = "node_uname_info";
const RAM_TOTAL: &str = "node_memory_MemTotal_bytes";
const RAM_AVAILABLE: &str = "node_memory_MemAvailable_bytes";
const DISK_SIZE: &str = "node_filesystem_size_bytes";
const DISK_AVAILABLE: &str = "node_filesystem_avail_bytes";
const CPU_SECONDS: &str = "node_cpu_seconds_total";

/// Modes in which a CPU does nothing. `iowait` is idle time with a disk request outstanding: a project could have run.
const IDLE_MODES: [&str; 2] = ["idle", "iowait"];
/// What Linux calls a host that was given no name.
const NO_NAME: &str = "(none)";
const BYTES_PER_MB: f64 = 1024.0 * 1024.0;
/// The most that the API takes.
const MAX_MB: f64 = 1e12;
const MILLIS_PER_CPU: u32 = 1000;

/// Why an exporter's text cannot be taken. The words follow its URL.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// The text ends in the middle of a line.
    #[error("broke off in the middle of a line")]
    BrokenOff,
    /// A metric is not there at all.
    #[error("tells no {0}; is it a node_exporter on Linux?")]
    Missing(&'static str),
    /// A metric is not there for the mount point.
    #[error("tells no {metric} for the mount point {mount_point}; it does for {}", known(.there))]
    NoMountPoint {
        /// The metric.
        metric: &'static str,
        /// What was asked for.
        mount_point: String,
        /// The mount points that it does tell of.
        there: BTreeSet<String>,
    },
    /// A line is not as the format has it.
    #[error("tells {metric} in a line that cannot be read: {line}")]
    Unreadable {
        /// The metric.
        metric: &'static str,
        /// The line, shortened.
        line: String,
    },
    /// A figure is none that the metric can have.
    #[error("tells {metric} as {value}, where a finite number of 0 or more is expected")]
    NotAnAmount {
        /// The metric.
        metric: &'static str,
        /// The figure.
        value: f64,
    },
    /// A figure is larger than any server's.
    #[error("tells {metric} as {value}, which is more than a server can have")]
    TooMuch {
        /// The metric.
        metric: &'static str,
        /// The figure.
        value: f64,
    },
    /// More of a resource is available than there is.
    #[error("tells more {available} than {total}")]
    MoreThanAll {
        /// The part.
        available: &'static str,
        /// The whole.
        total: &'static str,
    },
    /// A sample lacks a label that tells what it is of.
    #[error("tells {metric} without the label `{label}`")]
    Unlabelled {
        /// The metric.
        metric: &'static str,
        /// The label.
        label: &'static str,
    },
    /// Samples of several hosts, or several filesystems.
    #[error("tells {metric}{of} several times over; is it the exporter of a single host?")]
    Several {
        /// The metric.
        metric: &'static str,
        /// Of what, where the metric has more than one.
        of: String,
    },
    /// The host's name cannot be a server's handle.
    #[error(
        "tells in {UNAME} that its host is called `{0}`, which cannot be a server's handle; give the host a name"
    )]
    NoHandle(String),
}

fn known(mount_points: &BTreeSet<String>) -> String {
    let names: Vec<_> = mount_points.iter().take(10).map(|name| shown(name)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Foreign text as it is told: on one line, and not without end.
fn shown(text: &str) -> String {
    const LIMIT: usize = 120;
    let shown: String = text.trim_end().chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().count() > LIMIT { format!("{shown}…") } else { shown }
}

/// What an exporter said of its host at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeMetrics {
    /// The host's name, made into a handle.
    pub handle: ServerHandle,
    ram: Space,
    disk: Space,
    /// By the label `cpu`.
    cpus: BTreeMap<String, CpuSeconds>,
}

/// Memory or disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Space {
    total: f64,
    /// What a project could take.
    available: f64,
}

/// What a CPU did since its host started, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct CpuSeconds {
    busy: f64,
    idle: f64,
}

impl NodeMetrics {
    /// Reads an exporter's text. The disk is the filesystem at `mount_point`.
    ///
    /// # Errors
    /// [`MetricsError`]
    pub fn parse(text: &str, mount_point: &str) -> Result<Self, MetricsError> {
        // The format ends every line, so that a figure that lost its last digits does not pass for a smaller one.
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(MetricsError::BrokenOff);
        }
        let name = one(samples(text, UNAME)?, UNAME)?;
        Ok(Self {
            handle: handle(name.label(UNAME, "nodename")?)?,
            ram: space(
                (RAM_TOTAL, one(samples(text, RAM_TOTAL)?, RAM_TOTAL)?.value),
                (RAM_AVAILABLE, one(samples(text, RAM_AVAILABLE)?, RAM_AVAILABLE)?.value),
            )?,
            disk: disk(text, mount_point)?,
            cpus: cpus(text)?,
        })
    }

    /// What the host has, in whole megabytes, rounded down.
    #[must_use]
    pub fn capacity(&self) -> Resources {
        Resources {
            cpu_millis: Some(self.cpu_millis()),
            ram_mb: Some(whole(self.ram.total / BYTES_PER_MB)),
            disk_mb: Some(whole(self.disk.total / BYTES_PER_MB)),
        }
    }

    /// What of it is in use, rounded up. Processor time is the mean since `earlier`, and not told where there is none.
    #[must_use]
    pub fn usage_since(&self, earlier: Option<&Self>) -> Usage {
        let in_use = |space: Space| whole(((space.total - space.available) / BYTES_PER_MB).ceil());
        Usage {
            cpu_millis: earlier.and_then(|earlier| self.cpu_millis_since(earlier)),
            ram_mb: Some(in_use(self.ram)),
            disk_mb: Some(in_use(self.disk)),
            // An exporter does not tell which ports are listened on.
            listening_ports: Vec::new(),
        }
    }

    fn cpu_millis(&self) -> u32 {
        u32::try_from(self.cpus.len()).unwrap_or(u32::MAX).saturating_mul(MILLIS_PER_CPU)
    }

    /// None where the host started anew in between, or no time passed.
    fn cpu_millis_since(&self, earlier: &Self) -> Option<u32> {
        let (mut busy, mut all) = (0.0, 0.0);
        for (cpu, now) in &self.cpus {
            let Some(before) = earlier.cpus.get(cpu) else { continue };
            if now.busy < before.busy {
                return None;
            }
            busy += now.busy - before.busy;
            // Linux may take back time that it had counted as idle.
            all += now.busy - before.busy + (now.idle - before.idle).max(0.0);
        }
        (all > 0.0).then(|| {
            let millis = whole((busy / all * f64::from(self.cpu_millis())).ceil());
            u32::try_from(millis).unwrap_or(u32::MAX)
        })
    }
}

/// Made into a handle: what a handle cannot have becomes `-`.
fn handle(name: &str) -> Result<ServerHandle, MetricsError> {
    let unusable = || MetricsError::NoHandle(shown(name));
    if name == NO_NAME {
        return Err(unusable());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    let handle: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let handle = handle.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    ServerHandle::parse(handle).map_err(|_| unusable())
}

fn space(
    (total_metric, total): (&'static str, f64),
    (available_metric, available): (&'static str, f64),
) -> Result<Space, MetricsError> {
    if total / BYTES_PER_MB > MAX_MB {
        return Err(MetricsError::TooMuch { metric: total_metric, value: total });
    }
    if available > total {
        return Err(MetricsError::MoreThanAll { available: available_metric, total: total_metric });
    }
    Ok(Space { total, available })
}

/// The filesystem at a mount point. Where one was mounted over another, the exporter tells each device with the figures of
/// the one on top: those are one. Different sizes are not.
fn disk(text: &str, mount_point: &str) -> Result<Space, MetricsError> {
    let at = |metric: &'static str| -> Result<Vec<f64>, MetricsError> {
        let all = samples(text, metric)?;
        if all.is_empty() {
            return Err(MetricsError::Missing(metric));
        }
        let mut there = BTreeSet::new();
        let mut found = Vec::new();
        for sample in &all {
            match sample.label(metric, "mountpoint")? {
                name if name == mount_point => found.push(sample.value),
                name => drop(there.insert(name.to_owned())),
            }
        }
        if found.is_empty() {
            let mount_point = mount_point.to_owned();
            return Err(MetricsError::NoMountPoint { metric, mount_point, there });
        }
        Ok(found)
    };
    let (sizes, available) = (at(DISK_SIZE)?, at(DISK_AVAILABLE)?);
    let size = sizes[0];
    if sizes.iter().any(|other| other.total_cmp(&size).is_ne()) {
        let of = format!(" of the mount point {mount_point}");
        return Err(MetricsError::Several { metric: DISK_SIZE, of });
    }
    // They were read one after the other, and the disk filled in between: the least is the last word.
    let available = available.into_iter().fold(f64::INFINITY, f64::min);
    space((DISK_SIZE, size), (DISK_AVAILABLE, available))
}

fn cpus(text: &str) -> Result<BTreeMap<String, CpuSeconds>, MetricsError> {
    let mut cpus: BTreeMap<String, CpuSeconds> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for sample in samples(text, CPU_SECONDS)? {
        let cpu = sample.label(CPU_SECONDS, "cpu")?;
        let mode = sample.label(CPU_SECONDS, "mode")?;
        if !seen.insert((cpu.to_owned(), mode.to_owned())) {
            let of = format!(" of CPU {} in mode {}", shown(cpu), shown(mode));
            return Err(MetricsError::Several { metric: CPU_SECONDS, of });
        }
        let seconds = cpus.entry(cpu.to_owned()).or_default();
        if IDLE_MODES.contains(&mode) {
            seconds.idle += sample.value;
        } else {
            seconds.busy += sample.value;
        }
    }
    if cpus.is_empty() { Err(MetricsError::Missing(CPU_SECONDS)) } else { Ok(cpus) }
}

struct Sample {
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn label(&self, metric: &'static str, label: &'static str) -> Result<&str, MetricsError> {
        let value = self.labels.get(label);
        value.map(String::as_str).ok_or(MetricsError::Unlabelled { metric, label })
    }
}

fn one(samples: Vec<Sample>, metric: &'static str) -> Result<Sample, MetricsError> {
    let mut samples = samples.into_iter();
    match (samples.next(), samples.next()) {
        (None, _) => Err(MetricsError::Missing(metric)),
        (Some(sample), None) => Ok(sample),
        (Some(_), Some(_)) => Err(MetricsError::Several { metric, of: String::new() }),
    }
}

/// The samples of one metric, each a finite number of 0 or more.
fn samples(text: &str, metric: &'static str) -> Result<Vec<Sample>, MetricsError> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let is_of = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| !rest.starts_with(in_name));
    text.split_inclusive('\n').filter(is_of).map(|line| sample(line, metric)).collect()
}

fn sample(line: &str, metric: &'static str) -> Result<Sample, MetricsError> {
    // Before the parser: it writes to standard error where it meets an infinity.
    let value = line.trim_end().rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
        return Err(MetricsError::NotAnAmount { metric, value });
    }
    let unreadable = || MetricsError::Unreadable { metric, line: shown(line) };
    let (_, families) = parser::prometheus(line).map_err(|_| unreadable())?;
    let sample = families.iter().flat_map(|family| &family.samples).next().ok_or_else(unreadable)?;
    let labels = sample.labels().iter().map(|label| (label.name.to_owned(), label.value.clone()));
    Ok(Sample { labels: labels.collect(), value: sample.number() })
}

/// An amount as the API has it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what comes in is 0 or more, and no more than a server can have"
)]
fn whole(amount: f64) -> u64 {
    amount as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As node_exporter 1.5 tells it, with a metric before and one after that nothing here reads.
    const TEXT: &str = r##"# HELP go_info Information about the Go environment.
# TYPE go_info gauge
go_info{version="go1.19.8"} 1
# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{cpu="0",mode="idle"} 1000
node_cpu_seconds_total{cpu="0",mode="iowait"} 10
node_cpu_seconds_total{cpu="0",mode="steal"} 1
node_cpu_seconds_total{cpu="0",mode="system"} 9
node_cpu_seconds_total{cpu="0",mode="user"} 90.5
node_cpu_seconds_total{cpu="1",mode="idle"} 2000
node_cpu_seconds_total{cpu="1",mode="user"} 50
# HELP node_filesystem_avail_bytes Filesystem space available to non-root users in bytes.
# TYPE node_filesystem_avail_bytes gauge
node_filesystem_avail_bytes{device="/dev/vda",fstype="ext4",mountpoint="/"} 6.9995798528e+10
node_filesystem_avail_bytes{device="/dev/vdb",fstype="xfs",mountpoint="/srv/a,b\"{}\\"} 1.048576e+06
node_filesystem_size_bytes{device="/dev/vda",fstype="ext4",mountpoint="/"} 2.70553174016e+11
node_filesystem_size_bytes{device="/dev/vdb",fstype="xfs",mountpoint="/srv/a,b\"{}\\"} 3.145728e+06
node_memory_MemAvailable_bytes 2.4661610496e+10
node_memory_MemFree_bytes 1.797597184e+10
node_memory_MemTotal_bytes 2.5276514304e+10
node_memory_MemTotal_bytes_of_another 1
node_uname_info{domainname="(none)",machine="x86_64",nodename="web-1",release="6.1.0",sysname="Linux",version="#1 SMP"} 1
process_max_fds not-a-number
"##;

    fn parse(text: &str) -> Result<NodeMetrics, String> {
        NodeMetrics::parse(text, "/").map_err(|error| error.to_string())
    }

    /// The error of the text with one thing changed.
    #[track_caller]
    fn error(from: &str, to: &str) -> String {
        assert!(TEXT.contains(from), "{from}");
        parse(&TEXT.replace(from, to)).unwrap_err()
    }

    #[test]
    fn capacity_is_rounded_down_and_what_is_in_use_up() {
        let metrics = parse(TEXT).unwrap();
        assert_eq!(metrics.handle.as_str(), "web-1");
        let capacity = Resources { cpu_millis: Some(2000), ram_mb: Some(24_105), disk_mb: Some(258_019) };
        assert_eq!(metrics.capacity(), capacity);
        // 614,903,808 bytes of RAM and 200,557,375,488 of disk.
        let usage = Usage { ram_mb: Some(587), disk_mb: Some(191_267), ..Usage::default() };
        assert_eq!(metrics.usage_since(None), usage);
    }

    #[test]
    fn the_page_cache_is_not_in_use_l21() {
        // Nearly all of it is cache: hardly any is free, nearly all is available.
        let text = TEXT.replace("MemFree_bytes 1.797597184e+10", "MemFree_bytes 1");
        assert_eq!(parse(&text).unwrap().usage_since(None).ram_mb, Some(587));
    }

    #[test]
    fn processors_are_busy_in_every_mode_but_idle_and_iowait() {
        let earlier = parse(TEXT).unwrap();
        // In 10 seconds of two CPUs: 1 of user, 0.5 of steal, the rest idle or waiting for a disk.
        let later = TEXT
            .replace("mode=\"user\"} 90.5", "mode=\"user\"} 91.5")
            .replace("mode=\"steal\"} 1", "mode=\"steal\"} 1.5")
            .replace("mode=\"iowait\"} 10", "mode=\"iowait\"} 18.5")
            .replace("cpu=\"1\",mode=\"idle\"} 2000", "cpu=\"1\",mode=\"idle\"} 2010");
        let later = parse(&later).unwrap();
        assert_eq!(later.usage_since(Some(&earlier)).cpu_millis, Some(150));
        let all_busy = parse(&TEXT.replace("mode=\"user\"} 50", "mode=\"user\"} 60")).unwrap();
        assert_eq!(all_busy.usage_since(Some(&earlier)).cpu_millis, Some(2000));
    }

    #[test]
    fn processor_time_is_not_told_where_it_cannot_be_known() {
        let metrics = parse(TEXT).unwrap();
        assert_eq!(metrics.usage_since(None).cpu_millis, None);
        assert_eq!(metrics.usage_since(Some(&metrics)).cpu_millis, None, "no time passed");
        let restarted = parse(&TEXT.replace("mode=\"user\"} 90.5", "mode=\"user\"} 0.5")).unwrap();
        assert_eq!(restarted.usage_since(Some(&metrics)).cpu_millis, None);
        // Linux may count idle time back; that is no restart.
        let back = TEXT.replace("} 1000", "} 999.9").replace("mode=\"user\"} 50", "mode=\"user\"} 51");
        assert_eq!(parse(&back).unwrap().usage_since(Some(&metrics)).cpu_millis, Some(2000));
    }

    #[test]
    fn another_mount_point_is_another_disk() {
        let metrics = NodeMetrics::parse(TEXT, "/srv/a,b\"{}\\").unwrap();
        assert_eq!(metrics.capacity().disk_mb, Some(3));
        assert_eq!(metrics.usage_since(None).disk_mb, Some(2));
        let error = NodeMetrics::parse(TEXT, "/data").unwrap_err().to_string();
        insta::assert_snapshot!(error, @r#"tells no node_filesystem_size_bytes for the mount point /data; it does for /, /srv/a,b\"{}\\"#);
    }

    #[test]
    fn a_mount_over_another_is_one_disk_and_two_sizes_are_not() {
        let over = "node_filesystem_size_bytes{device=\"overlay\",fstype=\"overlay\",mountpoint=\"/\"} 2.70553174016e+11\n\
                    node_filesystem_avail_bytes{device=\"overlay\",fstype=\"overlay\",mountpoint=\"/\"} 6.9995798527e+10\n";
        let metrics = parse(&format!("{TEXT}{over}")).unwrap();
        assert_eq!(metrics.capacity().disk_mb, Some(258_019));
        assert_eq!(metrics.usage_since(None).disk_mb, Some(191_267));
        let other = over.replace("2.70553174016e+11", "1");
        assert_eq!(
            parse(&format!("{TEXT}{other}")).unwrap_err(),
            "tells node_filesystem_size_bytes of the mount point / several times over; is it the exporter of a single host?"
        );
    }

    #[test]
    fn a_hosts_name_becomes_a_handle() {
        for (name, expected) in [
            ("web-1.example.net", "web-1.example.net"),
            ("WEB_1", "WEB_1"),
            ("_web 1", "web-1"),
            ("büro", "b-ro"),
        ] {
            assert_eq!(handle(name).unwrap().as_str(), expected, "{name}");
        }
        for name in ["", "(none)", "---", "ü"] {
            let error = handle(name).unwrap_err().to_string();
            assert!(error.contains("cannot be a server's handle"), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (metric, name) in [
            (UNAME, "node_uname_info"),
            (RAM_TOTAL, "node_memory_MemTotal_bytes"),
            (RAM_AVAILABLE, "node_memory_MemAvailable_bytes"),
            (DISK_SIZE, "node_filesystem_size_bytes"),
            (DISK_AVAILABLE, "node_filesystem_avail_bytes"),
            (CPU_SECONDS, "node_cpu_seconds_total"),
        ] {
            let error = error(&format!("\n{metric}"), "\nother");
            assert_eq!(error, format!("tells no {name}; is it a node_exporter on Linux?"));
        }
        assert!(parse("").unwrap_err().contains("tells no node_uname_info"));
        assert!(
            parse("<html>\n<body>It works!</body>\n</html>\n")
                .unwrap_err()
                .contains("tells no node_uname_info")
        );
        assert_eq!(error(",nodename=\"web-1\"", ""), "tells node_uname_info without the label `nodename`");
        assert_eq!(
            error("{cpu=\"1\",mode=\"idle\"}", "{mode=\"idle\"}"),
            "tells node_cpu_seconds_total without the label `cpu`"
        );
    }

    #[test]
    fn what_is_no_amount_is_named() {
        let total = "MemTotal_bytes 2.5276514304e+10";
        for (value, told) in
            [("NaN", "NaN"), ("+Inf", "inf"), ("-Inf", "-inf"), ("1e999", "inf"), ("-1", "-1")]
        {
            assert_eq!(
                error(total, &format!("MemTotal_bytes {value}")),
                format!(
                    "tells node_memory_MemTotal_bytes as {told}, where a finite number of 0 or more is expected"
                )
            );
        }
        for value in ["", " ", " many", " 1,5", " 0x10", "{a=\"b\" 1", "{a=b} 1", " 1 2 3"] {
            let error = error(total, &format!("MemTotal_bytes{value}"));
            assert!(
                error.starts_with(
                    "tells node_memory_MemTotal_bytes in a line that cannot be read: node_memory_"
                ),
                "{value}: {error}"
            );
        }
        assert!(error(total, "MemTotal_bytes 1e30").contains("more than a server can have"));
        assert_eq!(
            error("MemAvailable_bytes 2.4661610496e+10", "MemAvailable_bytes 3e+10"),
            "tells more node_memory_MemAvailable_bytes than node_memory_MemTotal_bytes"
        );
        let negative = error("mode=\"user\"} 50", "mode=\"user\"} -50");
        assert!(negative.contains("node_cpu_seconds_total as -50"), "{negative}");
    }

    #[test]
    fn a_text_that_breaks_off_is_not_taken_for_a_whole_one() {
        let cut = TEXT.find("4304e+10").unwrap();
        assert_eq!(parse(&TEXT[..cut]).unwrap_err(), "broke off in the middle of a line");
        assert_eq!(parse(TEXT.trim_end()).unwrap_err(), "broke off in the middle of a line");
    }

    #[test]
    fn the_text_of_several_hosts_is_refused() {
        let error = parse(&format!("{TEXT}{TEXT}")).unwrap_err();
        assert_eq!(error, "tells node_uname_info several times over; is it the exporter of a single host?");
        let twice = "node_cpu_seconds_total{cpu=\"1\",mode=\"user\"} 50\n";
        let error = parse(&format!("{TEXT}{twice}")).unwrap_err();
        assert!(error.contains("node_cpu_seconds_total of CPU 1 in mode user several times"), "{error}");
    }
}
