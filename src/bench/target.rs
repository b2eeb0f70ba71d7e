use std::{net::IpAddr, path::PathBuf};

use reqwest::Url;

use super::report::Mode;
use crate::settings::{Overrides, profile_and_backend};

/// What is measured: a server of ours that the bench starts, or one that is there.
#[derive(Clone, Debug)]
pub struct Target {
    /// By which the report tells it from the others.
    pub name: String,
    pub mode: Mode,
    pub place: Place,
    /// The model to ask for; of ours a `SPEC`, of others a name. What the server lists first if not given.
    pub model: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Place {
    Own(Own),
    Url(Remote),
}

/// A profile of ours, with what is changed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub profile: String,
    pub backend: Option<String>,
    /// Keys of `[backend]` and their values.
    pub settings: Vec<(String, String)>,
}

/// A server that is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    /// In front of `/v1`.
    pub base: String,
    /// Named behind a `#`.
    pub model: Option<String>,
}

impl Own {
    /// Reads `PROFILE[:BACKEND][,KEY=VALUE…]`; `PROFILE-BACKEND` is the same where no profile is called so.
    ///
    /// # Errors
    /// When it is not of that form; with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let split = head.split_once(':').or_else(|| profile_and_backend(head));
        let (profile, backend) = split.map_or((head, None), |(profile, kind)| (profile, Some(kind)));
        if profile.is_empty() || backend.is_some_and(str::is_empty) {
            return Err("is not of the form PROFILE[:BACKEND][,KEY=VALUE...]".to_owned());
        }
        let settings = parts.map(|setting| {
            let (key, value) = setting.split_once('=').ok_or_else(|| format!("{setting:?} has no '='"))?;
            let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if !plain {
                return Err(format!("{key:?} is no key of [backend]"));
            }
            Ok((key.to_owned(), value.to_owned()))
        });
        let settings = settings.collect::<Result<_, String>>()?;
        Ok(Self { profile: profile.to_owned(), backend: backend.map(str::to_owned), settings })
    }

    /// As it is written.
    #[must_use]
    pub fn label(&self) -> String {
        let Self { profile, backend, settings } = self;
        let backend = backend.as_deref().map_or_else(String::new, |kind| format!(":{kind}"));
        let settings: String = settings.iter().map(|(key, value)| format!(",{key}={value}")).collect();
        format!("{profile}{backend}{settings}")
    }

    /// The settings that are changed, as a file that goes over the profile.
    pub(super) fn changes(&self) -> Option<String> {
        let line = |(key, value): &(String, String)| {
            let bare = value.parse::<f64>().is_ok() || matches!(value.as_str(), "true" | "false");
            let value = if bare { value.clone() } else { format!("{value:?}") };
            format!("{key} = {value}\n")
        };
        let lines: String = self.settings.iter().map(line).collect();
        (!lines.is_empty()).then(|| format!("[backend]\n{lines}"))
    }

    /// What this program is told, here or as another process.
    pub(super) fn overrides(&self, model: Option<&str>, changes: Option<PathBuf>) -> Overrides {
        Overrides {
            profile: Some(self.profile.clone()),
            config: changes,
            backend: self.backend.clone(),
            model: model.map(str::to_owned),
            ..Overrides::default()
        }
    }
}

impl Remote {
    /// Reads `NAME=URL[#MODEL]`; the URL with or without `/v1` at its end.
    ///
    /// # Errors
    /// When it is not of that form; with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or("is not of the form NAME=URL")?;
        if name.is_empty() || name.contains('/') {
            return Err("has no name in front of the URL, as in vllm=http://127.0.0.1:8001".to_owned());
        }
        let mut url = Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("{url} is no URL of a server"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a password in its URL: keys come from OPENAI_API_KEY".to_owned());
        }
        let model = url.fragment().map(str::to_owned);
        url.set_fragment(None);
        url.set_query(None);
        let base = url.as_str().trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        Ok(Self { name: name.to_owned(), base, model })
    }

    /// Whether it runs on this machine, as far as its address tells.
    pub(super) fn is_here(&self) -> bool {
        let url = Url::parse(&self.base).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

/// Every place with every model, in every mode that it has; names are made to differ.
#[must_use]
pub fn targets(places: Vec<Place>, models: &[String], modes: &[Mode]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for place in places {
        let asked: Vec<Option<String>> = match &place {
            Place::Url(Remote { model: Some(model), .. }) => vec![Some(model.clone())],
            Place::Own(_) | Place::Url(_) if models.is_empty() => vec![None],
            Place::Own(_) | Place::Url(_) => models.iter().cloned().map(Some).collect(),
        };
        for model in &asked {
            for mode in modes {
                // There is no offline mode of a server.
                if matches!(place, Place::Url(_)) && *mode == Mode::Offline {
                    continue;
                }
                let mut name = match &place {
                    Place::Own(own) => own.label(),
                    Place::Url(remote) => remote.name.clone(),
                };
                if asked.len() > 1 {
                    let model = model.as_deref().unwrap_or_default();
                    name = format!("{name} {}", model.trim_end_matches('/').rsplit('/').next().unwrap_or(model));
                }
                if modes.len() > 1 && *mode == Mode::Offline {
                    name += " offline";
                }
                let same = targets.iter().filter(|target| target.name == name).count();
                let later = targets.iter().filter(|target| target.name.starts_with(&format!("{name} #"))).count();
                if same > 0 {
                    name = format!("{name} #{}", later + 2);
                }
                targets.push(Target { name, mode: *mode, place: place.clone(), model: model.clone() });
            }
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_a_backend_and_settings_behind_it() {
        let own = Own::parse("demo:candle,threads=1,dtype=f32").unwrap();
        assert_eq!((own.profile.as_str(), own.backend.as_deref()), ("demo", Some("candle")));
        assert_eq!(own.changes().unwrap(), "[backend]\nthreads = 1\ndtype = \"f32\"\n");
        assert_eq!(own.label(), "demo:candle,threads=1,dtype=f32");
        assert_eq!(Own::parse("demo").unwrap().changes(), None);
        for (text, label) in [
            ("demo-candle", "demo:candle"),
            ("a100-llama-cpp,parallel=4", "a100:llama-cpp,parallel=4"),
            ("demo-vllm", "demo-vllm"),
            ("nosuch-candle", "nosuch-candle"),
            ("-candle", "-candle"),
        ] {
            assert_eq!(Own::parse(text).unwrap().label(), label);
        }
        for text in ["", ":candle", "demo:", "demo,threads", "demo,a.b=1"] {
            assert!(Own::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_is_found_with_and_without_its_version() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(Remote::parse(&format!("x={url}")).unwrap().base, "http://h:1", "{url}");
        }
        let remote = Remote::parse("x=https://h/openai/v1#org/model").unwrap();
        assert_eq!((remote.base.as_str(), remote.model.as_deref()), ("https://h/openai", Some("org/model")));
        for (url, here) in
            [("localhost:1", true), ("127.0.0.1", true), ("[::1]:1", true), ("10.0.0.1", false), ("h", false)]
        {
            assert_eq!(Remote::parse(&format!("x=http://{url}/v1")).unwrap().is_here(), here, "{url}");
        }
        for text in ["http://h", "=http://h", "x=h:1", "x=ftp://h", "x=http://me:secret@h"] {
            assert!(Remote::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_target_has_a_name_of_its_own() {
        let own = |text| Place::Own(Own::parse(text).unwrap());
        let url = || Place::Url(Remote::parse("peer=http://h").unwrap());
        let names = |places, models: &[&str], modes: &[Mode]| {
            let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
            targets(places, &models, modes).into_iter().map(|target| target.name).collect::<Vec<_>>()
        };
        assert_eq!(names(vec![own("a"), own("a"), own("a")], &[], &[Mode::Server]), ["a", "a #2", "a #3"]);
        assert_eq!(names(vec![own("a"), url()], &["m/x", "m/y"], &[Mode::Server]), ["a x", "a y", "peer x", "peer y"]);
        assert_eq!(names(vec![own("a"), url()], &[], &[Mode::Server, Mode::Offline]), ["a", "a offline", "peer"]);
    }
}
