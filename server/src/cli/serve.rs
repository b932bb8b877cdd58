//! `saltus serve`: flags made from the table of settings, then the composition.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::CliError;
use crate::config::env::Env;
use crate::config::layers::{Layer, Text, foreign_note, help_texts};
use crate::config::settings::{FOREIGN, FlagKind, REFUSED, SETTINGS};
use crate::config::{Config, Machine};
use crate::{composition, logging};

/// The flags of `serve`, as texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// What was given, by key.
    pub(crate) flags: Layer,
    /// `--config`.
    pub(crate) file: Option<PathBuf>,
    /// Flags that were taken and are not followed.
    pub(crate) notes: Vec<String>,
}

impl ServeArgs {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let mut config =
            Config::resolve(self.flags, self.file, env, &Machine::look()).map_err(|error| CliError(error.0))?;
        if let Some(cpus) = &config.process_cpus {
            keep_to(cpus)?;
        }
        if !config.huge_pages
            && let Err(error) = rustix::thread::disable_transparent_huge_pages(true)
        {
            config.notes.push(format!("huge-pages: the kernel goes on giving huge pages: {error}"));
        }
        logging::start(&config.log_filter, config.log_format).map_err(CliError)?;
        config.notes.extend(self.notes);
        for note in &config.notes {
            tracing::warn!("{note}");
        }
        composition::serve(config).map_err(|error| CliError(error.to_string()))
    }
}

/// Binds this thread, and with it all that it starts, to these cores.
fn keep_to(cpus: &[usize]) -> Result<(), CliError> {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| CliError(format!("numa: the server cannot keep to the cores {cpus:?}: {error}")))
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config").long("config").value_name("FILE").help("Read settings from a TOML file");
        let ours = SETTINGS.iter().map(|setting| {
            let help = help_texts().remove(setting.key).unwrap_or_default();
            let env = format!(" [env: {}]", setting.env.join(", "));
            flag(setting.key, setting.kind).visible_aliases(setting.aliases.iter().copied()).help(help + &env)
        });
        let foreign = FOREIGN.iter().map(|foreign| flag(foreign.name, foreign.kind).hide(true));
        let refused = REFUSED.iter().map(|(name, _)| flag(name, FlagKind::Value).hide(true));
        command.arg(config).args(ours).args(foreign).args(refused)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(name: &'static str, kind: FlagKind) -> Arg {
    let arg = Arg::new(name).long(name).action(ArgAction::Set);
    match kind {
        FlagKind::Value => arg.value_name("VALUE").num_args(1),
        FlagKind::Switch => arg.value_name("BOOL").num_args(0..=1).default_missing_value("true"),
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name: &str| matches.get_one::<String>(name);
        if let Some((name, reason)) = REFUSED.iter().find(|(name, _)| given(name).is_some()) {
            let text = format!("--{name}: {reason}\n");
            return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, text));
        }
        let mut args = ServeArgs { file: given("config").map(PathBuf::from), ..ServeArgs::default() };
        for setting in SETTINGS {
            if let Some(value) = given(setting.key) {
                let origin = format!("flag --{}", setting.key);
                args.flags.insert(setting.key, Text { value: value.clone(), origin });
            }
        }
        let foreign = FOREIGN.iter().filter(|flag| given(flag.name).is_some());
        args.notes = foreign.map(|flag| foreign_note(&format!("flag --{}", flag.name), flag.instead)).collect();
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
