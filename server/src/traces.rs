//! OpenTelemetry traces of a write through to its trigger: OTLP over HTTP, in its JSON encoding. Off by default.
//!
//! # Mechanism
//! 1. Nothing is carried along. What a write and the run that it causes have in common is the instant when the write's last byte was
//!    received, in nanoseconds; it goes with the event anyway. The trace's id, whether it is sampled, and the id of the write's span
//!    are functions of that instant and of a seed of this process, so the HTTP side and the record of the run agree without a word.
//! 2. Spans of sampled traces are put into a lock-free queue with a bound; what finds no room is counted and lost.
//! 3. One thread sends them, a second's at a time. A collector that does not answer costs spans, never a write.
//!
//! When it is off there is no [`Tracer`] and a write looks at a `None`.
//!
//! A run that takes the events of several writes belongs to the trace of the first.
//!
//! | span         | from                          | to                                         | parent  |
//! |--------------|-------------------------------|--------------------------------------------|---------|
//! | `write`      | last byte of the request read | outcome known, about to be answered        |         |
//! | `activation` | last byte of the request read | the plugin's function is entered           | `write` |
//! | `run`        | the function is entered       | it has returned                            | `write` |

use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use saltus_core::ids::MonoNs;
use saltus_core::ports::{RunOutcome, RunRecord};
use saltus_shards::engine::mono_now;
use serde_json::{Value, json};

use crate::http::metrics::{MetricKind, MetricsSource, MetricsText};
use crate::logs::wall_clock_ns;

/// Spans that wait to be sent.
const QUEUE_MAX: usize = 16 * 1024;
/// Spans of one request.
const BATCH_MAX: usize = 1024;
const SEND_EVERY: Duration = Duration::from_secs(1);
/// A collector that takes longer has lost the batch.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// OTLP's numbers.
const KIND_INTERNAL: u8 = 1;
const KIND_SERVER: u8 = 2;
const STATUS_ERROR: u8 = 2;

/// What is exported, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Where spans are posted: the whole URL.
    pub url: String,
    /// Share of the writes that are traced, 0 to 1.
    pub ratio: f64,
    /// Name of this node, an attribute of every span.
    pub node: String,
}

/// One span; instants are of the monotonic clock.
struct Span {
    trace: u128,
    id: u64,
    parent: Option<u64>,
    name: &'static str,
    kind: u8,
    from: MonoNs,
    to: MonoNs,
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
}

/// Chooses what is traced, and keeps spans until they are sent.
pub struct Tracer {
    /// A trace is sampled if its number is below it; the whole range and one more is everything.
    below: u128,
    seed: RandomState,
    queue: ArrayQueue<Span>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

impl Tracer {
    /// A tracer of this share of the writes.
    pub fn new(ratio: f64) -> Self {
        let below = (ratio.clamp(0.0, 1.0) * (u64::MAX as f64 + 1.0)) as u128;
        Tracer { below, seed: RandomState::new(), queue: ArrayQueue::new(QUEUE_MAX), counts: Counts::default() }
    }

    fn number(&self, received: MonoNs, what: u8) -> u64 {
        // Zero is no id.
        self.seed.hash_one((received.0, what)).max(1)
    }

    fn sampled(&self, received: MonoNs) -> bool {
        u128::from(self.number(received, 0)) < self.below
    }

    fn trace(&self, received: MonoNs) -> u128 {
        u128::from(self.number(received, 1)) << 64 | u128::from(self.number(received, 2))
    }

    /// A write whose last byte came at `received` is about to be answered; `outcome` is an error's text or nothing.
    pub fn write(&self, db: &str, bytes: usize, received: MonoNs, no_sync: bool, error: Option<String>) {
        if !self.sampled(received) {
            return;
        }
        self.put(Span {
            trace: self.trace(received),
            id: self.number(received, 3),
            parent: None,
            name: "write",
            kind: KIND_SERVER,
            from: received,
            to: mono_now(),
            attributes: vec![
                ("db.system.name", json!("saltus")),
                ("db.namespace", json!(db)),
                ("saltus.write.bytes", json!(bytes)),
                ("saltus.write.no_sync", json!(no_sync)),
            ],
            error,
        });
    }

    /// A run has ended.
    pub fn run(&self, record: &RunRecord) {
        let RunOutcome::Ended { run_id, attempt, rows, received: Some(received), activation_ns, run_ns, error, .. } =
            &record.what
        else {
            return;
        };
        if !self.sampled(*received) {
            return;
        }
        let Some(entered) = activation_ns.map(|ns| MonoNs(received.0 + ns)) else { return };
        let span = |name, from, to, error| Span {
            trace: self.trace(*received),
            // Unlike a write, runs of one instant may be many.
            id: self.seed.hash_one((run_id.0, name)).max(1),
            parent: Some(self.number(*received, 3)),
            name,
            kind: KIND_INTERNAL,
            from,
            to,
            attributes: vec![
                ("db.namespace", json!(&*record.db)),
                ("saltus.trigger", json!(&*record.trigger)),
                ("saltus.lane", json!(record.lane.to_string())),
                ("saltus.run_id", json!(run_id.0)),
                ("saltus.attempt", json!(attempt)),
                ("saltus.rows", json!(rows)),
            ],
            error,
        };
        self.put(span("activation", *received, entered, None));
        self.put(span("run", entered, MonoNs(entered.0 + run_ns), error.clone()));
    }

    fn put(&self, span: Span) {
        if self.queue.push(span).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl MetricsSource for Tracer {
    fn write(&self, text: &mut MetricsText) {
        let Counts { sent, lost } = &self.counts;
        let help = "Spans that a collector has taken.";
        text.sample(
            "saltus_trace_spans_sent_total",
            MetricKind::Counter,
            help,
            &[],
            sent.load(Ordering::Relaxed) as f64,
        );
        let help = "Spans that were lost: no room, or no collector that took them.";
        text.sample(
            "saltus_trace_spans_lost_total",
            MetricKind::Counter,
            help,
            &[],
            lost.load(Ordering::Relaxed) as f64,
        );
    }
}

/// The thread that sends; its drop sends what is there and ends it.
pub struct Exporter {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Starts to send a tracer's spans.
    ///
    /// # Errors
    /// No thread.
    pub fn start(tracer: Arc<Tracer>, options: TraceOptions) -> std::io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let seen = ending.clone();
        let thread = std::thread::Builder::new().name("saltus-traces".to_owned()).spawn(move || {
            let agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER_WITHIN)).build().new_agent();
            let mut well = true;
            while !seen.load(Ordering::Acquire) {
                std::thread::park_timeout(SEND_EVERY);
                well = send_all(&tracer, &options, &agent, well);
            }
        })?;
        Ok(Exporter { ending, thread: Some(thread) })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            Thread::unpark(thread.thread());
            let _ended = thread.join();
        }
    }
}

/// Sends what waits; whether the collector took it. Trouble is told when it begins and when it ends.
fn send_all(tracer: &Tracer, options: &TraceOptions, agent: &ureq::Agent, mut well: bool) -> bool {
    loop {
        let batch: Vec<Span> = std::iter::from_fn(|| tracer.queue.pop()).take(BATCH_MAX).collect();
        if batch.is_empty() {
            return well;
        }
        let body = request(&batch, &options.node).to_string();
        let sent = agent.post(&options.url).header("content-type", "application/json").send(body);
        let count = if sent.is_ok() { &tracer.counts.sent } else { &tracer.counts.lost };
        count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        match (&sent, well) {
            (Err(error), true) => {
                tracing::warn!(url = options.url, %error, "the collector does not take spans: they are lost until it does");
            }
            (Ok(_), false) => tracing::info!(url = options.url, "the collector takes spans again"),
            _ => {}
        }
        well = sent.is_ok();
        if !well {
            return false;
        }
    }
}

/// `ExportTraceServiceRequest` as JSON: ids in hexadecimal, 64-bit numbers as texts.
fn request(spans: &[Span], node: &str) -> Value {
    // Both clocks are read once per batch: a step of the wall clock moves whole batches.
    let offset = wall_clock_ns() - i64::try_from(mono_now().0).unwrap_or(0);
    let spans: Vec<Value> = spans.iter().map(|span| span_json(span, offset)).collect();
    let resource = [
        ("service.name", json!("saltus")),
        ("service.version", json!(env!("CARGO_PKG_VERSION"))),
        ("service.instance.id", json!(node)),
    ];
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes(&resource) },
        "scopeSpans": [{ "scope": { "name": "saltus" }, "spans": spans }],
    }] })
}

fn span_json(span: &Span, offset: i64) -> Value {
    let at = |instant: MonoNs| (i64::try_from(instant.0).unwrap_or(0) + offset).to_string();
    let mut json = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.id),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": at(span.from),
        "endTimeUnixNano": at(span.to),
        "attributes": attributes(&span.attributes),
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if let Some(error) = &span.error {
        json["status"] = json!({ "code": STATUS_ERROR, "message": error });
    }
    json
}

fn attributes(pairs: &[(&'static str, Value)]) -> Value {
    let one = |(key, value): &(&'static str, Value)| {
        let value = match value {
            Value::Bool(flag) => json!({ "boolValue": flag }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
            Value::String(text) => json!({ "stringValue": text }),
            other => json!({ "stringValue": other.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    pairs.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_traces_is_what_was_asked_for() {
        let sampled = |ratio: f64| {
            let tracer = Tracer::new(ratio);
            (0..100_000_u64).filter(|n| tracer.sampled(MonoNs(n * 1013))).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 100_000));
        let some = sampled(0.1);
        assert!((9_000..11_000).contains(&some), "{some}");
    }

    #[test]
    fn a_span_is_what_collectors_read() {
        let span = Span {
            trace: 0xab,
            id: 0xcd,
            parent: Some(1),
            name: "run",
            kind: KIND_INTERNAL,
            from: MonoNs(5),
            to: MonoNs(7),
            attributes: vec![("a", json!(3)), ("b", json!(true)), ("c", json!("x"))],
            error: Some("no".to_owned()),
        };
        let json = span_json(&span, 1_000);
        assert_eq!(json["traceId"], "000000000000000000000000000000ab");
        assert_eq!((&json["spanId"], &json["parentSpanId"]), (&json!("00000000000000cd"), &json!("0000000000000001")));
        assert_eq!((&json["startTimeUnixNano"], &json["endTimeUnixNano"]), (&json!("1005"), &json!("1007")));
        assert_eq!(json["attributes"][0], json!({"key": "a", "value": {"intValue": "3"}}));
        assert_eq!(json["attributes"][1]["value"], json!({"boolValue": true}));
        assert_eq!(json["status"], json!({"code": 2, "message": "no"}));
    }
}
