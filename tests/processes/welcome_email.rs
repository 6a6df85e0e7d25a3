//! `examples/welcome_email.rs` as a process, with HTTP over TCP and a real mail server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use http_body_util::{Full, channel::Channel};
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::{mpsc, watch},
};
use tower_jobs::{BoxError, JobId};

use crate::support::{
    http::{Answer, get, send},
    mail::{Delivered, MailServer},
    process::{Process, empty_folder, example},
    within,
};

fn welcome_email(folder: &Path) -> Command {
    let mut command = example("welcome_email", folder);
    command.env_remove("SMTP_URL").env_remove("OUTBOX");
    command
}

fn post_signup<B>(body: B) -> Request<B> {
    Request::post("/signup")
        .header("content-type", "application/json")
        .body(body)
        .expect("a valid request")
}

async fn sign_up(to: SocketAddr, form: &str) -> Result<Answer, BoxError> {
    send(to, post_signup(Full::<Bytes>::from(form.to_owned()))).await
}

/// Signs up `guest-N@example.com`, asserts the answer 202, and gives the id of the job.
async fn sign_up_guest(to: SocketAddr, n: usize) -> JobId {
    let answer = sign_up(to, &guest(n)).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    job_id(&answer)
}

fn guest(n: usize) -> String {
    json!({ "name": format!("Guest {n}"), "email": format!("guest-{n}@example.com") }).to_string()
}

fn job_id(answer: &Answer) -> JobId {
    let body: Value = serde_json::from_str(&answer.text).expect("JSON");
    body["job"].as_str().and_then(|id| id.parse().ok()).expect("a job id")
}

async fn stats(to: SocketAddr) -> BTreeMap<String, Value> {
    let answer = get(to, "/stats").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    serde_json::from_str(&answer.text).expect("JSON")
}

/// The ids of the jobs that the report names.
fn named(report: &str) -> BTreeSet<JobId> {
    let ids = report.split("job ").skip(1);
    ids.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
}

/// The number of letters to each guest.
fn letters(delivered: &[Delivered]) -> BTreeMap<&str, usize> {
    let mut letters = BTreeMap::new();
    for message in delivered {
        assert_eq!(message.to.len(), 1, "{message:?}");
        *letters.entry(message.to[0].as_str()).or_default() += 1;
    }
    letters
}

/// A mail server that never answers, since its connections are not accepted.
fn silent_mail_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("smtp://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

/// Sends 200 sign-ups at once. At SIGTERM, at least 60 are answered, none is delivered, and 100 are
/// in the middle of their requests.
#[tokio::test]
async fn accepted_sign_up_is_delivered_once_across_sigterm() {
    let Some(mut mail) = MailServer::start("hold").await else { return };
    let folder = empty_folder("sigterm");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", &mail.url));
    let address = program.address().await;

    let (finish, finished) = watch::channel(false);
    let (half_sent, mut half_sents) = mpsc::unbounded_channel();
    let (answered, mut answers) = mpsc::unbounded_channel();
    for n in 0..200 {
        let (answered, half_sent, mut finished) =
            (answered.clone(), half_sent.clone(), finished.clone());
        tokio::spawn(async move {
            let answer = if n < 100 {
                sign_up(address, &guest(n)).await
            } else {
                let form = guest(n);
                let (first, rest) = form.split_at(form.len() / 2);
                let (mut sender, body) = Channel::<Bytes>::new(1);
                let mut request = post_signup(body);
                // The server sends "100 Continue" when the handler reads the body.
                request.headers_mut().insert("expect", "100-continue".parse().expect("a value"));
                hyper::ext::on_informational(&mut request, move |_| {
                    half_sent.send(()).expect("the test waits for it");
                });
                let answer = tokio::spawn(send(address, request));
                sender.send_data(first.to_owned().into()).await.expect("the server reads");
                finished.wait_for(|finished| *finished).await.expect("the test says when");
                sender.send_data(rest.to_owned().into()).await.expect("the server reads");
                drop(sender);
                answer.await.expect("sending does not panic")
            };
            answered.send((n, answer)).expect("the test waits for it");
        });
    }
    drop(answered);

    let mut accepted = BTreeMap::new();
    let mut record = |(n, answer): (usize, Result<Answer, BoxError>)| match answer {
        Ok(answer) if answer.status == StatusCode::ACCEPTED => {
            accepted.insert(job_id(&answer), n);
        }
        // A sign-up that comes too late is refused.
        other => assert!(n < 100, "sign-up {n} had begun before SIGTERM: {other:?}"),
    };
    for _ in 0..100 {
        within("a half-sent request", half_sents.recv()).await;
    }
    for _ in 0..60 {
        record(within("a sign-up", answers.recv()).await.expect("200 come"));
    }
    assert_eq!(stats(address).await["completed"], 0);
    program.terminate().await;
    program.stderr.line_with("shutting down").await;
    finish.send_replace(true);
    while let Some(answer) = within("a sign-up", answers.recv()).await {
        record(answer);
    }
    program.stderr.line_with("draining").await;
    mail.obey("take").await;
    let ended = program.ended().await;

    let delivered = mail.delivered().await;
    let (letters, named) = (letters(&delivered), named(&ended.stdout));
    assert!(accepted.len() >= 160, "{} accepted", accepted.len());
    assert!(letters.values().all(|&times| times == 1), "delivered twice: {letters:?}");
    for (id, n) in &accepted {
        let guest = format!("guest-{n}@example.com");
        assert!(
            letters.contains_key(guest.as_str()) || named.contains(id),
            "job {id} is lost, for {guest}: {} of {} delivered; {ended:#?}",
            letters.len(),
            accepted.len()
        );
    }
    assert_eq!(ended.code == Some(0), named.is_empty(), "{ended:#?}");
    assert_eq!(ended.code, Some(0), "nothing kept the mail from going out: {ended:#?}");
    for message in delivered {
        let number = message.to[0].trim_start_matches("guest-").trim_end_matches("@example.com");
        assert!(message.text.contains(&format!("Hello Guest {number},")), "{message:?}");
        assert_eq!(message.from, "welcome@example.com");
    }
}

#[tokio::test]
async fn mail_that_fails_during_the_drain_is_named_in_the_report() {
    let Some(mut mail) = MailServer::start("hold").await else { return };
    let folder = empty_folder("fails-in-drain");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", &mail.url));
    let address = program.address().await;
    let mut accepted = BTreeSet::new();
    for n in 0..20 {
        accepted.insert(sign_up_guest(address, n).await);
    }
    program.terminate().await;
    program.stderr.line_with("draining").await;
    mail.obey("refuse").await;
    let ended = program.ended().await;
    assert_eq!(named(&ended.stdout), accepted, "{ended:#?}");
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_eq!(mail.delivered().await.len(), 0);
}

#[tokio::test]
async fn silent_mail_server_delays_nothing_and_every_job_is_named() {
    let (_server, url) = silent_mail_server();
    let folder = empty_folder("silent");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", url));
    let address = program.address().await;
    let mut accepted = BTreeSet::new();
    for n in 0..30 {
        accepted.insert(sign_up_guest(address, n).await);
    }
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(named(&ended.stdout), accepted, "{ended:#?}");
    assert_eq!(ended.stdout.lines().count(), 2, "the report is one line: {ended:#?}");
    assert_eq!(ended.code, Some(1), "{ended:#?}");
}

#[tokio::test]
async fn refused_mail_is_reported_and_the_server_goes_on() {
    let Some(mut mail) = MailServer::start("refuse").await else { return };
    let folder = empty_folder("refused");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", &mail.url));
    let address = program.address().await;
    let refused = sign_up_guest(address, 1).await;
    let line = program.stderr.line_with("550").await;
    assert!(reports(&line, refused), "{line}");
    failures_are_counted(address, 1).await;

    mail.obey("take").await;
    let taken = sign_up_guest(address, 2).await;
    assert_ne!(taken, refused);
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "the failure was before the drain: {ended:#?}");
    assert_eq!(letters(&mail.delivered().await), BTreeMap::from([("guest-2@example.com", 1)]));
}

#[tokio::test]
async fn unreachable_mail_server_is_reported_and_the_server_goes_on() {
    let (server, url) = silent_mail_server();
    drop(server); // Its address refuses connections now.
    let folder = empty_folder("unreachable");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", url));
    let address = program.address().await;
    for n in 0..2 {
        let id = sign_up_guest(address, n).await;
        let line = program.stderr.line_with(&format!("id={id} ")).await;
        assert!(reports(&line, id) && line.contains("refused"), "{line}");
    }
    failures_are_counted(address, 2).await;
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "the failures were before the drain: {ended:#?}");
}

/// A failure is reported first and counted then. An uncounted one would belong to the drain.
async fn failures_are_counted(to: SocketAddr, failures: u64) {
    let counted = async { while stats(to).await["failed"] != failures {} };
    within("the failures to be counted", counted).await;
}

/// Whether a line of the log reports that the welcome e-mail with that id failed.
fn reports(line: &str, id: JobId) -> bool {
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    line.contains("ERROR")
        && line.contains("welcome e-mail")
        && words.any(|word| word == id.to_string())
}

#[tokio::test]
async fn without_a_mail_server_the_message_lands_in_the_outbox() {
    let folder = empty_folder("outbox");
    for (settings, outbox) in [(None, "outbox"), (Some("sent/today"), "sent/today")] {
        let mut command = welcome_email(&folder);
        command.envs(settings.map(|outbox| ("OUTBOX", outbox)));
        let program = Process::start(&mut command);
        let form = r#"{"name": " Ada Lovelace ", "email": "ada@example.com"}"#;
        let answer = sign_up(program.address().await, form).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        program.terminate().await;
        let ended = program.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");

        let files = fs::read_dir(folder.join(outbox)).expect("the program made the folder");
        let files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].extension(), Some("eml".as_ref()), "{files:?}");
        let message = fs::read_to_string(&files[0]).expect("a readable message");
        assert!(message.contains("ada@example.com"), "{message}");
        assert!(message.contains("Hello Ada Lovelace,"), "{message}");
    }
}

#[tokio::test]
async fn unusable_sign_up_is_refused_with_the_cure() {
    let folder = empty_folder("refuses");
    let program = Process::start(&mut welcome_email(&folder));
    let address = program.address().await;
    let long = json!({ "name": "x".repeat(101), "email": "a@example.com" }).to_string();
    let huge = json!({ "name": "x".repeat(10_000), "email": "a@example.com" }).to_string();
    for (form, status, parts) in [
        ("{\"name\": \"Ada\"", 400, &["JSON", "line 1"][..]),
        ("", 400, &["JSON", "EOF"]),
        (r#"{"name": "Ada"}"#, 422, &["missing field `email`"]),
        (r#"{"name": 7, "email": "a@example.com"}"#, 422, &["name", "expected a string"]),
        (r#"{"name": "Ada", "mail": "a@example.com"}"#, 422, &["unknown field `mail`", "`email`"]),
        (r#"{"name": "Ada", "email": "ada"}"#, 422, &["\"ada\"", "give one like"]),
        (r#"{"name": "Ada", "email": "a@b@c d"}"#, 422, &["\"a@b@c d\"", "give one like"]),
        (r#"{"name": "Ada", "email": "a@example.com\r\nBcc: b@example.com"}"#, 422, &["Bcc"]),
        (r#"{"name": "", "email": "a@example.com"}"#, 422, &["name \"\"", "1 to 100"]),
        (r#"{"name": " ", "email": "a@example.com"}"#, 422, &["name \"\"", "1 to 100"]),
        (
            r#"{"name": "Ada\r\nBcc: b@example.com", "email": "a@example.com"}"#,
            422,
            &[r#"name "Ada\r\nBcc: b@example.com""#, "without control characters"],
        ),
        (&long, 422, &["xxx", "1 to 100"]),
        (&huge, 413, &["limit"]),
    ] {
        let answer = sign_up(address, form).await.expect("an answer");
        assert_eq!(answer.status.as_u16(), status, "{form}: {answer:?}");
        for part in parts {
            assert!(answer.text.contains(part), "{form}: no {part:?} in {:?}", answer.text);
        }
    }
    let untyped = Request::post("/signup").body(Full::<Bytes>::from(guest(1)));
    let answer = send(address, untyped.expect("a valid request")).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(answer.text.contains("application/json"), "{answer:?}");
    assert_eq!(stats(address).await["accepted"], 0);
}

#[tokio::test]
async fn unusable_setting_is_an_error_at_start_with_the_cure() {
    let folder = empty_folder("settings");
    fs::write(folder.join("a-file"), "").expect("a file can be made");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken_addr = taken.local_addr().expect("an address").to_string();
    for (name, value, parts) in [
        ("ADDR", "here", &["\"here\"", "HOST:PORT"][..]),
        ("ADDR", "127.0.0.1:70000", &["70000", "HOST:PORT"]),
        ("ADDR", &taken_addr, &[&taken_addr, "in use", "HOST:PORT"]),
        ("SMTP_URL", "localhost:25", &["\"localhost:25\"", "smtp://HOST:PORT"]),
        ("SMTP_URL", "http://mail.example", &["\"http://mail.example\"", "smtp://HOST:PORT"]),
        ("SMTP_URL", "smtp://mail.example:x", &["\"smtp://mail.example:x\"", "smtp://HOST:PORT"]),
        ("SMTP_URL", "smtp://mail.example?tls=maybe", &["maybe", "smtp://HOST:PORT"]),
        ("SMTP_URL", "http://me:secret@mail.example", &["\"mail.example\"", "smtp://HOST:PORT"]),
        ("OUTBOX", "a-file", &["\"a-file\"", "folder that can be created"]),
        ("OUTBOX", "a-file/outbox", &["\"a-file/outbox\"", "folder that can be created"]),
    ] {
        let ended = Process::start(welcome_email(&folder).env(name, value)).ended().await;
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert_eq!(ended.stdout, "", "it never listened");
        for part in [name].iter().chain(parts) {
            assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn full_queue_is_answered_503_and_stats_add_up() {
    let (_server, url) = silent_mail_server();
    let folder = empty_folder("full");
    let program = Process::start(welcome_email(&folder).env("SMTP_URL", url));
    let address = program.address().await;
    let mut accepted = 0;
    let refused = loop {
        let answer = sign_up(address, &guest(accepted)).await.expect("an answer");
        if answer.status != StatusCode::ACCEPTED {
            break answer;
        }
        accepted += 1;
        assert!(accepted <= 2_000, "no end of the queue");
        if accepted % 100 == 1 {
            obeys_the_accounting_law(&stats(address).await, accepted);
        }
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    let stats = stats(address).await;
    obeys_the_accounting_law(&stats, accepted);
    assert!(stats["pending"].as_u64() > Some(900), "{stats:?}");
}

fn obeys_the_accounting_law(stats: &BTreeMap<String, Value>, accepted: usize) {
    let places = [
        "deferred",
        "pending",
        "active",
        "completed",
        "failed",
        "panicked",
        "timed_out",
        "cancelled",
        "skipped",
        "never_started",
        "abandoned",
    ];
    let count = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats:?}"));
    assert_eq!(places.iter().map(|place| count(place)).sum::<u64>(), count("accepted"));
    assert_eq!(count("accepted"), accepted as u64, "{stats:?}");
}
