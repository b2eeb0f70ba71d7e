use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{sync::oneshot, time};

use super::{client::Client, target::Own};

/// This program as another process, as `serve` or as `run-batch`. Killed when dropped: what it keeps is thrown away with it.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    log: PathBuf,
    _storage: TempDir,
}

/// What a process has taken so far; `None` where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Taken {
    /// Processor time of all threads, in seconds.
    pub(super) cpu_s: Option<f64>,
    /// The most memory that was resident.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// Between two looks whether a process has ended or is ready.
const LOOK: Duration = Duration::from_millis(20);
const LISTENING: &str = "Tandem is listening on ";
/// What `/proc` counts in; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of a log, from its end.
const LOG_TAIL: u64 = 4096;

impl Program {
    /// Starts a server on a port of its own; with its URL, when its model is loaded.
    ///
    /// # Errors
    /// When it ends before, or takes longer than `patience`; with its own last words.
    pub(super) async fn serve(
        own: &Own,
        model: Option<&str>,
        log: &Path,
        patience: Duration,
    ) -> Result<(Self, String), String> {
        let mut program = Self::start("serve", own, model, log, |command| {
            command.args(["--host", "127.0.0.1", "--port", "0"]).stdout(Stdio::piped());
        })?;
        let waiting = async {
            let url = program.child.stdout.take().map(listening);
            let Some(url) = (match url {
                Some(url) => url.await.ok().flatten(),
                None => None,
            }) else {
                return Err(program.ended().await);
            };
            let client = Client::new(&url, None, false, Duration::ZERO)?;
            while !client.is_healthy().await {
                if let Some(reason) = program.has_ended() {
                    return Err(reason);
                }
                time::sleep(LOOK).await;
            }
            Ok(url)
        };
        let url = time::timeout(patience, waiting).await;
        let url = url.map_err(|_| format!("is not ready after {} s", patience.as_secs()))??;
        Ok((program, url))
    }

    /// Starts to answer a batch file.
    ///
    /// # Errors
    /// When there is no process to be had; with the reason.
    pub(super) fn run_batch(
        own: &Own,
        model: Option<&str>,
        log: &Path,
        [input, output, errors]: [&Path; 3],
    ) -> Result<Self, String> {
        Self::start("run-batch", own, model, log, |command| {
            command.arg("-i").arg(input).arg("-o").arg(output).arg("--error-file").arg(errors);
            // Its last line tells how long the lines took, without loading.
            command.env("RUST_LOG", "info").env("TANDEM__LOG__FORMAT", "json").stdout(Stdio::null());
        })
    }

    fn start(
        command: &str,
        own: &Own,
        model: Option<&str>,
        log: &Path,
        with: impl FnOnce(&mut Command),
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("cannot be started: {error}");
        let storage = tempfile::tempdir().map_err(failed)?;
        let mut process = Command::new(std::env::current_exe().map_err(failed)?);
        process.args([command, "--profile", &own.profile]);
        if let Some(backend) = &own.backend {
            process.args(["--backend", backend]);
        }
        if let Some(model) = model {
            process.args(["--model", model]);
        }
        for (key, value) in &own.settings {
            process.env(format!("TANDEM__BACKEND__{}", key.to_uppercase()), value);
        }
        process.env("STORAGE_PATH", storage.path()).stdin(Stdio::null());
        if std::env::var_os("RUST_LOG").is_none() {
            process.env("RUST_LOG", "warn");
        }
        let file = fs_err::OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        process.stderr(file.into_parts().0);
        // What ends the bench from the keyboard is not for it: it is measured until then, and stopped by us.
        process.process_group(0);
        with(&mut process);
        let child = process.spawn().map_err(failed)?;
        Ok(Self { child, log: log.to_owned(), _storage: storage })
    }

    pub(super) fn taken(&self) -> Taken {
        taken(self.child.id())
    }

    /// How it ended, if it has.
    pub(super) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(self.last_words(status))
    }

    /// When it ends, and how.
    pub(super) async fn ended(&mut self) -> String {
        loop {
            if let Some(reason) = self.has_ended() {
                return reason;
            }
            time::sleep(LOOK).await;
        }
    }

    /// Waits for its end; what it took until shortly before, and whether it says that all is well or that lines failed.
    ///
    /// # Errors
    /// When it ended in another way; with its own last words.
    pub(super) async fn finish(&mut self, mut look: impl FnMut()) -> Result<Taken, String> {
        let mut last = Taken::default();
        loop {
            let now = self.taken();
            last.cpu_s = now.cpu_s.or(last.cpu_s);
            last.peak_memory_bytes = now.peak_memory_bytes.or(last.peak_memory_bytes);
            match self.child.try_wait() {
                Ok(Some(status)) if matches!(status.code(), Some(0 | 1)) => return Ok(last),
                Ok(Some(status)) => return Err(self.last_words(status)),
                Ok(None) => {}
                Err(error) => return Err(format!("cannot be waited for: {error}")),
            }
            look();
            time::sleep(LOOK).await;
        }
    }

    fn last_words(&self, status: ExitStatus) -> String {
        let how = status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"));
        let tail = tail(&self.log).unwrap_or_default();
        let line = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("ended with {how}: {}", line.trim())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already, where it ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The URL by which a server says where it listens, and then whatever else it prints is read and forgotten.
fn listening(stdout: ChildStdout) -> oneshot::Receiver<Option<String>> {
    let (sender, receiver) = oneshot::channel();
    let read = move || {
        let mut lines = BufReader::new(stdout).lines();
        let first = lines.next().and_then(Result::ok);
        let _ = sender.send(first.and_then(|line| line.strip_prefix(LISTENING).map(str::to_owned)));
        lines.map_while(Result::ok).for_each(drop);
    };
    // Without a thread nobody hears the sender, which is as if nothing had been printed.
    let _ = std::thread::Builder::new().name("bench-stdout".to_owned()).spawn(read);
    receiver
}

fn tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Seek as _, SeekFrom};

    let mut file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a process has taken, by its number.
pub(super) fn taken(id: u32) -> Taken {
    let read = |name: &str| fs_err::read_to_string(format!("/proc/{id}/{name}")).ok();
    let peak = read("status").and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    Taken { cpu_s: read("stat").and_then(|stat| cpu_seconds(&stat)), peak_memory_bytes: peak.map(|kib| kib << 10) }
}

/// User and system time, the 14th and 15th field. The second is the name in parentheses, which may have anything in it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

/// How long something has taken.
pub(super) fn seconds_since(started: Instant) -> f64 {
    super::figures::rounded(started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("42"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_taken_something() {
        let Taken { cpu_s, peak_memory_bytes } = taken(std::process::id());
        assert!(cpu_s.is_some() && peak_memory_bytes.unwrap() > 1 << 20);
    }
}
