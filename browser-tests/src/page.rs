//! One page in a browser.

use std::{fs, future::Future, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{PLENTY, driver::Driver, target};

/// Runs in each page before its own scripts.
const BEFORE: &str = "
    window.layoutShift = 0;
    window.layoutShifts = [];
    const at = node => node ? (node.parentNode || node).nodeName + '.' + node.className + ' ' + (node.textContent || '').slice(0, 40) : 'gone';
    const box = rect => [rect.x, rect.y, rect.width, rect.height].map(Math.round).join();
    new PerformanceObserver(list => {
        for (const shift of list.getEntries()) {
            if (shift.hadRecentInput) continue;
            window.layoutShift += shift.value;
            window.layoutShifts.push(shift.value.toFixed(4) + ' at ' + Math.round(shift.startTime) + ' ms: ' +
                shift.sources.map(s => at(s.node) + ' from ' + box(s.previousRect) + ' to ' + box(s.currentRect)).join('; '));
        }
    }).observe({ type: 'layout-shift', buffered: true });";

/// Chromium drops keys and clicks until a page is painted, which is after its load.
const PAINTED: &str =
    "new Promise(painted => requestAnimationFrame(() => requestAnimationFrame(painted)))";

/// The colours that the user prefers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// `prefers-color-scheme: light`.
    Light,
    /// `prefers-color-scheme: dark`.
    Dark,
}

/// A page, alone in a browser of its own.
#[derive(Debug)]
pub struct Page {
    pub(crate) driver: Driver,
}

pub(crate) async fn opened(driver: Driver) -> Page {
    let page = Page { driver };
    page.driver
        .devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": BEFORE }))
        .await;
    page.scheme(Scheme::Light).await;
    page.desktop().await;
    page
}

impl Page {
    /// Opens a URL, and waits until the page is loaded and painted.
    pub async fn open(&self, url: &str) {
        self.driver.post("/url", &json!({ "url": url })).await;
        self.eval(PAINTED).await;
    }

    /// Loads the page anew, and waits until it is painted.
    pub async fn reload(&self) {
        self.driver.post("/refresh", &json!({})).await;
        self.eval(PAINTED).await;
    }

    /// The URL of the page, with its `#hash`.
    pub async fn url(&self) -> String {
        self.eval("location.href").await.as_str().expect("a URL is a text").to_owned()
    }

    /// Shows the page to a user that prefers these colours.
    pub async fn scheme(&self, scheme: Scheme) {
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.driver.devtools("Emulation.setEmulatedMedia", &features).await;
    }

    /// Shows the page on a phone: 390 x 844 pixels, with touch.
    pub async fn phone(&self) {
        self.viewport(390, 844, 2.0, true).await;
    }

    /// Shows the page in a window of 1280 x 900 pixels.
    pub async fn desktop(&self) {
        self.viewport(1280, 900, 1.0, false).await;
    }

    async fn viewport(&self, width: u32, height: u32, scale: f64, mobile: bool) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile,
        });
        self.driver.devtools("Emulation.setDeviceMetricsOverride", &metrics).await;
    }

    /// Lets the page's new requests fail, or work again. Open streams stay: [`Line::cut`](crate::Line::cut) ends
    /// these.
    pub async fn offline(&self, offline: bool) {
        let conditions = json!({
            "network_conditions": { "offline": offline, "latency": 0, "throughput": -1 },
        });
        self.driver.post("/chromium/network_conditions", &conditions).await;
    }

    /// The value of a JavaScript expression. A promise is awaited.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.driver.post("/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Waits until a JavaScript expression is true.
    pub async fn wait_until(&self, what: &str, condition: &str) {
        let deadline = Instant::now() + PLENTY;
        while self.eval(&format!("Boolean({condition})")).await != Value::Bool(true) {
            if Instant::now() > deadline {
                let text = self.text("body").await;
                panic!(
                    "waited {PLENTY:?} in vain for {what}: {condition}; the page shows:\n{text}"
                );
            }
            sleep(Duration::from_millis(25)).await;
        }
    }

    /// The text of the first element of that selector, as it is rendered.
    pub async fn text(&self, selector: &str) -> String {
        let expression = format!("document.querySelector({}).innerText", json!(selector));
        self.eval(&expression).await.as_str().expect("a text").to_owned()
    }

    /// Clicks the first element of that selector, as a mouse does.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.driver.post(&format!("/element/{element}/click"), &json!({})).await;
    }

    /// Replaces the text of a field, key by key.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.driver.post(&format!("/element/{element}/clear"), &json!({})).await;
        self.driver.post(&format!("/element/{element}/value"), &json!({ "text": text })).await;
    }

    /// Presses a key where the focus is. `\u{E004}` is Tab, `\u{E007}` Enter, `\u{E00C}` Escape.
    pub async fn press(&self, key: char) {
        let keys = json!([
            { "type": "keyDown", "value": key.to_string() },
            { "type": "keyUp", "value": key.to_string() },
        ]);
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] });
        self.driver.post("/actions", &actions).await;
    }

    /// Answers the question of `confirm` with yes, and gives its text.
    pub async fn accept_question(&self) -> String {
        let text = self.driver.get("/alert/text").await;
        self.driver.post("/alert/accept", &json!({})).await;
        text.as_str().expect("a question has a text").to_owned()
    }

    async fn element(&self, selector: &str) -> String {
        let search = json!({ "using": "css selector", "value": selector });
        let found = self.driver.post("/element", &search).await;
        let id = found.as_object().and_then(|found| found.values().next());
        id.and_then(Value::as_str).expect("an element has an id").to_owned()
    }

    /// Sets a cookie for the page that is open.
    pub async fn set_cookie(&self, name: &str, value: &str) {
        let cookie = json!({ "cookie": { "name": name, "value": value, "path": "/" } });
        self.driver.post("/cookie", &cookie).await;
    }

    /// The cookies that the page's server sees, also those that scripts do not.
    pub async fn cookies(&self) -> Value {
        self.driver.get("/cookie").await
    }

    /// Runs `future` while another tab is in front, so that the page is hidden.
    pub async fn while_hidden<F: Future>(&self, future: F) -> F::Output {
        let own = self.driver.get("/window").await;
        let other = self.driver.post("/window/new", &json!({ "type": "tab" })).await;
        self.driver.post("/window", &json!({ "handle": other["handle"] })).await;
        let output = future.await;
        self.driver.delete("/window").await;
        self.driver.post("/window", &json!({ "handle": own })).await;
        output
    }

    /// Writes the window's content to `target/screenshots/NAME.png`.
    pub async fn screenshot(&self, name: &str) {
        self.captured(name, &json!({ "format": "png" })).await;
    }

    /// Writes the whole page, also what lies below the window, to `target/screenshots/NAME.png`.
    pub async fn screenshot_all(&self, name: &str) {
        let metrics = self.driver.devtools("Page.getLayoutMetrics", &json!({})).await;
        let mut clip = metrics["cssContentSize"].clone();
        clip["scale"] = json!(1);
        let options = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        self.captured(name, &options).await;
    }

    async fn captured(&self, name: &str, options: &Value) {
        let answer = self.driver.devtools("Page.captureScreenshot", options).await;
        let data = answer["data"].as_str().expect("a picture");
        let picture = STANDARD.decode(data).expect("base64");
        let folder = target().join("screenshots");
        fs::create_dir_all(&folder).expect("a folder can be made in the target directory");
        fs::write(folder.join(format!("{name}.png")), picture).expect("a file can be written");
    }

    /// The sum of the page's layout shifts since it was loaded. Those that a key or a click made do not count.
    pub async fn layout_shift(&self) -> f64 {
        self.eval("window.layoutShift").await.as_f64().expect("a number")
    }

    /// The layout shifts since the page was loaded, with what moved: for the text of a failed test.
    pub async fn layout_shifts(&self) -> String {
        self.eval("window.layoutShifts.join('\\n')").await.as_str().expect("a text").to_owned()
    }

    /// The errors in the console since the last call: uncaught exceptions, `console.error`, failed loads, and
    /// violations of the content security policy.
    pub async fn console_errors(&self) -> Vec<String> {
        let entries = self.driver.post("/se/log", &json!({ "type": "browser" })).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let errors = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].as_str().unwrap_or("").to_owned()).collect()
    }

    /// Fails if there were errors in the console since the last look.
    pub async fn assert_no_console_errors(&self) {
        let errors = self.console_errors().await;
        assert!(errors.is_empty(), "errors in the console: {errors:#?}");
    }
}
