//! `saltus top`: shards and triggers of a running server, live in the terminal.
//!
//! # Mechanism
//! A thread asks the server for `/metrics` once per interval and hands each answer, or why there is none, to the view; another
//! one asks for the details of a trigger when they are opened. The view ([`app`], [`view`]) only waits for keys and answers, so it is
//! usable while the server is not. Rates are differences of two moments, quantiles are since the server's start.
//!
//! With `--once` two moments are taken and one frame is printed as text.

pub mod app;
pub mod sample;
pub mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use serde_json::{Value, json};

use super::client::{Call, Client};
use super::options::ServerOptions;
use super::{CliError, say};
use crate::config::env::Env;
use crate::config::parse;
use app::{App, Wish};
use sample::Snapshot;

/// How long the view waits for a key before it looks for answers.
const KEY_WAIT: Duration = Duration::from_millis(100);
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    server: ServerOptions,
    /// How often the server is asked
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: String,
    /// Print one frame as text and end
    #[arg(long)]
    once: bool,
    /// Columns of that frame
    #[arg(long, value_name = "COLUMNS", default_value_t = 132, value_parser = clap::value_parser!(u16).range(80..=1000), requires = "once")]
    width: u16,
}

/// What comes to the view.
enum News {
    Moment(Result<Snapshot, String>),
    Details((String, String), Result<BTreeMap<String, Value>, String>),
}

impl Top {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let interval = parse::duration(&self.interval).map_err(|error| CliError(format!("--interval: {error}")))?;
        if interval < INTERVAL_MIN {
            return Err(CliError(format!("--interval: must be at least {INTERVAL_MIN:?}")));
        }
        let client = Arc::new(self.server.client(env, &[])?);
        let app = App::new(client.base().to_owned(), interval);
        if self.once {
            return once(&client, app, self.width);
        }
        if !std::io::stdout().is_terminal() {
            return Err(CliError("standard output is no terminal; --once prints one frame as text".to_owned()));
        }
        let failed = |error: std::io::Error| CliError(format!("the terminal cannot be used: {error}"));
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let result = live(&mut terminal, &client, app).map_err(failed);
        ratatui::try_restore().map_err(failed)?;
        result
    }
}

fn once(client: &Client, mut app: App, width: u16) -> Result<(), CliError> {
    app.take(Ok(moment(client).map_err(CliError)?));
    std::thread::sleep(app.interval);
    app.take(Ok(moment(client).map_err(CliError)?));
    say(text(&app, width).trim_end());
    Ok(())
}

/// One frame as text, as high as it needs to be.
pub fn text(app: &App, width: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, view::height(app)))
        .unwrap_or_else(|never: std::convert::Infallible| match never {});
    let frame = terminal.draw(|frame| view::draw(app, frame)).unwrap_or_else(|never| match never {});
    let buffer = frame.buffer;
    let lines = (0..buffer.area.height).map(|y| {
        let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn moment(client: &Client) -> Result<Snapshot, String> {
    let body = success(client, Method::GET, "/metrics", &Call::default())?;
    Snapshot::read(&String::from_utf8_lossy(&body))
}

fn success(client: &Client, method: Method, path: &str, call: &Call<'_>) -> Result<Vec<u8>, String> {
    let answer = client.call(method, path, call).map_err(|error| error.0)?;
    if answer.status.is_success() { Ok(answer.body) } else { Err(answer.error().0) }
}

/// A trigger's row of the system table.
fn details(client: &Client, db: &str, trigger: &str) -> Result<BTreeMap<String, Value>, String> {
    let sql = "SELECT * FROM system.processing_engine_triggers WHERE trigger_name = $trigger";
    let body = json!({ "db": db, "q": sql, "params": { "trigger": trigger }, "format": "json" }).to_string();
    let call = Call { content_type: Some("application/json"), body: body.as_bytes(), ..Call::default() };
    let answer = success(client, Method::POST, "/api/v3/query_sql", &call)?;
    let rows: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    rows.into_iter().next().ok_or_else(|| format!("there is no trigger {trigger} in {db} any more"))
}

/// Asks at each interval, for ever; what is missed is not made up for.
fn ask_for_ever(client: &Client, interval: Duration, news: &Sender<News>) {
    let mut next = Instant::now();
    while news.send(News::Moment(moment(client))).is_ok() {
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn live(terminal: &mut DefaultTerminal, client: &Arc<Client>, mut app: App) -> std::io::Result<()> {
    let (sender, news) = channel();
    let (asking, interval, moments) = (client.clone(), app.interval, sender.clone());
    std::thread::Builder::new()
        .name("saltus-top".to_owned())
        .spawn(move || ask_for_ever(&asking, interval, &moments))?;
    let wishes = answer_wishes(client.clone(), sender)?;
    loop {
        terminal.draw(|frame| view::draw(&app, frame)).map(drop)?;
        match next_key()? {
            Some(key) => match app.key(key) {
                Wish::Quit => return Ok(()),
                Wish::Details(db, trigger) => drop(wishes.send((db, trigger))),
                Wish::Nothing => {}
            },
            None => take_news(&mut app, &news),
        }
    }
}

fn take_news(app: &mut App, news: &Receiver<News>) {
    for news in news.try_iter() {
        match news {
            News::Moment(answer) => app.take(answer),
            News::Details(of, row) => app.take_details(of, row),
        }
    }
}

fn answer_wishes(client: Arc<Client>, news: Sender<News>) -> std::io::Result<Sender<(String, String)>> {
    let (wishes, wanted) = channel::<(String, String)>();
    std::thread::Builder::new().name("saltus-top-details".to_owned()).spawn(move || {
        for of in wanted {
            let row = details(&client, &of.0, &of.1);
            if news.send(News::Details(of, row)).is_err() {
                return;
            }
        }
    })?;
    Ok(wishes)
}

/// A key, if one is pressed soon; ctrl-c is `q`.
fn next_key() -> std::io::Result<Option<KeyCode>> {
    if !event::poll(KEY_WAIT)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Release => Ok(None),
        Event::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') => {
            Ok(Some(KeyCode::Char('q')))
        }
        Event::Key(key) => Ok(Some(key.code)),
        _ => Ok(None),
    }
}
