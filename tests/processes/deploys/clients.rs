//! The clients of the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};
use tower_jobs::BoxError;

use super::shapes::Other;
use crate::support::{Random, http::Connection};

/// The jobs that the clients ordered.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) kinds: BTreeMap<String, &'static str>,
    pub(super) acknowledged: BTreeSet<String>,
}

pub(super) struct Client {
    pub(super) name: u64,
    pub(super) random: Random,
    pub(super) address: SocketAddr,
    pub(super) orders: Arc<Mutex<Orders>>,
    pub(super) over: Arc<AtomicBool>,
}

impl Client {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn order_of(&self, n: u64, kind: &'static str) -> String {
        let id = format!("{}.{n}", self.name);
        self.orders.lock().unwrap().kinds.insert(id.clone(), kind);
        id
    }

    fn acknowledge(&self, id: String) {
        self.orders.lock().unwrap().acknowledged.insert(id);
    }

    /// Orders jobs until the server is gone.
    pub(super) async fn order(mut self, kinds: &[&'static str], longest: u64) {
        let keep_alive = !self.random.one_in(3);
        let mut connection = None;
        for n in 0.. {
            if self.is_over() {
                return;
            }
            let kind = self.random.pick(kinds);
            let id = self.order_of(n, kind);
            let factor = if self.random.one_in(8) { 10 } else { 1 };
            let ms = self.random.below(longest) * factor;
            let order = json!({ "id": id, "kind": kind, "ms": ms }).to_string();
            let request = Request::post("/jobs")
                .header("content-type", "application/json")
                .body(Full::<Bytes>::from(order))
                .unwrap();
            let mut open = match connection.take() {
                Some(open) => open,
                None => match Connection::open(self.address).await {
                    Ok(open) => open,
                    Err(_) => return,
                },
            };
            match open.send(request).await {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => self.acknowledge(id),
                Ok(answer) => {
                    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
                }
                // Without an answer, the job may or may not have been accepted.
                Err(_) => continue,
            }
            if keep_alive {
                connection = Some(open);
            }
            if self.random.one_in(2) {
                sleep(self.random.ms(20)).await;
            }
        }
    }

    /// Does the same again until the server is gone.
    pub(super) async fn repeat(mut self, other: Other) {
        for n in 0.. {
            if self.is_over() {
                return;
            }
            let connected = match other {
                Other::Reader => self.read().await,
                Other::Stream => self.stream(n).await,
                Other::Upload => self.upload(n).await,
                Other::WebSocket => self.websocket(n).await,
            };
            // The server may end before its answer does.
            drop(connected);
            sleep(self.random.ms(20)).await;
        }
    }

    /// Reads events, or a long answer, perhaps slowly.
    async fn read(&mut self) -> Result<(), BoxError> {
        let path = match self.random.below(3) {
            0 => "/events".to_owned(),
            _ => format!("/slow?ms={}", self.random.below(1_500)),
        };
        let slowly = self.random.one_in(2);
        let mut connection = Connection::open(self.address).await?;
        let request = Request::get(&path).body(Full::<Bytes>::default())?;
        let mut body = connection.begin(request).await?.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
            if slowly {
                sleep(self.random.ms(100)).await;
            }
        }
        Ok(())
    }

    async fn stream(&mut self, n: u64) -> Result<(), BoxError> {
        let id = self.order_of(n, "stream");
        let mut connection = Connection::open(self.address).await?;
        let request = Request::get(format!("/stream?id={id}")).body(Full::<Bytes>::default())?;
        let response = connection.begin(request).await?;
        if response.status() == StatusCode::OK {
            self.acknowledge(id);
        }
        let mut body = response.into_body();
        // Some leave, so that their jobs start before the signal.
        let mut frames = if self.random.one_in(2) { self.random.below(20) } else { u64::MAX };
        while let (Some(frame), 1..) = (body.frame().await, frames) {
            frame?;
            frames -= 1;
        }
        Ok(())
    }

    async fn upload(&mut self, n: u64) -> Result<(), BoxError> {
        let id = self.order_of(n, "upload");
        let mut stream = TcpStream::connect(self.address).await?;
        let head = format!(
            "POST /upload?id={id} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        while !self.is_over() {
            stream.write_all(b"1\r\n.\r\n").await?;
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn websocket(&mut self, n: u64) -> Result<(), BoxError> {
        let id = self.order_of(n, "websocket");
        let mut stream = TcpStream::connect(self.address).await?;
        let head = format!(
            "GET /websocket?id={id} HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            return Ok(());
        }
        self.acknowledge(id);
        loop {
            stream.write_all(b".").await?;
            stream.read_u8().await?;
            sleep(Duration::from_millis(5)).await;
        }
    }
}
