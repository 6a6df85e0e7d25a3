//! A server on a free port, and a client that speaks plain HTTP/1.0.

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longer than anything takes, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Serves a router nested at `/jobs`.
pub(crate) async fn serve(jobs: Router) -> Site {
    serve_app(Router::new().nest("/jobs", jobs)).await
}

pub(crate) async fn serve_app(app: Router) -> Site {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::runtime::Handle::try_current()
        .expect("a runtime")
        .spawn(async move { axum::serve(listener, app).await.expect("served") });
    Site { address }
}

impl Site {
    async fn send(&self, method: &str, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n{headers}\r\n", self.address);
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream
    }

    pub(crate) async fn request(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = self.send(method, path, headers).await;
        let mut text = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut text)).await;
        read.expect("an answer in time").expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.expect("a status"),
            headers: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "").await
    }

    /// The JSON of a route of the API.
    pub(crate) async fn api(&self, path: &str) -> Value {
        let answer = self.get(&format!("/jobs/api/v1/{path}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    pub(crate) async fn events(&self) -> Events {
        let stream = self.send("GET", "/jobs/api/v1/events", "").await;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(lines.read_line(&mut line).await.expect("a head") > 0, "no head");
        }
        Events { lines }
    }
}

/// An event stream.
pub(crate) struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.lines.read_line(&mut line)).await;
            if read.expect("an event in time").expect("an event") == 0 {
                return None;
            }
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).expect("JSON")));
            }
        }
    }

    /// The next event of this name.
    pub(crate) async fn named(&mut self, wanted: &str) -> Value {
        loop {
            let (name, data) = self.next().await.unwrap_or_else(|| panic!("no {wanted}"));
            if name == wanted {
                return data;
            }
        }
    }
}
