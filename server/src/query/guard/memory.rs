//! Memory of queries: what all hold together, and what each holds.
//!
//! A query is refused for one of two reasons, and they are told apart: what it wants together with what it holds is more than
//! queries may have at all, or it would have fitted had others not been there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

use crate::query::QueryError;

/// What all queries hold.
#[derive(Debug)]
pub(crate) struct AllMemory {
    limit: usize,
    used: AtomicUsize,
    /// Queries that hold any.
    holders: AtomicUsize,
}

impl AllMemory {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(AllMemory { limit, used: AtomicUsize::new(0), holders: AtomicUsize::new(0) })
    }

    /// Bytes that queries hold now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one query holds; DataFusion's memory pool of that query.
#[derive(Debug)]
pub(crate) struct QueryMemory {
    all: Arc<AllMemory>,
    own: AtomicUsize,
    /// The last refusal was for want of room beside other queries.
    others_have_it: AtomicBool,
}

impl QueryMemory {
    pub(crate) fn new(all: &Arc<AllMemory>) -> Arc<Self> {
        Arc::new(QueryMemory { all: all.clone(), own: AtomicUsize::new(0), others_have_it: AtomicBool::new(false) })
    }

    /// Bytes that queries may hold.
    pub(crate) fn limit(&self) -> usize {
        self.all.limit
    }

    /// Takes memory for `what` until the reservation is dropped.
    ///
    /// # Errors
    /// There is no such room.
    pub(crate) fn take(self: &Arc<Self>, what: &str, bytes: usize) -> Result<MemoryReservation> {
        let pool: Arc<dyn MemoryPool> = self.clone();
        let reservation = MemoryConsumer::new(what).register(&pool);
        reservation.try_grow(bytes)?;
        Ok(reservation)
    }

    /// The error of a query that was refused memory.
    pub(crate) fn refusal(&self) -> QueryError {
        let limit = self.all.limit;
        if self.others_have_it.load(Ordering::Relaxed) {
            return QueryError::ResourcesExhausted(format!(
                "other queries have the memory that this one needs now: all together may hold {limit} bytes (setting \
                 --query-memory); try again later"
            ));
        }
        QueryError::TooLarge(format!(
            "the query needs more memory than queries may use, {limit} bytes (setting --query-memory): ask for fewer rows or \
             columns, aggregate, make shorter texts and lists, or raise the setting"
        ))
    }

    fn add(&self, bytes: usize) {
        if bytes > 0 && self.own.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.all.holders.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn refuse(&self, additional: usize) -> DataFusionError {
        let own = self.own.load(Ordering::Relaxed);
        // Several threads of one query ask at once: what one of them holds for a moment is not others'.
        let others = self.all.holders.load(Ordering::Relaxed) > usize::from(own > 0);
        self.others_have_it.store(others && own.saturating_add(additional) <= self.all.limit, Ordering::Relaxed);
        DataFusionError::ResourcesExhausted(format!("{additional} bytes beyond --query-memory"))
    }
}

impl fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query memory, {} of {} bytes", self.own.load(Ordering::Relaxed), self.all.limit)
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &'static str {
        "query"
    }

    fn grow(&self, _reservation: &MemoryReservation, additional: usize) {
        self.add(additional);
        self.all.used.fetch_add(additional, Ordering::Relaxed);
    }

    fn shrink(&self, _reservation: &MemoryReservation, shrink: usize) {
        if shrink > 0 && self.own.fetch_sub(shrink, Ordering::Relaxed) == shrink {
            self.all.holders.fetch_sub(1, Ordering::Relaxed);
        }
        self.all.used.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, _reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let grown = |used: usize| used.checked_add(additional).filter(|used| *used <= self.all.limit);
        if self.all.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_err() {
            return Err(self.refuse(additional));
        }
        self.add(additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.all.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_would_not_fit_alone_is_told_apart_from_who_finds_others_there() {
        let all = AllMemory::new(1000);
        let (one, two) = (QueryMemory::new(&all), QueryMemory::new(&all));
        let held = one.take("a", 600).unwrap();
        for (memory, wanted, alone) in
            [(&one, 401, true), (&two, 401, false), (&two, 1000, false), (&two, 1001, true), (&two, usize::MAX, true)]
        {
            assert!(memory.take("b", wanted).is_err(), "{wanted}");
            let refusal = memory.refusal();
            assert_eq!(matches!(refusal, QueryError::TooLarge(_)), alone, "{wanted}: {refusal}");
            assert!(refusal.to_string().contains("1000 bytes (setting --query-memory)"), "{refusal}");
        }
        assert_eq!((all.used(), one.reserved(), two.reserved()), (600, 600, 0));
        drop(held);
        assert!(two.take("b", 1000).is_ok());
        assert_eq!(all.used(), 0);
    }
}
