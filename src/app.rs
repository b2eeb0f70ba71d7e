//! The server as a value: built from settings, listening on a port, running until it is told to stop.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use actix_web::{App as ActixApp, dev::Server, middleware::from_fn, web::Data};
use tandem_core::LoadError;
use tandem_engine::{EngineLimits, Priority};
use thiserror::Error;

use crate::{
    access::Access,
    api::{self, Connections, Guard, files::UploadLimits},
    batch::{self, Batches, LineAnswer, LineExecutor, LineOrder, LineSize},
    clock::Clock,
    completion::{Asker, Completions, Limits},
    models::Models,
    openai::{Endpoint, error::ApiError},
    settings::{BatchOrder, BatchSettings, LimitSettings, ServerSettings, Settings, SettingsError},
    store::{Store, StoreError, Tenant, Tokens, has_api_keys},
    tls,
    webhooks::Webhooks,
};

/// Seconds that open connections get to finish when the server stops.
const SHUTDOWN_S: u64 = 30;
const REMINDER: Duration = Duration::from_secs(3600);

/// A server that is bound to its port.
pub struct App {
    address: SocketAddr,
    server: Server,
    encrypted: bool,
    access: Access,
    models: Models,
    store: Store,
    batches: Batches,
    webhooks: Option<Webhooks>,
}

/// Why the server does not run, by who has to do something about it.
#[derive(Debug, Error)]
pub enum AppError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("cannot listen on {address}: {reason}")]
    Bind { address: String, reason: String },
    #[error("storage {path}: {source}")]
    Store { path: String, source: StoreError },
    #[error("model {name}: {}", with_causes(.source))]
    Model { name: String, source: Arc<LoadError> },
    #[error("the disk failed; what was acknowledged is kept, the rest is done again at the next start")]
    Disk,
    #[error("the server failed: {0}")]
    Server(#[from] std::io::Error),
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("address", &self.address).field("models", &self.models).finish_non_exhaustive()
    }
}

impl App {
    /// Takes the port and the data directory, begins to load the models, and takes up unfinished batches.
    ///
    /// # Errors
    /// When the port is taken or the data directory cannot be used. A model that cannot be loaded is told by
    /// [`run_until_stopped`](Self::run_until_stopped).
    pub async fn build(settings: &Settings) -> Result<Self, AppError> {
        let limits = EngineLimits {
            queue: settings.limits.queue,
            prefix_cache: settings.prefix_cache,
            ..EngineLimits::default()
        };
        let models = || Models::start(&settings.backend, &settings.models, limits);
        Self::build_with(settings, models).await
    }

    /// As [`build`](Self::build), with models of the caller's choice.
    ///
    /// # Errors
    /// As `build`.
    pub async fn build_with(settings: &Settings, models: impl FnOnce() -> Models) -> Result<Self, AppError> {
        // First what fails at once, so that nobody waits for a model to learn that the port is taken; and what is wrong with the settings
        // before anything exists because of them.
        let tls = settings.server.tls.as_ref().map(tls::load).transpose()?;
        require_keys(settings).await?;
        let listener = listen(&settings.server)?;
        let address = listener.local_addr()?;
        let store_error = |source| store_error(settings, source);
        let store = Store::open(&settings.storage).await.map_err(store_error)?;
        let access = if settings.server.insecure_no_auth {
            Access::open()
        } else {
            Access::by_keys(store.clone()).await.map_err(store_error)?
        };
        let models = models();
        let completions = completions(models.clone(), settings.limits);
        let executor = CompletionExecutor { models: models.clone(), completions: completions.clone() };
        let batch_settings =
            batch::Settings { tell_ends: settings.webhooks.is_some(), ..batch_settings(settings.batch) };
        let batches = Batches::start(store.clone(), executor, batch_settings).await.map_err(store_error)?;
        let webhooks = start_webhooks(settings, &store, &batches)?;
        let upload_limits = UploadLimits {
            batch_bytes: settings.batch.max_file_bytes,
            tenant_bytes: settings.max_tenant_bytes,
            free_bytes: settings.min_free_bytes,
            ..UploadLimits::default()
        };
        let guard = Guard {
            hosts: settings.server.allowed_hosts.as_slice().into(),
            origins: settings.server.cors_origins.as_slice().into(),
            body_timeout: settings.server.body_timeout,
            strict_params: settings.limits.strict_params,
        };
        let shared = (models.clone(), store.clone(), batches.clone(), access.clone());
        let debug = settings.server.debug;
        let app = move || {
            let (models, store, batches, access) = shared.clone();
            ActixApp::new()
                .wrap(from_fn(api::with_guard))
                .wrap(from_fn(api::with_request_id))
                .app_data(Data::new(guard.clone()))
                .app_data(Data::new(access))
                .app_data(Data::new(completions.clone()))
                .app_data(Data::new(models))
                .app_data(Data::new(store))
                .app_data(Data::new(batches))
                .app_data(Data::new(upload_limits))
                .configure(|cfg| {
                    if debug {
                        api::debug_routes(cfg);
                    }
                })
                .configure(api::routes)
        };
        let connections = Connections {
            max: settings.server.max_connections,
            head_timeout: settings.server.header_timeout,
            shutdown_s: SHUTDOWN_S,
        };
        let encrypted = tls.is_some();
        let server = api::serve(listener, tls, connections, app)?;
        warn_of_exposure(settings);
        Ok(Self { address, server, encrypted, access, models, store, batches, webhooks })
    }

    /// Where the server is found, without a `/` behind.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.encrypted { "https" } else { "http" }, self.address)
    }

    /// Whether requests need an API key.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        self.access.needs_keys()
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port, which the system has chosen if the settings say 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The models, which may still be loading.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Serves until `stop` is done, then lets what runs come to an end.
    ///
    /// # Errors
    /// When a model cannot be loaded at start, the disk does not keep what it is given, or the server fails.
    pub async fn run_until_stopped(self, stop: impl Future<Output = ()>) -> Result<(), AppError> {
        let Self { address, server, encrypted: _, access, models, store, batches, webhooks } = self;
        let handle = server.handle();
        let server = tokio::spawn(server);
        let outcome = tokio::select! {
            () = stop => Ok(()),
            failed = first_failure(&models) => Err(failed),
            // Without the usual end, which would acknowledge more.
            () = store.lost() => return Err(AppError::Disk),
            never = remind_of_no_keys(&access, address) => match never {},
        };
        tracing::info!(%address, "stopping");
        let drained = tokio::join!(batches.stop(), handle.stop(outcome.is_ok()));
        let ((), ()) = drained;
        if let Some(webhooks) = webhooks {
            webhooks.stop().await;
        }
        let served = server.await;
        if let Err(error) = store.close().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the store did not close cleanly; it is checked at the next start"
            );
        }
        outcome?;
        served.map_err(std::io::Error::other)??;
        Ok(())
    }
}

/// Ends only if a model's first load fails; later ones are tried again.
async fn first_failure(models: &Models) -> AppError {
    match models.ready().await {
        Err((name, source)) => AppError::Model { name, source },
        Ok(()) => {
            tracing::info!("ready");
            std::future::pending().await
        }
    }
}

fn start_webhooks(settings: &Settings, store: &Store, batches: &Batches) -> Result<Option<Webhooks>, AppError> {
    let Some(receiver) = settings.webhooks.clone() else { return Ok(None) };
    let started = Webhooks::start(store.clone(), receiver, Clock::system(), batches.ends());
    started.map(Some).map_err(|error| std::io::Error::other(error).into())
}

fn store_error(settings: &Settings, source: StoreError) -> AppError {
    AppError::Store { path: settings.storage.display().to_string(), source }
}

/// A server that others can reach has keys, or was told to do without.
async fn require_keys(settings: &Settings) -> Result<(), AppError> {
    if !settings.server.is_exposed() || settings.server.insecure_no_auth {
        return Ok(());
    }
    if has_api_keys(&settings.storage).await.map_err(|source| store_error(settings, source))? {
        return Ok(());
    }
    let reason = "refusing to listen on a non-loopback address without API keys";
    Err(SettingsError::new("server.host", reason).into())
}

fn warn_of_exposure(settings: &Settings) {
    if settings.server.is_exposed() && settings.server.tls.is_none() {
        tracing::warn!(
            "listening for others than this machine without TLS: keys, prompts and answers can be read on the way"
        );
    }
}

/// Says again and again that everyone may use a server, where that was asked for.
async fn remind_of_no_keys(access: &Access, address: SocketAddr) -> Infallible {
    if access.asks_nobody() {
        let mut hourly = tokio::time::interval(REMINDER);
        loop {
            hourly.tick().await;
            tracing::warn!(%address, "insecure_no_auth is set: whoever reaches this server may use it without an API key");
        }
    }
    std::future::pending().await
}

fn listen(settings: &ServerSettings) -> Result<TcpListener, AppError> {
    let ServerSettings { host, port, .. } = settings;
    let address = format!("{host}:{port}");
    let refused = |error: &std::io::Error| AppError::Bind {
        address: address.clone(),
        reason: if error.kind() == std::io::ErrorKind::AddrInUse {
            "the port is in use".to_owned()
        } else {
            error.to_string()
        },
    };
    let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs().map_err(|error| refused(&error))?.collect();
    TcpListener::bind(addresses.as_slice()).map_err(|error| refused(&error))
}

fn completions(models: Models, settings: LimitSettings) -> Completions {
    let LimitSettings { queue: _, max_n, max_output_tokens, strict_params, request_timeout } = settings;
    Completions::new(models, Limits { max_n, max_output_tokens, strict_params, request_timeout })
}

fn batch_settings(settings: BatchSettings) -> batch::Settings {
    let BatchSettings { max_file_bytes: _, max_lines, max_concurrent, max_active, window, order, single_model } =
        settings;
    batch::Settings {
        window: window as usize,
        order: match order {
            BatchOrder::Prefix => LineOrder::Prefix,
            BatchOrder::File => LineOrder::File,
        },
        concurrent_max: max_concurrent as usize,
        active_max: max_active,
        lines_max: i64::try_from(max_lines).unwrap_or(i64::MAX),
        single_model,
        ..batch::Settings::default()
    }
}

/// Answers lines of batches on the path of online requests.
#[derive(Clone, Debug)]
pub struct CompletionExecutor {
    models: Models,
    completions: Completions,
}

impl CompletionExecutor {
    /// An executor on these models.
    #[must_use]
    pub fn new(models: Models, limits: LimitSettings) -> Self {
        Self { completions: completions(models.clone(), limits), models }
    }
}

impl LineExecutor for CompletionExecutor {
    fn knows(&self, model: &str) -> bool {
        self.models.knows(model)
    }

    async fn ready(&self) {
        self.models.usable().await;
    }

    async fn execute(&self, tenant: &Tenant, endpoint: Endpoint, body: &[u8]) -> Result<LineAnswer, ApiError> {
        let asker = Asker { cache_salt: tenant.cache_salt(), ..Asker::from(Priority::Batch) };
        let answer = self.completions.respond(endpoint, body, asker).await?;
        let usage = answer.usage;
        let tokens = Tokens {
            input: usage.prompt_tokens,
            cached: usage.prompt_tokens_details.cached_tokens,
            output: usage.completion_tokens,
            reasoning: usage.completion_tokens_details.reasoning_tokens,
        };
        Ok(LineAnswer { body: answer.body, tokens })
    }

    async fn measure(&self, endpoint: Endpoint, body: &[u8]) -> Result<LineSize, ApiError> {
        let size = self.completions.measure(endpoint, body).await?;
        Ok(LineSize { input_tokens: size.prompt_tokens, max_output_tokens: size.max_output_tokens })
    }
}

/// Settings of batches for a run without a server.
#[must_use]
pub fn offline_settings(settings: &Settings) -> batch::Settings {
    batch_settings(settings.batch)
}

/// An error with what caused it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
