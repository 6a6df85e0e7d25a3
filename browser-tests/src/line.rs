//! A line to a server that can be cut.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Passes connections on to a server, until it is cut.
///
/// Use its URL in place of the server's own.
#[derive(Debug)]
pub struct Line {
    url: String,
    is_cut: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Line {
    /// A line to a URL such as `http://127.0.0.1:3000`.
    pub async fn to(server: &str) -> Self {
        let server = server.trim_start_matches("http://").trim_end_matches('/');
        let server: SocketAddr = server.parse().expect("http, an address and a port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (is_cut, state) = watch::channel(false);
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, server, state));
        Self { url, is_cut, _connections: connections }
    }

    /// The start of its URLs, such as `http://127.0.0.1:3001`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends all connections, and closes new ones at once.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Accepts connections again.
    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, is_cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let is_cut = is_cut.clone();
        connections.spawn(pass_on(client, server, is_cut));
    }
}

async fn pass_on(mut client: TcpStream, server: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    let passed = async {
        if let Ok(mut server) = TcpStream::connect(server).await {
            // An error ends the connection, which is all that either side can notice.
            drop(copy_bidirectional(&mut client, &mut server).await);
        }
    };
    tokio::select! {
        biased;
        // An error: the line is gone, and its connections with it.
        _ = is_cut.wait_for(|is_cut| *is_cut) => {}
        () = passed => {}
    }
}
