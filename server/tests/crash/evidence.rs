//! What the plugins of the crash loop were given, and what must be true of it.
//!
//! Each trigger notes every batch that it is given, where a `kill -9` of the server does not reach: in a file (deferred and process
//! lane), or in rows that it writes (inline lane, and one that is left to the policy). The logs of the server are read beside it:
//! they say which events there were, and how far each trigger's cursor was durable when the process ended.
//!
//! # Invariants
//! 1. *At least once*: an event that a durable cursor covers was given before the end of that life; in the end every event was
//!    given to every trigger that wants it.
//! 2. *Twice only at the edge*: what lies below the cursor that a life left behind is never given again. So what is given again is
//!    what was under way at the end, what was finished in the last `CURSOR_DELAY_MS`, and one commit of the log. After an
//!    orderly end it is nothing.
//! 3. *One frame*: a trigger that writes to tables of its own shard has its rows and its cursor in the log together or not at
//!    all, so its rows are there exactly once.
//! 4. *Order*: the first sightings of a table's events come in the order of their ids, which is that of the log.
//! 5. *Ids*: an id belongs to one event, with the same rows, for ever.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use saltus_core::ids::{EventId, Sequence, Stream, TableId, TriggerId};
use saltus_shards::placement::Placement;
use saltus_shards::wal::reader::{Next, read_range};
use saltus_shards::wal::{Record, list_streams};
use serde_json::{Value, json};

use super::common::{Server, Start};

/// Tables that are written to, `t0` and so on.
pub const TABLES: usize = 5;

/// Notes in a file. One call per run; a note that was cut off by a kill does not end with a full stop, and the next begins with a new line.
const IN_A_FILE: &str = r#"
import os
import time

def process_writes(influxdb3_local, table_batches, args=None):
    at, event, notes = time.monotonic_ns(), influxdb3_local.event, []
    for index, batch in enumerate(table_batches):
        numbers = ",".join(str(row["n"]) for row in batch["rows"] if "n" in row) or "-"
        notes.append(f"{batch['table_name']} {batch.event_id} {event.attempt} {at} {index} {numbers} .\n")
    out = os.open(args["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(out, ("\n" + "".join(notes)).encode())
    os.close(out)
"#;

/// Notes in rows: one for each batch. `at` is a tag, so that a second sighting does not overwrite the first.
const IN_ROWS: &str = r#"
import time

def process_writes(influxdb3_local, table_batches, args=None):
    at, event = time.monotonic_ns(), influxdb3_local.event
    for index, batch in enumerate(table_batches):
        table = batch["table_name"]
        if not table.startswith("t"):
            continue
        rows = batch["rows"]
        numbers = ",".join([str(row["n"]) for row in rows])
        note = f"{table} {batch.event_id} {event.attempt} {at} {index} {numbers} ."
        line = LineBuilder(args["table"]).tag("at", f"{at}-{index}").string_field("note", note)
        influxdb3_local.write(line.time_ns(rows[0]["time"]))
"#;

/// How a trigger leaves its notes.
#[derive(Clone, Copy, PartialEq)]
enum Notes {
    /// In the file of its name.
    File,
    /// In rows of a table of its own shard, whatever the number of shards.
    OwnShard,
    /// In rows of a table that may be another shard's.
    AnyShard,
}

struct Watched {
    name: &'static str,
    /// `None` is `all_tables`.
    table: Option<&'static str>,
    settings: Value,
    notes: Notes,
    /// Where rows go.
    rows: String,
    /// What is known of its events, by id.
    seen: HashMap<EventId, Sighting>,
    /// Per table, the last event whose first sighting was noted.
    last: HashMap<String, EventId>,
    /// Per stream, the cursor that the last life left behind.
    left: HashMap<Stream, Sequence>,
    again: u64,
    offset: u64,
    /// Behind the last whole line.
    rest: String,
}

struct Sighting {
    times: u64,
    /// Its place in the order of the sightings.
    at: u64,
}

/// A write that is in the log.
struct Event {
    table: String,
    numbers: String,
}

/// One note.
struct Note {
    table: String,
    id: EventId,
    at: u64,
    index: u64,
    numbers: String,
}

/// How much was counted, for whoever reads the output.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, (u64, u64)>);

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        for (name, (events, again)) in other.0 {
            let sum = self.0.entry(name).or_default();
            *sum = (sum.0 + events, sum.1 + again);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, (events, again)) in &self.0 {
            writeln!(f, "  {name}: {events} events seen, {again} of them given again")?;
        }
        Ok(())
    }
}

/// All of it.
pub struct Evidence {
    data: PathBuf,
    folder: PathBuf,
    watched: Vec<Watched>,
    /// By the order of their creation.
    ids: Vec<TriggerId>,
    reached: HashMap<Stream, Sequence>,
    tables: HashMap<TableId, String>,
    events: BTreeMap<EventId, Event>,
    cursors: HashMap<(TriggerId, Stream), Sequence>,
    /// Notes that came with the log, by table.
    noted: HashMap<String, Vec<Note>>,
}

impl Evidence {
    pub fn new(start: &Start, root: &Path) -> Self {
        start.plugin("in_a_file.py", IN_A_FILE);
        start.plugin("in_rows.py", IN_ROWS);
        let watched = |name, table: Option<&'static str>, settings, notes| Watched {
            name,
            table,
            settings,
            notes,
            rows: table.map_or_else(|| format!("seen_by_{name}"), seen_beside),
            seen: HashMap::new(),
            last: HashMap::new(),
            left: HashMap::new(),
            again: 0,
            offset: 0,
            rest: String::new(),
        };
        Evidence {
            data: start.data.clone(),
            folder: root.to_owned(),
            watched: vec![
                watched("inline_0", Some("t0"), json!({"execution": "inline"}), Notes::OwnShard),
                watched("inline_1", Some("t1"), json!({"execution": "inline"}), Notes::OwnShard),
                watched("deferred_2", Some("t2"), json!({"execution": "deferred"}), Notes::File),
                watched("process_3", Some("t3"), json!({"isolation": "process"}), Notes::File),
                watched("auto_4", Some("t4"), json!({"execution": "auto"}), Notes::OwnShard),
                watched("all_deferred", None, json!({"execution": "deferred"}), Notes::File),
                watched("all_inline", None, json!({"execution": "inline"}), Notes::AnyShard),
            ],
            ids: Vec::new(),
            reached: HashMap::new(),
            tables: HashMap::new(),
            events: BTreeMap::new(),
            cursors: HashMap::new(),
            noted: HashMap::new(),
        }
    }

    pub fn create_triggers(&self, server: &Server) {
        for watched in &self.watched {
            let spec = watched.table.map_or_else(|| "all_tables".to_owned(), |table| format!("table:{table}"));
            let (file, arguments) = match watched.notes {
                Notes::File => ("in_a_file.py", json!({"file": self.folder.join(watched.name).to_str().unwrap()})),
                Notes::OwnShard | Notes::AnyShard => ("in_rows.py", json!({"table": watched.rows})),
            };
            server.create_trigger_with("main", watched.name, file, &spec, watched.settings.clone(), arguments);
        }
    }

    /// The process has ended: invariants 1 to 5 as far as they can be seen now.
    pub fn check_edge(&mut self, what: &str, orderly: bool) {
        self.read(what);
        for (watched, id) in self.watched.iter_mut().zip(&self.ids) {
            let name = watched.name;
            let streams: Vec<Stream> = self.reached.keys().copied().collect();
            for stream in streams {
                let cursor = self.cursors.get(&(*id, stream)).copied().unwrap_or_default();
                let before = watched.left.insert(stream, cursor).unwrap_or_default();
                let range = EventId { stream, sequence: Sequence(before.0 + 1) }..;
                for (event_id, event) in self.events.range(range).take_while(|(id, _)| id.stream == stream) {
                    if !watched.wants(event) {
                        continue;
                    }
                    let (covered, seen) = (event_id.sequence <= cursor, watched.seen.contains_key(event_id));
                    assert!(seen || !covered, "{what}: {name} was not given {event_id}, the cursor is {}", cursor.0);
                    let together = orderly || watched.notes == Notes::OwnShard;
                    assert!(
                        covered || !seen || !together,
                        "{what}: {name} has finished {event_id}, and the cursor is {}{}",
                        cursor.0,
                        if orderly { " after an orderly end" } else { ": not in one frame with its rows" }
                    );
                }
            }
        }
    }

    /// In the end, with a server running: every trigger has been given all of it.
    pub fn check_all(&mut self, acknowledged: &HashMap<String, Vec<i64>>, server: &Server) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            self.read("in the end");
            let missing = self.missing();
            if missing.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "never given: {missing:?}\nserver log:\n{}", server.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
        for watched in &self.watched {
            let mut seen: HashMap<&str, Vec<i64>> = HashMap::new();
            for event in watched.seen.keys().map(|id| &self.events[id]) {
                let numbers = event.numbers.split(',').filter_map(|number| number.parse::<i64>().ok());
                seen.entry(&event.table).or_default().extend(numbers);
            }
            for (table, numbers) in acknowledged.iter().filter(|(table, _)| watched.table.is_none_or(|t| t == *table)) {
                let seen: std::collections::HashSet<i64> = seen.remove(table.as_str()).into_iter().flatten().collect();
                let lost = numbers.iter().filter(|number| !seen.contains(number)).count();
                assert_eq!(lost, 0, "{}: acknowledged rows of {table} that it was not given", watched.name);
            }
            if watched.notes == Notes::OwnShard {
                let twice = watched.seen.iter().filter(|(_, sighting)| sighting.times > 1).count();
                assert_eq!(twice, 0, "{}: events whose rows are there twice", watched.name);
                // As the world sees it.
                let sql = format!("SELECT count(*) AS rows, count(DISTINCT note) AS notes FROM {}", watched.rows);
                let row = &server.sql("main", &sql)[0];
                assert_eq!((&row["rows"], &row["notes"]), (&json!(watched.seen.len()), &json!(watched.seen.len())));
            }
        }
    }

    pub fn counts(&self) -> Counts {
        Counts(self.watched.iter().map(|watched| (watched.name, (watched.seen.len() as u64, watched.again))).collect())
    }

    /// What some trigger was not given yet: trigger, how many, the first.
    fn missing(&self) -> Vec<(&'static str, usize, String)> {
        let of = |watched: &Watched| {
            let open = |(id, event): &(&EventId, &Event)| watched.wants(event) && !watched.seen.contains_key(id);
            let mut open = self.events.iter().filter(open).map(|(id, _)| id);
            let first = open.next()?;
            Some((watched.name, 1 + open.count(), first.to_string()))
        };
        self.watched.iter().filter_map(of).collect()
    }

    /// What is new in files and logs. Files first: an event is in the log before anybody is told of it.
    fn read(&mut self, what: &str) {
        let mut notes: Vec<Vec<Note>> = self.watched.iter_mut().map(|w| w.read_file(&self.folder)).collect();
        self.read_logs();
        for (watched, notes) in self.watched.iter().zip(&mut notes) {
            notes.extend(self.noted.remove(&watched.rows).into_iter().flatten());
            notes.sort_by_key(|note| (note.at, note.index));
        }
        for (watched, notes) in self.watched.iter_mut().zip(notes) {
            for note in notes {
                watched.note(note, &self.events, what);
            }
        }
    }

    fn read_logs(&mut self) {
        for files in list_streams(&self.data).unwrap() {
            let stream = files.stream;
            // Earlier lives do not change any more.
            let is_old = self.reached.keys().any(|known| known.epoch > stream.epoch);
            let after = self.reached.get(&stream).copied().unwrap_or_default();
            if is_old && self.reached.contains_key(&stream) {
                continue;
            }
            let data = self.data.clone();
            let reached = read_range(&data, stream, after, Sequence(u64::MAX), &mut |sequence, record| {
                self.take(EventId { stream, sequence }, record);
                Next::More
            });
            self.reached.insert(stream, reached.unwrap());
        }
    }

    fn take(&mut self, id: EventId, record: Record<'_>) {
        match record {
            Record::CreateTable { table, name, .. } => {
                self.tables.insert(table, name.to_owned());
            }
            Record::Write { table, text, .. } => {
                let table = self.tables[&table].clone();
                let text = std::str::from_utf8(text).unwrap();
                let numbers: Vec<&str> = text.lines().filter_map(number_of).collect();
                let notes = text.lines().filter_map(|line| Some(line.split_once("note=\"")?.1.split_once('"')?.0));
                self.noted.entry(table.clone()).or_default().extend(notes.map(|note| Note::parse(note).unwrap()));
                let numbers = if numbers.is_empty() { "-".to_owned() } else { numbers.join(",") };
                self.events.insert(id, Event { table, numbers });
            }
            Record::Cursor { trigger, stream, sequence } => {
                let cursor = self.cursors.entry((trigger, stream)).or_default();
                *cursor = sequence.max(*cursor);
            }
            Record::TriggerBegin { trigger, .. } => {
                if let Err(at) = self.ids.binary_search(&trigger) {
                    self.ids.insert(at, trigger);
                }
            }
            _ => {}
        }
    }
}

impl Watched {
    fn wants(&self, event: &Event) -> bool {
        match (self.table, self.notes) {
            (Some(table), _) => event.table == table,
            (None, Notes::File) => true,
            // It leaves out what plugins wrote, its own rows among it.
            (None, _) => event.table.starts_with('t'),
        }
    }

    fn read_file(&mut self, folder: &Path) -> Vec<Note> {
        let Ok(mut file) = std::fs::File::open(folder.join(self.name)) else { return Vec::new() };
        file.seek(SeekFrom::Start(self.offset)).unwrap();
        self.offset += file.read_to_string(&mut self.rest).unwrap() as u64;
        let whole = self.rest.rfind('\n').map_or(0, |at| at + 1);
        let notes = self.rest[..whole].lines().filter_map(Note::parse).collect();
        self.rest.drain(..whole);
        notes
    }

    /// Takes a sighting, later than all before.
    fn note(&mut self, note: Note, events: &BTreeMap<EventId, Event>, what: &str) {
        let Note { table, id, at, numbers, .. } = note;
        let name = self.name;
        let event = events.get(&id).unwrap_or_else(|| panic!("{what}: {name} was given {id}, which is in no log"));
        assert_eq!((&table, &numbers), (&event.table, &event.numbers), "{what}: {name}: {id} is two events");
        let left = self.left.get(&id.stream).copied().unwrap_or_default();
        let sighting = self.seen.entry(id).or_insert(Sighting { times: 0, at });
        sighting.times += 1;
        if sighting.times > 1 {
            assert!(
                id.sequence > left,
                "{what}: {name} is given {id} again (first at {}, now at {at}), although an earlier life left its cursor at {}",
                sighting.at,
                left.0
            );
            self.again += 1;
            return;
        }
        if let Some(last) = self.last.insert(table, id) {
            assert!(last < id, "{what}: {name} is given {id} after {last}");
        }
    }
}

impl Note {
    /// `None` for one that was cut off.
    fn parse(line: &str) -> Option<Note> {
        let words: Vec<&str> = line.split(' ').collect();
        let [table, id, attempt, at, index, numbers, "."] = words[..] else { return None };
        assert_eq!(attempt, "0", "nothing fails here: {line}");
        Some(Note {
            table: table.to_owned(),
            id: id.parse().unwrap(),
            at: at.parse().unwrap(),
            index: index.parse().unwrap(),
            numbers: numbers.to_owned(),
        })
    }
}

/// Of a line of the ingest.
fn number_of(line: &str) -> Option<&str> {
    line.split_once(" n=")?.1.split_once('i').map(|(number, _)| number)
}

/// A table that has the owner of `table`, however many shards of those that are tried there are.
fn seen_beside(table: &str) -> String {
    let owners = |table: &str| [1, 2, 3].map(|shards| Placement::new(shards).owner("main", table));
    let names = (0..).map(|number| format!("seen_{table}_{number}"));
    let mut right = names.filter(|name| owners(name) == owners(table));
    right.next().unwrap()
}
