use std::{fmt::Write as _, sync::Arc, time::Duration};

use tandem_core::{BackendLoader, LoadError, LoadedBytes};
use tandem_engine::{EngineLimits, ModelKind};

use super::{
    Lease, LeaseError, loader,
    overridden::Overridden,
    resident::{MakeLoader, Resident},
    watchdog::{self, Fatal},
};
use crate::{
    clock::Clock,
    settings::{BackendSettings, GenerationConfig, Matryoshka, ModelSettings},
};

/// All models that this server knows, by name.
#[derive(Clone, Debug)]
pub struct Models(Arc<[Arc<Resident>]>);

/// What `/v1/models` tells of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    pub name: String,
    /// Seconds since 1970 at which the server began to serve it.
    pub created: i64,
    /// Tokens of one sequence, or of one input; unknown until the model is loaded.
    pub max_model_len: Option<u32>,
    /// What it does; unknown until the model is loaded.
    pub capabilities: Vec<&'static str>,
    /// The names of its adapters; unknown until the model is loaded.
    pub adapters: Vec<String>,
}

impl Models {
    /// Begins to load every model, each on a thread of its own.
    #[must_use]
    pub fn start(backend: &BackendSettings, models: &[ModelSettings], limits: EngineLimits) -> Self {
        let loaders = models.iter().map(|model| {
            let (backend, model) = (backend.clone(), model.clone());
            let name = model.name.clone();
            let make: MakeLoader = Box::new(move |progress| {
                let loader = loader::loader(&backend, &model, progress)?;
                let without_defaults = model.generation_config == GenerationConfig::Off;
                let matryoshka = model.matryoshka.clone().map(|cut| match cut {
                    Matryoshka::No => tandem_core::Matryoshka::No,
                    Matryoshka::Any => tandem_core::Matryoshka::Any,
                    Matryoshka::Sizes(sizes) => tandem_core::Matryoshka::Sizes(sizes),
                });
                Ok(Box::new(Overridden { loader, without_defaults, matryoshka }))
            });
            (name, make)
        });
        let created = Clock::system().seconds();
        let start = |(name, make): (String, MakeLoader)| Resident::start(name.as_str().into(), created, limits, make);
        Self(loaders.map(start).collect())
    }

    /// One model, from loaders of the caller's own making: each attempt to load it asks for one.
    #[must_use]
    pub fn from_loader(
        name: &str,
        limits: EngineLimits,
        make: impl Fn() -> Result<Box<dyn BackendLoader>, LoadError> + Send + Sync + 'static,
    ) -> Self {
        let make: MakeLoader = Box::new(move |_| make());
        Self([Resident::start(name.into(), Clock::system().seconds(), limits, make)].into())
    }

    /// Waits until every model is loaded.
    ///
    /// # Errors
    /// The first failure: the model's name and what is wrong.
    pub async fn ready(&self) -> Result<(), (String, Arc<LoadError>)> {
        for resident in self.0.iter() {
            resident.first_load().await.map_err(|error| (resident.name().to_owned(), error))?;
        }
        Ok(())
    }

    /// How far the loading of all models has come, as far as that is known of them; `None` where it is of none.
    #[must_use]
    pub fn loading(&self) -> Option<LoadedBytes> {
        let known = self.0.iter().filter_map(|resident| resident.progress());
        known.reduce(|a, b| LoadedBytes { done: a.done + b.done, total: a.total + b.total })
    }

    /// Waits until every model can be used, through failures to load one.
    pub async fn usable(&self) {
        for resident in self.0.iter() {
            resident.usable().await;
        }
    }

    /// Whether every model can be used right now.
    #[must_use]
    pub fn all_usable(&self) -> bool {
        self.0.iter().all(|resident| resident.engine().is_some())
    }

    /// From now on, gives up an engine whose step takes longer than `limit`, if there is one, and tells `on_end` of it or of a device that is
    /// lost, once, on a thread of its own. The thread ends with the last handle to these models.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn watch(&self, limit: Option<Duration>, on_end: impl FnOnce(Fatal) + Send + 'static) -> std::io::Result<()> {
        watchdog::start(&self.0, limit, on_end)
    }

    /// What each engine does, as text for people: nothing of prompts or answers.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        for resident in self.0.iter() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "model {}", resident.name());
            text += &resident.describe().await;
        }
        text
    }

    /// What is known of each model.
    #[must_use]
    pub fn list(&self) -> Vec<ModelCard> {
        let card = |resident: &Arc<Resident>| {
            let engine = resident.engine();
            ModelCard {
                name: resident.name().to_owned(),
                created: resident.created(),
                max_model_len: engine.as_ref().map(|engine| engine.kind().max_tokens()),
                capabilities: engine.as_ref().map(|engine| capabilities(engine.kind())).unwrap_or_default(),
                adapters: engine.map(|engine| engine.kind().adapters().to_vec()).unwrap_or_default(),
            }
        };
        self.0.iter().map(card).collect()
    }

    /// Whether a model has this name.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.0.iter().any(|resident| resident.name() == name)
    }

    /// The right to use a model.
    ///
    /// # Errors
    /// When there is no such model, or it is not loaded at the moment.
    #[expect(clippy::unused_async, reason = "a lease will wait for a model that is being swapped in")]
    pub async fn lease(&self, name: &str) -> Result<Lease, LeaseError> {
        let resident = self.0.iter().find(|resident| resident.name() == name).ok_or(LeaseError::Unknown)?;
        let engine = resident.engine().ok_or(LeaseError::Unavailable)?;
        Ok(Lease::new(resident.name_arc(), engine))
    }
}

/// By Ollama's words, `chat` for models that have a template for it, and `rerank`.
fn capabilities(kind: &ModelKind) -> Vec<&'static str> {
    match kind {
        ModelKind::Embedder(info) if info.spec.ranks() => vec!["rerank"],
        ModelKind::Embedder(_) => vec!["embedding"],
        ModelKind::Generator(info) => {
            let chat = info.chat_template.as_ref().map(|_| "chat");
            let insert = info.vocab.fill_in_the_middle().map(|_| "insert");
            std::iter::once("completion").chain(chat).chain(insert).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that is never loaded, but whose loader came so far.
    fn stuck(name: &str, bytes: Option<LoadedBytes>) -> Arc<Resident> {
        let make: MakeLoader = Box::new(move |progress| {
            if let Some(LoadedBytes { done, total }) = bytes {
                progress.begin(total);
                progress.add(done);
            }
            Err(LoadError::Unsupported("no more than that".to_owned()))
        });
        Resident::start(name.into(), 0, EngineLimits::default(), make)
    }

    #[tokio::test]
    async fn a_device_that_is_lost_while_a_model_is_loaded_is_told() {
        let make: MakeLoader = Box::new(|_| Err(LoadError::DeviceLost("an illegal access".into())));
        let models = Models([Resident::start("a".into(), 0, EngineLimits::default(), make)].into());
        let (tell, told) = tokio::sync::oneshot::channel();
        models.watch(None, |fatal| tell.send(fatal).expect("the test waits for it")).unwrap();
        assert_eq!(told.await, Ok(Fatal::DeviceLost { model: "a".to_owned() }));
    }

    #[tokio::test]
    async fn loading_is_told_over_all_models() {
        let silent = Models([stuck("a", None)].into());
        silent.ready().await.expect_err("a failure");
        assert_eq!(silent.loading(), None);
        let of = |done, total| Some(LoadedBytes { done, total });
        let models = Models([stuck("a", of(4, 10)), stuck("b", None), stuck("c", of(1, 2))].into());
        for resident in models.0.iter() {
            resident.first_load().await.expect_err("a failure");
        }
        assert_eq!(models.loading(), of(5, 12));
    }
}
