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
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Self { settings, host, port } = self;
        let settings = Settings::load(&Overrides { host, port, ..settings.overrides() })?;
        telemetry::start(&settings);
        super::runtime()?.block_on(serve(&settings))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let interrupted = super::interrupted()?;
    let app = App::build(settings).await?;
    super::watch(app.models(), settings)?;
    let address = app.address();
    print(&format!("Tandem is listening on http://{address}"));
    print(&format!("  export OPENAI_BASE_URL=http://{address}/v1 OPENAI_API_KEY=none"));
    let models = app.models().clone();
    // The server tells of a failure itself.
    let loading = tokio::spawn(async move { drop(loading::shown(&models, models.ready()).await) });
    let served = app.run_until_stopped(interrupted).await;
    loading.abort();
    Ok(served?)
}
