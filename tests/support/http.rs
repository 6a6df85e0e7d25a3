//! Clients of servers on real sockets.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_jobs::BoxError;

use super::within;

/// A listener on a free port.
pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// A client that has sent these bytes.
pub(crate) async fn connect(to: SocketAddr, bytes: &str) -> TcpStream {
    let mut client = TcpStream::connect(to).await.expect("a server");
    client.write_all(bytes.as_bytes()).await.expect("the server reads");
    client
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

pub(crate) async fn get(from: SocketAddr, path: &str) -> Answer {
    let request = Request::get(path).body(Empty::<Bytes>::new()).expect("a valid request");
    send(from, request).await.expect("an answer")
}

/// Sends one request over a connection of its own.
pub(crate) async fn send<B>(to: SocketAddr, request: Request<B>) -> Result<Answer, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Connection::open(to).await?.send(request).await
}

/// A connection that is kept open for one request after the other.
pub(crate) struct Connection<B> {
    to: SocketAddr,
    client: SendRequest<B>,
}

impl<B> Connection<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    pub(crate) async fn open(to: SocketAddr) -> Result<Self, BoxError> {
        Self::over(TcpStream::connect(to).await?, to).await
    }

    /// Speaks HTTP over `stream`, which leads there.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        to: SocketAddr,
    ) -> Result<Self, BoxError> {
        let (client, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { to, client })
    }

    /// Sends a request and gives the head of the answer. The body is still to come.
    pub(crate) async fn begin(
        &mut self,
        mut request: Request<B>,
    ) -> Result<Response<Incoming>, BoxError> {
        let host = self.to.to_string().parse().expect("an address is a header value");
        request.headers_mut().insert("host", host);
        self.client.ready().await?;
        Ok(self.client.send_request(request).await?)
    }

    pub(crate) async fn send(&mut self, request: Request<B>) -> Result<Answer, BoxError> {
        let response = within("a response", self.begin(request)).await?;
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().into())?;
        Ok(Answer { status: head.status, headers: head.headers, text })
    }
}
