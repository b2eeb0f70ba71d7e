//! Connections: how they are taken, and what is said on them before there is a request.

mod framing;
mod worded;

use std::cell::Cell;
use std::fmt::Debug;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol, Request, Response};
use actix_server::GracefulShutdownSignal;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use worded::Worded;

/// In which a client has to agree on a cipher.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// In which a client has to take the end of an answer that it did not wait for with its request.
const FAREWELL: Duration = Duration::from_secs(1);

/// How many connections there are, and how long they may take.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// At a time, over all threads; more wait.
    pub max: usize,
    /// In which the head of a request has to arrive.
    pub head_timeout: Duration,
    /// Whole seconds that they get to end when the server stops.
    pub shutdown_s: u64,
}

/// Serves an app over HTTP/1.1, encrypted if there is something to encrypt with.
///
/// It is what `actix_web::HttpServer` does with the same settings, but for one thing: a head that is no HTTP, or comes too slowly or in too
/// great a length, is refused in words like everything else, where that server sends a status alone.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    connections: Connections,
    app: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    const NAME: &str = "tandem";
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let builder = Server::build()
        .workers(workers)
        // The limit is on each worker's own.
        .max_concurrent_connections(connections.max.div_ceil(workers))
        .shutdown_timeout(connections.shutdown_s)
        .disable_signals();
    let stop = builder.graceful_shutdown_signal();
    let builder = match tls {
        None => builder.listen(NAME, listener, move || {
            fn_service(move |io: TcpStream| async move {
                send_at_once(&io)?;
                let peer = io.peer_addr().ok();
                Ok::<_, DispatchError>((Worded::new(io, connections.head_timeout), Protocol::Http1, peer))
            })
            .and_then(http(connections, stop.clone(), app()))
        })?,
        Some(mut tls) => {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let acceptor = TlsAcceptor::from(Arc::new(tls));
            builder.listen(NAME, listener, move || {
                let acceptor = acceptor.clone();
                fn_service(move |io: TcpStream| {
                    let sent_at_once = send_at_once(&io);
                    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(io));
                    async move {
                        sent_at_once?;
                        let io = handshake.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                        let peer = io.get_ref().0.peer_addr().ok();
                        Ok::<_, DispatchError>((Worded::new(io, connections.head_timeout), Protocol::Http1, peer))
                    }
                })
                .and_then(http(connections, stop.clone(), app()))
            })?
        }
    };
    Ok(builder.run())
}

/// Pieces of a stream are small, and without this each would wait until the client has acknowledged the one before: 40 ms on connections
/// that are kept.
fn send_at_once(io: &TcpStream) -> io::Result<()> {
    io.set_nodelay(true)
}

/// A connection with its protocol and where it comes from.
type Accepted<T> = (Worded<T>, Protocol, Option<SocketAddr>);

/// Whether a request of a connection is being served, which the app says: while none is, and no answer is under way, a head is awaited. Found
/// among the data of the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving(Rc<Cell<bool>>);

/// A request that is being served until this is dropped.
#[derive(Debug)]
pub(super) struct Served(Serving);

impl Serving {
    pub(super) fn begin(&self) -> Served {
        self.0.set(true);
        Served(self.clone())
    }

    fn is_so(&self) -> bool {
        self.0.get()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.0.set(false);
    }
}

fn http<T, I, S, B>(
    connections: Connections,
    stop: GracefulShutdownSignal,
    app: I,
) -> impl ServiceFactory<Accepted<T>, Config = (), Response = (), Error = DispatchError, InitError = ()>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let app = app.into_factory().map_err(|error| error.into().error_response());
    HttpService::build()
        .graceful_shutdown_signal(move || {
            let stop = stop.clone();
            async move { stop.notified().await }
        })
        .client_request_timeout(connections.head_timeout)
        .client_disconnect_timeout(FAREWELL)
        // Without this a client that closes its side is not noticed while an answer is awaited, and keeps its slot.
        .h1_allow_half_closed(false)
        .on_connect_ext(|io: &Worded<T>, data| drop(data.insert(io.serving())))
        .finish(map_config(app, |()| AppConfig::default()))
}
