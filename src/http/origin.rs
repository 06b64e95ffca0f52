//! Origins: where a page in a browser comes from, as the browser tells it.

use std::{fmt, str::FromStr};

use axum::http::{HeaderValue, Uri};

/// An origin, such as `https://console.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
    /// As the header `Origin` has it.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// Why a text is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a scheme, a host and at most a port, such as https://console.example.com or http://localhost:5173"
)]
pub struct NotAnOrigin;

impl FromStr for Origin {
    type Err = NotAnOrigin;

    /// Reads an origin, and spells it as browsers do: in lower case, without the scheme's own port. There is no `*`: every page
    /// that anyone visits could call then.
    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        let text = text.to_ascii_lowercase();
        let uri: Uri = text.parse().map_err(|_| NotAnOrigin)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(NotAnOrigin);
        };
        let own_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return Err(NotAnOrigin),
        };
        let authority = authority.as_str();
        // A path, a query or a fragment would come behind it; a user's name would be in it.
        if text != format!("{scheme}://{authority}")
            || authority.contains(['@', '*'])
            || authority.ends_with(':')
        {
            return Err(NotAnOrigin);
        }
        let host = authority.strip_suffix(own_port).unwrap_or(authority);
        HeaderValue::from_str(&format!("{scheme}://{host}")).map(Self).map_err(|_| NotAnOrigin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_spelt_as_browsers_do() {
        for (given, told) in [
            ("https://console.example.com", "https://console.example.com"),
            ("HTTPS://Console.example.com:443", "https://console.example.com"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://example.com:8080", "http://example.com:8080"),
        ] {
            assert_eq!(given.parse::<Origin>().unwrap().to_string(), told, "{given}");
        }
    }

    #[test]
    fn what_is_not_one_origin_is_refused() {
        for text in [
            "",
            "*",
            "null",
            "example.com",
            "example.com:80",
            "https://",
            "https://*",
            "https://*.example.com",
            "https://example.com/",
            "https://example.com/app",
            "https://example.com?x",
            "https://user@example.com",
            "https://example.com:",
            "https://a.example.com,https://b.example.com",
            "ftp://example.com",
            "chrome-extension://abc",
            "https://exa mple.com",
        ] {
            assert_eq!(text.parse::<Origin>(), Err(NotAnOrigin), "{text}");
        }
    }
}
