//! Which requests may change something: those that the page itself sends.

use http::{HeaderMap, Uri, header};

/// Whether a request comes from a page of the same origin.
///
/// Browsers say so in `Sec-Fetch-Site`. One without that header must send an `Origin` with this host.
pub(crate) fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else {
        return false;
    };
    let origin: Option<Uri> = origin.parse().ok();
    let authority = origin.as_ref().and_then(Uri::authority);
    authority.is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, http::HeaderValue::from_static(value));
        }
        is_same_origin(&map)
    }

    #[test]
    fn only_own_page_is_same_origin() {
        let host = ("host", "admin.example:8080");
        assert!(allows(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(allows(&[host, ("origin", "https://admin.example:8080")]));
        for refused in ["cross-site", "same-site", "none", ""] {
            let own = ("origin", "https://admin.example:8080");
            assert!(!allows(&[host, own, ("sec-fetch-site", refused)]), "{refused}");
        }
        for refused in ["https://evil.example", "https://admin.example", "null", "admin.example"] {
            assert!(!allows(&[host, ("origin", refused)]), "{refused}");
        }
        assert!(!allows(&[host]) && !allows(&[("origin", "https://admin.example:8080")]));
    }
}
