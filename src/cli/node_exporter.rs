//! Scrapes a Prometheus node_exporter over HTTP: a URL in, the text of its metrics out.
//!
//! Every scrape has an end in time and in size, and what is no metrics page is refused with what it is instead. What the
//! text means is `node_metrics`'. There is no TLS and there are no credentials: an exporter is read within a network that
//! is trusted.

use std::{fmt, time::Duration};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tonic::transport::Uri;

use super::client::innermost;

/// An exporter on a host with thousands of disks and interfaces answers with a few of them.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
const METRICS_PATH: &str = "/metrics";
const EXAMPLE: &str = "http://web-1:9100";

/// Where an exporter is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exporter {
    url: String,
    authority: String,
    path: String,
}

impl Exporter {
    /// Reads a URL: `http://HOST:PORT`, with the path of the metrics where that is not `/metrics`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}; an exporter is written {EXAMPLE}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("https is not supported, write http://".to_owned()),
            _ => return Err(format!("it must start with http://, as in {EXAMPLE}")),
        }
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err(format!("it names no host; an exporter is written {EXAMPLE}"));
        };
        if authority.as_str().contains('@') {
            return Err("a user in the URL is not supported".to_owned());
        }
        let authority = authority.as_str().to_ascii_lowercase();
        let path = match uri.path() {
            "" | "/" => METRICS_PATH,
            path => path,
        };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{path}{query}");
        Ok(Self { url: format!("http://{authority}{path}"), authority, path })
    }

    /// The host, as a server's address: a DNS name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let host = host.map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// What a source calls the server behind it: host and port, and the path where several exporters share those.
    #[must_use]
    pub fn external_id(&self) -> String {
        let path = if self.path == METRICS_PATH { "" } else { &self.path };
        format!("{}{path}", self.authority)
    }

    /// The host that an external id of ours names; none for an id of another kind.
    #[must_use]
    pub fn host_of_external_id(external_id: &str) -> Option<String> {
        let exporter = Self::parse(&format!("http://{external_id}")).ok()?;
        (exporter.external_id() == external_id).then(|| exporter.host().to_owned())
    }
}

impl fmt::Display for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Why an exporter's text could not be had. The words follow its URL.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No connection came about, or it broke before the answer began.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The answer was not whole in time.
    #[error("did not answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// The answer is an error or a redirection.
    #[error("answered {0}, where 200 OK is expected; is it a node_exporter?")]
    Status(String),
    /// The answer is a web page or the like.
    #[error("answered with {0}, where text/plain is expected; is it a node_exporter?")]
    ContentType(String),
    /// The answer is longer than any exporter's.
    #[error("answered with more than {} MB", MAX_ANSWER_BYTES / 1024 / 1024)]
    TooLong,
    /// The connection broke in the middle of the answer.
    #[error("broke off in the middle of its answer: {0}")]
    BrokenOff(String),
    /// The answer is no text.
    #[error("answered with bytes that are not UTF-8 text")]
    NotText,
}

/// Scrapes exporters.
#[derive(Clone)]
pub struct Scraper {
    client: Client<HttpConnector, String>,
    timeout: Duration,
}

impl Scraper {
    /// One that gives an exporter this long for its whole answer.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        // A connection of its own for each scrape: one that was kept could be dead by the next one, and a host that
        // answers would be told as silent.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { client, timeout }
    }

    /// Reads an exporter's text.
    ///
    /// # Errors
    /// [`ScrapeError`]
    pub async fn scrape(&self, exporter: &Exporter) -> Result<String, ScrapeError> {
        let answer = tokio::time::timeout(self.timeout, self.get(&exporter.url));
        answer.await.unwrap_or(Err(ScrapeError::TimedOut(self.timeout)))
    }

    async fn get(&self, url: &str) -> Result<String, ScrapeError> {
        let uri = url.parse().map_err(|error| ScrapeError::Unreachable(format!("{error}")))?;
        let answer = self.client.get(uri).await;
        let answer = answer.map_err(|error| ScrapeError::Unreachable(innermost(&error)))?;
        if answer.status().as_u16() != 200 {
            return Err(ScrapeError::Status(answer.status().to_string()));
        }
        if let Some(value) = answer.headers().get("content-type") {
            let value = String::from_utf8_lossy(value.as_bytes());
            let kind = value.split(';').next().unwrap_or_default().trim();
            if !kind.eq_ignore_ascii_case("text/plain") {
                return Err(ScrapeError::ContentType(kind.escape_debug().to_string()));
            }
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => ScrapeError::TooLong,
            None => ScrapeError::BrokenOff(innermost(error.as_ref())),
        })?;
        String::from_utf8(body.to_bytes().into()).map_err(|_| ScrapeError::NotText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(text: &str) -> Exporter {
        Exporter::parse(text).unwrap()
    }

    #[test]
    fn the_path_of_the_metrics_may_be_left_out() {
        for text in
            ["http://web-1:9100", "http://web-1:9100/", "http://web-1:9100/metrics", "http://WEB-1:9100"]
        {
            assert_eq!(exporter(text).to_string(), "http://web-1:9100/metrics", "{text}");
        }
        assert_eq!(exporter("http://proxy/a/metrics").to_string(), "http://proxy/a/metrics");
        assert_eq!(
            exporter("http://web-1:9100?collect=cpu").to_string(),
            "http://web-1:9100/metrics?collect=cpu"
        );
    }

    #[test]
    fn host_and_external_id_follow_from_the_url() {
        for (text, host, external_id) in [
            ("http://web-1:9100", "web-1", "web-1:9100"),
            ("http://web-1", "web-1", "web-1"),
            ("http://192.0.2.1:9100/metrics", "192.0.2.1", "192.0.2.1:9100"),
            ("http://[2001:db8::1]:9100", "2001:db8::1", "[2001:db8::1]:9100"),
            ("http://[2001:db8::1]", "2001:db8::1", "[2001:db8::1]"),
            ("http://proxy:80/a/metrics", "proxy", "proxy:80/a/metrics"),
        ] {
            let exporter = exporter(text);
            assert_eq!((exporter.host(), exporter.external_id().as_str()), (host, external_id), "{text}");
            assert_eq!(Exporter::host_of_external_id(external_id).as_deref(), Some(host), "{text}");
        }
        for other in ["", "i-7/", "an id", "a@b:1"] {
            assert_eq!(Exporter::host_of_external_id(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_exporters_url_is_refused_with_the_reason() {
        for (text, reason) in [
            ("web-1:9100", "must start with http://"),
            ("servers.toml", "must start with http://"),
            ("/etc/servers.toml", "must start with http://"),
            ("https://web-1:9100", "https is not supported"),
            ("http://user:secret@web-1:9100", "a user in the URL"),
            ("http://:9100", "names no host"),
            ("http://", "an exporter is written"),
            ("", "an exporter is written"),
        ] {
            let error = Exporter::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
