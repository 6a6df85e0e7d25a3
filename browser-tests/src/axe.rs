//! Accessibility, checked by axe-core.

use std::fs;

use serde_json::{Value, json};

use crate::{Page, skip, target};

impl Page {
    /// The page's faults in accessibility, one text each.
    ///
    /// Without axe-core in `target/browser` it prints a line and gives none; `just test-browser` installs it. In
    /// CI that is a failure.
    pub async fn accessibility_faults(&self) -> Vec<String> {
        let path = target().join("browser/node_modules/axe-core/axe.min.js");
        let Ok(axe) = fs::read_to_string(path) else {
            skip("no axe-core in target/browser: `just test-browser` installs it");
            return Vec::new();
        };
        self.driver.post("/execute/sync", &json!({ "script": axe, "args": [] })).await;
        let run = self.eval("axe.run(document, { resultTypes: ['violations'] })").await;
        let checked = run["passes"].as_array().map_or(0, Vec::len);
        assert!(checked > 0, "axe-core has checked nothing: {run}");
        run["violations"].as_array().into_iter().flatten().map(fault).collect()
    }

    /// Fails if the page has faults in accessibility.
    pub async fn assert_accessible(&self) {
        let faults = self.accessibility_faults().await;
        assert!(faults.is_empty(), "faults in accessibility: {faults:#?}");
    }
}

/// A rule, and the places that break it.
fn fault(violation: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = violation["nodes"].as_array().into_iter().flatten();
    let places = nodes.map(|node| text(&node["html"]) + ": " + &text(&node["failureSummary"]));
    let places = places.collect::<Vec<_>>().join("; ");
    format!("{}: {} at {places}", text(&violation["id"]), text(&violation["help"]))
}
