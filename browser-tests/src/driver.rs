//! A WebDriver client: one JSON request after the other.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};

use crate::PLENTY;

/// The address of chromedriver, and the session if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    address: SocketAddr,
    session: String,
}

impl Driver {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, session: String::new() }
    }

    /// Opens a session: a browser with a profile of its own.
    pub(crate) async fn session(&self, capabilities: &Value) -> Self {
        let body = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let opened = self.post("", &body).await;
        let id = opened["sessionId"].as_str().expect("a session has an id");
        Self { address: self.address, session: format!("/{id}") }
    }

    pub(crate) async fn get(&self, command: &str) -> Value {
        self.done(Method::GET, command, &Value::Null).await
    }

    pub(crate) async fn post(&self, command: &str, body: &Value) -> Value {
        self.done(Method::POST, command, body).await
    }

    pub(crate) async fn delete(&self, command: &str) -> Value {
        self.done(Method::DELETE, command, &Value::Null).await
    }

    /// A command of the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await
    }

    async fn done(&self, method: Method, command: &str, body: &Value) -> Value {
        match self.answered(method, command, body).await {
            Ok(value) => value,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// The value that the driver answers, or its error.
    pub(crate) async fn answered(
        &self,
        method: Method,
        command: &str,
        body: &Value,
    ) -> Result<Value, String> {
        let path = format!("/session{}{command}", self.session);
        let sent = self.sent(method, &path, body);
        let answer = timeout(PLENTY, sent).await.map_err(|_| format!("no answer in {PLENTY:?}"))?;
        let answer = answer.map_err(|error| format!("chromedriver: {error}"))?;
        let value = &answer["value"];
        match value["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", value["message"].as_str().unwrap_or(""))),
            None => Ok(value.clone()),
        }
    }

    async fn sent(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut client, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json; charset=utf-8")
            .body(Full::<Bytes>::from(body))?;
        let answer = client.send_request(request).await?.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&answer)?)
    }
}
