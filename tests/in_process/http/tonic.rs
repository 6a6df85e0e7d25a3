//! `JobsLayer` on a tonic server, over TCP.

use std::{convert::Infallible, future::pending};

use bytes::{Buf, BufMut};
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc::{self, UnboundedSender};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_jobs::{
    Jobs, JobsLayer,
    ResponseOutcome::{self, Aborted, Complete, NoResponse},
    Scheduler,
};

use crate::support::{http::listen, within};

/// Messages of plain text. They need no generated code.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Welcomed(String),
    Ended(ResponseOutcome),
}

/// A procedure that spawns a welcome and defers a second job.
async fn sign_up(
    request: Request<String>,
    events: UnboundedSender<Event>,
) -> Result<Response<String>, Status> {
    let jobs: Jobs = request.extensions().get().cloned().expect("the layer is there");
    let name = request.into_inner();
    let (welcomed, ended) = (events.clone(), events);
    jobs.after_response_with(|outcome| async move { ended.send(Event::Ended(outcome)) })
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
    let text = name.clone();
    jobs.spawn(async move { welcomed.send(Event::Welcomed(text)) })
        .await
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
    match &*name {
        "nameless" => Err(Status::invalid_argument("give a name")),
        "slow" => pending().await,
        _ => Ok(Response::new(jobs.label().to_owned())),
    }
}

/// The service of the server.
fn service(
    scheduler: &Scheduler,
    events: &UnboundedSender<Event>,
) -> impl Service<
    http::Request<Body>,
    Response = http::Response<impl http_body::Body<Data = bytes::Bytes, Error = Status> + use<>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ use<> {
    let events = events.clone();
    JobsLayer::new(scheduler.clone()).label_by_path().layer(service_fn(
        move |request: http::Request<Body>| {
            let events = events.clone();
            let sign_up = service_fn(move |request| sign_up(request, events.clone()));
            async move {
                Ok::<_, Infallible>(tonic::server::Grpc::new(Text).unary(sign_up, request).await)
            }
        },
    ))
}

const PATH: &str = "/welcome.Desk/SignUp";

/// A server for one call of its procedure.
struct Call {
    scheduler: Scheduler,
    events: mpsc::UnboundedReceiver<Event>,
    channel: tonic::transport::Channel,
}

impl Call {
    async fn new() -> Self {
        let scheduler = Scheduler::new();
        let (sender, events) = mpsc::unbounded_channel();
        let (listener, address) = listen().await;
        let url = format!("http://{address}");
        let incoming = TcpIncoming::from(listener);
        let service = service(&scheduler, &sender);
        tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        Self { scheduler, events, channel }
    }

    fn sign_up(&self, name: &str) -> impl Future<Output = Result<String, Status>> + use<> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let request = Request::new(name.to_owned());
        async move {
            client.ready().await.unwrap();
            let response = client.unary(request, PATH.parse().unwrap(), Text).await?;
            Ok(response.into_inner())
        }
    }

    async fn event(&mut self) -> Event {
        within("a job", self.events.recv()).await.unwrap()
    }

    /// The events of its two jobs, the welcome first.
    async fn events(&mut self) -> [Event; 2] {
        let events = [self.event().await, self.event().await];
        match events {
            [ended @ Event::Ended(_), welcomed] => [welcomed, ended],
            events => events,
        }
    }
}

fn welcomed(name: &str) -> Event {
    Event::Welcomed(name.to_owned())
}

#[tokio::test]
async fn call_leaves_jobs_that_carry_its_method_and_are_drained() {
    let mut call = Call::new().await;
    assert_eq!(within("a response", call.sign_up("Ada")).await.unwrap(), format!("POST {PATH}"));
    let ended = Event::Ended(Complete(http::StatusCode::OK));
    assert_eq!(call.events().await, [welcomed("Ada"), ended]);
    let report = within("the drain", call.scheduler.wait_and_close()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(call.scheduler.stats().completed, 2);
}

/// A gRPC error is in the headers or trailers of a response with the HTTP status 200.
#[tokio::test]
async fn failed_call_has_a_complete_response_of_status_200() {
    let mut call = Call::new().await;
    let status = within("a response", call.sign_up("nameless")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let ended = Event::Ended(Complete(http::StatusCode::OK));
    assert_eq!(call.events().await, [welcomed("nameless"), ended]);
}

#[tokio::test]
async fn call_that_its_client_cancels_has_no_response() {
    let mut call = Call::new().await;
    let response = tokio::spawn(call.sign_up("slow"));
    assert_eq!(call.event().await, welcomed("slow"));
    assert_eq!(call.scheduler.stats().deferred, 1);
    response.abort();
    assert_eq!(call.event().await, Event::Ended(NoResponse));
}

#[tokio::test]
async fn response_is_complete_with_its_trailers_and_not_before() {
    for (frames, outcome) in
        [(1, Aborted(http::StatusCode::OK)), (2, Complete(http::StatusCode::OK))]
    {
        let (sender, mut events) = mpsc::unbounded_channel();
        let message = Full::from(&b"\0\0\0\0\x03Ada"[..]);
        let request = http::Request::post(PATH).header("content-type", "application/grpc");
        let request = request.body(Body::new(message)).unwrap();
        let response = service(&Scheduler::new(), &sender).oneshot(request).await.unwrap();
        let mut body = Box::pin(response.into_body());
        for n in 1..=frames {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.is_trailers(), n == 2);
        }
        assert_eq!(events.recv().await, Some(welcomed("Ada")));
        drop(body);
        assert_eq!(events.recv().await, Some(Event::Ended(outcome)));
    }
}
