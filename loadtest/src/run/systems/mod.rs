//! What is measured: a server with the InfluxDB 3 HTTP API, and the rivals beside it.
//!
//! A system is asked for three things: to make what a scenario needs, to open connections that send requests in its own language, and
//! to say when plugins were entered. What it cannot do it says before anything is sent, with the reason.

mod influx3;
mod postgres;
mod process;
mod victoria;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::drive::Client;
use super::scenario::{Scenario, Stream};
use crate::http::Target;
use crate::private;
use crate::server::TriggerLatency;

/// Options that say what is measured.
#[derive(Args, Clone)]
#[group(skip)]
pub struct Options {
    /// Measure this server, http://HOST:PORT, instead of a private one
    #[arg(long)]
    target: Option<String>,
    /// Its token
    #[arg(long, env = "INFLUXDB3_AUTH_TOKEN", hide_env_values = true, requires = "target")]
    token: Option<String>,
    /// Its plugin directory, for one that does not take plugins over HTTP
    #[arg(long, requires = "target")]
    plugin_dir: Option<PathBuf>,
    /// Keep the database of each scenario on that server
    #[arg(long, requires = "target")]
    keep: bool,
    /// A rival in the same run, by turns: postgres=HOST:PORT (`.ci/postgres start` makes one), victoria-metrics (its program, or
    /// =PROGRAM), influxdb3=http://HOST:PORT
    #[arg(long, value_name = "NAME[=WHERE]")]
    rival: Vec<String>,
    #[command(flatten)]
    private: private::Options,
}

/// When a plugin was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When the event was due, nanoseconds of the monotonic clock.
    pub due_ns: u64,
    /// From there to the entry, nanoseconds.
    pub after_ns: u64,
}

/// Something that is measured.
pub trait System: Send {
    /// Its name in tables and files.
    fn name(&self) -> String;

    /// What else there is to know of it: version, promises that are not those of others.
    fn note(&self) -> String;

    /// Makes databases, tables and triggers.
    ///
    /// # Errors
    /// What it said.
    fn prepare(&mut self, scenario: &Scenario) -> anyhow::Result<()>;

    /// Connection `index` of a stream. The first of its rows is of `base_ns`, nanoseconds since 1970.
    ///
    /// # Errors
    /// Nobody listens.
    fn client(&self, stream: &Stream, index: usize, base_ns: u64) -> anyhow::Result<Box<dyn Client>>;

    /// What the plugin of a stream was entered for since this was asked last; it waits a while for `wanted` of them.
    ///
    /// # Errors
    /// What it said.
    fn entries(&mut self, stream: &Stream, wanted: usize) -> anyhow::Result<Vec<Entry>>;

    /// Whether [`System::entries`] means anything for a stream.
    fn sees_entries(&self, stream: &Stream) -> bool;

    /// What it has logged as an error of a stream's plugin, the last of it.
    fn complaint(&self, _stream: &Stream) -> Option<String> {
        None
    }

    /// Processor time that it has used, if that can be seen.
    fn processor_time(&self) -> Option<Duration>;

    /// Its own histograms of triggers.
    ///
    /// # Errors
    /// What it said.
    fn own_latencies(&self) -> anyhow::Result<Vec<TriggerLatency>> {
        Ok(Vec::new())
    }
}

/// What is measured in a scenario.
pub struct Opened {
    /// The first is the one that the others are compared with.
    pub systems: Vec<Box<dyn System>>,
    /// Rivals that do not fit.
    pub left_out: Vec<LeftOut>,
}

/// Why a rival is not in a scenario.
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// The reason.
    pub why: String,
}

impl Options {
    /// Refuses what cannot be opened for any scenario, before the first one is run.
    ///
    /// # Errors
    /// A target that is no address, a rival that is not known or without the place that it needs.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(url) = &self.target {
            url.parse::<Target>().with_context(|| format!("--target {url}"))?;
        }
        for rival in &self.rival {
            let context = || format!("--rival {rival}");
            match split(rival) {
                ("victoria-metrics", _) => {}
                ("postgres", place) => {
                    place.context("where? postgres=HOST:PORT; `.ci/postgres start` makes one").with_context(context)?;
                }
                ("influxdb3", place) => {
                    let url = place.context("where? influxdb3=http://HOST:PORT").with_context(context)?;
                    url.parse::<Target>().with_context(context)?;
                }
                _ => bail!(
                    "--rival {rival} is not known: postgres=HOST:PORT, victoria-metrics, influxdb3=http://HOST:PORT"
                ),
            }
        }
        Ok(())
    }

    /// What of it belongs to a result: nothing secret, and no folders of this machine.
    pub fn to_json(&self) -> Value {
        json!({"target": self.target, "rival": self.rival, "serve": self.private.serve()})
    }

    /// The systems for one scenario.
    ///
    /// # Errors
    /// One does not start, or is not known.
    pub fn open(&self, scenario: &Scenario) -> anyhow::Result<Opened> {
        let mut systems: Vec<Box<dyn System>> = Vec::new();
        let mut left_out = Vec::new();
        systems.push(match &self.target {
            Some(url) => {
                let mut target: Target = url.parse()?;
                target.token.clone_from(&self.token);
                Box::new(influx3::Influx3::connect("target", target, self.plugin_dir.clone(), self.keep)?)
            }
            None => Box::new(influx3::Influx3::start(&self.private, scenario)?),
        });
        for rival in &self.rival {
            let (name, place) = split(rival);
            let refusal = scenario.streams.iter().find_map(|stream| match name {
                "postgres" => postgres::refuses(stream),
                "victoria-metrics" => victoria::refuses(stream),
                _ => None,
            });
            if let Some(why) = refusal {
                left_out.push(LeftOut { name: name.to_owned(), why: why.to_owned() });
                continue;
            }
            // As the shards of a private server.
            let processors = (self.is_private() && scenario.is_apart()).then_some(scenario.server.shards);
            systems.push(open_rival(name, place, processors).with_context(|| format!("the rival {name}"))?);
        }
        Ok(Opened { systems, left_out })
    }

    /// Whether the server is a private one.
    pub fn is_private(&self) -> bool {
        self.target.is_none()
    }
}

/// Name and place of a rival.
fn split(rival: &str) -> (&str, Option<&str>) {
    rival.split_once('=').map_or((rival, None), |(name, place)| (name, Some(place)))
}

fn open_rival(name: &str, place: Option<&str>, processors: Option<usize>) -> anyhow::Result<Box<dyn System>> {
    Ok(match (name, place) {
        ("postgres", Some(authority)) => Box::new(postgres::Postgres::connect(authority, processors)?),
        ("influxdb3", Some(url)) => Box::new(influx3::Influx3::connect(name, url.parse()?, None, false)?),
        ("victoria-metrics", place) => {
            Box::new(victoria::Victoria::start(place.unwrap_or("victoria-metrics"), processors)?)
        }
        _ => bail!("{name} is not known, or its place is not"),
    })
}

/// Nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Pairs of 64-bit numbers in hexadecimal digits, lowest byte first, as the plugins hand them over.
///
/// # Errors
/// It is something else.
pub fn pairs(text: &str) -> anyhow::Result<Vec<(u64, i64)>> {
    const DIGITS: usize = 16;
    let number = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).context("samples that are no digits")?;
        let value = u64::from_str_radix(digits, 16).with_context(|| format!("{digits} is no number"))?;
        anyhow::Ok(value.swap_bytes())
    };
    let pair = |both: &[u8]| {
        anyhow::ensure!(both.len() == 2 * DIGITS, "samples that are cut off");
        Ok((number(&both[..DIGITS])?, number(&both[DIGITS..])? as i64))
    };
    text.as_bytes().chunks(2 * DIGITS).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_signs() {
        // `array.array("q", [1, 2, 3 * 2**40, -5]).tobytes().hex()`
        let text = "010000000000000002000000000000000000000000030000fbffffffffffffff";
        assert_eq!(pairs(text).unwrap(), [(1, 2), (3 << 40, -5)]);
        assert!(pairs(&text[..20]).unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn rivals_that_cannot_be_opened_are_refused_before_anything_runs() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let check = |words: &[&str]| {
            let line = <Line as clap::Parser>::parse_from([&["x"], words].concat());
            line.options.check().map_err(|error| format!("{error:#}"))
        };
        assert!(
            check(&["--rival", "postgres=h:1", "--rival", "victoria-metrics=/x", "--target", "http://h:1"]).is_ok()
        );
        assert!(check(&["--rival", "postgres"]).unwrap_err().contains(".ci/postgres start"));
        assert!(check(&["--rival", "oracle"]).unwrap_err().contains("--rival oracle is not known: postgres="));
        assert!(check(&["--target", "h:1"]).unwrap_err().contains("must start with http://"));
    }
}
