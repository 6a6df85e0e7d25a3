//! One scheduler for an axum server and a tonic server, which end together.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin grpc
//! curl -X POST http://127.0.0.1:3000/accounts -d ada  # in another terminal
//! ```
//!
//! Both servers have a `JobsLayer` with the same scheduler: one limit, one queue and one shutdown. The stop signal
//! is cloned for each. An error of one server ends the other, and is in the report.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{env, process::ExitCode};

use axum::{Router, http::StatusCode, routing::post};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tower_jobs::{BoxError, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};

use self::generated::{
    SignUpReply, SignUpRequest,
    accounts_server::{Accounts, AccountsServer},
};

async fn sign_up(jobs: Jobs, email: String) -> Result<StatusCode, SpawnError> {
    jobs.job("welcome").try_spawn(welcome(email))?;
    Ok(StatusCode::ACCEPTED)
}

struct Service;

#[tonic::async_trait]
impl Accounts for Service {
    async fn sign_up(&self, call: Request<SignUpRequest>) -> Result<Response<SignUpReply>, Status> {
        let jobs = call.extensions().get::<Jobs>().expect("the layer is there").clone();
        let job = jobs.job("welcome").try_spawn(welcome(call.into_inner().email));
        let job = job.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(SignUpReply { job: job.id().to_string() }))
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let scheduler = Scheduler::builder().limit(20).build();
    let shutdown = Shutdown::new(&scheduler);
    let app =
        Router::new().route("/accounts", post(sign_up)).layer(JobsLayer::new(scheduler.clone()));
    // A gRPC path holds no secrets, and names the method.
    let layer = JobsLayer::new(scheduler).label_by_path();
    let rpc = Server::builder().layer(layer).add_service(AccountsServer::new(Service));

    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let address = env::var("RPC_ADDR").unwrap_or_else(|_| "127.0.0.1:4000".into());
    let rpc_listener = TcpListener::bind(address).await?;
    println!("gRPC on http://{}", rpc_listener.local_addr()?);

    let serve = async |stop: tower_jobs::StopSignal| -> Result<(), BoxError> {
        let http = axum::serve(listener, app).with_graceful_shutdown(stop.clone()).into_future();
        let rpc = rpc.serve_with_incoming_shutdown(TcpIncoming::from(rpc_listener), stop);
        let http = async { http.await.map_err(BoxError::from) };
        tokio::try_join!(http, async { rpc.await.map_err(BoxError::from) })?;
        Ok(())
    };
    let report = shutdown.serve(serve).await;
    println!("{report}");
    Ok(ExitCode::from(report))
}

/// The stand-in for an e-mail.
async fn welcome(email: String) {
    println!("welcome, {email}");
}

mod generated {
    #![expect(unreachable_pub, unused_qualifications, reason = "generated")]

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SignUpRequest {
        #[prost(string, tag = "1")]
        pub email: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SignUpReply {
        #[prost(string, tag = "1")]
        pub job: String,
    }

    include!(concat!(env!("OUT_DIR"), "/recipes.Accounts.rs"));
}
