use tandem_core::{BackendLoader, GenerationDefaults, LoadError, Loaded, Matryoshka};

/// A model of which the settings know better than its files.
pub(super) struct Overridden {
    pub(super) loader: Box<dyn BackendLoader>,
    /// Pass over what the files say of choosing tokens.
    pub(super) without_defaults: bool,
    pub(super) matryoshka: Option<Matryoshka>,
}

impl BackendLoader for Overridden {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        let Self { loader, without_defaults, mut matryoshka } = *self;
        loader.with_backend(&mut |loaded| {
            let Loaded { defaults, matryoshka: of_files, .. } = &loaded;
            let defaults = if without_defaults { GenerationDefaults::default() } else { defaults.clone() };
            let matryoshka = matryoshka.take().unwrap_or_else(|| of_files.clone());
            serve(Loaded { defaults, matryoshka, ..loaded });
        })
    }
}
