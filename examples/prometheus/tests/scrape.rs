//! The program's scrape over HTTP, and the dashboard and the alerts against it.
//!
//! `promtool` and `prometheus` are Debian's package `prometheus`. Without them these parts are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and say what it skips"
)]
#![allow(clippy::disallowed_types, reason = "real time, by which a test gives up")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The real time after which a test fails. Only a program that hangs takes as long.
const PLENTY: Duration = Duration::from_secs(60);

// The program.

struct Program {
    child: Child,
    app: SocketAddr,
    metrics: SocketAddr,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tower-jobs-prometheus-example"))
            .envs([("ADDR", "127.0.0.1:0"), ("METRICS", "127.0.0.1:0")])
            .stdout(Stdio::piped())
            // The failures of its jobs.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |begin: &str| -> SocketAddr {
            let line = lines.next().expect("a line").unwrap();
            let address = line.strip_prefix(begin).unwrap_or_else(|| panic!("{line}"));
            address.trim_end_matches("/metrics").parse().unwrap()
        };
        let metrics = address("metrics on http://");
        let app = address("listening on http://");
        Self { child, app, metrics }
    }

    /// Spawns three jobs that complete, two that fail, and one without a name.
    fn load(&self) {
        for (path, times) in [("/signup", 3), ("/import", 2), ("/audit", 1)] {
            for _ in 0..times {
                let (status, _) = http(self.app, "POST", path);
                assert_eq!(status, 202, "{path}");
            }
        }
    }

    fn scrape(&self) -> String {
        let (status, text) = http(self.metrics, "GET", "/metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The scrape once all jobs have ended. Its gauges are set a moment before its counters are read.
    fn scrape_at_rest(&self) -> String {
        let since = Instant::now();
        loop {
            let text = self.scrape();
            let scrape = Scrape::new(&text);
            let of =
                |name: &str| scrape.series[name].iter().map(|series| series.value).sum::<f64>();
            let has_ended = of("tower_jobs_accepted_total") == of("tower_jobs_ended_total");
            if has_ended && of("tower_jobs_active") == 0.0 {
                return text;
            }
            assert!(since.elapsed() < PLENTY, "jobs do not end:\n{text}");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started");
    }
}

fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    try_http(address, method, path).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// Over HTTP/1.0, whose bodies have no chunks.
fn try_http(address: SocketAddr, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PLENTY))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok((status, body.to_owned()))
}

// What it says.

struct Scrape {
    series: BTreeMap<String, Vec<Series>>,
}

struct Series {
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Of label values without quotes and commas.
    fn new(text: &str) -> Self {
        let mut series = BTreeMap::<String, Vec<Series>>::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (id, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = id.split_once('{').unwrap_or((id, ""));
            let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                Some((name.to_owned(), value.trim_matches('"').to_owned()))
            });
            let (labels, value) = (pairs.collect(), value.parse().expect("a number"));
            series.entry(name.to_owned()).or_default().push(Series { labels, value });
        }
        Self { series }
    }

    fn values_of(&self, metric: &str, label: &str) -> BTreeSet<&str> {
        let all = self.series[metric].iter();
        all.filter_map(|series| series.labels.get(label)).map(String::as_str).collect()
    }

    /// The faults of an expression: metrics, labels and values of labels that are not in the scrape.
    fn faults(&self, expression: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let metrics = metrics_of(expression);
        if metrics.is_empty() {
            faults.push(format!("no metric in {expression}"));
        }
        for (metric, matchers) in metrics {
            if !self.series.contains_key(metric) {
                faults.push(format!("no metric {metric}: {expression}"));
                continue;
            }
            for (label, values) in matchers {
                let known = self.values_of(metric, label);
                let is_known = |value: &&str| value.starts_with('$') || known.contains(value);
                if known.is_empty() || !values.split('|').all(|value| is_known(&value)) {
                    faults.push(format!("{metric} has no {label}={values}: {expression}"));
                }
            }
        }
        faults
    }
}

type Matchers<'a> = Vec<(&'a str, &'a str)>;

/// Each `tower_jobs_..` of an expression, with the labels and values in its braces.
fn metrics_of(expression: &str) -> Vec<(&str, Matchers<'_>)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("tower_jobs_") {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (metric, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matchers = braces.map_or("", |(inside, _)| inside).split_terminator("\",");
        let matchers = matchers.map(|matcher| {
            let (label, value) = matcher.split_once('"').expect("a quoted value");
            (label.trim_end_matches(['=', '!', '~']), value.trim_end_matches('"'))
        });
        found.push((metric, matchers.collect()));
    }
    found
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// All queries of the dashboard.
fn dashboard() -> Vec<String> {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if name == "expr" => queries.push(text.clone()),
                        // Of a variable of the dashboard. That of a data source names its kind.
                        Value::String(text) if name == "query" && text.contains('(') => {
                            queries.push(text.clone());
                        }
                        value => collect(value, queries),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
            _ => {}
        }
    }
    let text = fs::read_to_string(file("grafana.json")).unwrap();
    let mut queries = Vec::new();
    collect(&serde_json::from_str(&text).expect("JSON"), &mut queries);
    queries
}

/// As Grafana sends it for all schedulers.
fn sent(query: &str) -> String {
    query.replace("$scheduler", ".*").replace("$__rate_interval", "1m")
}

// The tools.

fn has(tool: &str) -> bool {
    let mut version = Command::new(tool);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let is_there = version.status().is_ok();
    if !is_there {
        println!("skipped: there is no {tool} here: apt-get install prometheus");
    }
    is_there
}

#[track_caller]
fn promtool(arguments: &[&str], input: impl FnOnce(ChildStdin)) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    input(child.stdin.take().unwrap());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    assert!(output.status.success(), "promtool {arguments:?}: {said:?}");
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

// The tests.

#[test]
fn scrape_has_exact_counts_of_the_jobs() {
    let program = Program::start();
    program.load();
    let text = program.scrape_at_rest();
    for line in [
        r#"tower_jobs_accepted_total{scheduler="mail"} 6"#,
        r#"tower_jobs_ended_total{scheduler="mail",name="welcome e-mail",outcome="completed"} 3"#,
        r#"tower_jobs_ended_total{scheduler="mail",name="import",outcome="failed"} 2"#,
        r#"tower_jobs_ended_total{scheduler="mail",name="import",outcome="completed"} 0"#,
        r#"tower_jobs_refused_total{scheduler="mail",reason="pending_full"} 0"#,
        r#"tower_jobs_run_seconds_bucket{scheduler="mail",name="welcome e-mail",le="0.005"} 0"#,
        r#"tower_jobs_run_seconds_count{scheduler="mail",name="welcome e-mail"} 3"#,
        r#"tower_jobs_queue_seconds_count{scheduler="mail"} 6"#,
        r#"tower_jobs_limit{scheduler="mail"} 20"#,
        r#"tower_jobs_active{scheduler="mail"} 0"#,
    ] {
        assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
    }
    let scrape = Scrape::new(&text);
    let names = scrape.values_of("tower_jobs_ended_total", "name");
    let unnamed: Vec<_> = names.iter().filter(|name| name.contains("src/main.rs:")).collect();
    assert_eq!((names.len(), unnamed.len()), (3, 1), "{names:?}");
    // As the chapter `metrics` says: 36 of the scheduler, and 22 of each name.
    assert_eq!(scrape.series.values().map(Vec::len).sum::<usize>(), 36 + 3 * 22);
}

#[test]
fn promtool_finds_no_fault_in_the_scrape() {
    if !has("promtool") {
        return;
    }
    let program = Program::start();
    program.load();
    let text = program.scrape_at_rest();
    promtool(&["check", "metrics"], |mut input| input.write_all(text.as_bytes()).unwrap());
}

#[test]
fn promtool_finds_no_fault_in_the_rules() {
    if !has("promtool") {
        return;
    }
    promtool(&["check", "config", "prometheus.yml"], drop);
    promtool(&["check", "rules", "alerts.yml"], drop);
    promtool(&["test", "rules", "alerts_test.yml"], drop);
}

#[test]
fn dashboard_and_alerts_query_only_series_of_the_scrape() {
    let program = Program::start();
    program.load();
    let text = program.scrape_at_rest();
    let scrape = Scrape::new(&text);
    let queries = dashboard();
    assert!(queries.len() > 20, "{queries:?}");
    let mut faults: Vec<_> = queries.iter().flat_map(|query| scrape.faults(query)).collect();
    let alerts = fs::read_to_string(file("alerts.yml")).unwrap();
    // Without the words of its texts, which name no metric.
    faults.extend(scrape.faults(&alerts));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for metric in scrape.series.keys().filter(|name| name.starts_with("tower_jobs_")) {
        let queried = |query: &String| metrics_of(query).iter().any(|(name, _)| name == metric);
        let is_setting = metric.ends_with("_limit") || metric.ends_with("_per_key");
        let is_part = metric.ends_with("_sum") || metric.ends_with("_count");
        let is_left_out = metric == "tower_jobs_oldest_deferred_seconds";
        assert!(
            is_setting || is_part || is_left_out || queries.iter().any(queried),
            "the dashboard does not show {metric}"
        );
    }
}

#[test]
fn unknown_metrics_labels_and_values_are_faults() {
    let scrape = Scrape::new("tower_jobs_a{scheduler=\"mail\",reason=\"closed\"} 1\n");
    let faults = |query: &str| scrape.faults(query).len();
    assert_eq!(faults(r#"rate(tower_jobs_a{scheduler=~"$scheduler",reason!="closed"}[5m])"#), 0);
    assert_eq!(faults(r#"tower_jobs_a{reason=~"closed|open"}"#), 1);
    assert_eq!(faults(r#"tower_jobs_a{outcome="closed"}"#), 1);
    assert_eq!(faults("tower_jobs_a + tower_jobs_b"), 1);
    assert_eq!(faults("vector(1)"), 1);
}

#[test]
fn prometheus_answers_each_query_of_the_dashboard() {
    if !has("prometheus") {
        return;
    }
    let program = Program::start();
    program.load();
    let prometheus = Prometheus::start(program.metrics);
    let since = Instant::now();
    for query in dashboard().iter().filter(|query| !query.starts_with("label_values")) {
        // Rates need two scrapes, with jobs between them.
        while let Err(answer) = prometheus.ask(&sent(query)) {
            assert!(since.elapsed() < 2 * PLENTY, "{query}: {answer}");
            program.load();
        }
    }
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let folder = folder("prometheus");
        let config = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: tower-jobs\n  \
             static_configs: [{{ targets: ['{target}'] }}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// Whether there is an answer with a number.
    fn ask(&self, query: &str) -> Result<(), String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let (_, answer) =
            try_http(self.address, "GET", &path).map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        let results = value["data"]["result"].as_array().cloned().unwrap_or_default();
        let is_number = |result: &Value| {
            let number = result["value"][1].as_str().and_then(|number| number.parse::<f64>().ok());
            number.is_some_and(|number| !number.is_nan())
        };
        if results.iter().any(is_number) { Ok(()) } else { Err(answer) }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started");
    }
}
