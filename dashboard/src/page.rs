//! The page: its files, embedded.

use crate::tab::escape;

/// The files that the page loads, with their types.
pub(crate) const FILES: [(&str, &str, &str); 6] = [
    ("page.css", CSS, include_str!("page/page.css")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("model.js", SCRIPT, include_str!("page/model.js")),
    ("lists.js", SCRIPT, include_str!("page/lists.js")),
    ("chart.js", SCRIPT, include_str!("page/chart.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
];
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const FRAME: &str = include_str!("page/frame.html");
const JOBS: &str = include_str!("page/jobs.html");

/// What a page shows around its main part.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    /// Path of the dashboard, without a slash at its end.
    pub(crate) base: &'a str,
    pub(crate) app: &'a str,
    pub(crate) allows_actions: bool,
    /// Ids and titles of the tabs of other crates.
    pub(crate) tabs: &'a [(String, String)],
}

impl Frame<'_> {
    /// The page of the jobs.
    pub(crate) fn jobs(&self) -> String {
        let base = escape(self.base);
        let script = format!("<script type=\"module\" src=\"{base}/assets/main.js\"></script>");
        self.fill("jobs", &script, &JOBS.replace("{{base}}", &base))
    }

    /// The page of a tab.
    pub(crate) fn tab(&self, title: &str, fragment: &str) -> String {
        let heading = format!("<h2>{}</h2>", escape(title));
        let main =
            format!("<main id=\"main\" class=\"wrap\" tabindex=\"-1\">{heading}{fragment}</main>");
        self.fill(title, "", &main)
    }

    /// Fills the frame. The main part comes last, so that no text in it is taken for a place to fill.
    fn fill(&self, title: &str, script: &str, main: &str) -> String {
        let links = self.tabs.iter().map(|(id, link)| {
            let current = if link == title { " aria-current=\"page\"" } else { "" };
            let (base, id, link) = (escape(self.base), escape(id), escape(link));
            format!("<a class=\"tab\" href=\"{base}/tabs/{id}\"{current}>{link}</a>")
        });
        let mode = if self.allows_actions { "with actions" } else { "read-only" };
        FRAME
            .replace("{{mode}}", mode)
            .replace("{{script}}", script)
            .replace("{{version}}", env!("CARGO_PKG_VERSION"))
            .replace("{{base}}", &escape(self.base))
            .replace("{{title}}", &escape(title))
            .replace("{{tabs}}", &links.collect::<String>())
            .replace("{{app}}", &escape(self.app))
            .replacen("{{main}}", main, 1)
    }
}
