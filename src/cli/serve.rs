use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, exit::Failure, loading, print};
use crate::{
    app::App,
    settings::{Overrides, Settings},
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: SettingsArgs,
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "H")]
    host: Option<String>,
    /// The port to listen on; 0 lets the system choose [default: 8000]
    #[arg(long, value_name = "P")]
    port: Option<u16>,
    /// Serve everyone without an API key, even others than this machine
    #[arg(long)]
    insecure_no_auth: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Self { settings, host, port, insecure_no_auth } = self;
        let settings = Settings::load(&Overrides { host, port, insecure_no_auth, ..settings.overrides() })?;
        telemetry::start(&settings);
        super::runtime()?.block_on(serve(&settings))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let interrupted = super::interrupted()?;
    let app = App::build(settings).await?;
    super::watch(app.models(), settings)?;
    let url = app.url();
    print(&format!("Tandem is listening on {url}"));
    let key = if app.needs_keys() { "YOUR_KEY" } else { "none" };
    print(&format!("  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}"));
    let models = app.models().clone();
    // The server tells of a failure itself.
    let loading = tokio::spawn(async move { drop(loading::shown(&models, models.ready()).await) });
    let served = app.run_until_stopped(interrupted).await;
    loading.abort();
    Ok(served?)
}
