//! `AnswerStream`: the way of a streamed answer out of a run (`python/saltus/_response.py` shows its use).

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use saltus_core::limits::{RESPONSE_BYTES_MAX, RESPONSE_PIECE_BYTES_MAX};
use saltus_core::ports::LogLevel;
use saltus_core::request::{AnswerSlot, PieceSender, ResponseHead, Sent};

use crate::effects::{Lane, RunInfo};
use crate::ffi::methodobject::{Args, Method};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};

/// How long a piece waits for room before the interpreter is looked at again: whether the run is to end.
const SLICE: Duration = Duration::from_millis(50);

/// The payload; one per run that answers a request.
pub struct AnswerStream {
    info: Rc<RunInfo>,
    slot: Option<Arc<dyn AnswerSlot>>,
    sender: RefCell<Option<Box<dyn PieceSender>>>,
    /// What is left of a piece for which there was no room.
    rest: RefCell<Bytes>,
    bytes: Cell<u64>,
}

impl AnswerStream {
    /// For one run.
    pub fn new(info: Rc<RunInfo>, slot: Option<Arc<dyn AnswerSlot>>) -> Self {
        let (sender, rest, bytes) = Default::default();
        AnswerStream { info, slot, sender, rest, bytes }
    }
}

impl Payload for AnswerStream {
    const NAME: &'static CStr = c"_saltus.AnswerStream";
    const DOC: &'static CStr = c"The way of an answer to the client while the run goes on.";
}

/// The type's members.
pub fn define(builder: TypeBuilder<AnswerStream>) -> TypeBuilder<AnswerStream> {
    builder.method::<Open>().method::<Begin>().method::<Send>().method::<Check>()
}

/// The pairs of a list of pairs of texts.
///
/// # Errors
/// `TypeError` if it is none.
pub fn text_pairs(py: Py, list: &Object) -> PyResult<Vec<(String, String)>> {
    let pair = |pair: &Object| match pair.sequence_items(py)?.as_slice() {
        [name, value] => Ok((name.extract_str(py, "a header's name")?, value.extract_str(py, "a header's value")?)),
        _ => Err(Raised::new(py, Builtin::Type, "headers must be pairs")),
    };
    list.sequence_items(py)?.iter().map(pair).collect()
}

/// A status code out of Python.
///
/// # Errors
/// `TypeError` if it is no number.
pub fn status(py: Py, number: &Object) -> PyResult<u16> {
    Ok(u16::try_from(number.extract_i64(py)?).unwrap_or(500))
}

/// `open()`
struct Open;

impl Method for Open {
    type Owner = AnswerStream;
    const NAME: &'static CStr = c"open";
    const DOC: &'static CStr = c"Whether pieces can be sent while the run goes on.";

    fn call(py: Py, _this: &Object, owner: &AnswerStream, _args: &Args<'_>) -> PyResult {
        // Told to run inline: then the pieces are collected, within the deadline.
        let collects = owner.slot.is_none() || (owner.info.lane == Lane::Inline && !owner.info.auto);
        if !collects {
            owner.info.reach(py, "a streamed answer")?;
        }
        Ok(Object::bool(py, !collects))
    }
}

/// `begin(status, headers)`
struct Begin;

impl Method for Begin {
    type Owner = AnswerStream;
    const NAME: &'static CStr = c"begin";
    const DOC: &'static CStr = c"Sends status and headers; false if nobody waits for them.";

    fn call(py: Py, _this: &Object, owner: &AnswerStream, args: &Args<'_>) -> PyResult {
        let [status_code, headers] = args.bind(py, "begin", ["status", "headers"], 2)?;
        let status = status(py, &status_code.expect("required"))?;
        let headers = text_pairs(py, &headers.expect("required"))?;
        let sender = owner.slot.as_ref().and_then(|slot| slot.stream(ResponseHead { status, headers }));
        let begun = sender.is_some();
        if !begun {
            owner.info.log(LogLevel::Info, "the client hung up before the answer began".to_owned());
        }
        *owner.sender.borrow_mut() = sender;
        Ok(Object::bool(py, begun))
    }
}

/// `send(piece)`
struct Send;

impl Method for Send {
    type Owner = AnswerStream;
    const NAME: &'static CStr = c"send";
    const DOC: &'static CStr =
        c"Sends a piece: True; False if it is to be sent again; None if nobody takes it any more.";

    fn call(py: Py, _this: &Object, owner: &AnswerStream, args: &Args<'_>) -> PyResult {
        owner.info.go_on(py)?;
        let [piece] = args.bind(py, "send", ["piece"], 1)?;
        let piece = piece.expect("required");
        let Some(mut sender) = owner.sender.take() else { return Ok(Object::none(py)) };
        let mut rest = owner.rest.take();
        if rest.is_empty() {
            let Some(bytes) = piece.as_bytes(py) else {
                return Err(Raised::new(py, Builtin::Type, "a piece must be bytes"));
            };
            rest = Bytes::copy_from_slice(bytes);
        }
        let (sender, rest, sent) = py.detach(move || {
            let before = rest.len();
            let mut sent = Sent::Taken;
            while !rest.is_empty() && sent == Sent::Taken {
                let part = rest.slice(..rest.len().min(RESPONSE_PIECE_BYTES_MAX));
                sent = sender.send(part.clone(), SLICE);
                if sent == Sent::Taken {
                    rest = rest.slice(part.len()..);
                }
            }
            let taken = (before - rest.len()) as u64;
            (sender, rest, (sent, taken))
        });
        let (sent, taken) = sent;
        owner.bytes.set(owner.bytes.get() + taken);
        match sent {
            Sent::Taken | Sent::NoRoom => {
                *owner.sender.borrow_mut() = Some(sender);
                *owner.rest.borrow_mut() = rest;
                Ok(Object::bool(py, sent == Sent::Taken))
            }
            Sent::ReaderGone => {
                let text =
                    format!("the client hung up after {} bytes of the answer: the rest is not made", owner.bytes.get());
                owner.info.log(LogLevel::Info, text);
                Ok(Object::none(py))
            }
        }
    }
}

/// `check(length)`
struct Check;

impl Method for Check {
    type Owner = AnswerStream;
    const NAME: &'static CStr = c"check";
    const DOC: &'static CStr = c"Raises LimitError if an answer that is not streamed may not be so long.";

    fn call(py: Py, _this: &Object, owner: &AnswerStream, args: &Args<'_>) -> PyResult {
        let [length] = args.bind(py, "check", ["length"], 1)?;
        let length = length.expect("required").extract_i64(py)?;
        if usize::try_from(length).is_ok_and(|length| length <= RESPONSE_BYTES_MAX) {
            return Ok(Object::none(py));
        }
        let message = format!(
            "the answer is longer than {RESPONSE_BYTES_MAX} bytes: return a generator, whose pieces are sent one by one"
        );
        Err(Raised::of(py, &owner.info.natives.limit_error, &message))
    }
}
