//! A payment that a client who leaves must not cut in half.
//!
//! ```sh
//! cargo run --example atomic_payment
//! ```
//!
//! A payment takes two steps: it debits Ada, then credits Bob. The program serves it on two routes,
//! of which one is atomic, and is itself the client that leaves between the steps, over TCP as any
//! other. It prints what became of the money:
//!
//! ```text
//! plain:  Ada 0, Bob 0: does not balance
//! atomic: Ada 0, Bob 100: balances
//! drained in 498 ms: 1 completed
//! ```
//!
//! and exits with 0 only if the books of the atomic route balance. With a server of your own, this
//! is a client that leaves: `curl --max-time 0.1 -X POST http://127.0.0.1:3000/pay`.
#![expect(clippy::print_stdout, reason = "the books are its output")]

use std::{fmt, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::sleep,
};
use tower_jobs::{AtomicLayer, BoxError, JobsLayer, Scheduler};

/// How long Bob's bank takes to answer.
const BANK: Duration = Duration::from_millis(500);

async fn pay(State(books): State<Books>) -> StatusCode {
    books.send_modify(|accounts| accounts.ada -= 100);
    sleep(BANK).await; // a plain handler is dropped here when its client leaves
    books.send_modify(|accounts| accounts.bob += 100);
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let scheduler = Scheduler::new();
    let (plain, atomic) = (open_books(), open_books());
    let shield = AtomicLayer::new(scheduler.clone());
    let app = Router::new()
        .route("/plain", post(pay).with_state(plain.clone()))
        .route("/atomic", post(pay).with_state(atomic.clone()).layer(shield))
        .layer(JobsLayer::new(scheduler.clone()));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        stopped.await.ok();
    });
    let clients = async {
        tokio::try_join!(
            leave_in_the_middle(address, "/plain", &plain),
            leave_in_the_middle(address, "/atomic", &atomic),
        )?;
        stop.send(()).ok();
        Ok(())
    };
    tokio::try_join!(server.into_future(), clients)?;
    let report = scheduler.wait_and_close().await;

    println!("plain:  {}", *plain.borrow());
    println!("atomic: {}", *atomic.borrow());
    println!("{report}");
    let balances = atomic.borrow().balance();
    Ok(if balances && report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks for a payment, and leaves when Ada has been debited.
async fn leave_in_the_middle(to: SocketAddr, path: &str, books: &Books) -> std::io::Result<()> {
    let mut client = TcpStream::connect(to).await?;
    let request = format!("POST {path} HTTP/1.1\r\nhost: {to}\r\ncontent-length: 0\r\n\r\n");
    client.write_all(request.as_bytes()).await?;
    books.subscribe().wait_for(|accounts| accounts.ada == 0).await.ok();
    Ok(()) // drops the connection
}

type Books = Arc<watch::Sender<Accounts>>;

struct Accounts {
    ada: i64,
    bob: i64,
}

fn open_books() -> Books {
    Arc::new(watch::Sender::new(Accounts { ada: 100, bob: 0 }))
}

impl Accounts {
    fn balance(&self) -> bool {
        self.ada + self.bob == 100
    }
}

impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.balance() { "balances" } else { "does not balance" };
        write!(f, "Ada {}, Bob {}: {verdict}", self.ada, self.bob)
    }
}
