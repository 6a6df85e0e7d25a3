//! Tabs of other crates.

use std::{future::Future, pin::Pin};

use axum::Router;

/// Adds a page of another crate to the dashboard.
///
/// The tab is at `tabs/ID` below the dashboard, in the same frame and style, under the same strict
/// `Content-Security-Policy`: scripts and styles must be files that the tab serves itself.
///
/// ```
/// use tower_jobs::Scheduler;
/// use tower_jobs_dashboard::{Dashboard, Fragment, Tab, TabContext, escape};
///
/// struct Hello;
///
/// impl Tab for Hello {
///     fn id(&self) -> &str {
///         "hello"
///     }
///     fn title(&self) -> &str {
///         "Hello"
///     }
///     fn fragment(&self, context: TabContext) -> Fragment<'_> {
///         Box::pin(async move { format!("<p>at {}</p>", escape(&context.base)) })
///     }
/// }
///
/// let router = Dashboard::new(&Scheduler::new()).tab(Hello).router();
/// # let _: axum::Router = router;
/// ```
pub trait Tab: Send + Sync + 'static {
    /// Returns the tab's part of the URL: letters, digits and hyphens.
    fn id(&self) -> &str;

    /// Returns the title, as text.
    fn title(&self) -> &str;

    /// Makes the HTML of the page's main part.
    ///
    /// Texts of the application must pass through [`escape`]. A `<table class="stacked">` shows its rows as blocks on a
    /// phone, each cell behind its `data-l`.
    fn fragment(&self, context: TabContext) -> Fragment<'_>;

    /// Returns the tab's own routes, served below `tabs/ID/`. Defaults to none. It must not have the route `/`.
    ///
    /// Requests other than `GET` and `HEAD` reach them only with
    /// [`allow_actions`](crate::Dashboard::allow_actions), and from a page of the same origin.
    fn routes(&self) -> Router {
        Router::new()
    }
}

/// The HTML of a tab, once it is made.
pub type Fragment<'a> = Pin<Box<dyn Future<Output = String> + Send + 'a>>;

/// The surroundings of a tab, when its fragment is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TabContext {
    /// Path of the tab, without a slash at its end, such as `/jobs/tabs/durable`.
    pub base: String,
    /// Whether requests that change something are allowed. If not, show no buttons.
    pub allows_actions: bool,
}

/// Escapes a text for HTML, for elements and for attributes in quotes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_markup() {
        assert_eq!(
            escape("<a b='c' d=\"e\">&amp;"),
            "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;amp;"
        );
    }
}
