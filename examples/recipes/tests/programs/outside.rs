//! The programs that need something outside: a database file, a mail server, a gRPC client.

use std::{net::SocketAddr, path::Path, time::Duration};

use http_body_util::Full;
use hyper::{Request, StatusCode, body::Bytes, http::uri::PathAndQuery};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tonic::{client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::{
    servers::{count, ended},
    support::{http::send, mail::MailServer, process::Process, recipe, within},
};

async fn post_text(to: SocketAddr, path: &str, text: &'static str) -> StatusCode {
    let request = Request::post(path).body(Full::from(Bytes::from(text))).expect("a request");
    send(to, request).await.expect("an answer").status
}

async fn database(file: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    SqlitePool::connect_with(options).await.expect("a database")
}

/// An order of a process that was killed has no receipt.
#[tokio::test]
async fn each_order_has_its_receipt_and_the_pool_is_closed() {
    let mut command = recipe!("sql");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sql/orders.sqlite");
    let before = database(&file).await;
    let orders = "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL); \
                  INSERT INTO orders (item) VALUES ('coffee')";
    sqlx::raw_sql(orders).execute(&before).await.expect("an order");
    before.close().await;

    let program = Process::start(command.env("DATABASE", &file));
    let address = program.address().await;
    assert_eq!(post_text(address, "/orders", "tea").await, StatusCode::CREATED);
    assert_eq!(count(&ended(program).await, "connections left: 0"), 1);

    let receipts = sqlx::query_scalar("SELECT text FROM receipts ORDER BY id");
    let receipts: Vec<String> = receipts.fetch_all(&database(&file).await).await.expect("rows");
    assert_eq!(receipts, ["for coffee", "for tea"]);
}

#[tokio::test]
async fn mail_after_one_without_an_answer_has_its_own_answer() {
    let Some(mut server) = MailServer::start("hold").await else { return };
    let mut command = recipe!("mailer");
    let program = Process::start(command.env("SMTP_URL", &server.url).env("ANSWER_SECONDS", "1"));
    let address = program.address().await;
    assert_eq!(post_text(address, "/signup", "ada").await, StatusCode::UNPROCESSABLE_ENTITY);

    assert_eq!(post_text(address, "/signup", "ada@example.com").await, StatusCode::ACCEPTED);
    program.stdout.line_with("\"welcome ada@example.com\"").await;
    server.obey("refuse").await;
    assert_eq!(post_text(address, "/signup", "grace@example.com").await, StatusCode::ACCEPTED);
    let refused = program.stdout.line_with("\"welcome grace@example.com\"").await;
    assert!(refused.starts_with("not sent: ") && refused.contains("refused"), "{refused}");
    server.obey("take").await;
    assert_eq!(post_text(address, "/signup", "mary@example.com").await, StatusCode::ACCEPTED);

    let ended = ended(program).await;
    assert_eq!(count(&ended, "sent to grace@example.com"), 0, "{ended:#?}");
    assert_eq!(count(&ended, "sent to mary@example.com"), 1, "{ended:#?}");
    let delivered = server.delivered().await;
    let to: Vec<_> = delivered.iter().flat_map(|message| &message.to).collect();
    assert_eq!(to, ["mary@example.com"]);
}

#[tokio::test]
async fn mail_connection_is_kept_and_ends_with_a_goodbye() {
    let Some(server) = MailServer::start("take").await else { return };
    let program = Process::start(recipe!("mailer", in "goodbye").env("SMTP_URL", &server.url));
    let address = program.address().await;
    for to in ["ada@example.com", "grace@example.com"] {
        assert_eq!(post_text(address, "/signup", to).await, StatusCode::ACCEPTED);
        program.stdout.line_with(&format!("sent to {to}")).await;
    }
    ended(program).await;
    assert_eq!(server.goodbyes().await, 1, "one connection for both");
}

/// Dropping a pool says goodbye too. Here the stuck message's thread keeps the pool, so only the recipe's
/// explicit `shutdown` can.
#[tokio::test]
async fn idle_mail_connection_says_goodbye_beside_a_stuck_message() {
    let Some(mut server) = MailServer::start("hold").await else { return };
    let mut command = recipe!("mailer", in "stuck");
    let program = Process::start(command.env("SMTP_URL", &server.url).env("ANSWER_SECONDS", "90"));
    let address = program.address().await;
    for to in ["ada@example.com", "grace@example.com"] {
        assert_eq!(post_text(address, "/signup", to).await, StatusCode::ACCEPTED);
        server.holds(to).await;
    }
    server.obey("take").await;
    program.stdout.line_with("sent to ada@example.com").await;
    program.stdout.line_with("sent to grace@example.com").await;
    server.obey("hold").await;
    assert_eq!(post_text(address, "/signup", "mary@example.com").await, StatusCode::ACCEPTED);
    server.holds("mary@example.com").await;

    program.terminate().await;
    // A signal is a second one from one second on. If it is taken for the first, the grace of 25 s passes.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stdout.contains("1 abandoned"), "{ended:#?}");
    assert_eq!(server.goodbyes().await, 1, "that of the idle connection");
}

#[derive(Clone, PartialEq, prost::Message)]
struct SignUpRequest {
    #[prost(string, tag = "1")]
    email: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SignUpReply {
    #[prost(string, tag = "1")]
    job: String,
}

#[tokio::test]
async fn axum_and_tonic_share_a_scheduler_and_end_together() {
    let program = Process::start(recipe!("grpc").env("RPC_ADDR", "127.0.0.1:0"));
    let address = program.address().await;
    assert_eq!(post_text(address, "/accounts", "ada").await, StatusCode::ACCEPTED);

    let line = program.stdout.line_with("gRPC on ").await;
    let endpoint = Endpoint::from_shared(line.replace("gRPC on ", "")).expect("an address");
    let channel = within("a connection", endpoint.connect()).await.expect("a server");
    let mut client = Grpc::new(channel);
    within("the client", client.ready()).await.expect("a connection");
    let call = tonic::Request::new(SignUpRequest { email: "grace".into() });
    let path = PathAndQuery::from_static("/recipes.Accounts/SignUp");
    let codec = ProstCodec::<SignUpRequest, SignUpReply>::default();
    let reply = within("a reply", client.unary(call, path, codec)).await.expect("accepted");
    assert!(reply.into_inner().job.starts_with("2-"), "the second job of the scheduler");

    // The client keeps its connection.
    let ended = ended(program).await;
    assert_eq!((count(&ended, "welcome, ada"), count(&ended, "welcome, grace")), (1, 1));
    assert!(ended.stdout.contains("in all: 2 completed"), "{ended:#?}");
}
