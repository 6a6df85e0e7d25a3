//! `Shutdown` around servers other than `axum::serve`: an accept loop over hyper, and axum-server
//! with TLS.

use std::{io, net::SocketAddr, pin::pin, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use axum_server::tls_rustls::RustlsConfig;
use http_body_util::Empty;
use hyper::{Request, body::Bytes, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{Notify, oneshot, watch},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tower_jobs::{
    BoxError, Jobs, JobsLayer, Scheduler, ServerOutcome, Shutdown, ShutdownReport, SpawnError,
    StopSignal,
};

use crate::support::{
    http::{Connection, listen},
    within,
};

type Client = Connection<Empty<Bytes>>;

/// How far the test lets handlers and jobs go.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Go {
    Nowhere,
    Handlers,
    Jobs,
}

/// Shuts down with one job running and one request that spawns another.
async fn shut_down<S>(
    serve: impl FnOnce(TcpListener, Router, StopSignal) -> S + Send + 'static,
    connect: impl AsyncFn(SocketAddr) -> Result<Client, BoxError>,
) -> ShutdownReport<io::Result<()>>
where
    S: Future<Output = io::Result<()>> + Send + 'static,
{
    let (go, gone) = watch::channel(Go::Nowhere);
    let begun = Arc::new(Notify::new());
    type Signs = (watch::Receiver<Go>, Arc<Notify>);
    async fn spawn(
        State((mut gone, _)): State<Signs>,
        jobs: Jobs,
    ) -> Result<StatusCode, SpawnError> {
        let job = async move { drop(gone.wait_for(|go| *go == Go::Jobs).await) };
        jobs.spawn(job).await?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn hold(State(signs): State<Signs>, jobs: Jobs) -> Result<StatusCode, SpawnError> {
        let (mut gone, begun) = signs.clone();
        begun.notify_one();
        drop(gone.wait_for(|go| *go >= Go::Handlers).await);
        spawn(State(signs), jobs).await
    }
    let scheduler = Scheduler::new();
    let app = Router::new()
        .route("/spawn", post(spawn))
        .route("/hold", post(hold))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state((gone, begun.clone()));
    let (listener, address) = listen().await;
    let (signal, signalled) = oneshot::channel::<()>();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) });
    let serving = tokio::spawn(shutdown.serve(|stop| serve(listener, app, stop)));

    let request = |path| Request::post(path).body(Empty::new()).unwrap();
    let mut idle = connect(address).await.unwrap();
    let answer = idle.send(request("/spawn")).await.unwrap();
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let mut busy = connect(address).await.unwrap();
    let under_way = tokio::spawn(async move { busy.send(request("/hold")).await });
    within("the request", begun.notified()).await;

    signal.send(()).unwrap();
    scheduler.shutting_down().await;
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    within("the end of the listener", closed).await;
    go.send_replace(Go::Handlers);
    let answer = within("the answer", under_way).await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    assert!(!serving.is_finished(), "two jobs are under way");
    go.send_replace(Go::Jobs);
    within("the report", serving).await.unwrap()
}

fn is_clean(report: &ShutdownReport<io::Result<()>>) {
    assert!(matches!(report.server, ServerOutcome::Finished(Ok(()))), "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.jobs.completed, 2, "{report}");
}

/// As in hyper's examples, for HTTP/1.
async fn accept_loop(listener: TcpListener, app: Router, stop: StopSignal) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let mut stopped = pin!(stop.clone());
    loop {
        let (stream, _) = select! {
            accepted = listener.accept() => accepted?,
            () = &mut stopped => break,
        };
        let service = TowerToHyperService::new(app.clone());
        let stop = stop.clone();
        connections.spawn(async move {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            select! {
                result = connection.as_mut() => return result,
                () = stop => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

#[tokio::test]
async fn accept_loop_over_hyper_shuts_down_in_order() {
    is_clean(&shut_down(accept_loop, async |address| Client::open(address).await).await);
}

#[tokio::test]
async fn axum_server_with_tls_shuts_down_in_order() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.key_pair.serialize_der());
    let provider = Arc::new(ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let serve = move |listener: TcpListener, app: Router, stop: StopSignal| async move {
        let handle = axum_server::Handle::new();
        let server = axum_server::from_tcp_rustls(
            listener.into_std()?,
            RustlsConfig::from_config(Arc::new(server)),
        )?;
        let stopping = handle.clone();
        tokio::spawn(async move {
            stop.await;
            // Without a deadline of its own. `Shutdown` has one.
            stopping.graceful_shutdown(None);
        });
        server.handle(handle).serve(app.into_make_service()).await
    };

    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let connect = async |address| {
        let stream = TcpStream::connect(address).await?;
        let stream = connector.connect("localhost".try_into()?, stream).await?;
        Client::over(stream, address).await
    };
    is_clean(&shut_down(serve, connect).await);
}
