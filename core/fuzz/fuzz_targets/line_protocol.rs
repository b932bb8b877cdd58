//! Any body, any precision: the parser agrees with the oracle and reads its own accepted text again as the same rows.
//!
//! The first byte chooses precision and `accept_partial`; the rest is the body. A body that is not UTF-8 must not panic; the
//! oracle takes only UTF-8.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use saltus_core::line_protocol::compare::{Known, check};
use saltus_core::line_protocol::{LineParser, Precision};
use saltus_core::schema::ColumnKind;

const PRECISIONS: [Precision; 5] =
    [Precision::Auto, Precision::Second, Precision::Millisecond, Precision::Microsecond, Precision::Nanosecond];

thread_local! {
    /// Used for all inputs, with tiny caches: what earlier requests left in them must not be noticed.
    static PARSER: RefCell<LineParser> = RefCell::new(LineParser::with_cache_bytes_max(4000));
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else { return };
    let precision = PRECISIONS[usize::from(choice) % PRECISIONS.len()];
    let partial = choice & 0x80 != 0;
    let known = Known::of("n", &[("a", ColumnKind::Tag), ("b", ColumnKind::Integer), ("c", ColumnKind::Float)]);
    PARSER.with_borrow_mut(|parser| match std::str::from_utf8(body) {
        Ok(text) => check(parser, text, precision, partial, &known),
        Err(_) => drop(parser.parse("db", &body.to_vec().into(), precision, partial, &known)),
    });
});
